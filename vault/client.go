package vault

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/hashicorp/vault/api"

	"github.com/chaperone-proxy/chaperone/authz"
)

// maxAnswer bounds what is read of one answer of Vault's, in bytes.
const maxAnswer = 1 << 20

// Error is a failure to get something from Vault. It has the request, the status and
// Vault's own words; it never holds a token, a credential, a URL or the body of an answer
// that is not Vault's.
type Error struct {
	// Op is what was asked, as in "read secret/data/weather".
	Op string
	// Status is Vault's HTTP status; 0 when there was no answer.
	Status int
	// Code is the status as text, or "timeout", "network", "answer" (one that
	// could not be used) or "refused" (nothing was sent).
	Code string
	// Reasons are Vault's own error strings, or one of this package.
	Reasons []string

	retry     time.Duration // how long Vault asked the client to wait; 0 when it did not
	ambiguous bool          // Vault may have done what was asked
	givenUp   bool          // the caller ended the request: Vault did not fail
}

// Error returns the request and the reasons of its failure, on one line.
func (e *Error) Error() string {
	var s strings.Builder
	s.WriteString(e.Op)
	s.WriteString(": ")
	if e.Status != 0 {
		s.WriteString("Vault answered ")
		s.WriteString(strconv.Itoa(e.Status))
		if meaning := statusMeaning(e.Status); meaning != "" {
			s.WriteString(" (" + meaning + ")")
		}
		if len(e.Reasons) > 0 {
			s.WriteString(": ")
		}
	}
	s.WriteString(strings.Join(e.Reasons, "; "))
	return s.String()
}

// RetryAfter is how long Vault asked to be left alone, 0 if it did not.
func (e *Error) RetryAfter() time.Duration { return e.retry }

// statusMeaning explains a status that Vault uses in its own way (Vault API
// documentation, "HTTP status codes" and "/sys/health").
func statusMeaning(status int) string {
	switch status {
	case http.StatusNotFound:
		return "missing or deleted"
	case http.StatusPreconditionFailed:
		return "this node does not know what was written yet"
	case http.StatusTooManyRequests:
		return "a quota is used up"
	case 472:
		return "a disaster recovery secondary"
	case 473:
		return "a performance standby"
	case http.StatusServiceUnavailable:
		return "sealed or in maintenance"
	}
	return ""
}

// statusOf returns the HTTP status in err, 0 when it holds none.
func statusOf(err error) int {
	if e := (*Error)(nil); errors.As(err, &e) {
		return e.Status
	}
	return 0
}

// isUnknownToken reports whether Vault refuses the token itself and not what
// is asked with it. Both are 403; "invalid token" stands in the answer of
// Vault since 1.13, "bad token" in that of older ones to a lookup.
func isUnknownToken(err error) bool {
	var e *Error
	return errors.As(err, &e) && e.Status == http.StatusForbidden && slices.ContainsFunc(e.Reasons, func(reason string) bool {
		return strings.Contains(reason, "invalid token") || strings.Contains(reason, "bad token")
	})
}

// isTransient reports whether the same request may do better later: there was
// no answer, or one that speaks of Vault's state and not of the request.
func isTransient(err error) bool {
	var e *Error
	if !errors.As(err, &e) {
		return false
	}
	return e.Status == 0 || e.Status == http.StatusTooManyRequests || e.Status == http.StatusPreconditionFailed ||
		e.Status >= 472
}

// client sends single requests to Vault. It builds them from the parts of
// vault/api (header names, Secret, ResponseError) and not with its Client:
// api.NewClient reads the VAULT_* environment whatever Config it is given, and
// fails when that names a file that is gone.
type client struct {
	http              *http.Client
	base              *url.URL
	namespace         string
	timeout           time.Duration
	failed            func(*Error)             // called with each failure
	replicationStates atomic.Pointer[[]string] // the states of Vault's storage that answers spoke of
}

