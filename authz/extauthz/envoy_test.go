package extauthz

import (
	"bufio"
	"context"
	"crypto/tls"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"text/template"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/chaperone-proxy/chaperone/authz"
	"github.com/chaperone-proxy/chaperone/internal/testenv"
)

// plane is a real Envoy in front of upstreams, with the sidecar beside it.
type plane struct {
	*house

	socket, accessLog string
	stop              func()            // ends the sidecar
	upstream          *testenv.Upstream // plain text, where Envoy's routes lead
	secure            *testenv.Upstream // TLS
	envoy             *testenv.Envoy
}

func newPlane(t *testing.T) *plane {
	t.Helper()
	testenv.Require(t, testenv.EnvoyServer())
	dir := t.TempDir()
	p := &plane{house: newHouse(t), socket: filepath.Join(dir, "run", "ext_authz.sock"), accessLog: filepath.Join(dir, "access.log")}
	p.start(t)
	anyone := func(*http.Request) bool { return true }
	p.upstream = testenv.MustUpstream(t, testenv.UpstreamConfig{Plain: true, Authorize: anyone})
	p.secure = testenv.MustUpstream(t, testenv.UpstreamConfig{Names: []string{"secure.weather.example", "old.weather.example"}, Authorize: anyone})
	authority := filepath.Join(dir, "ca.pem")
	testenv.Must(t, p.secure.CA.WriteFile(authority))
	type listener struct {
		Name       string
		Raw, HTTPS bool
	}
	var bootstrap strings.Builder
	testenv.Must(t, template.Must(template.ParseFiles("testdata/envoy.yaml.tmpl")).Execute(&bootstrap, map[string]any{
		"HTTP":   []listener{{Name: "folded"}, {Name: "raw", Raw: true}, {Name: "grpc", HTTPS: true}},
		"Socket": p.socket, "AccessLog": p.accessLog, "CA": authority,
		"Upstream": p.upstream.Addr.Port(), "TLSUpstream": p.secure.Addr.Port(),
	}))
	p.envoy = testenv.MustEnvoy(t, testenv.EnvoyConfig{Bootstrap: bootstrap.String()})
	return p
}

// start runs the sidecar's server on the socket.
func (p *plane) start(t *testing.T) {
	t.Helper()
	s := p.server(t, Config{Drain: time.Second})
	testenv.MustGet(s.Listen(t.Context(), "unix:"+p.socket))(t)
	p.stop = runServer(t, s)
}

// runServer runs s until the returned function or the test ends.
func runServer(t testing.TB, s *Server) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx); close(done) }()
	stop = func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("run: %v", err)
		}
	}
	t.Cleanup(stop)
	return stop
}

func (p *plane) address(t *testing.T, listener string) netip.AddrPort {
	t.Helper()
	return testenv.MustGet(p.envoy.Listener(t.Context(), listener))(t)
}

// send writes a request to Envoy byte for byte and returns its answer.
func (p *plane) send(t *testing.T, listener, request string) (*http.Response, string) {
	t.Helper()
	conn := testenv.MustGet(new(net.Dialer).DialContext(t.Context(), "tcp", p.address(t, listener).String()))(t)
	defer conn.Close()
	testenv.Must(t, conn.SetDeadline(time.Now().Add(time.Minute)))
	testenv.MustGet(io.WriteString(conn, request))(t)
	resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		t.Fatalf("%s: %v", request, err)
	}
	body := testenv.MustGet(io.ReadAll(resp.Body))(t)
	resp.Body.Close()
	return resp, string(body)
}

// get returns a request as a plugin sends it to an explicit proxy.
func get(url string, headers ...string) string {
	return "GET " + url + " HTTP/1.1\r\nhost: " + strings.Split(url, "/")[2] + "\r\nconnection: close\r\n" +
		strings.Join(append(headers, ""), "\r\n") + "\r\n"
}

