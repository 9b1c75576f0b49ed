package tokens

import (
	"bytes"
	"crypto/tls"
	"errors"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/chaperone-proxy/chaperone/authz"
	"github.com/chaperone-proxy/chaperone/internal/testenv"
)

func discard() *log.Logger { return log.New(io.Discard, "", 0) }

func tlsOf(t testing.TB, ca *testenv.CA) *tls.Config {
	t.Helper()
	return &tls.Config{Certificates: []tls.Certificate{testenv.MustGet(ca.Issue("127.0.0.1", "id.example"))(t)}, MinVersion: tls.VersionTLS10}
}

// TestEndpointsThatFail tries what an endpoint can do wrong. No error and no
// line of the log holds anything of what it wrote, which may be the secret.
func TestEndpointsThatFail(t *testing.T) {
	secrets := []string{clientSecret, url.QueryEscape(clientSecret), "canary"}
	quote := `canary ` + clientSecret + ` ` + url.QueryEscape(clientSecret)
	for name, c := range map[string]struct {
		answer http.HandlerFunc
		want   string
	}{
		"error page": {respond(500, "text/plain", quote), "status 500"},
		"error with the secret": {
			respond(401, "application/json", `{"error":"invalid_client","error_description":"`+quote+`","error_uri":"https://canary"}`),
			"status 401 and invalid_client",
		},
		"error that is a quotation": {respond(400, "application/json", `{"error":"`+quote+`"}`), "status 400"},
		"error with status 200":     {respond(200, "application/json", `{"error":"`+quote+`"}`), "status 200"},
		"HTML":                      {respond(200, "text/html", "<html>"+quote+"</html>"), "no token"},
		"HTML said to be JSON":      {respond(200, "application/json", "<html>"+quote+"</html>"), "no token"},
		"empty":                     {respond(200, "application/json", ""), "no token"},
		"array":                     {respond(200, "application/json", `["`+quote+`"]`), "no token"},
		"huge":                      {respond(200, "application/json", `{"x":"`+strings.Repeat("canary", maxAnswer)+`","access_token":"t"}`), "no token"},
		"endless head": {func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("X-Canary", strings.Repeat("canary", maxAnswer))
		}, "no token"},
		"not HTTP": {func(w http.ResponseWriter, _ *http.Request) {
			conn, _, _ := w.(http.Hijacker).Hijack()
			_, _ = io.WriteString(conn, quote+"\r\n\r\n")
			_ = conn.Close()
		}, "no token"},
		"control byte in the token": {respond(200, "application/json", `{"access_token":"t\u0000","expires_in":3600}`), "printable"},
		"token that is too long":    {respond(200, "application/json", `{"access_token":"`+strings.Repeat("t", 17<<10)+`"}`), "too long"},
		"token of a megabyte":       {respond(200, "application/json", `{"access_token":"`+strings.Repeat("t", 1<<20)+`"}`), "no token"},
	} {
		t.Run(name, func(t *testing.T) {
			r := newEnv(t, nil)
			r.answers(c.answer)
			err := r.mustFail(t, r.ref())
			if !strings.Contains(err.Error(), c.want) || !strings.Contains(err.Error(), "api of grant weather") {
				t.Errorf("error %q does not say %q", err, c.want)
			}
			said := err.Error()
			for _, line := range r.log.All() {
				said += line.Message
				for _, v := range line.ContextMap() {
					if text, ok := v.(string); ok {
						said += text
					}
				}
			}
			for _, secret := range secrets {
				if strings.Contains(said, secret) {
					t.Errorf("%q is in %q", secret, said)
				}
			}
		})
	}
}

func respond(status int, contentType, body string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", contentType)
		w.WriteHeader(status)
		_, _ = io.WriteString(w, body)
	}
}

// TestRedirectIsNotFollowed has the endpoint send its clients elsewhere, with
// the statuses that keep the method and the body too.
func TestRedirectIsNotFollowed(t *testing.T) {
	for _, status := range []int{301, 302, 303, 307, 308} {
		r, evil := newEnv(t, nil), newEndpoint(t)
		r.answers(func(w http.ResponseWriter, req *http.Request) { http.Redirect(w, req, evil.server.URL, status) })
		err := r.mustFail(t, r.ref(func(ref *authz.CredentialRef) { ref.Token.CA += string(evil.ca.PEM()) }))
		if evil.count() != 0 || !strings.Contains(err.Error(), "status 3") {
			t.Errorf("%d: %d requests went elsewhere: %v", status, evil.count(), err)
		}
	}
}

