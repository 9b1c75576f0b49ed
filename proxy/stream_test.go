package proxy_test

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httptrace"
	"net/netip"
	"net/textproto"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/coder/websocket"
	"golang.org/x/net/http2"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	grpctls "google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/chaperone-proxy/chaperone/authz"
	"github.com/chaperone-proxy/chaperone/internal/testenv"
)

// dialGRPC connects to an upstream's gRPC service through CONNECT.
func (w *world) dialGRPC(target string) *grpc.ClientConn {
	w.t.Helper()
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(w.proxy.CAPool())
	client, err := grpc.NewClient("passthrough:///"+target,
		grpc.WithTransportCredentials(grpctls.NewTLS(&tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12})),
		grpc.WithContextDialer(func(_ context.Context, authority string) (net.Conn, error) {
			c := w.raw()
			if response := c.connect(authority); response.StatusCode != 200 {
				return nil, errors.New(response.Status)
			}
			return c.Conn, c.Conn.SetDeadline(time.Time{})
		}))
	testenv.Must(w.t, err)
	w.t.Cleanup(func() { _ = client.Close() })
	return client
}

// chat sends three messages, each after the answer to the one before, and checks the
// answers, header and trailer.
func chat(t *testing.T, client *grpc.ClientConn, seen string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	stream, err := client.NewStream(metadata.AppendToOutgoingContext(ctx, "authorization", "Bearer mine"), testenv.EchoStream(), testenv.EchoChat)
	testenv.Must(t, err)
	header, err := stream.Header() // before any message is sent
	testenv.Must(t, err)
	if got := header.Get("x-seen-authorization-count"); len(got) != 1 || got[0] != seen {
		t.Errorf("upstream saw %v authorizations, want %s", got, seen)
	}
	for i := range 3 {
		want := fmt.Sprint("message ", i)
		testenv.Must(t, stream.SendMsg(wrapperspb.String(want)))
		got := new(wrapperspb.StringValue)
		testenv.Must(t, stream.RecvMsg(got))
		if got.GetValue() != want {
			t.Errorf("got %q, want %q", got.GetValue(), want)
		}
	}
	testenv.Must(t, stream.CloseSend())
	if err := stream.RecvMsg(new(wrapperspb.StringValue)); !errors.Is(err, io.EOF) {
		t.Errorf("stream ended with %v", err)
	}
	if got := stream.Trailer().Get("x-echoed"); len(got) != 1 || got[0] != "3" {
		t.Errorf("trailer is %v", got)
	}
}

func TestGRPC(t *testing.T) {
	api := upstream(t, testenv.UpstreamConfig{})
	chatRule := rule(api, "chat")
	chatRule.Paths = []string{testenv.EchoChat, testenv.EchoUnary}
	w := newWorld(t, setup{input: granted(chatRule)})
	client := w.dialGRPC(fmt.Sprintf("api.weather.example:%d", api.Addr.Port()))

	t.Run("both ways with trailers", func(t *testing.T) { chat(t, client, "1") })
	t.Run("error of the service", func(t *testing.T) {
		err := client.Invoke(t.Context(), testenv.EchoUnary, wrapperspb.String("fail"), new(wrapperspb.StringValue))
		if status.Code(err) != codes.FailedPrecondition {
			t.Errorf("error is %v", err)
		}
	})
	t.Run("refusal", func(t *testing.T) {
		var header metadata.MD
		err := client.Invoke(t.Context(), testenv.EchoTicks, wrapperspb.String("x"), new(wrapperspb.StringValue), grpc.Header(&header), grpc.Trailer(&header))
		if status.Code(err) != codes.PermissionDenied || !strings.Contains(status.Convert(err).Message(), "path_not_granted") {
			t.Errorf("error is %v", err)
		}
		if got := header.Get(authz.HeaderReason); len(got) != 1 || got[0] != "path_not_granted" {
			t.Errorf("metadata is %v", header)
		}
	})
	t.Run("revocation ends a stream", func(t *testing.T) {
		stream, err := client.NewStream(t.Context(), testenv.EchoStream(), testenv.EchoChat)
		testenv.Must(t, err)
		testenv.Must(t, stream.SendMsg(wrapperspb.String("x")))
		testenv.Must(t, stream.RecvMsg(new(wrapperspb.StringValue)))
		w.engine.Revoke(authz.Revocation{ID: "r", Plugin: plugin, Level: authz.LevelQuarantine})
		if err := stream.RecvMsg(new(wrapperspb.StringValue)); status.Code(err) == codes.OK {
			t.Errorf("stream ended with %v", err)
		}
		err = client.Invoke(t.Context(), testenv.EchoUnary, wrapperspb.String("x"), new(wrapperspb.StringValue))
		if status.Code(err) != codes.PermissionDenied || !strings.Contains(err.Error(), "revoked") {
			t.Errorf("error is %v", err)
		}
	})
}

