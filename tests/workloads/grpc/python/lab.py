"""lab: a gRPC echo server and client (grpcio, sync API, raw byte messages) whose exact logs are used to test a network tracer."""
import argparse
import os
import queue
import random
import signal
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "site"))
import grpc  # noqa: E402

KINDS = ["Unary", "ServerStream", "ClientStream", "Bidi"]
CODES = {code.value[0]: code for code in grpc.StatusCode}
LETTERS = "!#$&()*+;<>?@XZ[]^{|}~"  # the Huffman code of HPACK does not make these shorter
WORKERS = 512  # each open call occupies a worker of the server


class Log:
    """Appends lines, each with one write."""

    def __init__(self, path):
        self.fd = os.open(path, os.O_APPEND | os.O_CREAT | os.O_WRONLY, 0o644)

    def line(self, kind, code, received, sent):
        os.write(self.fd, f"lab.Echo/{kind} {code} {received} {sent}\n".encode())


# ---- server ----


class ServerCall:
    """One call at the server: counts its messages, and logs it once."""

    def __init__(self, log, kind, context):
        self.log, self.kind, self.context = log, kind, context
        self.received = self.sent = 0
        self.logged = False
        self.plan = {"status": 0, "count": 0, "size": 0, "sleep": 0}
        self.over = threading.Event()
        if not context.add_callback(self.over.set):
            self.over.set()

    def take(self, msg):
        self.received += 1
        if self.received == 1:
            self.plan = {key: int(value) for key, value in (f.split("=") for f in msg.decode().split())}

    def answer(self):
        self.sent += 1
        return bytes(self.plan["size"])

    def sleep(self):
        """Sleeps as told; False if the call was cancelled meanwhile."""
        return not self.over.wait(self.plan["sleep"] / 1000)

    def ended(self):
        """After the last message: grpcio may show a cancellation as the end of the messages, a moment before it tells."""
        self.over.wait(0.005)

    def write(self, code):
        if not self.logged:
            self.logged = True
            self.log.line(self.kind, code, self.received, self.sent)

    def end(self):
        """Logs the call, and sets the status it was told. Only the last thing before the handler returns."""
        if self.over.is_set():
            return self.write("cancelled")
        status = self.plan["status"]
        self.write(status)
        if status:
            self.context.abort(CODES[status], f"told {status}")


class Echo:
    def __init__(self, log):
        self.log = log

    def unary(self, msg, context):
        call = ServerCall(self.log, "Unary", context)
        call.take(msg)
        return self.respond(call)

    def client_stream(self, messages, context):
        call = ServerCall(self.log, "ClientStream", context)
        try:
            for msg in messages:
                call.take(msg)
            call.ended()
        except grpc.RpcError:  # cancelled while reading
            call.over.set()
        return self.respond(call)

    @staticmethod
    def respond(call):
        answer = b""
        if call.sleep() and call.plan["status"] == 0:
            answer = call.answer()
        call.end()
        return answer

    def server_stream(self, msg, context):
        call = ServerCall(self.log, "ServerStream", context)
        call.take(msg)
        try:
            if call.sleep():
                for _ in range(call.plan["count"]):
                    yield call.answer()
            call.end()
        except GeneratorExit:  # cancelled while sending: never resumed
            call.write("cancelled")
            raise

    def bidi(self, messages, context):
        call = ServerCall(self.log, "Bidi", context)
        try:
            for msg in messages:
                call.take(msg)
                if call.received == 1 and not call.sleep():
                    break
                yield call.answer()
            call.ended()
            call.end()
        except (grpc.RpcError, GeneratorExit):  # cancelled while reading, or while sending
            call.write("cancelled")
            raise


def server(path):
    signals = {signal.SIGTERM, signal.SIGINT}
    signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    echo = Echo(Log(path))
    handlers = {
        "Unary": grpc.unary_unary_rpc_method_handler(echo.unary),
        "ServerStream": grpc.unary_stream_rpc_method_handler(echo.server_stream),
        "ClientStream": grpc.stream_unary_rpc_method_handler(echo.client_stream),
        "Bidi": grpc.stream_stream_rpc_method_handler(echo.bidi),
    }
    limits = [("grpc.max_metadata_size", 1 << 18), ("grpc.absolute_max_metadata_size", 1 << 18)]
    pool = ThreadPoolExecutor(WORKERS)
    barrier = threading.Barrier(WORKERS)
    list(pool.map(lambda _: barrier.wait(), range(WORKERS)))  # starts all threads now: a burst of calls need not wait
    srv = grpc.server(pool, options=limits)
    srv.add_generic_rpc_handlers([grpc.method_handlers_generic_handler("lab.Echo", handlers)])
    port = srv.add_insecure_port("127.0.0.1:0")
    srv.start()
    print(f"listening 127.0.0.1:{port}", flush=True)
    signal.sigwait(signals)
    srv.stop(0).wait()


# ---- client ----


def plan(status, size, sleep):
    return f"status={status} count=3 size={size} sleep={sleep}".ljust(size).encode()


