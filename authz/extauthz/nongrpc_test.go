package extauthz

import (
	"encoding/binary"
	"fmt"
	"net"
	"net/http"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"pgregory.net/rapid"

	"github.com/chaperone-proxy/chaperone/internal/testenv"
)

// misconfigured is an Envoy whose ext_authz filter is changed by service, in front
// of upstream.
func misconfigured(t *testing.T, socket, filter string, upstream *testenv.Upstream) *testenv.Envoy {
	t.Helper()
	const text = `
static_resources:
  listeners:
  - name: plugin
    address: {socket_address: {address: 127.0.0.1, port_value: 0}}
    filter_chains:
    - filters:
      - name: envoy.filters.network.http_connection_manager
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
          stat_prefix: plugin
          route_config: {virtual_hosts: [{name: all, domains: ["*"], routes: [{match: {prefix: /}, route: {cluster: upstream}}]}]}
          http_filters:
          - name: envoy.filters.http.ext_authz
            typed_config:
              "@type": type.googleapis.com/envoy.extensions.filters.http.ext_authz.v3.ExtAuthz
              transport_api_version: V3
              clear_route_cache: true
              %s
          - name: envoy.filters.http.router
            typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}
  clusters:
  - name: chaperone
    load_assignment: {cluster_name: chaperone, endpoints: [{lb_endpoints: [{endpoint: {address: {pipe: {path: %q}}}}]}]}
    typed_extension_protocol_options:
      envoy.extensions.upstreams.http.v3.HttpProtocolOptions:
        "@type": type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions
        explicit_http_config: {http2_protocol_options: {}}
  - name: upstream
    load_assignment: {cluster_name: upstream, endpoints: [{lb_endpoints: [{endpoint: {address: {socket_address: {address: 127.0.0.1, port_value: %d}}}}]}]}
`
	return testenv.MustEnvoy(t, testenv.EnvoyConfig{Bootstrap: fmt.Sprintf(text, filter, socket, upstream.Addr.Port())})
}

// framed returns a message as gRPC sends it.
func framed(t *testing.T, m proto.Message) string {
	t.Helper()
	wire := testenv.MustGet(proto.Marshal(m))(t)
	return string(binary.BigEndian.AppendUint32([]byte{0}, uint32(len(wire)))) + string(wire)
}

// TestHTTPService names the socket as an http_service, which takes every status of
// success for an allowing answer, and sends requests in the shape of gRPC's calls.
func TestHTTPService(t *testing.T) {
	testenv.Require(t, testenv.EnvoyServer())
	h, socket := newHouse(t), filepath.Join(t.TempDir(), "run", "ext_authz.sock")
	s := h.server(t, Config{Drain: time.Second})
	testenv.MustGet(s.Listen(t.Context(), "unix:"+socket))(t)
	runServer(t, s)
	upstream := testenv.MustUpstream(t, testenv.UpstreamConfig{Plain: true, Authorize: func(*http.Request) bool { return true }})
	p := &plane{house: h, upstream: upstream}
	check := framed(t, envoyCheck("GET", "https", "api.weather.example", "/v1/forecast/berlin"))
	for _, body := range []bool{false, true} {
		more := "http_service: {server_uri: {uri: 'http://chaperone', cluster: chaperone, timeout: 5s}}\n              allowed_headers: {patterns: [{safe_regex: {regex: \".*\"}}]}"
		if body {
			more += "\n              with_request_body: {max_request_bytes: 65536, pack_as_bytes: true}"
		}
		p.envoy = misconfigured(t, socket, more, upstream)
		for _, c := range []struct{ name, path, contentType, body string }{
			{"a method of nobody's", "/pkg.Service/Denied", "application/grpc", ""},
			{"a check", "/" + ServiceName + "/Check", "application/grpc", check},
			{"a check without a message", "/" + ServiceName + "/Check", "application/grpc", ""},
			{"a check that grpc-go cannot read", "/" + ServiceName + "/Check", "application/grpc", "\x07junk"},
			{"health", "/grpc.health.v1.Health/Check", "application/grpc", framed(t, new(grpc_health_v1.HealthCheckRequest))},
			{"watch", "/grpc.health.v1.Health/Watch", "application/grpc+proto", framed(t, new(grpc_health_v1.HealthCheckRequest))},
			{"access logs", methodAccessLogs, "application/grpc", ""},
			{"plain", "/v1/forecast/berlin", "text/plain", ""},
		} {
			t.Run(fmt.Sprintf("%s, body shown %t", c.name, body), func(t *testing.T) {
				resp, answer := p.send(t, "plugin", fmt.Sprintf("POST %s HTTP/1.1\r\nhost: api.weather.example\r\nconnection: close\r\ncontent-type: %s\r\nte: trailers\r\ncontent-length: %d\r\n\r\n%s",
					c.path, c.contentType, len(c.body), c.body))
				if upstream.Total() != 0 {
					t.Errorf("it passed: %s %s", resp.Status, answer)
				}
			})
		}
	}
	if records := h.book.all(); len(records) == 0 || records[0].Allowed || records[0].Reason != "malformed_request" ||
		!strings.Contains(records[0].Detail, "http_service") || records[0].Host != "api.weather.example" {
		t.Errorf("recorded %+v", records)
	}
}

