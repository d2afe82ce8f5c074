"""A service of gunicorn's sync workers: gunicorn -c wsgi.py wsgi:application

The options are in the environment, CHAIN_LOG=FILE CHAIN_NEXT='URL URL'; CHAIN_CHILD=1 is `--child`. This is both
the application and the configuration, so that what is there to listen can be told as the others tell it.
"""
import http.client
import os
import time
from concurrent.futures import ThreadPoolExecutor

import chain


def arguments():
    for name, values in os.environ.items():
        if name == "CHAIN_CHILD":
            yield "--child"
        elif name.startswith("CHAIN_"):
            for value in values.split():
                yield f"--{name[6:].lower()}={value}"


service = chain.Service(chain.options(arguments=list(arguments())))
pool = ThreadPoolExecutor(chain.FAN)  # its threads start when they are needed, in a worker
bind = f"127.0.0.1:{service.options.port}"
graceful_timeout = 1  # seconds; a worker that is told to end while it starts does not hear it
control_socket_disable = True  # which would be one file in the home folder for all services


def when_ready(server):
    chain.announce(server.LISTENERS[0].getsockname()[1])


def post_worker_init(worker):
    if worker.age == 1:
        service.start_cron()


def application(environment, start_response):
    """What comes after the last `yield` is done when all was sent."""
    path, mode, calling = environment["RAW_URI"], service.options.mode, bool(service.options.next)
    headers = service.passed(lambda name: environment.get("HTTP_" + name.upper().replace("-", "_")))
    environment["wsgi.input"].read()
    failing = service.fails(path)
    if mode == "stream" and not failing:
        start_response("200 OK", [])
        for number in range(chain.CHUNKS):
            yield chain.BODY
            if calling:
                service.call(f"{path}/{number}", number, headers)
        time.sleep(chain.delay(path))
        service.log.line("SERVER", path, 200)
        return
    status = 503 if failing else 200
    if not failing:
        if mode != "late":
            status = service.calls(path, headers, pool.map)
        time.sleep(chain.delay(path))
    service.log.line("SERVER", path, status)
    length = ("Content-Length", str(len(chain.BODY)))
    start_response(f"{status} {http.client.responses[status]}", [length])
    yield chain.BODY
    if mode == "late" and calling and not failing:
        service.call(f"{path}/late", 0, headers)
