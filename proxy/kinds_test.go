package proxy_test

import (
	"bytes"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/chaperone-proxy/chaperone/authz"
	"github.com/chaperone-proxy/chaperone/internal/testenv"
	"github.com/chaperone-proxy/chaperone/proxy"
	"github.com/chaperone-proxy/chaperone/proxy/sigv4"
)

// issue gives the plugin's credential a client certificate, of a new generation.
func (c *credentials) issue(t testing.TB, ca *testenv.CA, name string) {
	t.Helper()
	pair, err := ca.IssueFrom(&x509.Certificate{
		Subject: pkix.Name{CommonName: name}, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
	})
	testenv.Must(t, err)
	key, err := x509.MarshalPKCS8PrivateKey(pair.PrivateKey)
	testenv.Must(t, err)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.generation++
	c.pem = map[string]string{
		"certificate": string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: pair.Certificate[0]})),
		"private_key": string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: key})),
	}
}

// TestCertificate presents a client certificate, and after its rotation only the next
// one: the old one is used neither on a kept connection nor by a session ticket.
func TestCertificate(t *testing.T) {
	clients, err := testenv.NewCA("clients")
	testenv.Must(t, err)
	strangers, err := testenv.NewCA("strangers")
	testenv.Must(t, err)
	api := upstream(t, testenv.UpstreamConfig{ClientCA: clients, Authorize: func(*http.Request) bool { return true }})
	w := newWorld(t, setup{input: authz.Input{Grants: []authz.Grant{grant(authz.Inject{MTLS: &authz.MTLS{}}, rule(api, "read"))}}})
	for name, change := range map[string]func(*http.Transport){"HTTP/1.1": nil, "HTTP/2": withHTTP2} {
		client := w.client(change)
		for _, subject := range []string{"first", "second", "third"} {
			w.credentials.issue(t, clients, subject)
			for range 2 {
				api.Forget()
				response, body := send(t, client, request(t, "GET", api.URL("api.weather.example", "/x"), ""))
				got := api.Requests()
				if response.StatusCode != 200 || len(got) != 1 || !strings.Contains(got[0].Client, subject) || len(got[0].Header["Authorization"]) > 0 {
					t.Fatalf("%s: %s %s, the upstream received %+v", name, response.Status, body, got)
				}
			}
		}
		w.credentials.issue(t, strangers, "stranger")
		response, body := send(t, client, request(t, "GET", api.URL("api.weather.example", "/x"), ""))
		wantRefusal(t, response, body, authz.UpstreamUnreachable)
		w.credentials.pem["private_key"] = "nonsense"
		response, body = send(t, client, request(t, "GET", api.URL("api.weather.example", "/x"), ""))
		wantRefusal(t, response, body, authz.CredentialUnavailable)
	}
}

// awsWitness verifies AWS signatures as AWS does: with its own copy of the key, over the
// request that arrived.
type awsWitness struct {
	*httptest.Server
	mu      sync.Mutex
	service string
	faults  []string
	last    *http.Request
}

const awsSecret, awsSession = "wJalrXUtnFEMI/K7MDENG+bPxRfiCYcanary", "session/token+canary=="

func newAWS(t *testing.T, service string) *awsWitness {
	t.Helper()
	w := &awsWitness{service: service}
	w.Server = httptest.NewUnstartedServer(http.HandlerFunc(w.serve))
	w.EnableHTTP2 = true
	w.StartTLS()
	t.Cleanup(w.Close)
	return w
}

func (w *awsWitness) serve(out http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	at, wrong := time.Parse("20060102T150405Z", r.Header.Get("X-Amz-Date"))
	path, query, _ := strings.Cut(r.RequestURI, "?")
	again := &sigv4.Request{
		Method: r.Method, Scheme: "https", Host: r.Host, Path: path, Query: query, Header: r.Header.Clone(),
		Body: bytes.NewReader(body), Length: int64(len(body)),
	}
	_, unsigned := sigv4.Sign(r.Context(), again, sigv4.Scope{Service: w.service, Region: "eu-west-1"},
		sigv4.Key{ID: "AKIDCANARY", Secret: authz.NewSecret(awsSecret), Session: authz.NewSecret(awsSession)}, at)
	w.mu.Lock()
	defer w.mu.Unlock()
	w.last = r
	if got, want := r.Header["Authorization"], again.Header["Authorization"]; err != nil || wrong != nil || unsigned != nil ||
		len(got) != 1 || len(want) != 1 || got[0] != want[0] || time.Since(at).Abs() > time.Minute {
		w.faults = append(w.faults, fmt.Sprintf("%s %s is signed %v, want %v (%v %v %v)", r.Method, r.RequestURI, got, want, err, wrong, unsigned))
	}
	_, _ = fmt.Fprintf(out, "%s %s %s", body, awsSecret, awsSession)
}

