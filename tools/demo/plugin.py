#!/usr/bin/env python3
"""An ordinary plugin: it fetches a forecast, without any knowledge of Chaperone.

What it prints after that is for whoever watches: everything it has.
"""
import os
import sys
import urllib.request

url = sys.argv[1]
request = urllib.request.Request(url, headers={"User-Agent": "weather-plugin/1.0"})
with urllib.request.urlopen(request) as answer:
    print("status", answer.status)
    print("answer", answer.read().decode())
print("sent", dict(request.header_items()), "and nothing else")
for name in sorted(os.environ):
    print("env", name + "=" + os.environ[name])
