package postgres

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgproto3"

	"github.com/chaperone-proxy/chaperone/authz"
)

// installRegion installs a policy whose rule is for region eu, which has the addresses eu;
// region us has the addresses us.
func (w *world) installRegion(eu, us authz.Place) {
	w.t.Helper()
	rule := grantAll()
	rule.To.Ports, rule.To.TLS.CA, rule.Data.Regions = []uint16{w.port}, w.serverCA, []string{"eu"}
	policy, problems := authz.Compile(authz.Input{
		Plugin:     plugin,
		Guardrails: []authz.Guardrail{{Name: "company", Plugins: []string{"**"}, Regions: map[string][]authz.Place{"eu": {eu}, "us": {us}}}},
		Grants: []authz.Grant{{
			Name: "crm", Plugin: plugin, NotAfter: time.Now().Add(time.Hour), Rules: []authz.Rule{rule},
			Credentials: []authz.CredentialSpec{{
				Name: "login", Vault: authz.VaultPath{Path: "database/creds/shop"}, Inject: authz.Inject{Database: &authz.DatabaseLogin{}},
			}},
		}},
	}, time.Now())
	if len(problems) > 0 {
		w.t.Fatalf("compile: %+v", problems)
	}
	w.engine.Install(policy)
}

// TestRegion cuts a session whose address leaves its rule's region while a statement runs,
// and refuses the next one.
func TestRegion(t *testing.T) {
	_, to := sharedServer(t)
	w := newWorld(t, to, grantAll())
	w.installRegion("127.0.0.1", "127.0.0.7")
	c := w.open()
	c.send(encode(&pgproto3.Query{String: "SELECT pg_sleep(603)"}))
	eventually(t, "the statement is admitted", func() bool { return len(w.front.Sessions()) == 1 && w.front.Sessions()[0].Running == 1 })
	w.installRegion("127.0.0.2", "127.0.0.1")
	if cut := w.sessions.Revalidate(); cut != 1 {
		t.Errorf("%d sessions were cut, want 1", cut)
	}
	c.expectFatal(stateAdminShutdown, "address_not_allowed")
	const named = "in region us, outside region eu of rule"
	out, err := w.psql("-c", "SELECT 1")
	if err == nil || !strings.Contains(out, "address_not_allowed") || !strings.Contains(out, named) {
		t.Errorf("the next session: %v, %q", err, out)
	}
	eventually(t, "the records have the regions", func() bool {
		ends := w.records.of(authz.KindEnd)
		return slices.ContainsFunc(ends, func(r authz.Record) bool { return r.Region == "eu" && r.TLS == "1.3" }) &&
			slices.ContainsFunc(append(ends, w.records.of(authz.KindDecision)...), func(r authz.Record) bool {
				return !r.Allowed && r.Reason == authz.AddressNotAllowed.String() && r.Region == "us"
			})
	})
}