// TestSignature replaces the signature of a plugin that signs with a placeholder key.
func TestSignature(t *testing.T) {
	for _, service := range []string{"s3", "dynamodb"} {
		api := newAWS(t, service)
		inject := authz.Inject{SigV4: &authz.SigV4{Service: service, Region: "eu-west-1"}}
		w := newWorld(t, setup{input: authz.Input{Grants: []authz.Grant{grant(inject, ruleFor(api.Server))}}})
		w.credentials.more = map[string]string{"access_key": "AKIDCANARY", "secret_key": awsSecret, "security_token": awsSession}
		forged := http.Header{
			"Authorization":        {"AWS4-HMAC-SHA256 Credential=MINE/20260101/us-east-1/iam/aws4_request, SignedHeaders=host, Signature=00"},
			"X-Amz-Date":           {"20200101T000000Z"},
			"X-Amz-Security-Token": {"mine"},
			"X_amz_date":           {"20200101T000000Z"},
		}
		presigned := "?a=1&X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Credential=MINE&X-Amz-Signature=00&x-amz-security%2Dtoken=mine&b=%2B"
		for _, change := range map[string]func(*http.Transport){"HTTP/1.1": nil, "HTTP/2": withHTTP2} {
			client := w.client(change)
			for _, test := range []struct{ method, path, body, ranges string }{
				{"GET", "/bucket/a%20key", "", ""},
				{"GET", "/bucket/x", "", "bytes=3-9"},
				{"PUT", "/bucket/x" + presigned, "hello", ""},
				{"POST", "/", `{"TableName":"t"}`, ""},
				{"GET", "/" + presigned, "", ""},
			} {
				r := request(t, test.method, urlOf(api.Server, test.path), test.body)
				r.Header = forged.Clone()
				if test.ranges != "" {
					r.Header.Set("Range", test.ranges)
				}
				response, body := send(t, client, r)
				if response.StatusCode != 200 || !strings.HasPrefix(body, test.body) || strings.Contains(body, awsSecret[:9]) || strings.Contains(body, awsSession[:9]) {
					t.Errorf("%s %s: %s %s", test.method, test.path, response.Status, body)
				}
				api.mu.Lock()
				if seen := fmt.Sprint(api.last.Header, api.last.RequestURI); strings.Contains(seen, "mine") || strings.Contains(seen, "MINE") || strings.Contains(seen, "20200101") {
					t.Errorf("of the plugin's own signature came %s", seen)
				}
				if signed := api.last.Header.Get("Authorization"); test.ranges != "" && !strings.Contains(signed, "range") {
					t.Errorf("the part that is asked for is not signed: %s", signed)
				}
				api.mu.Unlock()
			}
			for name, change := range map[string]func(*http.Request){
				"signed chunks": func(r *http.Request) { r.Header.Set("X-Amz-Content-Sha256", "STREAMING-AWS4-HMAC-SHA256-PAYLOAD") },
				"a plus":        func(r *http.Request) { r.URL.RawQuery = "a=b+c" },
			} {
				api.mu.Lock()
				api.last = nil
				api.mu.Unlock()
				r := request(t, "PUT", urlOf(api.Server, "/bucket/x"), "hello")
				change(r)
				response, body := send(t, client, r)
				wantRefusal(t, response, body, authz.MalformedRequest)
				if api.last != nil || !strings.Contains(body, "remedy") {
					t.Errorf("%s: %s", name, body)
				}
			}
		}
		if len(api.faults) > 0 {
			t.Errorf("%s: %s", service, strings.Join(api.faults, "\n"))
		}
		w.credentials.mu.Lock() // a new generation signs the next request
		w.credentials.generation++
		w.credentials.more["access_key"] = "AKIDNEXT"
		w.credentials.mu.Unlock()
		send(t, w.client(nil), request(t, "GET", urlOf(api.Server, "/bucket/x"), ""))
		if signed := api.last.Header.Get("Authorization"); !strings.Contains(signed, "Credential=AKIDNEXT/") {
			t.Errorf("after the rotation: %s", signed)
		}
	}
}

