package admin_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"

	"github.com/chaperone-proxy/chaperone/authz"
	"github.com/chaperone-proxy/chaperone/internal/admin"
)

// envDial makes the test binary a foreign program that dials a socket.
const envDial = "ADMIN_TEST_DIAL"

func TestMain(m *testing.M) {
	if socket := os.Getenv(envDial); socket != "" {
		os.Exit(foreign(socket))
	}
	goleak.VerifyTestMain(m)
}

// foreign asks for the status over a raw connection and reports how it ended.
func foreign(socket string) int {
	conn, err := net.Dial("unix", socket)
	if err != nil {
		fmt.Println("dial:", err)
		return 0
	}
	fmt.Fprint(conn, "GET /v1/status HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
	answer, err := io.ReadAll(conn)
	fmt.Printf("uid=%d answer=%q err=%v\n", os.Getuid(), answer, err)
	return 0
}

var at = time.Date(2026, 11, 21, 9, 30, 0, 0, time.UTC)

// sidecar is what a test's server answers with, and what it was asked.
type sidecar struct {
	mu    sync.Mutex
	calls []string
	lines chan string // for decisions that follow
	fail  error
}

func (s *sidecar) called(format string, args ...any) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.calls = append(s.calls, fmt.Sprintf(format, args...))
	return s.fail
}

func (s *sidecar) config(socket string) admin.Config {
	return admin.Config{
		Socket: socket,
		Now:    func() time.Time { return at },
		Status: func(context.Context) (admin.Status, error) {
			return admin.Status{Plugin: "weather", Generation: 7}, s.called("status")
		},
		Usage: func(context.Context) (admin.Usage, error) {
			return admin.Usage{Limits: []admin.Limit{{Grant: "weather", Kind: "requests", Limit: "100/1m", Used: 4}}}, s.called("usage")
		},
		Decisions: func(ctx context.Context, q admin.DecisionQuery, emit func([]byte) error) error {
			if err := s.called("decisions %+v", q); err != nil {
				return err
			}
			for i := range 3 {
				if err := emit(fmt.Appendf(nil, `{"seq":%d}`, i+1)); err != nil {
					return err
				}
			}
			for q.Follow {
				select {
				case line := <-s.lines:
					if line == "fail" {
						return errors.New("disk fell out")
					}
					if err := emit([]byte(line)); err != nil {
						return err
					}
				case <-ctx.Done():
					return nil
				}
			}
			return nil
		},
		Revocations: func(context.Context) ([]authz.Revocation, error) { return nil, s.called("revocations") },
		Revoke: func(_ context.Context, r admin.RevokeRequest, actor string) (admin.RevokeResult, error) {
			return admin.RevokeResult{ID: "r1", Plugin: "weather", Rule: r.Rule, Level: r.Level, Cut: 3}, s.called("revoke %+v %s", r, actor)
		},
		Restore: func(_ context.Context, id, reason, actor string) (admin.RestoreResult, error) {
			return admin.RestoreResult{ID: id}, s.called("restore %s %q %s", id, reason, actor)
		},
		Reload: func(_ context.Context, actor string) (admin.ReloadResult, error) {
			return admin.ReloadResult{Generation: 8}, s.called("reload %s", actor)
		},
	}
}

func (s *sidecar) asked() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]string(nil), s.calls...)
}

// start serves cfg until the test ends.
func start(t *testing.T, cfg admin.Config) *admin.Client {
	t.Helper()
	server, err := admin.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	if err := server.Listen(); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- server.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("Run: %v", err)
		}
		if _, err := os.Lstat(server.Socket()); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("socket after Run: %v, want it gone", err)
		}
	})
	return admin.Dial(cfg.Socket)
}

func socketIn(t *testing.T) string {
	t.Helper()
	return filepath.Join(t.TempDir(), "private", "admin.sock")
}