// TestSomeHeadersShown has an own Envoy that shows only some headers.
func TestSomeHeadersShown(t *testing.T) {
	testenv.Require(t, testenv.EnvoyServer())
	h, socket := newHouse(t), filepath.Join(t.TempDir(), "run", "ext_authz.sock")
	s := h.server(t, Config{Drain: time.Second})
	testenv.MustGet(s.Listen(t.Context(), "unix:"+socket))(t)
	runServer(t, s)
	upstream := testenv.MustUpstream(t, testenv.UpstreamConfig{Plain: true, Authorize: func(*http.Request) bool { return true }})
	p := &plane{house: h, upstream: upstream}
	for _, raw := range []bool{false, true} {
		p.envoy = misconfigured(t, socket, fmt.Sprintf(
			"grpc_service: {envoy_grpc: {cluster_name: chaperone}}\n              encode_raw_headers: %t\n              allowed_headers: {patterns: [{exact: x-a}]}", raw), upstream)
		resp, body := p.send(t, "plugin", get("http://api.weather.example/v1/forecast/berlin", "x-leak: "+canary, "cookie: a=1"))
		if resp.StatusCode != http.StatusForbidden || !strings.Contains(body, "shows only some of the request's headers") || !strings.Contains(body, "allowed_headers") {
			t.Errorf("raw %t: %s %s", raw, resp.Status, body)
		}
	}
	if upstream.Total() != 0 {
		t.Error("it passed")
	}
}

// TestErrorsOfGRPC are read by gRPC's clients as before.
func TestErrorsOfGRPC(t *testing.T) {
	h, socket := newHouse(t), filepath.Join(t.TempDir(), "run", "ext_authz.sock")
	s := h.server(t, Config{Drain: time.Second})
	testenv.MustGet(s.Listen(t.Context(), "unix:"+socket))(t)
	runServer(t, s)
	conn := testenv.MustGet(grpc.NewClient("unix:"+socket, grpc.WithTransportCredentials(insecure.NewCredentials())))(t)
	defer conn.Close()
	err := conn.Invoke(t.Context(), "/pkg.Service/Denied", new(authv3.CheckRequest), new(authv3.CheckResponse))
	if code := status.Code(err); code == codes.OK || code == codes.Unavailable {
		t.Errorf("%v", err)
	}
	out := new(authv3.CheckResponse)
	if err := conn.Invoke(t.Context(), "/"+ServiceName+"/Check", envoyCheck("GET", "https", "api.weather.example", "/v1/forecast/berlin"), out); err != nil || reasonOf(out) != "granted" {
		t.Errorf("%v %v", out, err)
	}
}

// sink keeps what is written.
type sink struct {
	net.Conn

	got []byte
}

func (s *sink) Write(p []byte) (int, error) {
	s.got = append(s.got, p...)
	return len(p), nil
}

// TestNoSuccessWithoutMessage writes frames in pieces of any size: what ends its
// stream with its first headers has the status 400, and nothing else is changed.
func TestNoSuccessWithoutMessage(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var sent, want []byte
		for range rapid.IntRange(1, 8).Draw(t, "frames") {
			kind, flags := rapid.SampledFrom([]byte{0, 1, 3, 4, 6, 8, 9}).Draw(t, "type"), rapid.SampledFrom([]byte{0, 1, 4, 5}).Draw(t, "flags")
			payload := rapid.SliceOfN(rapid.SampledFrom([]byte{0x88, 0x8c, 0x40, 0x00}), 0, 20).Draw(t, "payload")
			head := []byte{0, 0, byte(len(payload)), kind, flags, 0, 0, 0, 1}
			sent = append(append(sent, head...), payload...)
			if kind == 1 && flags&1 != 0 && len(payload) > 0 && payload[0] == 0x88 {
				payload = slices.Clone(payload)
				payload[0] = 0x8c
			}
			want = append(append(want, head...), payload...)
		}
		out, original := &sink{}, slices.Clone(sent)
		c := &trailersOnlyConn{Conn: out}
		for rest := sent; len(rest) > 0; {
			n := rapid.IntRange(1, len(rest)).Draw(t, "piece")
			if _, err := c.Write(rest[:n]); err != nil {
				t.Fatal(err)
			}
			rest = rest[n:]
		}
		if string(out.got) != string(want) {
			t.Fatalf("%x, want %x", out.got, want)
		}
		if string(sent) != string(original) {
			t.Fatal("the caller's bytes were changed") // io.Writer
		}
	})
}
