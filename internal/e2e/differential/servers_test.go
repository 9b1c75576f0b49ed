package differential

import (
	"archive/tar"
	"archive/zip"
	"bytes"
	"compress/gzip"
	"context"
	"crypto/sha1"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/cgi"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/chaperone-proxy/chaperone/internal/testenv"
)

func discardLog() *log.Logger { return log.New(io.Discard, "", 0) }

type connectionKey struct{}

func withConnection(ctx context.Context, conn net.Conn) context.Context {
	return context.WithValue(ctx, connectionKey{}, &connection{conn: conn})
}

// connection is an origin's state of a connection.
type connection struct {
	conn net.Conn
	mu   sync.Mutex
	user string
}

// addWeb serves the origin of Go's net/http.
func addWeb(l *lab) {
	mux := http.NewServeMux()
	mux.HandleFunc("/echo", echo)
	mux.HandleFunc("/status/{code}", func(w http.ResponseWriter, r *http.Request) {
		code, _ := strconv.Atoi(r.PathValue("code"))
		w.Header().Set("Retry-After", "7")
		w.WriteHeader(code)
		if code != http.StatusNoContent && code != http.StatusNotModified {
			fmt.Fprintf(w, "status %d\n", code)
		}
	})
	mux.HandleFunc("/redirect", func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body) // a stream that is reset behind its answer is another pair
		http.Redirect(w, r, "/echo?from=redirect", http.StatusTemporaryRedirect)
	})
	mux.HandleFunc("/gzip", zipped)
	mux.HandleFunc("/cookies", func(w http.ResponseWriter, _ *http.Request) {
		for i := range 40 {
			http.SetCookie(w, &http.Cookie{Name: fmt.Sprint("c", i), Value: strings.Repeat("v", 20), Path: "/", HttpOnly: true})
		}
		w.Header().Add("WWW-Authenticate", `Basic realm="a", charset="UTF-8"`)
		w.Header().Add("WWW-Authenticate", "Bearer")
		w.WriteHeader(http.StatusUnauthorized)
	})
	mux.HandleFunc("/content", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("ETag", `"v1"`)
		http.ServeContent(w, r, "content.bin", time.Unix(1700000000, 0), bytes.NewReader(pattern(1<<20)))
	})
	mux.HandleFunc("/large", func(w http.ResponseWriter, r *http.Request) {
		size, _ := strconv.Atoi(r.URL.Query().Get("mib"))
		w.Header().Set("Content-Length", strconv.Itoa(size<<20))
		block := pattern(1 << 20)
		for range size {
			if _, err := w.Write(block); err != nil {
				return
			}
		}
	})
	mux.HandleFunc("/trailers", trailers)
	mux.HandleFunc("/early-hints", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Link", "</style.css>; rel=preload")
		w.WriteHeader(http.StatusEarlyHints)
		w.Header().Del("Link")
		fmt.Fprintln(w, "after the hints")
	})
	mux.HandleFunc("/events", events)
	mux.HandleFunc("/poll", func(w http.ResponseWriter, r *http.Request) {
		seconds, err := strconv.ParseFloat(r.URL.Query().Get("seconds"), 64)
		if err != nil {
			seconds = 3
		}
		select {
		case <-time.After(time.Duration(seconds * float64(time.Second))):
			fmt.Fprintln(w, "news")
		case <-r.Context().Done():
		}
	})
	mux.HandleFunc("/slow", slow)
	mux.HandleFunc("/unread", func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(http.StatusUnauthorized) // and reads no body
		fmt.Fprintln(w, "who are you?")
	})
	mux.HandleFunc("/login", connectionLogin)
	l.web("web", mux)
}

func pattern(size int) []byte { return bytes.Repeat([]byte("0123456789abcdef"), size/16) }

// echo describes the request: a proxy's changes of it are visible in the answer.
func echo(w http.ResponseWriter, r *http.Request) {
	sum := sha256.New()
	n, err := io.Copy(sum, r.Body)
	headers := http.Header{}
	for name, values := range r.Header {
		if !slices.Contains([]string{"Connection", "Te", "Upgrade", "Http2-Settings", "Keep-Alive"}, name) { // of one connection each
			headers[name] = values
		}
	}
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("X-Origin", "echo")
	_ = json.NewEncoder(w).Encode(map[string]any{ // a client that left is seen there
		"method": r.Method, "target": r.RequestURI, "host": r.Host, "headers": headers, "length": n,
		"digest": hex.EncodeToString(sum.Sum(nil)), "trailers": r.Trailer, "whole": err == nil,
	})
}

