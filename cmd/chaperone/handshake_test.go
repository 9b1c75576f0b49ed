package main

import (
	"strings"
	"testing"

	"github.com/chaperone-proxy/chaperone/authz"
	"github.com/chaperone-proxy/chaperone/internal/testenv/scenario"
)

// A program that does not trust the sidecar is named, with its alert, and so is
// what to do; a loop of it fills neither the terminal nor the log.
func TestDistrustIsReported(t *testing.T) {
	both(t, func(t *testing.T, kernel string) {
		w := newEnv(t, kernel, "")
		r := w.Run("python3", "-c", `import ssl, sys, urllib.request
for i in range(3):
    try: urllib.request.urlopen(sys.argv[1], context=ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT))
    except OSError as e: print(e)`, w.URL("/v1/forecast"))
		for _, want := range []string{"TLS handshake for api.weather.example:", "alert unknown_ca", "ca-bundle.pem", "SSL_CERT_FILE"} {
			scenario.Contains(t, r.Stderr, want)
		}
		if n := strings.Count(r.Stderr, "TLS handshake for"); n != 1 {
			t.Errorf("printed %d times\n%s", n, r.Stderr)
		}
		if n := strings.Count(w.audit(), `"kind":"`+string(authz.KindHandshake)+`"`); n != 3 {
			t.Errorf("recorded %d times, not 3", n)
		}
	})
}
