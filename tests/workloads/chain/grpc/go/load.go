package main

import (
	"context"
	"flag"
	"fmt"
	"log"
	"math/rand/v2"
	"os"
	"strconv"
	"sync"
	"sync/atomic"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
)

// origin gives the metadata of a call that nothing came before, and the id of its trace.
func origin(family string) (metadata.MD, string) {
	trace := fmt.Sprintf("%016x%016x", rand.Uint64(), rand.Uint64())
	span, parent := fmt.Sprintf("%016x", rand.Uint64()), fmt.Sprintf("%016x", rand.Uint64())
	values := map[string]string{
		"traceparent":       "00-" + trace + "-" + span + "-01",
		"tracestate":        "load=" + span,
		"b3":                trace + "-" + span + "-1-" + parent,
		"x-b3-traceid":      trace,
		"x-b3-spanid":       span,
		"x-b3-parentspanid": parent,
		"x-b3-sampled":      "1",
		"uber-trace-id":     trace + ":" + span + ":" + parent + ":1",
		"x-request-id":      uuid(),
	}
	md := metadata.MD{}
	for _, key := range keys(family) {
		md.Set(key, values[key])
	}
	if family == "none" || family == "x-request-id" {
		trace = "-"
	}
	return md, trace
}

// uuid gives a random one (version 4, variant 1).
func uuid() string {
	high, low := rand.Uint64()&^0xf000|0x4000, rand.Uint64()&^(3<<62)|1<<63
	return fmt.Sprintf("%08x-%04x-%04x-%04x-%012x", high>>32, high>>16&0xffff, high&0xffff, low>>48, low&(1<<48-1))
}

func load(addr, count, concurrency, family, path string, args []string) {
	calls, err := strconv.Atoi(count)
	if err != nil {
		log.Fatal(err)
	}
	atOnce, err := strconv.Atoi(concurrency)
	if err != nil {
		log.Fatal(err)
	}
	f := flag.NewFlagSet("load", flag.ExitOnError)
	anyStatus := f.Bool("any", false, "any status is fine")
	fail := f.String("fail", "", "the service of this name is told to fail")
	f.Parse(args)
	suffix := ""
	if *fail != "" {
		suffix = "_fail_" + *fail + "_"
	}
	openLog(path)
	conn := dial(addr)
	message := []byte("what is in a message")
	var failed atomic.Bool
	call := func() {
		method := fmt.Sprintf("%sc%016x%s", prefix, rand.Uint64(), suffix)
		md, trace := origin(family)
		var received []byte
		err := conn.Invoke(metadata.NewOutgoingContext(context.Background(), md), "/"+method, &message, &received)
		code := status.Code(err)
		fmt.Fprintf(logFile, "CLIENT %s %d %s\n", method, code, trace)
		if code != codes.OK {
			failed.Store(true)
		}
	}
	var wg sync.WaitGroup
	slots := make(chan struct{}, atOnce)
	for range calls {
		slots <- struct{}{}
		wg.Go(func() {
			call()
			<-slots
		})
	}
	wg.Wait()
	conn.Close()
	if failed.Load() && !*anyStatus {
		os.Exit(1)
	}
}