func TestCalls(t *testing.T) {
	s := &sidecar{}
	client := start(t, s.config("unix:"+socketIn(t)))
	ctx := t.Context()
	status, err := client.Status(ctx)
	if err != nil || status.Plugin != "weather" || status.Generation != 7 {
		t.Errorf("Status = %+v, %v", status, err)
	}
	if usage, err := client.Usage(ctx); err != nil || len(usage.Limits) != 1 || usage.Limits[0].Used != 4 {
		t.Errorf("Usage = %+v, %v", usage, err)
	}
	if status.Doors == nil || status.Files == nil || status.Checks == nil {
		t.Errorf("Status = %#v, want empty lists and no null", status)
	}
	if list, err := client.Revocations(ctx); err != nil || list == nil || len(list) != 0 {
		t.Errorf("Revocations = %#v, %v, want an empty list", list, err)
	}
	until := at.Add(time.Hour)
	result, err := client.Revoke(ctx, admin.RevokeRequest{Rule: "weather/read", Level: authz.LevelPause, Reason: "odd", Until: until})
	want := admin.RevokeResult{ID: "r1", Plugin: "weather", Rule: "weather/read", Level: authz.LevelPause, Cut: 3, Failed: []string{}}
	if diff := cmp.Diff(want, result); diff != "" || err != nil {
		t.Errorf("Revoke: %v, (-want +got)\n%s", err, diff)
	}
	if r, err := client.Restore(ctx, "a/../b c", "over"); err != nil || r.ID != "a/../b c" {
		t.Errorf("Restore = %+v, %v", r, err)
	}
	if r, err := client.Reload(ctx); err != nil || r.Generation != 8 {
		t.Errorf("Reload = %+v, %v", r, err)
	}
	actor := admin.Peer{UID: os.Getuid()}.Actor()
	wantCalls := []string{
		"status", "usage", "revocations",
		fmt.Sprintf("revoke %+v %s", admin.RevokeRequest{Rule: "weather/read", Level: authz.LevelPause, Reason: "odd", Until: until}, actor),
		fmt.Sprintf("restore a/../b c %q %s", "over", actor), "reload " + actor,
	}
	if diff := cmp.Diff(wantCalls, s.asked()); diff != "" {
		t.Errorf("calls (-want +got)\n%s", diff)
	}
}

func TestDecisions(t *testing.T) {
	s := &sidecar{lines: make(chan string)}
	client := start(t, s.config(socketIn(t)))
	var got []string
	collect := func(line []byte) error { got = append(got, string(line)); return nil }
	if err := client.Decisions(t.Context(), admin.DecisionQuery{Limit: 5, Kind: "all", Decision: "d&1"}, collect); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{`{"seq":1}`, `{"seq":2}`, `{"seq":3}`}, got); diff != "" {
		t.Errorf("lines (-want +got)\n%s", diff)
	}
	if want := fmt.Sprintf("decisions %+v", admin.DecisionQuery{Limit: 5, Kind: "all", Decision: "d&1"}); s.asked()[0] != want {
		t.Errorf("asked %s, want %s", s.asked()[0], want)
	}

	got = nil
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	seen := make(chan string, 8)
	go func() {
		done <- client.Decisions(ctx, admin.DecisionQuery{Follow: true}, func(line []byte) error {
			seen <- string(line)
			return nil
		})
	}()
	for i := range 3 {
		if line := <-seen; line != fmt.Sprintf(`{"seq":%d}`, i+1) {
			t.Errorf("line = %s", line)
		}
	}
	s.lines <- `{"seq":4}`
	if line := <-seen; line != `{"seq":4}` {
		t.Errorf("line = %s", line)
	}
	cancel()
	if err := <-done; err != nil {
		t.Errorf("Decisions after cancel = %v, want nil", err)
	}
}

