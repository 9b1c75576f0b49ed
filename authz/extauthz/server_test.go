package extauthz

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io/fs"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/mem"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/chaperone-proxy/chaperone/authz"
	"github.com/chaperone-proxy/chaperone/internal/testenv"
)

// serve runs a server on address and returns where it listens.
func (h *house) serve(t testing.TB, cfg Config, address string) net.Addr {
	t.Helper()
	s := h.server(t, cfg)
	addr := testenv.MustGet(s.Listen(t.Context(), address))(t)
	runServer(t, s)
	return addr
}

// dial returns a connection to a server.
func dial(t testing.TB, addr net.Addr, security credentials.TransportCredentials) *grpc.ClientConn {
	t.Helper()
	target := "passthrough:///" + addr.String()
	if addr.Network() == "unix" {
		target = "unix:" + addr.String()
	}
	conn := testenv.MustGet(grpc.NewClient(target, grpc.WithTransportCredentials(security)))(t)
	t.Cleanup(func() { conn.Close() })
	return conn
}

func socketIn(t testing.TB) string { return filepath.Join(t.TempDir(), "run", "ext_authz.sock") }

// call asks over a connection.
func call(t testing.TB, conn *grpc.ClientConn, in *authv3.CheckRequest) *authv3.CheckResponse {
	t.Helper()
	out, err := authv3.NewAuthorizationClient(conn).Check(t.Context(), in)
	if err != nil {
		t.Fatal(err)
	}
	checkAnswer(t, out)
	return out
}

func withCredential() *authv3.CheckRequest {
	return envoyCheck("GET", "https", "api.weather.example", "/v1/forecast/berlin")
}

func withoutCredential() *authv3.CheckRequest {
	return envoyCheck("GET", "https", "a.tiles.weather.example", "/")
}

// TestTransports asks over each kind of transport: who may be handed a
// credential depends on it alone.
func TestTransports(t *testing.T) {
	ours := testenv.MustGet(testenv.NewCA("callers"))(t)
	other := testenv.MustGet(testenv.NewCA("somebody else"))(t)
	server := testenv.MustGet(ours.Issue("127.0.0.1"))(t)
	envoy := testenv.MustGet(url.Parse("spiffe://cluster/envoy"))(t)
	mutual := &tls.Config{Certificates: []tls.Certificate{server}, ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: ours.Pool(), MinVersion: tls.VersionTLS13}
	voluntary := mutual.Clone()
	voluntary.ClientAuth = tls.VerifyClientCertIfGiven
	unverified := mutual.Clone()
	unverified.ClientAuth, unverified.ClientCAs = tls.RequireAnyClientCert, nil
	oneWay := mutual.Clone()
	oneWay.ClientAuth = tls.NoClientCert
	client := func(pairs ...tls.Certificate) credentials.TransportCredentials {
		return credentials.NewTLS(&tls.Config{RootCAs: ours.Pool(), Certificates: pairs, ServerName: "127.0.0.1", MinVersion: tls.VersionTLS13})
	}
	named := testenv.MustGet(ours.IssueFrom(&x509.Certificate{
		URIs: []*url.URL{envoy}, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}, NotAfter: time.Now().Add(time.Hour),
	}))(t)
	plugin := testenv.MustGet(ours.Issue("plugin.weather.example"))(t)
	stranger := testenv.MustGet(other.Issue("envoy"))(t)

	for _, c := range []struct {
		name    string
		cfg     Config
		address string
		client  credentials.TransportCredentials
		want    string // for a rule with a credential; "" when there is no connection
	}{
		{"unix socket", Config{}, "unix:" + socketIn(t), insecure.NewCredentials(), "granted"},
		{"TCP", Config{}, "127.0.0.1:0", insecure.NewCredentials(), "not_enforceable_here"},
		{"mutual TLS", Config{TLS: mutual}, "127.0.0.1:0", client(plugin), "granted"},
		{"mutual TLS, a named caller", Config{TLS: mutual, Callers: []string{"spiffe://cluster/envoy"}}, "127.0.0.1:0", client(named), "granted"},
		{"mutual TLS, another caller", Config{TLS: mutual, Callers: []string{"spiffe://cluster/envoy"}}, "127.0.0.1:0", client(plugin), "not_enforceable_here"},
		{"mutual TLS, another authority", Config{TLS: mutual}, "127.0.0.1:0", client(stranger), ""},
		{"mutual TLS, no certificate", Config{TLS: mutual}, "127.0.0.1:0", client(), ""},
		{"TLS with a voluntary certificate, none", Config{TLS: voluntary}, "127.0.0.1:0", client(), "not_enforceable_here"},
		{"TLS with a voluntary certificate", Config{TLS: voluntary}, "127.0.0.1:0", client(plugin), "granted"},
		{"TLS with an unverified certificate", Config{TLS: unverified}, "127.0.0.1:0", client(stranger), "not_enforceable_here"},
		{"TLS", Config{TLS: oneWay}, "127.0.0.1:0", client(plugin), "not_enforceable_here"},
		{"plain text to TLS", Config{TLS: mutual}, "127.0.0.1:0", insecure.NewCredentials(), ""},
		{"unix socket of a server with TLS on TCP", Config{TLS: mutual}, "unix:" + socketIn(t), insecure.NewCredentials(), "granted"},
	} {
		t.Run(c.name, func(t *testing.T) {
			conn := dial(t, newHouse(t).serve(t, c.cfg, c.address), c.client)
			if c.want == "" {
				if out, err := authv3.NewAuthorizationClient(conn).Check(t.Context(), withCredential()); err == nil {
					t.Fatalf("answered %v", out)
				}
				return
			}
			out := call(t, conn, withCredential())
			if got := reasonOf(out); got != c.want {
				t.Errorf("a rule with a credential: %s, want %s", got, c.want)
			}
			if got := valueOf(out, "authorization"); (got == "Bearer "+canary) != (c.want == "granted") {
				t.Errorf("authorization %q", got)
			}
			if got := reasonOf(call(t, conn, withoutCredential())); got != "granted" {
				t.Errorf("a rule without a credential: %s", got)
			}
		})
	}
}

