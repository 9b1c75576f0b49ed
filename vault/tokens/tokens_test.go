package tokens

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"github.com/chaperone-proxy/chaperone/authz"
	"github.com/chaperone-proxy/chaperone/internal/testenv"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m, testenv.Lingering()) }

const (
	clientID     = "weather-plugin"
	clientSecret = "cs:$ecret/+&=%"
)

// endpoint is an authorization server on loopback over TLS.
type endpoint struct {
	server *httptest.Server
	ca     *testenv.CA
	mu     sync.Mutex
	asked  []*http.Request // with their forms read
	answer http.HandlerFunc
}

// newEndpoint starts one that gives each request a token of its own, for an hour.
func newEndpoint(t testing.TB) *endpoint {
	t.Helper()
	e := &endpoint{ca: testenv.MustGet(testenv.NewCA("identity provider"))(t)}
	e.answer = func(w http.ResponseWriter, _ *http.Request) { e.grant(w, 3600) }
	e.server = httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_ = r.ParseForm() // a body that is not a form has no values
		e.mu.Lock()
		e.asked = append(e.asked, r)
		answer := e.answer
		e.mu.Unlock()
		answer(w, r)
	}))
	e.server.TLS = tlsOf(t, e.ca)
	e.server.Config.ErrorLog = discard()
	e.server.StartTLS()
	t.Cleanup(e.server.Close)
	return e
}

// answers replaces what it does.
func (e *endpoint) answers(answer http.HandlerFunc) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.answer = answer
}

func (e *endpoint) says(status int, contentType, body string) {
	e.answers(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", contentType)
		w.WriteHeader(status)
		_, _ = io.WriteString(w, body)
	})
}

func (e *endpoint) grant(w http.ResponseWriter, expiresIn any) {
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(map[string]any{"access_token": fmt.Sprintf("at-%d", e.count()), "token_type": "Bearer", "expires_in": expiresIn})
}

func (e *endpoint) count() int {
	e.mu.Lock()
	defer e.mu.Unlock()
	return len(e.asked)
}

func (e *endpoint) last() *http.Request {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.asked[len(e.asked)-1]
}

// leaser stands for the broker: its credentials change when the test changes them.
type leaser struct {
	mu         sync.Mutex
	credential authz.Credential
	err        error
	asked      atomic.Int64
	answering  func() // is called with a credential at hand; nil is not
}

func newLeaser() *leaser {
	return &leaser{credential: authz.Credential{Generation: 1, Lease: "l1", Fields: map[string]authz.Secret{
		"client_id": authz.NewSecret(clientID), "client_secret": authz.NewSecret(clientSecret),
	}}}
}

func (l *leaser) Credential(context.Context, authz.CredentialRef) (authz.Credential, error) {
	l.asked.Add(1)
	l.mu.Lock()
	credential, err, answering := l.credential, l.err, l.answering
	l.mu.Unlock()
	if answering != nil {
		answering()
	}
	return credential, err
}

func (l *leaser) change(f func(*authz.Credential)) {
	l.mu.Lock()
	defer l.mu.Unlock()
	f(&l.credential)
}

// clock is one that is set.
type clock struct{ ahead atomic.Int64 }

func (c *clock) now() time.Time          { return time.Now().Add(time.Duration(c.ahead.Load())) }
func (c *clock) advance(d time.Duration) { c.ahead.Add(int64(d)) }

// env is what a test needs.
type env struct {
	*endpoint
	leases *leaser
	clock  *clock
	source *Source
	log    *observer.ObservedLogs
}

func newEnv(t testing.TB, change func(*Config)) *env {
	t.Helper()
	core, log := observer.New(zap.DebugLevel)
	r := &env{endpoint: newEndpoint(t), leases: newLeaser(), clock: &clock{}, log: log}
	cfg := Config{Source: r.leases, Dial: (&net.Dialer{}).DialContext, Now: r.clock.now, Logger: zap.New(core)}
	if change != nil {
		change(&cfg)
	}
	r.source = testenv.MustGet(New(cfg))(t)
	t.Cleanup(func() { _ = r.source.Close() })
	return r
}

