package sidecar

import (
	"strings"
	"testing"

	"github.com/chaperone-proxy/chaperone/authz"
	"github.com/chaperone-proxy/chaperone/vault"
)

// TestRedisRolesAreComparedWithRules: what ACL rules give beyond the rules of a grant, and
// what they lack for them, is found, without a password that they hold.
func TestRedisRolesAreComparedWithRules(t *testing.T) {
	content := func(commands, keys string) authz.Content {
		return authz.Content{Databases: []authz.DatabaseName{"0"}, Commands: strings.Fields(commands), Keys: strings.Fields(keys)}
	}
	reads, news, scripts := content("get mget", "app:*"), content("get subscribe", "app:*"), content("get eval", "app:*")
	news.Channels, scripts.Opaque = []string{"app.*"}, authz.OpaqueAllow
	for _, test := range []struct {
		name     string
		rule     authz.Content
		creation string
		codes    string
		says     string
	}{
		{"the same", reads, `["~app:*", "resetchannels", "+get", "+mget", "+@connection", "-@dangerous"]`, "", ""},
		{"the role of docs/databases.md", content("@read set del expire info", "crm:*"), `["~crm:*", "resetchannels", "+@read", "+set", "+del", "+expire", "+@connection", "+@transaction", "-@dangerous", "+info"]`, "", ""},
		{"more commands", reads, `["~app:*", "+@read"]`, "role_commands", "its users may run bitcount, bitfield_ro, bitpos, dbsize and"},
		{"those that are never granted come first", reads, `["~app:*", "+get", "+mget", "+append", "+monitor"]`, "role_commands", "its users may run monitor, append, which no rule grants"},
		{"everything", reads, `["allkeys", "allchannels", "+@all"]`, "role_commands role_keys role_channels", "its users may use keys *, and the rules name app:*"},
		{"another key", reads, `["~app:1*", "~app:*", "~other", "+get", "+mget"]`, "role_keys", "its users may use keys other"},
		{"keys with a wildcard inside", reads, `["~app:*", "~a?p:*", "+get", "+mget"]`, "role_keys", "keys a*"},
		{"a selector", reads, `["~app:*", "+get", "+mget", "(~other +set)"]`, "role_commands role_keys", "its users may run set"},
		{"channels without commands for them", reads, `["~app:*", "&*", "+get", "+mget"]`, "", ""},
		{"channels", news, `["~app:*", "&*", "+get", "+subscribe"]`, "role_channels", "its users may use channels *, and the rules name app.*"},
		{"lacks its channel", news, `["~app:*", "+get", "+subscribe"]`, "role_missing", "no right on all of channel app.*"},
		{"lacks commands and keys", reads, `["~app:1*", "+get"]`, "role_missing", "command mget, key app:*"},
		{"a command that is removed", content("get info", "app:*"), `["~app:*", "+get", "+info", "-@dangerous"]`, "role_missing", "command info"},
		{"a category in part", content("@read", "app:*"), `["~app:*", "+@read", "-@dangerous"]`, "", ""},
		{"keys to read alone", content("set", "app:*"), `["%R~app:*", "+set"]`, "role_missing", "key app:*"},
		{"keys to write alone", content("get", "app:*"), `["%W~app:*", "+get"]`, "role_missing", "key app:*"},
		{"scripts in other databases", scripts, `["~app:*", "+get", "+eval", "+select"]`, "role_database", "SELECT every database"},
		{"scripts with more keys", scripts, `["~*", "+get", "+eval"]`, "role_keys", "its users may use keys *"},
		{"a login of its own", reads, `["~app:*", "+get", "+mget", ">hunter2", "nopass"]`, "role_login", "a password in its rules, nopass"},
		{"a rule that does not exist", reads, `["~app:*", "+get", "+mget", "+json.get"]`, "role_unread", "some of its ACL rules are not ones of Redis 7"},
		{"no JSON", reads, `~app:* +get`, "role_unread", "is not a JSON array of ACL rules"},
		{"selectors without an end", reads, `["(~a"` + strings.Repeat(`,"(~a"`, 100_000) + `]`, "role_unread", "or has more than 64 KiB"},
		{"nothing: Vault's default", reads, "", "role_commands role_keys", "keys *"},
	} {
		t.Run(test.name, func(t *testing.T) {
			u := usedRole{grant: "crm", scheme: authz.SchemeRedis, credential: authz.CredentialSpec{Name: "cache", Vault: authz.VaultPath{Path: "db/creds/cache"}}, rules: []authz.Rule{{Content: test.rule}}}
			var codes, problems []string
			for _, f := range u.compareRedis(vault.DatabaseRole{Creation: []string{test.creation}, Plugin: "redis-database-plugin"}) {
				if f.Name != "role db/roles/cache of credential crm/cache" || f.Category != "vault" || f.Required || !f.OK && (f.Lost == "" || f.Remedy == "") {
					t.Errorf("finding %+v", f)
				}
				if !f.OK {
					codes, problems = append(codes, strings.TrimPrefix(f.Code, "vault.")), append(problems, f.Problem)
				}
			}
			got := strings.Join(problems, "; ")
			if strings.Join(codes, " ") != test.codes || !strings.Contains(got, test.says) || strings.Contains(got, "hunter2") {
				t.Errorf("got %q, %q", codes, got)
			}
		})
	}
}

// TestRedisRolesWithSeveralStatements: Vault uses the first, and a role of another engine has none.
func TestRedisRolesWithSeveralStatements(t *testing.T) {
	u := usedRole{grant: "crm", scheme: authz.SchemeRedis, rules: []authz.Rule{{Content: authz.Content{Commands: []string{"get"}, Keys: []string{"a"}}}}}
	found := u.compareRedis(vault.DatabaseRole{Creation: []string{" ", `["~a", "+get"]`, `["+@all"]`}})
	if len(found) != 1 || !strings.Contains(found[0].Problem, "Vault uses the first alone") {
		t.Errorf("two statements: %+v", found)
	}
	if found := u.compareRedis(vault.DatabaseRole{}); found != nil {
		t.Errorf("another engine: %+v", found)
	}
}
