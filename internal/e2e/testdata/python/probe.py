"""Does what Python plugins do, and prints "ok NAME" or "broken NAME: WHY" for each.

With the argument "network" it also asks the origins that E2E_HTTPS and E2E_HTTP name.
"""
import asyncio
import concurrent.futures
import getpass
import http.client
import mmap
import multiprocessing as mp
import multiprocessing.connection
import os
import pty
import pwd
import signal
import socket
import sqlite3
import ssl
import subprocess
import sys
import tempfile
import threading
import urllib.error
import urllib.parse
import urllib.request
from multiprocessing import shared_memory


def square(x):
    return x * x


def fill(name):
    m = shared_memory.SharedMemory(name=name)
    m.buf[0] = 42
    m.close()


def take(lock, queue):
    with lock:
        queue.put(os.getpid())


def pool(method):
    with mp.get_context(method).Pool(2) as p:
        return p.map(square, range(5))


def manager():
    with mp.Manager() as m:
        d = m.dict()
        d["a"] = 1
        return dict(d)


def shared():
    m = shared_memory.SharedMemory(create=True, size=64)
    try:
        p = mp.get_context("spawn").Process(target=fill, args=(m.name,))
        p.start()
        p.join()
        return m.buf[0]
    finally:
        m.close()
        m.unlink()


def lock_and_queue():
    context = mp.get_context("fork")
    lock, queue = context.Lock(), context.Queue()
    workers = [context.Process(target=take, args=(lock, queue)) for _ in range(3)]
    for w in workers:
        w.start()
    got = {queue.get(timeout=20) for _ in workers}
    for w in workers:
        w.join()
    return len(got)


def listener():
    with multiprocessing.connection.Listener(family="AF_UNIX", authkey=b"k") as server:
        def client():
            with multiprocessing.connection.Client(server.address, authkey=b"k") as c:
                c.send([1, 2])
        t = threading.Thread(target=client)
        t.start()
        with server.accept() as c:
            got = c.recv()
        t.join()
        return got


def own_socket(kind, path):
    server = socket.socket(socket.AF_UNIX, kind)
    server.bind(path)
    if kind != socket.SOCK_DGRAM:
        server.listen()
    client = socket.socket(socket.AF_UNIX, kind)
    client.connect(path)
    client.send(b"x")
    taken = server if kind == socket.SOCK_DGRAM else server.accept()[0]
    return taken.recv(1)


def in_folder(kind):
    with tempfile.TemporaryDirectory() as d:
        return own_socket(kind, d + "/s")


def relative():
    before = os.getcwd()
    with tempfile.TemporaryDirectory() as d:
        os.chdir(d)
        try:
            return own_socket(socket.SOCK_STREAM, "s")
        finally:
            os.chdir(before)


async def streams(kind):
    async def serve(reader, writer):
        writer.write(await reader.readline())
        await writer.drain()
        writer.close()

    with tempfile.TemporaryDirectory() as d:
        if kind == "unix":
            server = await asyncio.start_unix_server(serve, d + "/s")
            reader, writer = await asyncio.open_unix_connection(d + "/s")
        else:
            server = await asyncio.start_server(serve, kind, 0)
            reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname()[:2])
        writer.write(b"line\n")
        got = await reader.readline()
        writer.close()
        server.close()
        return got


