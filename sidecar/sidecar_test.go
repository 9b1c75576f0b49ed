package sidecar_test

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/zap/zaptest"

	"github.com/chaperone-proxy/chaperone/authz"
	"github.com/chaperone-proxy/chaperone/configs"
	"github.com/chaperone-proxy/chaperone/internal/admin"
	"github.com/chaperone-proxy/chaperone/internal/testenv"
	"github.com/chaperone-proxy/chaperone/sidecar"
)

const token = "a-token-of-sixteen-bytes-or-more"

// writeFiles writes a Sidecar without the kernel half, and a grant for GET /v1/* of
// api.example at a port, into a folder. It returns the path of the Sidecar.
func writeFiles(dir string, port string) (string, error) {
	grant := fmt.Sprintf(`apiVersion: chaperone.dev/v1alpha1
kind: PluginGrant
metadata: {name: weather}
spec:
  plugin: weather
  notAfter: %s
  rules:
  - id: api
    reason: Tests
    to: {scheme: http, hosts: [api.example], ports: [%s], addresses: [127.0.0.1/32]}
    methods: [GET]
    paths: ["/v1/*"]
`, time.Now().Add(time.Hour).UTC().Format(time.RFC3339), port)
	spec := `apiVersion: chaperone.dev/v1alpha1
kind: Sidecar
metadata: {name: weather}
spec:
  plugin: weather
  grants: [grant.yaml]
  stateDir: state
  kernel: "off"
  listen: {proxy: "127.0.0.1:0"}
  dns: {hosts: {api.example: [127.0.0.1]}}
  drain: 1s
`
	path := filepath.Join(dir, "sidecar.yaml")
	return path, errors.Join(
		os.WriteFile(filepath.Join(dir, "grant.yaml"), []byte(grant), 0o600),
		os.WriteFile(path, []byte(spec), 0o600))
}

// pluginClient returns a client that uses the sidecar's proxy, with a token, as the
// plugin does.
func pluginClient(status admin.Status) *http.Client {
	for _, door := range status.Doors {
		if door.Name == string(authz.DoorProxy) {
			via := &url.URL{Scheme: "http", Host: door.Address, User: url.UserPassword("chaperone", token)}
			return &http.Client{Transport: &http.Transport{Proxy: http.ProxyURL(via), DisableKeepAlives: true}, Timeout: testenv.Patience}
		}
	}
	return nil
}

// get returns the status of a request and the reason of its refusal, if any.
func get(client *http.Client, target string) (status int, reason string, err error) {
	answer, err := client.Get(target)
	if err != nil {
		return 0, "", err
	}
	defer answer.Body.Close()
	return answer.StatusCode, answer.Header.Get("x-chaperone-reason"), nil
}