func TestEnvoyHTTP(t *testing.T) {
	p := newPlane(t)
	for _, c := range []struct {
		name, request string
		host, target  string // as the upstream must see them
		header        string // of the upstream's request, with the credential
		want          []string
	}{
		{
			"the plugin's own authorization is replaced",
			get("https://api.weather.example/v1/forecast/berlin?days=3", "authorization: Bearer mine", "authorization: Bearer again"),
			"api.weather.example", "/v1/forecast/berlin?days=3", "Authorization",
			[]string{"Bearer " + canary},
		},
		{
			"the canonical bytes are forwarded",
			get("https://API.weather.example.:443/v1/f%6frecast/b%41rlin"),
			"api.weather.example", "/v1/forecast/bArlin", "Authorization",
			[]string{"Bearer " + canary},
		},
		{
			"query",
			get("https://maps.weather.example/tile?k%65y=mine&z=1&key=mine&a=2;KEY=mine&key=again"),
			"maps.weather.example", "/tile?z=1&a=2&key=" + canary + "%26a%3Db+%2B%25", "Authorization", nil,
		},
		{
			"cookie",
			get("https://shop.weather.example/", "cookie: theme=dark; sid=mine", "cookie: lang=de; sid=again"),
			"shop.weather.example", "/", "Cookie",
			[]string{"theme=dark; lang=de; sid=" + canary},
		},
		{
			"other spellings of the slot are removed",
			get("https://keys.weather.example/", "x-api-key: 1", "x_api_key: 2", "X-API_KEY: 3"),
			"keys.weather.example", "/", "X-Api-Key",
			[]string{canary},
		},
		{
			"bytes outside UTF-8 pass",
			get("https://a.tiles.weather.example/", "x-name: caf\xe9"),
			"a.tiles.weather.example", "/", "X-Name",
			[]string{"caf\xe9"},
		},
	} {
		for _, listener := range []string{"folded", "raw"} {
			t.Run(c.name+"/"+listener, func(t *testing.T) {
				p.upstream.Forget()
				resp, body := p.send(t, listener, c.request)
				seen := p.upstream.Requests()
				if resp.StatusCode != http.StatusOK || len(seen) != 1 {
					t.Fatalf("%s %s; the upstream saw %d requests", resp.Status, body, len(seen))
				}
				if seen[0].Host != c.host || seen[0].Target != c.target {
					t.Errorf("the upstream saw %s %s, want %s %s", seen[0].Host, seen[0].Target, c.host, c.target)
				}
				if diff := cmp.Diff(c.want, seen[0].Header[c.header]); diff != "" {
					t.Errorf("%s (-want +got):\n%s", c.header, diff)
				}
				for name := range seen[0].Header {
					if strings.HasPrefix(name, "X-Forwarded-") && name != "X-Forwarded-Proto" || strings.Contains(name, "_") {
						t.Errorf("the upstream saw %s", name)
					}
				}
			})
		}
	}
}

func TestEnvoyRemovesMisleadingHeaders(t *testing.T) {
	p := newPlane(t)
	_, body := p.send(t, "raw", get("https://a.tiles.weather.example/", "x-forwarded-host: evil", "x-forwarded-proto: evil", "x_forwarded_user: root",
		"x-original-url: /admin", "x-http-method-override: DELETE", "x-chaperone-plugin: mail", "forwarded: for=1", "keep: me"))
	seen := p.upstream.Requests()
	if len(seen) != 1 {
		t.Fatalf("the upstream saw %d requests: %s", len(seen), body)
	}
	names := []string{}
	for name := range seen[0].Header {
		names = append(names, name)
	}
	slices.Sort(names)
	if diff := cmp.Diff([]string{"Keep", "X-Envoy-Expected-Rq-Timeout-Ms", "X-Forwarded-Proto", "X-Request-Id"}, names); diff != "" {
		t.Errorf("headers (-want +got):\n%s", diff)
	}
	if got := seen[0].Header["X-Forwarded-Proto"]; !slices.Equal(got, []string{"https"}) {
		t.Errorf("x-forwarded-proto %q, want what was decided", got)
	}
}

