#!/usr/bin/env python3
"""The plugin of the README's walk: it fetches a forecast, and then sends telemetry,
which its users did not ask for."""

import urllib.error
import urllib.request

API = "https://api.weather.example:8443"


def call(method, path, body=None):
    request = urllib.request.Request(API + path, data=body, method=method)
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            print(method, path, answer.status, answer.read().decode().strip(), flush=True)
    except urllib.error.HTTPError as refused:
        print(method, path, refused.code, flush=True)
    except OSError as problem:
        print(method, path, problem, flush=True)


call("GET", "/v1/forecast/london")
call("POST", "/v1/telemetry", b'{"user": "alice"}')
