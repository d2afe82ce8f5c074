"""Accepts connections, answers the first request of each, and passes it on to a worker: LOG."""
import os
import signal
import socket
import sys
import threading

from wire import read_request

log = os.open(sys.argv[1], os.O_CREAT | os.O_WRONLY | os.O_APPEND)


def serve_one(connection):
    request = read_request(connection)
    if not request:
        return False
    method, path, _, _ = request
    body = b"" if method == b"HEAD" else b"ok %s\n" % path
    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(path) + 4, body))
    os.write(log, b"%s %s 200 %d\n" % (method, path, len(body)))
    return True


def work(channel):
    def serve(connection):
        with connection:
            while serve_one(connection):
                pass

    while True:
        _, files, _, _ = socket.recv_fds(channel, 1, 1)
        if not files:
            return
        connection = socket.socket(fileno=files[0])
        threading.Thread(target=serve, args=(connection,), daemon=True).start()


channels = []
children = []
for _ in range(2):
    mine, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    child = os.fork()
    if child == 0:
        mine.close()
        work(theirs)
        os._exit(0)
    theirs.close()
    channels.append(mine)
    children.append(child)


def stop(*_):
    for child in children:
        os.kill(child, signal.SIGTERM)
    os._exit(0)


signal.signal(signal.SIGTERM, stop)
listener = socket.create_server(("127.0.0.1", 0), backlog=256)
print("listening on 127.0.0.1:%d" % listener.getsockname()[1], flush=True)
turn = 0
while True:
    connection, _ = listener.accept()
    if serve_one(connection):
        socket.send_fds(channels[turn % len(channels)], [b"x"], [connection.fileno()])
        turn += 1
    connection.close()
