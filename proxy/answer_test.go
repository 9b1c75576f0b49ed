package proxy_test

import (
	"context"
	"io"
	"net/http"
	"net/http/httptest"
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

// bothVersions are the ways in which a plugin asks.
var bothVersions = map[string]func(*http.Transport){"HTTP/1.1": nil, "HTTP/2": withHTTP2}

// TestTrailerThatNeverComes has an upstream announce a trailer and not send it,
// as one does that fails half way.
func TestTrailerThatNeverComes(t *testing.T) {
	api := newAPI(t, func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Trailer", "X-Checksum")
		_, _ = io.WriteString(w, "whole")
	})
	w := newWorld(t, setup{input: granted(ruleFor(api))})
	for name, change := range bothVersions {
		t.Run(name, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
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
