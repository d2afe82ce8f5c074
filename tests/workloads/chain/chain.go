// As threads.py, with Go's net/http.
package main

import (
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/signal"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

const body = "it has been answered"

var families = map[string][]string{
	"none":          {},
	"traceparent":   {"Traceparent", "Tracestate"},
	"b3":            {"B3"},
	"b3multi":       {"X-B3-TraceId", "X-B3-SpanId", "X-B3-ParentSpanId", "X-B3-Sampled"},
	"uber-trace-id": {"Uber-Trace-Id"},
	"x-request-id":  {"X-Request-Id"},
}

var modes = []string{"single", "fan", "sequence", "retry", "late", "stream"}

var (
	port  = flag.Int("port", 0, "")
	next  []string
	pass  = flag.String("pass", "none", "")
	child = flag.Bool("child", false, "")
	file  = flag.String("log", os.DevNull, "")
	mode  = flag.String("mode", "single", "")
	cron  = flag.Int("cron", 0, "")
	name  = flag.String("name", "", "")

	log    *os.File
	client = http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 64}}
)

func told(side, path string, status int) {
	fmt.Fprintf(log, "%s %s %d\n", side, path, status) // which is one write
}

func passed(r *http.Request) http.Header {
	headers := http.Header{}
	for _, name := range families[*pass] {
		if value := r.Header.Get(name); value != "" {
			headers.Set(name, value)
		}
	}
	return headers
}

// sent are the headers of one call.
func sent(headers http.Header) http.Header {
	fields := strings.Split(headers.Get("traceparent"), "-")
	if !*child || len(fields) != 4 {
		return headers
	}
	headers = headers.Clone()
	fields[2] = fmt.Sprintf("%016x", rand.Uint64())
	headers.Set("traceparent", strings.Join(fields, "-"))
	return headers
}

// get returns the status of the answer, 0 if there was none.
func get(url string, headers http.Header) int {
	request, err := http.NewRequest("GET", url, nil)
	if err != nil {
		return 0
	}
	request.Header = headers
	response, err := client.Do(request)
	if err != nil {
		return 0
	}
	defer response.Body.Close()
	if _, err := io.Copy(io.Discard, response.Body); err != nil {
		return 0
	}
	return response.StatusCode
}

func call(path string, number int, headers http.Header) int {
	status := get(next[number%len(next)]+path, sent(headers))
	told("CLIENT", path, status)
	return status
}

// calls makes the calls of a request, and returns the status to answer it with.
func calls(path string, headers http.Header) int {
	if len(next) == 0 {
		return 200
	}
	one := func(number int) int { return call(fmt.Sprintf("%s/%d", path, number), number, headers) }
	var statuses []int
	switch *mode {
	case "fan":
		statuses = make([]int, 20)
		var all sync.WaitGroup
		for number := range statuses {
			all.Add(1)
			go func() {
				defer all.Done()
				statuses[number] = one(number)
			}()
		}
		all.Wait()
	case "sequence":
		statuses = []int{one(0), one(1), one(2)}
	case "retry":
		statuses = []int{one(0)}
		if statuses[0] == 503 {
			statuses[0] = one(1)
		}
	default:
		statuses = []int{one(0)}
	}
	if slices.ContainsFunc(statuses, func(status int) bool { return status == 0 || status >= 500 }) {
		return 502
	}
	return 200
}

func fails(path string) bool {
	marked := slices.Contains(strings.Split(path, "/"), "fail-"+*name)
	return marked && (*mode != "retry" || strings.HasSuffix(path, "/0"))
}

func delay(path string) time.Duration {
	segments := strings.Split(path, "/")
	if len(segments) < 4 || segments[1] != "slow" {
		return 0
	}
	duration, _ := strconv.Atoi(segments[2])
	return time.Duration(duration) * time.Millisecond
}

func answer(w http.ResponseWriter, path string, status int) {
	told("SERVER", path, status)
	w.Header().Set("Content-Length", strconv.Itoa(len(body)))
	w.WriteHeader(status)
	io.WriteString(w, body)
}

func stream(w http.ResponseWriter, path string, headers http.Header) {
	for number := range 5 {
		io.WriteString(w, body)
		w.(http.Flusher).Flush()
		if len(next) > 0 {
			call(fmt.Sprintf("%s/%d", path, number), number, headers)
		}
	}
	time.Sleep(delay(path))
	told("SERVER", path, 200)
}

func serve(w http.ResponseWriter, r *http.Request) {
	io.Copy(io.Discard, r.Body)
	path, headers := r.RequestURI, passed(r)
	switch {
	case fails(path):
		answer(w, path, 503)
	case *mode == "stream":
		stream(w, path, headers)
	case *mode == "late":
		time.Sleep(delay(path))
		answer(w, path, 200)
		w.(http.Flusher).Flush() // nothing of the answer is left to write
		if len(next) > 0 {
			go call(path+"/late", 0, headers)
		}
	default:
		status := calls(path, headers)
		time.Sleep(delay(path))
		answer(w, path, status)
	}
}

func callRegularly() {
	number := 0
	for range time.Tick(time.Duration(*cron) * time.Millisecond) {
		call(fmt.Sprintf("/cron/%s/%d", *name, number), 0, http.Header{})
		number++
	}
}

func must[T any](value T, err error) T {
	if err != nil {
		panic(err)
	}
	return value
}

func main() {
	flag.Func("next", "", func(url string) error {
		next = append(next, url)
		return nil
	})
	flag.Parse()
	for _, family := range []string{"traceparent", "b3", "b3multi", "uber-trace-id", "x-request-id"} {
		families["all"] = append(families["all"], families[family]...)
	}
	if _, known := families[*pass]; !known || !slices.Contains(modes, *mode) {
		panic("no such mode or family of headers")
	}
	log = must(os.OpenFile(*file, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644))
	listener := must(net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", *port)))
	fmt.Printf("listening on %s\n", listener.Addr())
	if *cron > 0 && len(next) > 0 {
		go callRegularly()
	}
	go http.Serve(listener, http.HandlerFunc(serve))
	terminated := make(chan os.Signal, 1)
	signal.Notify(terminated, syscall.SIGTERM)
	<-terminated
}
