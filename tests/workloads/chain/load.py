"""The load on a chain: requests for /c/ID, which are no two times the same, each part of a trace of its own.

Logs `CLIENT PATH STATUS TRACE` of each: the trace id that was sent (for a request id, its digits), or `-`.
"""
import argparse
import secrets
import sys
import threading
import uuid

import chain


def headers_of(family):
    """Headers with new ids, and the trace id that they have."""
    trace, request = secrets.token_hex(16), uuid.uuid4()
    span, parent = secrets.token_hex(8), secrets.token_hex(8)
    values = {
        "traceparent": f"00-{trace}-{span}-01",
        "tracestate": f"load={span}",
        "b3": f"{trace}-{span}-1-{parent}",
        "X-B3-TraceId": trace,
        "X-B3-SpanId": span,
        "X-B3-ParentSpanId": parent,
        "X-B3-Sampled": "1",
        "uber-trace-id": f"{trace}:{span}:{parent}:1",
        "x-request-id": str(request),
    }
    told = {"none": "-", "x-request-id": request.hex}.get(family, trace)
    return {name: values[name] for name in chain.FAMILIES[family]}, told


def work(numbers):
    for number in numbers:
        headers, trace = headers_of(options.family)
        path = f"{options.prefix}/c/{seed}{number:08x}"
        status = chain.get(options.url, path, headers)
        log.line("CLIENT", path, status, trace)
        if status != 200:
            unexpected.append((path, status))


parser = argparse.ArgumentParser()
parser.add_argument("url")
parser.add_argument("count", type=int)
parser.add_argument("concurrency", type=int)
parser.add_argument("family", choices=chain.FAMILIES)
parser.add_argument("log")
parser.add_argument("--prefix", default="", help="what paths begin with: /slow/50")
parser.add_argument("--any", action="store_true", help="any status is fine")
options = parser.parse_args()

log = chain.Log(options.log)
seed = secrets.token_hex(4)
unexpected = []
every = range(options.count)
shares = [every[n :: options.concurrency] for n in range(options.concurrency)]
threads = [threading.Thread(target=work, args=(share,)) for share in shares]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
if unexpected and not options.any:
    sys.exit(f"{len(unexpected)} unexpected: {unexpected[:5]}")