def server(address, kind=socket.SOCK_STREAM):
    """Serves on an address of its own and asks itself."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, kind) as s:
        s.bind((address, 0))
        port = s.getsockname()[1]
        target = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(address, address)
        with socket.socket(family, kind) as c:
            c.settimeout(10)
            if kind == socket.SOCK_DGRAM:
                c.sendto(b"x", (target, port))
                return s.recv(1)
            s.listen()
            c.connect((target, port))
            c.send(b"x")
            return s.accept()[0].recv(1)


async def child():
    p = await asyncio.create_subprocess_exec("cat", stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    out, _ = await p.communicate(b"through")
    return out, p.returncode


def pipeline():
    a = subprocess.Popen(["printf", "b\\na\\n"], stdout=subprocess.PIPE)
    b = subprocess.run(["sort"], stdin=a.stdout, capture_output=True, check=True)
    return b.stdout, a.wait()


def killed():
    p = subprocess.Popen(["sleep", "60"])
    p.terminate()
    return p.wait() == -signal.SIGTERM


def executor():
    with concurrent.futures.ProcessPoolExecutor(2) as e:
        return list(e.map(square, range(4)))


def threads():
    with concurrent.futures.ThreadPoolExecutor(32) as e:
        return sum(e.map(square, range(100)))


def temporary():
    with tempfile.NamedTemporaryFile("w+") as f:
        f.write("x")
    with open("/tmp/e2e-fixed-%d" % os.getpid(), "w") as f:
        f.write("x")
    os.unlink(f.name)


def user():
    entry = pwd.getpwuid(os.getuid())
    assert getpass.getuser() == entry.pw_name, (getpass.getuser(), entry.pw_name)
    assert os.path.expanduser("~") == entry.pw_dir == os.environ["HOME"], (os.environ["HOME"], entry.pw_dir)
    assert os.environ["USER"] == entry.pw_name


def home():
    path = os.path.expanduser("~/e2e-probe.db")
    try:
        db = sqlite3.connect(path)
        db.execute("create table t (n int)")
        db.execute("insert into t values (7)")
        db.commit()
        return db.execute("select n from t").fetchone()
    finally:
        os.unlink(path)


def terminal():
    pid, fd = pty.fork()
    if pid == 0:
        os.execlp("sh", "sh", "-c", "tty >/dev/null && echo terminal >/dev/tty")
    got = os.read(fd, 100).strip()
    os.waitpid(pid, 0)
    return got


def mapped():
    with tempfile.TemporaryFile() as f:
        f.truncate(4096)
        with mmap.mmap(f.fileno(), 4096) as m:
            m[:2] = b"ab"
        return os.pread(f.fileno(), 2, 0)


def proc():
    assert open("/proc/self/comm").read()
    assert os.listdir("/proc/self/fd")
    # Its child's too, which not every confinement allows.
    return subprocess.run(["sh", "-c", "cat /proc/self/comm /proc/$$/comm"], capture_output=True, check=True).stdout


def descriptors():
    a, b = socket.socketpair()
    with tempfile.TemporaryFile() as f:
        f.write(b"passed")
        f.flush()
        socket.send_fds(a, [b"x"], [f.fileno()])
        _, fds, _, _ = socket.recv_fds(b, 1, 1)
        return os.pread(fds[0], 6, 0)


def standard_streams():
    with open("/dev/stderr", "a") as f:
        f.write("to the error stream\n")
    with open("/dev/stdout", "a") as f:
        f.write("")


def venv():
    with tempfile.TemporaryDirectory() as d:
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", d], check=True, capture_output=True)
        return subprocess.run([d + "/bin/python", "-c", "import sys; print(sys.prefix != sys.base_prefix)"],
                              check=True, capture_output=True).stdout


def names():
    socket.getaddrinfo("localhost", 80)
    socket.getaddrinfo("127.0.0.1", 80, socket.AF_INET)
    socket.getaddrinfo(socket.gethostname(), 80)
    return socket.gethostbyname("localhost")


LOCAL = {
    "pool by fork": lambda: pool("fork"),
    "pool by spawn": lambda: pool("spawn"),
    "pool by forkserver": lambda: pool("forkserver"),
    "manager": manager,
    "shared memory": shared,
    "lock and queue": lock_and_queue,
    "listener": listener,
    "unix stream": lambda: in_folder(socket.SOCK_STREAM),
    "unix datagram": lambda: in_folder(socket.SOCK_DGRAM),
    "unix seqpacket": lambda: in_folder(socket.SOCK_SEQPACKET),
    "unix relative": relative,
    "unix abstract": lambda: own_socket(socket.SOCK_STREAM, "\0e2e-%d" % os.getpid()),
    "asyncio unix": lambda: asyncio.run(streams("unix")),
    "asyncio tcp": lambda: asyncio.run(streams("127.0.0.1")),
    "asyncio tcp6": lambda: asyncio.run(streams("::1")),
    "server on 127.0.0.1": lambda: server("127.0.0.1"),
    "server on 127.5.5.5": lambda: server("127.5.5.5"),
    "server on ::1": lambda: server("::1"),
    "server on 0.0.0.0": lambda: server("0.0.0.0"),
    "server on ::": lambda: server("::"),
    "UDP on 127.0.0.1": lambda: server("127.0.0.1", socket.SOCK_DGRAM),
    "UDP on ::1": lambda: server("::1", socket.SOCK_DGRAM),
    "asyncio subprocess": lambda: asyncio.run(child()),
    "subprocess": pipeline,
    "terminate": killed,
    "process executor": executor,
    "threads": threads,
    "temporary files": temporary,
    "user": user,
    "home": home,
    "pseudo-terminal": terminal,
    "mmap": mapped,
    "own proc": proc,
    "descriptors": descriptors,
    "standard streams": standard_streams,
    "venv": venv,
    "localhost": names,
}

URL = os.environ.get("E2E_HTTPS", "")
PLAIN = os.environ.get("E2E_HTTP", "")


def urllib_get(url):
    with urllib.request.urlopen(url, timeout=20) as r:
        assert r.read() == b"hello GET\n"


def client_get():
    """Ignores the proxy's variables, as a program may."""
    u = urllib.parse.urlsplit(URL)
    c = http.client.HTTPSConnection(u.hostname, u.port, timeout=20)
    c.request("GET", u.path)
    assert c.getresponse().read() == b"hello GET\n"


