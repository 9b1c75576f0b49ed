package vault

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/chaperone-proxy/chaperone/authz"
	"github.com/chaperone-proxy/chaperone/internal/testenv"
)

// replay writes an answer of Vault's.
func replay(w http.ResponseWriter, answer *httptest.ResponseRecorder) {
	w.WriteHeader(answer.Code)
	_, _ = answer.Body.WriteTo(w)
}

// first answers the first n requests with a status and passes on the others.
func first(n int64, status int, body string) func(http.ResponseWriter, *http.Request, func() *httptest.ResponseRecorder) {
	var seen atomic.Int64
	return func(w http.ResponseWriter, _ *http.Request, forward func() *httptest.ResponseRecorder) {
		if seen.Add(1) <= n {
			w.WriteHeader(status)
			_, _ = w.Write([]byte(body))
			return
		}
		replay(w, forward())
	}
}

// TestStatuses checks the reaction of the broker to each status of Vault's, with a real
// Vault behind the one that answers it: how often it asks, whether it logs in again, and
// the error (Vault API, "HTTP status codes" and "/sys/health").
func TestStatusTable(t *testing.T) {
	t.Parallel()
	v, db := database(t, map[string]testenv.DatabaseRole{"reader": {}})
	testenv.Must(t, v.PutSecret(t.Context(), "deleted", map[string]any{"a": "b"}))
	testenv.Must(t, v.Delete(t.Context(), "secret/data/deleted"))
	testenv.Must(t, v.PutSecret(t.Context(), "destroyed", map[string]any{"a": "b"}))
	testenv.MustGet(v.Write(t.Context(), "secret/destroy/destroyed", map[string]any{"versions": []int{1}}))(t)
	auth := approle(t, v, "weather", testenv.AppRole{Policy: readForecast + readDatabase + revokeLeases, TokenTTL: time.Hour})
	const mint = "database/creds/reader"
	type handler = func(http.ResponseWriter, *http.Request, func() *httptest.ResponseRecorder)
	for _, test := range []struct {
		name           string
		path, prefix   string
		handle         handler
		served         bool
		status         int
		says           string
		asks, lookups  int64
		logins         int64
		least, longest time.Duration // until it may be tried again
	}{
		{name: "400 once", handle: first(1, 400, `{"errors":["bad"]}`), status: 400, says: "bad", asks: 1, logins: 1},
		{name: "403, the policy's", handle: answer(403, `{"errors":["permission denied"]}`), status: 403, says: "permission denied", asks: 1, lookups: 1, logins: 1},
		{name: "403, the token's", handle: first(1, 403, `{"errors":["permission denied","invalid token"]}`), served: true, asks: 2, logins: 2},
		{name: "403, the token's, again", handle: first(2, 403, `{"errors":["permission denied","invalid token"]}`), status: 403, asks: 2, logins: 2},
		{name: "404 deleted", path: "secret/data/deleted", status: 404, says: "version 1 was deleted at 20", asks: 1, logins: 1},
		{name: "404 destroyed", path: "secret/data/destroyed", status: 404, says: "version 1 is destroyed", asks: 1, logins: 1},
		{name: "412 twice", handle: first(2, 412, `{"errors":["required index state not present"]}`), served: true, asks: 3, logins: 1},
		{name: "412 for ever", handle: answer(412, `{"errors":["required index state not present"]}`), status: 412, says: "does not know", asks: 3, logins: 1},
		{name: "429", handle: func(w http.ResponseWriter, _ *http.Request, _ func() *httptest.ResponseRecorder) {
			w.Header().Set("Retry-After", "20")
			w.WriteHeader(http.StatusTooManyRequests)
			_, _ = w.Write([]byte(`{"errors":["lease count quota exceeded"]}`))
		}, status: 429, says: "lease count quota", asks: 1, logins: 1, least: 19 * time.Second, longest: 20 * time.Second},
		{name: "429 at login", prefix: "auth/", handle: func(w http.ResponseWriter, _ *http.Request, _ func() *httptest.ResponseRecorder) {
			w.Header().Set("Retry-After", "20")
			w.WriteHeader(http.StatusTooManyRequests)
		}, status: 429, logins: 1, least: 19 * time.Second, longest: 20 * time.Second},
		{name: "472", handle: answer(472, ``), status: 472, says: "a disaster recovery secondary", asks: 1, logins: 1},
		{name: "473", handle: answer(473, ``), status: 473, says: "a performance standby", asks: 1, logins: 1},
		{name: "500", handle: answer(500, `{"errors":["1 error occurred:\n\t* failed to connect to database\n\n"]}`), status: 500, says: "failed to connect", asks: 1, logins: 1},
		{name: "502", handle: answer(502, `<html>`), status: 502, says: "not Vault's", asks: 1, logins: 1},
		{name: "504", handle: answer(504, ``), status: 504, asks: 1, logins: 1},
		{name: "503", handle: answer(503, `{"errors":["Vault is sealed"]}`), status: 503, says: "sealed", asks: 1, logins: 1, longest: 5 * time.Second},
	} {
		t.Run(test.name, func(t *testing.T) {
			f := newFaults(t, v)
			if test.prefix == "" {
				test.prefix = "database/"
			}
			if test.path == "" {
				test.path = mint
			}
			if test.handle != nil {
				f.breaks(test.prefix, test.handle)
			}
			b := broker(t, Config{Address: f.address, Auth: auth})
			c, err := b.Credential(t.Context(), ref("db", test.path))
			switch {
			case test.served && (err != nil || !logsIn(t, db, c)):
				t.Errorf("not served: %v", err)
			case test.served:
			case err == nil || statusOf(err) != test.status || !strings.Contains(err.Error(), test.says):
				t.Errorf("error %v, want %d and %q", err, test.status, test.says)
			default:
				if retry := retryAfterOf(t, err); retry < test.least || (test.longest > 0 && retry > test.longest) || retry > 30*time.Second {
					t.Errorf("to be tried again after %s", retry)
				}
				_, _ = b.Credential(t.Context(), ref("db", test.path)) // answered from memory
			}
			asks, lookups, logins := f.count(test.path), f.count("auth/token/lookup-self"), f.count("auth/approle/login")
			if asks != test.asks || lookups != test.lookups || logins != test.logins {
				t.Errorf("asked %d times, looked up %d, logged in %d; want %d, %d, %d", asks, lookups, logins, test.asks, test.lookups, test.logins)
			}
		})
	}
}

