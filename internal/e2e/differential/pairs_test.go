package differential

import (
	"fmt"
	"path/filepath"
	"strings"
	"time"

	"github.com/chaperone-proxy/chaperone/internal/testenv"
)

// pair is a client and what it does with a server.
type pair struct {
	name    string
	args    []string // {mode} stands for the way
	env     []string
	kind    string // how its outcome is read; see testdata/client
	works   bool   // it ends without an error where there is no sidecar
	timeout time.Duration
	long    bool // it runs under make test-long alone
}

// everyday are the pairs of slow clients that run each time; the others of theirs
// run under make test-long, since each start of an interpreter takes its time.
var everyday = []string{
	"*: Go", "requests: *413*", "http.client: *413*", "requests: early answer", "urllib: early answer",
	"requests: read timeout*", "aiohttp: * chunked*", "httpx: slow body*", "httpx-h2: events", "aiohttp: cut", "requests: cut",
	"websockets: ws, TLS", "websockets: uvicorn", "grpcio: unary", "grpcio: deadline", "urllib: plain*", "httpx-h2: slow upload",
	"node fetch: *413*", "node http: *413*", "node fetch: streamed*", "node got: slow*", "node undici: cut", "node http: trailers", "node http2: reset*",
	"node ws: TLS", "node ws: plain", "node grpc-js: chat", "java HttpClient: POST*", "java HttpURLConnection: slow*",
}

// job is what the runner is sent.
func (p pair) job(mode string, direct bool) job {
	j := job{ID: p.name, Env: p.env, Direct: direct, Kind: p.kind, Timeout: p.timeout}
	for _, arg := range p.args {
		j.Args = append(j.Args, strings.ReplaceAll(arg, "{mode}", mode))
	}
	return j
}

// A builder of pairs holds what those of one client share.
type builder struct{ pairs []pair }

func (b *builder) add(name, kind string, args ...string) *pair {
	b.pairs = append(b.pairs, pair{name: name, kind: kind, args: args, works: true, timeout: 45 * time.Second})
	return &b.pairs[len(b.pairs)-1]
}

// fails marks a pair whose client gets an error in any case.
func (p *pair) fails() *pair { p.works = false; return p }

func (p *pair) with(env ...string) *pair { p.env = append(p.env, env...); return p }

func (p *pair) lasts(limit time.Duration) *pair { p.timeout, p.long = limit, true; return p }

func (b *builder) curl(name string, args ...string) *pair {
	return b.add("curl: "+name, "curl", append([]string{"curl", "--max-time", "30"}, args...)...)
}

// slow adds a pair of a client that takes long to start.
func (b *builder) slow(name string, args ...string) *pair {
	p := b.add(name, "fields", args...)
	p.long = !matches(strings.Join(everyday, "|"), name)
	return p
}

func (b *builder) python(library, name, url string, args ...string) *pair {
	return b.slow(library+": "+name, append([]string{testenv.SystemPython, filepath.Join(stage, "python", "client.py"), library, url}, args...)...)
}

func (b *builder) node(library, name, url string, args ...string) *pair {
	return b.slow("node "+library+": "+name, append([]string{"node", filepath.Join(stage, "node", "client.mjs"), library, url}, args...)...)
}

func (b *builder) java(library, name, url string, args ...string) *pair {
	return b.slow("java "+library+": "+name, append([]string{"java", "-Xmx64m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-cp", filepath.Join(stage, "java"), "Client", library, url}, args...)...)
}

func (b *builder) golang(name string, args ...string) *pair {
	return b.add("go: "+name, "fields", append([]string{filepath.Join(stage, "bin", "client")}, args...)...)
}

func (b *builder) tool(name, script string) *pair {
	return b.add(name, "tool", "/bin/sh", "-c", script)
}

const (
	web  = "https://web" + domain
	raw  = "https://raw" + domain
	mega = "1048576"
)

