"""What the servers that work on bare sockets share."""


def read_request(connection, buffer=b""):
    """The next request: method, path, length of its content, and what came after it; None at the end."""
    while b"\r\n\r\n" not in buffer:
        part = connection.recv(65536)
        if not part:
            return None
        buffer += part
    head, buffer = buffer.split(b"\r\n\r\n", 1)
    lines = head.split(b"\r\n")
    method, path, _ = lines[0].split(b" ", 2)
    lengths = [line for line in lines if line.lower().startswith(b"content-length:")]
    length = int(lengths[0].split(b":")[1]) if lengths else 0
    while len(buffer) < length:
        buffer += connection.recv(65536)
    return method, path, length, buffer[length:]