// The state of one node's storage is sent to the next node, which either has it or answers
// 412.
func TestReadsWhatItWrote(t *testing.T) {
	t.Parallel()
	v := weatherVault(t, testenv.VaultConfig{})
	f := newFaults(t, v)
	var mu sync.Mutex
	told := map[string]string{}
	f.breaks("", func(w http.ResponseWriter, r *http.Request, forward func() *httptest.ResponseRecorder) {
		mu.Lock()
		told[r.URL.Path] = r.Header.Get("X-Vault-Index")
		mu.Unlock()
		if strings.HasSuffix(r.URL.Path, "/login") {
			w.Header().Add("X-Vault-Index", "djE6Y2x1c3RlcjowOjE6YWJjZA==") // v1:cluster:0:1:abcd
		}
		replay(w, forward())
	})
	b := broker(t, Config{Address: f.address, Auth: approle(t, v, "weather", testenv.AppRole{Policy: readForecast})})
	readsKey(t, b)
	mu.Lock()
	defer mu.Unlock()
	if told["/v1/auth/approle/login"] != "" || told["/v1/secret/data/weather"] != "djE6Y2x1c3RlcjowOjE6YWJjZA==" {
		t.Errorf("got %v", told)
	}
}

// A path that fails is asked by one at a time, however many credentials are
// behind it, and costs the others nothing.
func TestCircuitBreaks(t *testing.T) {
	t.Parallel()
	v, db := database(t, map[string]testenv.DatabaseRole{"reader": {}})
	testenv.Must(t, v.PutSecret(t.Context(), "weather", map[string]any{"api_key": "wk_1"}))
	f := newFaults(t, v)
	f.breaks("database/", answer(500, `{"errors":["failed to connect to database"]}`))
	b, _ := run(t, Config{Address: f.address, Auth: approle(t, v, "weather", testenv.AppRole{
		Policy: readForecast + readDatabase + revokeLeases, TokenTTL: time.Hour,
	})})
	var refs []authz.CredentialRef
	for i := range 20 {
		refs = append(refs, ref(fmt.Sprint("db", i), "database/creds/reader"))
	}
	b.Retain(t.Context(), append(refs, ref("key", "secret/data/weather")))
	began := time.Now()
	for time.Since(began) < 1500*time.Millisecond {
		for _, r := range refs {
			_, err := b.Credential(t.Context(), r)
			if statusOf(err) != 500 {
				t.Fatalf("error %v", err)
			}
			retryAfterOf(t, err)
		}
		time.Sleep(10 * time.Millisecond)
	}
	if got := f.count("database/creds/reader"); got > 7 { // at least 250 ms apart
		t.Errorf("asked %d times", got)
	}
	readsKey(t, b)
	f.mend()
	for _, r := range refs[:3] {
		var c authz.Credential
		until(t, "it is mended", func() (ok bool) {
			got, err := b.Credential(t.Context(), r)
			c = got
			return err == nil
		})
		if !logsIn(t, db, c) {
			t.Error("served a user that cannot log in")
		}
	}
}

