package sidecar

import (
	"encoding/json"
	"slices"
	"strings"

	"github.com/chaperone-proxy/chaperone/authz"
	"github.com/chaperone-proxy/chaperone/facts/resp"
	"github.com/chaperone-proxy/chaperone/vault"
)

// defaultRedisRules are what Vault's plugin for Redis gives by a role without creation
// statements (github.com/hashicorp/vault-plugin-database-redis, defaultRedisUserRule).
const defaultRedisRules = `["~*", "+@read"]`

// maxRedisRules is how long the ACL rules of a role are at most to be compared, in bytes: each
// is compared with all commands, and with all others.
const maxRedisRules = 64 << 10

// compareRedis returns where a role of Redis and the rules that use it differ. Its first
// creation statement is a JSON array of ACL rules; Vault uses no other.
func (u *usedRole) compareRedis(role vault.DatabaseRole) []Finding {
	creation := slices.DeleteFunc(slices.Clone(role.Creation), func(s string) bool { return strings.TrimSpace(s) == "" })
	switch {
	case len(creation) == 0 && role.Plugin == "":
		return nil // of another engine
	case len(creation) == 0:
		creation = []string{defaultRedisRules}
	}
	var rules []string
	if len(creation[0]) > maxRedisRules || json.Unmarshal([]byte(creation[0]), &rules) != nil {
		return u.findings(&Finding{
			Code: "vault.role_unread", Problem: "its first creation statement is not a JSON array of ACL rules, or has more than 64 KiB",
			Lost:   "Vault creates no user from another text: sessions answer credential_unavailable",
			Remedy: `write it as in creation_statements='["~app:*", "resetchannels", "+@read"]'`,
		})
	}
	rights := resp.RightsOf(rules)
	return u.findings(u.redisLogins(rights), u.redisCommands(rights), u.redisKeys(rights), u.redisChannels(rights),
		u.redisDatabases(rights), u.redisMissing(rights), unreadRedis(rights, len(creation)))
}

// opaque reports whether a rule grants what the facts do not show, as scripts.
func (u *usedRole) opaque() bool {
	return slices.ContainsFunc(u.rules, func(r authz.Rule) bool { return r.Opaque == authz.OpaqueAllow })
}

// behind states what is lost where the users may do more than the rules grant.
func (u *usedRole) behind() string {
	if u.opaque() {
		return "scripts can use them, which the text of a command does not show"
	}
	return "the sidecar refuses them, and behind it the server does not"
}

// redisLogins finds rules that give a login without the leased password, or that remove it.
func (u *usedRole) redisLogins(rights resp.Rights) *Finding {
	if len(rights.Logins) == 0 {
		return nil
	}
	return &Finding{
		Code: "vault.role_login", Problem: "its rules change the login of its users: " + shortList(rights.Logins),
		Lost:   "a user is open to others than the one who leased it, or to nobody",
		Remedy: "give keys, channels and commands only: Vault sets the password",
	}
}

// redisCommands finds commands that the users may run and no rule grants.
func (u *usedRole) redisCommands(rights resp.Rights) *Finding {
	granted := resp.Always()
	for _, name := range u.redisNames(func(r authz.Rule) []string { return r.Commands }) {
		commands, _ := resp.Expand(name) // check has refused what cannot be expanded
		granted = append(granted, commands...)
	}
	var worst, more []string
	for _, name := range rights.Commands {
		switch {
		case slices.Contains(granted, name) || resp.Harmless(name):
		case resp.Forbidden(name):
			worst = append(worst, name)
		default:
			more = append(more, name)
		}
	}
	if more = append(worst, more...); len(more) == 0 {
		return nil
	}
	return &Finding{
		Code: "vault.role_commands", Problem: "its users may run " + shortList(more) + ", which no rule grants", Lost: u.behind(),
		Remedy: "give the commands of the rules only, as in +get, or remove others behind them, as in -@dangerous",
	}
}

// redisKeys finds keys that the users may touch and no rule names.
func (u *usedRole) redisKeys(rights resp.Rights) *Finding {
	given := make([]string, 0, len(rights.Keys))
	for _, key := range rights.Keys {
		given = append(given, key.Pattern)
	}
	return u.redisMore("keys", given, u.redisNames(func(r authz.Rule) []string { return r.Keys }), "~app:*")
}

// redisChannels finds channels that the users may use and no rule names.
func (u *usedRole) redisChannels(rights resp.Rights) *Finding {
	for _, name := range rights.Commands {
		switch name {
		case "publish", "spublish", "subscribe", "psubscribe", "ssubscribe":
			return u.redisMore("channels", rights.Channels, u.redisNames(func(r authz.Rule) []string { return r.Channels }), "resetchannels and &app.*")
		}
	}
	return nil
}

