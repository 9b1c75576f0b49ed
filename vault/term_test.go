package vault

import (
	"context"
	"errors"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/chaperone-proxy/chaperone/authz"
	"github.com/chaperone-proxy/chaperone/internal/testenv"
)

func ended(term *authz.Term) bool {
	select {
	case <-term.Ended():
		return true
	default:
		return false
	}
}

func retiring(term *authz.Term) bool {
	select {
	case <-term.Retiring():
		return true
	default:
		return false
	}
}

// hold counts a session of a credential, as a gate does.
func hold(c authz.Credential) {
	c.Uses.MarkSessions()
	c.Uses.Begin()
}

// A term follows its lease: a renewal extends it, a replacement retires it at 80 % of its
// life, and it ends with what the lease may be used for, not before and not after.
func TestTermOfALease(t *testing.T) {
	t.Parallel()
	v, db := database(t, map[string]testenv.DatabaseRole{"brief": {TTL: 8 * time.Second, MaxTTL: 12 * time.Second}})
	auth := approle(t, v, "weather", testenv.AppRole{Policy: readDatabase + revokeLeases, TokenTTL: time.Hour})
	brief := ref("brief", "database/creds/brief")
	var log journal
	b, stop := run(t, Config{Address: v.Address, Auth: auth, Recorder: &log})
	b.Retain(t.Context(), []authz.CredentialRef{brief})
	begun := time.Now()
	first := testenv.MustGet(b.Credential(t.Context(), brief))(t)
	hold(first)
	if left := time.Until(first.Term.NotAfter()); left < 4*time.Second || left > 6*time.Second || retiring(first.Term) {
		t.Errorf("a new term of 8 s ends in %s, retiring %v", left, retiring(first.Term))
	}
	until(t, "it is renewed", func() bool { return log.count("renewed") > 0 })
	if left := time.Since(begun) + time.Until(first.Term.NotAfter()); left < 8*time.Second || left > 12*time.Second || retiring(first.Term) {
		t.Errorf("a renewed term ends after %s, retiring %v", left, retiring(first.Term))
	}
	until(t, "it is retired", func() bool { return retiring(first.Term) })
	second := testenv.MustGet(b.Credential(t.Context(), brief))(t)
	if second.Term == first.Term || second.Generation == first.Generation || ended(first.Term) || retiring(second.Term) {
		t.Errorf("retired before there was another value, or ended with it")
	}
	life := first.Term.NotAfter().Sub(begun)
	if at := first.Term.Retire().Sub(begun); at < life*79/100 || at > life {
		t.Errorf("of a life of %s idle sessions end after %s", life, at)
	}
	<-first.Term.Ended()
	if late := time.Since(first.Term.NotAfter()); late < 0 || late > time.Second || first.Term.Why() != endReached {
		t.Errorf("it ended %s after its end: %s", late, first.Term.Why())
	}
	if !logsIn(t, db, first) {
		t.Error("the lease was revoked before its session could end")
	}
	first.Uses.End()
	until(t, "it is revoked", func() bool { return !logsIn(t, db, first) })
	testenv.Must(t, stop())
	if !ended(second.Term) {
		t.Error("a term outlives the broker")
	}
}

// Every way to lose a lease ends its term, also the term of a lease that was replaced.
func TestLossEndsTerms(t *testing.T) {
	t.Parallel()
	v, _ := database(t, map[string]testenv.DatabaseRole{"reader": {TTL: time.Hour}})
	reader := ref("reader", "database/creds/reader")
	for name, test := range map[string]struct {
		lose func(t *testing.T, b *Broker, current authz.Credential)
		why  string
	}{
		"the rule is gone":    {func(t *testing.T, b *Broker, _ authz.Credential) { b.Retain(t.Context(), nil) }, endRevoked},
		"a responder revokes": {func(t *testing.T, b *Broker, _ authz.Credential) { b.Revoke(t.Context()) }, endRevoked},
		"revoked in Vault": {func(t *testing.T, b *Broker, c authz.Credential) {
			testenv.MustGet(v.Write(t.Context(), "sys/leases/revoke", map[string]any{"lease_id": c.Lease, "sync": true}))(t)
		}, endLost},
		"the token is revoked in Vault": {func(t *testing.T, b *Broker, _ authz.Credential) {
			testenv.MustGet(v.Write(t.Context(), "auth/token/revoke-accessor", map[string]any{"accessor": b.login.current().accessor}))(t)
		}, endLost},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			auth := approle(t, v, strings.ReplaceAll(name, " ", "-"), testenv.AppRole{Policy: readDatabase + revokeLeases, TokenTTL: time.Hour})
			b, _ := run(t, Config{Address: v.Address, Auth: auth})
			b.Retain(t.Context(), []authz.CredentialRef{reader})
			c := testenv.MustGet(b.Credential(t.Context(), reader))(t)
			hold(c)
			begun := time.Now()
			test.lose(t, b, c)
			select {
			case <-c.Term.Ended():
			case <-time.After(time.Minute):
				t.Fatal("the term has not ended")
			}
			if took := time.Since(begun); c.Term.Why() != test.why || took > 3*watchInterval {
				t.Errorf("ended after %s: %s", took, c.Term.Why())
			}
		})
	}
}

