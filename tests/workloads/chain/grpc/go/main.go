// chain: a gRPC service (grpc-go, raw byte messages) that calls the next of its kind while it serves a call, and the
// load for a chain of them. What calls what is in the names of the methods, whatever the metadata says: X calls X_0.
package main

import (
	"context"
	"flag"
	"fmt"
	"log"
	"math/rand/v2"
	"net"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
)

const prefix = "chain.Echo/"

var answer = []byte("chain.Echo says this")

// raw passes messages through as bytes; its empty name keeps the content-type plain application/grpc.
type raw struct{}

func (raw) Name() string                  { return "" }
func (raw) Marshal(v any) ([]byte, error) { return *v.(*[]byte), nil }
func (raw) Unmarshal(data []byte, v any) error {
	*v.(*[]byte) = append([]byte(nil), data...)
	return nil
}

var logFile *os.File // O_APPEND: each line is one write

func openLog(path string) {
	var err error
	if logFile, err = os.OpenFile(path, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o644); err != nil {
		log.Fatal(err)
	}
}

// keys gives the metadata that belongs to a family of headers.
func keys(family string) []string {
	switch family {
	case "none":
		return nil
	case "traceparent":
		return []string{"traceparent", "tracestate"}
	case "b3multi":
		return []string{"x-b3-traceid", "x-b3-spanid", "x-b3-parentspanid", "x-b3-sampled"}
	case "b3", "uber-trace-id", "x-request-id":
		return []string{family}
	case "all":
		var all []string
		for _, family := range []string{"traceparent", "b3", "b3multi", "uber-trace-id", "x-request-id"} {
			all = append(all, keys(family)...)
		}
		return all
	}
	log.Fatalf("no such family: %s", family)
	return nil
}

// dial gives a channel of one connection, on which no call is made twice.
func dial(addr string) *grpc.ClientConn {
	conn, err := grpc.NewClient(addr, grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithNoProxy(),
		grpc.WithDisableRetry(), grpc.WithDisableServiceConfig(), grpc.WithDefaultCallOptions(grpc.ForceCodec(raw{})))
	if err != nil {
		log.Fatal(err)
	}
	return conn
}

type service struct {
	name  string
	next  *grpc.ClientConn // nil at the end of the chain
	pass  []string
	child bool
}

// serve serves any method, as it is not the handler of a single one.
func (s *service) serve(_ any, stream grpc.ServerStream) error {
	path, _ := grpc.MethodFromServerStream(stream)
	method := strings.TrimPrefix(path, "/")
	if !strings.HasPrefix(method, prefix) {
		return status.Error(codes.Unimplemented, "no such service")
	}
	var message []byte
	err := stream.RecvMsg(&message)
	if err == nil {
		err = s.call(stream.Context(), method, message)
	}
	fmt.Fprintf(logFile, "SERVER %s %d\n", method, status.Code(err))
	if err != nil {
		return err
	}
	return stream.SendMsg(&answer)
}

// call does what is to be done for a call, and gives the error to answer with.
func (s *service) call(ctx context.Context, method string, message []byte) error {
	if strings.Contains(method, "fail_"+s.name+"_") {
		return status.Error(codes.Internal, "told to fail")
	}
	if s.next == nil {
		return nil
	}
	method += "_0"
	var received []byte
	err := s.next.Invoke(metadata.NewOutgoingContext(ctx, s.passed(ctx)), "/"+method, &message, &received)
	fmt.Fprintf(logFile, "CLIENT %s %d\n", method, status.Code(err))
	if err != nil {
		return status.Errorf(codes.Unavailable, "the next: %v", status.Code(err))
	}
	return nil
}

// passed gives what of the incoming metadata goes on.
func (s *service) passed(ctx context.Context) metadata.MD {
	incoming, _ := metadata.FromIncomingContext(ctx)
	outgoing := metadata.MD{}
	for _, key := range s.pass {
		for _, value := range incoming[key] {
			if key == "traceparent" && s.child {
				value = own(value)
			}
			outgoing.Append(key, value)
		}
	}
	return outgoing
}

// own gives a traceparent with another span id.
func own(traceparent string) string {
	parts := strings.Split(traceparent, "-")
	if len(parts) == 4 {
		parts[2] = fmt.Sprintf("%016x", rand.Uint64())
	}
	return strings.Join(parts, "-")
}

func main() {
	if args := os.Args[1:]; len(args) >= 6 && args[0] == "load" {
		load(args[1], args[2], args[3], args[4], args[5], args[6:])
		return
	}
	port, next := flag.Int("port", 0, "any free one if 0"), flag.String("next", "", "the next one's address")
	pass, child := flag.String("pass", "none", ""), flag.Bool("child", false, "a new span id in each traceparent")
	path, name := flag.String("log", os.DevNull, ""), flag.String("name", "go", "")
	flag.Parse()
	if flag.NArg() > 0 {
		log.Fatal("usage: chain --next ADDRESS ... | chain load ADDRESS COUNT CONCURRENCY FAMILY LOG [--any] [--fail NAME]")
	}
	openLog(*path)
	s := &service{name: *name, pass: keys(*pass), child: *child}
	if *next != "" {
		s.next = dial(*next)
	}
	listener, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", *port))
	if err != nil {
		log.Fatal(err)
	}
	server := grpc.NewServer(grpc.ForceServerCodec(raw{}), grpc.UnknownServiceHandler(s.serve), grpc.WaitForHandlers(true))
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGTERM, syscall.SIGINT)
	ended := make(chan struct{})
	go func() {
		<-signals
		server.Stop() // cancels what is open, which is logged then
		close(ended)
	}()
	fmt.Printf("listening on %s\n", listener.Addr())
	if err := server.Serve(listener); err != nil {
		log.Fatal(err)
	}
	<-ended
}
