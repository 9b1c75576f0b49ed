package xds_test

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/chaperone-proxy/chaperone/authz"
	"github.com/chaperone-proxy/chaperone/internal/testenv"
)

// recorded waits for a record as wanted.
func (b *book) recorded(t *testing.T, what string, as func(*authz.Record) bool) authz.Record {
	t.Helper()
	var found authz.Record
	until(t, "recorded: "+what, func() bool {
		b.mu.Lock()
		defer b.mu.Unlock()
		for i := range b.records {
			if as(&b.records[i]) {
				found = b.records[i]
				return true
			}
		}
		return false
	})
	return found
}

// TestEnvoyAnswersByItself has each kind of answer that Envoy gives without the
// sidecar: it looks as the sidecar's own, and is on the record.
func TestEnvoyAnswersByItself(t *testing.T) {
	slow := plainHTTP("slow", "slow.weather.example")
	slow.Timeout = authz.Duration(500 * time.Millisecond)
	p := newPlane(t, nil, grant(slow, plainHTTP("gone", "gone.weather.example"), plainHTTP("odd", "odd.weather.example")))
	p.leads("slow.weather.example:80", upstream(t, func(conn net.Conn) { _, _ = io.Copy(io.Discard, conn) }))
	p.leads("odd.weather.example:80", upstream(t, func(conn net.Conn) {
		_, _ = http.ReadRequest(bufio.NewReader(conn))
		_, _ = io.WriteString(conn, "HTTP/1.1 200 OK\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\nok")
	}))
	for _, c := range []struct {
		name, request string
		status        int
		reason        string
		details       string
		decided       bool
	}{
		{"no HTTP", "GET /\x01 HTTP/1.1\r\nhost: a\r\n\r\n", 400, "malformed_request", "http1.invalid_characters", false},
		{"two lengths", "POST http://odd.weather.example/ HTTP/1.1\r\nhost: odd.weather.example\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\nok", 400, "malformed_request", "http1.", false},
		{"a head that is too long", get("http://odd.weather.example/", "x-long: "+strings.Repeat("v", 80<<10)), 431, "malformed_request", "http1.headers_too_large", false},
		{"no host", "GET / HTTP/1.1\r\n\r\n", 400, "malformed_request", "missing_host_header", false},
		{"an upgrade that no rule grants", get("http://odd.weather.example/", "connection: upgrade", "upgrade: tls-of-mine"), 403, "method_not_granted", "upgrade_failed", false},
		{"nobody answers", get("http://gone.weather.example/"), 502, "upstream_unreachable", "upstream_reset_before_response_started", true},
		{"a late answer", get("http://slow.weather.example/secret-path?key=1"), 504, "upstream_timeout", "max_duration_timeout", true},
		{"an odd answer", get("http://odd.weather.example/"), 502, "upstream_unreachable", "upstream_reset_before_response_started", true},
	} {
		t.Run(c.name, func(t *testing.T) {
			p.book.forget()
			resp, body := p.send(t, c.request)
			var problem struct {
				Type, Title, Detail, Plugin, Decision, Remedy string
				Status                                        int
			}
			if err := json.Unmarshal([]byte(body), &problem); err != nil || resp.Header.Get("content-type") != authz.RefusalContentType {
				t.Fatalf("%s %v %q: %v", resp.Status, resp.Header, body, err)
			}
			if resp.StatusCode != c.status || problem.Status != c.status || resp.Header.Get(authz.HeaderReason) != c.reason ||
				!strings.HasSuffix(problem.Type, "/"+c.reason) || problem.Title == "" || problem.Plugin != plugin || problem.Remedy == "" ||
				!strings.HasPrefix(problem.Detail, "Envoy answered by itself: "+c.details) {
				t.Errorf("%s %v %s", resp.Status, resp.Header, body)
			}
			kind := authz.KindDecision
			if c.decided {
				kind = authz.KindEnd
				if problem.Decision == "" || resp.Header.Get(authz.HeaderDecision) != problem.Decision {
					t.Errorf("%v %s", resp.Header, body)
				}
			}
			r := p.book.recorded(t, c.name, func(r *authz.Record) bool { return strings.Contains(r.Detail, c.details) })
			if r.Kind != kind || r.Allowed || r.Reason != c.reason || c.decided && r.Decision != problem.Decision || r.Decision == "" || strings.Contains(fmt.Sprint(r), "key=1") {
				t.Errorf("recorded %+v", r)
			}
		})
	}
	t.Run("gRPC", func(t *testing.T) {
		conn := testenv.MustGet(grpc.NewClient("passthrough:///"+p.config.Explicit.String(),
			grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithAuthority("gone.weather.example")))(t)
		defer conn.Close()
		err := conn.Invoke(t.Context(), testenv.EchoUnary, wrapperspb.String("hello"), new(wrapperspb.StringValue))
		if s := status.Convert(err); s.Code() != codes.Unavailable || !strings.HasPrefix(s.Message(), "upstream_unreachable: Envoy answered by itself: ") {
			t.Errorf("%v", err)
		}
	})
	t.Run("a stream of HTTP/2", func(t *testing.T) {
		p.book.forget()
		conn := p.dial(t)
		testenv.MustGet(io.WriteString(conn, http2.ClientPreface))(t)
		framer := http2.NewFramer(conn, conn)
		testenv.Must(t, framer.WriteSettings())
		var block strings.Builder
		encoder := hpack.NewEncoder(&block)
		for _, f := range []hpack.HeaderField{
			{Name: ":method", Value: "GET"},
			{Name: ":path", Value: "/"},
			{Name: ":scheme", Value: "http"},
			{Name: ":authority", Value: "odd.weather.example"},
			{Name: "connection", Value: "close"}, // malformed in HTTP/2 (RFC 9113, section 8.2.2)
		} {
			testenv.Must(t, encoder.WriteField(f))
		}
		testenv.Must(t, framer.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: []byte(block.String()), EndHeaders: true, EndStream: true}))
		r := p.book.recorded(t, "the reset", func(r *authz.Record) bool { return strings.HasPrefix(r.Detail, "Envoy reset the stream: http2.") })
		if r.Kind != authz.KindDecision || r.Allowed || r.Reason != "malformed_request" {
			t.Errorf("%+v", r)
		}
	})
	t.Run("without the sidecar", func(t *testing.T) {
		p.stopCheck()
		resp, body := p.send(t, get("http://odd.weather.example/"))
		if resp.StatusCode != http.StatusServiceUnavailable || resp.Header.Get(authz.HeaderReason) != "not_ready" || !strings.Contains(body, "/reasons/not_ready") {
			t.Errorf("%s %v %s", resp.Status, resp.Header, body)
		}
		p.startCheck(t)
		p.book.recorded(t, "the answer, when the sidecar is there again", func(r *authz.Record) bool {
			return strings.Contains(r.Detail, "ext_authz_error") && r.Reason == "not_ready"
		})
	})
}
