package vault

import (
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"path/filepath"
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

// chaos is a broker under load with a fault to come: a lease of an hour, one of
// a few seconds and a value, asked for all the time.
type chaos struct {
	v     *testenv.Vault
	db    *testenv.Postgres
	f     *faults
	b     *Broker
	log   journal
	warns *observer.ObservedLogs
	roles string       // the prefix of the leases
	mono  atomic.Int64 // how far the clocks were moved
	wall  atomic.Int64
	long  authz.CredentialRef
	brief authz.CredentialRef
	value authz.CredentialRef
	state string
	stop  func() error
	// races is set when Vault, woken after a pause, may confirm a renewal of a lease
	// that it is ending: the broker finds out at its next look.
	races bool
}

func newChaos(t *testing.T, v *testenv.Vault, db *testenv.Postgres, name string) *chaos {
	t.Helper()
	c := &chaos{v: v, db: db, roles: "database/creds/" + name, state: filepath.Join(t.TempDir(), "leases.json")}
	testenv.Must(t, v.DatabaseRole(t.Context(), "database", name+"-long", testenv.DatabaseRole{}))
	testenv.Must(t, v.DatabaseRole(t.Context(), "database", name+"-brief", testenv.DatabaseRole{TTL: 6 * time.Second}))
	core, warns := observer.New(zap.WarnLevel)
	c.f, c.warns = newFaults(t, v), warns
	auth := approle(t, v, name, testenv.AppRole{Policy: readForecast + readDatabase + revokeLeases, TokenTTL: 4 * time.Hour})
	c.b = testenv.MustGet(New(Config{
		Plugin: plugin, Address: c.f.address, Auth: auth, Recorder: &c.log, StateFile: c.state, Timeout: 4 * time.Second,
		Refresh: 500 * time.Millisecond, Logger: zap.New(core),
	}))(t)
	c.b.leases.grace = time.Second
	c.b.clock.adjust = func(now dualTime) dualTime { return dualTime{now.mono + c.mono.Load(), now.wall + c.wall.Load()} }
	c.long, c.brief, c.value = ref("long", c.roles+"-long"), ref("brief", c.roles+"-brief"), ref("value", "secret/data/weather")
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- c.b.Run(ctx) }()
	c.stop = sync.OnceValue(func() error {
		cancel()
		return <-done
	})
	t.Cleanup(func() { _ = c.stop() })
	c.b.Retain(t.Context(), []authz.CredentialRef{c.long, c.brief, c.value})
	return c
}

// now is the wall time by the broker's clocks.
func (c *chaos) now() time.Time { return c.b.clock.now().time() }