func newClient(cfg *Config, failed func(*Error)) (*client, error) {
	base, err := url.Parse(cfg.Address)
	if err != nil || (base.Scheme != "https" && base.Scheme != "http") || base.Host == "" {
		return nil, fmt.Errorf("parse address of Vault: %q is not a URL such as https://vault.example:8200", cfg.Address)
	}
	if base.User != nil || base.RawQuery != "" || base.Fragment != "" {
		return nil, errors.New("parse address of Vault: it must not hold a user, a query or a fragment")
	}
	if cfg.Auth.Method == MethodCert && base.Scheme != "https" {
		return nil, errors.New("parse address of Vault: a login by certificate needs https")
	}
	trusted, err := newAuthorities(cfg)
	if err != nil {
		return nil, err
	}
	dialer := &net.Dialer{Timeout: cfg.Timeout}
	transport := &http.Transport{
		Proxy:       nil, // the token goes to Vault itself, whatever the environment has
		DialContext: dialer.DialContext,
		DialTLSContext: func(ctx context.Context, network, address string) (net.Conn, error) {
			return trusted.dial(ctx, dialer, network, address, &tls.Config{
				MinVersion: tls.VersionTLS12, GetClientCertificate: cfg.Auth.keyPair(),
			})
		},
		// net/http sends a GET again when a reused connection breaks before
		// the answer. A read of a leased path must not happen twice, so no
		// connection is reused; requests to Vault are rare.
		DisableKeepAlives:      true,
		MaxResponseHeaderBytes: 64 << 10,
	}
	return &client{
		http:      &http.Client{Transport: transport, CheckRedirect: checkRedirect},
		base:      base,
		namespace: strings.Trim(cfg.Namespace, "/"),
		timeout:   cfg.Timeout,
		failed:    failed,
	}, nil
}

// checkRedirect follows one redirect, as a standby that does not forward answers with the
// address of the active node (Vault documentation, "High availability"), to another port of
// the same host: whatever is sent holds the token, the proof of a login or a lease's id.
// One that changes anything else, or has a user in it, which would become an Authorization
// header, is not followed.
func checkRedirect(req *http.Request, via []*http.Request) error {
	to, asked := req.URL, via[0].URL
	if len(via) > 1 || to.Scheme != asked.Scheme || !strings.EqualFold(to.Hostname(), asked.Hostname()) || to.User != nil ||
		to.Path != asked.Path || to.RawQuery != "" || req.Method != via[0].Method {
		return http.ErrUseLastResponse
	}
	return nil
}

// redirectReason returns the reason of an error for a redirect that is not followed, and
// the fix.
func redirectReason(resp *http.Response) string {
	to, err := resp.Location()
	if err != nil || to.Host == "" {
		return "a redirect to nowhere"
	}
	return fmt.Sprintf("a redirect to %.100q that is not followed: set spec.vault.address to the active node, or to a standby that forwards to it",
		to.Scheme+"://"+to.Host)
}

// call is one request to Vault.
type call struct {
	op            string // for errors
	method        string
	path          string // without /v1/
	query         string
	token         authz.Secret
	body          map[string]any
	params        string // a body that is JSON already and holds no secret
	into          any    // where the answer is decoded to as well; nil for nowhere
	optional      bool   // for what the policy need not allow: a refusal is no failure
	rootNamespace bool   // it is of the root namespace's only
}

const (
	behindAtMost = 2                      // times that a node may lag behind before it is an error
	behindWait   = 150 * time.Millisecond // for it to catch up
)

// do sends one request. It is sent again only to a node that has not done it, because it
// lags behind another one that answered before (412). Its error is an [*Error]. The answer
// is nil when Vault's has no body.
func (c *client) do(ctx context.Context, r call) (*api.Secret, error) {
	secret, err := c.send(ctx, r)
	for tries := 1; err != nil && err.Status == http.StatusPreconditionFailed && tries <= behindAtMost; tries++ {
		select {
		case <-time.After(time.Duration(tries) * behindWait):
			secret, err = c.send(ctx, r)
		case <-ctx.Done():
			tries = behindAtMost
		}
	}
	if err != nil {
		err.Op = r.op
		for i, reason := range err.Reasons {
			err.Reasons[i] = r.redact(reason)
		}
		if !r.optional || err.Status != http.StatusForbidden {
			c.failed(err)
		}
		return nil, err
	}
	return secret, nil
}