func allPairs(password, key string) []pair {
	b := &builder{}
	addCurl(b)
	addCurlRaw(b)
	addPython(b)
	addNode(b)
	addJava(b)
	addGo(b)
	addGoGRPC(b)
	addPrograms(b, password, key)
	addLong(b)
	return b.pairs
}

func addCurl(b *builder) {
	b.curl("h1, Go", "--http1.1", web+"/echo")
	b.curl("h2, Go", web+"/echo")
	b.curl("plain, Go", "http://web"+domain+"/echo")
	b.curl("HTTP/1.0, Go", "--http1.0", "--no-alpn", web+"/echo")
	b.curl("odd target, Go", web+"/echo?a=%2F&b=%41&c=x%20y&d[]=1&e=it's")
	b.curl("many headers, Go", "-H", "X-A: 1", "-H", "X-A: 2", "-H", "X-Empty;", "-H", "Accept-Encoding: br", "-H", "Range: bytes=0-", "-A", "", web+"/echo")
	b.curl("POST, Go", "-d", "a=b", web+"/echo")
	b.curl("POST of 8 MiB h2, Go", "-T", "/usr/bin/git", "-X", "POST", web+"/echo")
	b.curl("POST chunked h1, Go", "--http1.1", "-T", "-", "-X", "POST", web+"/echo")
	b.curl("expect, Go", "--http1.1", "-H", "Expect: 100-continue", "-d", "a=b", web+"/echo")
	b.curl("expect, refused by Go", "--http1.1", "-H", "Expect: 100-continue", "-d", "a=b", web+"/unread")
	for _, code := range []string{"204", "304", "401", "404", "429", "500", "503"} {
		b.curl(code+", Go", web+"/status/"+code)
	}
	b.curl("HEAD, Go", "-I", web+"/content")
	b.curl("range, Go", "-r", "1000-1999", web+"/content")
	b.curl("not modified, Go", "-H", `If-None-Match: "v1"`, web+"/content")
	b.curl("redirect with body, Go", "-L", "-d", "a=b", web+"/redirect")
	b.curl("gzip, Go", "--compressed", web+"/gzip")
	b.curl("cookies and challenges, Go", web+"/cookies")
	b.curl("trailers h1, Go", "--http1.1", "-H", "TE: trailers", web+"/trailers")
	b.curl("trailers h2, Go", web+"/trailers")
	b.curl("early hints h1, Go", "--http1.1", web+"/early-hints")
	b.curl("early hints h2, Go", web+"/early-hints")
	b.curl("slow body h1, Go", "--http1.1", web+"/slow")
	b.curl("slow body h2, Go", web+"/slow")
	b.curl("long poll, Go", web+"/poll")
	b.curl("own timeout, Go", "--max-time", "3", web+"/poll?seconds=20").fails()
	b.curl("download of 64 MiB, Go", web+"/large?mib=64")
	b.curl("download h2 from afar, Go", "https://web-far"+domain+"/large?mib=32")
	b.tool("curl: upgrade offers, Go", "curl -sS --http2 -w '%{http_code} ' http://web"+domain+"/status/200 http://web"+domain+"/status/404 http://web"+domain+"/status/200")
	b.curl("prior knowledge, Go", "--http2-prior-knowledge", "http://web"+domain+"/echo")
	b.curl("OPTIONS *, Go", "-X", "OPTIONS", "--request-target", "*", "--http1.1", web+"/")
	b.curl("nginx h2", "https://nginx"+domain+"/")
	b.curl("nginx h1", "--http1.1", "https://nginx"+domain+"/big.bin")
	b.curl("nginx, folder's redirect", "https://nginx"+domain+"/folder")
	b.curl("nginx, 413", "-T", "/usr/bin/git", "-X", "POST", "https://nginx"+domain+"/small")
	b.curl("nginx, 413 h1", "--http1.1", "-H", "Expect:", "-T", "/usr/bin/git", "-X", "POST", "https://nginx"+domain+"/small")
	b.curl("nginx, 405", "-d", "a=b", "https://nginx"+domain+"/")
	b.curl("http.server", "http://python"+domain+"/")
	b.curl("http.server, 501", "-d", "a=b", "http://python"+domain+"/")
	b.curl("gunicorn", "-d", "a=b", "http://gunicorn"+domain+"/")
	b.curl("gunicorn, unread body", "-T", "/usr/bin/git", "http://gunicorn"+domain+"/unread")
	b.curl("uvicorn", "-d", "a=b", "https://uvicorn"+domain+"/")
	b.curl("Node.js", "-d", "a=b", "http://node"+domain+"/")
}

