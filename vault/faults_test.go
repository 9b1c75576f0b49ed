package vault

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"github.com/chaperone-proxy/chaperone/authz"
	"github.com/chaperone-proxy/chaperone/internal/testenv"
)

// faults stands between a broker and a real Vault and does to requests what
// networks and load balancers do.
type faults struct {
	address string
	forward func(http.ResponseWriter, *http.Request) // to Vault, whatever is broken
	seen    sync.Map                                 // path to *atomic.Int64
	fault   atomic.Pointer[fault]
}

// fault handles a request whose path begins with prefix in its own way.
// forward passes it on to Vault and returns the answer's recorder.
type fault struct {
	prefix string
	handle func(w http.ResponseWriter, r *http.Request, forward func() *httptest.ResponseRecorder)
}

func newFaults(t testing.TB, v *testenv.Vault) *faults {
	t.Helper()
	target := testenv.MustGet(url.Parse(v.Address))(t)
	transport := &http.Transport{DisableKeepAlives: true}
	proxy := &httputil.ReverseProxy{
		Rewrite:   func(r *httputil.ProxyRequest) { r.SetURL(target) },
		Transport: transport,
		ErrorHandler: func(w http.ResponseWriter, _ *http.Request, _ error) {
			w.WriteHeader(http.StatusBadGateway)
		},
	}
	f := &faults{forward: proxy.ServeHTTP}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		path := strings.TrimPrefix(r.URL.Path, "/v1/")
		count, _ := f.seen.LoadOrStore(path, new(atomic.Int64))
		count.(*atomic.Int64).Add(1)
		if now := f.fault.Load(); now != nil && strings.HasPrefix(path, now.prefix) {
			now.handle(w, r, func() *httptest.ResponseRecorder {
				answer := httptest.NewRecorder()
				proxy.ServeHTTP(answer, r)
				return answer
			})
			return
		}
		proxy.ServeHTTP(w, r)
	}))
	t.Cleanup(server.Close)
	f.address = server.URL
	return f
}

func (f *faults) count(path string) int64 {
	n, ok := f.seen.Load(path)
	if !ok {
		return 0
	}
	return n.(*atomic.Int64).Load()
}

// total is how many requests have come.
func (f *faults) total() (n int64) {
	f.seen.Range(func(_, count any) bool {
		n += count.(*atomic.Int64).Load()
		return true
	})
	return n
}

func (f *faults) breaks(prefix string, handle func(w http.ResponseWriter, r *http.Request, forward func() *httptest.ResponseRecorder)) {
	f.fault.Store(&fault{prefix, handle})
}

// breaksOnce does it to the next request only.
func (f *faults) breaksOnce(prefix string, handle func(w http.ResponseWriter, r *http.Request, forward func() *httptest.ResponseRecorder)) {
	var once atomic.Bool
	f.breaks(prefix, func(w http.ResponseWriter, r *http.Request, forward func() *httptest.ResponseRecorder) {
		if once.CompareAndSwap(false, true) {
			handle(w, r, forward)
			return
		}
		answer := forward()
		w.WriteHeader(answer.Code)
		_, _ = answer.Body.WriteTo(w)
	})
}

func (f *faults) mend() { f.fault.Store(nil) }

// hold holds up requests until release is called. The channel gets a value for
// each that has come.
func (f *faults) hold(prefix string) (come <-chan struct{}, release func()) {
	arrived, released := make(chan struct{}, 1000), make(chan struct{})
	f.breaks(prefix, func(w http.ResponseWriter, _ *http.Request, forward func() *httptest.ResponseRecorder) {
		arrived <- struct{}{}
		<-released
		answer := forward()
		w.WriteHeader(answer.Code)
		_, _ = answer.Body.WriteTo(w)
	})
	return arrived, func() { close(released) }
}

// answer answers with a status and a body, without asking Vault.
func answer(status int, body string) func(http.ResponseWriter, *http.Request, func() *httptest.ResponseRecorder) {
	return func(w http.ResponseWriter, _ *http.Request, _ func() *httptest.ResponseRecorder) {
		w.WriteHeader(status)
		_, _ = io.WriteString(w, body)
	}
}

func retryAfterOf(t testing.TB, err error) time.Duration {
	t.Helper()
	var retry interface{ RetryAfter() time.Duration }
	if !errors.As(err, &retry) {
		t.Fatalf("error %v does not say when to try again", err)
	}
	return retry.RetryAfter()
}

