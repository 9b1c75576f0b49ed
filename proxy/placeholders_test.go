package proxy_test

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"io"
	"mime/multipart"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/coder/websocket"
	"google.golang.org/grpc"
	grpcgzip "google.golang.org/grpc/encoding/gzip"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/chaperone-proxy/chaperone/authz"
	"github.com/chaperone-proxy/chaperone/internal/testenv"
	"github.com/chaperone-proxy/chaperone/proxy"
	"github.com/chaperone-proxy/chaperone/proxy/placeholder"
)

const placeholderValue = "zq-Test7Kp2Lm9Rv4Xw8"

func withPlaceholder(c *proxy.Config) {
	placeholders := []placeholder.Placeholder{
		{Grant: "weather", Credential: "other", Value: authz.NewSecret("another-placeholder-1234")},
		{Grant: "weather", Credential: "key", Value: authz.NewSecret(placeholderValue)},
	}
	c.Placeholders = func() []placeholder.Placeholder { return placeholders }
}

// witness is an upstream that keeps everything that it receives, even of incomplete
// requests.
type witness struct {
	*httptest.Server
	mu   sync.Mutex
	seen strings.Builder
}

func newWitness(t testing.TB) *witness {
	t.Helper()
	w := &witness{}
	w.Server = httptest.NewUnstartedServer(http.HandlerFunc(w.serve))
	w.EnableHTTP2 = true
	w.StartTLS()
	t.Cleanup(w.Close)
	return w
}

func (w *witness) serve(out http.ResponseWriter, r *http.Request) {
	w.note(fmt.Sprint(r.Method, r.Host, r.RequestURI, r.Header))
	b := make([]byte, 4096)
	for {
		n, err := r.Body.Read(b)
		w.note(string(b[:n]))
		if err != nil {
			break
		}
	}
	w.note(fmt.Sprint(r.Trailer))
	_, _ = io.WriteString(out, "ok")
}

func (w *witness) note(text string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.seen.WriteString(text)
}

// take returns what was seen since the last call.
func (w *witness) take() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	defer w.seen.Reset()
	return w.seen.String()
}

// slowly is a body in small pieces.
func slowly(text string) io.ReadCloser {
	in, out := io.Pipe()
	go func() {
		for i := 0; i < len(text); i += 7 {
			if _, err := io.WriteString(out, text[i:min(i+7, len(text))]); err != nil {
				return
			}
		}
		_ = out.Close()
	}()
	return in
}

// wantMisplaced checks that a request was refused and recorded because of a placeholder,
// and that neither the record nor the refusal contains it.
func wantMisplaced(t *testing.T, w *world, seen, where string) {
	t.Helper()
	w.settled()
	ends := w.records.of(authz.KindEnd)
	end := ends[len(ends)-1]
	if end.Reason != "credential_misplaced" || !strings.Contains(end.Detail, "credential key of grant weather") || !strings.Contains(end.Detail, where) {
		t.Errorf("end record is %s %q", end.Reason, end.Detail)
	}
	refusals := w.refused()
	told := refusals[len(refusals)-1]
	if told.Reason != authz.CredentialMisplaced || told.Remedy == "" {
		t.Errorf("got the refusal %+v, want credential_misplaced with a remedy", told)
	}
	for name, text := range map[string]string{"upstream": seen, "record": end.Detail, "refusal": told.Detail + told.URL + told.Remedy} {
		if strings.Contains(text, placeholderValue[:4]) {
			t.Errorf("the placeholder is in the %s: %q", name, text)
		}
	}
}

