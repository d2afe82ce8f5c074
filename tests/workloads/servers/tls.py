"""Servers behind TLS: `tls.py CERTIFICATE KEY CLIENTS|- FOLDER`. With CLIENTS only those with a certificate of that
authority get in. Bodies of POST go into FOLDER, one file each; answers are empty. Prints where it listens."""

import http.server
import itertools
import ssl
import sys

certificate, key, clients, folder = sys.argv[1:5]
numbers = itertools.count()


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        self.answer()

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        with open(f"{folder}/{next(numbers)}", "wb") as file:
            file.write(body)
        self.answer()

    def answer(self):
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_):
        pass


class Server(http.server.ThreadingHTTPServer):
    # Each connection shakes hands in its own thread.
    def finish_request(self, request, client_address):
        try:
            request = context.wrap_socket(request, server_side=True)
        except (ssl.SSLError, OSError):
            return
        super().finish_request(request, client_address)


context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain(certificate, key)
if clients != "-":
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_verify_locations(clients)
server = Server(("127.0.0.1", 0), Handler)
print(f"listening on 127.0.0.1:{server.server_port}", flush=True)
server.serve_forever()