// A mint whose answer is lost leaves a user in the database whose lease id is lost. It goes
// with the token, and the broker has made no more than it must.
func TestCleansUpAfterALostAnswer(t *testing.T) {
	t.Parallel()
	v, db := database(t, map[string]testenv.DatabaseRole{"reader": {}})
	lost := map[string]func(w http.ResponseWriter, r *http.Request, forward func() *httptest.ResponseRecorder){
		"502 after minting": func(w http.ResponseWriter, _ *http.Request, forward func() *httptest.ResponseRecorder) {
			forward()
			w.WriteHeader(http.StatusBadGateway)
		},
		"500 that is not Vault's": func(w http.ResponseWriter, _ *http.Request, forward func() *httptest.ResponseRecorder) {
			forward()
			http.Error(w, "oops", http.StatusInternalServerError)
		},
		"connection cut": func(_ http.ResponseWriter, _ *http.Request, forward func() *httptest.ResponseRecorder) {
			forward()
			panic(http.ErrAbortHandler)
		},
		"answer cut off": func(w http.ResponseWriter, _ *http.Request, forward func() *httptest.ResponseRecorder) {
			body := forward().Body.Bytes()
			_, _ = w.Write(body[:len(body)/2])
		},
		"no answer in time": func(_ http.ResponseWriter, r *http.Request, forward func() *httptest.ResponseRecorder) {
			forward()
			<-r.Context().Done()
		},
	}
	for name, handle := range lost {
		t.Run(name, func(t *testing.T) {
			f := newFaults(t, v)
			auth := approle(t, v, "weather", testenv.AppRole{Policy: readDatabase + revokeLeases, TokenTTL: time.Hour})
			b, stop := run(t, Config{Address: f.address, Auth: auth, Timeout: 2 * time.Second})
			other, db1 := ref("other", "database/creds/reader"), ref("db", "database/creds/reader")
			b.Retain(t.Context(), []authz.CredentialRef{other, db1})
			before := testenv.MustGet(b.Credential(t.Context(), other))(t)

			f.breaksOnce("database/", handle)
			_, err := b.Credential(t.Context(), db1)
			if err == nil {
				t.Fatal("got a credential from a lost answer")
			}
			retryAfterOf(t, err)
			if got := f.count("database/creds/reader"); got != 2 {
				t.Errorf("%d requests, not one for each credential", got)
			}
			var c authz.Credential
			until(t, "it works again", func() bool {
				c, err = b.Credential(t.Context(), db1)
				return err == nil
			})
			until(t, "the lost user and the former one are gone", func() bool { return len(users(t, db)) == 2 && !logsIn(t, db, before) })
			after := testenv.MustGet(b.Credential(t.Context(), other))(t)
			if !logsIn(t, db, c) || !logsIn(t, db, after) {
				t.Error("a credential in force was lost with the lost one")
			}
			testenv.Must(t, stop())
			if got := users(t, db); len(got) != 0 {
				t.Errorf("users left in the database: %q", got)
			}
		})
	}
}

// Leases are served while Vault is away, until they end, and not longer.
func TestVaultDies(t *testing.T) {
	t.Parallel()
	v, db := database(t, map[string]testenv.DatabaseRole{"reader": {TTL: 8 * time.Second}})
	auth := approle(t, v, "weather", testenv.AppRole{Policy: readDatabase, TokenTTL: time.Hour})
	var log journal
	var changes atomic.Int64
	b, stop := run(t, Config{Address: v.Address, Auth: auth, Recorder: &log, Changed: func() { changes.Add(1) }})
	db1 := ref("db", "database/creds/reader")
	b.Retain(t.Context(), []authz.CredentialRef{db1})
	c := testenv.MustGet(b.Credential(t.Context(), db1))(t)
	testenv.Must(t, v.Kill())
	var err error
	for ended := false; !ended; {
		asked := time.Now()
		got, e := b.Credential(t.Context(), db1)
		switch {
		case e == nil && asked.After(c.NotAfter):
			t.Fatalf("served %s after its end", asked.Sub(c.NotAfter))
		case e == nil && got.Lease != c.Lease:
			t.Fatal("served another lease")
		case e != nil && time.Now().Before(c.NotAfter):
			t.Fatalf("refused %s before its end: %v", time.Until(c.NotAfter), e)
		}
		ended, err = e != nil, e
		time.Sleep(10 * time.Millisecond)
	}
	if retry := retryAfterOf(t, err); retry <= 0 || retry > 30*time.Second {
		t.Errorf("retry after %s", retry)
	}
	if log.count("lost") != 1 || changes.Load() != 1 {
		t.Errorf("changes %d, records %s", changes.Load(), &log)
	}
	if s := b.Status(); s.States[StateUnavailable] != 1 || s.Errors["network"] == 0 || s.LastErr == "" {
		t.Errorf("status %+v", s)
	}
	if err := stop(); err == nil || !strings.Contains(err.Error(), "0 of 1 confirmed") {
		t.Errorf("got %v from the shutdown", err)
	}
	_ = db
}

func TestVaultIsSealed(t *testing.T) {
	t.Parallel()
	v, db := database(t, map[string]testenv.DatabaseRole{"brief": {TTL: 6 * time.Second}})
	auth := approle(t, v, "weather", testenv.AppRole{Policy: readDatabase + revokeLeases, TokenTTL: time.Hour})
	b, _ := run(t, Config{Address: v.Address, Auth: auth})
	brief := ref("brief", "database/creds/brief")
	b.Retain(t.Context(), []authz.CredentialRef{brief})
	testenv.MustGet(b.Credential(t.Context(), brief))(t)
	testenv.Must(t, v.Seal(t.Context()))
	if _, err := b.Credential(t.Context(), brief); err != nil {
		t.Errorf("the lease in force was given up at once: %v", err)
	}
	var err error
	until(t, "the lease has ended", func() bool { _, err = b.Credential(t.Context(), brief); return err != nil })
	if !strings.Contains(err.Error(), "sealed") {
		t.Errorf("error = %v", err)
	}
	retryAfterOf(t, err)
	testenv.Must(t, v.Unseal(t.Context()))
	var c authz.Credential
	until(t, "it works again", func() bool { c, err = b.Credential(t.Context(), brief); return err == nil })
	if !logsIn(t, db, c) {
		t.Error("served a user that cannot log in")
	}
}

