package tokens

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/chaperone-proxy/chaperone/authz"
)

// maxAnswer bounds what a token endpoint may answer with, head and body.
const maxAnswer = 64 << 10

// Dialer connects to a token endpoint, as [net.Dialer.DialContext] does.
type Dialer func(ctx context.Context, network, address string) (net.Conn, error)

// oauth2Token gets an access token by the client credentials grant (RFC 6749, section 4.4),
// and returns how long it lives.
func (s *Source) oauth2Token(ctx context.Context, spec authz.TokenSpec, fields map[string]authz.Secret) (authz.Secret, time.Duration, error) {
	id, secret, err := spec.Client(fields)
	if err != nil {
		return authz.Secret{}, 0, err
	}
	endpoint, err := url.Parse(spec.TokenURL)
	if err != nil || endpoint.Scheme != "https" || endpoint.Host == "" {
		return authz.Secret{}, 0, errors.New("the token endpoint is not an https URL")
	}
	client, err := s.client(spec.CA)
	if err != nil {
		return authz.Secret{}, 0, err
	}
	request, err := tokenRequest(ctx, spec, id, secret)
	if err != nil {
		return authz.Secret{}, 0, errors.New("the token endpoint is not an https URL")
	}
	answer, err := client.Do(request)
	if err != nil {
		return authz.Secret{}, 0, s.describe(endpoint.Host, err)
	}
	defer answer.Body.Close()
	token, err := readToken(answer)
	if err != nil && ctx.Err() != nil {
		return authz.Secret{}, 0, s.describe(endpoint.Host, ctx.Err())
	}
	if err != nil {
		return authz.Secret{}, 0, &endpointError{endpoint.Host, err.Error(), retryAfter(answer.Header, s.cfg.Now())}
	}
	return authz.NewSecret(token.value), token.life, nil
}

// tokenRequest returns the request for a token by client credentials.
func tokenRequest(ctx context.Context, spec authz.TokenSpec, id string, secret authz.Secret) (*http.Request, error) {
	form, err := url.ParseQuery(spec.Extra)
	if err != nil {
		return nil, err
	}
	form.Set("grant_type", "client_credentials")
	if spec.Scopes != "" {
		form.Set("scope", spec.Scopes)
	}
	if spec.Audience != "" {
		form.Set("audience", spec.Audience)
	}
	if spec.Style == authz.StyleBody {
		form.Set("client_id", id)
		form.Set("client_secret", secret.Reveal())
	}
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, spec.TokenURL, strings.NewReader(form.Encode()))
	if err != nil {
		return nil, err
	}
	request.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	request.Header.Set("Accept", "application/json")
	if spec.Style != authz.StyleBody { // both are encoded as in a form first (RFC 6749, section 2.3.1)
		request.SetBasicAuth(url.QueryEscape(id), url.QueryEscape(secret.Reveal()))
	}
	return request, nil
}

// client returns what talks to a token endpoint: it follows no redirect, which
// would take the client's secret elsewhere, and trusts the authorities named,
// PEM, or the system's. Exchanges are rare, so that each has a connection of its
// own and none stays.
func (s *Source) client(authorities string) (*http.Client, error) {
	trust := &tls.Config{MinVersion: tls.VersionTLS12}
	if authorities != "" {
		trust.RootCAs = x509.NewCertPool()
		if !trust.RootCAs.AppendCertsFromPEM([]byte(authorities)) {
			return nil, errors.New("caFile holds no certificate")
		}
	}
	transport := &http.Transport{
		DialContext: s.cfg.Dial, TLSClientConfig: trust, DisableKeepAlives: true, DisableCompression: true,
		MaxResponseHeaderBytes: maxAnswer,
	}
	if s.cfg.Proxy != nil {
		transport.Proxy = func(r *http.Request) (*url.URL, error) { return s.cfg.Proxy(r.URL) }
	}
	return &http.Client{
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		Transport:     capped{transport},
	}, nil
}

// capped ends bodies that are too long.
type capped struct{ next http.RoundTripper }

func (c capped) RoundTrip(r *http.Request) (*http.Response, error) {
	answer, err := c.next.RoundTrip(r)
	if err == nil {
		answer.Body = http.MaxBytesReader(nil, answer.Body, maxAnswer)
	}
	return answer, err
}

// endpointError is a failure of a token endpoint. It holds nothing of what it wrote: an
// error page may quote the request, which has the client's secret.
type endpointError struct {
	host  string
	what  string
	retry time.Duration
}

func (e *endpointError) Error() string             { return "token endpoint " + e.host + " " + e.what }
func (e *endpointError) RetryAfter() time.Duration { return e.retry }

// describe turns what went wrong into words of our own.
func (s *Source) describe(host string, err error) error {
	out := &endpointError{host: host, what: "answered with what is no token"}
	var dialled *net.OpError
	var untrusted *tls.CertificateVerificationError
	switch {
	case errors.Is(err, context.DeadlineExceeded):
		out.what = fmt.Sprintf("did not answer within %s", s.cfg.Timeout)
	case errors.Is(err, context.Canceled):
		out.what = "was not waited for"
	case errors.As(err, &untrusted):
		out.what = "is not trusted: " + untrusted.Error()
	case errors.As(err, &dialled):
		out.what = "was not reached: " + dialled.Error()
	}
	return out
}