func TestEnvoyRefuses(t *testing.T) {
	p := newPlane(t)
	for _, c := range []struct {
		name, request, reason string
		status                int
	}{
		{"host", get("https://evil.example/"), "destination_not_granted", 403},
		{"path", get("https://api.weather.example/admin"), "path_not_granted", 403},
		{"dot segment", get("https://api.weather.example/v1/forecast/../../admin"), "malformed_request", 400},
		{"scheme", get("http://api.weather.example/v1/forecast/berlin"), "destination_not_granted", 403},
		{"the route's plugin", get("https://a.tiles.weather.example/named-mail"), "identity_unknown", 403},
		{"stated addresses", get("https://inside.weather.example/"), "not_enforceable_here", 403},
		{"a credential that an answer cannot carry", get("https://bytes.weather.example/"), "not_enforceable_here", 403},
		{"upgrade", get("https://a.tiles.weather.example/", "upgrade: websocket", "connection: upgrade"), "method_not_granted", 403},
		{"CONNECT under a tls rule", "CONNECT secure.weather.example:443 HTTP/1.1\r\nhost: secure.weather.example:443\r\n\r\n", "destination_not_granted", 403},
		{"forged original path", get("https://api.weather.example/admin", "x-envoy-original-path: /v1/forecast/berlin"), "path_not_granted", 403},
		{"forged service", get("https://evil.example/", "x-envoy-downstream-service-cluster: trusted"), "destination_not_granted", 403},
	} {
		t.Run(c.name, func(t *testing.T) {
			resp, body := p.send(t, "raw", c.request)
			if resp.StatusCode != c.status || resp.Header.Get(authz.HeaderReason) != c.reason || resp.Header.Get(authz.HeaderDecision) == "" {
				t.Fatalf("%s %v %s, want %d %s", resp.Status, resp.Header, body, c.status, c.reason)
			}
			if got := resp.Header.Get("content-type"); got != authz.RefusalContentType {
				t.Errorf("content type %s", got)
			}
			var problem struct {
				Type     string
				Status   int
				Decision string
			}
			testenv.Must(t, json.Unmarshal([]byte(body), &problem))
			if problem.Status != c.status || !strings.HasSuffix(problem.Type, "/"+c.reason) || problem.Decision != resp.Header.Get(authz.HeaderDecision) {
				t.Errorf("body %s", body)
			}
		})
	}
	if _, _ = p.send(t, "raw", get("https://little.weather.example/")); p.upstream.Total() != 1 {
		t.Fatalf("the upstream saw %d requests, want the one within its limit", p.upstream.Total())
	}
	resp, _ := p.send(t, "raw", get("https://little.weather.example/"))
	if resp.StatusCode != 429 || resp.Header.Get("retry-after") != "3600" {
		t.Errorf("over the limit: %s, retry after %q", resp.Status, resp.Header.Get("retry-after"))
	}
	if p.upstream.Total() != 1 {
		t.Error("a refused request reached the upstream")
	}
}

// TestEnvoyOriginates sends plain http for a rule with tls.originate; a route
// that matches the :scheme of the answer uses a cluster with TLS.
func TestEnvoyOriginates(t *testing.T) {
	p := newPlane(t)
	resp, body := p.send(t, "folded", get("http://old.weather.example/originate"))
	seen := p.secure.Requests()
	if resp.StatusCode != http.StatusOK || len(seen) != 1 || p.upstream.Total() != 0 {
		t.Fatalf("%s %s; %d over TLS, %d in plain text", resp.Status, body, len(seen), p.upstream.Total())
	}
	if seen[0].SNI != "old.weather.example" || seen[0].Header.Get("authorization") != "Bearer "+canary {
		t.Errorf("the upstream saw %+v", seen[0])
	}
}

// TestEnvoyConnect opens a tunnel by another spelling of its granted name.
func TestEnvoyConnect(t *testing.T) {
	p := newPlane(t)
	resp, body := p.send(t, "raw", "CONNECT GIT.weather.example.:22 HTTP/1.1\r\nhost: GIT.weather.example.:22\r\nx-forwarded-host: evil\r\n\r\n"+
		"GET /open HTTP/1.1\r\nhost: inside\r\nconnection: close\r\n\r\n")
	if resp.StatusCode != http.StatusOK || !strings.Contains(body, `"host":"inside"`) {
		t.Errorf("%s %s", resp.Status, body)
	}
}