func (c *client) send(ctx context.Context, r call) (*api.Secret, *Error) {
	ctx, cancel := context.WithTimeout(ctx, c.timeout)
	defer cancel()
	var sent atomic.Bool
	ctx = httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{WroteHeaders: func() { sent.Store(true) }})
	req, err := c.request(ctx, r)
	if err != nil {
		return nil, &Error{Code: "refused", Reasons: []string{err.Error()}}
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return nil, transportError(ctx, err, sent.Load())
	}
	defer resp.Body.Close()
	resp.Body = struct {
		io.Reader
		io.Closer
	}{io.LimitReader(resp.Body, maxAnswer), resp.Body}
	if resp.StatusCode >= http.StatusMultipleChoices {
		return nil, statusError(resp)
	}
	c.mergeState(resp.Header.Values(api.HeaderIndex))
	secret, err := decode(resp.Body, r.into)
	if err != nil {
		// The error may quote the answer.
		return nil, &Error{
			Status: resp.StatusCode, Code: "answer", ambiguous: true,
			Reasons: []string{"the answer is cut off, too large or not JSON"},
		}
	}
	return secret, nil
}

// decode reads an answer, nil if it is empty.
func decode(body io.Reader, into any) (*api.Secret, error) {
	text, err := io.ReadAll(body)
	if err != nil {
		return nil, err
	}
	secret, err := api.ParseSecret(bytes.NewReader(text))
	if err == nil && secret != nil && into != nil {
		err = json.Unmarshal(text, into)
	}
	return secret, err
}

// mergeState notes what state of Vault's storage an answer speaks of, so that the next node
// that is asked has that state or answers 412 (Vault Enterprise, "Vault Enterprise eventual
// consistency", X-Vault-Index).
func (c *client) mergeState(states []string) {
	const longest = 4 << 10
	for _, state := range states {
		if len(state) > longest {
			continue
		}
		var seen []string
		if old := c.replicationStates.Load(); old != nil {
			seen = *old
		}
		seen = api.MergeReplicationStates(seen, state)
		c.replicationStates.Store(&seen) // of two at once one is forgotten, as if it had not been heard
	}
}

func (c *client) request(ctx context.Context, r call) (*http.Request, error) {
	var body io.Reader
	switch {
	case r.params != "":
		body = strings.NewReader(r.params)
	case r.body != nil:
		text, err := json.Marshal(r.body)
		if err != nil {
			return nil, errors.New("the request cannot be encoded")
		}
		body = bytes.NewReader(text)
	}
	target := c.base.JoinPath("v1")
	target.Path += "/" + r.path
	target.RawPath, target.RawQuery = "", r.query
	req, err := http.NewRequestWithContext(ctx, r.method, target.String(), body)
	if err != nil {
		return nil, errors.New("the path is not one of a URL")
	}
	// The SSRF protection of Vault's listeners, and never an Authorization
	// header: Vault up to 1.21.4 may hand it on to plugins (CVE-2026-4525).
	req.Header.Set(api.RequestHeaderName, "true")
	if token := r.token.Reveal(); token != "" {
		req.Header.Set(api.AuthHeaderName, token)
	}
	if c.namespace != "" && !r.rootNamespace {
		req.Header.Set(api.NamespaceHeaderName, c.namespace)
	}
	if seen := c.replicationStates.Load(); seen != nil {
		req.Header[api.HeaderIndex] = *seen
	}
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	return req, nil
}

// transportError describes a request that got no answer. The URL that net/http
// puts into its errors is left out.
func transportError(ctx context.Context, err error, sent bool) *Error {
	e := &Error{Code: "network", ambiguous: sent}
	if wrapped := (*url.Error)(nil); errors.As(err, &wrapped) {
		err = wrapped.Err
	}
	var timeout interface{ Timeout() bool }
	switch {
	case ctx.Err() != nil && !errors.Is(ctx.Err(), context.DeadlineExceeded):
		e.Reasons, e.givenUp = []string{"given up"}, true
	case errors.Is(err, context.DeadlineExceeded), errors.As(err, &timeout) && timeout.Timeout():
		e.Code, e.Reasons = "timeout", []string{"no answer in time"}
	default:
		e.Reasons = []string{err.Error()}
	}
	return e
}

