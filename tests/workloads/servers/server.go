// As server.py, with Go's net/http.
package main

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"sync"
)

var statuses = map[string]int{
	"ok": 200, "empty": 204, "missing": 404, "fail": 500, "chunked": 200, "large": 200, "large-chunked": 200,
}

// The size of large answers.
const large = 100 << 20

// writeLarge writes so much in pieces of a megabyte.
func writeLarge(w io.Writer) {
	piece := make([]byte, 1<<20)
	for sent := 0; sent < large; sent += len(piece) {
		if _, err := w.Write(piece); err != nil {
			return
		}
	}
}

func main() {
	file, err := os.Create(os.Args[1])
	if err != nil {
		panic(err)
	}
	log := bufio.NewWriterSize(file, 1)
	var lock sync.Mutex
	handler := func(w http.ResponseWriter, r *http.Request) {
		received, _ := io.Copy(io.Discard, r.Body)
		kind := strings.Split(r.URL.Path, "/")[1]
		status, known := statuses[kind]
		if !known {
			status = 404
		}
		body := ""
		if status != 204 {
			body = fmt.Sprintf("%s %d\n", r.URL.Path, received)
		}
		sent := len(body)
		if strings.HasPrefix(kind, "large") {
			sent = large
		}
		if r.Method == "HEAD" {
			sent = 0
		}
		lock.Lock()
		fmt.Fprintf(log, "%s %s %d %d\n", r.Method, r.URL.Path, status, sent)
		log.Flush()
		lock.Unlock()
		if strings.HasPrefix(kind, "large") {
			if kind == "large" {
				w.Header().Set("Content-Length", fmt.Sprint(large))
			}
			writeLarge(w)
			return
		}
		if kind == "chunked" && r.Method != "HEAD" {
			w.WriteHeader(status)
			io.WriteString(w, body[:len(body)/2])
			w.(http.Flusher).Flush()
			io.WriteString(w, body[len(body)/2:])
			return
		}
		if status != 204 {
			w.Header().Set("Content-Length", fmt.Sprint(len(body)))
		}
		w.WriteHeader(status)
		if sent > 0 {
			io.WriteString(w, body)
		}
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		panic(err)
	}
	fmt.Printf("listening on %s\n", listener.Addr())
	protocols := new(http.Protocols)
	protocols.SetHTTP1(true)
	protocols.SetUnencryptedHTTP2(true)
	server := &http.Server{Handler: http.HandlerFunc(handler), Protocols: protocols}
	server.Serve(listener)
}
