package doors

import (
	"bufio"
	"maps"
	"net"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"sync"
	"testing"
	"unicode/utf8"

	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	"github.com/google/go-cmp/cmp"
	"golang.org/x/net/http/httpguts"

	"github.com/chaperone-proxy/chaperone/internal/httpclean"
	"github.com/chaperone-proxy/chaperone/internal/testenv"
)

// receivedHead is the head of a request that an upstream receives.
type receivedHead struct {
	method, host, target string
	headers              map[string][]string // by name in lower case
}

// recordingUpstream is an upstream that keeps the head of the last request as it was on the
// wire, and answers 200.
type recordingUpstream struct {
	port uint16
	mu   sync.Mutex
	last *receivedHead
}

func newRecordingUpstream(f *testing.F) *recordingUpstream {
	f.Helper()
	listener := testenv.MustGet(new(net.ListenConfig).Listen(f.Context(), "tcp", "127.0.0.1:0"))(f)
	u := &recordingUpstream{port: netip.MustParseAddrPort(listener.Addr().String()).Port()}
	var running sync.WaitGroup
	running.Go(func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			running.Go(func() { u.serve(conn) })
		}
	})
	f.Cleanup(running.Wait)
	f.Cleanup(func() { _ = listener.Close() })
	return u
}

// serve answers the requests of a connection, which have no body.
func (u *recordingUpstream) serve(conn net.Conn) {
	defer conn.Close()
	in := bufio.NewReader(conn)
	for {
		r := &receivedHead{headers: map[string][]string{}}
		for first := true; ; first = false {
			line, err := in.ReadString('\n')
			if err != nil {
				return
			}
			if line = strings.TrimRight(line, "\r\n"); line == "" {
				break
			}
			if first {
				r.method, line, _ = strings.Cut(line, " ")
				r.target = strings.TrimSuffix(line, " HTTP/1.1")
				continue
			}
			name, value, _ := strings.Cut(line, ":")
			r.add(strings.ToLower(name), strings.TrimSpace(value))
		}
		u.mu.Lock()
		u.last = r
		u.mu.Unlock()
		if _, err := conn.Write([]byte("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")); err != nil {
			return
		}
	}
}

// take returns the last request and forgets it; nil without one.
func (u *recordingUpstream) take() *receivedHead {
	u.mu.Lock()
	defer u.mu.Unlock()
	r := u.last
	u.last = nil
	return r
}

// add adds a header or, over HTTP/1.1, the host.
func (r *receivedHead) add(name, value string) {
	if name == "host" {
		r.host = value
		return
	}
	r.headers[name] = append(r.headers[name], value)
}

// sentByEnvoy applies an answer to the headers that were asked about, as Envoy does
// (source/extensions/filters/http/ext_authz/ext_authz.cc): it sets, then removes
// names other than pseudo headers and host.
func sentByEnvoy(t *testing.T, asked []doorHeader, ok *authv3.OkHttpResponse) *receivedHead {
	t.Helper()
	if len(ok.GetQueryParametersToSet())+len(ok.GetQueryParametersToRemove()) > 0 {
		t.Fatalf("the answer changes query parameters, which callers escape in different ways: %v", ok)
	}
	headers := slices.Clone(asked)
	remove := func(name string) {
		headers = slices.DeleteFunc(headers, func(h doorHeader) bool { return h.name == name })
	}
	for _, option := range ok.GetHeaders() {
		name := strings.ToLower(option.GetHeader().GetKey())
		remove(name)
		headers = append(headers, doorHeader{name, option.GetHeader().GetValue()})
	}
	for _, name := range ok.GetHeadersToRemove() {
		if name = strings.ToLower(name); !strings.HasPrefix(name, ":") && name != "host" {
			remove(name)
		}
	}
	r := &receivedHead{headers: map[string][]string{}}
	for _, h := range headers {
		switch h.name {
		case ":method":
			r.method = h.value
		case ":authority":
			r.host = h.value
		case ":path":
			r.target = h.value
		case ":scheme":
		default:
			r.add(h.name, h.value)
		}
	}
	return r
}

