package vault

import (
	"context"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/chaperone-proxy/chaperone/authz"
	"github.com/chaperone-proxy/chaperone/internal/testenv"
)

// A replaced lease is revoked when the last access that carries it has ended, or
// ends by itself, whichever is first.
func TestReplacedLeasesAreKeptForTheirAccesses(t *testing.T) {
	t.Parallel()
	v, db := database(t, map[string]testenv.DatabaseRole{
		"brief": {TTL: 9 * time.Second, MaxTTL: 12 * time.Second}, "long": {TTL: time.Hour},
	})
	auth := approle(t, v, "weather", testenv.AppRole{Policy: readDatabase + revokeLeases, TokenTTL: time.Hour})
	for name, test := range map[string]func(t *testing.T, b *Broker, c authz.Credential, end time.Time, replaced func()){
		"it ends by itself": func(t *testing.T, _ *Broker, c authz.Credential, end time.Time, replaced func()) {
			c.Uses.Begin()
			replaced()
			time.Sleep(2 * time.Second)
			for time.Until(end) > time.Second {
				if !logsIn(t, db, c) {
					t.Fatalf("revoked under its access, %s before its end", time.Until(end))
				}
				time.Sleep(200 * time.Millisecond)
			}
			until(t, "it is gone", func() bool { return !logsIn(t, db, c) })
		},
		"its accesses end": func(t *testing.T, _ *Broker, c authz.Credential, end time.Time, replaced func()) {
			c.Uses.Begin()
			c.Uses.Begin()
			replaced()
			c.Uses.End()
			time.Sleep(1500 * time.Millisecond)
			if time.Until(end) > time.Second && !logsIn(t, db, c) {
				t.Error("revoked under the second access")
			}
			c.Uses.End()
			until(t, "it is gone", func() bool { return !logsIn(t, db, c) })
		},
		"its accesses are not seen to end": func(t *testing.T, _ *Broker, c authz.Credential, end time.Time, replaced func()) {
			c.Uses.MarkUntracked()
			replaced()
			time.Sleep(1500 * time.Millisecond)
			if time.Until(end) > time.Second && !logsIn(t, db, c) {
				t.Error("revoked although an access may carry it")
			}
			until(t, "it is gone", func() bool { return !logsIn(t, db, c) })
		},
		"a responder revokes": func(t *testing.T, b *Broker, c authz.Credential, _ time.Time, replaced func()) {
			c.Uses.Begin()
			replaced()
			if report := b.Revoke(t.Context()); report.Confirmed < 2 || report.Err != nil {
				t.Errorf("report %+v", report)
			}
			if logsIn(t, db, c) {
				t.Error("kept although everything is revoked")
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var log journal
			b, stop := run(t, Config{Address: v.Address, Auth: auth, Recorder: &log})
			brief := ref(name, "database/creds/brief")
			b.Retain(t.Context(), []authz.CredentialRef{brief})
			begun := time.Now()
			c := testenv.MustGet(b.Credential(t.Context(), brief))(t)
			test(t, b, c, begun.Add(12*time.Second), func() {
				until(t, "it is replaced", func() bool {
					return testenv.MustGet(b.Credential(t.Context(), brief))(t).Generation > c.Generation
				})
				if s := b.Status(); s.States[StateReplaced] != 1 && s.States[StateRevoking] != 1 {
					t.Errorf("states %v", s.States)
				}
			})
			testenv.Must(t, stop())
		})
	}
	t.Run("not asked for, and carried", func(t *testing.T) {
		t.Parallel()
		var log journal
		var clock ahead
		b, _ := run(t, Config{Address: v.Address, Auth: auth, Recorder: &log, Now: clock.now})
		long := ref("long", "database/creds/long")
		b.Retain(t.Context(), []authz.CredentialRef{long})
		c := testenv.MustGet(b.Credential(t.Context(), long))(t)
		c.Uses.Begin()
		clock.move(45 * time.Minute) // to where it is renewed, or given back
		until(t, "it is renewed", func() bool { return log.count("renewed") == 1 })
		if log.count("released") != 0 || !logsIn(t, db, c) {
			t.Errorf("records %s", &log)
		}
	})
}

// However many accesses hold on to old leases, few of one credential are kept.
func TestFewReplacedLeasesAreKept(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := testenv.MustGet(New(Config{Plugin: plugin, Address: "http://127.0.0.1:1", Auth: Auth{Method: MethodToken, TokenFile: "/dev/null"}}))(t)
		one, other := ref("one", "database/creds/a"), ref("other", "database/creds/a")
		now := b.clock.now()
		for i := range 10 {
			for _, r := range []authz.CredentialRef{one, other} {
				l := &lease{id: fmt.Sprint(r.Name, i), session: sessionUntil(never()), uses: new(authz.Uses)}
				l.ends = now.add(time.Duration(i+1) * time.Hour)
				l.uses.Begin()
				b.revocations.revokeWhenUnused(r, l, now)
			}
		}
		kept := map[string]int{}
		for id, r := range b.revocations.pending {
			if r.inUse(now) {
				kept[r.ref.Name]++
				if id < r.ref.Name+"6" {
					t.Errorf("%s is kept, and newer ones are not", id)
				}
			}
		}
		if kept["one"] != maxKept || kept["other"] != maxKept || len(b.revocations.pending) != 20 {
			t.Errorf("kept %v of %d", kept, len(b.revocations.pending))
		}
		urgent := b.revocations.enqueue(one, &lease{id: "one9", session: sessionUntil(never())}, now, true)
		if urgent.inUse(now) {
			t.Error("an urgent revocation waits")
		}
		if b.revocations.maintain(context.Background(), now.add(-time.Second)) == never() {
			t.Error("no revocation is due")
		}
	})
}