func zipped(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Encoding", "gzip")
	w.Header().Set("Vary", "Accept-Encoding")
	z := gzip.NewWriter(w)
	defer z.Close()
	_, _ = z.Write(pattern(1 << 16)) // a client that left is seen there
}

func trailers(w http.ResponseWriter, r *http.Request) {
	_, _ = io.Copy(io.Discard, r.Body) // it shows in the client
	w.Header().Set("Trailer", "X-Checksum, X-Empty")
	fmt.Fprintln(w, "a body")
	w.(http.Flusher).Flush()
	w.Header().Set("X-Checksum", "0123")
	w.Header().Set("X-Empty", "")
	w.Header().Set(http.TrailerPrefix+"X-Late", "not announced")
}

// events sends an event at once, and one three seconds later.
func events(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Type", "text/event-stream")
	w.Header().Set("Cache-Control", "no-store")
	pause := 3 * time.Second
	if seconds, err := strconv.Atoi(r.URL.Query().Get("seconds")); err == nil {
		pause = time.Duration(seconds) * time.Second
	}
	for i := range 2 {
		fmt.Fprintf(w, "id: %d\ndata: event %d after %s\n\n", i, i, r.Header.Get("Last-Event-ID"))
		w.(http.Flusher).Flush()
		if i == 0 {
			time.Sleep(pause)
		}
	}
}

// slow sends ten bytes, with their number in the head, over three seconds.
func slow(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Length", "10")
	for range 10 {
		if _, err := io.WriteString(w, "x"); err != nil {
			return
		}
		w.(http.Flusher).Flush()
		time.Sleep(330 * time.Millisecond)
	}
}

// connectionLogin logs a connection in, as NTLM does: in two steps, and for all
// that comes on it later.
func connectionLogin(w http.ResponseWriter, r *http.Request) {
	c, _ := r.Context().Value(connectionKey{}).(*connection)
	c.mu.Lock()
	defer c.mu.Unlock()
	switch r.Header.Get("Authorization") {
	case "NTLM first":
		c.user = "half"
		w.Header().Set("WWW-Authenticate", "NTLM challenge")
		w.WriteHeader(http.StatusUnauthorized)
		return
	case "NTLM second":
		if c.user == "half" {
			c.user = "alice"
		}
	}
	if c.user != "alice" {
		w.Header().Set("WWW-Authenticate", "NTLM")
		w.WriteHeader(http.StatusUnauthorized)
		return
	}
	fmt.Fprintln(w, "you are", c.user)
}

// addNginx serves what nginx does by itself.
func addNginx(l *lab) {
	testenv.Must(l.t, os.MkdirAll(l.file("www/folder"), 0o755))
	l.write("www/index.html", "<p>from nginx\n")
	l.write("www/big.bin", string(pattern(8<<20)))
	var servers strings.Builder
	for name, options := range map[string]string{"nginx": "", "nginx-recycle": "keepalive_requests 20;"} {
		fmt.Fprintf(&servers, `
  server {
    listen %s ssl http2;
    listen %s;
    server_name %s;
    ssl_certificate %s; ssl_certificate_key %s;
    root %s; %s
    location /small { client_max_body_size 1k; proxy_pass http://127.0.0.1:8099; }
    location /taken { return 200 "taken\n"; }
    location /moved { return 301 https://%[3]s/; }
    location /bytes { client_max_body_size 100m; proxy_pass http://127.0.0.1:8099; }
  }`, l.address(name, "https", 443), l.address(name, "http", 80), name+domain, l.file("origin.pem"), l.file("origin.key"), l.file("www"), options)
	}
	l.write("nginx.conf", fmt.Sprintf(`daemon off; user root; worker_processes 1; pid %[1]s/nginx.pid; error_log /dev/stderr warn;
events {}
http {
  access_log off; gzip on; gzip_types text/plain;
  client_body_temp_path %[1]s/t1; proxy_temp_path %[1]s/t2; fastcgi_temp_path %[1]s/t3; uwsgi_temp_path %[1]s/t4; scgi_temp_path %[1]s/t5;
  %[2]s
}
`, l.dir, servers.String()))
	l.script("127.0.0.1:8099", func(conn net.Conn) {
		server := &http.Server{Handler: http.HandlerFunc(echo), ErrorLog: discardLog(), ReadHeaderTimeout: time.Minute}
		_ = server.Serve(&oneConn{conn: conn}) // until it is over
		<-make(chan struct{})
	})
	l.program(netJoin(l.hosts["nginx"+domain].String(), 80), "nginx", "-c", l.file("nginx.conf"), "-p", l.dir, "-e", "/dev/stderr")
}

