"""A WSGI application that logs as server.py does, into the file that LOG names."""
import os

LOG = os.open(os.environ["LOG"], os.O_CREAT | os.O_WRONLY | os.O_APPEND)
STATUS = {"ok": "200 OK", "empty": "204 No Content", "missing": "404 Not Found", "fail": "500 Oh No", "open": "200 OK"}


def application(environment, start_response):
    path, method = environment["PATH_INFO"], environment["REQUEST_METHOD"]
    kind = path.split("/")[1]
    received = environment["wsgi.input"].read(int(environment.get("CONTENT_LENGTH") or 0))
    status = STATUS.get(kind, "404 Not Found")
    body = b"" if kind == "empty" else b"%s %d\n" % (path.encode(), len(received))
    # Where its length is not told, the end of the connection is the end of the content.
    start_response(status, [] if kind in ("empty", "open") else [("Content-Length", str(len(body)))])
    sent = 0 if method == "HEAD" else len(body)
    os.write(LOG, b"%s %s %s %d\n" % (method.encode(), path.encode(), status[:3].encode(), sent))
    return [b"" if method == "HEAD" else body]