def text(n):
    return "".join(random.choices(LETTERS, k=n))


class BidiCall:
    """A bidirectional call that is fed one message at a time."""

    def __init__(self, stub, **options):
        self.sent = self.received = 0
        self.queue = queue.SimpleQueue()
        self.rpc = stub(self.feed(), **options)

    def feed(self):
        for msg in iter(self.queue.get, None):
            self.sent += 1
            yield msg

    def exchange(self, msg):
        """Sends a message and waits for the answer; False if the call is over."""
        self.queue.put(msg)
        return self.receive()

    def receive(self):
        try:
            next(self.rpc)
        except (StopIteration, grpc.RpcError):
            return False
        self.received += 1
        return True

    def finish(self):
        """Half-closes, reads to the end, gives the status."""
        self.queue.put(None)
        while self.receive():
            pass
        return self.rpc.code()


class Client:
    def __init__(self, channel, log, mode, churn):
        self.log, self.mode, self.churn = log, mode, churn
        self.stubs = {
            "Unary": channel.unary_unary("/lab.Echo/Unary"),
            "ServerStream": channel.unary_stream("/lab.Echo/ServerStream"),
            "ClientStream": channel.stream_unary("/lab.Echo/ClientStream"),
            "Bidi": channel.stream_stream("/lab.Echo/Bidi"),
        }

    def end(self, kind, code, sent, received):
        self.log.line(kind, code.value[0], sent, received)

    def call(self, i):
        kind = "Bidi" if self.mode == "cancel" else KINDS[i % 4]
        status = i // 4 % 17 if self.mode in ("status", "metadata") else 0
        msg = plan(status, 100, 5000 if self.mode == "deadline" else 0)
        metadata = []
        if self.mode == "metadata":
            metadata += [(f"lab-big-{k}", text(4096)) for k in range(4)]
        if self.churn:
            metadata.append(("lab-churn", f"{i:08d}" + text(192)))
        options = {"metadata": metadata, "timeout": 0.15 if self.mode == "deadline" else None}
        self.end(kind, *getattr(self, "run_" + kind)(self.stubs[kind], msg, options))

    def run_Unary(self, stub, msg, options):
        try:
            _, rpc = stub.with_call(msg, **options)
            return rpc.code(), 1, 1
        except grpc.RpcError as error:
            return error.code(), 1, 0

    def run_ServerStream(self, stub, msg, options):
        received = 0
        rpc = stub(msg, **options)
        try:
            for _ in rpc:
                received += 1
        except grpc.RpcError:
            pass
        return rpc.code(), 1, received

    def run_ClientStream(self, stub, msg, options):
        sent = 0

        def feed():
            nonlocal sent
            for _ in range(3):
                sent += 1
                yield msg

        try:
            _, rpc = stub.with_call(feed(), **options)
            return rpc.code(), sent, 1
        except grpc.RpcError as error:
            return error.code(), sent, 0

    def run_Bidi(self, stub, msg, options):
        call = BidiCall(stub, **options)
        if self.mode == "cancel":
            if call.exchange(msg):
                call.rpc.cancel()
        else:
            for _ in range(3):
                if not call.exchange(msg):
                    break
        return call.finish(), call.sent, call.received


def client(args):
    options = [("grpc.enable_retries", 0), ("grpc.service_config_disable_resolution", 1), ("grpc.enable_http_proxy", 0)]
    with grpc.insecure_channel(args.addr, options=options) as channel, ThreadPoolExecutor(args.concurrency) as pool:
        c = Client(channel, Log(args.logfile), args.mode, args.churn)
        held = [BidiCall(c.stubs["Bidi"]) for _ in range(args.held)]
        for call in held:
            call.exchange(plan(0, 10, 0))
        first = 0
        if args.pause_after is not None:
            first = min(args.pause_after, args.calls)
            list(pool.map(c.call, range(first)))
            print("paused", flush=True)
            sys.stdin.readline()
        list(pool.map(c.call, range(first, args.calls)))  # raises what a call raised: exit status 1
        for call in held:
            c.end("Bidi", call.finish(), call.sent, call.received)
    print("done", flush=True)


def main():
    parser = argparse.ArgumentParser()
    commands = parser.add_subparsers(required=True)
    s = commands.add_parser("server")
    s.add_argument("logfile")
    s.set_defaults(run=lambda args: server(args.logfile))
    c = commands.add_parser("client")
    c.add_argument("addr")
    c.add_argument("logfile")
    c.add_argument("--calls", type=int, required=True)
    c.add_argument("--concurrency", type=int, required=True)
    c.add_argument("--mode", choices=["status", "deadline", "cancel", "metadata"], default="status")
    c.add_argument("--churn", action="store_true")
    c.add_argument("--pause-after", type=int)
    c.add_argument("--held", type=int, default=0)
    c.set_defaults(run=client)
    args = parser.parse_args()
    args.run(args)


if __name__ == "__main__":
    main()
