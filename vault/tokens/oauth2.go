package tokens

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"math"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/oauth2"
	"golang.org/x/oauth2/clientcredentials"

	"github.com/chaperone-proxy/chaperone/authz"
)

// maxAnswer bounds what a token endpoint may answer with, head and body.
const maxAnswer = 64 << 10

// Dialer connects to a token endpoint, as [net.Dialer.DialContext] does.
type Dialer func(ctx context.Context, network, address string) (net.Conn, error)

// access gets an access token by the client credentials grant (RFC 6749,
// section 4.4), and says how long it lives.
func (s *Source) access(ctx context.Context, spec authz.TokenSpec, fields map[string]authz.Secret) (authz.Secret, time.Duration, error) {
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
	grant := clientcredentials.Config{
		ClientID: id, ClientSecret: secret.Reveal(), TokenURL: spec.TokenURL,
		Scopes: strings.Fields(spec.Scopes), AuthStyle: oauth2.AuthStyleInHeader,
	}
	if spec.Style == authz.StyleBody {
		grant.AuthStyle = oauth2.AuthStyleInParams
	}
	if spec.Audience != "" {
		grant.EndpointParams = url.Values{"audience": {spec.Audience}}
	}
	token, err := grant.Token(context.WithValue(ctx, oauth2.HTTPClient, client))
	if err != nil {
		return authz.Secret{}, 0, s.describe(endpoint.Host, err)
	}
	life, err := lifeOf(token.Extra("expires_in"))
	if err == nil && !isToken(token.AccessToken) {
		err = errors.New("answered with a token that is too long or holds other bytes than ASCII's printable ones")
	}
	if err != nil {
		return authz.Secret{}, 0, &endpointError{endpoint.Host, err.Error(), 0}
	}
	return authz.NewSecret(token.AccessToken), life, nil
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

// isToken reports whether a text is what an access token may be (RFC 6749,
// appendix A.12), and fits in a header.
func isToken(text string) bool {
	const longest = 16 << 10
	return len(text) <= longest && !strings.ContainsFunc(text, func(r rune) bool { return r < ' ' || r > '~' })
}

// lifeOf returns how long a token lives whose endpoint says so by expires_in,
// in seconds (RFC 6749, section 5.1): a number, or the text that some write.
// None and 0 say nothing.
func lifeOf(expiresIn any) (time.Duration, error) {
	var seconds float64
	var err error
	switch v := expiresIn.(type) {
	case nil:
	case float64:
		seconds = v
	case int64:
		seconds = float64(v)
	case string:
		seconds, err = strconv.ParseFloat(v, 64)
	default:
		err = errors.New("it is of another type")
	}
	switch {
	case err != nil || math.IsNaN(seconds):
		return 0, errors.New("answered with an expires_in that is no number")
	case seconds < 0:
		return 0, errors.New("answered with a token that has ended already")
	case seconds == 0:
		return unsaid, nil
	}
	return time.Duration(min(seconds, longestToken.Seconds()) * float64(time.Second)), nil
}

// endpointError says what a token endpoint did. It holds nothing of what it
// wrote: an error page may quote the request, which has the client's secret.
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
	var refused *oauth2.RetrieveError
	var dialled *net.OpError
	var untrusted *tls.CertificateVerificationError
	switch {
	case errors.As(err, &refused):
		out.what = "answered with status " + strconv.Itoa(refused.Response.StatusCode)
		if knownError(refused.ErrorCode) {
			out.what += " and " + refused.ErrorCode
		}
		if seconds, err := strconv.Atoi(refused.Response.Header.Get("Retry-After")); err == nil && seconds > 0 {
			out.retry = time.Duration(min(seconds, int(maxWait.Seconds()))) * time.Second
		}
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

// knownError reports whether a token endpoint may say so (RFC 6749, section
// 5.2; RFC 8707, section 2). What else it says could be a quotation.
func knownError(code string) bool {
	return slices.Contains([]string{
		"invalid_request", "invalid_client", "invalid_grant", "unauthorized_client", "unsupported_grant_type", "invalid_scope",
		"invalid_target", "access_denied", "server_error", "temporarily_unavailable",
	}, code)
}
