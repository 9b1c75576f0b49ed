package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
	"unicode/utf8"

	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/chaperone-proxy/chaperone/authz"
	"github.com/chaperone-proxy/chaperone/authz/extauthz"
	"github.com/chaperone-proxy/chaperone/internal/testenv"
	"github.com/chaperone-proxy/chaperone/proxy"
	"github.com/chaperone-proxy/chaperone/proxy/session"
)

// lastRecord keeps the last audit record.
type lastRecord struct {
	mu     sync.Mutex
	record *authz.Record
}

func (l *lastRecord) Record(r *authz.Record) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	kept := *r
	l.record = &kept
	return nil
}

// take returns the last record and removes it; nil without one.
func (l *lastRecord) take() *authz.Record {
	l.mu.Lock()
	defer l.mu.Unlock()
	r := l.record
	l.record = nil
	return r
}

// doors are both doors of one gate that grants nothing.
type doors struct {
	records lastRecord
	proxy   string
	envoy   authv3.AuthorizationClient
}

func newDoors(f *testing.F) *doors {
	f.Helper()
	d := &doors{}
	policy, problems := authz.Compile(authz.Input{Plugin: "weather"}, time.Now())
	if len(problems) > 0 {
		f.Fatal(problems)
	}
	engine := &authz.Engine{}
	engine.Install(policy)
	gate := testenv.MustGet(authz.NewGate(authz.GateConfig{Engine: engine, Ledger: authz.NewLedger(), Recorder: &d.records, Now: time.Now}))(f)
	p := testenv.MustGet(proxy.New(proxy.Config{
		Plugin: "weather", Gate: gate, Engine: engine, Identify: func(net.Conn) (session.Peer, bool) { return session.Peer{UID: -1}, true },
	}))(f)
	listener := testenv.MustGet(new(net.ListenConfig).Listen(f.Context(), "tcp", "127.0.0.1:0"))(f)
	d.proxy = listener.Addr().String()
	e := testenv.MustGet(extauthz.New(extauthz.Config{Plugin: "weather", Gate: gate, Ready: func() bool { return true }}))(f)
	addr := testenv.MustGet(e.Listen(f.Context(), "unix:"+filepath.Join(f.TempDir(), "run", "check.sock")))(f)
	conn := testenv.MustGet(grpc.NewClient("unix:"+addr.String(), grpc.WithTransportCredentials(insecure.NewCredentials())))(f)
	d.envoy = authv3.NewAuthorizationClient(conn)

	ctx, cancel := context.WithCancel(context.WithoutCancel(f.Context()))
	var running sync.WaitGroup
	running.Go(func() { testenv.Must(f, p.Serve(ctx, listener)) })
	running.Go(func() { testenv.Must(f, e.Run(ctx)) })
	f.Cleanup(func() {
		conn.Close()
		cancel()
		running.Wait()
	})
	return d
}

// byProxy asks through the proxy and returns what was recorded; nil when
// net/http made no request of it.
func (d *doors) byProxy(t *testing.T, method, host, target string) *authz.Record {
	t.Helper()
	conn := testenv.MustGet(new(net.Dialer).DialContext(t.Context(), "tcp", d.proxy))(t)
	defer conn.Close()
	testenv.Must(t, conn.SetDeadline(time.Now().Add(20*time.Second)))
	fmt.Fprintf(conn, "%s http://%s%s HTTP/1.1\r\nHost: %s\r\nConnection: close\r\n\r\n", method, host, target, host)
	resp, err := http.ReadResponse(bufio.NewReader(conn), &http.Request{Method: http.MethodGet})
	if err == nil {
		resp.Body.Close()
	} else if errors.Is(err, net.ErrClosed) {
		t.Fatal(err)
	}
	return d.records.take()
}

// byEnvoy asks as Envoy does of the same request.
func (d *doors) byEnvoy(t *testing.T, method, host, target string) *authz.Record {
	t.Helper()
	_, err := d.envoy.Check(t.Context(), &authv3.CheckRequest{Attributes: &authv3.AttributeContext{
		Request: &authv3.AttributeContext_Request{Http: &authv3.AttributeContext_HttpRequest{
			Id: "1", Method: method, Scheme: "http", Host: host, Path: target, Protocol: "HTTP/1.1",
			Headers: map[string]string{":method": method, ":authority": host, ":path": target, ":scheme": "http"},
		}},
	}})
	testenv.Must(t, err)
	return d.records.take()
}

// FuzzDoors asks for one access at both doors: they take it for the same, or
// neither takes it for one.
func FuzzDoors(f *testing.F) {
	for _, seed := range [][3]string{
		{"GET", "api.weather.example", "v1/forecast/berlin?days=3"},
		{"get", "API.weather.example.:8080", "v1/f%6frecast/%7e?"},
		{"POST", "[::FFFF:127.0.0.1]:80", "a%2fb"},
		{"GET", "127.1", "/a"},
		{"GET", "0x7f.1:443", "a/../b"},
		{"GET", "a,b", "a;b"},
		{"GET", "a:080", "%c3%a9?a=%zz"},
		{"GET", "u@a", "{a}|b?q=\"x\""},
		{"PRI", "a", "*"},
	} {
		f.Add(seed[0], seed[1], seed[2])
	}
	d := newDoors(f)
	f.Fuzz(func(t *testing.T, method, host, path string) {
		target := "/" + path
		if !utf8.ValidString(method+host+target) || method == "" || host == "" || method == http.MethodConnect ||
			strings.ContainsAny(method+host+target, "\x00\r\n\t ") || strings.ContainsAny(host, "/?#") || len(target) > 4<<10 {
			return // it is not one access at both
		}
		proxied, asked := d.byProxy(t, method, host, target), d.byEnvoy(t, method, host, target)
		if asked == nil {
			t.Fatal("Envoy's door records nothing")
		}
		if proxied == nil {
			return
		}
		if proxied.Reason != asked.Reason {
			t.Fatalf("got %s (%s) from the proxy and %s (%s) from Envoy's door, want the same", proxied.Reason, proxied.Detail, asked.Reason, asked.Detail)
		}
		type what struct {
			method, scheme, host, path, query string
			port                              uint16
		}
		of := func(r *authz.Record) what { return what{r.Method, r.Scheme, r.Host, r.Path, r.Query, r.Port} }
		if proxied.Reason != authz.MalformedRequest.String() && of(proxied) != of(asked) {
			t.Errorf("the proxy takes it for %+v, Envoy's door for %+v", of(proxied), of(asked))
		}
	})
}
