// Many connections to one server: crowd ADDRESS OPEN ACTIVE ROUNDS opens so many, sends a request on each,
// then ROUNDS requests on each of ACTIVE of them, and closes all. crowd ADDRESS OPEN rate SECONDS opens OPEN
// connections a second instead, each for one request. Prints how many requests were answered.
package main

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strconv"
	"sync"
	"sync/atomic"
	"time"
)

var answered atomic.Int64

type client struct {
	connection net.Conn
	reader     *bufio.Reader
}

func fail(what string, err error) {
	fmt.Fprintln(os.Stderr, what, err)
	os.Exit(1)
}

func dial(address string) client {
	connection, err := net.Dial("tcp", address)
	if err != nil {
		fail("connect:", err)
	}
	return client{connection, bufio.NewReaderSize(connection, 512)}
}

func (c client) ask(path string) {
	fmt.Fprintf(c.connection, "GET %s HTTP/1.1\r\nHost: a\r\n\r\n", path)
	response, err := http.ReadResponse(c.reader, nil)
	if err != nil {
		fail("response:", err)
	}
	io.Copy(io.Discard, response.Body)
	response.Body.Close()
	answered.Add(1)
}

func number(text string) int {
	number, err := strconv.Atoi(text)
	if err != nil {
		fail("argument:", err)
	}
	return number
}

func main() {
	address, open := os.Args[1], number(os.Args[2])
	if os.Args[3] == "rate" {
		rate(address, open, number(os.Args[4]))
	} else {
		crowd(address, open, number(os.Args[3]), number(os.Args[4]))
	}
	fmt.Println(answered.Load())
}

func crowd(address string, open, active, rounds int) {
	clients := make([]client, open)
	each(16, open, func(n int) {
		clients[n] = dial(address)
		clients[n].ask(fmt.Sprintf("/ok/first-%d", n))
	})
	each(32, active, func(n int) {
		for round := 0; round < rounds; round++ {
			clients[n*open/active].ask(fmt.Sprintf("/ok/%d-%d", round, n))
		}
	})
	for _, client := range clients {
		client.connection.Close()
	}
}

func rate(address string, perSecond, seconds int) {
	start := time.Now()
	each(16, perSecond*seconds, func(n int) {
		due := start.Add(time.Duration(n) * time.Second / time.Duration(perSecond))
		time.Sleep(time.Until(due))
		client := dial(address)
		client.ask(fmt.Sprintf("/ok/%d", n))
		client.connection.Close()
	})
}

func each(workers, count int, work func(int)) {
	var next atomic.Int64
	var group sync.WaitGroup
	for w := 0; w < workers; w++ {
		group.Add(1)
		go func() {
			defer group.Done()
			for {
				n := int(next.Add(1)) - 1
				if n >= count {
					return
				}
				work(n)
			}
		}()
	}
	group.Wait()
}