func addCurlRaw(b *builder) {
	for _, scheme := range []string{"https", "http"} {
		at := scheme + "://raw" + domain
		for _, path := range []string{"early", "ended", "http10", "hints", "204-body", "204-bytes", "trailers", "latin", "lines", "999", "head-large", "same-twice", "upgrade"} {
			b.curl(scheme+" /"+path, "--http1.1", at+"/"+path)
		}
		for _, path := range []string{"reset", "nothing", "garbage", "cut-known", "cut-chunked", "reset-known"} {
			b.curl(scheme+" /"+path, "--http1.1", at+"/"+path).fails()
		}
	}
	b.curl("silent origin", "--http1.1", "--max-time", "3", raw+"/silent").fails()
	b.curl("HEAD of ended", "--http1.1", "-I", raw+"/ended")
	b.curl("ended to h2", raw+"/ended")
	b.curl("upload and early 413", "--http1.1", "-H", "Expect:", "-T", "/usr/bin/git", raw+"/early")
	b.curl("reset while sending", "--http1.1", "-H", "Expect:", "-T", "/usr/bin/git", raw+"/reset-while-sending").fails()
	for _, host := range []string{"h2-large", "h2-refused", "h2-early", "h2-goaway-after"} {
		b.curl(host, "https://"+host+domain+"/")
	}
	b.curl("POST h2-early", "-d", "a=b", "https://h2-early"+domain+"/")
	for _, host := range []string{"h2-cancel", "h2-internal", "h2-calm", "h2-one", "h2-cut", "h2-lost", "h2-204", "h2-goaway"} {
		b.curl(host, "https://"+host+domain+"/").fails()
	}
}

func addPython(b *builder) {
	for _, library := range []string{"urllib", "http.client", "requests", "urllib3", "aiohttp", "httpx", "httpx-h2"} {
		b.python(library, "Go", web+"/echo")
		b.python(library, "POST of 1 MiB, Go", web+"/echo", "--post", mega)
		b.python(library, "POST of 1 MiB chunked, Go", web+"/echo", "--post", mega, "--chunked")
		b.python(library, "slow body, Go", web+"/slow")
		b.python(library, "download of 16 MiB, Go", web+"/large?mib=16")
		if library == "httpx-h2" {
			continue // it waits for the window, and reads no answer
		}
		b.python(library, "nginx, 413 for 5 MB", "https://nginx"+domain+"/small", "--post", "5000000")
	}
	for _, library := range []string{"urllib", "http.client", "requests", "urllib3", "aiohttp", "httpx"} {
		b.python(library, "early answer", raw+"/early", "--post", "5000000")
		b.python(library, "cut", raw+"/cut-known").fails()
		b.python(library, "plain http.server", "http://python"+domain+"/")
	}
	b.python("requests", "read timeout over a slow body", web+"/slow", "--timeout", "3")
	b.python("requests", "redirect", web+"/redirect", "--post", "100")
	b.python("requests", "own timeout", web+"/poll?seconds=20", "--timeout", "3").fails()
	b.python("aiohttp", "events", web+"/events")
	b.python("httpx-h2", "events", web+"/events")
	b.python("httpx-h2", "slow upload", web+"/echo", "--post", mega, "--slow", "3")
	b.python("websockets", "ws, TLS", "wss://sockets"+domain+"/")
	b.python("websockets", "ws, plain", "ws://sockets"+domain+"/")
	b.python("websockets", "uvicorn", "wss://uvicorn"+domain+"/")
	b.python("websockets", "not one", "wss://web"+domain+"/echo")
	b.python("grpcio", "unary", "grpc"+domain+":443,Unary,hello")
	b.python("grpcio", "plain unary", "plain:grpc"+domain+":80,Unary,hello")
	b.python("grpcio", "chat", "grpc"+domain+":443,Chat,hello")
	b.python("grpcio", "status", "grpc"+domain+":443,Unary,fail denied")
	b.python("grpcio", "deadline", "grpc"+domain+":443,Unary,wait", "--timeout", "3")
	b.python("grpcio", "server stream", "grpc"+domain+":443,Ticks,x")
}