// A slow Vault holds up only those who have nothing yet, and only as long as
// they are willing to wait.
func TestVaultIsSlow(t *testing.T) {
	t.Parallel()
	v := testenv.MustVault(t, testenv.VaultConfig{})
	testenv.Must(t, v.PutSecret(t.Context(), "weather", map[string]any{"api_key": "wk_1"}))
	f := newFaults(t, v)
	b := broker(t, Config{Address: f.address, Auth: approle(t, v, "weather", testenv.AppRole{Policy: readForecast})})
	warm, cold := ref("warm", "secret/data/weather"), ref("cold", "secret/data/weather")
	testenv.MustGet(b.Credential(t.Context(), warm))(t)
	_, release := f.hold("secret/")
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := b.Credential(ctx, cold); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("waited for a slow Vault: %v", err)
	}
	if _, err := b.Credential(t.Context(), warm); err != nil {
		t.Errorf("a cached credential was held up: %v", err)
	}
	release()
	testenv.MustGet(b.Credential(t.Context(), cold))(t)
	if got := f.count("secret/data/weather"); got != 2 {
		t.Errorf("%d reads, not one for each credential", got)
	}
}

func TestTokenIsRevokedUnderUs(t *testing.T) {
	t.Parallel()
	v, db := database(t, map[string]testenv.DatabaseRole{"reader": {TTL: 6 * time.Second}})
	testenv.Must(t, v.PutSecret(t.Context(), "weather", map[string]any{"api_key": "wk_1"}))
	auth := approle(t, v, "weather", testenv.AppRole{Policy: readForecast + readDatabase + revokeLeases, TokenTTL: time.Hour})
	var log journal
	var changes atomic.Int64
	b, _ := run(t, Config{
		Address: v.Address, Auth: auth, Recorder: &log, Refresh: time.Hour, Changed: func() { changes.Add(1) },
	})
	db1, key, other := ref("db", "database/creds/reader"), ref("key", "secret/data/weather"), ref("other", "secret/data/weather")
	b.Retain(t.Context(), []authz.CredentialRef{db1, key, other})
	first := testenv.MustGet(b.Credential(t.Context(), db1))(t)
	testenv.MustGet(b.Credential(t.Context(), key))(t)
	accessor := b.login.current().accessor
	testenv.MustGet(v.Write(t.Context(), "auth/token/revoke-accessor", map[string]any{"accessor": accessor}))(t)

	// A read finds out, logs in again and is answered.
	testenv.MustGet(b.Credential(t.Context(), other))(t)
	if changes.Load() == 0 || log.count("lost") != 2 {
		t.Errorf("changes %d, records %s", changes.Load(), &log)
	}
	second := testenv.MustGet(b.Credential(t.Context(), db1))(t)
	if second.Lease == first.Lease || second.Generation == first.Generation || !logsIn(t, db, second) {
		t.Errorf("the lease that died with the token is still served")
	}
	until(t, "the first lease is confirmed to be gone", func() bool { return log.count("revoked") >= 1 })
}

// Irrevocable leases are reported if the policy allows the count.
func TestIrrevocableLeases(t *testing.T) {
	t.Parallel()
	v, _ := database(t, map[string]testenv.DatabaseRole{"reader": {}})
	accessor := fmt.Sprint(testenv.MustGet(v.Read(t.Context(), "sys/internal/ui/mounts/database/creds/reader"))(t)["accessor"])
	given := fmt.Sprintf(`{"data":{"lease_count":8,"counts":{%q:3,"kv_1":5}}}`, accessor)
	const count = `path "sys/leases/count" { capabilities = ["read"] }`
	for name, test := range map[string]struct {
		policy string
		answer string // instead of Vault's
		says   int64
		asks   int64
	}{
		"none":        {policy: count, asks: 1},
		"not allowed": {asks: 1},
		"some":        {policy: count, answer: given, asks: 1, says: 3},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFaults(t, v)
			if test.answer != "" {
				f.breaks("sys/leases/count", answer(http.StatusOK, test.answer))
			}
			core, warned := observer.New(zap.WarnLevel)
			auth := approle(t, v, "weather", testenv.AppRole{Policy: readDatabase + revokeLeases + test.policy, TokenTTL: time.Hour})
			b, stop := run(t, Config{Address: f.address, Auth: auth, Logger: zap.New(core)})
			testenv.MustGet(b.Credential(t.Context(), ref("db", "database/creds/reader")))(t)
			testenv.Must(t, stop())
			said := warned.FilterMessageSnippet("irrevocable leases").All()
			if got := f.count("sys/leases/count"); got != test.asks || (len(said) == 1) != (test.says > 0) {
				t.Fatalf("asked %d times, logged %v", got, said)
			}
			if test.says > 0 && said[0].ContextMap()["leases"] != test.says {
				t.Errorf("said %v", said[0].ContextMap())
			}
			if s := b.Status(); s.LastErr != "" || len(s.Errors) != 0 {
				t.Errorf("errors are %v, the last one %q", s.Errors, s.LastErr)
			}
		})
	}
}

// An untracked lease of a token that another party revoked is reported.
func TestStrandedLease(t *testing.T) {
	t.Parallel()
	v, _ := database(t, map[string]testenv.DatabaseRole{"reader": {}})
	f := newFaults(t, v)
	core, warned := observer.New(zap.WarnLevel)
	b, _ := run(t, Config{
		Address: f.address, Logger: zap.New(core),
		Auth: approle(t, v, "weather", testenv.AppRole{Policy: readDatabase + revokeLeases, TokenTTL: time.Hour}),
	})
	db1 := ref("db", "database/creds/reader")
	b.Retain(t.Context(), []authz.CredentialRef{db1})
	testenv.Must(t, b.Login(t.Context()))
	accessor := b.login.current().accessor
	f.breaksOnce("database/", func(w http.ResponseWriter, _ *http.Request, _ func() *httptest.ResponseRecorder) {
		_, err := v.Write(context.WithoutCancel(t.Context()), "auth/token/revoke-accessor", map[string]any{"accessor": accessor})
		if err != nil {
			t.Error(err)
		}
		w.WriteHeader(http.StatusBadGateway)
	})
	if _, err := b.Credential(t.Context(), db1); err == nil {
		t.Error("served from a lost answer")
	}
	until(t, "it is said", func() bool { return warned.FilterMessageSnippet("untracked lease possible").Len() == 1 })
	until(t, "it works again", func() bool { _, err := b.Credential(t.Context(), db1); return err == nil })
}