// A stream that breaks off must not look like one that ended.
func TestDecisionsBreak(t *testing.T) {
	s := &sidecar{lines: make(chan string, 1)}
	client := start(t, s.config(socketIn(t)))
	s.lines <- "fail"
	err := client.Decisions(t.Context(), admin.DecisionQuery{Follow: true}, func([]byte) error { return nil })
	if err == nil {
		t.Error("Decisions = nil, want an error")
	}
	s.fail = errors.New("disk fell out")
	err = client.Decisions(t.Context(), admin.DecisionQuery{}, func([]byte) error { return nil })
	var e *admin.Error
	if !errors.As(err, &e) || e.Code != admin.CodeInternal || e.Message != "disk fell out" {
		t.Errorf("Decisions = %v, want the server's error", err)
	}
}

func TestStreamsAreBounded(t *testing.T) {
	s := &sidecar{lines: make(chan string)}
	client := start(t, s.config(socketIn(t)))
	ctx, cancel := context.WithCancel(t.Context())
	var streams sync.WaitGroup
	begun := make(chan struct{}, 64)
	for range 32 {
		streams.Go(func() {
			first := true
			err := client.Decisions(ctx, admin.DecisionQuery{Follow: true}, func([]byte) error {
				if first {
					begun <- struct{}{}
				}
				first = false
				return nil
			})
			if err != nil {
				t.Errorf("Decisions: %v", err)
			}
		})
	}
	for range 32 {
		<-begun
	}
	err := client.Decisions(ctx, admin.DecisionQuery{Follow: true}, func([]byte) error { return nil })
	var e *admin.Error
	if !errors.As(err, &e) || e.Code != admin.CodeBusy || e.Status != http.StatusServiceUnavailable {
		t.Errorf("33rd stream = %v, want busy", err)
	}
	if _, err := client.Revoke(ctx, admin.RevokeRequest{Reason: "now"}); err != nil {
		t.Errorf("Revoke beside 32 streams: %v", err)
	}
	cancel()
	streams.Wait()
}

func TestErrors(t *testing.T) {
	s := &sidecar{fail: admin.NewError(admin.CodeInvalid, "2 files are refused", "a.yaml:1:1: x", "b.yaml:2:2: y")}
	client := start(t, s.config(socketIn(t)))
	_, err := client.Reload(t.Context())
	var e *admin.Error
	if !errors.As(err, &e) {
		t.Fatalf("Reload = %v, want an *Error", err)
	}
	want := &admin.Error{Status: 422, Code: "invalid", Message: "2 files are refused", Details: []string{"a.yaml:1:1: x", "b.yaml:2:2: y"}}
	if diff := cmp.Diff(want, e); diff != "" {
		t.Errorf("error (-want +got)\n%s", diff)
	}
}

func raw(t *testing.T, client *admin.Client, method, target, contentType, body string) (int, admin.Error, http.Header) {
	t.Helper()
	transport := &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", client.Socket())
	}}
	request, err := http.NewRequestWithContext(t.Context(), method, "http://sidecar"+target, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	if contentType != "" {
		request.Header.Set("Content-Type", contentType)
	}
	response, err := transport.RoundTrip(request)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	var e admin.Error
	if err := json.NewDecoder(response.Body).Decode(&e); err != nil {
		t.Errorf("body of %s %s is not an error: %v", method, target, err)
	}
	return response.StatusCode, e, response.Header
}