// withLowerNames returns headers with names in lower case, as Envoy keeps them.
func withLowerNames(headers []doorHeader) []doorHeader {
	out := slices.Clone(headers)
	for i := range out {
		out[i].name = strings.ToLower(out[i].name)
	}
	return out
}

// readDoorHeaders reads headers, one a line, and reports whether both doors receive
// them. Host, upgrades, expectations and the framing of bodies are left out: they are
// compared by TestDoorsAgree, whose differences are listed.
func readDoorHeaders(text string) ([]doorHeader, bool) {
	if !utf8.ValidString(text) || len(text) > 4<<10 {
		return nil, false
	}
	var out []doorHeader
	for line := range strings.SplitSeq(text, "\n") {
		if line == "" {
			continue
		}
		name, value, found := strings.Cut(line, ":")
		value = strings.Trim(value, " \t")
		if !found || !httpguts.ValidHeaderFieldName(name) || !httpguts.ValidHeaderFieldValue(value) || len(out) == 40 {
			return nil, false
		}
		switch strings.ToLower(name) {
		case "host", "upgrade", "expect", "content-length", "transfer-encoding":
			return nil, false
		}
		out = append(out, doorHeader{name, value})
	}
	return out, true
}

// receivedDifferences are the headers in which what upstreams receive differs between
// the doors, with the reason.
var receivedDifferences = []struct {
	names      []string
	folded     bool // in every spelling that a server may take for the name
	credential bool // only where a credential is injected
	why        string
}{
	{
		names: []string{"connection", "te", "trailer", "http2-settings", "content-length", "keep-alive"},
		why:   "an HTTP implementation consumes them and writes its own: to remove them would break gRPC and the framing of bodies",
	},
	{
		names: []string{"x-forwarded-proto"},
		why:   "the answer sets the decided scheme in place of the plugin's value: Envoy finds no route without it",
	},
	{
		names: []string{"user-agent"},
		why:   "net/http sends the first of several alone, and none without a value; Envoy passes them on",
	},
	{
		names: []string{"cache-control"},
		why:   "net/http adds no-cache to a request with Pragma: no-cache (RFC 9111, section 5.4); Envoy passes both on as sent",
	},
	{
		names: []string{"accept-encoding", "grpc-accept-encoding", "range", "a-im"}, folded: true, credential: true,
		why: "the proxy searches answers for the credential and asks for what it can read; an ext_authz server does not see answers",
	},
}

// sanitised returns the headers to be compared, with cookies as servers split them.
func (r *receivedHead) sanitised(credential bool) map[string][]string {
	out := maps.Clone(r.headers)
	for name := range r.headers {
		for _, d := range receivedDifferences {
			same := func(listed string) bool { return name == listed || d.folded && httpclean.SameHeader(name, listed) }
			if slices.ContainsFunc(d.names, same) && (credential || !d.credential) {
				delete(out, name)
			}
		}
	}
	delete(out, "cookie")
	if cookies := r.cookies(); cookies != nil {
		out["cookie"] = cookies
	}
	return out
}

// cookies returns the cookies, split at semicolons and at commas, without empty ones.
func (r *receivedHead) cookies() []string {
	var out []string
	for _, value := range r.headers["cookie"] {
		for cookie := range strings.FieldsFuncSeq(value, func(c rune) bool { return c == ';' || c == ',' }) {
			if cookie = strings.TrimSpace(cookie); cookie != "" {
				out = append(out, cookie)
			}
		}
	}
	return out
}

// compareReceived fails where the upstream of a rule receives another request by one
// door than by the other, or what a plugin put into a credential's slot.
func compareReceived(t *testing.T, rule string, proxied, asked *receivedHead) {
	t.Helper()
	if (proxied == nil) != (asked == nil) {
		t.Fatalf("got %+v sent by the proxy and %+v by Envoy, want both or none", proxied, asked)
	}
	if proxied == nil {
		return
	}
	if proxied.method != asked.method || proxied.host != asked.host || proxied.target != asked.target {
		t.Errorf("got %s %s %s sent by the proxy and %s %s %s by Envoy, want the same",
			proxied.method, proxied.host, proxied.target, asked.method, asked.host, asked.target)
	}
	credential := rule != "none"
	if diff := cmp.Diff(proxied.sanitised(credential), asked.sanitised(credential)); diff != "" {
		t.Errorf("rule %s: the upstream receives other headers (-from the proxy, +from Envoy):\n%s", rule, diff)
	}
	for door, r := range map[string]*receivedHead{"the proxy": proxied, "Envoy": asked} {
		if got := r.slot(rule); credential && !slices.Equal(got, []string{slotValue}) {
			t.Errorf("got %q in the slot of the %s by %s, want the credential alone", got, rule, door)
		}
	}
}