func addNode(b *builder) {
	for _, library := range []string{"http", "fetch", "undici", "undici-fetch", "axios", "got", "got-h2", "http2"} {
		b.node(library, "Go", web+"/echo")
		b.node(library, "POST, Go", web+"/echo", "POST", mega)
		b.node(library, "slow body, Go", web+"/slow")
	}
	for _, library := range []string{"http", "fetch", "undici", "axios", "got"} {
		b.node(library, "nginx, 413", "https://nginx"+domain+"/small", "POST", "5000000")
		b.node(library, "http.server", "http://python"+domain+"/")
		b.node(library, "cut", raw+"/cut-known").fails()
	}
	b.node("fetch", "streamed upload", web+"/echo", "POST", mega, "3")
	b.node("fetch", "events", web+"/events")
	b.node("http", "trailers", web+"/trailers")
	b.node("http", "hints", raw+"/hints")
	b.node("http2", "trailers", web+"/trailers")
	b.node("http2", "204 with a length", "https://h2-204"+domain+"/")
	b.node("http2", "reset by CANCEL", "https://h2-cancel"+domain+"/") // Node.js reports it as the end
	b.node("ws", "TLS", "wss://sockets"+domain+"/")
	b.node("ws", "plain", "ws://sockets"+domain+"/")
	b.node("ws", "uvicorn", "wss://uvicorn"+domain+"/")
	b.node("grpc-js", "unary", "grpc"+domain+":443,Unary,hello")
	b.node("grpc-js", "chat", "grpc"+domain+":443,Chat,hello")
	b.node("grpc-js", "deadline", "grpc"+domain+":443,Unary,wait").with("LIMIT=3")
}

func addJava(b *builder) {
	for _, library := range []string{"HttpClient", "HttpClient-h2", "HttpURLConnection"} {
		b.java(library, "Go", web+"/echo")
		b.java(library, "POST, Go", web+"/echo", "POST", mega)
		b.java(library, "slow body, Go", web+"/slow")
		b.java(library, "plain, Go", "http://web"+domain+"/echo")
	}
	b.java("HttpClient", "nginx, 413", "https://nginx"+domain+"/small", "POST", "5000000")
	b.java("HttpURLConnection", "cut", raw+"/cut-known").fails()
}