// ref is a credential that is exchanged at the endpoint.
func (r *env) ref(change ...func(*authz.CredentialRef)) authz.CredentialRef {
	ref := authz.CredentialRef{Plugin: "weather", Grant: "weather", Name: "api", Path: "secret/data/weather", Token: authz.TokenSpec{
		Kind: authz.TokenOAuth2, TokenURL: r.server.URL + "/token", Style: authz.StyleHeader, CA: string(r.ca.PEM()),
		ClientID: "{client_id}", ClientSecret: "{client_secret}",
	}}
	for _, f := range change {
		f(&ref)
	}
	return ref
}

// token returns what is served.
func (r *env) token(t testing.TB, ref authz.CredentialRef) string {
	t.Helper()
	return testenv.MustGet(r.source.Credential(t.Context(), ref))(t).Fields["access_token"].Reveal()
}

func (r *env) mustFail(t testing.TB, ref authz.CredentialRef) error {
	t.Helper()
	c, err := r.source.Credential(t.Context(), ref)
	if err == nil {
		t.Fatalf("served a token until %s", c.NotAfter)
	}
	return err
}

func TestClientCredentials(t *testing.T) {
	for _, style := range []string{authz.StyleHeader, authz.StyleBody} {
		t.Run(style, func(t *testing.T) {
			r := newEnv(t, nil)
			ref := r.ref(func(ref *authz.CredentialRef) {
				ref.Token.Style, ref.Token.Scopes, ref.Token.Audience = style, "read write", "https://api.example"
			})
			if got := r.token(t, ref); got != "at-1" {
				t.Errorf("token %q", got)
			}
			form := r.last().PostForm
			if form.Get("grant_type") != "client_credentials" || form.Get("scope") != "read write" || form.Get("audience") != "https://api.example" {
				t.Errorf("asked with %v", form)
			}
			id, secret, basic := r.last().BasicAuth()
			want := "weather-plugin cs%3A%24ecret%2F%2B%26%3D%25 true" // encoded as a form is (RFC 6749, section 2.3.1)
			if style == authz.StyleBody {
				id, secret = form.Get("client_id"), form.Get("client_secret")
				want = clientID + " " + clientSecret + " false"
			}
			if got := fmt.Sprint(id, " ", secret, " ", basic); got != want {
				t.Errorf("client is %s", got)
			}
		})
	}
}

func TestWhatIsNoTokenPassesThrough(t *testing.T) {
	r := newEnv(t, nil)
	c := testenv.MustGet(r.source.Credential(t.Context(), authz.CredentialRef{Plugin: "weather", Name: "key"}))(t)
	if c.Fields["client_secret"].Reveal() != clientSecret || c.Lease != "l1" || r.count() != 0 {
		t.Errorf("answered with generation %d, %d exchanges", c.Generation, r.count())
	}
}

func TestTokenIsKeptRefreshedEarlyAndEnds(t *testing.T) {
	r := newEnv(t, nil)
	ref := r.ref()
	first := testenv.MustGet(r.source.Credential(t.Context(), ref))(t)
	if left := first.NotAfter.Sub(r.clock.now()); left < 58*time.Minute || left > time.Hour-expiryMargin {
		t.Errorf("served for %s", left)
	}
	if got := r.token(t, ref); got != "at-1" || r.count() != 1 {
		t.Fatalf("token %q after %d exchanges", got, r.count())
	}
	r.clock.advance(45 * time.Minute) // past two thirds
	if got := r.token(t, ref); got != "at-1" {
		t.Errorf("token %q while the next is got", got)
	}
	wait(t, "the next token", func() bool { return r.token(t, ref) == "at-2" })
	r.says(http.StatusInternalServerError, "text/plain", "down")
	r.clock.advance(45 * time.Minute)
	if got := r.token(t, ref); got != "at-2" {
		t.Errorf("token %q while the endpoint is down", got)
	}
	r.clock.advance(15 * time.Minute)
	wait(t, "the end", func() bool { _, err := r.source.Credential(t.Context(), ref); return err != nil })
}