// However many credentials a policy names, and whatever they are asked for
// with, Vault makes so many leases a minute for one plugin and no more.
func TestMintStorm(t *testing.T) {
	t.Parallel()
	v := testenv.MustVault(t, testenv.VaultConfig{})
	pki(t, v, time.Hour, map[string]any{"generate_lease": true})
	testenv.Must(t, v.PutSecret(t.Context(), "weather", map[string]any{"api_key": "wk_1"}))
	f := newFaults(t, v)
	auth := approle(t, v, "weather", testenv.AppRole{Policy: readForecast + issueCertificates + revokeLeases, TokenTTL: 10 * time.Hour})
	b := testenv.MustGet(New(Config{Plugin: plugin, Address: f.address, Auth: auth, MintsPerMinute: 6}))(t)
	var step atomic.Int64
	b.clock.adjust = func(now dualTime) dualTime { return now.add(time.Duration(step.Load())) }
	storm := func() (served int) {
		for i := range 50 {
			_, err := b.Credential(t.Context(), issued(fmt.Sprintf("%d.%d.example", step.Load(), i)))
			if err == nil {
				served++
				continue
			}
			if retry := retryAfterOf(t, err); retry > time.Minute || !strings.Contains(err.Error(), "6 leases within a minute") {
				t.Fatalf("refused for %s: %v", retry, err)
			}
		}
		return served
	}
	if got := storm(); got != 6 {
		t.Errorf("%d were served at once", got)
	}
	step.Store(int64(21 * time.Second))
	if got := storm(); got != 2 {
		t.Errorf("%d were served after a third of a minute", got)
	}
	step.Store(int64(3 * time.Minute))
	if got := storm(); got != 6 {
		t.Errorf("%d were served after minutes", got)
	}
	if got := f.count("pki/issue/client"); got != 14 {
		t.Errorf("Vault was asked %d times", got)
	}
	if report := b.Revoke(t.Context()); report.Leases != 14 || report.Confirmed != 14 {
		t.Errorf("report %+v", report)
	}
}

// alter changes an answer of Vault's.
func alter(change func(answer map[string]any)) func(http.ResponseWriter, *http.Request, func() *httptest.ResponseRecorder) {
	return func(w http.ResponseWriter, _ *http.Request, forward func() *httptest.ResponseRecorder) {
		recorded := forward()
		var answer map[string]any
		if recorded.Code != http.StatusOK || json.Unmarshal(recorded.Body.Bytes(), &answer) != nil {
			replay(w, recorded)
			return
		}
		change(answer)
		_ = json.NewEncoder(w).Encode(answer)
	}
}

