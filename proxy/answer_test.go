package proxy_test

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/http/httptrace"
	"net/textproto"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/chaperone-proxy/chaperone/internal/testenv"
)

// newAPI starts an API that speaks HTTP/1.1 and HTTP/2.
func newAPI(t testing.TB, serve http.HandlerFunc) *httptest.Server {
	t.Helper()
	api := httptest.NewUnstartedServer(serve)
	api.EnableHTTP2 = true
	api.StartTLS()
	t.Cleanup(api.Close)
	return api
}

// bothVersions are the protocols of a plugin's requests.
var bothVersions = map[string]func(*http.Transport){"HTTP/1.1": nil, "HTTP/2": withHTTP2}

// TestTrailerThatNeverComes has an upstream announce a trailer and not send it, as one
// does whose answer fails half way.
func TestTrailerThatNeverComes(t *testing.T) {
	api := newAPI(t, func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Trailer", "X-Checksum")
		_, _ = io.WriteString(w, "whole")
	})
	w := newWorld(t, setup{input: granted(ruleFor(api))})
	for name, change := range bothVersions {
		t.Run(name, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
			defer cancel()
			response, err := w.client(change).Do(request(t, "GET", urlOf(api, "/"), "").WithContext(ctx))
			testenv.Must(t, err)
			defer response.Body.Close()
			if body, err := io.ReadAll(response.Body); err != nil || string(body) != "whole" {
				t.Errorf("answer is %q, %v", body, err)
			}
		})
	}
}

// TestEchoInNames has the credential come back as the name of a header, of a trailer, and
// in the heads of a 103 and a 101, where it has lost its case.
func TestEchoInNames(t *testing.T) {
	const mixed = "Wk_Live-CANARY-8f2C"
	api := newAPI(t, func(w http.ResponseWriter, r *http.Request) {
		key := strings.TrimPrefix(r.Header.Get("Authorization"), "Bearer ")
		h := w.Header()
		switch r.URL.Path {
		case "/trailer":
			h.Set("Trailer", key)
			_, _ = io.WriteString(w, "x")
			h[key] = []string{"late"}
			h[http.TrailerPrefix+"X-"+key] = []string{"later"}
		case "/hints":
			h[key] = []string{"early"}
			w.WriteHeader(http.StatusEarlyHints)
			clear(h)
		case "/upgrade":
			conn, _, err := http.NewResponseController(w).Hijack()
			if err != nil {
				return
			}
			_, _ = fmt.Fprintf(conn, "HTTP/1.1 101 %s\r\nConnection: Upgrade\r\nUpgrade: chat\r\n%s: 1\r\n\r\n", key, key)
			_ = conn.Close()
		default:
			h[key], h["X-"+key], h["X-Kept"] = []string{"unknown parameter"}, []string{key}, []string{"kept"}
		}
	})
	rule := ruleFor(api)
	rule.Upgrades = []string{"chat"}
	w := newWorld(t, setup{input: granted(rule)})
	w.credentials.set(mixed)
	for name, change := range bothVersions {
		for _, path := range []string{"/", "/trailer", "/hints", "/upgrade"} {
			if path == "/upgrade" && change != nil {
				continue // HTTP/1.1 has it alone
			}
			t.Run(name+path, func(t *testing.T) { wantNoName(t, w, w.client(change), urlOf(api, path), mixed) })
		}
	}
}

// wantNoName checks that neither the answer nor its records hold a secret as a name.
func wantNoName(t *testing.T, w *world, client *http.Client, url, secret string) {
	t.Helper()
	before, seen := len(w.echoed()), ""
	r := request(t, "GET", url, "")
	if strings.HasSuffix(url, "/upgrade") {
		r.Header.Set("Connection", "Upgrade")
		r.Header.Set("Upgrade", "chat")
	}
	response, err := client.Do(r.WithContext(httptrace.WithClientTrace(t.Context(), &httptrace.ClientTrace{
		Got1xxResponse: func(_ int, h textproto.MIMEHeader) error { seen += fmt.Sprint(h); return nil },
	})))
	testenv.Must(t, err)
	if response.StatusCode != http.StatusSwitchingProtocols {
		_, err = io.Copy(io.Discard, response.Body)
		testenv.Must(t, err)
	}
	_ = response.Body.Close()
	if seen += fmt.Sprint(response.Status, response.Header, response.Trailer); strings.Contains(strings.ToLower(seen), strings.ToLower(secret)) {
		t.Errorf("the plugin sees the credential: %s", seen)
	}
	if strings.HasSuffix(url, "/") && response.Header.Get("X-Kept") == "" {
		t.Errorf("got a header without a secret dropped, want it kept: %s", seen)
	}
	w.settled()
	echoes := w.echoed()[before:]
	if len(echoes) != 1 || !strings.Contains(echoes[0].Detail, "in a header's name") ||
		strings.Contains(strings.ToLower(fmt.Sprintf("%+v", echoes)), strings.ToLower(secret)) {
		t.Errorf("echo records are %+v", echoes)
	}
}

// TestEchoOfWhatWasRotated uses an upstream that quotes earlier requests: rotated values
// are redacted too, whichever rule and protocol sent them.
func TestEchoOfWhatWasRotated(t *testing.T) {
	var mu sync.Mutex
	var sent []string
	api := newAPI(t, func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		defer mu.Unlock()
		_, _ = fmt.Fprintf(w, "your last requests had %q", sent)
		sent = append(sent, r.Header.Get("Authorization"))
	})
	read, write := ruleFor(api), ruleFor(api)
	read.ID, read.Methods = "read", []string{"GET"}
	write.ID, write.Methods = "write", []string{"POST"}
	w := newWorld(t, setup{input: granted(read, write)})
	send(t, w.client(nil), request(t, "GET", urlOf(api, "/"), ""))
	values := []string{apiKey, "second_canary_12", "third_canary_123"}
	for _, value := range values[1:] {
		w.credentials.set(value)
		w.install(granted(read, write)) // a change of the policy forgets nothing
		for method, change := range map[string]func(*http.Transport){"GET": withHTTP2, "POST": nil} {
			_, body := send(t, w.client(change), request(t, method, urlOf(api, "/"), ""))
			for _, secret := range values {
				if strings.Contains(body, secret) {
					t.Errorf("%s after the rotation to %s: %s", method, value, body)
				}
			}
		}
	}
}
