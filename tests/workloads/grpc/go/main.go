// lab: a gRPC echo server and client (grpc-go, raw byte messages) whose exact logs are used to test a network tracer.
package main

import (
	"bufio"
	"context"
	"flag"
	"fmt"
	"io"
	"log"
	"math/rand"
	"net"
	"os"
	"os/signal"
	"sync"
	"syscall"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
)

// raw passes messages through as bytes; its empty name keeps the content-type plain application/grpc.
type raw struct{}

func (raw) Name() string                  { return "" }
func (raw) Marshal(v any) ([]byte, error) { return *v.(*[]byte), nil }
func (raw) Unmarshal(data []byte, v any) error {
	*v.(*[]byte) = append([]byte(nil), data...)
	return nil
}

var (
	kinds   = []string{"Unary", "ServerStream", "ClientStream", "Bidi"}
	logFile *os.File // O_APPEND: each line is one write
)

func openLog(path string) {
	var err error
	if logFile, err = os.OpenFile(path, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o644); err != nil {
		log.Fatal(err)
	}
}

// call counts the messages of one call, at either side of it.
type call struct {
	kind           string
	ctx            context.Context
	stream         grpc.Stream // nil if unary
	sent, received int
}

func (c *call) send(msg []byte) error {
	err := c.stream.SendMsg(&msg)
	if err == nil {
		c.sent++
	}
	return err
}

func (c *call) receive() (msg []byte, err error) {
	if err = c.stream.RecvMsg(&msg); err == nil {
		c.received++
	}
	return msg, err
}

// ---- server ----

type plan struct{ status, count, size, sleep int }

func parsePlan(msg []byte) (p plan) {
	fmt.Sscanf(string(msg), "status=%d count=%d size=%d sleep=%d", &p.status, &p.count, &p.size, &p.sleep)
	return p
}

func (c *call) pause(p plan) error {
	select {
	case <-time.After(time.Duration(p.sleep) * time.Millisecond):
		return nil
	case <-c.ctx.Done():
		return c.ctx.Err()
	}
}

// served logs a call at the server and gives the error to return; err is nil or EOF if the handler did all it was told.
func (c *call) served(p plan, err error) error {
	if c.ctx.Err() != nil {
		err = status.FromContextError(c.ctx.Err()).Err()
	}
	if err != nil && err != io.EOF {
		fmt.Fprintf(logFile, "lab.Echo/%s cancelled %d %d\n", c.kind, c.received, c.sent)
		return err
	}
	fmt.Fprintf(logFile, "lab.Echo/%s %d %d %d\n", c.kind, p.status, c.received, c.sent)
	if p.status != 0 {
		return status.Errorf(codes.Code(p.status), "told %d", p.status)
	}
	return nil
}

func serveUnary(_ any, ctx context.Context, decode func(any) error, _ grpc.UnaryServerInterceptor) (any, error) {
	c := &call{kind: "Unary", ctx: ctx}
	var msg []byte
	err := decode(&msg)
	p := parsePlan(msg)
	if err == nil {
		c.received++
		err = c.pause(p)
	}
	if err == nil && p.status == 0 {
		c.sent++ // the answer below
	}
	if err = c.served(p, err); err != nil {
		return nil, err
	}
	answer := make([]byte, p.size)
	return &answer, nil
}

func serveStream(kind string, s grpc.ServerStream) error {
	c := &call{kind: kind, ctx: s.Context(), stream: s}
	msg, err := c.receive()
	p := parsePlan(msg)
	answer := make([]byte, p.size)
	for c.kind == "ClientStream" && err == nil {
		_, err = c.receive()
	}
	if err == nil || err == io.EOF {
		err = c.pause(p)
	}
	switch c.kind {
	case "ServerStream":
		for i := 0; i < p.count && err == nil; i++ {
			err = c.send(answer)
		}
	case "ClientStream":
		if err == nil && p.status == 0 {
			err = c.send(answer)
		}
	case "Bidi":
		for err == nil {
			if err = c.send(answer); err == nil {
				_, err = c.receive()
			}
		}
	}
	return c.served(p, err)
}

func streamDesc(kind string) grpc.StreamDesc {
	handler := func(_ any, s grpc.ServerStream) error { return serveStream(kind, s) }
	return grpc.StreamDesc{StreamName: kind, Handler: handler,
		ServerStreams: kind != "ClientStream", ClientStreams: kind != "ServerStream"}
}

func server(path string) {
	openLog(path)
	s := grpc.NewServer(grpc.ForceServerCodec(raw{}), grpc.MaxHeaderListSize(1<<18), grpc.WaitForHandlers(true))
	s.RegisterService(&grpc.ServiceDesc{ServiceName: "lab.Echo", HandlerType: (*any)(nil),
		Methods: []grpc.MethodDesc{{MethodName: "Unary", Handler: serveUnary}},
		Streams: []grpc.StreamDesc{streamDesc("ServerStream"), streamDesc("ClientStream"), streamDesc("Bidi")},
	}, struct{}{})
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		log.Fatal(err)
	}
	stop := make(chan os.Signal, 1)
	signal.Notify(stop, syscall.SIGTERM, syscall.SIGINT)
	go s.Serve(l)
	fmt.Println("listening", l.Addr())
	<-stop
	s.Stop()
}

// ---- client ----

type client struct {
	conn  *grpc.ClientConn
	mode  string
	churn bool
}