// For each duration of a lease: no credential is served past it, none is renewed in a loop,
// and no lease is left.
func TestStrangeLeases(t *testing.T) {
	t.Parallel()
	v, db := database(t, map[string]testenv.DatabaseRole{"hour": {}, "brief": {TTL: 5 * time.Second, MaxTTL: time.Hour}})
	set := func(name string, value any) func(map[string]any) {
		return func(answer map[string]any) { answer[name] = value }
	}
	var all sync.WaitGroup
	for _, test := range []struct {
		name, role, prefix string
		change             func(map[string]any)
		err                string
		longest            time.Duration // served for
		renewals, mints    int64         // at most, in two seconds or four
		wait               time.Duration
	}{
		{name: "no duration", role: "hour", prefix: "database/", change: set("lease_duration", 0), err: "no duration", mints: 6},
		{name: "less than none", role: "hour", prefix: "database/", change: set("lease_duration", -5), err: "no duration", mints: 6},
		{name: "a second", role: "hour", prefix: "database/", change: set("lease_duration", 1), longest: time.Second, renewals: 8, mints: 4},
		{name: "68 years", role: "hour", prefix: "database/", change: set("lease_duration", int64(1)<<31), longest: time.Hour, mints: 1},
		{name: "not renewable", role: "brief", prefix: "database/", change: set("renewable", false), longest: 5 * time.Second, mints: 3, wait: 4 * time.Second},
		{name: "renewed for nothing", role: "brief", prefix: "sys/leases/renew", change: set("lease_duration", 0), longest: 5 * time.Second, renewals: 2, mints: 3, wait: 4 * time.Second},
		{name: "renewed for less", role: "brief", prefix: "sys/leases/renew", change: set("lease_duration", 2), longest: 5 * time.Second, renewals: 3, mints: 4, wait: 4 * time.Second},
		{name: "renewed for more", role: "brief", prefix: "sys/leases/renew", change: set("lease_duration", 3600), longest: time.Hour, renewals: 1, mints: 1, wait: 3 * time.Second},
	} {
		all.Go(func() {
			t.Run(test.name, func(t *testing.T) { // all at once: they mostly wait
				f := newFaults(t, v)
				f.breaks(test.prefix, alter(test.change))
				var log journal
				name := strings.ReplaceAll(test.name, " ", "-")
				b, stop := run(t, Config{Address: f.address, Recorder: &log, Auth: approle(t, v, name, testenv.AppRole{
					Policy: readDatabase + revokeLeases, TokenTTL: time.Hour,
				})})
				path := "database/creds/" + test.role
				key := ref("db", path)
				b.Retain(t.Context(), []authz.CredentialRef{key})
				end := time.Now().Add(max(test.wait, 2*time.Second))
				for ; time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
					asked := time.Now()
					c, err := b.Credential(t.Context(), key)
					switch {
					case test.err != "" && (err == nil || !strings.Contains(err.Error(), test.err)):
						t.Fatalf("error %v", err)
					case test.err == "" && err == nil && (c.NotAfter.Before(asked) || c.NotAfter.Sub(asked) > test.longest):
						t.Fatalf("served for %s", c.NotAfter.Sub(asked))
					case test.err == "" && err != nil && test.longest > time.Second && !strings.Contains(err.Error(), "too short to be used"):
						// Too short is what an answer leaves that took long, on a busy machine.
						t.Fatalf("not served: %v", err)
					}
				}
				if mints, renewals := f.count(path), f.count("sys/leases/renew"); mints > test.mints || renewals > test.renewals {
					t.Errorf("%d leases were made and %d renewed, records %s", mints, renewals, &log)
				}
				testenv.Must(t, stop())
			})
		})
	}
	all.Wait()
	if got := users(t, db); len(got) != 0 {
		t.Errorf("users left in the database: %q", got)
	}
}

// A credential that can be put into no request is not active, whatever Vault thinks
// of it.
func TestStatusOfWhatCannotBeRendered(t *testing.T) {
	t.Parallel()
	v := weatherVault(t, testenv.VaultConfig{})
	auth := approle(t, v, "weather", testenv.AppRole{Policy: readForecast, TokenTTL: time.Hour})
	testenv.Must(t, v.PutSecret(t.Context(), "broken", map[string]any{"key": "v\n", "nested": map[string]any{"a": "b"}, "list": []string{"x"}, "none": nil}))
	asked := 0
	b := broker(t, Config{Address: v.Address, Auth: auth, Renders: func(r authz.CredentialRef, c authz.Credential) error {
		asked++
		if r.Name == "broken" {
			if c.Unusable["key"] != "ends with a line break; write trimNewline: true" || c.Fields["nested.a"].Reveal() != "b" ||
				!strings.Contains(c.Unusable["nested"], "object") || c.Unusable["list"] != "is a list of 1" || c.Unusable["none"] != "is null" {
				t.Errorf("fields %v, unusable %v", c.Fields, c.Unusable)
			}
			return errors.New("it has no field")
		}
		return nil
	}})
	testenv.MustGet(b.Credential(t.Context(), ref("right", "secret/data/weather")))(t)
	testenv.MustGet(b.Credential(t.Context(), ref("broken", "secret/data/broken")))(t)
	s := b.Status()
	if s.States[StateActive] != 1 || s.States[StateUnavailable] != 1 || asked != 2 {
		t.Errorf("states %v, asked %d times", s.States, asked)
	}
	if l := s.Leases[0]; l.Credential != "broken" || l.State != StateUnavailable || l.Err != "it has no field" {
		t.Errorf("%+v", l)
	}
}