// A token that Vault does not revoke at once when the sidecar ends is revoked a
// moment later, and that is no failure.
func TestTokenIsRevokedAtLast(t *testing.T) {
	t.Parallel()
	v := testenv.MustVault(t, testenv.VaultConfig{})
	f := newFaults(t, v)
	b, stop := run(t, Config{Address: f.address, Auth: approle(t, v, "weather", testenv.AppRole{Policy: readForecast})})
	testenv.Must(t, b.Login(t.Context()))
	accessor := b.login.current().accessor
	f.breaksOnce("auth/token/revoke-self", answer(http.StatusServiceUnavailable, `{"errors":["Vault is sealed"]}`))
	testenv.Must(t, stop())
	if _, err := v.Write(t.Context(), "auth/token/lookup-accessor", map[string]any{"accessor": accessor}); err == nil {
		t.Error("the token is left")
	}
}

// A lease that an operator revoked is replaced when renewing it shows that.
func TestLeaseIsRevokedUnderUs(t *testing.T) {
	t.Parallel()
	v, db := database(t, map[string]testenv.DatabaseRole{"brief": {TTL: 6 * time.Second}})
	auth := approle(t, v, "weather", testenv.AppRole{Policy: readDatabase + revokeLeases, TokenTTL: time.Hour})
	var log journal
	b, _ := run(t, Config{Address: v.Address, Auth: auth, Recorder: &log})
	brief := ref("brief", "database/creds/brief")
	b.Retain(t.Context(), []authz.CredentialRef{brief})
	first := testenv.MustGet(b.Credential(t.Context(), brief))(t)
	testenv.Must(t, v.RevokeLeases(t.Context(), "database/creds/brief"))
	until(t, "it is lost", func() bool { return log.count("lost") == 1 })
	second := testenv.MustGet(b.Credential(t.Context(), brief))(t)
	if second.Lease == first.Lease || !logsIn(t, db, second) {
		t.Errorf("second %+v, records %s", second, &log)
	}
}

// Vault is asked about a credential that an upstream refuses, and it is replaced only if
// Vault has revoked it: a plugin that is refused all the time costs Vault one question now
// and then.
func TestUpstreamRefuses(t *testing.T) {
	t.Parallel()
	v, db := database(t, map[string]testenv.DatabaseRole{"reader": {TTL: time.Hour}})
	testenv.Must(t, v.PutSecret(t.Context(), "weather", map[string]any{"api_key": "wk_1"}))
	auth := approle(t, v, "weather", testenv.AppRole{Policy: readForecast + readDatabase + revokeLeases, TokenTTL: 4 * time.Hour})
	f := newFaults(t, v)
	var log journal
	var ahead atomic.Int64
	b, _ := run(t, Config{
		Address: f.address, Auth: auth, Recorder: &log, Refresh: time.Hour, Stale: 2 * time.Hour,
		Now: func() time.Time { return time.Now().Add(time.Duration(ahead.Load())) },
	})
	db1, key := ref("db", "database/creds/reader"), ref("key", "secret/data/weather")
	b.Retain(t.Context(), []authz.CredentialRef{db1, key})
	first := testenv.MustGet(b.Credential(t.Context(), db1))(t)
	value := testenv.MustGet(b.Credential(t.Context(), key))(t)
	refused := func() {
		for range 200 {
			b.Refused(db1.Grant, db1.Name, first.Generation, http.StatusForbidden)
			b.Refused(key.Grant, key.Name, value.Generation, http.StatusForbidden)
			b.Refused(db1.Grant, db1.Name, first.Generation+100, http.StatusForbidden)
			b.Refused("other", "db", first.Generation, http.StatusForbidden)
			time.Sleep(time.Millisecond) // Run asks, in its own time
		}
	}
	refused()
	until(t, "Vault was asked", func() bool { return f.count("sys/leases/lookup") >= 1 && f.count("secret/data/weather") >= 2 })
	refused()
	if lookups, reads, mints := f.count("sys/leases/lookup"), f.count("secret/data/weather"), f.count("database/creds/reader"); lookups != 1 || reads != 2 || mints != 1 {
		t.Errorf("400 refusals: %d lookups, %d reads, %d mints", lookups, reads, mints)
	}
	if again := testenv.MustGet(b.Credential(t.Context(), db1))(t); again.Lease != first.Lease || log.count("lost") != 0 {
		t.Errorf("a lease that Vault has was given up: %s", &log)
	}

	testenv.Must(t, v.RevokeLeases(t.Context(), "database/creds/reader"))
	testenv.Must(t, v.PutSecret(t.Context(), "weather", map[string]any{"api_key": "wk_2"}))
	ahead.Store(int64(recheckInterval + time.Second))
	refused()
	until(t, "the lease is lost and the value replaced", func() bool { return log.count("lost") == 1 && log.count("replaced") == 1 })
	second := testenv.MustGet(b.Credential(t.Context(), db1))(t)
	if second.Lease == first.Lease || second.Generation == first.Generation || !logsIn(t, db, second) {
		t.Errorf("second %+v, records %s", second, &log)
	}
}