func TestExpiresIn(t *testing.T) {
	for body, want := range map[string]time.Duration{
		`{"access_token":"t","token_type":"bearer"}`:                                     defaultLife - expiryMargin,
		`{"access_token":"t","token_type":"bearer","expires_in":0}`:                      defaultLife - expiryMargin,
		`{"access_token":"t","token_type":"bearer","expires_in":-1}`:                     0,
		`{"access_token":"t","token_type":"bearer","expires_in":1152921504606846976}`:    longestToken - expiryMargin,
		`{"access_token":"t","token_type":"bearer","expires_in":"3600"}`:                 time.Hour - expiryMargin,
		`{"access_token":"t","token_type":"bearer","expires_in":"soon"}`:                 0,
		`{"access_token":"t","token_type":"bearer","expires_in":[1]}`:                    0,
		`{"access_token":"t","token_type":"bearer","expires_in":10}`:                     9 * time.Second,
		`{"access_token":"t","token_type":"bearer","expires_in":null}`:                   defaultLife - expiryMargin,
		`{"access_token":"","token_type":"bearer","expires_in":3600}`:                    0,
		`{"access_token":"t","token_type":"bearer","expires_in":99999999999999999999e9}`: longestToken - expiryMargin,
		`{"access_token":"t","token_type":"bearer","expires_in":1e999}`:                  longestToken - expiryMargin,
		`{"access_token":"t","token_type":"bearer","expires_in":3600.0}`:                 time.Hour - expiryMargin,
		`{"access_token":"t","token_type":"bearer","expires_in":3599.48}`:                time.Hour - expiryMargin,
		`{"access_token":"t","token_type":"bearer","expires_in":3.6e3}`:                  time.Hour - expiryMargin,
		`{"access_token":"t","token_type":"bearer","expires_in":"3600.0"}`:               time.Hour - expiryMargin,
		`{"access_token":"t","token_type":"bearer","expires_in":" 3600 "}`:               time.Hour - expiryMargin,
		`{"access_token":"t","token_type":"bearer","expires_in":""}`:                     defaultLife - expiryMargin,
		`{"access_token":"t","token_type":"bearer","expires_in":"-1"}`:                   0,
		`{"access_token":"t","token_type":"bearer","expires_in":"NaN"}`:                  0,
		`{"access_token":"t","token_type":"bearer","expires_in":true}`:                   0,
	} {
		t.Run(body, func(t *testing.T) {
			r := newEnv(t, nil)
			r.says(http.StatusOK, "application/json", body)
			c, err := r.source.Credential(t.Context(), r.ref())
			if want == 0 {
				if err == nil {
					t.Errorf("served until %s", c.NotAfter)
				}
				return
			}
			if left := c.NotAfter.Sub(r.clock.now()); err != nil || left > want || left < want-5*time.Second {
				t.Errorf("served for %s, not %s (%v)", left, want, err)
			}
		})
	}
}

// TestAnswers takes what token endpoints are known to answer with, and no token
// that is more than a bearer's.
func TestAnswers(t *testing.T) {
	const plain = `{"access_token":"t","token_type":"Bearer","expires_in":3600}`
	for name, c := range map[string]struct {
		status     int
		kind, body string
		want       bool
	}{
		"JSON":                      {200, "application/json", plain, true},
		"JSON as text":              {200, "text/plain; charset=utf-8", plain, true},
		"JSON as HTML":              {200, "text/html", plain, true},
		"JSON of no type":           {200, "", plain, true},
		"byte order mark":           {200, "application/json", "\ufeff" + plain, true},
		"blank before it":           {200, "application/json", "\r\n " + plain, true},
		"created":                   {201, "application/json", plain, true},
		"form":                      {200, "application/x-www-form-urlencoded", "access_token=t&token_type=bearer&expires_in=3600", true},
		"no token_type":             {200, "application/json", `{"access_token":"t"}`, true},
		"BearerToken":               {200, "application/json", `{"access_token":"t","token_type":"BearerToken"}`, true},
		"mac":                       {200, "application/json", `{"access_token":"t","token_type":"mac"}`, false},
		"DPoP":                      {200, "application/json", `{"access_token":"t","token_type":"DPoP"}`, false},
		"a type that is no text":    {200, "application/json", `{"access_token":"t","token_type":1}`, false},
		"a token that is no text":   {200, "application/json", `{"access_token":1,"token_type":"Bearer"}`, false},
		"redirect with a token":     {302, "application/json", plain, false},
		"error beside a token":      {200, "application/json", `{"access_token":"t","error":"invalid_client"}`, false},
		"not found, with a token":   {404, "application/json", plain, false},
		"JSON that is broken off":   {200, "application/json", plain[:len(plain)-1], false},
		"a form without a token":    {200, "text/plain", "token=t", false},
		"a form that is broken":     {200, "text/plain", "access_token=%zz", false},
		"two objects, the first":    {200, "application/json", plain + "{}", true},
		"a null":                    {200, "application/json", "null", false},
		"an object in its place":    {200, "application/json", `{"access_token":{"value":"t"}}`, false},
		"UTF-16, which JSON is not": {200, "application/json", "\xfe\xff\x00{", false},
	} {
		t.Run(name, func(t *testing.T) {
			r := newEnv(t, nil)
			r.says(c.status, c.kind, c.body)
			if got, err := r.source.Credential(t.Context(), r.ref()); (err == nil) != c.want || c.want && got.Fields["access_token"].Reveal() != "t" {
				t.Errorf("token %t: %v", err == nil, err)
			}
		})
	}
}

