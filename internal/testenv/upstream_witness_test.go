package testenv

import (
	"bytes"
	"crypto/tls"
	"io"
	"net/http"
	"strings"
	"testing"
)

// TestWitness sends a request in each protocol, and bytes of no protocol.
func TestWitness(t *testing.T) {
	ca := MustGet(NewCA("a witness's authority"))(t)
	for _, c := range []struct {
		name  string
		ca    *CA
		http2 bool
	}{{"HTTP/1.1", nil, false}, {"HTTP/2 in clear", nil, true}, {"TLS", ca, false}, {"TLS, HTTP/2", ca, true}} {
		t.Run(c.name, func(t *testing.T) {
			w := MustWitness(t, WitnessConfig{CA: c.ca, Names: []string{"localhost"}})
			transport := &http.Transport{Protocols: new(http.Protocols)}
			defer transport.CloseIdleConnections()
			transport.Protocols.SetHTTP1(!c.http2)
			transport.Protocols.SetHTTP2(c.http2 && c.ca != nil)
			transport.Protocols.SetUnencryptedHTTP2(c.http2 && c.ca == nil)
			url := "http://" + w.Addr.String() + "/path"
			if c.ca != nil {
				client := MustGet(c.ca.Issue("client"))(t)
				transport.TLSClientConfig = &tls.Config{RootCAs: c.ca.Pool(), ServerName: "localhost", Certificates: []tls.Certificate{client}, MinVersion: tls.VersionTLS12}
				url = "https://" + w.Addr.String() + "/path"
			}
			r := MustGet(http.NewRequestWithContext(t.Context(), http.MethodPost, url, struct{ io.Reader }{strings.NewReader("the body")}))(t)
			r.Header.Set("X-Key", "the header")
			r.Trailer = http.Header{"X-Trailer": {"the trailer"}}
			answer := MustGet(transport.RoundTrip(r))(t)
			text := MustGet(io.ReadAll(answer.Body))(t)
			answer.Body.Close()
			all := w.Connections()
			if len(all) != 1 || len(all[0].Requests) != 1 {
				t.Fatalf("%d connections: %+v", len(all), all)
			}
			for _, part := range []string{"/path", "the header", "the body", "the trailer"} {
				if !bytes.Contains(all[0].Text(), []byte(part)) || !bytes.Contains(text, []byte(part)) {
					t.Errorf("%q is not kept, or not in the answer: %s", part, text)
				}
			}
			if c.ca != nil && (all[0].SNI != "localhost" || len(all[0].Certificates) == 0) {
				t.Errorf("of TLS it kept %q, %d certificates", all[0].SNI, len(all[0].Certificates))
			}
			if !bytes.Contains(all[0].Plain, []byte("the body")) {
				t.Error("got no plain text of the body, want it unchanged")
			}
		})
	}
}