// TestSocketOfAnotherUser opens the socket's mode to everybody: still only the
// sidecar's own user and root are handed credentials.
func TestSocketOfAnotherUser(t *testing.T) {
	testenv.Require(t, testenv.Superuser())
	path := socketIn(t)
	addr := newHouse(t).serve(t, Config{}, "unix:"+path)
	testenv.Must(t, os.Chmod(path, 0o666))
	testenv.Must(t, os.Chmod(filepath.Dir(filepath.Dir(filepath.Dir(path))), 0o755)) // the test's own folder
	for uid, want := range map[int]string{0: "granted", 65534: "not_enforceable_here"} {
		conn := testenv.MustGet(grpc.NewClient("passthrough:///"+addr.String(), grpc.WithTransportCredentials(insecure.NewCredentials()),
			grpc.WithContextDialer(func(ctx context.Context, path string) (net.Conn, error) { return dialAs(ctx, uid, path) })))(t)
		if got := reasonOf(call(t, conn, withCredential())); got != want {
			t.Errorf("uid %d: %s, want %s", uid, got, want)
		}
		conn.Close()
	}
}

// dialAs connects to a unix socket as another user: a thread of its own takes
// that user's id, and ends with its goroutine.
func dialAs(ctx context.Context, uid int, path string) (net.Conn, error) {
	type result struct {
		conn net.Conn
		err  error
	}
	done := make(chan result)
	go func() {
		runtime.LockOSThread()
		if _, _, errno := syscall.RawSyscall(syscall.SYS_SETRESUID, ^uintptr(0), uintptr(uid), ^uintptr(0)); errno != 0 {
			done <- result{nil, errno}
			return
		}
		conn, err := new(net.Dialer).DialContext(ctx, "unix", path)
		done <- result{conn, err}
	}()
	r := <-done
	return r.conn, r.err
}