// A user that somebody has removed from the database is refused, and Vault does
// not know. After a 401 another one is made, and not one for each refusal.
func TestUserIsDropped(t *testing.T) {
	t.Parallel()
	v, db := database(t, map[string]testenv.DatabaseRole{"reader": {TTL: time.Hour}})
	for name, policy := range map[string]string{
		"": readDatabase + revokeLeases, "lookups are forbidden": readDatabase + revokeLeases + `path "sys/leases/lookup" { capabilities = ["deny"] }`,
	} {
		auth := approle(t, v, "dropped"+strings.ReplaceAll(name, " ", "-"), testenv.AppRole{Policy: policy, TokenTTL: 4 * time.Hour})
		f := newFaults(t, v)
		var log journal
		var clock ahead
		b, stop := run(t, Config{Address: f.address, Auth: auth, Recorder: &log, Now: clock.now})
		user := ref("user", "database/creds/reader")
		b.Retain(t.Context(), []authz.CredentialRef{user})
		first := testenv.MustGet(b.Credential(t.Context(), user))(t)
		testenv.MustGet(db.Query(t.Context(), `DROP OWNED BY "`+first.Fields["username"].Reveal()+`"; DROP ROLE "`+first.Fields["username"].Reveal()+`"`))(t)
		var second authz.Credential
		until(t, "another user is served", func() bool {
			second = testenv.MustGet(b.Credential(t.Context(), user))(t)
			b.Refused(user.Grant, user.Name, second.Generation, http.StatusUnauthorized)
			return second.Lease != first.Lease
		})
		if !logsIn(t, db, second) || log.count("lost") != 0 {
			t.Errorf("%s: records %s", name, &log)
		}
		clock.move(2 * recheckInterval)
		for range 100 { // a plugin that asks for what it may not have
			b.Refused(user.Grant, user.Name, second.Generation, http.StatusUnauthorized)
			time.Sleep(5 * time.Millisecond)
		}
		if n := f.count("database/creds/reader"); n != 2 {
			t.Errorf("%s: %d users were made", name, n)
		}
		testenv.Must(t, stop())
	}
}

func TestAnswersOfVault(t *testing.T) {
	t.Parallel()
	v := testenv.MustVault(t, testenv.VaultConfig{})
	testenv.Must(t, v.PutSecret(t.Context(), "weather", map[string]any{"api_key": "wk_1"}))
	testenv.Must(t, v.PutSecret(t.Context(), "broken", map[string]any{"api_key": "wk_1\n"}))
	testenv.Must(t, v.PutSecret(t.Context(), "deleted", map[string]any{"api_key": "wk_1"}))
	testenv.Must(t, v.Delete(t.Context(), "secret/data/deleted"))
	f := newFaults(t, v)
	auth := approle(t, v, "weather", testenv.AppRole{Policy: readForecast})
	tests := []struct {
		name, path string
		plugin     string
		handle     func(http.ResponseWriter, *http.Request, func() *httptest.ResponseRecorder)
		status     int
		says       string
		retry      time.Duration
	}{
		{name: "not allowed", path: "other/weather", status: 403, says: "permission denied"},
		{name: "not there", path: "secret/data/none", status: 404, says: "missing or deleted"},
		{name: "deleted", path: "secret/data/deleted", status: 404, says: "deleted"},
		{name: "line break", path: "secret/data/broken", status: 200, says: `field "api_key"`},
		{name: "other plugin", path: "secret/data/weather", plugin: "mail", says: "plugin mail"},
		{name: "own token", path: "auth/token/lookup-self", says: "Vault's own"},
		{name: "own state", path: "sys/policies/acl/weather", says: "Vault's own"},
		{name: "dots", path: "secret/../sys/health", says: "not one of Vault's"},
		{name: "query", path: "secret/data/weather?version=1", says: "not one of Vault's"},
		{name: "quota", path: "secret/data/429", handle: func(w http.ResponseWriter, _ *http.Request, _ func() *httptest.ResponseRecorder) {
			w.Header().Set("Retry-After", "17")
			w.WriteHeader(http.StatusTooManyRequests)
			_, _ = io.WriteString(w, `{"errors":["request path \"secret/data/429\": rate limit quota exceeded"]}`)
		}, status: 429, says: "quota", retry: 17 * time.Second},
		{name: "standby behind", path: "secret/data/412", handle: answer(412, `{"errors":["required index state not present"]}`), status: 412, says: "required index"},
		{name: "DR secondary", path: "secret/data/472", handle: answer(472, `{"errors":["path disabled in replication DR secondary mode"]}`), status: 472, says: "disaster"},
		{name: "performance standby", path: "secret/data/473", handle: answer(473, ``), status: 473, says: "performance"},
		{name: "bad request", path: "secret/data/400", handle: answer(400, `{"errors":["unknown role: x"]}`), status: 400, says: "unknown role"},
		{name: "load balancer", path: "secret/data/503", handle: answer(503, `<html>canary-503</html>`), status: 503, says: "not Vault's"},
		{name: "not JSON", path: "secret/data/html", handle: answer(200, `<html>canary-503</html>`), status: 200, says: "not JSON"},
		{name: "empty", path: "secret/data/empty", handle: answer(200, ``), status: 200, says: "no fields"},
		{name: "list", path: "secret/data/list", handle: answer(200, `[1]`), status: 200, says: "not JSON"},
		{name: "wrapped", path: "secret/data/wrapped", handle: answer(200, `{"wrap_info":{"token":"hvs.canary-503","ttl":60}}`), status: 200, says: "no fields"},
		{name: "huge", path: "secret/data/huge", handle: answer(200, `{"data":{"a":"`+strings.Repeat("x", 2<<20)+`"}}`), status: 200, says: "too large"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			f.mend()
			if test.handle != nil {
				f.breaks("secret/", test.handle)
			}
			b := broker(t, Config{Address: f.address, Auth: auth})
			key := ref("key", test.path)
			if test.plugin != "" {
				key.Plugin = test.plugin
			}
			_, err := b.Credential(t.Context(), key)
			if err == nil {
				t.Fatal("got a credential")
			}
			if statusOf(err) != test.status || !strings.Contains(err.Error(), test.says) {
				t.Errorf("error = %v (status %d), want %d and %q", err, statusOf(err), test.status, test.says)
			}
			if strings.Contains(err.Error(), "canary") || strings.Contains(err.Error(), "wk_1") || strings.Contains(err.Error(), f.address) {
				t.Errorf("error repeats what it must not: %v", err)
			}
			if test.status != 0 {
				if got := retryAfterOf(t, err); got < max(test.retry-time.Second, 200*time.Millisecond) || got > 31*time.Second {
					t.Errorf("retry after %s, want %s", got, test.retry)
				}
			}
		})
	}
}

