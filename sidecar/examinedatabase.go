package sidecar

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/chaperone-proxy/chaperone/authz"
	"github.com/chaperone-proxy/chaperone/configs"
	"github.com/chaperone-proxy/chaperone/facts/sql"
	"github.com/chaperone-proxy/chaperone/internal/phrase"
	"github.com/chaperone-proxy/chaperone/vault"
)

// usedRole is a role of Vault's database engine, with the rules that use its users.
type usedRole struct {
	grant      string
	scheme     authz.Scheme
	credential authz.CredentialSpec
	rules      []authz.Rule
}

// usedRoles returns the roles of databases that the grants use, in their order.
func usedRoles(grants []authz.Grant) []usedRole {
	var out []usedRole
	for _, g := range grants {
		for _, c := range g.Credentials {
			if _, _, ok := vault.DatabaseRolePaths(c.Vault.Path); !ok {
				continue
			}
			for _, scheme := range []authz.Scheme{authz.SchemePostgres, authz.SchemeRedis} {
				used := usedRole{grant: g.Name, scheme: scheme, credential: c}
				for _, r := range g.Rules {
					if r.Credential == c.Name && r.To.Scheme == scheme {
						used.rules = append(used.rules, r)
					}
				}
				if len(used.rules) > 0 {
					out = append(out, used)
				}
			}
		}
	}
	return out
}

// checkDatabaseRoles compares what the roles of databases give to their users with the rules
// that use them: no reader of statements sees what functions, views and triggers do, so the
// role is the limit of what a plugin can do.
func checkDatabaseRoles(ctx context.Context, cfg *configs.Config, broker *vault.Broker) []Finding {
	var out []Finding
	for _, used := range usedRoles(cfg.Grants) {
		role, denied, err := broker.DatabaseRole(ctx, authz.CredentialRef{Path: used.credential.Vault.Path})
		f := used.finding()
		switch path, connections, _ := vault.DatabaseRolePaths(used.credential.Vault.Path); {
		case denied:
			f.OK, f.Problem, f.Code = false, "Vault's policy does not allow the sidecar to read it", "vault.role_unread"
			f.Lost = "the rights of its users are not compared with the rules"
			f.Remedy = fmt.Sprintf(`add to the policy: path %q { capabilities = ["read"] } path %q { capabilities = ["read"] }`, path, connections+"/*")
		case err != nil:
			f.OK, f.Problem, f.Code = false, err.Error(), "vault.role_unread"
			f.Lost = "the rights of its users are not compared with the rules"
		case role.Plugin != "" && !strings.HasPrefix(role.Plugin, string(used.scheme)):
			f.OK, f.Problem = false, "it is of "+role.Plugin+", and the rules are of scheme "+string(used.scheme)
			f.Lost, f.Remedy = "sessions answer credential_unavailable", "write the path of a role for "+string(used.scheme)
		case used.scheme == authz.SchemeRedis:
			out = append(out, used.compareRedis(role)...)
			continue
		default:
			out = append(out, used.compare(role)...)
			continue
		}
		out = append(out, f)
	}
	return out
}

func (u *usedRole) finding() Finding {
	path, _, _ := vault.DatabaseRolePaths(u.credential.Vault.Path)
	return Finding{Name: "role " + path + " of credential " + phrase.Rule(u.grant, u.credential.Name), Category: "vault", Code: "vault.role", OK: true}
}

// compare returns where a role and the rules that use it differ.
func (u *usedRole) compare(role vault.DatabaseRole) []Finding {
	if len(role.Creation) == 0 {
		return nil // of another engine
	}
	rights := sql.RightsOf(filled(role.Creation)...)
	return u.findings(u.writes(rights), u.reads(rights), u.missing(rights), u.elsewhere(role, rights), u.unread(rights))
}

// findings returns those problems that are there, or that the role is as it should be.
func (u *usedRole) findings(problems ...*Finding) []Finding {
	var out []Finding
	for _, problem := range problems {
		if problem == nil {
			continue
		}
		f := u.finding()
		f.OK, f.Problem, f.Lost, f.Remedy, f.Code = false, problem.Problem, problem.Lost, problem.Remedy, problem.Code
		out = append(out, f)
	}
	if out == nil {
		out = append(out, u.finding())
	}
	return out
}

// filled returns creation statements with their names filled in, as Vault does.
func filled(statements []string) []string {
	names := strings.NewReplacer("{{name}}", "leased", "{{username}}", "leased", "{{password}}", "x", "{{expiration}}", "infinity")
	out := make([]string, 0, len(statements))
	for _, s := range statements {
		out = append(out, names.Replace(s))
	}
	return out
}