// TestEnvoyTCP opens TLS connections through the network filter.
func TestEnvoyTCP(t *testing.T) {
	p := newPlane(t)
	to := p.address(t, "tcp")
	p.engine.Install(compile(t, authz.Grant{
		Name: "weather", Plugin: "weather", NotAfter: testTime.Add(time.Hour),
		Rules: []authz.Rule{{ID: "tls", Reason: "test", To: authz.To{
			Scheme: authz.SchemeTLS, Hosts: []string{"secure.weather.example"}, Ports: []uint16{to.Port()},
		}}},
	}))
	open := func(name string) error {
		dialer := tls.Dialer{Config: &tls.Config{ServerName: name, RootCAs: p.secure.Pool(), MinVersion: tls.VersionTLS12}}
		ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
		defer cancel()
		conn, err := dialer.DialContext(ctx, "tcp", to.String())
		if err == nil {
			conn.Close()
		}
		return err
	}
	if err := open("secure.weather.example"); err != nil {
		t.Errorf("granted: %v", err)
	}
	if err := open("old.weather.example"); err == nil {
		t.Error("a server name that is not granted passed")
	}
	reasons := []string{}
	for _, r := range p.book.all() {
		if r.Kind == authz.KindDecision {
			reasons = append(reasons, r.Scheme+" "+r.Host+" "+r.Reason)
		}
	}
	want := []string{"tls secure.weather.example granted", "tls old.weather.example destination_not_granted"}
	if diff := cmp.Diff(want, reasons); diff != "" {
		t.Errorf("decisions (-want +got):\n%s", diff)
	}
}

// TestEnvoyGRPC calls with a real gRPC client: a bidirectional stream with an
// injected credential and trailers, and refusals as gRPC statuses.
func TestEnvoyGRPC(t *testing.T) {
	p := newPlane(t)
	p.engine.Install(compile(t, authz.Grant{
		Name: "weather", Plugin: "weather", NotAfter: testTime.Add(time.Hour),
		Rules: []authz.Rule{{
			ID: "chat", Reason: "test", To: authz.To{Hosts: []string{"rpc.weather.example"}},
			Methods: []string{"POST"}, Paths: []string{testenv.EchoChat}, Credential: "bearer",
		}},
		Credentials: []authz.CredentialSpec{{
			Name: "bearer", Vault: authz.VaultPath{Path: "secret/data/weather"},
			Inject: authz.Inject{Header: "Authorization", Value: "Bearer {api_key}"},
		}},
	}))
	conn := testenv.MustGet(grpc.NewClient("passthrough:///"+p.address(t, "grpc").String(),
		grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithAuthority("rpc.weather.example")))(t)
	defer conn.Close()
	ctx, cancel := context.WithTimeout(metadata.AppendToOutgoingContext(t.Context(), "authorization", "Bearer mine"), 10*time.Second)
	defer cancel()

	stream := testenv.MustGet(conn.NewStream(ctx, testenv.EchoStream(), testenv.EchoChat))(t)
	for range 3 {
		testenv.Must(t, stream.SendMsg(wrapperspb.String("hello")))
		testenv.Must(t, stream.RecvMsg(new(wrapperspb.StringValue)))
	}
	testenv.Must(t, stream.CloseSend())
	if err := stream.RecvMsg(new(wrapperspb.StringValue)); err != io.EOF { //nolint:errorlint // gRPC returns it bare
		t.Fatalf("after the last message: %v", err)
	}
	header := testenv.MustGet(stream.Header())(t)
	if got := header.Get("x-seen-authorization-count"); !slices.Equal(got, []string{"1"}) {
		t.Errorf("the upstream saw %v authorizations, want 1", got)
	}
	if got := stream.Trailer().Get("x-echoed"); !slices.Equal(got, []string{"3"}) {
		t.Errorf("trailer x-echoed %v", got)
	}

	var got metadata.MD
	err := conn.Invoke(ctx, testenv.EchoUnary, wrapperspb.String("hello"), new(wrapperspb.StringValue), grpc.Header(&got), grpc.Trailer(&got))
	s := status.Convert(err)
	if s.Code() != codes.PermissionDenied || !strings.HasPrefix(s.Message(), "path_not_granted: ") {
		t.Errorf("refused with %v %q", s.Code(), s.Message())
	}
	if !slices.Equal(got.Get(authz.HeaderReason), []string{"path_not_granted"}) {
		t.Errorf("refused with %v", got)
	}
}