// While Vault is away it is not asked by every request.
func TestFailuresAreRemembered(t *testing.T) {
	t.Parallel()
	v := testenv.MustVault(t, testenv.VaultConfig{})
	f := newFaults(t, v)
	f.breaks("secret/", answer(503, `{"errors":["Vault is sealed"]}`))
	b := broker(t, Config{Address: f.address, Auth: approle(t, v, "weather", testenv.AppRole{Policy: readForecast})})
	for range 1000 {
		if _, err := b.Credential(t.Context(), ref("key", "secret/data/weather")); err == nil {
			t.Fatal("got a credential")
		}
	}
	if got := f.count("secret/data/weather"); got > 20 {
		t.Errorf("1000 requests asked Vault %d times", got)
	}
	if got := f.count("auth/approle/login"); got != 1 {
		t.Errorf("logged in %d times", got)
	}
}

// A standby's redirect is followed to the same host, once, and to nobody else:
// who is asked gets the token.
func TestRedirects(t *testing.T) {
	t.Parallel()
	v := testenv.MustVault(t, testenv.VaultConfig{})
	testenv.Must(t, v.PutSecret(t.Context(), "weather", map[string]any{"api_key": "wk_1"}))
	active := newFaults(t, v)
	standby := newFaults(t, v)
	to := func(status int, location func(path string) string) {
		standby.breaks("", func(w http.ResponseWriter, r *http.Request, _ func() *httptest.ResponseRecorder) {
			w.Header().Set("Location", location(r.URL.Path))
			w.WriteHeader(status)
		})
	}
	auth := approle(t, v, "weather", testenv.AppRole{Policy: readForecast})
	to(http.StatusTemporaryRedirect, func(path string) string { return active.address + path })
	b := broker(t, Config{Address: standby.address, Auth: auth})
	testenv.MustGet(b.Credential(t.Context(), ref("key", "secret/data/weather")))(t)
	if active.count("auth/approle/login") != 1 || active.count("secret/data/weather") != 1 {
		t.Error("a standby's redirect, or the body of one, was not followed")
	}

	_, port, err := net.SplitHostPort(strings.TrimPrefix(active.address, "http://"))
	testenv.Must(t, err)
	for name, test := range map[string]struct {
		status   int
		location func(path string) string
		says     string
	}{
		"another host":      {307, func(path string) string { return "http://127.0.0.2:" + port + path }, "127.0.0.2"},
		"another name":      {308, func(path string) string { return "http://localhost:" + port + path }, "localhost"},
		"another scheme":    {307, func(path string) string { return "https://127.0.0.1:" + port + path }, "https://127.0.0.1"},
		"another method":    {302, func(path string) string { return active.address + path }, "not followed"},
		"another path":      {307, func(string) string { return active.address + "/v1/sys/health" }, "not followed"},
		"a query":           {307, func(path string) string { return active.address + path + "?list=true" }, "not followed"},
		"a user":            {307, func(path string) string { return "http://a:b@127.0.0.1:" + port + path }, "not followed"},
		"nowhere":           {307, func(string) string { return "" }, "nowhere"},
		"in a circle":       {307, func(path string) string { return standby.address + path }, "not followed"},
		"a name as a shell": {307, func(path string) string { return "http://127.0.0.1.evil.example:" + port + path }, "evil.example"},
	} {
		t.Run(name, func(t *testing.T) {
			to(test.status, test.location)
			before, asked := active.total(), standby.total()
			err := broker(t, Config{Address: standby.address, Auth: auth}).Login(t.Context())
			if statusOf(err) != test.status || !strings.Contains(err.Error(), test.says) {
				t.Errorf("login: got %v", err)
			}
			if got := active.total() - before; got != 0 {
				t.Errorf("%d requests were sent where they were not to go", got)
			}
			if got := standby.total() - asked; got > 2 {
				t.Errorf("asked %d times", got)
			}
		})
	}
}