// TestRefusalInTheClientsTerms answers gRPC with a gRPC status, and gRPC-Web, whose
// clients read HTTP, like other requests.
func TestRefusalInTheClientsTerms(t *testing.T) {
	api := upstream(t, testenv.UpstreamConfig{})
	r := rule(api, "chat")
	r.Paths = []string{"/granted"}
	w := newWorld(t, setup{input: granted(r)})
	client := w.client(withHTTP2)
	for kind, want := range map[string]int{
		"application/grpc": 200, "application/grpc+proto": 200, "Application/GRPC; x=y": 200,
		"application/grpc-web": 403, "application/grpc-web+proto": 403, "application/grpcx": 403,
	} {
		r := request(t, "POST", api.URL("api.weather.example", "/refused"), "x")
		r.Header.Set("Content-Type", kind)
		response, body := send(t, client, r)
		if response.StatusCode != want || (response.Header.Get("Grpc-Status") == "7") != (want == 200) {
			t.Errorf("%s: answer is %s with %v\n%s", kind, response.Status, response.Header, body)
		}
	}
}

// TestGRPCWithoutTLS speaks HTTP/2 with prior knowledge to the proxy itself.
func TestGRPCWithoutTLS(t *testing.T) {
	api := upstream(t, testenv.UpstreamConfig{Plain: true})
	r := rule(api, "chat")
	r.To.Scheme, r.To.TLS, r.Insecure = authz.SchemeHTTP, authz.TLS{}, true
	w := newWorld(t, setup{input: granted(r)})
	target := fmt.Sprintf("api.weather.example:%d", api.Addr.Port())
	client, err := grpc.NewClient("passthrough:///"+target, grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(context.Context, string) (net.Conn, error) {
			c := w.raw()
			return c.Conn, c.Conn.SetDeadline(time.Time{})
		}))
	testenv.Must(t, err)
	defer client.Close()
	chat(t, client, "1")
}

func TestServerSentEventsComeAsTheyAreSent(t *testing.T) {
	api := upstream(t, testenv.UpstreamConfig{})
	w := newWorld(t, setup{input: granted(rule(api, "read"))})
	for name, change := range map[string]func(*http.Transport){"HTTP/1.1": nil, "HTTP/2": withHTTP2} {
		t.Run(name, func(t *testing.T) {
			response, err := w.client(change).Do(request(t, "GET", api.URL("api.weather.example", "/sse?every=1h"), ""))
			testenv.Must(t, err)
			defer response.Body.Close()
			lines := bufio.NewReader(response.Body)
			for _, want := range []string{"id: 1\n", "data: event 1\n", "\n"} { // the next comes in an hour
				if got, err := lines.ReadString('\n'); err != nil || got != want {
					t.Fatalf("read %q, %v; want %q", got, err, want)
				}
			}
			if got := w.proxy.Open(); got != 1 {
				t.Errorf("%d accesses are open, want 1", got)
			}
			testenv.Must(t, response.Body.Close())
			w.settled()
		})
	}
}

