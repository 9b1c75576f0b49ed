package testenv_test

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/coder/websocket"
	"github.com/miekg/dns"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/chaperone-proxy/chaperone/internal/testenv"
)

func client(t *testing.T, upstream *testenv.Upstream) *http.Client {
	transport := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: upstream.Pool()}, ForceAttemptHTTP2: true}
	t.Cleanup(transport.CloseIdleConnections)
	return &http.Client{Transport: transport, CheckRedirect: func(*http.Request, []*http.Request) error {
		return http.ErrUseLastResponse
	}}
}

func get(t *testing.T, upstream *testenv.Upstream, path, token string) *http.Response {
	t.Helper()
	req := testenv.MustGet(http.NewRequestWithContext(t.Context(), http.MethodGet, upstream.URL("", path), nil))(t)
	if token != "" {
		req.Header.Set("Authorization", "Bearer "+token)
	}
	resp := testenv.MustGet(client(t, upstream).Do(req))(t)
	t.Cleanup(func() { _ = resp.Body.Close() })
	return resp
}

func TestUpstreamWantsItsToken(t *testing.T) {
	upstream := testenv.MustUpstream(t, testenv.UpstreamConfig{})
	for _, test := range []struct {
		path, token string
		want        int
	}{
		{"/echo", "", http.StatusUnauthorized},
		{"/echo", "wrong", http.StatusUnauthorized},
		{"/echo", upstream.Token(), http.StatusOK},
		{"/a//b/../c", upstream.Token(), http.StatusOK},
		{"/open", "", http.StatusOK},
		{"/status?code=418", upstream.Token(), http.StatusTeapot},
		{"/redirect?to=/echo", upstream.Token(), http.StatusFound},
	} {
		if got := get(t, upstream, test.path, test.token).StatusCode; got != test.want {
			t.Errorf("GET %s with token %q: %d, want %d", test.path, test.token, got, test.want)
		}
	}
	received := upstream.Requests()
	if len(received) != 7 || received[3].Target != "/a//b/../c" || !received[3].Accepted || received[1].Accepted {
		t.Errorf("received %+v", received)
	}
	upstream.SetToken("rotated")
	if got := get(t, upstream, "/echo", "rotated").StatusCode; got != http.StatusOK {
		t.Errorf("GET with the new token: %d", got)
	}
}

func TestUpstreamProtocols(t *testing.T) {
	for want, cfg := range map[string]testenv.UpstreamConfig{
		"HTTP/2.0": {},
		"HTTP/1.1": {HTTP1: true},
	} {
		upstream := testenv.MustUpstream(t, cfg)
		var echoed testenv.Received
		testenv.Must(t, json.NewDecoder(get(t, upstream, "/echo?q=1", upstream.Token()).Body).Decode(&echoed))
		if echoed.Proto != want || echoed.Target != "/echo?q=1" || echoed.SNI != "localhost" {
			t.Errorf("echoed %+v, want %s", echoed, want)
		}
		resp := get(t, upstream, "/trailers", upstream.Token())
		testenv.MustGet(io.ReadAll(resp.Body))(t)
		if got := resp.Trailer.Get("X-Digest"); got != "of-a-body" {
			t.Errorf("%s trailer is %q", want, got)
		}
		if body := testenv.MustGet(io.ReadAll(get(t, upstream, "/download?bytes=100000", upstream.Token()).Body))(t); len(body) != 100000 {
			t.Errorf("%s download is %d bytes", want, len(body))
		}
		if body := testenv.MustGet(io.ReadAll(get(t, upstream, "/sse?every=1ms&count=3", upstream.Token()).Body))(t); !strings.HasSuffix(string(body), "data: event 3\n\n") {
			t.Errorf("%s events are %q", want, body)
		}
	}
}

func TestUpstreamStreamsAreCounted(t *testing.T) {
	upstream := testenv.MustUpstream(t, testenv.UpstreamConfig{})
	resp := get(t, upstream, "/stream", upstream.Token())
	testenv.Must(t, upstream.WaitStreams(t.Context(), 1))
	testenv.MustGet(io.ReadFull(resp.Body, make([]byte, 1<<20)))(t)
	testenv.Must(t, resp.Body.Close())
	testenv.Must(t, upstream.WaitStreams(t.Context(), 0))
}

func TestUpstreamWebSocket(t *testing.T) {
	upstream := testenv.MustUpstream(t, testenv.UpstreamConfig{HTTP1: true})
	url := "wss" + strings.TrimPrefix(upstream.URL("", "/ws"), "https")
	conn, _, err := websocket.Dial(t.Context(), url, &websocket.DialOptions{
		HTTPClient: client(t, upstream),
		HTTPHeader: http.Header{"Authorization": {"Bearer " + upstream.Token()}},
	})
	testenv.Must(t, err)
	defer conn.CloseNow()
	testenv.Must(t, conn.Write(t.Context(), websocket.MessageText, []byte("hello")))
	_, message, err := conn.Read(t.Context())
	if err != nil || string(message) != "hello" {
		t.Errorf("read %q, %v", message, err)
	}
	testenv.Must(t, conn.Close(websocket.StatusNormalClosure, ""))
}

