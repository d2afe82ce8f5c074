"""A service of one thread, with asyncio's streams and as much of HTTP/1.1 as a chain needs."""
import asyncio
import http.client
from urllib.parse import urlsplit

import chain

service = chain.Service(chain.options())
idle = {base: [] for base in service.options.next}
background = set()


async def read_head(reader):
    """The first line in words, and the headers by their names in lower case; None at the end."""
    try:
        head = await reader.readuntil(b"\r\n\r\n")
    except (asyncio.IncompleteReadError, ConnectionError):
        return None
    first, *lines = head.decode("latin-1").split("\r\n")[:-2]
    fields = (line.split(":", 1) for line in lines)
    return first.split(" ", 2), {name.lower(): value.strip() for name, value in fields}


async def read_body(reader, headers):
    if headers.get("transfer-encoding") != "chunked":
        await reader.readexactly(int(headers.get("content-length", 0)))
        return
    size = -1
    while size:
        size = int(await reader.readline(), 16)
        await reader.readexactly(size + 2)


async def exchange(connection, base, path, headers):
    """The status of the answer over that connection; None before any of it came."""
    reader, writer = connection
    lines = [f"GET {path} HTTP/1.1", f"Host: {urlsplit(base).netloc}"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    writer.write("\r\n".join([*lines, "", ""]).encode("latin-1"))
    answer = await read_head(reader)
    if not answer:
        writer.close()
        return None
    (_, status, *_), received = answer
    await read_body(reader, received)
    if received.get("connection", "").lower() == "close":
        writer.close()
    else:
        idle[base].append(connection)
    return int(status)


async def get(base, path, headers):
    """Over a connection that is idle, or else a new one."""
    try:
        while idle[base]:
            if status := await exchange(idle[base].pop(), base, path, headers):
                return status
        address = urlsplit(base)
        connection = await asyncio.open_connection(address.hostname, address.port)
        return await exchange(connection, base, path, headers) or 0
    except (OSError, asyncio.IncompleteReadError):
        return 0


async def call(path, number, headers):
    status = await get(service.target(number), path, service.sent(headers))
    service.log.line("CLIENT", path, status)
    return status


async def calls(path, headers):
    def one(number):
        return call(f"{path}/{number}", number, headers)

    statuses = []
    if service.options.next:
        match service.options.mode:
            case "fan":
                statuses = await asyncio.gather(*map(one, range(chain.FAN)))
            case "sequence":
                statuses = [await one(number) for number in range(3)]
            case "retry":
                statuses = [await one(0)]
                if statuses == [503]:
                    statuses = [await one(1)]
            case _:
                statuses = [await one(0)]
    return chain.answer_to(statuses)


def answer(writer, path, status):
    service.log.line("SERVER", path, status)
    head = f"HTTP/1.1 {status} {http.client.responses[status]}\r\nContent-Length: {len(chain.BODY)}\r\n\r\n"
    writer.write(head.encode() + chain.BODY)


async def stream(writer, path, headers):
    writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
    for number in range(chain.CHUNKS):
        writer.write(b"%x\r\n%s\r\n" % (len(chain.BODY), chain.BODY))
        if service.options.next:
            await call(f"{path}/{number}", number, headers)
    await asyncio.sleep(chain.delay(path))
    service.log.line("SERVER", path, 200)
    writer.write(b"0\r\n\r\n")


async def serve_one(writer, path, headers):
    mode = service.options.mode
    if service.fails(path):
        answer(writer, path, 503)
    elif mode == "stream":
        await stream(writer, path, headers)
    else:
        status = 200 if mode == "late" else await calls(path, headers)
        await asyncio.sleep(chain.delay(path))
        answer(writer, path, status)
        if mode == "late" and service.options.next:
            await writer.drain()
            start(call(f"{path}/late", 0, headers))


def start(work):
    """A task that somebody holds, as the loop does not."""
    task = asyncio.create_task(work)
    background.add(task)
    task.add_done_callback(background.discard)


async def serve(reader, writer):
    try:
        while request := await read_head(reader):
            (_, path, _), headers = request
            await read_body(reader, headers)
            await serve_one(writer, path, service.passed(lambda name: headers.get(name.lower())))
    except (ConnectionError, asyncio.IncompleteReadError):
        pass
    writer.close()


async def cron():
    number = 0
    while True:
        await asyncio.sleep(service.options.cron / 1000)
        await call(f"/cron/{service.options.name}/{number}", 0, {})
        number += 1


async def main():
    server = await asyncio.start_server(serve, "127.0.0.1", service.options.port, backlog=1024)
    chain.announce(server.sockets[0].getsockname()[1])
    if service.options.cron and service.options.next:
        start(cron())
    await server.serve_forever()


chain.end_when_told()
asyncio.run(main())
