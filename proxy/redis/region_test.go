package redis_test

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/chaperone-proxy/chaperone/authz"
	"github.com/chaperone-proxy/chaperone/internal/testenv"
)

// installRegion installs a policy whose rule is for region eu, which has the addresses eu;
// region us has the addresses us.
func (w *world) installRegion(eu, us authz.Place) {
	w.t.Helper()
	rule := reader().rule(w.port, w.serverCA)
	rule.Data.Regions = []string{"eu"}
	policy, problems := authz.Compile(authz.Input{
		Plugin:     plugin,
		Guardrails: []authz.Guardrail{{Name: "company", Plugins: []string{"**"}, Regions: map[string][]authz.Place{"eu": {eu}, "us": {us}}}},
		Grants: []authz.Grant{{
			Name: "crm", Plugin: plugin, NotAfter: time.Now().Add(time.Hour), Rules: []authz.Rule{rule},
			Credentials: []authz.CredentialSpec{{
				Name: "login", Vault: authz.VaultPath{Path: "database/creds/cache"}, Inject: authz.Inject{Database: &authz.DatabaseLogin{}},
			}},
		}},
	}, time.Now())
	if len(problems) > 0 {
		w.t.Fatalf("compile: %+v", problems)
	}
	w.engine.Install(policy)
}

// TestRegion cuts a connection whose address leaves its rule's region while it waits, and
// refuses the next one.
func TestRegion(t *testing.T) {
	w := newWorld(t, serve(t), reader())
	w.installRegion("127.0.0.1", "127.0.0.7")
	c := w.dial()
	c.expect("+PONG", "PING")
	c.send("BLPOP", "app:queue", "0")
	c.expectRecords(w, "command:blpop")
	w.installRegion("127.0.0.2", "127.0.0.1")
	if cut := w.sessions.Revalidate(); cut != 1 {
		t.Errorf("%d connections were cut, want 1", cut)
	}
	c.expectEndAfter("-NOPERM chaperone: address_not_allowed: *")
	const named = "in region us, outside region eu of rule app"
	next := w.dial()
	if got := next.do("GET", "app:1"); !strings.Contains(got, "address_not_allowed") || !strings.Contains(got, named) {
		t.Errorf("the next connection is answered %q", got)
	}
	testenv.Eventually(t, "the records have the regions", func() ([]authz.Record, bool) {
		all := w.records.all()
		inside := slices.ContainsFunc(all, func(r authz.Record) bool { return r.Kind == authz.KindEnd && r.Region == "eu" && r.TLS == "1.3" })
		outside := slices.ContainsFunc(all, func(r authz.Record) bool {
			return !r.Allowed && r.Reason == authz.AddressNotAllowed.String() && r.Region == "us"
		})
		return all, inside && outside
	})
}