func TestWebSocket(t *testing.T) {
	api := upstream(t, testenv.UpstreamConfig{})
	plain := rule(api, "plain", "other.weather.example")
	plain.Upgrades = nil
	w := newWorld(t, setup{input: granted(rule(api, "ws"), plain)})
	client := w.client(nil)

	conn, _, err := websocket.Dial(t.Context(), api.URL("api.weather.example", "/ws"), &websocket.DialOptions{HTTPClient: client})
	testenv.Must(t, err)
	defer conn.CloseNow()
	for _, want := range []string{"hello", strings.Repeat("x", 20_000)} {
		testenv.Must(t, conn.Write(t.Context(), websocket.MessageText, []byte(want)))
		if _, got, err := conn.Read(t.Context()); err != nil || string(got) != want {
			t.Fatalf("read %.20q, %v", got, err)
		}
	}
	_, response, err := websocket.Dial(t.Context(), api.URL("other.weather.example", "/ws"), &websocket.DialOptions{HTTPClient: client})
	if err == nil || response.StatusCode != 403 {
		t.Errorf("an upgrade that is not granted: %v, %v", response, err)
	}

	w.engine.Revoke(authz.Revocation{ID: "r", Plugin: plugin, Level: authz.LevelQuarantine})
	if _, _, err := conn.Read(t.Context()); err == nil {
		t.Error("a WebSocket outlived the revocation")
	}
	w.stop()
	ends := w.records.of(authz.KindEnd)
	if len(ends) != 1 || ends[0].Reason != "revoked" || ends[0].Bytes < 20_000 || ends[0].SentBytes < 20_000 {
		t.Errorf("end records are %+v", ends)
	}
}

// TestInformational forwards 100-continue and early hints.
func TestInformational(t *testing.T) {
	read := make(chan struct{})
	api := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Link", "</style.css>; rel=preload")
		w.WriteHeader(http.StatusEarlyHints)
		<-read
		_, _ = io.Copy(w, r.Body)
	}))
	defer api.Close()
	w := newWorld(t, setup{input: granted(ruleFor(api))})
	close(read)
	var codes []int
	ctx := httptrace.WithClientTrace(t.Context(), &httptrace.ClientTrace{Got1xxResponse: func(code int, header textproto.MIMEHeader) error {
		codes = append(codes, code)
		return nil
	}})
	client := w.client(func(t *http.Transport) { t.ExpectContinueTimeout = time.Minute })
	r := request(t, "POST", urlOf(api, "/"), "hello").WithContext(ctx)
	r.Header.Set("Expect", "100-continue")
	response, body := send(t, client, r)
	if response.StatusCode != 200 || body != "hello" {
		t.Errorf("answer is %s %q", response.Status, body)
	}
	if fmt.Sprint(codes) != "[103 100]" {
		t.Errorf("informational answers are %v", codes)
	}
}

// ruleFor grants a test server under api.weather.example.
func ruleFor(api *httptest.Server) authz.Rule {
	address := netip.MustParseAddrPort(api.Listener.Addr().String())
	r := authz.Rule{
		ID: "test", Reason: "a test", Methods: []string{"*"}, Paths: []string{"/**"}, Credential: "key",
		To: authz.To{
			Hosts: []string{"api.weather.example"}, Ports: []uint16{address.Port()},
			Addresses: []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")},
		},
	}
	if certificate := api.Certificate(); certificate != nil {
		r.To.TLS = authz.TLS{CA: testServerCA(api), CAFile: "ca.pem"}
		r.To.Hosts = []string{"example.com"} // the name in its certificate
	} else {
		r.To.Scheme, r.Insecure = authz.SchemeHTTP, true
	}
	return r
}

// TestBothWaysOverHTTP1 answers the first part of a body before the last part is sent.
func TestBothWaysOverHTTP1(t *testing.T) {
	api := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		control := http.NewResponseController(w)
		_ = control.EnableFullDuplex()
		buf := make([]byte, 16)
		for {
			n, err := r.Body.Read(buf)
			_, _ = w.Write(buf[:n])
			if control.Flush() != nil || err != nil {
				return
			}
		}
	}))
	defer api.Close()
	w := newWorld(t, setup{input: granted(ruleFor(api))})
	authority := strings.TrimSuffix(strings.TrimPrefix(urlOf(api, "/"), "https://"), "/")
	c := w.tunnel(authority).tls("example.com")
	c.write("POST / HTTP/1.1\r\nHost: " + authority + "\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nfirst\r\n")
	response, err := http.ReadResponse(c.in, nil)
	testenv.Must(t, err)
	part := make([]byte, 5)
	if _, err := io.ReadFull(response.Body, part); err != nil || string(part) != "first" {
		t.Fatalf("the first part is %q, %v", part, err)
	}
	c.write("4\r\nlast\r\n0\r\n\r\n")
	if rest, err := io.ReadAll(response.Body); err != nil || string(rest) != "last" {
		t.Errorf("the rest is %q, %v", rest, err)
	}
}

