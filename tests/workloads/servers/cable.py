"""Both ends of a cable that can be cut: frames to the wrong address are lost without a word. Each end waits
for a line before it begins."""

import errno
import json
import os
import select
import socket
import struct
import sys
import threading
import time

SERVER = ("10.9.0.2", 8080)
ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


def serve():
    listener = socket.create_server(SERVER, backlog=128)
    print("listening", flush=True)

    def answer(connection):
        data = b""
        while part := connection.recv(65536):
            data += part
            while b"\r\n\r\n" in data:
                data = data.split(b"\r\n\r\n", 1)[1]
                connection.sendall(ANSWER)
        connection.close()

    while True:
        threading.Thread(target=answer, args=(listener.accept()[0],), daemon=True).start()


def cable(whole):
    address = "02:00:00:00:00:02" if whole else "02:00:00:00:00:99"
    os.system(f"ip neigh replace 10.9.0.2 lladdr {address} dev c0 nud permanent")


def later(seconds):
    timer = threading.Timer(seconds, cable, [True])
    timer.start()
    return timer


def again(connection):
    """tcpi_total_retrans"""
    return struct.unpack_from("I", connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 104), 100)[0]


counts = dict.fromkeys(["ok", "refused", "timeout", "abandoned", "unreachable", "asked", "sockets"], 0)
outcomes = {0: "ok", errno.ECONNREFUSED: "refused", errno.ETIMEDOUT: "timeout", errno.EHOSTUNREACH: "unreachable"}
took = []


def connect(address, waits=True):
    connection = socket.socket()
    began = time.monotonic()
    connection.setblocking(waits)
    error = connection.connect_ex(address)
    if error == errno.EINPROGRESS:
        poll = select.poll()
        poll.register(connection, select.POLLOUT)
        poll.poll()
        error = connection.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        connection.setblocking(True)
    counts[outcomes[error]] += 1
    if error == 0:
        took.append(time.monotonic() - began)
    return connection


def close(connection):
    counts["sockets"] += again(connection)
    connection.close()


def sent_again():
    """Segments of all sockets of this namespace. A socket that failed forgets its own."""
    with open("/proc/self/net/snmp") as file:
        names, values = [line.split() for line in file if line.startswith("Tcp:")]
    return int(values[names.index("RetransSegs")])


def ask(connection, path):
    connection.sendall(f"GET {path} HTTP/1.1\r\nHost: a\r\n\r\n".encode())
    data = b""
    while not data.endswith(b"ok"):
        data += connection.recv(65536)


def client():
    for waits in [True] * 7 + [False] * 3:
        close(connect((SERVER[0], 1), waits))
    for waits in [True] * 20 + [False] * 5:
        close(connect(SERVER, waits))
    for number in range(5):
        connection = connect(SERVER)
        counts["asked"] += 1
        ask(connection, f"/plain-{number}")
        close(connection)
    # The first packet of a connection is sent again after a second.
    cable(False)
    timer = later(0.3)
    connection = connect(SERVER)
    timer.join()
    counts["asked"] += 1
    ask(connection, "/first")
    ask(connection, "/second")
    before = again(connection)
    cable(False)
    timer = later(0.5)
    ask(connection, "/third")
    timer.join()
    counts["third"] = again(connection) - before
    close(connection)
    # Nobody answers who has that address.
    close(connect(("10.9.0.77", 80)))
    cable(False)
    with open("/proc/sys/net/ipv4/tcp_syn_retries", "w") as file:
        file.write("1")
    close(connect(SERVER))
    for _ in range(2):
        connection = socket.socket()
        connection.setblocking(False)
        connection.connect_ex(SERVER)
        counts["abandoned"] += 1
        close(connection)
    counts["retransmits"] = sent_again()
    counts["longest"] = max(took)
    counts["connecting"] = sum(took)
    print(json.dumps(counts), flush=True)


def leave():
    sys.stdin.read()
    os._exit(0)


# The kernel tells itself over this that there is no way.
os.system("ip link set lo up")
print("ready", flush=True)
sys.stdin.readline()
watch = threading.Thread(target=leave)
watch.start()
if sys.argv[1] == "server":
    serve()
client()
watch.join()