// onlyRead reports whether every rule only reads, so that its sessions are pinned to it.
func (u *usedRole) onlyRead() bool {
	return !slices.ContainsFunc(u.rules, func(r authz.Rule) bool {
		return r.Opaque == authz.OpaqueAllow || r.Statements != nil && slices.ContainsFunc(r.Statements.Verbs, func(verb string) bool { return !sql.ReadingVerb(verb) })
	})
}

// writes finds rights to write while every rule reads.
func (u *usedRole) writes(rights sql.Rights) *Finding {
	if !u.onlyRead() {
		return nil
	}
	more := slices.Clone(rights.Powers)
	for _, r := range rights.Tables {
		if r.Privilege != "select" {
			more = append(more, strings.ToUpper(r.Privilege)+" on "+r.Table)
		}
	}
	if len(more) == 0 {
		return nil
	}
	return &Finding{
		Code: "vault.role_writes", Problem: "its users have " + shortList(more) + ", and every rule with them only reads",
		Lost:   "the session is pinned read-only, and nothing behind that pin stops a function that the statement's text does not show",
		Remedy: "use a role for reading: GRANT SELECT on the tables of the rules, and no more",
	}
}

// reads finds tables that the users may read and no rule names.
func (u *usedRole) reads(rights sql.Rights) *Finding {
	var more []string
	for _, r := range rights.Tables {
		if r.Privilege == "select" && !slices.ContainsFunc(u.tables(), func(named string) bool { return covers(named, r.Table) }) {
			more = append(more, r.Table)
		}
	}
	if len(more) == 0 || slices.ContainsFunc(u.rules, func(r authz.Rule) bool { return r.Opaque == authz.OpaqueAllow }) {
		return nil
	}
	return &Finding{
		Code: "vault.role_reads", Problem: "its users may read " + shortList(more) + ", and the rules name " + shortList(u.tables()),
		Lost:   "functions and views that a statement calls can read them, which its text does not show",
		Remedy: "GRANT SELECT on the tables of the rules only",
	}
}

// missing finds tables of the rules on which the users have no right.
func (u *usedRole) missing(rights sql.Rights) *Finding {
	if rights.Unread > 0 || len(rights.Powers) > 0 {
		return nil // they may have it from there
	}
	var tables []string
	for _, named := range u.tables() {
		given := slices.ContainsFunc(rights.Tables, func(r sql.TableRight) bool { return covers(named, r.Table) || covers(r.Table, named) })
		if !given && named != "catalog" && !strings.HasPrefix(named, "pg_catalog.") && !strings.HasPrefix(named, "information_schema.") {
			tables = append(tables, named)
		}
	}
	if len(tables) == 0 {
		return nil
	}
	return &Finding{
		Code: "vault.role_missing", Problem: "its users have no right on " + shortList(tables) + ", which the rules name",
		Lost:   "statements on them fail with the database's permission denied, unless PUBLIC has the right",
		Remedy: "add a GRANT on them to the role's creation statements, or leave them out of the rules",
	}
}

// elsewhere finds a role whose rights on tables are given in another database.
func (u *usedRole) elsewhere(role vault.DatabaseRole, rights sql.Rights) *Finding {
	var named []string
	for _, r := range u.rules {
		for _, database := range r.Databases {
			named = append(named, string(database))
		}
	}
	if role.Database == "" || len(rights.Tables) == 0 || slices.ContainsFunc(named, func(name string) bool { return covers(name, role.Database) }) {
		return nil
	}
	return &Finding{
		Code: "vault.role_database", Problem: "its connection is to database " + role.Database + ", and the rules name " + shortList(named),
		Lost:   "its rights on tables are given in that database only",
		Remedy: "use a connection to the database of the rules",
	}
}

// unread finds creation statements whose rights cannot be compared.
func (u *usedRole) unread(rights sql.Rights) *Finding {
	if rights.Unread == 0 {
		return nil
	}
	return &Finding{
		Code: "vault.role_unread", Problem: "the rights of " + phrase.Count(rights.Unread, "creation statement") + " could not be read",
		Lost:   "they are not compared with the rules",
		Remedy: "give rights by GRANT on tables, or compare them by hand",
	}
}

// tables returns the tables that the rules name, each once.
func (u *usedRole) tables() []string {
	var out []string
	for _, r := range u.rules {
		if r.Statements == nil {
			continue
		}
		for _, table := range r.Statements.Tables {
			if !slices.Contains(out, table) {
				out = append(out, table)
			}
		}
	}
	return out
}

// covers reports whether a name, which may end in one *, covers another, which may too.
func covers(name, other string) bool {
	prefix, open := strings.CutSuffix(name, "*")
	return name == other || open && strings.HasPrefix(other, prefix)
}

// shortList lists the first few of names.
func shortList(names []string) string {
	const few = 4
	if len(names) > few {
		return strings.Join(names[:few], ", ") + fmt.Sprintf(" and %d more", len(names)-few)
	}
	return phrase.List(names)
}