func TestBadRequests(t *testing.T) {
	const post, js = http.MethodPost, "application/json"
	tests := []struct {
		name, method, target, contentType, body string
		status                                  int
		code, message                           string
	}{
		{"unknown path", "GET", "/v1/nothing", "", "", 404, "not_found", "/v1/nothing"},
		{"root", "GET", "/", "", "", 404, "not_found", ""},
		{"method", "DELETE", "/v1/status", "", "", 405, "method_not_allowed", "use GET"},
		{"methods", "PUT", "/v1/revocations", js, "{}", 405, "method_not_allowed", "use GET or POST"},
		{"get reload", "GET", "/v1/reload", "", "", 405, "method_not_allowed", "use POST"},
		{"no body", post, "/v1/revocations", js, "", 400, "bad_request", "not a JSON object"},
		{"no type", post, "/v1/revocations", "", `{"reason":"x"}`, 400, "bad_request", "application/json"},
		{"form", post, "/v1/revocations", "application/x-www-form-urlencoded", `reason=x`, 400, "bad_request", "application/json"},
		{"array", post, "/v1/revocations", js, `[]`, 400, "bad_request", "not a JSON object"},
		{"no reason", post, "/v1/revocations", js, `{}`, 400, "bad_request", "reason: it is required"},
		{"blank reason", post, "/v1/revocations", js, `{"reason":" "}`, 400, "bad_request", "reason: it is required"},
		{"long reason", post, "/v1/revocations", js, `{"reason":"` + strings.Repeat("x", 1001) + `"}`, 400, "bad_request", "longer than 1000"},
		{"two lines", post, "/v1/revocations", js, `{"reason":"a\nb"}`, 400, "bad_request", "printable"},
		{"escape", post, "/v1/revocations", js, `{"reason":"a\u001b[2Jb"}`, 400, "bad_request", "printable"},
		{"unknown field", post, "/v1/revocations", js, `{"reason":"x","plugin":"y"}`, 400, "bad_request", "unknown field; known are all, id, incident, level, reason, rule, until"},
		{"field's case", post, "/v1/revocations", js, `{"Reason":"x"}`, 400, "bad_request", "unknown field"},
		{"twice", post, "/v1/revocations", js, `{"level":"pause","reason":"x","level":"halt"}`, 400, "bad_request", "given twice"},
		{"null", post, "/v1/revocations", js, `{"reason":null}`, 400, "bad_request", "null"},
		{"trailing", post, "/v1/revocations", js, `{"reason":"x"} {}`, 400, "bad_request", "follows"},
		{"cut", post, "/v1/revocations", js, `{"reason":"x"`, 400, "bad_request", "not JSON"},
		{"level", post, "/v1/revocations", js, `{"reason":"x","level":"hard"}`, 400, "bad_request", `"hard" is not pause`},
		{"level's type", post, "/v1/revocations", js, `{"reason":"x","level":3}`, 400, "bad_request", "level: 3"},
		{"halt a rule", post, "/v1/revocations", js, `{"reason":"x","level":"halt","rule":"a/b"}`, 400, "bad_request", "takes no rule"},
		{"rule", post, "/v1/revocations", js, `{"reason":"x","rule":"a"}`, 400, "bad_request", "GRANT/ID"},
		{"deep rule", post, "/v1/revocations", js, `{"reason":"x","rule":"a/b/c"}`, 400, "bad_request", "GRANT/ID"},
		{"all rules", post, "/v1/revocations", js, `{"reason":"x","rule":"a/b","all":true}`, 400, "bad_request", "all takes no rule"},
		{"past", post, "/v1/revocations", js, `{"reason":"x","until":"2026-11-21T09:30:00Z"}`, 400, "bad_request", "is past"},
		{"time", post, "/v1/revocations", js, `{"reason":"x","until":"tomorrow"}`, 400, "bad_request", "until:"},
		{"not UTF-8", post, "/v1/revocations", js, "{\"reason\":\"\xff\"}", 400, "bad_request", "UTF-8"},
		{"too large", post, "/v1/revocations", js, `{"reason":"` + strings.Repeat("x", 65<<10) + `"}`, 413, "too_large", "65536"},
		{"query of post", post, "/v1/revocations?x=1", js, `{"reason":"x"}`, 400, "bad_request", "unknown query parameter"},
		{"delete without reason", "DELETE", "/v1/revocations/r1", "", "", 400, "bad_request", "reason: it is required"},
		{"delete with control", "DELETE", "/v1/revocations/%07?reason=x", "", "", 400, "bad_request", "id:"},
		{"delete all", "DELETE", "/v1/revocations", "", "", 405, "method_not_allowed", ""},
		{"reload with body", post, "/v1/reload", js, `{"force":true}`, 400, "bad_request", "unknown field; none is taken here"},
		{"limit 0", "GET", "/v1/decisions?limit=0", "", "", 400, "bad_request", "limit:"},
		{"limit large", "GET", "/v1/decisions?limit=10001", "", "", 400, "bad_request", "10000"},
		{"limit word", "GET", "/v1/decisions?limit=ten", "", "", 400, "bad_request", "limit:"},
		{"limit twice", "GET", "/v1/decisions?limit=1&limit=2", "", "", 400, "bad_request", "given twice"},
		{"follow", "GET", "/v1/decisions?follow=maybe", "", "", 400, "bad_request", "follow:"},
		{"unknown parameter", "GET", "/v1/decisions?tail=1", "", "", 400, "bad_request", "unknown query parameter"},
	}
	s := &sidecar{}
	client := start(t, s.config(socketIn(t)))
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			status, e, header := raw(t, client, test.method, test.target, test.contentType, test.body)
			if status != test.status || e.Status != test.status || e.Code != test.code || !strings.Contains(e.Message, test.message) {
				t.Errorf("answer = %d %+v, want %d %s with %q", status, e, test.status, test.code, test.message)
			}
			if status == 405 && header.Get("Allow") == "" {
				t.Error("405 without Allow")
			}
		})
	}
	if calls := s.asked(); len(calls) != 0 {
		t.Errorf("bad requests reached %q", calls)
	}
}

func requireRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() == 0 {
		return
	}
	if os.Getenv("CHAPERONE_REQUIRE") == "1" {
		t.Fatal("needs root to run a program as another user")
	}
	t.Skip("needs root to run a program as another user: this process has uid", os.Geteuid())
}

// openFolder returns a folder that every user may look into.
func openFolder(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	for _, path := range []string{filepath.Dir(dir), dir} {
		if err := os.Chmod(path, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// runAs runs this test binary as another user, who dials the socket.
func runAs(t *testing.T, uid uint32, socket string) string {
	t.Helper()
	binary, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	dir := openFolder(t) // the build's is closed to others
	program, err := os.ReadFile(binary)
	if err != nil {
		t.Fatal(err)
	}
	binary = filepath.Join(dir, "foreign")
	if err := os.WriteFile(binary, program, 0o755); err != nil {
		t.Fatal(err)
	}
	command := exec.CommandContext(t.Context(), binary)
	command.Env = []string{envDial + "=" + socket}
	command.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uid, Gid: uid}}
	out, err := command.CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	return string(out)
}

// A foreign user is refused twice: by the socket's mode, and by the kernel's
// word about the peer when the modes are opened wide.
func TestForeignUser(t *testing.T) {
	requireRoot(t)
	s := &sidecar{}
	dir := filepath.Join(openFolder(t), "private")
	socket := filepath.Join(dir, "admin.sock")
	start(t, s.config(socket))

	info, err := os.Lstat(socket)
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Fatalf("mode = %v, %v, want 0600", info.Mode(), err)
	}
	if out := runAs(t, 65533, socket); !strings.Contains(out, "permission denied") {
		t.Errorf("foreign user: %s, want permission denied", out)
	}
	if err := errors.Join(os.Chmod(dir, 0o755), os.Chmod(socket, 0o666)); err != nil {
		t.Fatal(err)
	}
	if out := runAs(t, 65533, socket); !strings.Contains(out, `uid=65533 answer=""`) {
		t.Errorf("foreign user: %s, want a closed connection", out)
	}
	if calls := s.asked(); len(calls) != 0 {
		t.Errorf("foreign user reached %q", calls)
	}
	if out := runAs(t, 0, socket); !strings.Contains(out, "200 OK") {
		t.Errorf("root: %s, want an answer", out)
	}
}

func TestRefuse(t *testing.T) {
	s := &sidecar{}
	cfg := s.config(socketIn(t))
	cfg.Refuse = func(p admin.Peer) error {
		if p.PID != os.Getpid() {
			t.Errorf("peer = %+v, want pid %d", p, os.Getpid())
		}
		return errors.New("it is the plugin")
	}
	client := start(t, cfg)
	if _, err := client.Status(t.Context()); err == nil || !strings.Contains(err.Error(), "serves root and its own user only") {
		t.Errorf("Status = %v, want a closed connection", err)
	}
	if calls := s.asked(); len(calls) != 0 {
		t.Errorf("refused peer reached %q", calls)
	}
}

