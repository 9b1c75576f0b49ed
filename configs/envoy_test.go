package configs

import (
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/chaperone-proxy/chaperone/internal/testenv"
)

// TestEnvoyFailsClosed runs a real Envoy from the bootstrap without a sidecar:
// it accepts the file, and allows no request.
func TestEnvoyFailsClosed(t *testing.T) {
	testenv.Require(t, testenv.EnvoyServer())
	const folder, port, authorities = "/run/chaperone/weather", "port_value: 15080", "/etc/ssl/certs/ca-certificates.crt"
	data, err := os.ReadFile("envoy/bootstrap.yaml")
	if err != nil {
		t.Fatal(err)
	}
	for _, part := range []string{folder, port, authorities, "failure_mode_allow: false", "healthy_panic_threshold: {value: 0}"} {
		if !strings.Contains(string(data), part) {
			t.Fatalf("the bootstrap does not hold %q", part)
		}
	}
	dir := t.TempDir()
	cert, _ := certificate(t)
	write(t, filepath.Join(dir, "ca.pem"), cert)
	envoy := testenv.MustEnvoy(t, testenv.EnvoyConfig{
		Bootstrap: strings.NewReplacer(folder, dir, port, "port_value: 0", authorities, filepath.Join(dir, "ca.pem")).Replace(string(data)),
	})
	address, err := envoy.Listener(t.Context(), "plugin")
	if err != nil {
		t.Fatal(err)
	}
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+address.String()+"/v1/forecast/oslo", nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Host = "api.weather.example"
	transport := &http.Transport{DisableKeepAlives: true}
	resp, err := transport.RoundTrip(req)
	if err != nil {
		t.Fatal(err)
	}
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != http.StatusServiceUnavailable {
		t.Errorf("got %s %s without a sidecar, want 503", resp.Status, body)
	}
	for counter, want := range map[string]int{
		"http.plugin.ext_authz.error": 1, "http.plugin.ext_authz.failure_mode_allowed": 0,
		"cluster.upstream.upstream_cx_total": 0, "dns_cache.upstreams.dns_query_attempt": 0,
	} {
		if got, err := envoy.Counter(t.Context(), counter); err != nil || got != want {
			t.Errorf("%s: got %d, %v, want %d", counter, got, err, want)
		}
	}
}