// redisMore finds names that the users are given and no rule names.
func (u *usedRole) redisMore(what string, given, named []string, example string) *Finding {
	var more []string
	for _, name := range given {
		if !coveredBy(named, name) && !slices.Contains(more, name) {
			more = append(more, name)
		}
	}
	if len(more) == 0 {
		return nil
	}
	return &Finding{
		Code: "vault.role_" + what, Problem: "its users may use " + what + " " + shortList(more) + ", and the rules name " + listOrNone(named), Lost: u.behind(),
		Remedy: "give the " + what + " of the rules only, as in " + example,
	}
}

// redisDatabases finds scripts that can leave the databases of the rules: no ACL names them.
func (u *usedRole) redisDatabases(rights resp.Rights) *Finding {
	named := u.redisNames(func(r authz.Rule) []string {
		names := make([]string, 0, len(r.Databases))
		for _, name := range r.Databases {
			names = append(names, string(name))
		}
		return names
	})
	if !u.opaque() || !slices.Contains(rights.Commands, "select") || slices.Contains(named, "*") {
		return nil
	}
	return &Finding{
		Code: "vault.role_database", Problem: "its users may SELECT every database, and the rules name " + listOrNone(named),
		Lost:   "scripts can select others, which the text of a command does not show",
		Remedy: "add -select, if the plugin needs database 0 alone",
	}
}

// redisMissing finds what the rules grant and the server refuses.
func (u *usedRole) redisMissing(rights resp.Rights) *Finding {
	var lacks []string
	for _, name := range u.redisNames(func(r authz.Rule) []string { return r.Commands }) {
		commands, _ := resp.Expand(name)
		// A category that is given in part is meant so.
		if !slices.ContainsFunc(commands, func(c string) bool {
			return slices.Contains(rights.Commands, c) || slices.Contains(resp.Always(), c)
		}) {
			lacks = append(lacks, "command "+name)
		}
	}
	for _, rule := range u.rules {
		reads, writes := sortsOf(rule.Commands)
		for _, name := range rule.Keys {
			if given := slices.ContainsFunc(rights.Keys, func(k resp.KeyRight) bool {
				return covers(k.Pattern, name) && (k.Read || !reads) && (k.Write || !writes)
			}); !given {
				lacks = append(lacks, "key "+name)
			}
		}
		for _, name := range rule.Channels {
			if !coveredBy(rights.Channels, name) {
				lacks = append(lacks, "channel "+name)
			}
		}
	}
	if len(lacks) == 0 || rights.Unread > 0 {
		return nil
	}
	return &Finding{
		Code: "vault.role_missing", Problem: "its users have no right on all of " + shortList(lacks) + ", which the rules grant",
		Lost:   "the server refuses such commands with NOPERM",
		Remedy: "add it to the role's ACL rules, behind those that remove it, or leave it out of the rules",
	}
}

// sortsOf reports whether some of the commands that a rule grants only read, and whether some write.
func sortsOf(patterns []string) (reads, writes bool) {
	for _, pattern := range patterns {
		commands, _ := resp.Expand(pattern)
		for _, name := range commands {
			if resp.Writes(name) {
				writes = true
			} else if !resp.Harmless(name) {
				reads = true
			}
		}
	}
	return reads, writes
}

// unreadRedis finds rules that cannot be compared, and statements that Vault does not use.
func unreadRedis(rights resp.Rights, statements int) *Finding {
	f := Finding{Code: "vault.role_unread", Lost: "they are not compared with the rules", Remedy: "give rights by the ACL rules of Redis 7, or compare them by hand"}
	switch {
	case rights.Unread > 0:
		f.Problem = "some of its ACL rules are not ones of Redis 7"
	case statements > 1:
		f.Problem = "it has further creation statements, and Vault uses the first alone"
		f.Lost, f.Remedy = "the rules in the others are not in force", "write one JSON array with all ACL rules"
	default:
		return nil
	}
	return &f
}

// redisNames returns names of the rules, each once.
func (u *usedRole) redisNames(of func(authz.Rule) []string) []string {
	var out []string
	for _, r := range u.rules {
		for _, name := range of(r) {
			if !slices.Contains(out, name) {
				out = append(out, name)
			}
		}
	}
	return out
}

func coveredBy(names []string, name string) bool {
	return slices.ContainsFunc(names, func(each string) bool { return covers(each, name) })
}

func listOrNone(names []string) string {
	if len(names) == 0 {
		return "none"
	}
	return shortList(names)
}
