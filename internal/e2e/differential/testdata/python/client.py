# client.py LIBRARY URL [--post SIZE] [--chunked] [--slow SECONDS] [--timeout SECONDS] [--twice]
# makes one request as programs that use the library do, and prints what it saw as
# one JSON object. The environment decides about the proxy.
import argparse, asyncio, hashlib, importlib, json, os, ssl, sys, time

parser = argparse.ArgumentParser()
parser.add_argument("library")
parser.add_argument("url")
parser.add_argument("--post", type=int, default=0)
parser.add_argument("--method", default="")
parser.add_argument("--chunked", action="store_true")
parser.add_argument("--slow", type=float, default=0)
parser.add_argument("--timeout", type=float, default=20)
args = parser.parse_args()
method = args.method or ("POST" if args.post else "GET")
seen, begun = {}, time.time()
whole = (b"0123456789abcdef" * (args.post // 16 + 1))[: args.post]


def now(name):
    seen.setdefault(name + " seconds", "%.3f" % (time.time() - begun))


def chunks():
    for at in range(0, len(whole), 65536):
        if args.slow:
            time.sleep(args.slow * 65536 / len(whole))
        yield whole[at : at + 65536]


async def achunks():
    for chunk in chunks():
        yield chunk


class Body:
    def __init__(self):
        self.sum, self.size, self.begin = hashlib.sha256(), 0, b""

    def take(self, data):
        if data:
            now("first")
            self.sum.update(data)
            self.size += len(data)
            self.begin += data[: 400 - len(self.begin)]
        self.note()

    def note(self):
        seen["body"] = "%d bytes %s" % (self.size, self.sum.hexdigest()[:16])
        seen["_body"] = ascii(self.begin)


def head(status, headers):
    now("head")
    seen["status"] = str(status)
    for name, value in headers:
        key = "header " + name.lower()
        seen[key] = seen[key] + " | " + value if key in seen else value
    body = Body()
    body.note()
    return body


def classify(error):
    chain, text = [], ""
    while error is not None:
        chain.append(error)
        text += " " + type(error).__name__ + ": " + str(error)
        reason = getattr(error, "reason", None)
        error = reason if isinstance(reason, BaseException) else (error.__cause__ or error.__context__ or next((a for a in error.args if isinstance(a, BaseException)), None))
    seen["_error"] = text[:600]
    names = [t.__name__ for e in chain for t in type(e).__mro__]
    if "SSLCertVerificationError" in names or "CERTIFICATE_VERIFY_FAILED" in text:
        return "tls"
    if any("timeout" in n.lower() for n in names) or "timed out" in text:
        return "timeout"
    if "SSLEOFError" in names or "EOF occurred in violation" in text:
        return "tls eof"
    if "ConnectionResetError" in names or "BrokenPipeError" in names:
        return "reset"
    for part in ("IncompleteRead", "RemoteDisconnected", "ServerDisconnected", "RemoteProtocolError", "ClientPayloadError", "ContentLengthError", "TransferEncodingError", "IncompleteReadError"):
        if part in text:
            return "eof"
    if "ReadError" in text:
        return "reset"
    return type(chain[0]).__name__


def urllib_client():
    import urllib.request, urllib.error

    data = (chunks() if args.chunked or args.slow else whole) if args.post else None
    request = urllib.request.Request(args.url, data=data, method=method)
    if args.slow and not args.chunked:
        request.add_header("Content-Length", str(len(whole)))
    if args.post:
        request.add_header("Content-Type", "application/octet-stream")
    try:
        answer = urllib.request.urlopen(request, timeout=args.timeout)
    except urllib.error.HTTPError as e:
        answer = e
    body = head(answer.status, answer.getheaders() if hasattr(answer, "getheaders") else answer.headers.items())
    while data := answer.read1(65536) if hasattr(answer, "read1") else answer.read(65536):
        body.take(data)


def http_client():
    import http.client
    from urllib.parse import urlsplit

    url = urlsplit(args.url)
    kind = http.client.HTTPSConnection if url.scheme == "https" else http.client.HTTPConnection
    conn = kind(url.hostname, url.port, timeout=args.timeout)
    headers = {"Content-Length": str(len(whole))} if args.slow and not args.chunked else {}
    conn.request(method, url.path + ("?" + url.query if url.query else ""), (chunks() if args.chunked or args.slow else whole) if args.post else None, headers, encode_chunked=args.chunked)
    answer = conn.getresponse()
    body = head(answer.status, answer.getheaders())
    while data := answer.read1(65536):
        body.take(data)


def requests_client():
    import requests

    with requests.Session() as session:
        answer = session.request(method, args.url, data=(chunks() if args.chunked else whole) if args.post else None, timeout=args.timeout, stream=True)
        body = head(answer.status_code, answer.raw.headers.items())
        seen["redirects"] = str(len(answer.history))
        for data in answer.iter_content(None):
            body.take(data)


def urllib3_client():
    import urllib3
    from urllib.parse import urlsplit

    scheme = urlsplit(args.url).scheme
    proxy = os.environ.get(scheme + "_proxy")
    context = ssl.create_default_context(cafile=os.environ["SSL_CERT_FILE"])
    if proxy:
        credentials = urlsplit(proxy)
        headers = urllib3.make_headers(proxy_basic_auth="%s:%s" % (credentials.username, credentials.password)) if credentials.username else None
        pool = urllib3.ProxyManager("http://%s:%d" % (credentials.hostname, credentials.port), proxy_headers=headers, ssl_context=context)
    else:
        pool = urllib3.PoolManager(ssl_context=context)
    answer = pool.request(method, args.url, body=(chunks() if args.chunked else whole) if args.post else None, timeout=args.timeout, preload_content=False, retries=False, redirect=False)
    body = head(answer.status, answer.headers.items())
    for data in answer.stream(65536):
        body.take(data)


async def aiohttp_client():
    import aiohttp

    timeout = aiohttp.ClientTimeout(total=None, sock_read=args.timeout)
    async with aiohttp.ClientSession(trust_env=True, timeout=timeout) as session:
        data = (achunks() if args.chunked or args.slow else whole) if args.post else None
        async with session.request(method, args.url, data=data, headers={"Content-Length": str(len(whole))} if args.slow and not args.chunked else None, ssl=ssl.create_default_context()) as answer:
            body = head(answer.status, answer.headers.items())
            async for data in answer.content.iter_any():
                body.take(data)


async def httpx_client(http2):
    import httpx

    async with httpx.AsyncClient(http1=not http2, http2=http2, timeout=args.timeout, verify=ssl.create_default_context(), follow_redirects=True) as client:
        content = (achunks() if args.chunked or args.slow else whole) if args.post else None
        headers = {"Content-Length": str(len(whole))} if args.slow and not args.chunked else None
        async with client.stream(method, args.url, content=content, headers=headers) as answer:
            body = head(answer.status_code, answer.headers.multi_items())
            seen["_version"] = answer.http_version
            async for data in answer.aiter_raw():
                body.take(data)


async def websockets_client():
    import websockets

    def note(i, message):
        seen["message %d" % i] = "%s %d %s" % (type(message).__name__, len(message), hashlib.sha256(message.encode() if isinstance(message, str) else message).hexdigest()[:16])

    try:
        async with websockets.connect(args.url, subprotocols=["chat"], max_size=1 << 22, open_timeout=args.timeout) as conn:
            seen["subprotocol"] = str(conn.subprotocol)
            for i, message in enumerate(["hello", "long " * 50000, b"\x00\xff" * 1000]):
                await conn.send(message)
                note(i, await conn.recv())
            await (await conn.ping())
            seen["ping"] = "answered"
            await conn.send("close 4001")
            await conn.recv()
    except websockets.ConnectionClosed as e:
        seen["close"] = "%s %s" % (e.rcvd.code if e.rcvd else "none", e.rcvd.reason if e.rcvd else "")
    except websockets.InvalidStatus as e:
        seen["status"] = str(e.response.status_code)


def grpcio_client():
    import grpc

    address, call, message = args.url.split(",")
    if address.startswith("plain:"):
        channel = grpc.insecure_channel(address[6:])
    else:
        channel = grpc.secure_channel(address, grpc.ssl_channel_credentials())
    same = dict(request_serializer=lambda b: b, response_deserializer=lambda b: b)
    encoded = b"\x0a" + bytes([len(message)]) + message.encode()
    service, trailing, answers, code = "/chaperone.differential.Echo/", (), [], "OK"
    metadata = (("x-asked", "yes"), ("x-blob-bin", b"\x00\xff"))
    try:
        if call == "Unary":
            answer, done = channel.unary_unary(service + call, **same).with_call(encoded, timeout=args.timeout, metadata=metadata)
            answers, trailing = [answer], done.trailing_metadata()
        else:
            done = channel.stream_stream(service + call, **same)(iter([encoded] * 3), timeout=args.timeout, metadata=metadata)
            for answer in done:
                now("first")
                answers.append(answer)
            trailing = done.trailing_metadata()
    except grpc.RpcError as e:
        code, trailing = e.code().name, e.trailing_metadata() or ()
        seen["_error"] = str(e.details())
    seen["grpc-status"], seen["messages"], seen["body"] = code, str(len(answers)), hashlib.sha256(b"".join(answers)).hexdigest()[:16]
    for name, value in trailing:
        seen["trailer " + name] = repr(value)


clients = {
    "urllib": urllib_client, "http.client": http_client, "requests": requests_client, "urllib3": urllib3_client,
    "aiohttp": lambda: asyncio.run(aiohttp_client()), "httpx": lambda: asyncio.run(httpx_client(False)),
    "httpx-h2": lambda: asyncio.run(httpx_client(True)), "websockets": lambda: asyncio.run(websockets_client()), "grpcio": grpcio_client,
}
for module in {"urllib": ["urllib.request"], "grpcio": ["grpc"], "httpx": ["httpx", "httpcore", "anyio._backends._asyncio"], "httpx-h2": ["httpx", "h2", "httpcore", "anyio._backends._asyncio"]}.get(args.library, [args.library]):
    importlib.import_module(module)  # which takes its time
begun = time.time()
try:
    clients[args.library]()
except Exception as e:
    seen["error"] = classify(e)
now("total")
print(json.dumps(seen))
sys.stdout.flush()
os._exit(0)  # without waiting for threads of a library