func TestSecretGoesToNobodyUntrusted(t *testing.T) {
	r := newEnv(t, nil)
	other := testenv.MustGet(testenv.NewCA("another authority"))(t)
	for name, ref := range map[string]authz.CredentialRef{
		"another authority": r.ref(func(ref *authz.CredentialRef) { ref.Token.CA = string(other.PEM()) }),
		"the system's":      r.ref(func(ref *authz.CredentialRef) { ref.Token.CA = "" }),
		"another name": r.ref(func(ref *authz.CredentialRef) {
			ref.Token.TokenURL = strings.Replace(r.server.URL, "127.0.0.1", "id.example", 1)
		}),
		"plain http":           r.ref(func(ref *authz.CredentialRef) { ref.Token.TokenURL = strings.Replace(r.server.URL, "https", "http", 1) }),
		"no authority in file": r.ref(func(ref *authz.CredentialRef) { ref.Token.CA = "nothing" }),
	} {
		if err := r.mustFail(t, ref); r.count() != 0 {
			t.Errorf("%s: the endpoint was asked (%v)", name, err)
		}
	}
	r.server.TLS.MaxVersion = tls.VersionTLS11
	old := newEndpoint(t)
	old.server.TLS.MaxVersion = tls.VersionTLS11
	if err := r.mustFail(t, r.ref(func(ref *authz.CredentialRef) {
		ref.Token.TokenURL, ref.Token.CA = old.server.URL, string(old.ca.PEM())
	})); old.count() != 0 {
		t.Errorf("TLS 1.1: the endpoint was asked (%v)", err)
	}
}

// TestSlowEndpointHoldsUpNobodyElse has one that takes 30 seconds.
func TestSlowEndpointHoldsUpNobodyElse(t *testing.T) {
	r := newEnv(t, func(cfg *Config) { cfg.Timeout = 300 * time.Millisecond })
	slow := newEndpoint(t)
	slow.answers(func(_ http.ResponseWriter, req *http.Request) {
		select {
		case <-req.Context().Done():
		case <-time.After(30 * time.Second):
		}
	})
	late := make(chan error, 1)
	started := time.Now()
	go func() {
		_, err := r.source.Credential(t.Context(), r.ref(func(ref *authz.CredentialRef) {
			ref.Name, ref.Token.TokenURL, ref.Token.CA = "slow", slow.server.URL, string(slow.ca.PEM())
		}))
		late <- err
	}()
	wait(t, "the slow one is asked", func() bool { return slow.count() == 1 })
	if got := r.token(t, r.ref()); got != "at-1" {
		t.Errorf("token %q", got)
	}
	if len(late) != 0 {
		t.Error("the other waited for the slow one")
	}
	if err := <-late; err == nil || !strings.Contains(err.Error(), "did not answer within 300ms") || time.Since(started) > 20*time.Second {
		t.Errorf("after %s: %v", time.Since(started), err)
	}
}

func TestFailuresAreNotRepeatedAtOnce(t *testing.T) {
	r := newEnv(t, nil)
	r.answers(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Retry-After", "20")
		w.WriteHeader(http.StatusServiceUnavailable)
	})
	ref := r.ref()
	for range 5 {
		err := r.mustFail(t, ref)
		var retry interface{ RetryAfter() time.Duration }
		if !errors.As(err, &retry) || retry.RetryAfter() < 15*time.Second || retry.RetryAfter() > 20*time.Second {
			t.Fatalf("retry after %v: %v", retry, err)
		}
	}
	if r.count() != 1 {
		t.Errorf("asked %d times", r.count())
	}
	r.answers(func(w http.ResponseWriter, _ *http.Request) { r.grant(w, 3600) })
	r.leases.change(func(c *authz.Credential) { c.Generation++ }) // a new secret is tried at once
	if got := r.token(t, ref); got != "at-2" {
		t.Errorf("token %q", got)
	}
}