// addLanguages serves by the servers of Python and Node.js.
func addLanguages(l *lab) {
	python := l.address("python", "http", 80)
	host, _, _ := net.SplitHostPort(python)
	l.program(python, testenv.SystemPython, "-m", "http.server", "--bind", host, "--directory", l.file("www"), "80")
	gunicorn := l.address("gunicorn", "http", 80)
	l.program(gunicorn, testenv.SystemPython, "-m", "gunicorn", "--chdir", filepath.Join(stage, "python"), "--bind", gunicorn, "--worker-tmp-dir", l.dir, "--no-control-socket", "wsgi:app")
	uvicorn := l.address("uvicorn", "https", 443, "upgrades: [websocket]")
	host, _, _ = net.SplitHostPort(uvicorn)
	l.program(uvicorn, testenv.SystemPython, "-m", "uvicorn", "--app-dir", filepath.Join(stage, "python"), "--host", host, "--port", "443",
		"--ssl-certfile", l.file("origin.pem"), "--ssl-keyfile", l.file("origin.key"), "--log-level", "warning", "--ws", "wsproto", "asgi:app")
	node := l.address("node", "http", 80)
	host, _, _ = net.SplitHostPort(node)
	l.program(node, "node", filepath.Join(stage, "node", "server.mjs"), host, "80", "5000")
	// One that closes idle connections early, a long way off.
	l.program("127.0.0.1:8098", "node", filepath.Join(stage, "node", "server.mjs"), "127.0.0.1", "8098", "1200")
	l.relay(l.address("node-far", "http", 80), "127.0.0.1:8098", 25*time.Millisecond)
	sockets := l.address("sockets", "http", 80, "upgrades: [websocket]")
	host, _, _ = net.SplitHostPort(sockets)
	l.program(sockets, "node", filepath.Join(stage, "node", "websocket.mjs"), host, "80")
	l.tunnelTLS(l.address("sockets", "https", 443, "upgrades: [websocket]"), sockets)
	l.relay(l.address("web-far", "https", 443), netJoin(l.hosts["web"+domain].String(), 443), 50*time.Millisecond)
}

func netJoin(host string, port int) string { return net.JoinHostPort(host, strconv.Itoa(port)) }

// tunnelTLS ends TLS in front of a server.
func (l *lab) tunnelTLS(address, to string) {
	l.t.Helper()
	l.script(address, func(in net.Conn) {
		out, err := net.Dial("tcp", to)
		if err != nil {
			return
		}
		defer out.Close()
		var both sync.WaitGroup
		both.Go(func() { _, _ = io.Copy(out, in); _ = out.(*net.TCPConn).CloseWrite() }) // either may be gone
		both.Go(func() { _, _ = io.Copy(in, out); abortOrClose(in) })
		both.Wait()
	}, "http/1.1")
}

// oneConn is a listener of one connection.
type oneConn struct {
	conn net.Conn
	once sync.Once
}

func (o *oneConn) Accept() (net.Conn, error) {
	var conn net.Conn
	o.once.Do(func() { conn = o.conn })
	if conn == nil {
		return nil, io.EOF
	}
	return conn, nil
}
func (o *oneConn) Close() error   { return nil }
func (o *oneConn) Addr() net.Addr { return o.conn.LocalAddr() }

// addTools serves git repositories, an npm registry and a Python index.
func addTools(l *lab) {
	backend := strings.TrimSpace(string(testenv.MustGet(exec.Command("git", "--exec-path").Output())(l.t)))
	repositories := l.file("git")
	for _, mode := range allModes {
		bare := filepath.Join(repositories, mode+".git")
		for _, args := range [][]string{{"init", "-q", "--bare", bare}, {"-C", bare, "config", "http.receivepack", "true"}, {"-C", bare, "config", "gc.auto", "0"}} {
			out, err := exec.Command("git", args...).CombinedOutput()
			if err != nil {
				l.t.Fatalf("git: %s", out)
			}
		}
	}
	l.web("git", &cgi.Handler{
		Path: filepath.Join(backend, "git-http-backend"), Stderr: io.Discard, Logger: discardLog(),
		Env: []string{"GIT_PROJECT_ROOT=" + repositories, "GIT_HTTP_EXPORT_ALL=1", "HOME=" + l.dir, "GIT_CONFIG_COUNT=1", "GIT_CONFIG_KEY_0=safe.directory", "GIT_CONFIG_VALUE_0=*"},
	})
	l.web("npm", npmRegistry())
	l.web("pip", pythonIndex(l.t))
}

