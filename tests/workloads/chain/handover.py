"""A service whose calls are made by a few threads, which are handed them through a queue.

With `--mode acceptor` one thread accepts connections and reads the request of each, and what it hands over
is the socket: those threads make a call, answer, and close.
"""
import http.client
import queue
import socket
import threading
import time
from concurrent.futures import Future

import chain


class Pool:
    def __init__(self, threads):
        self.jobs = queue.Queue()
        for _ in range(threads):
            threading.Thread(target=self.work, daemon=True).start()

    def work(self):
        while True:
            result, function, arguments = self.jobs.get()
            try:
                result.set_result(function(*arguments))
            except Exception as error:
                result.set_exception(error)

    def submit(self, function, *arguments):
        result = Future()
        self.jobs.put((result, function, arguments))
        return result

    def run(self, function, *arguments):
        return self.submit(function, *arguments).result()

    def map(self, function, items):
        return [result.result() for result in [self.submit(function, item) for item in items]]


def answer(connection, path, headers):
    with connection:
        status = 503 if service.fails(path) else service.calls(path, headers)
        time.sleep(chain.delay(path))
        service.log.line("SERVER", path, status)
        lines = [f"HTTP/1.1 {status} {http.client.responses[status]}"]
        lines += [f"Content-Length: {len(chain.BODY)}", "Connection: close", "", ""]
        connection.sendall("\r\n".join(lines).encode() + chain.BODY)


def accept(listener):
    while True:
        connection, _ = listener.accept()
        with connection.makefile("rb") as file:
            if request := file.readline().split():
                headers = http.client.parse_headers(file)
                pool.submit(answer, connection, request[1].decode(), service.passed(headers.get))
            else:
                connection.close()


service = chain.Service(chain.options(modes=[*chain.MODES, "acceptor"]))
chain.end_when_told()
pool = Pool(4)
if service.options.mode == "acceptor":
    listener = socket.create_server(("127.0.0.1", service.options.port), backlog=1024)
    port, serve = listener.getsockname()[1], lambda: accept(listener)
else:
    server = chain.Server(service, pool.run, pool.map, later=pool.submit)
    port, serve = server.server_port, server.serve_forever
chain.announce(port)
service.start_cron()
serve()
