"""Sends requests with unique ids: client.py HOST:PORT MODE COUNT FIRST

MODE is keep-alive (one connection), new (a connection for each) or a number of parallel connections.
Fails if an answer is not what was asked for.
"""
import http.client
import sys
import threading

EXPECTED = {"ok": 200, "empty": 204, "missing": 404, "fail": 500, "chunked": 200, "open": 200}
KINDS = [kind for kind in EXPECTED if kind != "open"]
address, mode, count, first = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
only = sys.argv[5].split(",") if len(sys.argv) > 5 else KINDS
failures = []


def send(connection, number):
    kind = only[number % len(only)]
    method = ("GET", "GET", "HEAD", "POST")[number // len(only) % 4]
    body = b"x" * (number % 1000) if method == "POST" else None
    connection.request(method, f"/{kind}/{number}", body=body)
    response = connection.getresponse()
    response.read()
    if response.status != EXPECTED[kind]:
        failures.append((number, response.status))


def work(numbers, fresh):
    try:
        send_all(numbers, fresh)
    except Exception as error:
        failures.append(repr(error))


def send_all(numbers, fresh):
    connection = http.client.HTTPConnection(address, timeout=30)
    for number in numbers:
        send(connection, number)
        if fresh:
            connection.close()
            connection = http.client.HTTPConnection(address, timeout=30)
    connection.close()


threads = int(mode) if mode.isdigit() else 1
numbers = range(first, first + count)
workers = [threading.Thread(target=work, args=(numbers[n::threads], mode == "new")) for n in range(threads)]
for worker in workers:
    worker.start()
for worker in workers:
    worker.join()
if failures:
    sys.exit(f"wrong answers: {failures[:5]}")
