package e2e

import (
	"crypto/tls"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"testing"

	"github.com/chaperone-proxy/chaperone/internal/testenv"
)

// origins are an https API, with an authority of its own, and an http API, on
// loopback. Below /open they answer; a plugin is granted nothing else of them.
type origins struct {
	ca                    *testenv.CA
	securePort, plainPort uint16
	mux                   *http.ServeMux
}

// page is what a browser makes another document of.
const page = `<!doctype html><title>page</title><p id=p>raw</p><script>
fetch("/open/hello").then(r => r.text()).then(t => { document.getElementById("p").textContent = "rendered: " + t.trim() })
</script>`

func newOrigins(t *testing.T) *origins {
	t.Helper()
	o := &origins{ca: testenv.MustGet(testenv.NewCA("e2e origin"))(t), mux: http.NewServeMux()}
	o.mux.HandleFunc("/open/hello", func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body) // a client that left is seen below
		fmt.Fprintf(w, "hello %s\n", r.Method)
	})
	o.mux.HandleFunc("/open/page", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/html")
		fmt.Fprint(w, page)
	})
	secure := httptest.NewUnstartedServer(o.mux)
	pair := testenv.MustGet(o.ca.Issue(originHost))(t)
	secure.TLS = &tls.Config{Certificates: []tls.Certificate{pair}, MinVersion: tls.VersionTLS12}
	secure.EnableHTTP2 = true
	secure.Config.ErrorLog = log.New(io.Discard, "", 0) // of clients that hang up
	secure.StartTLS()
	t.Cleanup(secure.Close)
	plain := httptest.NewServer(o.mux)
	t.Cleanup(plain.Close)
	o.securePort, o.plainPort = port(secure), port(plain)
	return o
}

func port(s *httptest.Server) uint16 {
	_, address, _ := strings.Cut(s.URL, "://")
	return netip.MustParseAddrPort(address).Port()
}

func (o *origins) secure(path string) string {
	return fmt.Sprintf("https://%s:%d%s", originHost, o.securePort, path)
}

func (o *origins) plain(path string) string {
	return fmt.Sprintf("http://%s:%d%s", originHost, o.plainPort, path)
}