func addGo(b *builder) {
	for _, version := range []string{"1", "2"} {
		b.golang("h"+version+", Go", "http", version, "GET", web+"/echo")
		b.golang("h"+version+", POST, Go", "http", version, "POST", web+"/echo", mega)
		b.golang("h"+version+", slow upload, Go", "http", version, "POST", web+"/echo", mega, "3")
		b.golang("h"+version+", trailers both ways, Go", "http", version, "POST", web+"/trailers", "1000", "0").with("HEADERS=Trailer: X-Sum\nTE: trailers")
		b.golang("h"+version+", hints, Go", "http", version, "GET", web+"/early-hints")
		b.golang("h"+version+", nginx, 413", "http", version, "POST", "https://nginx"+domain+"/small", "5000000")
		b.golang("h"+version+", nginx recycles, POST", "repeat", version, "POST", "https://nginx-recycle"+domain+"/bytes", "100", "300", "0", "together")
		b.golang("h"+version+", own timeout", "http", version, "GET", web+"/poll?seconds=20").with("LIMIT=3s").fails()
	}
	b.golang("h2c, Go", "http", "h2c", "GET", "http://web"+domain+"/echo")
	b.golang("POST near the idle timeout of Node.js", "repeat", "1", "POST", "http://node-far"+domain+"/", "100", "12", "1.185s", "fresh")
	b.golang("a login of a connection", "login", web+"/login")
	b.golang("an upgrade to tcp with half-close, TLS", "upgrade", raw+"/upgrade", "tcp", "100000")
	b.golang("an upgrade to tcp with half-close", "upgrade", "http://raw"+domain+"/upgrade", "tcp", "100000")
	for _, offer := range []string{"TLS/1.2", "h2c", "HTTP/2.0", "SPDY/3.1"} {
		b.golang("an upgrade that is not taken, "+strings.ReplaceAll(offer, "/", " "), "upgrade", raw+"/upgrade", offer, "0")
	}
	b.golang("half-close, tcp", "tcp", "tcp://half"+domain+":7", "100000")
	b.golang("half-close, tls", "tcp", "https://half-tls"+domain+":443", "100000")
	b.golang("a server that greets, tcp", "tcp", "tcp://greets"+domain+":25", "10")
	b.golang("a large head beside other streams", "h2", web+"/echo", "100000")
	for _, scheme := range []string{"wss", "ws"} {
		for _, code := range []string{"1000", "1011", "4999"} {
			b.golang(scheme+", close "+code, "websocket", scheme+"://sockets"+domain+"/", code).with("CODE=" + code)
		}
	}
	for _, host := range []string{"h2-goaway", "h2-refused"} {
		b.golang(host+", POST", "http", "2", "POST", "https://"+host+"-post"+domain+"/", "1000", "again")
	}
}

func addGoGRPC(b *builder) {
	at := func(host string) string { return host + domain + ":443" }
	b.golang("grpc, unary", "grpc", at("grpc"), "unary", "hello")
	b.golang("grpc, plain unary", "grpc", "plain:grpc"+domain+":80", "unary", "hello")
	b.golang("grpc, large unary", "grpc", at("grpc"), "unary", strings.Repeat("x", 100_000))
	for _, code := range []string{"denied", "missing", "unavailable"} {
		b.golang("grpc, fail "+code, "grpc", at("grpc"), "unary", "fail "+code)
	}
	b.golang("grpc, chat", "grpc", at("grpc"), "Chat", "hello")
	b.golang("grpc, server stream", "grpc", at("grpc"), "Ticks", "x")
	b.golang("grpc, large stream", "grpc", at("grpc"), "Large", "x")
	b.golang("grpc, cancelled", "grpc", at("grpc"), "cancel", "x")
	b.golang("grpc, deadline of unary", "grpc", at("grpc"), "unary", "wait", "3s")
	b.golang("grpc, deadline of a stream", "grpc", at("grpc"), "Wait", "x", "3s")
	b.golang("grpc, connections that get old", "grpc", at("grpc-recycle"), "many", "x")
	b.golang("grpc, no such method", "grpc", at("grpc"), "Missing", "x")
	for _, host := range []string{"h2-cancel", "h2-internal", "h2-calm", "h2-one", "h2-cancel-late", "h2-lost-late", "h2-only-trailers", "h2-early"} {
		b.golang("grpc, "+host, "grpc", at(host), "unary", "x")
	}
	for _, host := range []string{"h2-refused", "h2-goaway"} {
		b.golang("grpc, "+host, "grpc", at(host+"-grpc"), "unary", "x")
	}
	b.golang("grpc, web server", "grpc", at("web"), "unary", "x")
}