// TestUndecodable sends what is not a CheckRequest: the answer is a refusal,
// not a gRPC error, which a filter that fails open would pass.
func TestUndecodable(t *testing.T) {
	h := newHouse(t)
	conn := dial(t, h.serve(t, Config{}, "unix:"+socketIn(t)), insecure.NewCredentials())
	badUTF8 := []byte{0x0a, 0x06, 0x0a, 0x04, 0x22, 0x02, 0xff, 0xfe} // attributes.source.principal
	large := testenv.MustGet(proto.Marshal(envoyCheck("GET", "https", "a.tiles.weather.example", "/", "x-a", strings.Repeat("a", 5<<20))))(t)
	for _, wire := range [][]byte{badUTF8, {0x0a, 0xff}, {0xff, 0xff, 0xff}, large} {
		shown := wire[:min(len(wire), 8)]
		out := new(authv3.CheckResponse)
		err := conn.Invoke(t.Context(), "/"+ServiceName+"/Check", wire, out, grpc.ForceCodecV2(rawRequest{}))
		if err != nil {
			t.Fatalf("%x: %v", shown, err)
		}
		checkAnswer(t, out)
		if got := reasonOf(out); got != "malformed_request" {
			t.Errorf("%x: %s", shown, got)
		}
	}
	if got := len(h.book.all()); got != 4 {
		t.Errorf("%d records, want 4", got)
	}
}

// TestWhatFails breaks what is behind the door: each ends in a refusal
// with its reason, and none in a gRPC error.
func TestWhatFails(t *testing.T) {
	for _, c := range []struct {
		name  string
		spoil func(*house) context.Context
		want  string
	}{
		{"audit", func(h *house) context.Context { h.book.fail = errors.New("disk full"); return nil }, "audit_unavailable"},
		{"a panic", func(h *house) context.Context { h.book.panics = true; return nil }, "not_ready"},
		{"no credential", func(h *house) context.Context { clear(h.leases); return nil }, "credential_unavailable"},
		{"no policy", func(h *house) context.Context { *h.engine = authz.Engine{}; return nil }, "not_ready"},
		{"a caller that gave up", func(*house) context.Context {
			ctx, cancel := context.WithCancel(trustedContext(t.Context()))
			cancel()
			return ctx
		}, "credential_unavailable"},
	} {
		h := newHouse(t)
		var told []authz.Refusal
		s := h.server(t, Config{Refused: func(r authz.Refusal) { told = append(told, r) }})
		ctx := c.spoil(h)
		if ctx == nil {
			ctx = trustedContext(t.Context())
		}
		out, err := s.Check(ctx, withCredential())
		if err != nil {
			t.Fatalf("%s: %v", c.name, err)
		}
		checkAnswer(t, out)
		if got := reasonOf(out); got != c.want {
			t.Errorf("%s: %s, want %s", c.name, got, c.want)
		}
		if c.name != "a panic" && (len(told) != 1 || told[0].Reason.String() != c.want) {
			t.Errorf("%s: refusals %v", c.name, told)
		}
		s.Close()
	}
}