func TestEndpointThatIsDown(t *testing.T) {
	r := newEnv(t, nil)
	ref := r.ref()
	r.server.Close()
	if err := r.mustFail(t, ref); !strings.Contains(err.Error(), "was not reached: dial tcp") {
		t.Error(err)
	}
	if err := r.mustFail(t, ref); !strings.Contains(err.Error(), "was not reached") {
		t.Error(err)
	}
}

func TestWhatIsTakenAwayIsForgotten(t *testing.T) {
	r := newEnv(t, nil)
	kept, gone := r.ref(), r.ref(func(ref *authz.CredentialRef) { ref.Name = "gone" })
	r.token(t, kept)
	r.token(t, gone)
	r.source.Retain([]authz.CredentialRef{kept})
	if got := r.token(t, kept); got != "at-1" {
		t.Errorf("token %q of what stays", got)
	}
	if got := r.token(t, gone); got != "at-3" {
		t.Errorf("token %q of a dropped reference", got)
	}
	// An exchange under way for a dropped reference reaches no caller.
	r.source.Retain(nil)
	asked, release := make(chan struct{}), make(chan struct{})
	r.answers(func(w http.ResponseWriter, _ *http.Request) {
		close(asked)
		<-release
		r.grant(w, 3600)
	})
	failed := make(chan error, 1)
	go func() { _, err := r.source.Credential(t.Context(), kept); failed <- err }()
	<-asked
	r.source.Retain(nil)
	if err := <-failed; !errors.Is(err, errNotInForce) {
		t.Error(err)
	}
	close(release)
	_ = r.source.Close()
	if err := r.mustFail(t, kept); !errors.Is(err, errStopping) {
		t.Error(err)
	}
}

// Through a company's proxy, the endpoint is asked for by name, the client's secret passes
// inside TLS, and an error reports the refusal of the proxy.
func TestEndpointThroughAProxy(t *testing.T) {
	var mu sync.Mutex
	var asked []string
	var passed bytes.Buffer
	var refuse atomic.Bool
	var r *env
	proxy := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		mu.Lock()
		asked = append(asked, req.Method+" "+req.RequestURI)
		mu.Unlock()
		if refuse.Load() {
			http.Error(w, "canary of the proxy", http.StatusForbidden)
			return
		}
		upstream, err := net.Dial("tcp", r.server.Listener.Addr().String())
		if err != nil {
			t.Error(err)
			return
		}
		defer upstream.Close()
		conn, buffered, err := http.NewResponseController(w).Hijack()
		if err != nil {
			t.Error(err)
			return
		}
		defer conn.Close()
		_, _ = io.WriteString(conn, "HTTP/1.1 200 OK\r\n\r\n")
		go func() { _, _ = io.Copy(conn, upstream) }()
		mu.Lock()
		defer mu.Unlock()
		_, _ = io.Copy(io.MultiWriter(upstream, &passed), buffered)
	}))
	t.Cleanup(proxy.Close)
	through := testenv.MustGet(url.Parse(proxy.URL))(t)
	r = newEnv(t, func(cfg *Config) { cfg.Proxy = func(*url.URL) (*url.URL, error) { return through, nil } })
	ref := r.ref(func(ref *authz.CredentialRef) {
		ref.Token.TokenURL = strings.Replace(ref.Token.TokenURL, "127.0.0.1", "id.example", 1)
	})
	if got := r.token(t, ref); got != "at-1" {
		t.Errorf("token %q", got)
	}
	mu.Lock() // the connection is closed then
	if want := "CONNECT id.example:" + r.server.URL[strings.LastIndex(r.server.URL, ":")+1:]; len(asked) != 1 || asked[0] != want {
		t.Errorf("the proxy was asked %q, not %q", asked, want)
	}
	if text := passed.String(); text == "" || strings.Contains(text, "ecret") || strings.Contains(text, "Authorization") {
		t.Errorf("passed through the proxy: %q", text)
	}
	mu.Unlock()

	refuse.Store(true)
	err := r.mustFail(t, r.ref(func(other *authz.CredentialRef) { other.Name = "other" }))
	if !strings.Contains(err.Error(), "token endpoint") || strings.Contains(err.Error(), "canary") || strings.Contains(err.Error(), clientSecret) {
		t.Errorf("refused by the proxy: %v", err)
	}
	if r.count() != 1 {
		t.Errorf("%d exchanges: one went past the proxy", r.count())
	}
}
