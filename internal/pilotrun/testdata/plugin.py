"""A plugin: it answers on a port of its own, and asks an API for each answer.

plugin.py PORT URL [undeclared=URL] [memory=MEBIBYTES]
"""
import http.server
import signal
import ssl
import sys
import urllib.error
import urllib.request

PORT, URL = int(sys.argv[1]), sys.argv[2]
OPTIONS = dict(option.split("=", 1) for option in sys.argv[3:])
TLS = ssl.create_default_context()  # once: it reads the bundle of authorities
BALLAST = b"x" * (int(OPTIONS.get("memory", 0)) << 20)


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        with urllib.request.urlopen(URL, timeout=10, context=TLS) as answer:
            answer.read()
        if "undeclared" in OPTIONS:
            try:
                with urllib.request.urlopen(OPTIONS["undeclared"], data=b"order", timeout=10, context=TLS) as answer:
                    answer.read()
            except urllib.error.HTTPError as refused:
                refused.close()
        self.send_response(200)
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"ok")

    def log_message(self, *args):
        pass


signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
http.server.ThreadingHTTPServer(("127.0.0.1", PORT), Handler).serve_forever()