def requests_get():
    import requests
    with requests.Session() as s:
        for _ in range(3):
            assert s.get(URL, timeout=20).text == "hello GET\n"
        assert s.post(URL, data=b"x" * 100000, timeout=20).text == "hello POST\n"


def urllib3_get():
    import urllib3
    assert urllib3.PoolManager().request("GET", URL, timeout=20).data == b"hello GET\n"


async def asyncio_get():
    u = urllib.parse.urlsplit(URL)
    reader, writer = await asyncio.open_connection(u.hostname, u.port, ssl=ssl.create_default_context())
    writer.write(f"GET {u.path} HTTP/1.1\r\nHost: {u.netloc}\r\nConnection: close\r\n\r\n".encode())
    assert b"hello GET" in await reader.read()


def forked_get():
    with mp.get_context("forkserver").Pool(1) as p:
        p.apply(urllib_get, (URL,))


def over_ipv6():
    u = urllib.parse.urlsplit(PLAIN)
    family, kind, proto, _, address = socket.getaddrinfo(u.hostname, u.port, socket.AF_INET6, socket.SOCK_STREAM)[0]
    s = socket.socket(family, kind, proto)
    s.settimeout(20)
    s.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    s.connect(address)
    s.sendall(f"GET {u.path} HTTP/1.0\r\nHost: {u.netloc}\r\n\r\n".encode())
    assert b"200" in s.recv(100)


def refused():
    try:
        urllib.request.urlopen(os.environ["E2E_REFUSED"], timeout=20)
    except urllib.error.HTTPError as e:
        assert e.code == 403, e.code
        return
    raise AssertionError("the request was allowed")


def unknown_name():
    try:
        socket.getaddrinfo("no-such-name.test.example", 443)
    except socket.gaierror:
        return
    raise AssertionError("it was resolved")


NETWORK = {
    "urllib https": lambda: urllib_get(URL),
    "urllib http": lambda: urllib_get(PLAIN),
    "http.client": client_get,
    "requests": requests_get,
    "urllib3": urllib3_get,
    "asyncio https": lambda: asyncio.run(asyncio_get()),
    "https in a worker": forked_get,
    "ipv6": over_ipv6,
    "refused": refused,
    "unknown name": unknown_name,
}


def check(name, f, show):
    signal.alarm(25)
    try:
        value = f()
        print(f"ok {name}: {value}" if show and value is not None else f"ok {name}", flush=True)
    except BaseException as e:
        print(f"broken {name}: {type(e).__name__}: {e}".replace("\n", " "), flush=True)
    finally:
        signal.alarm(0)


def late(*_):
    raise TimeoutError("25 s are over")


if __name__ == "__main__":
    signal.signal(signal.SIGALRM, late)
    for name, f in LOCAL.items():
        check(name, f, True)
    if "network" in sys.argv[1:]:
        for name, f in NETWORK.items():
            check(name, f, False)
