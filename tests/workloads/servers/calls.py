"""HTTP exchanges by unusual calls, both ends in one process; prints METHOD PATH STATUS BYTES of each.

calls.py FOLDER [CASE...]
"""
import ctypes
import os
import socket
import sys
import tempfile
import threading

folder = sys.argv[1]
libc = ctypes.CDLL(None, use_errno=True)
SIZE = 5 << 20
SMALL = 60_000


def pair():
    listener = socket.create_server(("127.0.0.1", 0))
    client = socket.create_connection(listener.getsockname())
    server, _ = listener.accept()
    listener.close()
    return client, server


def receive(connection, length):
    data = b""
    while len(data) < length:
        part = connection.recv(length - len(data))
        if not part:
            break
        data += part
    return data


def in_background(work, *arguments):
    thread = threading.Thread(target=work, args=arguments)
    thread.start()
    return thread


def told(path, size, method="GET", status=200):
    print(method, path, status, size)


def ask(path, client, server):
    request = b"GET %s HTTP/1.1\r\nHost: a\r\n\r\n" % path.encode()
    client.sendall(request)
    receive(server, len(request))


def answer(path, body, client, server):
    """An ordinary exchange up to the end."""
    ask(path, client, server)
    response = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body
    sender = in_background(server.sendall, response)
    receive(client, len(response))
    sender.join()
    told(path, len(body))


def close(client, server):
    client.close()
    server.close()


def peek():
    client, server = pair()
    request = b"GET /peek HTTP/1.1\r\nHost: a\r\n\r\n"
    client.sendall(request)
    for _ in range(3):
        server.recv(1000, socket.MSG_PEEK)
    server.recvmsg_into([bytearray(10), bytearray(10)], 0, socket.MSG_PEEK)
    receive(server, len(request))
    server.sendall(b"HTTP/1.1 204 No Content\r\n\r\n")
    client.recv(1000)
    told("/peek", 0, status=204)
    answer("/after-peek", b"x", client, server)
    close(client, server)


def trunc():
    """The content is received into nowhere."""
    client, server = pair()
    request = b"POST /trunc HTTP/1.1\r\nContent-Length: 1000\r\n\r\n"
    client.sendall(request)
    receive(server, len(request))
    client.sendall(b"t" * 1000)
    left = 1000
    while left:
        left -= trunc_recv(server, left)
    server.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
    client.recv(1000)
    told("/trunc", 2, "POST")
    answer("/after-trunc", b"x", client, server)
    close(client, server)


def trunc_recv(server, length):
    return libc.recv(server.fileno(), None, ctypes.c_size_t(length), socket.MSG_TRUNC)


def waitall():
    client, server = pair()
    ask("/waitall", client, server)
    body = b"w" * SMALL
    response = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body
    sender = in_background(server.sendall, response)
    assert len(client.recv(len(response), socket.MSG_WAITALL)) == len(response)
    sender.join()
    told("/waitall", len(body))
    close(client, server)


def zerocopy():
    client, server = pair()
    server.setsockopt(socket.SOL_SOCKET, 60, 1)
    ask("/zerocopy", client, server)
    body = b"z" * SMALL
    head = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body)

    def send():
        data = memoryview(head + body)
        while data:
            sent = server.send(data[:100_000], 0x4000000)
            data = data[sent:]
        try:
            server.recvmsg(0, 1000, socket.MSG_ERRQUEUE)
        except BlockingIOError:
            pass

    sender = in_background(send)
    receive(client, len(head) + len(body))
    sender.join()
    told("/zerocopy", len(body))
    answer("/after-zerocopy", b"x", client, server)
    close(client, server)


def many_pieces():
    client, server = pair()
    pieces = [b"GET /many-pieces HTTP/1.1\r\n"] + [b"X-%d: 1\r\n" % n for n in range(900)] + [b"\r\n"]
    client.sendmsg(pieces)
    length = sum(map(len, pieces))
    buffers = [bytearray(20) for _ in range(1000)]
    got = 0
    while got < length:
        got += server.recvmsg_into(buffers)[0]
    body = [b"%03d" % n for n in range(1000)]
    server.sendmsg([b"HTTP/1.1 200 OK\r\n", b"Content-Length: 3000\r\n\r\n"])
    server.sendmsg(body)
    receive(client, 3000 + 41)
    told("/many-pieces", 3000)
    answer("/after-pieces", b"x", client, server)
    close(client, server)