func TestListenRefuses(t *testing.T) {
	s := &sidecar{}
	tests := []struct {
		name    string
		prepare func(t *testing.T, socket string)
		want    string
	}{
		{"a file is there", func(t *testing.T, socket string) {
			if err := os.WriteFile(socket, []byte("precious"), 0o600); err != nil {
				t.Fatal(err)
			}
		}, "is not a socket"},
		{"another sidecar", func(t *testing.T, socket string) { start(t, s.config(socket)) }, "in use: another process is starting on it or serves it"},
		{"another program", func(t *testing.T, socket string) {
			l, err := net.Listen("unix", socket)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { l.Close() })
		}, "in use: a process serves it"},
		{"open folder", func(t *testing.T, socket string) {
			if err := os.Chmod(filepath.Dir(socket), 0o777); err != nil {
				t.Fatal(err)
			}
		}, "can be replaced by other users"},
		{"sticky folder", func(t *testing.T, socket string) {
			if err := os.Chmod(filepath.Dir(socket), 0o777|os.ModeSticky); err != nil {
				t.Fatal(err)
			}
		}, "can be replaced by other users"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			socket := filepath.Join(t.TempDir(), "admin.sock")
			test.prepare(t, socket)
			server, err := admin.New(s.config(socket))
			if err != nil {
				t.Fatal(err)
			}
			if err := server.Listen(); err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("Listen = %v, want %q", err, test.want)
				server.Close()
			}
		})
	}
	for _, socket := range []string{"", "unix:", "@abstract", "a\x00b", "/" + strings.Repeat("x", 107)} {
		if _, err := admin.New(s.config(socket)); err == nil {
			t.Errorf("New with socket %q = nil, want an error", socket)
		}
	}
}

func TestStaleSocketIsReplaced(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "admin.sock")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: socket, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	l.SetUnlinkOnClose(false)
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := admin.Dial(socket).Status(t.Context()); !errors.Is(err, admin.ErrNoSidecar) {
		t.Errorf("Status on a stale socket = %v, want ErrNoSidecar", err)
	}
	s := &sidecar{}
	client := start(t, s.config(socket))
	if _, err := client.Status(t.Context()); err != nil {
		t.Errorf("Status: %v", err)
	}
}

func TestNewNeedsEveryFunction(t *testing.T) {
	if _, err := admin.New(admin.Config{Socket: "/tmp/x.sock"}); err == nil {
		t.Error("New without functions = nil, want an error")
	}
}