func TestUpstreamGRPC(t *testing.T) {
	upstream := testenv.MustUpstream(t, testenv.UpstreamConfig{})
	conn := testenv.MustGet(grpc.NewClient("passthrough:///"+upstream.Addr.String(),
		grpc.WithTransportCredentials(credentials.NewTLS(&tls.Config{RootCAs: upstream.Pool(), ServerName: "localhost"}))))(t)
	defer conn.Close()
	ctx := metadata.AppendToOutgoingContext(t.Context(), "authorization", "Bearer "+upstream.Token())

	stream := testenv.MustGet(conn.NewStream(ctx, testenv.EchoStream(), testenv.EchoChat))(t)
	for _, text := range []string{"one", "two"} {
		testenv.Must(t, stream.SendMsg(wrapperspb.String(text)))
		var got wrapperspb.StringValue
		testenv.Must(t, stream.RecvMsg(&got))
		if got.GetValue() != text {
			t.Errorf("echo of %q is %q", text, got.GetValue())
		}
	}
	testenv.Must(t, stream.CloseSend())
	if err := stream.RecvMsg(new(wrapperspb.StringValue)); !errors.Is(err, io.EOF) {
		t.Errorf("end of the stream: %v", err)
	}
	header := testenv.MustGet(stream.Header())(t)
	if got := header.Get("x-seen-authorization-count"); len(got) != 1 || got[0] != "1" {
		t.Errorf("authorization headers seen: %q", got)
	}
	if got := stream.Trailer().Get("x-echoed"); len(got) != 1 || got[0] != "2" {
		t.Errorf("trailer x-echoed is %q", got)
	}
	err := conn.Invoke(ctx, testenv.EchoUnary, wrapperspb.String("fail"), new(wrapperspb.StringValue))
	if status.Code(err) != codes.FailedPrecondition {
		t.Errorf("unary call that fails: %v", err)
	}
	err = conn.Invoke(t.Context(), testenv.EchoUnary, wrapperspb.String("x"), new(wrapperspb.StringValue))
	if status.Code(err) != codes.Unauthenticated {
		t.Errorf("call without a token: %v", err)
	}
	testenv.Must(t, upstream.WaitStreams(t.Context(), 0))
}

func TestUpstreamWantsClientCertificate(t *testing.T) {
	ca := testenv.MustGet(testenv.NewCA("clients"))(t)
	upstream := testenv.MustUpstream(t, testenv.UpstreamConfig{ClientCA: ca})
	c := client(t, upstream)
	req := testenv.MustGet(http.NewRequestWithContext(t.Context(), http.MethodGet, upstream.URL("", "/open"), nil))(t)
	if resp, err := c.Do(req); err == nil {
		resp.Body.Close()
		t.Fatal("a client without a certificate was served")
	}
	pair := testenv.MustGet(ca.Issue("plugin.example"))(t)
	transport, ok := c.Transport.(*http.Transport)
	if !ok {
		t.Fatal("no transport")
	}
	transport.TLSClientConfig.Certificates = []tls.Certificate{pair}
	resp := testenv.MustGet(c.Do(req))(t)
	testenv.Must(t, resp.Body.Close())
	if got := upstream.Requests()[0].Client; got != "CN=plugin.example" {
		t.Errorf("client certificate is %q", got)
	}
}

func TestDNSAnswers(t *testing.T) {
	server := testenv.MustDNS(t)
	a, b := netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("127.0.0.1")
	server.Set("api.example", a, netip.MustParseAddr("2001:db8::1"))
	server.SetSequence("rebound.example", []netip.Addr{a}, []netip.Addr{b})
	testenv.Must(t, server.SetRecords("alias.example", "alias.example. 5 IN CNAME api.example.", "api.example. 5 IN A 192.0.2.9"))
	server.Fail("broken.example", dns.RcodeServerFailure)
	server.Silence("silent.example")
	many := make([]netip.Addr, 100)
	for i := range many {
		many[i] = netip.AddrFrom4([4]byte{192, 0, 2, byte(i)})
	}
	server.Set("many.example", many...)

	for _, network := range []string{"udp", "tcp"} {
		resolver := &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, asked, _ string) (net.Conn, error) {
			if network == "tcp" {
				asked = "tcp"
			}
			return new(net.Dialer).DialContext(ctx, asked, server.Addr.String())
		}}
		lookup := func(name string) string {
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			defer cancel()
			got, err := resolver.LookupNetIP(ctx, "ip4", name)
			if err != nil {
				var failed *net.DNSError
				if errors.As(err, &failed) && failed.IsNotFound {
					return "not found"
				}
				return "error"
			}
			if len(got) > 1 {
				return "many"
			}
			return got[0].String()
		}
		for name, want := range map[string]string{
			"API.example.": "192.0.2.1", "alias.example.": "192.0.2.9", "broken.example.": "error",
			"unknown.example.": "not found", "many.example.": "many",
		} {
			if got := lookup(name); got != want {
				t.Errorf("%s: %s is %s, want %s", network, name, got, want)
			}
		}
		if network == "udp" {
			if first, second := lookup("rebound.example."), lookup("rebound.example."); first != a.String() || second != b.String() {
				t.Errorf("rebound.example is %s, then %s", first, second)
			}
		}
	}
	question := new(dns.Msg).SetQuestion("silent.example.", dns.TypeA)
	if _, _, err := (&dns.Client{Timeout: 100 * time.Millisecond}).Exchange(question, server.Addr.String()); err == nil {
		t.Error("silent.example was answered")
	}
	if got := server.Queries(); len(got) == 0 || got[0].Qclass != dns.ClassINET {
		t.Errorf("queries are %v", got)
	}
}
