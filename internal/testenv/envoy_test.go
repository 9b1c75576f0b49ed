package testenv_test

import (
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/chaperone-proxy/chaperone/internal/testenv"
)

func TestEnvoyForwards(t *testing.T) {
	testenv.Require(t, testenv.EnvoyServer())
	upstream := testenv.MustUpstream(t, testenv.UpstreamConfig{Plain: true})
	envoy := testenv.MustEnvoy(t, testenv.EnvoyConfig{Bootstrap: fmt.Sprintf(`
static_resources:
  listeners:
  - name: front
    address: {socket_address: {address: 127.0.0.1, port_value: 0}}
    filter_chains:
    - filters:
      - name: envoy.filters.network.http_connection_manager
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
          stat_prefix: front
          route_config:
            virtual_hosts:
            - name: all
              domains: ["*"]
              routes: [{match: {prefix: /}, route: {cluster: upstream}}]
          http_filters:
          - name: envoy.filters.http.router
            typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}
  clusters:
  - name: upstream
    load_assignment:
      cluster_name: upstream
      endpoints: [{lb_endpoints: [{endpoint: {address: {socket_address: {address: 127.0.0.1, port_value: %d}}}}]}]
`, upstream.Addr.Port())})
	front := testenv.MustGet(envoy.Listener(t.Context(), "front"))(t)
	req := testenv.MustGet(http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+front.String()+"/echo", nil))(t)
	req.Header.Set("Authorization", "Bearer "+upstream.Token())
	transport := &http.Transport{}
	defer transport.CloseIdleConnections()
	resp := testenv.MustGet(transport.RoundTrip(req))(t)
	defer resp.Body.Close()
	body := testenv.MustGet(io.ReadAll(resp.Body))(t)
	if resp.StatusCode != http.StatusOK || !strings.Contains(string(body), "X-Request-Id") {
		t.Errorf("through Envoy: %s %s", resp.Status, body)
	}
	if got := testenv.MustGet(envoy.Counter(t.Context(), "http.front.downstream_rq_total"))(t); got != 1 {
		t.Errorf("Envoy counted %d requests, want 1", got)
	}
}

func TestEnvoyRefusesABadBootstrap(t *testing.T) {
	testenv.Require(t, testenv.EnvoyServer())
	_, err := testenv.StartEnvoy(t.Context(), testenv.EnvoyConfig{Bootstrap: "no_such_field: 1\n"})
	if err == nil || !strings.Contains(err.Error(), "no_such_field") {
		t.Errorf("start with a bad bootstrap: %v, want an error that names no_such_field", err)
	}
}