// TestRecords looks at what one access leaves in the audit log.
func TestRecords(t *testing.T) {
	h := newHouse(t)
	s := h.server(t, Config{})
	defer s.Close()
	granted := ask(t, s, envoyCheck("GET", "https", "api.weather.example", "/v1/forecast/berlin?days=3",
		"traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"))
	ask(t, s, envoyCheck("GET", "https", "evil.example", "/"))
	ask(t, s, envoyCheck("GET", "https", "api.weather.example", "/a/../b?secret=1"))
	records := h.book.all()
	if len(records) != 4 {
		t.Fatalf("%d records, want 4", len(records))
	}
	decision, end, refused, malformed := records[0], records[1], records[2], records[3]
	if decision.Kind != authz.KindDecision || end.Kind != authz.KindEnd || decision.Decision != end.Decision {
		t.Errorf("a granted access has %s and %s", decision.Kind, end.Kind)
	}
	if decision.Door != authz.DoorExtAuthz || decision.Host != "api.weather.example" || decision.Query != "days=3" || !decision.Allowed ||
		decision.TraceID != "0af7651916cd43dd8448eb211c80319c" || decision.UID != -1 || decision.Credential != "bearer" {
		t.Errorf("decision %+v", decision)
	}
	if id := granted.GetDynamicMetadata().GetFields()["decision"].GetStringValue(); id != decision.Decision {
		t.Errorf("metadata has decision %s, the log %s", id, decision.Decision)
	}
	if refused.Allowed || refused.Reason != "destination_not_granted" || malformed.Reason != "malformed_request" {
		t.Errorf("refusals %+v %+v", refused, malformed)
	}
	for _, r := range records {
		if strings.Contains(strings.Join([]string{r.Detail, r.Path, r.Query, r.Lease, r.Host}, " "), canary) {
			t.Errorf("the record holds the credential: %+v", r)
		}
	}
	if strings.Contains(malformed.Detail+malformed.Path+malformed.Host, "secret=1") {
		t.Errorf("the record of a malformed request holds its query: %+v", malformed)
	}
}

// TestRevoked revokes access between two checks.
func TestRevoked(t *testing.T) {
	h := newHouse(t)
	conn := dial(t, h.serve(t, Config{}, "unix:"+socketIn(t)), insecure.NewCredentials())
	if got := reasonOf(call(t, conn, withCredential())); got != "granted" {
		t.Fatal(got)
	}
	h.engine.Revoke(authz.Revocation{ID: "1", Plugin: "weather", Level: authz.LevelQuarantine, Reason: "test", At: testTime})
	if got := reasonOf(call(t, conn, withCredential())); got != "revoked" {
		t.Errorf("after the revocation: %s", got)
	}
	h.engine.Restore("1")
	if got := reasonOf(call(t, conn, withCredential())); got != "granted" {
		t.Errorf("after the restoration: %s", got)
	}
}

// TestHealth asks grpc.health.v1 before the sidecar is ready, then, and while
// it drains.
func TestHealth(t *testing.T) {
	h := newHouse(t)
	var mu sync.Mutex
	ready := false
	s := h.server(t, Config{Ready: func() bool { mu.Lock(); defer mu.Unlock(); return ready }})
	addr := testenv.MustGet(s.Listen(t.Context(), "unix:"+socketIn(t)))(t)
	stop := runServer(t, s)
	client := grpc_health_v1.NewHealthClient(dial(t, addr, insecure.NewCredentials()))
	check := func(want grpc_health_v1.HealthCheckResponse_ServingStatus) {
		t.Helper()
		for _, service := range []string{"", ServiceName} {
			out, err := client.Check(t.Context(), &grpc_health_v1.HealthCheckRequest{Service: service})
			if err != nil || out.GetStatus() != want {
				t.Errorf("%q: %v %v, want %v", service, out.GetStatus(), err, want)
			}
		}
	}
	check(grpc_health_v1.HealthCheckResponse_NOT_SERVING)
	if _, err := client.Check(t.Context(), &grpc_health_v1.HealthCheckRequest{Service: "other"}); status.Code(err) != codes.NotFound {
		t.Errorf("another service: %v", err)
	}
	watch := testenv.MustGet(client.Watch(t.Context(), &grpc_health_v1.HealthCheckRequest{Service: ServiceName}))(t)
	next := func(want grpc_health_v1.HealthCheckResponse_ServingStatus) {
		t.Helper()
		out, err := watch.Recv()
		if err != nil || out.GetStatus() != want {
			t.Fatalf("watch: %v %v, want %v", out.GetStatus(), err, want)
		}
	}
	next(grpc_health_v1.HealthCheckResponse_NOT_SERVING)
	mu.Lock()
	ready = true
	mu.Unlock()
	next(grpc_health_v1.HealthCheckResponse_SERVING)
	check(grpc_health_v1.HealthCheckResponse_SERVING)
	begun := time.Now()
	mu.Lock()
	ready = false
	mu.Unlock()
	check(grpc_health_v1.HealthCheckResponse_NOT_SERVING) // at once, where a watch waits
	stop()                                                // a watch does not hold up the drain
	if took := time.Since(begun); took > time.Minute {
		t.Errorf("the drain took %v", took)
	}
	if out, err := s.health.Check(t.Context(), &grpc_health_v1.HealthCheckRequest{}); err != nil || out.GetStatus() != grpc_health_v1.HealthCheckResponse_NOT_SERVING {
		t.Errorf("after the drain: %v %v", out.GetStatus(), err)
	}
}