// TestMisplaced puts a placeholder everywhere but into its slot, on its way to the host
// of its credential and to one that has no credential.
func TestMisplaced(t *testing.T) {
	api := newWitness(t)
	plain := ruleFor(api.Server)
	plain.ID, plain.To.Hosts, plain.Credential = "plain", []string{"*.example.com"}, ""
	w := newWorld(t, setup{input: granted(ruleFor(api.Server), plain), config: func(c *proxy.Config) {
		withPlaceholder(c)
		c.Upstream.Hosts["other.example.com"] = c.Upstream.Hosts["example.com"]
		c.Upstream.Hosts[strings.ToLower(placeholderValue)+".example.com"] = c.Upstream.Hosts["example.com"]
	}})
	var form bytes.Buffer
	parts := multipart.NewWriter(&form)
	part, err := parts.CreateFormFile("file", "x")
	testenv.Must(t, err)
	_, _ = io.WriteString(part, strings.Repeat("line\n", 10_000)+placeholderValue)
	testenv.Must(t, parts.Close())
	filler := strings.Repeat("filler ", 1000)
	body := func(text string) func(*http.Request) {
		return func(r *http.Request) { r.Body, r.ContentLength = slowly(text), -1 }
	}
	coded := func(coding string) func(*http.Request) {
		return func(r *http.Request) {
			body(string(compressed(t, coding, filler+placeholderValue)))(r)
			r.Header.Set("Content-Encoding", coding)
		}
	}
	cases := []struct {
		name, where string
		change      func(*http.Request)
	}{
		{"path", "the path", func(r *http.Request) { r.URL.Path = "/v1/" + placeholderValue }},
		{"path, escaped", "the path", func(r *http.Request) {
			r.URL.Path, r.URL.RawPath = "/v1/"+placeholderValue, "/v1/%7A%71"+placeholderValue[2:]
		}},
		{"query", "the query", func(r *http.Request) { r.URL.RawQuery = "key=" + placeholderValue }},
		{"query, escaped", "the query", func(r *http.Request) { r.URL.RawQuery = "key=" + strings.ToUpper(percentWhole(placeholderValue)) }},
		{"header", "header x-api-key", func(r *http.Request) { r.Header.Set("X-Api-Key", placeholderValue) }},
		{"cookie", "header cookie", func(r *http.Request) { r.Header.Set("Cookie", "a=1; sid="+placeholderValue) }},
		{"base64 in a header", "header x-basic", func(r *http.Request) {
			r.Header.Set("X-Basic", base64.StdEncoding.EncodeToString([]byte("ada:"+placeholderValue)))
		}},
		{"name of a header", "name of a header", func(r *http.Request) { r.Header["X-"+strings.ToUpper(placeholderValue)] = []string{"1"} }},
		{"body", "the body", body(filler + placeholderValue + filler)},
		{"end of a body", "the body", body(filler + placeholderValue)},
		{"base64 in a body", "the body", body(filler + base64.StdEncoding.EncodeToString([]byte(filler+placeholderValue)))},
		{"hexadecimal in a body", "the body", body(filler + hex.EncodeToString([]byte(placeholderValue)))},
		{"form", "the body", body("a=1&key=" + url.QueryEscape(placeholderValue))},
		{"multipart", "the body", body(form.String())},
		{"gzip", "the body", coded("gzip")},
		{"br", "the body", coded("br")},
		{"zstd", "the body", coded("zstd")},
		{"deflate", "the body", coded("deflate")},
		{"trailer", "trailer x-digest", func(r *http.Request) {
			body("text")(r)
			r.Trailer = http.Header{"X-Digest": {placeholderValue}}
		}},
	}
	for protocol, change := range map[string]func(*http.Transport){"HTTP/1.1": nil, "HTTP/2": withHTTP2} {
		client := w.client(change)
		for _, host := range []string{"example.com", "other.example.com"} {
			for _, test := range cases {
				t.Run(protocol+" "+host+" "+test.name, func(t *testing.T) {
					api.take()
					r := request(t, "POST", strings.Replace(urlOf(api.Server, "/v1/x"), "example.com", host, 1), "")
					test.change(r)
					if response, err := client.Do(r); err == nil {
						text, _ := io.ReadAll(response.Body)
						_ = response.Body.Close()
						wantRefusal(t, response, string(text), authz.CredentialMisplaced)
					}
					wantMisplaced(t, w, api.take(), test.where)
				})
			}
		}
		t.Run(protocol+" host", func(t *testing.T) {
			api.take()
			response, body := send(t, client, request(t, "GET", strings.Replace(urlOf(api.Server, "/"), "example.com", placeholderValue+".example.com", 1), ""))
			wantRefusal(t, response, body, authz.CredentialMisplaced)
			w.settled()
			if ends := w.records.of(authz.KindEnd); !strings.Contains(ends[len(ends)-1].Detail, "the host's name") {
				t.Errorf("end record is %+v", ends[len(ends)-1])
			}
		})
	}
	if requests := api.take(); strings.Contains(requests, placeholderValue[:4]) {
		t.Errorf("the upstream saw %q", requests)
	}
}

func percentWhole(s string) string {
	var b strings.Builder
	for i := range len(s) {
		fmt.Fprintf(&b, "%%%02x", s[i])
	}
	return b.String()
}

// TestPlaced replaces a placeholder in its slot, and leaves the rest unchanged.
func TestPlaced(t *testing.T) {
	api := newWitness(t)
	w := newWorld(t, setup{input: granted(ruleFor(api.Server)), config: withPlaceholder})
	client := w.client(nil)
	text := strings.Repeat(placeholderValue[:len(placeholderValue)-1]+" ", 500)
	for _, coding := range []string{"", "gzip", "br", "zstd", "aws-chunked", "aws-chunked,gzip"} {
		sent := compressed(t, strings.TrimPrefix(coding, "aws-chunked,"), text)
		r := request(t, "POST", urlOf(api.Server, "/"), string(sent))
		r.Header.Set("Authorization", "Bearer "+placeholderValue)
		r.Header.Set("Content-Encoding", coding)
		response, body := send(t, client, r)
		if response.StatusCode != 200 {
			t.Fatalf("%s: %s %s", coding, response.Status, body)
		}
		if seen := api.take(); strings.Contains(seen, placeholderValue) || !strings.Contains(seen, "Bearer "+apiKey) || !strings.Contains(seen, string(sent)) {
			t.Errorf("%s: the upstream saw %.300q", coding, seen)
		}
	}
	for name, change := range map[string]func(*http.Request){
		"unknown coding": func(r *http.Request) { r.Header.Set("Content-Encoding", "compress") },
		"not in it":      func(r *http.Request) { r.Header.Set("Content-Encoding", "gzip") },
		"too long": func(r *http.Request) {
			r.Header.Set("Content-Encoding", "gzip")
			r.Body, r.ContentLength = io.NopCloser(strings.NewReader(strings.Repeat("x", 5<<20))), 5<<20
		},
	} {
		r := request(t, "POST", urlOf(api.Server, "/"), text)
		change(r)
		response, err := client.Do(r)
		if err != nil { // it was still sending
			continue
		}
		body, _ := io.ReadAll(response.Body)
		_ = response.Body.Close()
		if wantRefusal(t, response, string(body), authz.NotEnforceableHere); strings.Contains(api.take(), placeholderValue[:4]) {
			t.Errorf("%s: it was sent", name)
		}
	}
}

