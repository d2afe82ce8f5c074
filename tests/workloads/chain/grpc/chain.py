"""A gRPC service (grpcio, sync API, raw byte messages) that calls the next of its kind while it serves a call.

What calls what is in the names of the methods, whatever the metadata says: X calls X_0.
"""
import argparse
import functools
import os
import secrets
import signal
from concurrent.futures import ThreadPoolExecutor

import grpc

PREFIX = "chain.Echo/"
ANSWER = b"chain.Echo says this"
WORKERS = 10  # as in grpcio's own examples: more calls than these wait for a thread
FAMILIES = {
    "none": [],
    "traceparent": ["traceparent", "tracestate"],
    "b3": ["b3"],
    "b3multi": ["x-b3-traceid", "x-b3-spanid", "x-b3-parentspanid", "x-b3-sampled"],
    "uber-trace-id": ["uber-trace-id"],
    "x-request-id": ["x-request-id"],
}
FAMILIES["all"] = sum(FAMILIES.values(), [])


class Log:
    """Appends lines, each with one write."""

    def __init__(self, path):
        self.fd = os.open(path, os.O_APPEND | os.O_CREAT | os.O_WRONLY, 0o644)

    def line(self, side, method, code):
        os.write(self.fd, f"{side} {method} {code.value[0]}\n".encode())


class Echo(grpc.GenericRpcHandler):
    def __init__(self, args, log, channel):
        self.name, self.child, self.log, self.channel = args.name, args.child, log, channel
        self.keys = FAMILIES[args.passed]

    def service(self, details):
        """Finds a handler for any method of the service."""
        method = details.method.removeprefix("/")
        if not method.startswith(PREFIX):
            return None
        return grpc.unary_unary_rpc_method_handler(functools.partial(self.serve, method))

    def serve(self, method, message, context):
        code, text = self.call(method, message, context)
        self.log.line("SERVER", method, code)
        if code is not grpc.StatusCode.OK:
            context.abort(code, text)
        return ANSWER

    def call(self, method, message, context):
        """Does what is to be done for a call, and gives the status to answer with."""
        if f"fail_{self.name}_" in method:
            return grpc.StatusCode.INTERNAL, "told to fail"
        if self.channel is None:
            return grpc.StatusCode.OK, ""
        method += "_0"
        try:
            _, call = self.channel.unary_unary("/" + method).with_call(message, metadata=self.passed(context))
        except grpc.RpcError as error:
            call = error
        self.log.line("CLIENT", method, call.code())
        if call.code() is not grpc.StatusCode.OK:
            return grpc.StatusCode.UNAVAILABLE, f"the next: {call.code().name}"
        return grpc.StatusCode.OK, ""

    def passed(self, context):
        """Gives what of the incoming metadata goes on."""
        metadata = [(key, value) for key, value in context.invocation_metadata() if key in self.keys]
        return [(key, self.own(value) if key == "traceparent" else value) for key, value in metadata]

    def own(self, traceparent):
        parts = traceparent.split("-")
        if self.child and len(parts) == 4:
            parts[2] = secrets.token_hex(8)
        return "-".join(parts)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--next")
    parser.add_argument("--pass", dest="passed", choices=FAMILIES, default="none")
    parser.add_argument("--child", action="store_true", help="a new span id in each traceparent")
    parser.add_argument("--log", default=os.devnull)
    parser.add_argument("--name", default="python")
    args = parser.parse_args()
    signals = {signal.SIGTERM, signal.SIGINT}
    signal.pthread_sigmask(signal.SIG_BLOCK, signals)  # of all threads, as the others are started from here
    # One connection, on which no call is made twice.
    options = [("grpc.enable_retries", 0), ("grpc.service_config_disable_resolution", 1), ("grpc.enable_http_proxy", 0)]
    channel = grpc.insecure_channel(args.next, options) if args.next else None
    server = grpc.server(ThreadPoolExecutor(WORKERS), handlers=[Echo(args, Log(args.log), channel)])
    port = server.add_insecure_port(f"127.0.0.1:{args.port}")
    server.start()
    print(f"listening on 127.0.0.1:{port}", flush=True)
    signal.sigwait(signals)
    server.stop(0).wait()
    if channel:
        channel.close()  # ends the calls that handlers wait for


if __name__ == "__main__":
    main()