// TestBrokenBody checks that a malformed body is attributed to the side that sent it.
func TestBrokenBody(t *testing.T) {
	api := upstream(t, testenv.UpstreamConfig{})
	w := newWorld(t, setup{input: granted(rule(api, "read"))})
	authority := fmt.Sprintf("api.weather.example:%d", api.Addr.Port())
	c := w.tunnel(authority).tls("api.weather.example")
	c.want(authz.MalformedRequest, "POST /echo HTTP/1.1\r\nHost: "+authority+"\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\nzz\r\n")
}

func TestTrailersBothWays(t *testing.T) {
	api := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		w.Header().Set("Trailer", "X-Announced")
		fmt.Fprintf(w, "%s %s %v %v", body, r.Trailer.Get("X-Digest"), r.Trailer["Authorization"], r.Trailer["X_api_key"])
		w.Header().Set("X-Announced", "1")
		w.Header().Set(http.TrailerPrefix+"X-Late", "2")
		w.Header().Set(http.TrailerPrefix+"X-Chaperone-Reason", "granted")
	}))
	api.EnableHTTP2 = true
	api.StartTLS()
	defer api.Close()
	w := newWorld(t, setup{input: granted(ruleFor(api))})
	for name, change := range map[string]func(*http.Transport){"HTTP/1.1": nil, "HTTP/2": withHTTP2} {
		t.Run(name, func(t *testing.T) {
			r := request(t, "POST", urlOf(api, "/"), "")
			r.Body, r.ContentLength, r.GetBody = io.NopCloser(strings.NewReader("body")), -1, nil
			r.Trailer = http.Header{"X-Digest": {"d"}}
			if change == nil { // over HTTP/2 net/http itself refuses it
				r.Trailer["Authorization"] = []string{"Bearer mine"}
			}
			response, body := send(t, w.client(change), r)
			if body != "body d [] []" {
				t.Errorf("upstream received %q", body)
			}
			if got := response.Trailer; got.Get("X-Announced") != "1" || got.Get("X-Late") != "2" || got["X-Chaperone-Reason"] != nil {
				t.Errorf("trailers are %v", got)
			}
		})
	}
}

func urlOf(api *httptest.Server, path string) string {
	u, err := url.Parse(api.URL)
	if err != nil {
		panic(err)
	}
	host := "api.weather.example"
	if u.Scheme == "https" {
		host = "example.com"
	}
	return u.Scheme + "://" + host + ":" + u.Port() + path
}

// TestUpstreamThatResetsEveryStream makes net/http repeat the request.
func TestUpstreamThatResetsEveryStream(t *testing.T) {
	var seen atomic.Int32
	listener, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
	testenv.Must(t, err)
	api := httptest.NewUnstartedServer(nil) // for its certificate
	api.StartTLS()
	defer api.Close()
	r := ruleFor(api)
	r.To.Ports = []uint16{netip.MustParseAddrPort(listener.Addr().String()).Port()}
	config := api.TLS.Clone()
	config.NextProtos = []string{"h2"}
	var serving sync.WaitGroup
	serving.Go(func() {
		for {
			c, err := listener.Accept()
			if err != nil {
				return
			}
			serving.Go(func() { resetStreams(tls.Server(c, config), &seen) })
		}
	})
	defer serving.Wait()
	defer listener.Close()
	w := newWorld(t, setup{input: granted(r)})
	response, body := send(t, w.client(withHTTP2), request(t, "GET", fmt.Sprintf("https://example.com:%d/", r.To.Ports[0]), ""))
	wantRefusal(t, response, body, authz.UpstreamUnreachable)
	if n := seen.Load(); n > 4 {
		t.Errorf("one request was sent %d times", n)
	}
	w.stop()
}

// resetStreams answers every request with PROTOCOL_ERROR.
func resetStreams(c net.Conn, seen *atomic.Int32) {
	defer c.Close()
	if _, err := io.ReadFull(c, make([]byte, len(http2.ClientPreface))); err != nil {
		return
	}
	framer := http2.NewFramer(c, c)
	if framer.WriteSettings() != nil {
		return
	}
	for {
		frame, err := framer.ReadFrame()
		if err != nil {
			return
		}
		if headers, ok := frame.(*http2.HeadersFrame); ok {
			seen.Add(1)
			if framer.WriteRSTStream(headers.StreamID, http2.ErrCodeProtocol) != nil {
				return
			}
		}
	}
}
