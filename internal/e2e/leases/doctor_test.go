package leases

import (
	"testing"

	"github.com/chaperone-proxy/chaperone/internal/testenv"
	"github.com/chaperone-proxy/chaperone/internal/testenv/scenario"
)

// TestDoctorComparesTheRole has doctor read the role of a database in Vault, where the
// policy allows it, and compare it with the rules.
func TestDoctorComparesTheRole(t *testing.T) {
	t.Parallel()
	l := newLab(t, labConfig{})
	doctor := func() string {
		r := l.Chaperone("doctor", "--login", "--config", l.File("sidecar.yaml"))
		return r.Stdout + r.Stderr
	}
	scenario.Contains(t, doctor(), "pass  login to Vault", "warn  role database/roles/shop of credential weather/shop: Vault's policy does not allow the sidecar to read it",
		`add to the policy: path "database/roles/shop" { capabilities = ["read"] } path "database/config/*" { capabilities = ["read"] }`)
	testenv.Must(t, l.Vault.Policy(t.Context(), "weather", `
path "database/creds/*" { capabilities = ["read"] }
path "database/roles/shop" { capabilities = ["read"] }
path "database/config/*" { capabilities = ["read"] }
path "sys/leases/revoke" { capabilities = ["update"] }
`))
	scenario.Contains(t, doctor(), "pass  role database/roles/shop of credential weather/shop\n")
	testenv.Must(t, l.Vault.DatabaseRole(t.Context(), "database", "shop", testenv.DatabaseRole{Grants: []string{`GRANT SELECT, DELETE ON ALL TABLES IN SCHEMA public TO "{{name}}"`}}))
	scenario.Contains(t, doctor(), "its users have DELETE on public.*, and every rule with them only reads", "code: vault.role_writes",
		"its users may read public.*, and the rules name public.orders", "code: vault.role_reads")
	if leases := testenv.MustGet(l.Vault.Leases(t.Context(), "database/creds/shop"))(t); len(leases) != 0 {
		t.Errorf("doctor leased %q", leases)
	}
}