func planMsg(status, size, sleep int) []byte {
	return fmt.Appendf(nil, "%-*s", size, fmt.Sprintf("status=%d count=3 size=%d sleep=%d", status, size, sleep))
}

// text is printable, of characters that the Huffman code of HPACK does not make shorter.
func text(n int) string {
	b := make([]byte, n)
	for i := range b {
		b[i] = "!#$&()*+;<>?@XZ[]^{|}~"[rand.Intn(22)]
	}
	return string(b)
}

// done logs a call at the client; err is what it ended with.
func (c *call) done(err error) {
	if err == io.EOF {
		err = nil
	}
	fmt.Fprintf(logFile, "lab.Echo/%s %d %d %d\n", c.kind, status.Code(err), c.sent, c.received)
}

func (c *client) open(call *call) (grpc.ClientStream, error) {
	desc := streamDesc(call.kind)
	s, err := c.conn.NewStream(call.ctx, &desc, "/lab.Echo/"+call.kind)
	call.stream = s
	return s, err
}

// call makes call number i.
func (c *client) call(i int) {
	kind, told, sleep := kinds[i%4], i/4%17, 0
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	switch c.mode {
	case "deadline":
		told, sleep = 0, 5000
		ctx, cancel = context.WithTimeout(ctx, 150*time.Millisecond)
		defer cancel()
	case "cancel":
		kind, told = "Bidi", 0
	case "metadata":
		for k := range 4 {
			ctx = metadata.AppendToOutgoingContext(ctx, fmt.Sprintf("lab-big-%d", k), text(4096))
		}
	}
	if c.churn {
		ctx = metadata.AppendToOutgoingContext(ctx, "lab-churn", fmt.Sprintf("%08d", i)+text(192))
	}
	call := &call{kind: kind, ctx: ctx}
	call.done(c.run(call, planMsg(told, 100, sleep), cancel))
}

// run gives the error that the call ended with.
func (c *client) run(call *call, msg []byte, cancel func()) error {
	if call.kind == "Unary" {
		var answer []byte
		call.sent++
		err := c.conn.Invoke(call.ctx, "/lab.Echo/Unary", &msg, &answer)
		if err == nil {
			call.received++
		}
		return err
	}
	s, err := c.open(call)
	if err != nil {
		return err
	}
	messages := 3
	if call.kind == "ServerStream" || c.mode == "cancel" {
		messages = 1
	}
	for i := 0; i < messages && call.send(msg) == nil; i++ { // if sending fails, receiving tells why
		if call.kind == "Bidi" { // one answer is awaited for each message
			if _, err := call.receive(); err != nil {
				return err
			}
		}
	}
	if c.mode == "cancel" {
		cancel() // and no half-close, which might overtake it
		_, err = call.receive()
		return err
	}
	return call.finish(s)
}

// finish half-closes and reads to the end; a response that is not a stream ends with its only message.
func (c *call) finish(s grpc.ClientStream) error {
	s.CloseSend()
	_, err := c.receive()
	for err == nil && c.kind != "ClientStream" {
		_, err = c.receive()
	}
	return err
}

// hold opens a call, exchanges one message, and gives the function that ends the call.
func (c *client) hold() (end func()) {
	call := &call{kind: "Bidi", ctx: context.Background()}
	s, err := c.open(call)
	if err == nil {
		call.send(planMsg(0, 10, 0))
		_, err = call.receive()
	}
	return func() {
		if err == nil {
			err = call.finish(s)
		}
		call.done(err)
	}
}

func runClient(addr, path string, args []string) {
	f := flag.NewFlagSet("client", flag.ExitOnError)
	calls, concurrency := f.Int("calls", 1, ""), f.Int("concurrency", 1, "")
	mode, churn := f.String("mode", "status", ""), f.Bool("churn", false, "")
	pauseAfter, held := f.Int("pause-after", -1, ""), f.Int("held", 0, "")
	f.Parse(args)
	openLog(path)
	conn, err := grpc.NewClient(addr, grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithNoProxy(),
		grpc.WithDisableRetry(), grpc.WithDisableServiceConfig(), grpc.WithDefaultCallOptions(grpc.ForceCodec(raw{})))
	if err != nil {
		log.Fatal(err)
	}
	c := &client{conn, *mode, *churn}
	ends := make([]func(), *held)
	for i := range ends {
		ends[i] = c.hold()
	}
	run := func(from, to int) {
		var wg sync.WaitGroup
		slots := make(chan struct{}, *concurrency)
		for i := from; i < to; i++ {
			slots <- struct{}{}
			wg.Go(func() {
				c.call(i)
				<-slots
			})
		}
		wg.Wait()
	}
	first := min(*pauseAfter, *calls)
	if run(0, first); first >= 0 {
		fmt.Println("paused")
		bufio.NewReader(os.Stdin).ReadString('\n')
	}
	run(max(0, first), *calls)
	for _, end := range ends {
		end()
	}
	conn.Close()
	fmt.Println("done")
}

func main() {
	if args := os.Args[1:]; len(args) == 2 && args[0] == "server" {
		server(args[1])
	} else if len(args) >= 3 && args[0] == "client" {
		runClient(args[1], args[2], args[3:])
	} else {
		log.Fatal("usage: lab server LOGFILE | lab client ADDR LOGFILE --calls N --concurrency C ...")
	}
}
