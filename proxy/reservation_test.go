package proxy_test

import (
	"bytes"
	"crypto/rand"
	"io"
	"net/http"
	"sync"
	"testing"
	"time"

	"github.com/chaperone-proxy/chaperone/authz"
	"github.com/chaperone-proxy/chaperone/internal/testenv"
)

// TestHeldTogether has a plugin begin many requests whose bodies are read before they are
// sent: beyond the common limit they are refused until others end.
func TestHeldTogether(t *testing.T) {
	noise := make([]byte, 16<<20-1<<10) // as much as one may hold; a compressed one, a quarter
	_, _ = rand.Read(noise)
	for name, test := range map[string]struct {
		inject authz.Inject
		header string // that has it read
		size   int
		fit    int // at a time
	}{
		"signed":     {authz.Inject{SigV4: &authz.SigV4{Service: "sqs", Region: "eu-west-1"}}, "X-Other", 16<<20 - 1<<10, 4},
		"compressed": {bearer, "Content-Encoding", 4<<20 - 2<<10, 16},
	} {
		t.Run(name, func(t *testing.T) {
			api := newAPI(t, func(_ http.ResponseWriter, r *http.Request) { _, _ = io.Copy(io.Discard, r.Body) })
			w := newWorld(t, setup{input: authz.Input{Grants: []authz.Grant{grant(test.inject, ruleFor(api))}}, config: withPlaceholder})
			w.credentials.more = map[string]string{"access_key": "AKIDCANARY", "secret_key": awsSecret, "security_token": awsSession}
			client := w.client(withHTTP2)
			ask := func(body io.Reader) (*http.Response, string) {
				r, err := http.NewRequestWithContext(t.Context(), "POST", urlOf(api, "/"), body)
				testenv.Must(t, err)
				r.Header.Set(test.header, "gzip")
				response, err := client.Do(r)
				if err != nil {
					return nil, ""
				}
				defer response.Body.Close()
				text, _ := io.ReadAll(response.Body)
				return response, string(text)
			}
			var begun sync.WaitGroup
			var pipes []*io.PipeWriter
			refused := make(chan struct{}, test.fit+1)
			for range test.fit + 1 {
				from, to := io.Pipe()
				pipes = append(pipes, to)
				begun.Go(func() { _, _ = to.Write(noise[:test.size]) }) // and no end
				begun.Go(func() {
					response, body := ask(from)
					_ = from.Close()
					if response == nil {
						return // it was broken off below
					}
					wantRefusal(t, response, body, authz.NotReady)
					if response.Header.Get("Retry-After") != "1" {
						t.Errorf("header is %v", response.Header)
					}
					refused <- struct{}{}
				})
			}
			select {
			case <-refused:
			case <-time.After(time.Minute):
				t.Error("everything is held")
			}
			for _, to := range pipes {
				_ = to.CloseWithError(io.ErrUnexpectedEOF)
			}
			begun.Wait()
			w.settled()
			if response, body := ask(bytes.NewReader(compressed(t, "gzip", "hello"))); response == nil || response.StatusCode != http.StatusOK {
				t.Errorf("once they have ended: %+v %s", response, body)
			}
		})
	}
}