// load asks for a credential until ctx ends. Each served credential is valid, and is served
// until its end, unless excused reports a reason.
func (c *chaos) load(ctx context.Context, t *testing.T, r authz.CredentialRef, excused func() bool) {
	var last authz.Credential
	var end dualTime // of last, by both clocks: the wall clock may be set in between
	for i := 0; ctx.Err() == nil; i++ {
		asked := c.b.clock.now()
		got, err := c.b.Credential(ctx, r)
		began := earliest(asked, c.b.clock.now()).time() // the clock may have been set back in between
		switch {
		case ctx.Err() != nil:
		case err == nil && !began.Before(got.NotAfter):
			t.Errorf("%s is served %s after its end", r.Name, began.Sub(got.NotAfter))
		case err == nil && got.Fields["password"] != (authz.Secret{}) && i%10 == 0 && !logsIn(t, c.db, got) &&
			c.now().Before(got.NotAfter) && !excused():
			c.invalid(t, got, r.Name)
		case err != nil && c.b.clock.now().before(end) && !excused():
			t.Errorf("%s is refused %s before its end: %v", r.Name, c.b.clock.now().until(end), err)
		}
		if err == nil && !got.NotAfter.Equal(last.NotAfter) {
			last, end = got, asked.add(got.NotAfter.Sub(asked.time()))
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// invalid reports a credential that is served and cannot log in.
func (c *chaos) invalid(t *testing.T, got authz.Credential, name string) {
	t.Helper()
	left := got.NotAfter.Sub(c.now())
	found := func() bool {
		last := c.log.last(got.Lease)
		return last == "lost" || last == "revoked"
	}
	for late := time.Now().Add(testenv.Patience); c.races && !found() && time.Now().Before(late); {
		time.Sleep(5 * time.Millisecond)
	}
	if !c.races || !found() {
		t.Errorf("%s is served and cannot log in, %s before its end", name, left)
	}
}

// TestChaos does to a Vault, and to the way to it, what happens to them. With each fault:
// no credential is served past its end, none that is invalid, those that are good are
// served throughout, it works again when the fault is over, and Vault holds no lease of
// ours in the end.
func TestChaos(t *testing.T) {
	t.Parallel()
	v, db := database(t, nil)
	var mu sync.Mutex // Vault is slow to start when all do at once
	own := func(t *testing.T) *testenv.Vault {
		mu.Lock()
		defer mu.Unlock()
		own := testenv.MustVault(t, testenv.VaultConfig{})
		testenv.Must(t, own.EnableDatabase(t.Context(), "database", db))
		return own
	}
	shared := func(*testing.T) *testenv.Vault { return v }
	lasting := func(handle func(http.ResponseWriter, *http.Request, func() *httptest.ResponseRecorder)) func(*testing.T, *chaos) {
		return func(_ *testing.T, c *chaos) {
			c.f.breaks("", handle)
			time.Sleep(5 * time.Second)
			c.f.mend()
		}
	}
	steps := func(mono, wall time.Duration) func(*testing.T, *chaos) {
		return func(_ *testing.T, c *chaos) {
			c.mono.Store(int64(mono))
			c.wall.Store(int64(wall))
			time.Sleep(2 * time.Second)
		}
	}
	var all sync.WaitGroup
	for _, test := range []struct {
		name  string
		vault func(*testing.T) *testenv.Vault
		fault func(*testing.T, *chaos)
		// loses is set when Vault, or the clock, ends leases.
		loses bool
		races bool // of chaos
	}{
		{name: "sealed", vault: own, fault: func(t *testing.T, c *chaos) {
			testenv.Must(t, c.v.Seal(t.Context()))
			time.Sleep(4 * time.Second)
			testenv.Must(t, c.v.Unseal(t.Context()))
		}},
		{name: "stopped", vault: own, races: true, fault: func(t *testing.T, c *chaos) {
			testenv.Must(t, c.v.Pause())
			time.Sleep(5 * time.Second)
			testenv.Must(t, c.v.Resume())
		}},
		{name: "unreachable", vault: shared, fault: lasting(func(http.ResponseWriter, *http.Request, func() *httptest.ResponseRecorder) {
			panic(http.ErrAbortHandler)
		})},
		{name: "slow", vault: shared, fault: lasting(func(w http.ResponseWriter, r *http.Request, forward func() *httptest.ResponseRecorder) {
			answer := forward()
			select { // it is done, but the answer comes too late
			case <-time.After(5 * time.Second):
				replay(w, answer)
			case <-r.Context().Done():
			}
		})},
		{name: "500", vault: shared, fault: lasting(answer(500, `{"errors":["internal error"]}`))},
		{name: "502-after-minting", vault: shared, fault: lasting(func(w http.ResponseWriter, _ *http.Request, forward func() *httptest.ResponseRecorder) {
			forward()
			w.WriteHeader(http.StatusBadGateway)
		})},
		{name: "token-revoked", vault: shared, loses: true, fault: func(t *testing.T, c *chaos) {
			for range 3 {
				s := c.b.login.current()
				if s != nil {
					_, _ = c.v.Write(t.Context(), "auth/token/revoke-accessor", map[string]any{"accessor": s.accessor})
				}
				time.Sleep(time.Second)
			}
		}},
		{name: "clock-forward", vault: shared, loses: true, fault: steps(time.Hour, time.Hour)},
		{name: "clock-back", vault: shared, fault: steps(0, -time.Hour)},
		{name: "suspended", vault: shared, loses: true, fault: steps(0, time.Hour)},
	} {
		all.Go(func() {
			t.Run(test.name, func(t *testing.T) {
				v := test.vault(t)
				testenv.Must(t, v.PutSecret(t.Context(), "weather", map[string]any{"api_key": "wk_1"}))
				c := newChaos(t, v, db, test.name)
				c.races = test.races
				ctx, cancel := context.WithCancel(t.Context())
				defer cancel()
				var excused atomic.Bool
				var load sync.WaitGroup
				for _, r := range []authz.CredentialRef{c.long, c.brief, c.value} {
					load.Go(func() { c.load(ctx, t, r, excused.Load) })
				}
				time.Sleep(time.Second)
				excused.Store(test.loses)
				test.fault(t, c)
				c.recovers(t)
				excused.Store(false)
				time.Sleep(time.Second)
				cancel()
				load.Wait()
				c.leavesNothing(t)
			})
		})
	}
	all.Wait()
}

// recovers waits until everything is served again, and valid.
func (c *chaos) recovers(t *testing.T) {
	t.Helper()
	for _, r := range []authz.CredentialRef{c.long, c.brief, c.value} {
		until(t, r.Name+" is served again", func() bool {
			got, err := c.b.Credential(t.Context(), r)
			return err == nil && (r == c.value || logsIn(t, c.db, got))
		})
	}
}

// leavesNothing ends the broker and asks Vault for what it still holds.
func (c *chaos) leavesNothing(t *testing.T) {
	t.Helper()
	if err := c.stop(); err != nil {
		t.Errorf("shutdown: %v", err)
	}
	var left []string
	// A lease that Vault was making for a token while the test revoked that stays, if its
	// answer came too late to be read. The broker warns of it.
	stranded := c.warns.FilterMessageSnippet("untracked lease possible").Len()
	defer func() {
		if t.Failed() {
			t.Logf("leases left: %q; what happened: %s; warnings: %v", left, &c.log, c.warns.All())
		}
	}()
	for _, role := range []string{"-long", "-brief"} {
		until(t, "no lease is left", func() bool {
			left = testenv.MustGet(c.v.Leases(t.Context(), c.roles+role))(t)
			return len(left) <= stranded
		})
		stranded -= len(left)
	}
	if got := stateOf(t, c.state); len(got) != 0 {
		t.Errorf("the state file holds %q", got)
	}
	if strings.Contains(c.log.String(), "revocation_unconfirmed") && !strings.Contains(c.log.String(), "revoked") {
		t.Error(fmt.Sprint("nothing was confirmed", &c.log))
	}
}