// A replaced lease that Vault no longer has ends its sessions, as the current one does.
func TestReplacedLeaseIsWatched(t *testing.T) {
	t.Parallel()
	v, _ := database(t, map[string]testenv.DatabaseRole{"reader": {TTL: time.Hour}})
	reader := ref("reader", "database/creds/reader")
	auth := approle(t, v, "weather", testenv.AppRole{Policy: readDatabase + revokeLeases, TokenTTL: time.Hour})
	b, _ := run(t, Config{Address: v.Address, Auth: auth})
	b.Retain(t.Context(), []authz.CredentialRef{reader})
	first := testenv.MustGet(b.Credential(t.Context(), reader))(t)
	hold(first)
	second := testenv.MustGet(b.Newer(t.Context(), reader, first.Generation))(t)
	if !retiring(first.Term) || ended(first.Term) || second.Term == first.Term {
		t.Fatal("the replaced lease is not retired, or has ended")
	}
	if left := time.Until(first.Term.Retire()); left < 40*time.Minute {
		t.Errorf("idle sessions of a lease of an hour end in %s", left)
	}
	testenv.MustGet(v.Write(t.Context(), "sys/leases/revoke", map[string]any{"lease_id": first.Lease, "sync": true}))(t)
	select {
	case <-first.Term.Ended():
	case <-time.After(time.Minute):
		t.Fatal("the term has not ended")
	}
	if first.Term.Why() != endLost || ended(second.Term) {
		t.Errorf("ended: %s, the other %v", first.Term.Why(), ended(second.Term))
	}
}

// After a refused login one request to Vault finds the newer value for all that wait, and
// an unchanged value is not asked for again and again.
func TestNewerValues(t *testing.T) {
	t.Parallel()
	v := testenv.MustVault(t, testenv.VaultConfig{})
	auth := approle(t, v, "weather", testenv.AppRole{Policy: readForecast, TokenTTL: time.Hour})
	f := newFaults(t, v)
	var reads, password atomic.Int64
	f.breaks("secret/data/", func(w http.ResponseWriter, r *http.Request, next func() *httptest.ResponseRecorder) {
		reads.Add(1)
		respond("kv", func() map[string]any { return map[string]any{"password": string(rune('a' + password.Load()))} })(w, r, next)
	})
	key := ref("key", "secret/data/shop")
	b, _ := run(t, Config{Address: f.address, Auth: auth})
	b.Retain(t.Context(), []authz.CredentialRef{key})
	first := testenv.MustGet(b.Credential(t.Context(), key))(t)
	hold(first)
	if _, err := b.Newer(t.Context(), key, first.Generation); !errors.Is(err, errStillCurrent) || reads.Load() != 2 {
		t.Errorf("an unchanged value: %v, after %d reads", err, reads.Load())
	}
	if _, err := b.Newer(t.Context(), key, first.Generation); !errors.Is(err, errStillCurrent) || reads.Load() != 2 {
		t.Errorf("again: %v, after %d reads", err, reads.Load())
	}
	password.Add(1)
	b.leases.mu.Lock()
	b.leases.entries[key].recheckAt = dualTime{}
	b.leases.mu.Unlock()
	var mu sync.Mutex
	var generations []uint64
	var all sync.WaitGroup
	for range 50 {
		all.Go(func() {
			c, err := b.Newer(t.Context(), key, first.Generation)
			mu.Lock()
			defer mu.Unlock()
			if generations = append(generations, c.Generation); err != nil || c.Fields["password"].Reveal() != "b" {
				t.Errorf("Newer: %v", err)
			}
		})
	}
	all.Wait()
	if slices.Sort(generations); reads.Load() != 3 || generations[0] != generations[49] || generations[0] <= first.Generation {
		t.Errorf("%d reads, generations %v", reads.Load(), generations)
	}
	if !retiring(first.Term) || ended(first.Term) || time.Until(first.Term.Retire()) > 0 {
		t.Errorf("a replaced value: retiring %v from %s, ended %v", retiring(first.Term), first.Term.Retire(), ended(first.Term))
	}
	if left := time.Until(first.Term.NotAfter()); left < 14*time.Minute || left > 15*time.Minute {
		t.Errorf("sessions that are busy end in %s", left)
	}
	if _, err := b.Newer(context.Background(), ref("other", "secret/data/shop"), 0); err == nil {
		t.Log("a credential that is not held is fetched") // by get
	}
}

// While Vault is away a lease's sessions go on until its end, idle ones too: there is no
// other value that they could carry.
func TestTermWhileVaultIsAway(t *testing.T) {
	t.Parallel()
	v, _ := database(t, map[string]testenv.DatabaseRole{"brief": {TTL: 8 * time.Second, MaxTTL: 8 * time.Second}})
	auth := approle(t, v, "weather", testenv.AppRole{Policy: readDatabase + revokeLeases, TokenTTL: time.Hour})
	brief := ref("brief", "database/creds/brief")
	b, _ := run(t, Config{Address: v.Address, Auth: auth, Timeout: time.Second})
	b.Retain(t.Context(), []authz.CredentialRef{brief})
	c := testenv.MustGet(b.Credential(t.Context(), brief))(t)
	hold(c)
	testenv.Must(t, v.Pause())
	defer func() { testenv.Must(t, v.Resume()) }()
	<-c.Term.Ended()
	if late := time.Since(c.Term.NotAfter()); retiring(c.Term) || late < 0 || late > time.Second || c.Term.Why() != endReached {
		t.Errorf("ended %s after its end, retiring %v: %s", late, retiring(c.Term), c.Term.Why())
	}
	if _, err := b.Credential(t.Context(), brief); err == nil {
		t.Error("a lease is served past its end")
	}
}
