"""A server that binds, listens and forks its workers, each of which accepts: LOG PORT."""
import os, sys, socket, signal

log = os.open(sys.argv[1], os.O_CREAT | os.O_WRONLY | os.O_APPEND)
listener = socket.create_server(("127.0.0.1", int(sys.argv[2])), backlog=256)


def serve(connection):
    buffer = b""
    while True:
        while b"\r\n\r\n" not in buffer:
            part = connection.recv(65536)
            if not part:
                return
            buffer += part
        head, buffer = buffer.split(b"\r\n\r\n", 1)
        method, path, _ = head.split(b"\r\n")[0].decode().split(" ", 2)
        lengths = [line for line in head.split(b"\r\n") if line.lower().startswith(b"content-length:")]
        length = int(lengths[0].split(b":")[1]) if lengths else 0
        while len(buffer) < length:
            buffer += connection.recv(65536)
        buffer = buffer[length:]
        if path.startswith("/empty"):
            status, body = 204, b""
            answer = b"HTTP/1.1 204 No Content\r\n\r\n"
        else:
            status, body = 200, b"%s %d\n" % (path.encode(), length)
            answer = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body)
            body = b"" if method == "HEAD" else body
            answer += body
        connection.sendall(answer)
        os.write(log, b"%s %s %d %d\n" % (method.encode(), path.encode(), status, len(body)))


children = []
for _ in range(3):
    child = os.fork()
    if child == 0:
        import threading

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