func TestKVChanges(t *testing.T) {
	t.Parallel()
	v := testenv.MustVault(t, testenv.VaultConfig{})
	testenv.Must(t, v.PutSecret(t.Context(), "weather", map[string]any{"api_key": "wk_1"}))
	auth := approle(t, v, "weather", testenv.AppRole{Policy: readForecast})
	f := newFaults(t, v)
	var log journal
	var changes atomic.Int64
	b, _ := run(t, Config{
		Address: f.address, Auth: auth, Recorder: &log, Refresh: 50 * time.Millisecond, Changed: func() { changes.Add(1) },
	})
	key := ref("key", "secret/data/weather")
	first := testenv.MustGet(b.Credential(t.Context(), key))(t)
	until(t, "it was read again", func() bool { return f.count("secret/data/weather") > 3 })
	same := testenv.MustGet(b.Credential(t.Context(), key))(t)
	if same.Generation != first.Generation || !same.NotAfter.After(first.NotAfter) || log.count("leased") != 1 || log.count("replaced") != 0 {
		t.Errorf("read again and the same: first %+v, then %+v, records %s", first, same, &log)
	}
	testenv.Must(t, v.PutSecret(t.Context(), "weather", map[string]any{"api_key": "wk_2"}))
	until(t, "the new value is served", func() bool {
		c := testenv.MustGet(b.Credential(t.Context(), key))(t)
		return c.Fields["api_key"].Reveal() == "wk_2" && c.Generation > first.Generation
	})
	f.breaks("secret/", answer(503, `{"errors":["Vault is sealed"]}`))
	until(t, "it is failing", func() bool { return b.Status().States[StateFailing] == 1 })
	testenv.MustGet(b.Credential(t.Context(), key))(t)
	f.mend()
	until(t, "it is active", func() bool { return b.Status().States[StateActive] == 1 })

	testenv.Must(t, v.Delete(t.Context(), "secret/data/weather"))
	until(t, "the deleted value is no longer served", func() bool {
		_, err := b.Credential(t.Context(), key)
		return statusOf(err) == http.StatusNotFound
	})
	if log.count("lost") != 1 || changes.Load() != 1 {
		t.Errorf("changes %d, records %s", changes.Load(), &log)
	}
}

func TestTokenFile(t *testing.T) {
	t.Parallel()
	v := testenv.MustVault(t, testenv.VaultConfig{})
	testenv.Must(t, v.PutSecret(t.Context(), "weather", map[string]any{"api_key": "wk_1"}))
	testenv.Must(t, v.Policy(t.Context(), "weather", readForecast))
	login := func(text string) (Config, error) {
		cfg := Config{Address: v.Address, Auth: Auth{Method: MethodToken, TokenFile: write(t, "token", text)}}
		return cfg, broker(t, cfg).Login(t.Context())
	}
	for text, says := range map[string]string{
		v.Token:       "root token",
		"":            "one word",
		"a b":         "one word",
		"hvs.unknown": "403",
	} {
		if _, err := login(text); err == nil || !strings.Contains(err.Error(), says) || (text != "" && strings.Contains(err.Error(), text)) {
			t.Errorf("login: got %v, want %q", err, says)
		}
	}

	first := testenv.MustGet(v.NewToken(t.Context(), 3*time.Second, "weather"))(t)
	path := write(t, "token", first)
	var jumped atomic.Int64
	b, stop := run(t, Config{Address: v.Address, Auth: Auth{Method: MethodToken, TokenFile: path}, Now: func() time.Time {
		return time.Now().Add(time.Duration(jumped.Load()))
	}})
	testenv.Must(t, b.Login(t.Context()))
	for end := time.Now().Add(5 * time.Second); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		testenv.MustGet(b.Credential(t.Context(), ref("key", "secret/data/weather")))(t) // the token is renewed
	}
	second := testenv.MustGet(v.NewToken(t.Context(), time.Hour, "weather"))(t)
	testenv.Must(t, os.WriteFile(path, []byte(second), 0o600))
	until(t, "the new token is taken up", func() bool { return time.Until(b.Status().TokenExpires) > 50*time.Minute })
	third := testenv.MustGet(v.NewToken(t.Context(), 10*time.Hour, "weather"))(t)
	testenv.Must(t, os.WriteFile(path, []byte(third), 0o600))
	jumped.Store(int64(tokenRereadInterval + time.Second)) // long before the second one is due
	b.wakeUp()
	until(t, "the next token is taken up", func() bool { return time.Until(b.Status().TokenExpires) > 9*time.Hour })
	testenv.Must(t, stop())
	if _, err := v.Do(t.Context(), "GET", "auth/token/lookup-self", third, nil); err != nil {
		t.Errorf("a token that is not ours was revoked: %v", err)
	}
}

// The sidecar may be started from an operator's shell.
func TestEnvironmentIsIgnored(t *testing.T) {
	v := testenv.MustVault(t, testenv.VaultConfig{TLS: true})
	testenv.Must(t, v.PutSecret(t.Context(), "weather", map[string]any{"api_key": "wk_1"}))
	auth := approle(t, v, "weather", testenv.AppRole{Policy: readForecast})
	for name, value := range map[string]string{
		"VAULT_ADDR": "http://127.0.0.1:1", "VAULT_TOKEN": "hvs.environment", "VAULT_CACERT": "/gone", "VAULT_NAMESPACE": "other",
		"VAULT_SKIP_VERIFY": "true", "VAULT_CLIENT_TIMEOUT": "nonsense", "VAULT_HEADERS": `{"X-Evil":"1"}`, "VAULT_WRAP_TTL": "60",
		"VAULT_HTTP_PROXY": "http://127.0.0.1:1", "HTTPS_PROXY": "http://127.0.0.1:1", "https_proxy": "http://127.0.0.1:1",
	} {
		t.Setenv(name, value)
	}
	b := broker(t, Config{Address: v.Address, CAFile: v.CAFile, Auth: auth})
	testenv.MustGet(b.Credential(t.Context(), ref("key", "secret/data/weather")))(t)
	if err := broker(t, Config{Address: v.Address, Auth: auth}).Login(t.Context()); err == nil || !strings.Contains(err.Error(), "certificate") {
		t.Errorf("login to a Vault of an unknown authority: %v", err)
	}
}