// slow is a source of credentials that answers on command.
type slow struct{ asked, answer chan struct{} }

func (s slow) Credential(ctx context.Context, _ authz.CredentialRef) (authz.Credential, error) {
	s.asked <- struct{}{}
	select {
	case <-s.answer:
		return authz.Credential{Fields: leases{"api_key": authz.NewSecret(canary)}, Generation: 1}, nil
	case <-ctx.Done():
		return authz.Credential{}, ctx.Err()
	}
}

func (h *house) slowly(t *testing.T) slow {
	t.Helper()
	s := slow{make(chan struct{}), make(chan struct{})}
	h.gate = testenv.MustGet(authz.NewGate(authz.GateConfig{
		Engine: h.engine, Ledger: authz.NewLedger(), Recorder: h.book, Credentials: s, Now: func() time.Time { return testTime },
	}))(t)
	return s
}

// TestDrain ends the server with a check in flight, which is answered; and with
// one that is never going to be, which does not hold it up for longer than
// Config.Drain.
func TestDrain(t *testing.T) {
	for _, answered := range []bool{true, false} {
		h := newHouse(t)
		source := h.slowly(t)
		s := h.server(t, Config{Drain: 200 * time.Millisecond})
		if answered {
			s.cfg.Drain = time.Minute
		}
		addr := testenv.MustGet(s.Listen(t.Context(), "unix:"+socketIn(t)))(t)
		stop := runServer(t, s)
		conn := dial(t, addr, insecure.NewCredentials())
		result := make(chan error, 1)
		go func() {
			out, err := authv3.NewAuthorizationClient(conn).Check(t.Context(), withCredential())
			if err == nil && reasonOf(out) != "granted" {
				err = errors.New(reasonOf(out))
			}
			result <- err
		}()
		<-source.asked
		stopped := make(chan struct{})
		go func() { stop(); close(stopped) }()
		if answered {
			close(source.answer)
		}
		if err := <-result; (err == nil) != answered {
			t.Errorf("a check in flight: %v", err)
		}
		<-stopped
	}
}

// TestDeadline obeys the caller's deadline and cancellation: work stops.
func TestDeadline(t *testing.T) {
	h := newHouse(t)
	source := h.slowly(t)
	conn := dial(t, h.serve(t, Config{}, "unix:"+socketIn(t)), insecure.NewCredentials())
	ctx, cancel := context.WithCancel(t.Context())
	result := make(chan error, 1)
	go func() {
		_, err := authv3.NewAuthorizationClient(conn).Check(ctx, withCredential())
		result <- err
	}()
	<-source.asked
	cancel()
	if err := <-result; status.Code(err) != codes.Canceled {
		t.Errorf("cancelled: %v", err)
	}
	for deadline := time.Now().Add(2 * time.Minute); len(h.book.all()) == 0; {
		if time.Now().After(deadline) {
			t.Fatal("the check goes on after its caller has gone")
		}
		time.Sleep(time.Millisecond)
	}
	if r := h.book.all()[0]; r.Allowed || r.Reason != "credential_unavailable" {
		t.Errorf("recorded %+v", r)
	}
}

// TestSlowCredential lets a credential take longer than the caller waits: the
// answer is a refusal, in time.
func TestSlowCredential(t *testing.T) {
	h := newHouse(t)
	source := h.slowly(t)
	conn := dial(t, h.serve(t, Config{}, "unix:"+socketIn(t)), insecure.NewCredentials())
	answered := make(chan struct{})
	defer close(answered)
	go func() {
		for {
			select {
			case <-source.asked:
			case <-answered:
				return
			}
		}
	}()
	out := checkWithin(t, conn, 5*time.Second)
	checkAnswer(t, out)
	if got := reasonOf(out); got != "credential_unavailable" {
		t.Errorf("answered %s", got)
	}
}