// slot returns the values that a server may find in the slot of a credential.
func (r *receivedHead) slot(kind string) []string {
	var out []string
	add := func(pair string, isSlot func(name string) bool) {
		if name, value, _ := strings.Cut(pair, "="); isSlot(name) {
			out = append(out, value)
		}
	}
	switch kind {
	case "header":
		for name, values := range r.headers {
			if strings.ReplaceAll(name, "_", "-") == slotHeader {
				out = append(out, values...)
			}
		}
	case "query":
		_, query, _ := strings.Cut(r.target, "?")
		for pair := range strings.FieldsFuncSeq(query, func(c rune) bool { return c == '&' || c == ';' }) {
			add(pair, func(name string) bool {
				plain, err := url.QueryUnescape(name)
				return err == nil && strings.EqualFold(strings.TrimSpace(plain), slotParameter)
			})
		}
	case "cookie":
		for _, cookie := range r.cookies() {
			add(cookie, func(name string) bool { return strings.EqualFold(strings.Trim(name, "\t \""), slotCookie) })
		}
	}
	return out
}

// sanitisedSeeds are paths and headers that two implementations of sanitising could
// treat differently.
var sanitisedSeeds = [][2]string{
	{"a", "Cookie: a=1,\nCookie: , ;b=2"},
	{"a", "Cookie: a=1, session=mine, b=2\nCookie: session=mine; c=3"},
	{"a", "cookie: \"session\"=mine; \"session=mine\"; a=\"x,session=1;y\"\nCookie: SESSION = mine;; ,d"},
	{"a", "Cookie: session=mine"},
	{"a", "Connection: X-Second, x_third, Cookie, X-Api-Key\nX-Second: 1\nX_Second: 2\nX-Third: 3\nX_THIRD: 4\nCookie: a=1"},
	{"a", "Connection: close, Keep-Alive, te, X-Forwarded-Proto, Authorization\nconnection: a b,, X-Other\nTE: trailers\nAuthorization: mine\nX-Other: 1"},
	{"a", "X-Api-Key: mine\nx_api_key: mine\nX-API_KEY: mine\nX-Api-Keys: kept"},
	{"a?api_key=1&a=1&a=2&API_KEY=2&%61pi_key=3;api_key=4;b&&c=api_key%3D5&+api_key+=6", ""},
	{"a?api%5Fkey&api_key&a=%zz", "Query: api_key=1"},
	{"a", "X-HTTP-Method-Override: PUT\nx_http_method_override: PUT\nX-Original-URL: /b\nX_Rewrite_Url: /c\nForwarded: for=1\nX_Forwarded_For: 1\nX-Forwarded-Client-Cert: 1\nX-Forwarded-Proto: https\nX_Forwarded_Proto: https"},
	{"a", "Proxy-Authorization: Basic YQ==\nproxy_authorization: 1\nProxy-Connection: keep-alive\nTransfer_Encoding: chunked\nContent_Length: 5\nHTTP2_Settings: 1\nKeep_Alive: 1\nTrailer: X-A\nUpgrade_: 1"},
	{"a", "X-Chaperone-Route: weather/none\nx_chaperone_decision: 1\nX-Chaperone-New: 1"},
	{"a", "User-Agent: a\nUSER-AGENT: b\nPragma: no-cache\nAccept: a\naccept: b\nX-Empty:\nReferer: c"},
	{"a", "Content-Type: application/grpc\nGrpc-Timeout: 1S\nAccept-Encoding: gzip\nRange: bytes=0-1\nA_Im: x"},
}
