package sidecar

import (
	"slices"
	"strings"
	"testing"

	"github.com/chaperone-proxy/chaperone/authz"
	"github.com/chaperone-proxy/chaperone/vault"
)

// shopRole returns a role whose users the rules have, each with its verbs and tables.
func shopRole(rules ...authz.Statements) usedRole {
	u := usedRole{grant: "crm", credential: authz.CredentialSpec{Name: "shop", Vault: authz.VaultPath{Path: "db/creds/shop"}}}
	for i := range rules {
		u.rules = append(u.rules, authz.Rule{Content: authz.Content{Databases: []authz.DatabaseName{"shop"}, Statements: &rules[i]}})
	}
	return u
}

// TestRolesAreComparedWithRules: what a role gives beyond its rules, and what it lacks for
// them, is found.
func TestRolesAreComparedWithRules(t *testing.T) {
	const create = `CREATE ROLE "{{name}}" LOGIN PASSWORD '{{password}}' VALID UNTIL '{{expiration}}'; `
	reads := authz.Statements{Verbs: []string{"select", "copy-out"}, Tables: []string{"public.orders", "catalog"}}
	writes := authz.Statements{Verbs: []string{"insert"}, Tables: []string{"public.orders"}}
	prefix := authz.Statements{Verbs: []string{"select"}, Tables: []string{"public.order_*"}}
	for _, test := range []struct {
		name     string
		rules    []authz.Statements
		creation string
		database string
		codes    string
		says     string
	}{
		{"the same", []authz.Statements{reads}, create + `GRANT SELECT ON public.orders TO "{{name}}"`, "shop", "", ""},
		{"writes", []authz.Statements{reads}, create + `GRANT SELECT, INSERT ON public.orders TO "{{name}}"`, "shop", "role_writes", "its users have INSERT on public.orders, and every rule with them only reads"},
		{"writes, and so does a rule", []authz.Statements{reads, writes}, create + `GRANT SELECT, INSERT ON public.orders TO "{{name}}"`, "", "", ""},
		{"a superuser", []authz.Statements{reads}, create + `ALTER ROLE "{{name}}" SUPERUSER`, "", "role_writes", "its users have SUPERUSER"},
		{"a member of another", []authz.Statements{reads}, create + `GRANT app TO "{{name}}"`, "", "role_writes", "member of app"},
		{"reads all", []authz.Statements{reads}, create + `GRANT pg_read_all_data TO "{{name}}"`, "", "role_reads", "its users may read *, and the rules name public.orders, catalog"},
		{"reads a schema", []authz.Statements{prefix}, `GRANT SELECT ON ALL TABLES IN SCHEMA public TO "{{name}}"`, "", "role_reads", "public.*"},
		{"reads what a prefix names", []authz.Statements{prefix}, `GRANT SELECT ON public.order_lines TO "{{name}}"`, "", "", ""},
		{"lacks a table", []authz.Statements{reads}, create + `GRANT SELECT ON public.notes TO "{{name}}"`, "", "role_reads role_missing", "its users have no right on public.orders"},
		{"another database", []authz.Statements{reads}, `GRANT SELECT ON orders TO "{{name}}"`, "postgres", "role_database", "its connection is to database postgres, and the rules name shop"},
		{"statements that are not read", []authz.Statements{reads}, `GRANT SELECT ON orders TO "{{name}}"; DO $$ $$`, "", "role_unread", "the rights of 1 creation statement could not be read"},
	} {
		t.Run(test.name, func(t *testing.T) {
			u := shopRole(test.rules...)
			var codes, problems []string
			for _, f := range u.compare(vault.DatabaseRole{Creation: []string{test.creation}, Database: test.database}) {
				if f.Name != "role db/roles/shop of credential crm/shop" || f.Category != "vault" || f.Required || !f.OK && (f.Lost == "" || f.Remedy == "") {
					t.Errorf("finding %+v", f)
				}
				if !f.OK {
					codes, problems = append(codes, strings.TrimPrefix(f.Code, "vault.")), append(problems, f.Problem)
				}
			}
			if got := strings.Join(codes, " "); got != test.codes || !strings.Contains(strings.Join(problems, "; "), test.says) {
				t.Errorf("got %q, %q", got, problems)
			}
		})
	}
	u := shopRole(reads)
	if found := u.compare(vault.DatabaseRole{}); found != nil {
		t.Errorf("a role without creation statements: %+v", found)
	}
}

// TestUsedRoles: roles of databases that a rule uses are compared, and no others.
func TestUsedRoles(t *testing.T) {
	grant := authz.Grant{Name: "crm", Rules: []authz.Rule{
		{ID: "shop", To: authz.To{Scheme: authz.SchemePostgres}, Credential: "shop"},
		{ID: "cache", To: authz.To{Scheme: authz.SchemeRedis}, Credential: "cache"},
		{ID: "static", To: authz.To{Scheme: authz.SchemePostgres}, Credential: "static"},
		{ID: "kv", To: authz.To{Scheme: authz.SchemePostgres}, Credential: "kv"},
	}}
	for name, path := range map[string]string{"shop": "team/db/creds/shop", "cache": "db/creds/cache", "static": "db/static-creds/app", "kv": "secret/data/shop", "unused": "db/creds/unused"} {
		grant.Credentials = append(grant.Credentials, authz.CredentialSpec{Name: name, Vault: authz.VaultPath{Path: path}})
	}
	var names []string
	for _, u := range usedRoles([]authz.Grant{grant}) {
		names = append(names, string(u.scheme)+" "+u.finding().Name)
	}
	slices.Sort(names)
	if !slices.Equal(names, []string{"postgres role team/db/roles/shop of credential crm/shop", "redis role db/roles/cache of credential crm/cache"}) {
		t.Errorf("roles %q", names)
	}
}