// checkWithin asks with a deadline. The server answers a tenth before that; on a machine
// that is too busy for it, the call is made again with a longer one.
func checkWithin(t *testing.T, conn *grpc.ClientConn, wait time.Duration) *authv3.CheckResponse {
	t.Helper()
	for ; ; wait *= 2 {
		ctx, cancel := context.WithTimeout(t.Context(), wait)
		out, err := authv3.NewAuthorizationClient(conn).Check(ctx, withCredential())
		cancel()
		if err == nil {
			return out
		}
		if status.Code(err) != codes.DeadlineExceeded || wait > time.Minute {
			t.Fatalf("Check() = %v within %s, want an answer", err, wait)
		}
	}
}

func TestSocket(t *testing.T) {
	h := newHouse(t)
	mode := func(path string) fs.FileMode { return testenv.MustGet(os.Stat(path))(t).Mode().Perm() }
	listen := func(t *testing.T, cfg Config, path string) error {
		s := h.server(t, cfg)
		t.Cleanup(s.Close)
		_, err := s.Listen(t.Context(), "unix:"+path)
		return err
	}
	t.Run("only its own user", func(t *testing.T) {
		path := socketIn(t)
		testenv.Must(t, listen(t, Config{}, path))
		if got := mode(path); got != 0o600 {
			t.Errorf("mode %o", got)
		}
		if err := listen(t, Config{}, path); err == nil || !strings.Contains(err.Error(), "in use") {
			t.Errorf("a second server: %v", err)
		}
	})
	t.Run("a group", func(t *testing.T) {
		testenv.Require(t, testenv.Superuser())
		path := socketIn(t)
		testenv.Must(t, listen(t, Config{Group: "65534"}, path))
		stat, _ := testenv.MustGet(os.Stat(path))(t).Sys().(*syscall.Stat_t)
		if got := mode(path); got != 0o660 || stat.Gid != 65534 {
			t.Errorf("mode %o of group %d", got, stat.Gid)
		}
		if err := listen(t, Config{Group: "no-such-group"}, socketIn(t)); err == nil || !strings.Contains(err.Error(), "no-such-group") {
			t.Errorf("an unknown group: %v", err)
		}
	})
	t.Run("stale", func(t *testing.T) {
		path := filepath.Join(t.TempDir(), "x.sock")
		listener := testenv.MustGet(net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"}))(t)
		listener.SetUnlinkOnClose(false)
		listener.Close()
		testenv.Must(t, listen(t, Config{}, path))
	})
	t.Run("not a socket", func(t *testing.T) {
		path := filepath.Join(t.TempDir(), "x.sock")
		testenv.Must(t, os.WriteFile(path, []byte("precious"), 0o600))
		if err := listen(t, Config{}, path); err == nil {
			t.Error("listens where a file is")
		}
		if text, err := os.ReadFile(path); err != nil || string(text) != "precious" {
			t.Errorf("the file is %q, %v", text, err)
		}
	})
	t.Run("replaceable directory", func(t *testing.T) {
		shared, foreign, sticky := filepath.Join(t.TempDir(), "shared"), filepath.Join(t.TempDir(), "foreign"), filepath.Join(t.TempDir(), "sticky")
		for dir, mode := range map[string]fs.FileMode{shared: 0o777, foreign: 0o755, sticky: 0o777 | fs.ModeSticky} {
			testenv.Must(t, os.MkdirAll(filepath.Join(dir, "own"), 0o755))
			testenv.Must(t, os.Chmod(dir, mode))
		}
		refused := []string{shared, filepath.Join(shared, "own"), filepath.Join(shared, "missing"), sticky}
		if os.Geteuid() == 0 {
			testenv.Must(t, os.Chown(foreign, 65534, -1))
			refused = append(refused, foreign, filepath.Join(foreign, "own"))
		}
		for _, dir := range refused {
			if err := listen(t, Config{}, filepath.Join(dir, "x.sock")); err == nil || !strings.Contains(err.Error(), filepath.Base(filepath.Dir(dir))) {
				t.Errorf("Listen in %s = %v, want an error that names the directory", dir, err)
			}
		}
		testenv.Must(t, listen(t, Config{}, filepath.Join(sticky, "own", "x.sock")))
		testenv.Must(t, listen(t, Config{PluginElsewhere: true}, filepath.Join(shared, "own", "x.sock")))
		if err := listen(t, Config{PluginElsewhere: true}, filepath.Join(shared, "x.sock")); err == nil {
			t.Error("Listen in a directory that others may write to = nil, want an error")
		}
	})
	for name, address := range map[string]string{
		"relative": "unix:x.sock", "abstract": "unix:@x", "empty": "unix:", "no port": "127.0.0.1", "nothing": "",
	} {
		s := h.server(t, Config{})
		if addr, err := s.Listen(t.Context(), address); err == nil {
			t.Errorf("%s: listens on %v", name, addr)
		}
		s.Close()
	}
}

// TestBounded fills every slot of a listener: a further connection waits until
// one is closed.
func TestBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		pipes := &pipeListener{conns: make(chan net.Conn, 3), closed: make(chan struct{})}
		listener := limitConns(pipes, 2)
		for range 3 {
			near, far := net.Pipe()
			t.Cleanup(func() { near.Close(); far.Close() })
			pipes.conns <- far
		}
		first := testenv.MustGet(listener.Accept())(t)
		testenv.MustGet(listener.Accept())(t)
		accepted := make(chan error, 1)
		go func() { _, err := listener.Accept(); accepted <- err }()
		synctest.Wait()
		if len(accepted) != 0 {
			t.Fatal("a third connection was accepted")
		}
		first.Close()
		first.Close() // twice gives up one slot
		if err := <-accepted; err != nil {
			t.Fatal(err)
		}
		go func() { _, err := listener.Accept(); accepted <- err }()
		synctest.Wait()
		listener.Close()
		if err := <-accepted; !errors.Is(err, net.ErrClosed) {
			t.Errorf("after Close: %v", err)
		}
	})
}