// TestRetryAfter waits as long as an endpoint asks, in seconds or until a date.
func TestRetryAfter(t *testing.T) {
	now := time.Date(2026, 11, 29, 12, 0, 0, 0, time.UTC)
	for value, want := range map[string]time.Duration{
		"": 0, "30": 30 * time.Second, "0": 0, "-5": 0, "99999999999": maxWait, "soon": 0,
		"Sun, 29 Nov 2026 12:00:20 GMT": 20 * time.Second, "Sunday, 29-Nov-26 12:00:20 GMT": 20 * time.Second,
		"Sun, 29 Nov 2026 11:00:00 GMT": 0, "Sun, 29 Nov 2099 12:00:00 GMT": maxWait,
	} {
		if got := retryAfter(http.Header{"Retry-After": {value}}, now); got != want {
			t.Errorf("%q: %s, want %s", value, got, want)
		}
	}
}

// TestParameters sends further parameters, and none in the place of Chaperone's.
func TestParameters(t *testing.T) {
	r := newEnv(t, nil)
	var form url.Values
	r.answers(func(w http.ResponseWriter, req *http.Request) {
		_ = req.ParseForm()
		form = req.PostForm
		respond(http.StatusOK, "application/json", `{"access_token":"t"}`)(w, req)
	})
	testenv.MustGet(r.source.Credential(t.Context(), r.ref(func(ref *authz.CredentialRef) {
		ref.Token.Extra = url.Values{"resource": {"https://api.example/a b"}, "grant_type": {"password"}}.Encode()
	})))(t)
	if form.Get("resource") != "https://api.example/a b" || len(form["grant_type"]) != 1 || form.Get("grant_type") != "client_credentials" {
		t.Errorf("sent %v", form)
	}
}

func TestTokenEndsWithWhatItWasGotWith(t *testing.T) {
	r := newEnv(t, nil)
	ref := r.ref()
	end := r.clock.now().Add(time.Minute)
	uses := new(authz.Uses)
	r.leases.change(func(c *authz.Credential) { c.NotAfter, c.Uses = end, uses })
	c := testenv.MustGet(r.source.Credential(t.Context(), ref))(t)
	if c.Uses != uses { // or its lease would be revoked under the requests with the token
		t.Error("an access with the token is not counted for the lease that it was got with")
	}
	if !c.NotAfter.Equal(end) || c.Lease != "l1" {
		t.Errorf("served until %s with lease %s", c.NotAfter, c.Lease)
	}
	r.leases.change(func(c *authz.Credential) { c.Generation = 2 })
	next := testenv.MustGet(r.source.Credential(t.Context(), ref))(t)
	if got := next.Fields["access_token"].Reveal(); got != "at-2" || next.Generation <= c.Generation {
		t.Errorf("token %q of generation %d after the client's secret was replaced", got, next.Generation)
	}
	r.leases.mu.Lock()
	r.leases.err = errors.New("the lease is gone")
	r.leases.mu.Unlock()
	if err := r.mustFail(t, ref); !strings.Contains(err.Error(), "the lease is gone") {
		t.Error(err)
	}
}

// A token that an upstream refuses is replaced, at most once a minute.
func TestUpstreamRefuses(t *testing.T) {
	r := newEnv(t, nil)
	ref := r.ref()
	first := testenv.MustGet(r.source.Credential(t.Context(), ref))(t)
	refused := func(generation uint64) {
		for range 100 {
			if !r.source.Refused(ref.Grant, ref.Name, generation) {
				t.Fatal("it is not known as a token")
			}
			testenv.MustGet(r.source.Credential(t.Context(), ref))(t)
			time.Sleep(time.Millisecond) // an exchange takes a while
		}
	}
	refused(first.Generation + 1)
	if r.count() != 1 {
		t.Errorf("%d exchanges for a token of another source", r.count())
	}
	refused(first.Generation)
	var second authz.Credential
	wait(t, "the next token", func() bool {
		second = testenv.MustGet(r.source.Credential(t.Context(), ref))(t)
		return second.Generation > first.Generation
	})
	refused(second.Generation)
	if r.count() != 2 {
		t.Errorf("%d exchanges for 200 refusals within a minute", r.count())
	}
	r.clock.advance(replaceInterval + time.Second)
	refused(second.Generation)
	wait(t, "the third token", func() bool { return r.token(t, ref) == "at-3" })
	if r.source.Refused("weather", "key", 1) {
		t.Error("a leased credential is taken for a token")
	}
}

