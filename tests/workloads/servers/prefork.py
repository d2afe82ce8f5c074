"""A server that binds, listens and forks its workers, each of which accepts: LOG PORT."""
import os
import signal
import socket
import sys
import threading

from wire import read_request

log = os.open(sys.argv[1], os.O_CREAT | os.O_WRONLY | os.O_APPEND)
listener = socket.create_server(("127.0.0.1", int(sys.argv[2])), backlog=256)


def serve(connection):
    request = read_request(connection)
    while request:
        method, path, length, rest = request
        if path.startswith(b"/empty"):
            status, body = 204, b""
            answer = b"HTTP/1.1 204 No Content\r\n\r\n"
        else:
            status, body = 200, b"%s %d\n" % (path, length)
            answer = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body)
            body = b"" if method == b"HEAD" else body
            answer += body
        connection.sendall(answer)
        os.write(log, b"%s %s %d %d\n" % (method, path, status, len(body)))
        request = read_request(connection, rest)


children = []
for _ in range(3):
    child = os.fork()
    if child == 0:
        while True:
            connection, _ = listener.accept()
            threading.Thread(target=serve, args=(connection,), daemon=True).start()
    children.append(child)


def stop(*_):
    for child in children:
        os.kill(child, signal.SIGTERM)
    sys.exit(0)


signal.signal(signal.SIGTERM, stop)
print("listening on 127.0.0.1:%d" % listener.getsockname()[1], flush=True)
signal.pause()