// TestNotSentAgainElsewhere has an upstream take a request and end the
// connection. net/http would send it again, to whichever address comes next.
func TestNotSentAgainElsewhere(t *testing.T) {
	var elsewhere atomic.Int32
	first, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
	testenv.Must(t, err)
	port := netip.MustParseAddrPort(first.Addr().String()).Port()
	second, err := new(net.ListenConfig).Listen(t.Context(), "tcp", fmt.Sprintf("127.0.0.2:%d", port))
	testenv.Must(t, err)
	var serving sync.WaitGroup
	defer serving.Wait()
	defer second.Close()
	defer first.Close()
	serving.Go(func() { // answers the first request of a connection, and ends at the second
		c, err := first.Accept()
		if err != nil {
			return
		}
		b := make([]byte, 4096)
		_, _ = c.Read(b)
		_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
		_, _ = c.Read(b)
		_ = first.Close()
		_ = c.Close()
	})
	serving.Go(func() {
		for {
			c, err := second.Accept()
			if err != nil {
				return
			}
			if n, _ := c.Read(make([]byte, 4096)); n > 0 {
				elsewhere.Add(1)
			}
			_ = c.Close()
		}
	})
	r := authz.Rule{
		ID: "plain", Reason: "a test", Insecure: true, Methods: []string{"*"}, Paths: []string{"/**"}, Credential: "key",
		To: authz.To{
			Scheme: authz.SchemeHTTP, Hosts: []string{"api.weather.example"}, Ports: []uint16{port},
			Addresses: []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")},
		},
	}
	w := newWorld(t, setup{input: granted(r), config: func(c *proxy.Config) {
		c.Upstream.Hosts["api.weather.example"] = []netip.Addr{loopback, netip.MustParseAddr("127.0.0.2")}
	}})
	client := w.client(nil)
	url := fmt.Sprintf("http://api.weather.example:%d/", port)
	if response, body := send(t, client, request(t, "GET", url, "")); response.StatusCode != 200 {
		t.Fatalf("%s %s", response.Status, body)
	}
	response, body := send(t, client, request(t, "GET", url, ""))
	wantRefusal(t, response, body, authz.UpstreamUnreachable)
	if elsewhere.Load() > 0 {
		t.Errorf("it was sent elsewhere %d times: %s", elsewhere.Load(), body)
	}
}

// TestSignatureIsNotLent has a plugin that may write below one path send requests whose
// effect exceeds that path.
func TestSignatureIsNotLent(t *testing.T) {
	api := newAWS(t, "s3")
	rule := ruleFor(api.Server)
	rule.Methods, rule.Paths = []string{"PUT"}, []string{"/mine/**"}
	inject := authz.Inject{SigV4: &authz.SigV4{Service: "s3", Region: "eu-west-1"}}
	w := newWorld(t, setup{input: authz.Input{Grants: []authz.Grant{grant(inject, rule)}}})
	w.credentials.more = map[string]string{"access_key": "AKIDCANARY", "secret_key": awsSecret, "security_token": awsSession}
	for _, test := range []struct{ query, header, value string }{
		{"", "X-Amz-Copy-Source", "/payroll/2026.csv"},
		{"", "X-Amz-Acl", "public-read"},
		{"?acl", "X-Other", "1"},
	} {
		r := request(t, "PUT", urlOf(api.Server, "/mine/x"+test.query), "")
		r.Header.Set(test.header, test.value)
		response, body := send(t, w.client(nil), r)
		wantRefusal(t, response, body, authz.NotEnforceableHere)
		if api.last != nil || !strings.Contains(body, "beyond the path") || !strings.Contains(body, "remove it") {
			t.Errorf("%+v: %s", test, body)
		}
	}
}