// Without the default policy a token may neither be looked up nor renewed nor
// revoked. That is no sign that it is dead.
func TestPolicyAllowsTheReadAlone(t *testing.T) {
	t.Parallel()
	v, db := database(t, map[string]testenv.DatabaseRole{"reader": {}})
	auth := approle(t, v, "weather", testenv.AppRole{Policy: readDatabase, TokenTTL: 6 * time.Second})
	testenv.MustGet(v.Write(t.Context(), "auth/approle/role/weather", map[string]any{"token_no_default_policy": true}))(t)
	var log journal
	b, stop := run(t, Config{Address: v.Address, Auth: auth, Recorder: &log})
	db1 := ref("db", "database/creds/reader")
	b.Retain(t.Context(), []authz.CredentialRef{db1})
	// How soon a busy machine gets to the next token is not what is tested: a
	// credential may have ended before it was, and is then not served.
	until(t, "it moved to the next token", func() bool {
		c, err := b.Credential(t.Context(), db1)
		if err == nil && !logsIn(t, db, c) && time.Now().Before(c.NotAfter) {
			t.Fatal("served a user that cannot log in")
		}
		if _, err := b.Credential(t.Context(), ref("other", "secret/data/weather")); statusOf(err) != http.StatusForbidden {
			t.Fatalf("outside the policy: got %v", err)
		}
		return log.count("replaced") > 0 || log.count("leased") > 1
	})
	if text := log.String(); strings.Contains(text, tokenGone) || strings.Contains(text, "no longer knows") {
		t.Errorf("records %s", text)
	}
	if err := stop(); err == nil {
		t.Error("shutdown does not say that nothing could be revoked")
	}
	until(t, "the users died with the tokens", func() bool { return len(users(t, db)) == 0 })
}

// One path that the policy does not allow costs the others nothing.
func TestRefusalIsNotContagious(t *testing.T) {
	t.Parallel()
	v := testenv.MustVault(t, testenv.VaultConfig{})
	testenv.Must(t, v.PutSecret(t.Context(), "weather", map[string]any{"api_key": "wk_1"}))
	f := newFaults(t, v)
	b := broker(t, Config{Address: f.address, Auth: approle(t, v, "weather", testenv.AppRole{Policy: readForecast})})
	key := ref("key", "secret/data/weather")
	first := testenv.MustGet(b.Credential(t.Context(), key))(t)
	var asked int64
	until(t, "it was refused three times", func() bool {
		_, _ = b.Credential(t.Context(), ref("other", "other/data"))
		asked = f.count("other/data")
		return asked >= 3
	})
	second := testenv.MustGet(b.Credential(t.Context(), key))(t)
	if second.Generation != first.Generation || f.count("auth/approle/login") != 1 || f.count("secret/data/weather") != 1 {
		t.Errorf("%d logins, %d reads", f.count("auth/approle/login"), f.count("secret/data/weather"))
	}
}

// Everything at once, for the race detector: whatever comes of it, nothing is
// left behind and nothing is served that ended.
func TestEverythingAtOnce(t *testing.T) {
	t.Parallel()
	v, db := database(t, map[string]testenv.DatabaseRole{"brief": {TTL: 6 * time.Second}})
	testenv.Must(t, v.PutSecret(t.Context(), "weather", map[string]any{"api_key": "wk_1"}))
	auth := approle(t, v, "weather", testenv.AppRole{Policy: readForecast + readDatabase + revokeLeases, TokenTTL: 8 * time.Second})
	f := newFaults(t, v)
	b, stop := run(t, Config{
		Address: f.address, Auth: auth, Recorder: &journal{}, Refresh: 10 * time.Millisecond, Changed: func() {},
		StateFile: t.TempDir() + "/leases.json",
	})
	refs := []authz.CredentialRef{ref("a", "database/creds/brief"), ref("b", "database/creds/brief"), ref("key", "secret/data/weather")}
	b.Retain(t.Context(), refs)
	ctx, cancel := context.WithTimeout(t.Context(), 6*time.Second)
	defer cancel()
	var all sync.WaitGroup
	for range 8 {
		all.Go(func() {
			for i := 0; ctx.Err() == nil; i++ {
				c, err := b.Credential(ctx, refs[i%len(refs)])
				if err == nil && !c.NotAfter.After(time.Now().Add(-time.Second)) {
					t.Errorf("served %s after its end", time.Since(c.NotAfter))
				}
				if i%50 == 0 {
					_ = b.Status()
					time.Sleep(time.Millisecond)
				}
			}
		})
	}
	all.Go(func() {
		for i := 0; ctx.Err() == nil; i++ {
			switch i % 4 {
			case 0:
				b.Retain(ctx, refs[i/4%3:])
			case 1:
				b.Retain(ctx, refs)
			case 2:
				f.breaks("database/", func(w http.ResponseWriter, _ *http.Request, forward func() *httptest.ResponseRecorder) {
					forward()
					w.WriteHeader(http.StatusBadGateway)
				})
			case 3:
				f.mend()
				b.Revoke(ctx)
			}
			time.Sleep(100 * time.Millisecond)
		}
	})
	all.Wait()
	f.mend()
	b.Retain(t.Context(), refs)
	until(t, "it works again", func() bool { _, err := b.Credential(t.Context(), refs[0]); return err == nil })
	testenv.Must(t, stop())
	until(t, "no user is left", func() bool { return len(users(t, db)) == 0 })
	if got := stateOf(t, b.cfg.StateFile); len(got) != 0 {
		t.Errorf("state file holds %q", got)
	}
}