// A reference that is dropped while the client's credentials are fetched is not exchanged.
func TestTakenAwayBeforeTheExchange(t *testing.T) {
	r := newEnv(t, nil)
	ref := r.ref()
	r.source.Retain([]authz.CredentialRef{ref})
	r.leases.answering = func() { r.source.Retain(nil) }
	if err := r.mustFail(t, ref); !errors.Is(err, errNotInForce) || r.count() != 0 {
		t.Errorf("after %d exchanges: %v", r.count(), err)
	}
	r.leases.answering = func() { r.source.Retain([]authz.CredentialRef{ref}) }
	if got := r.token(t, ref); got != "at-1" {
		t.Errorf("token %q of what stays in force", got)
	}
}

func TestCeilingOnLifetimes(t *testing.T) {
	r := newEnv(t, nil)
	c := testenv.MustGet(r.source.Credential(t.Context(), r.ref(func(ref *authz.CredentialRef) { ref.Lifetime = time.Minute })))(t)
	if left := c.NotAfter.Sub(r.clock.now()); left > time.Minute {
		t.Errorf("served for %s", left)
	}
}

func TestSameTokenIsTheSameGeneration(t *testing.T) {
	r := newEnv(t, nil)
	r.says(http.StatusOK, "application/json", `{"access_token":"t","expires_in":30}`)
	ref := r.ref()
	first := testenv.MustGet(r.source.Credential(t.Context(), ref))(t)
	r.clock.advance(time.Minute)
	second := testenv.MustGet(r.source.Credential(t.Context(), ref))(t)
	if r.count() != 2 || first.Generation != second.Generation || first.Fields["access_token"] != second.Fields["access_token"] {
		t.Errorf("generations %d and %d after %d exchanges", first.Generation, second.Generation, r.count())
	}
}

func TestScopesAndAudiencesShareNoToken(t *testing.T) {
	r := newEnv(t, nil)
	seen := map[string]bool{}
	for _, change := range []func(*authz.CredentialRef){
		func(*authz.CredentialRef) {},
		func(ref *authz.CredentialRef) { ref.Token.Scopes = "read" },
		func(ref *authz.CredentialRef) { ref.Token.Audience = "https://a.example" },
		func(ref *authz.CredentialRef) { ref.Token.Audience = "https://b.example" },
		func(ref *authz.CredentialRef) { ref.Path = "secret/data/other" },
		func(ref *authz.CredentialRef) { ref.Grant = "other" },
	} {
		ref := r.ref(change)
		got := r.token(t, ref)
		if seen[got] {
			t.Errorf("%+v has the token of another", ref.Token)
		}
		seen[got] = true
		if again := r.token(t, ref); again != got {
			t.Errorf("%q, then %q", got, again)
		}
	}
}

func TestTwoHundredColdRequestsExchangeOnce(t *testing.T) {
	r := newEnv(t, nil)
	r.answers(func(w http.ResponseWriter, _ *http.Request) {
		time.Sleep(100 * time.Millisecond)
		r.grant(w, 3600)
	})
	ref := r.ref()
	var group sync.WaitGroup
	var failed atomic.Int64
	for i := range 200 {
		group.Go(func() {
			ctx := t.Context()
			if i == 0 { // the first caller may leave
				var cancel context.CancelFunc
				ctx, cancel = context.WithTimeout(ctx, 10*time.Millisecond)
				defer cancel()
				_, _ = r.source.Credential(ctx, ref)
				return
			}
			if c, err := r.source.Credential(ctx, ref); err != nil || c.Fields["access_token"].Reveal() != "at-1" {
				failed.Add(1)
			}
		})
	}
	group.Wait()
	if r.count() != 1 || failed.Load() != 0 {
		t.Errorf("%d exchanges, %d failed", r.count(), failed.Load())
	}
}

func wait(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(2 * time.Minute); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("not within two minutes: %s", what)
		}
	}
}