// TestSidecar builds a sidecar from files, serves, decides, revokes, restores and stops.
func TestSidecar(t *testing.T) {
	dir := t.TempDir()
	t.Setenv("CHAPERONE_REGISTRY", filepath.Join(dir, "registry")) // not the host's
	upstream := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
	defer upstream.Close()
	target := testenv.MustGet(url.Parse(upstream.URL))(t)
	path := testenv.MustGet(writeFiles(dir, target.Port()))(t)
	cfg := testenv.MustGet(configs.Load(path, time.Now()))(t)

	s := testenv.MustGet(sidecar.New(sidecar.Config{
		Files: cfg, Version: "test", External: true, Token: authz.NewSecret(token), Log: zaptest.NewLogger(t),
	}))(t)
	testenv.Must(t, s.Listen(t.Context()))
	ctx, stop := context.WithCancel(t.Context())
	ran := make(chan error, 1)
	go func() { ran <- s.Run(ctx) }()
	select {
	case <-s.Ready():
	case err := <-ran:
		t.Fatalf("Run ended before the sidecar was ready: %v", err)
	}
	if status := s.Status(); !status.Ready || status.Plugin != "weather" || status.Version != "test" || status.Kernel.Attached {
		t.Errorf("Status() = %+v, want a ready sidecar of weather without the kernel half", status)
	}

	client := pluginClient(s.Status())
	api := "http://api.example:" + target.Port()
	expect := func(path string, want int, reason string) {
		t.Helper()
		got, why, err := get(client, api+path)
		if err != nil || got != want || why != reason {
			t.Errorf("GET %s: got %d %q %v, want %d %q", path, got, why, err, want, reason)
		}
	}
	expect("/v1/forecast", http.StatusOK, "")
	expect("/v2/forecast", http.StatusForbidden, "path_not_granted")

	operator := admin.Dial(filepath.Join(dir, "state/admin.sock"))
	revoked := testenv.MustGet(operator.Revoke(t.Context(), admin.RevokeRequest{ID: "r-1", Level: authz.LevelQuarantine, Reason: "a test"}))(t)
	expect("/v1/forecast", http.StatusForbidden, "revoked")
	testenv.MustGet(operator.Restore(t.Context(), revoked.ID, "the test is over"))(t)
	expect("/v1/forecast", http.StatusOK, "")

	stop()
	if err := <-ran; err != nil {
		t.Errorf("Run: %v", err)
	}
	if err := s.Close(); err != nil {
		t.Errorf("Close: %v", err)
	}
	if log := string(testenv.MustGet(os.ReadFile(cfg.Sidecar.Audit.File))(t)); strings.Count(log, `"kind":"decision"`) != 4 {
		t.Errorf("audit log, want 4 decisions:\n%s", log)
	}
}

// TestNewRefuses returns nothing that has to be closed for files that no sidecar can
// serve, and leaves the stateDir to the next one.
func TestNewRefuses(t *testing.T) {
	dir := t.TempDir()
	t.Setenv("CHAPERONE_REGISTRY", filepath.Join(dir, "registry"))
	cfg := testenv.MustGet(configs.Load(testenv.MustGet(writeFiles(dir, "8080"))(t), time.Now()))(t)
	config := sidecar.Config{Files: cfg, External: true, Token: authz.NewSecret(token)}
	first := testenv.MustGet(sidecar.New(config))(t)
	if second, err := sidecar.New(config); !errors.Is(err, sidecar.ErrLocked) || second != nil {
		t.Errorf("New on a stateDir in use: got %v, %v, want nil and ErrLocked", second, err)
	}
	testenv.Must(t, first.Close())
	testenv.Must(t, testenv.MustGet(sidecar.New(config))(t).Close())
}

// A program embeds a sidecar for a plugin that it starts itself.
func Example() {
	dir, err := os.MkdirTemp("", "example-")
	if err != nil {
		fmt.Println(err)
		return
	}
	defer os.RemoveAll(dir)
	if err := os.Setenv("CHAPERONE_REGISTRY", filepath.Join(dir, "registry")); err != nil { // not the host's
		fmt.Println(err)
		return
	}
	upstream := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
	defer upstream.Close()
	_, port, _ := strings.Cut(strings.TrimPrefix(upstream.URL, "http://"), ":")
	path, err := writeFiles(dir, port)
	if err != nil {
		fmt.Println(err)
		return
	}

	cfg, err := configs.Load(path, time.Now())
	if err != nil {
		fmt.Println(err)
		return
	}
	s, err := sidecar.New(sidecar.Config{Files: cfg, External: true, Token: authz.NewSecret(token)})
	if err != nil {
		fmt.Println(err)
		return
	}
	ctx, stop := context.WithCancel(context.Background())
	defer stop()
	if err := s.Listen(ctx); err != nil {
		fmt.Println(err)
		return
	}
	ran := make(chan error, 1)
	go func() { ran <- s.Run(ctx) }()
	<-s.Ready()

	plugin := pluginClient(s.Status())
	for _, path := range []string{"/v1/forecast", "/admin"} {
		status, reason, err := get(plugin, "http://api.example:"+port+path)
		fmt.Println(path, status, reason, err)
	}

	stop()
	fmt.Println(<-ran, s.Close())
	// Output:
	// /v1/forecast 200  <nil>
	// /admin 403 path_not_granted <nil>
	// <nil> <nil>
}