// TestMisplacedInMessages sends a placeholder over gRPC and WebSocket.
func TestMisplacedInMessages(t *testing.T) {
	api := upstream(t, testenv.UpstreamConfig{})
	w := newWorld(t, setup{input: granted(rule(api, "read")), config: withPlaceholder})
	client := w.dialGRPC(fmt.Sprintf("api.weather.example:%d", api.Addr.Port()))
	chat(t, client, "1") // a message that a client waits for is not held back
	for name, options := range map[string][]grpc.CallOption{"plain": nil, "gzip": {grpc.UseCompressor(grpcgzip.Name)}} {
		got := new(wrapperspb.StringValue)
		if err := client.Invoke(t.Context(), testenv.EchoUnary, wrapperspb.String("fine"), got, options...); err != nil || got.GetValue() != "fine" {
			t.Errorf("%s: %q, %v", name, got.GetValue(), err)
		}
		err := client.Invoke(t.Context(), testenv.EchoUnary, wrapperspb.String("x "+placeholderValue), got, options...)
		if err == nil {
			t.Errorf("%s: it was sent", name)
		}
		wantMisplaced(t, w, "", "the body")
	}
	conn, _, err := websocket.Dial(t.Context(), api.URL("api.weather.example", "/ws"), &websocket.DialOptions{HTTPClient: w.client(nil)})
	testenv.Must(t, err)
	defer conn.CloseNow()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	testenv.Must(t, conn.Write(ctx, websocket.MessageText, []byte("ends as it begins "+placeholderValue[:6])))
	if _, got, err := conn.Read(ctx); err != nil || !strings.HasSuffix(string(got), placeholderValue[:6]) {
		t.Errorf("echo is %q, %v", got, err)
	}
	_ = conn.Write(ctx, websocket.MessageText, []byte(placeholderValue))
	if _, got, err := conn.Read(ctx); err == nil {
		t.Errorf("echo is %q", got)
	}
	wantMisplaced(t, w, "", "what follows the upgrade")
}

// TestMisplacedInATunnel sends a placeholder through tunnels: at once, when no
// recognisable part of it passes, and byte by byte with pauses, when a prefix passes
// after a fixed delay and the whole never does.
func TestMisplacedInATunnel(t *testing.T) {
	t.Run("at once", func(t *testing.T) { misplacedInATunnel(t, len(placeholderValue), placeholderValue[:6]) })
	t.Run("byte by byte", func(t *testing.T) { misplacedInATunnel(t, 1, placeholderValue) })
}

// misplacedInATunnel sends a placeholder in pieces and fails the test if the upstream
// received more than the prefix.
func misplacedInATunnel(t *testing.T, piece int, most string) {
	t.Helper()
	var mu sync.Mutex
	var seen strings.Builder
	server := tcpServer(t, func(c net.Conn) {
		b := make([]byte, 1)
		for {
			if _, err := c.Read(b); err != nil {
				return
			}
			mu.Lock()
			seen.Write(b)
			mu.Unlock()
			if _, err := c.Write(b); err != nil {
				return
			}
		}
	})
	w := newWorld(t, setup{input: granted(tcpRule(server, authz.SchemeTCP, "api.weather.example")), config: withPlaceholder})
	c := w.tunnel(fmt.Sprintf("api.weather.example:%d", server.Port()))
	for _, b := range "hello z zq" { // an end that waits for the echo of each has it
		c.write(string(b))
		if got, err := c.in.ReadByte(); err != nil || rune(got) != b {
			t.Fatalf("echo is %q, %v", got, err)
		}
	}
	for i := 0; i < len(placeholderValue); i += piece {
		if _, err := io.WriteString(c.Conn, placeholderValue[i:i+piece]); err != nil {
			break
		}
		time.Sleep(time.Millisecond)
	}
	_, _ = io.Copy(io.Discard, c.in)
	w.settled()
	ends := w.records.of(authz.KindEnd)
	if end := ends[0]; end.Reason != "credential_misplaced" || !strings.Contains(end.Detail, "the tunnel") {
		t.Errorf("end record is %+v", end)
	}
	mu.Lock()
	defer mu.Unlock()
	if got := seen.String(); strings.Contains(got, most) {
		t.Errorf("the upstream saw %q", got)
	}
}