// statusError describes an answer that is not a success. Words that are not in
// Vault's own form are left out: they are those of something in between.
func statusError(resp *http.Response) *Error {
	e := &Error{Status: resp.StatusCode, Code: strconv.Itoa(resp.StatusCode), retry: retryAfter(resp.Header.Get("Retry-After"))}
	authored := false
	var vaults *api.ResponseError
	text, _ := io.ReadAll(resp.Body) // a truncated text is not Vault's
	resp.Body = io.NopCloser(bytes.NewReader(text))
	switch {
	case resp.StatusCode < http.StatusBadRequest:
		e.Reasons = []string{redirectReason(resp)}
	case resp.StatusCode == http.StatusNotFound && deletionReason(text) != "":
		authored, e.Reasons = true, []string{deletionReason(text)}
	case errors.As((&api.Response{Response: resp}).Error(), &vaults) && !vaults.RawError:
		authored, e.Reasons = true, append(vaults.Errors, warningsOf(text)...)
	default:
		e.Reasons = []string{"the answer is not Vault's"}
	}
	// An error that Vault itself reports it has also undone (its rollback manager). An
	// error of a gateway leaves open what happened behind it.
	gateway := resp.StatusCode == http.StatusBadGateway || resp.StatusCode == http.StatusGatewayTimeout
	e.ambiguous = resp.StatusCode >= http.StatusInternalServerError && (gateway || !authored)
	return e
}

// warningsOf returns what Vault warns of in an answer that is an error, as of a
// path of KV version 2 without data/.
func warningsOf(answer []byte) []string {
	var warned struct {
		Warnings []string `json:"warnings"`
	}
	if json.Unmarshal(answer, &warned) != nil {
		return nil
	}
	return warned.Warnings
}

// deletionReason returns why a version of a KV version 2 secret is missing, "" when the
// answer does not speak of one (Vault API, "KV secrets engine, version 2").
func deletionReason(answer []byte) string {
	var deleted struct {
		Data struct {
			Metadata struct {
				Version   int    `json:"version"`
				Deleted   string `json:"deletion_time"`
				Destroyed bool   `json:"destroyed"`
			} `json:"metadata"`
		} `json:"data"`
	}
	if json.Unmarshal(answer, &deleted) != nil || deleted.Data.Metadata.Version == 0 {
		return ""
	}
	m := deleted.Data.Metadata
	at, err := time.Parse(time.RFC3339, m.Deleted)
	if m.Destroyed || err != nil {
		return fmt.Sprintf("version %d is destroyed", m.Version)
	}
	return fmt.Sprintf("version %d was deleted at %s", m.Version, at.UTC().Format(time.RFC3339))
}

// retryAfter reads a Retry-After header (RFC 9110, section 10.2.3), bounded so that no
// gateway can stop the requests for long.
func retryAfter(header string) time.Duration {
	const longest = 5 * time.Minute
	if header == "" {
		return 0
	}
	if seconds, err := strconv.ParseUint(header, 10, 31); err == nil {
		return min(time.Duration(seconds)*time.Second, longest)
	}
	if at, err := http.ParseTime(header); err == nil {
		return min(max(time.Until(at), 0), longest)
	}
	return 0
}

// redact makes one short printable line of a text from outside, and removes secrets of the
// request that it may repeat.
func (r call) redact(s string) string {
	const longest = 240
	if token := r.token.Reveal(); token != "" {
		s = strings.ReplaceAll(s, token, "[redacted]")
	}
	for key, value := range r.body {
		if text, ok := value.(string); ok && text != "" && !mayRepeat(key) {
			s = strings.ReplaceAll(s, text, "[redacted]")
		}
	}
	s = strings.Join(strings.FieldsFunc(s, func(r rune) bool { return r <= ' ' || r == 0x7f }), " ")
	if _, list, ok := strings.Cut(s, " occurred: * "); ok { // "2 errors occurred: * a * b"
		s = strings.ReplaceAll(list, " * ", "; ")
	}
	if len(s) > longest {
		s = strings.ToValidUTF8(s[:longest], "") + "..."
	}
	return s
}

// mayRepeat reports whether the value of a key in a request may be repeated: an error that
// does not name the role is of little use.
func mayRepeat(key string) bool {
	switch key {
	case "role", "name", "serial_number", "signature_algorithm", "salt_length", "marshaling_algorithm":
		return true
	}
	return false
}

// lookupSelf asks what Vault knows of a token.
func (c *client) lookupSelf(ctx context.Context, token authz.Secret) (*api.Secret, error) {
	return c.do(ctx, call{op: "look up token", method: http.MethodGet, path: "auth/token/lookup-self", token: token})
}

// isGone asks whether Vault no longer has a lease.
func (c *client) isGone(ctx context.Context, s *session, id string) (bool, error) {
	_, err := c.do(ctx, call{
		op: "look up lease " + mask(id), method: http.MethodPut, path: "sys/leases/lookup", token: s.token,
		body: map[string]any{"lease_id": id},
	})
	return statusOf(err) == http.StatusBadRequest, err // "invalid lease"
}