func TestRegistry(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "registry")
	if list, err := admin.List(dir); err != nil || len(list) != 0 {
		t.Errorf("List of a missing folder = %v, %v", list, err)
	}
	s := &sidecar{}
	alive, dead := socketIn(t), socketIn(t)
	if err := os.MkdirAll(filepath.Dir(dead), 0o700); err != nil {
		t.Fatal(err)
	}
	start(t, s.config(alive))
	var unregister func() error
	for _, entry := range []admin.Sidecar{{Plugin: "weather", Socket: alive, PID: 1}, {Plugin: "dead", Socket: dead, PID: 2}} {
		var err error
		if unregister, err = admin.Register(dir, entry); err != nil {
			t.Fatal(err)
		}
	}
	info, err := os.Stat(dir)
	if err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("mode = %v, %v, want 0700", info.Mode(), err)
	}
	want := []admin.Sidecar{{Plugin: "dead", Socket: dead, PID: 2, Gone: true}, {Plugin: "weather", Socket: alive, PID: 1}}
	for range 2 {
		list, err := admin.List(dir)
		if diff := cmp.Diff(want, list); diff != "" || err != nil {
			t.Errorf("List: %v (-want +got)\n%s", err, diff)
		}
	}
	for _, socket := range []string{dead, dead, alive} {
		if err := admin.Forget(dir, socket); err != nil {
			t.Errorf("Forget: %v", err)
		}
	}
	want = want[1:]
	if list, err := admin.List(dir); err != nil || !cmp.Equal(want, list) {
		t.Errorf("List after Forget = %v, %v", list, err)
	}
	if err := unregister(); err != nil {
		t.Errorf("unregister what was forgotten: %v", err)
	}
	// A socket whose folder is gone comes back no more.
	if _, err := admin.Register(dir, admin.Sidecar{Plugin: "removed", Socket: filepath.Join(dir, "no-folder", "s"), PID: 3}); err != nil {
		t.Fatal(err)
	}
	if list, err := admin.List(dir); err != nil || !cmp.Equal(want, list) {
		t.Errorf("List = %v, %v, want the entry without a folder removed", list, err)
	}
	// One bad entry hides no other.
	if err := os.WriteFile(filepath.Join(dir, "bad.sidecar"), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	list, err := admin.List(dir)
	if diff := cmp.Diff(want, list); diff != "" || err == nil {
		t.Errorf("List with a bad entry = %v (-want +got)\n%s", err, diff)
	}
}

// A stream ends cleanly with the server: what it showed is whole.
func TestStreamEndsWithServer(t *testing.T) {
	s := &sidecar{}
	server, err := admin.New(s.config(socketIn(t)))
	if err != nil {
		t.Fatal(err)
	}
	if err := server.Listen(); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- server.Run(ctx) }()
	lines := 0
	err = admin.Dial(server.Socket()).Decisions(t.Context(), admin.DecisionQuery{Follow: true}, func([]byte) error {
		if lines++; lines == 3 {
			cancel()
		}
		return nil
	})
	if err != nil || lines != 3 {
		t.Errorf("Decisions = %v after %d lines, want a clean end after 3", err, lines)
	}
	if err := <-ended; err != nil {
		t.Errorf("Run = %v", err)
	}
}

// A revocation is finished although its caller hangs up.
func TestRevokeOutlivesItsCaller(t *testing.T) {
	s := &sidecar{}
	cfg := s.config(socketIn(t))
	revoke := cfg.Revoke
	cfg.Revoke = func(ctx context.Context, r admin.RevokeRequest, actor string) (admin.RevokeResult, error) {
		if ctx.Done() != nil {
			t.Error("the revocation can be cancelled")
		}
		return revoke(ctx, r, actor)
	}
	if _, err := start(t, cfg).Revoke(t.Context(), admin.RevokeRequest{Reason: "odd"}); err != nil {
		t.Fatal(err)
	}
}

func TestConnectionsAreBounded(t *testing.T) {
	s := &sidecar{}
	client := start(t, s.config(socketIn(t)))
	var conns []net.Conn
	for range 128 {
		conn, err := net.Dial("unix", client.Socket())
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		conns = append(conns, conn)
	}
	if _, err := client.Status(t.Context()); err == nil {
		t.Error("129th connection is served")
	}
	for _, conn := range conns {
		conn.Close()
	}
	// The server sees the ends in its own time.
	for {
		if _, err := client.Status(t.Context()); err == nil {
			break
		}
	}
}

func TestForeignFolder(t *testing.T) {
	requireRoot(t)
	s := &sidecar{}
	dir := t.TempDir()
	if err := os.Chown(dir, 65533, 65533); err != nil {
		t.Fatal(err)
	}
	for _, socket := range []string{filepath.Join(dir, "admin.sock"), filepath.Join(dir, "mine", "admin.sock")} {
		server, err := admin.New(s.config(socket))
		if err != nil {
			t.Fatal(err)
		}
		if err := server.Listen(); err == nil || !strings.Contains(err.Error(), "can be replaced by uid 65533") {
			t.Errorf("Listen in a foreign folder = %v", err)
			server.Close()
		}
	}
}