func addPrograms(b *builder, password, key string) {
	b.tool("wget: Go", "wget -q -O - "+web+"/content")
	b.tool("wget: 404", "wget -nv -O - "+web+"/status/404; echo status $?")
	b.tool("wget: redirect", "wget -q -O - --post-data a=b "+web+"/redirect")
	b.tool("wget: plain", "wget -q -O - http://python"+domain+"/")
	b.tool("busybox wget: plain", "busybox wget -q -O - http://web"+domain+"/content")
	b.tool("busybox wget: http.server", "busybox wget -q -O - http://python"+domain+"/")
	b.tool("busybox nc: half-close", `printf 'GET /echo HTTP/1.0\r\nHost: web`+domain+`\r\n\r\n' | busybox nc web`+domain+` 80 | tail -n 1`)
	b.tool("openssl s_client: Go", `printf 'GET /echo HTTP/1.0\r\nHost: web`+domain+`\r\n\r\n' |
openssl s_client ${HTTPS_PROXY:+-proxy "${HTTPS_PROXY#http://}"} -ign_eof -quiet -connect web`+domain+`:443 -servername web`+domain+` -verify_return_error -CAfile "$SSL_CERT_FILE" | tail -n 1`)
	b.tool("git: clone and push, https", `set -e
git config --global user.name P; git config --global user.email p@pair.test; git config --global init.defaultBranch main
git clone -q https://git`+domain+`/{mode}.git a 2>/dev/null
head -c 3000000 /dev/zero | openssl enc -aes-128-ctr -nosalt -K 00 -iv 00 >a/large 2>/dev/null
git -C a add . && GIT_AUTHOR_DATE='2026-01-01T00:00:00Z' GIT_COMMITTER_DATE='2026-01-01T00:00:00Z' git -C a commit -q -m one && git -C a push -q origin HEAD:main-$$
git clone -q -b main-$$ https://git`+domain+`/{mode}.git b && git -C b log --format=%H && sha256sum <b/large
git -C b ls-remote https://git`+domain+`/{mode}.git | grep -c main- >/dev/null`)
	b.tool("git: push of chunks", `set -e
git config --global user.name P; git config --global user.email p@pair.test; git config --global http.postBuffer 65536
git init -q a && cd a && head -c 2000000 /dev/zero | openssl enc -aes-128-ctr -nosalt -K 01 -iv 00 >large 2>/dev/null
git add . && git commit -q -m one && git push -q https://git`+domain+`/{mode}.git HEAD:chunks-$$ && echo pushed`)
	b.tool("npm: install", `npm install --registry https://npm`+domain+` --no-audit --no-fund --no-update-notifier paired @scope/paired >&2 && sha256sum <node_modules/paired/data && ls node_modules/@scope`)
	b.tool("pip: install", testenv.SystemPython+` -m pip install -q --disable-pip-version-check --no-cache-dir --index-url https://pip`+domain+`/simple/ --target t paired && cat t/paired.py`)
	b.tool("psql: scheme tcp", fmt.Sprintf(`PGPASSWORD=%s psql -XAtq -c "select sum(n) from generate_series(1, 100000) n" -c "select repeat('x', 1000000)" "host=postgres%s user=postgres dbname=postgres" | sha256sum`, password, domain))
	b.tool("ssh: scheme tcp", fmt.Sprintf(`cp %s key && chmod 600 key && head -c 5000000 /dev/zero | ssh -F /dev/null -i key -o IdentitiesOnly=yes -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null -o LogLevel=ERROR root@ssh%s 'sha256sum; echo done'`, key, domain))
}

// addLong adds what takes minutes: streams and answers that are quiet for longer than
// a proxy is used to wait.
func addLong(b *builder) {
	at := "grpc" + domain + ":443"
	b.golang("grpc, quiet for 150 s", "grpc", at, "Quiet", "x", "300s").lasts(5 * time.Minute)
	for _, version := range []string{"1", "2"} {
		b.golang("h"+version+", poll of 310 s", "http", version, "GET", web+"/poll?seconds=310").lasts(7 * time.Minute)
		b.golang("h"+version+", events 310 s apart", "http", version, "GET", web+"/events?seconds=310").lasts(7 * time.Minute)
	}
}