// npmRegistry serves two packages, one below a scope.
func npmRegistry() http.Handler {
	mux := http.NewServeMux()
	for _, name := range []string{"paired", "@scope/paired"} {
		packed := npmPackage(name)
		sum := sha1.Sum(packed)
		tarball := "/" + name + "/-/" + path.Base(name) + "-1.0.0.tgz"
		document := map[string]any{
			"name": name, "dist-tags": map[string]string{"latest": "1.0.0"},
			"versions": map[string]any{"1.0.0": map[string]any{
				"name": name, "version": "1.0.0",
				"dist": map[string]string{"tarball": "https://npm" + domain + tarball, "shasum": hex.EncodeToString(sum[:])},
			}},
		}
		mux.HandleFunc("/"+name, func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "application/json")
			_ = json.NewEncoder(w).Encode(document) // a client that left is seen there
		})
		mux.HandleFunc(tarball, func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(packed) })
	}
	return mux
}

func npmPackage(name string) []byte {
	var out bytes.Buffer
	z := gzip.NewWriter(&out)
	archive := tar.NewWriter(z)
	for file, text := range map[string]string{"package.json": fmt.Sprintf(`{"name": %q, "version": "1.0.0"}`, name), "data": string(pattern(1 << 20))} {
		_ = archive.WriteHeader(&tar.Header{Name: "package/" + file, Mode: 0o644, Size: int64(len(text))}) // into a buffer
		_, _ = io.WriteString(archive, text)
	}
	archive.Close()
	z.Close()
	return out.Bytes()
}

// pythonIndex serves a wheel as PEP 503 has it.
func pythonIndex(t *testing.T) http.Handler {
	t.Helper()
	var out bytes.Buffer
	wheel := zip.NewWriter(&out)
	record := ""
	for _, file := range [][2]string{
		{"paired.py", "value = 'of the wheel'\n"},
		{"paired-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: paired\nVersion: 1.0\n"},
		{"paired-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nGenerator: tests\nRoot-Is-Purelib: true\nTag: py3-none-any\n"},
	} {
		_, err := io.WriteString(testenv.MustGet(wheel.Create(file[0]))(t), file[1])
		testenv.Must(t, err)
		sum := sha256.Sum256([]byte(file[1]))
		record += fmt.Sprintf("%s,sha256=%s,%d\n", file[0], base64.RawURLEncoding.EncodeToString(sum[:]), len(file[1]))
	}
	_, err := io.WriteString(testenv.MustGet(wheel.Create("paired-1.0.dist-info/RECORD"))(t), record+"paired-1.0.dist-info/RECORD,,\n")
	testenv.Must(t, err)
	testenv.Must(t, wheel.Close())
	mux := http.NewServeMux()
	mux.HandleFunc("/simple/paired/", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/html")
		fmt.Fprint(w, `<!doctype html><a href="/files/paired-1.0-py3-none-any.whl">paired-1.0-py3-none-any.whl</a>`)
	})
	mux.HandleFunc("/files/paired-1.0-py3-none-any.whl", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/zip")
		_, _ = w.Write(out.Bytes()) // a client that left is seen there
	})
	return mux
}

// addTunnelled serves PostgreSQL and ssh.
func addTunnelled(l *lab) (password, key string) {
	db := testenv.MustPostgres(l.t)
	l.relay(l.address("postgres", "tcp", 5432), db.Addr.String(), 0)
	key = l.file("key")
	for _, file := range []string{"host", "key"} {
		out, err := exec.Command("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", l.file(file)).CombinedOutput()
		if err != nil {
			l.t.Fatalf("ssh-keygen: %s", out)
		}
	}
	testenv.Must(l.t, os.Chmod(key, 0o644)) // the plugin copies it
	address := l.address("ssh", "tcp", 22)
	l.write("sshd_config", fmt.Sprintf(`ListenAddress %s
HostKey %[2]s/host
AuthorizedKeysFile %[2]s/key.pub
PidFile none
StrictModes no
PermitRootLogin prohibit-password
PasswordAuthentication no
UsePAM no
`, address, l.dir))
	testenv.Must(l.t, os.MkdirAll("/run/sshd", 0o755)) // its place for separated privileges
	l.program(address, testenv.MustGet(exec.LookPath("sshd"))(l.t), "-D", "-e", "-f", l.file("sshd_config"))
	return db.Password, key
}