func TestConfigIsComplete(t *testing.T) {
	h := newHouse(t)
	ready := func() bool { return true }
	for name, cfg := range map[string]Config{
		"plugin": {Gate: h.gate, Ready: ready}, "gate": {Plugin: "weather", Ready: ready}, "ready": {Plugin: "weather", Gate: h.gate},
	} {
		if _, err := New(cfg); err == nil {
			t.Errorf("made without %s", name)
		}
	}
	s := h.server(t, Config{})
	if err := s.Run(t.Context()); err == nil {
		t.Error("runs without a listener")
	}
	s.Close()
}

// pipeListener accepts what it is given.
type pipeListener struct {
	conns  chan net.Conn
	closed chan struct{}
}

func (p *pipeListener) Accept() (net.Conn, error) {
	select {
	case conn := <-p.conns:
		return conn, nil
	case <-p.closed:
		return nil, net.ErrClosed
	}
}

func (p *pipeListener) Close() error   { close(p.closed); return nil }
func (p *pipeListener) Addr() net.Addr { return &net.UnixAddr{Name: "pipe", Net: "unix"} }

// rawRequest is a codec that sends bytes as they are.
type rawRequest struct{}

func (rawRequest) Name() string { return "proto" }

func (rawRequest) Marshal(v any) (mem.BufferSlice, error) {
	wire, ok := v.([]byte)
	if !ok {
		return nil, errors.New("not bytes")
	}
	return mem.BufferSlice{mem.SliceBuffer(slices.Clone(wire))}, nil
}

func (rawRequest) Unmarshal(data mem.BufferSlice, v any) error {
	return unmarshal(data.Materialize(), v)
}