def one_large_call():
    """A chunk of many megabytes with its framing in one call."""
    client, server = pair()
    ask("/large-call", client, server)
    body = b"l" * SIZE
    response = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n%x\r\n%s\r\n0\r\n\r\n" % (SIZE, body)
    sender = in_background(server.sendall, response)
    receive(client, len(response))
    sender.join()
    told("/large-call", SIZE)
    answer("/after-large", b"x", client, server)
    close(client, server)


def sendfile():
    client, server = pair()
    ask("/sendfile", client, server)
    with tempfile.NamedTemporaryFile(dir=folder) as file:
        file.write(b"f" * SMALL)
        file.flush()
        head = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % SMALL
        server.sendall(head)

        def send():
            at = 0
            while at < SMALL:
                at += os.sendfile(server.fileno(), file.fileno(), at, SMALL - at)

        sender = in_background(send)
        receive(client, len(head) + SMALL)
        sender.join()
    told("/sendfile", SMALL)
    answer("/after-sendfile", b"x", client, server)
    close(client, server)


def splice_to():
    client, server = pair()
    ask("/splice-to", client, server)
    head = b"HTTP/1.1 200 OK\r\nContent-Length: 30000\r\n\r\n"
    server.sendall(head)
    out, into = os.pipe()
    os.write(into, b"s" * 30000)
    left = 30000
    while left:
        left -= os.splice(out, server.fileno(), left)
    receive(client, len(head) + 30000)
    os.close(out), os.close(into)
    told("/splice-to", 30000)
    answer("/after-splice-to", b"x", client, server)
    close(client, server)


def splice_away(connection, length):
    """Receives so much without a call that has the bytes."""
    out, into = os.pipe()
    while length:
        moved = os.splice(connection.fileno(), into, length)
        length -= moved
        while moved:
            moved -= len(os.read(out, moved))
    os.close(out), os.close(into)


def splice_from():
    """Nobody but the kernel sees the content; its hole shows where it was."""
    client, server = pair()
    request = b"POST /splice-from HTTP/1.1\r\nContent-Length: 30000\r\n\r\n"
    client.sendall(request)
    receive(server, len(request))
    client.sendall(b"s" * 30000)
    splice_away(server, 30000)
    server.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
    receive(client, 40)
    told("/splice-from", 2, "POST")
    answer("/after-splice-from", b"x", client, server)
    close(client, server)


def spliced_last():
    """A response whose end was spliced, and then the connection is over."""
    client, server = pair()
    ask("/spliced-last", client, server)
    head = b"HTTP/1.1 200 OK\r\nContent-Length: 30000\r\n\r\n"
    server.sendall(head)
    receive(client, len(head))
    server.sendall(b"s" * 30000)
    splice_away(client, 30000)
    told("/spliced-last", 30000)
    close(client, server)


def half_close():
    client, server = pair()
    client.sendall(b"GET /half-close HTTP/1.1\r\nHost: a\r\n\r\n")
    client.shutdown(socket.SHUT_WR)
    while server.recv(1000):
        pass
    server.sendall(b"HTTP/1.1 200 OK\r\n\r\nuntil the end")
    server.close()
    while client.recv(1000):
        pass
    client.close()
    told("/half-close", 13)


class iovec(ctypes.Structure):
    _fields_ = [("base", ctypes.c_void_p), ("length", ctypes.c_size_t)]


def positional():
    """pwritev2 and preadv2 at the current place."""
    client, server = pair()
    request = b"GET /positional HTTP/1.1\r\nHost: a\r\n\r\n"
    response = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
    for data, sender, receiver in ((request, client, server), (response, server, client)):
        buffer = ctypes.create_string_buffer(data, len(data))
        half = len(data) // 2
        start = ctypes.addressof(buffer)
        pieces = (iovec * 2)(iovec(start, half), iovec(start + half, len(data) - half))
        minus = ctypes.c_long(-1)
        assert libc.syscall(328, sender.fileno(), pieces, ctypes.c_long(2), minus, minus, 0) == len(data)
        room = ctypes.create_string_buffer(1000)
        into = (iovec * 1)(iovec(ctypes.addressof(room), 1000))
        assert libc.syscall(327, receiver.fileno(), into, ctypes.c_long(1), minus, minus, 0) == len(data)
    told("/positional", 2)
    close(client, server)


CASES = [
    peek,
    trunc,
    waitall,
    zerocopy,
    many_pieces,
    one_large_call,
    sendfile,
    splice_to,
    splice_from,
    spliced_last,
    half_close,
    positional,
]
for case in CASES:
    if len(sys.argv) == 2 or case.__name__ in sys.argv[2:]:
        case()
