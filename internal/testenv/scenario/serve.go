package scenario

import (
	"context"
	"crypto/tls"
	"io"
	"net/http"
	"net/url"
	"time"

	"github.com/chaperone-proxy/chaperone/internal/admin"
	"github.com/chaperone-proxy/chaperone/internal/testenv"
)

// Token is the token of the proxy, with [Env.Serve].
const Token = "a-token-of-the-tests"

// Serve starts chaperone serve with the kernel off and returns its status.
func (e *Env) Serve() (*Process, admin.Status) {
	e.T.Helper()
	e.Write("proxy-token", Token+"\n")
	b := e.StartCommand("serve", "--config", e.File("sidecar.yaml"), "--proxy-token-file", e.File("proxy-token"))
	return b, e.Ready()
}

// Address returns the address of a listener by its name, "" without one.
func Address(s admin.Status, name string) string {
	for _, d := range s.Doors {
		if d.Name == name {
			return d.Address
		}
	}
	return ""
}

// Request sends one request through the proxy, as a plugin that uses TLS and
// trusts whatever the sidecar shows.
func (e *Env) Request(proxy, token, method, target string) (status int, body string) {
	e.T.Helper()
	via := &url.URL{Scheme: "http", Host: proxy}
	if token != "" {
		via.User = url.UserPassword("chaperone", token)
	}
	var refused string
	transport := &http.Transport{
		Proxy:           http.ProxyURL(via),
		TLSClientConfig: &tls.Config{InsecureSkipVerify: true},
		OnProxyConnectResponse: func(_ context.Context, _ *url.URL, _ *http.Request, answer *http.Response) error {
			if answer.StatusCode != http.StatusOK {
				refused = answer.Header.Get("x-chaperone-reason")
				status = answer.StatusCode
			}
			return nil
		},
	}
	defer transport.CloseIdleConnections()
	req := testenv.MustGet(http.NewRequestWithContext(e.T.Context(), method, target, nil))(e.T)
	answer, err := (&http.Client{Transport: transport, Timeout: 20 * time.Second}).Do(req)
	if err != nil {
		return status, refused
	}
	defer answer.Body.Close()
	data, err := io.ReadAll(answer.Body)
	if err != nil {
		return 0, err.Error()
	}
	return answer.StatusCode, string(data)
}