// TestEnvoyMetadata reads the decision from Envoy's access log.
func TestEnvoyMetadata(t *testing.T) {
	p := newPlane(t)
	p.send(t, "raw", get("https://a.tiles.weather.example/"))
	p.send(t, "raw", get("https://evil.example/"))
	var lines []string
	for deadline := time.Now().Add(2 * time.Minute); len(lines) < 2; { // Envoy flushes its log every 10 seconds
		if time.Now().After(deadline) {
			t.Fatalf("the access log holds %q", lines)
		}
		testenv.MustGet(p.envoy.Admin(t.Context(), http.MethodPost, "/reopen_logs"))(t)
		text, err := os.ReadFile(p.accessLog)
		if err == nil {
			lines = strings.Fields(strings.TrimSpace(string(text)))
		}
	}
	records := p.book.all()
	var granted, refused map[string]any
	testenv.Must(t, json.Unmarshal([]byte(lines[0]), &granted))
	testenv.Must(t, json.Unmarshal([]byte(lines[1]), &refused))
	delete(granted, "ext_authz_duration")
	delete(refused, "ext_authz_duration")
	want := map[string]any{
		"decision": records[0].Decision, "plugin": "weather", "reason": "granted", "grant": "weather", "rule": "free", "generation": 1.0,
	}
	if diff := cmp.Diff(want, granted); diff != "" {
		t.Errorf("metadata of what was granted (-want +got):\n%s", diff)
	}
	if refused["reason"] != "destination_not_granted" || refused["decision"] == "" {
		t.Errorf("metadata of a refusal: %v", refused)
	}
}

// TestEnvoyFailsClosed ends the sidecar under an Envoy: whatever comes then is
// refused, until the sidecar is back.
func TestEnvoyFailsClosed(t *testing.T) {
	p := newPlane(t)
	granted := get("https://a.tiles.weather.example/")
	if resp, body := p.send(t, "raw", granted); resp.StatusCode != http.StatusOK {
		t.Fatalf("%s %s", resp.Status, body)
	}
	p.stop()
	for range 20 {
		if resp, body := p.send(t, "raw", granted); resp.StatusCode < 400 {
			t.Fatalf("without a sidecar: %s %s", resp.Status, body)
		}
	}
	if got := p.upstream.Total(); got != 1 {
		t.Errorf("the upstream saw %d requests, want 1", got)
	}
	p.start(t)
	p.until(t, granted, func(resp *http.Response) bool { return resp.StatusCode == http.StatusOK })
}

// until sends a request until it is answered as wanted.
func (p *plane) until(t *testing.T, request string, wanted func(*http.Response) bool) {
	t.Helper()
	for deadline := time.Now().Add(2 * time.Minute); ; {
		resp, body := p.send(t, "raw", request)
		if wanted(resp) {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("still answered %s %v %s", resp.Status, resp.Header, body)
		}
	}
}

// TestEnvoySlowCredential lets a credential take longer than Envoy waits: what
// it gets is a refusal, in time, and not an error.
func TestEnvoySlowCredential(t *testing.T) {
	p := newPlane(t)
	p.stop()
	source := p.slowly(t)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	go func() {
		for {
			select {
			case <-source.asked:
			case <-ctx.Done():
				return
			}
		}
	}()
	p.start(t)
	p.until(t, get("https://api.weather.example/v1/forecast/berlin"), func(resp *http.Response) bool {
		return resp.StatusCode == http.StatusServiceUnavailable && resp.Header.Get(authz.HeaderReason) == "credential_unavailable"
	})
	if got := p.upstream.Total(); got != 0 {
		t.Errorf("the upstream saw %d requests", got)
	}
}
