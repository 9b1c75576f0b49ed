package resp

import (
	"slices"
	"strings"
)

// Rights are what the rules of an access control list give to a new user, as ACL SETUSER
// reads them (https://redis.io/docs/latest/operate/oss_and_stack/management/security/acl/).
// They are read for people, to compare a user with the rules that use it; no access is
// decided by them. Several selectors are one: what any of them gives.
type Rights struct {
	// Commands are the commands of Redis 7 that the user may run, as in "config get", sorted;
	// AUTH, HELLO, QUIT and RESET, which every user may, only if the rules name them.
	Commands []string
	// Keys are the keys that the commands may name.
	Keys []KeyRight
	// Channels are those of publish and subscribe. They are exact, or end in *.
	Channels []string
	// Logins are rules that change how the user logs in, without a password, as in "nopass"
	// and "a second password".
	Logins []string
	// Unread counts the rules that are not ones of Redis 7.
	Unread int
}

// KeyRight is a right on keys.
type KeyRight struct {
	// Pattern is a key, or ends in *. A pattern of the server with other wildcards is stated
	// by its beginning, so that it is at least what the server has.
	Pattern     string
	Read, Write bool
}

// RightsOf reads the rules of a user, as in "~app:*" and "+@read", in their order.
func RightsOf(rules []string) Rights {
	var out Rights
	root := permissions{commands: make(map[string]bool)}
	selectors := []*permissions{&root}
	for _, rule := range joinSelectors(rules) {
		switch inner, selector := strings.CutPrefix(rule, "("); {
		case selector && strings.HasSuffix(inner, ")"):
			p := &permissions{commands: make(map[string]bool)}
			for rule := range strings.FieldsSeq(strings.TrimSuffix(inner, ")")) {
				if !p.add(rule) {
					out.Unread++
				}
			}
			selectors = append(selectors, p)
		case rule == "clearselectors":
			selectors = selectors[:1]
		case rule == "reset":
			root, selectors = permissions{commands: make(map[string]bool)}, selectors[:1]
			out.Logins = append(out.Logins, rule)
		case !root.add(rule) && !out.login(rule):
			out.Unread++
		}
	}
	for _, p := range selectors {
		out.Keys, out.Channels = append(out.Keys, p.keys...), append(out.Channels, p.channels...)
		for name, may := range p.commands {
			if may {
				out.Commands = append(out.Commands, name)
			}
		}
	}
	slices.Sort(out.Commands)
	out.Commands = slices.Compact(out.Commands)
	return out
}

// joinSelectors joins the arguments of a selector, "(~app:*" and "+get)", as the server does.
func joinSelectors(rules []string) []string {
	var out []string
	open := false
	for _, rule := range rules {
		rule = strings.TrimSpace(rule)
		if open {
			out[len(out)-1] += " " + rule
		} else {
			out = append(out, rule)
		}
		open = (open || strings.HasPrefix(rule, "(")) && !strings.HasSuffix(rule, ")")
	}
	return out
}

// login reads a rule of the login. It keeps no password.
func (r *Rights) login(rule string) bool {
	switch {
	case rule == "on", rule == "sanitize-payload", rule == "skip-sanitize-payload":
	case rule == "off", rule == "nopass", rule == "resetpass":
		r.Logins = append(r.Logins, rule)
	case rule != "" && strings.ContainsRune("><#!", rune(rule[0])):
		r.Logins = append(r.Logins, "a password in its rules")
	default:
		return false
	}
	return true
}

// permissions are of a user or of one of its selectors.
type permissions struct {
	commands map[string]bool
	keys     []KeyRight
	channels []string
}

// add reads a rule of commands, keys or channels. It reports false for another.
func (p *permissions) add(rule string) bool {
	switch strings.ToLower(rule) {
	case "allcommands":
		return p.command("@all", true)
	case "nocommands":
		return p.command("@all", false)
	case "allkeys":
		p.keys = []KeyRight{{Pattern: "*", Read: true, Write: true}}
	case "resetkeys":
		p.keys = nil
	case "allchannels":
		p.channels = []string{"*"}
	case "resetchannels":
		p.channels = nil
	case "":
		return false
	default:
		return p.pattern(rule[0], rule[1:])
	}
	return true
}

func (p *permissions) pattern(kind byte, rest string) bool {
	switch kind {
	case '+', '-':
		return p.command(strings.ToLower(rest), kind == '+')
	case '~':
		p.keys = append(p.keys, KeyRight{Pattern: beginning(rest), Read: true, Write: true})
	case '&':
		p.channels = append(p.channels, beginning(rest))
	case '%':
		modes, pattern, ok := strings.Cut(rest, "~")
		modes = strings.ToUpper(modes)
		if !ok || modes == "" || strings.Trim(modes, "RW") != "" {
			return false
		}
		p.keys = append(p.keys, KeyRight{Pattern: beginning(pattern), Read: strings.Contains(modes, "R"), Write: strings.Contains(modes, "W")})
	default:
		return false
	}
	return true
}

// command gives or removes a command, a subcommand as in config|get, or a category. A rule for
// the first argument of a command without subcommands, as in select|0, gives the command.
func (p *permissions) command(name string, may bool) bool {
	container, argument, parted := strings.Cut(name, "|")
	name = strings.ReplaceAll(name, "|", " ")
	found := name == "@all"
	for _, each := range commandNames() {
		r, _ := lookup(each)
		if r.container && r.name != "command" {
			found = found || r.name == name
			continue
		}
		first := parted && may && argument != "" && r.name == container && !r.container
		if strings.HasSuffix(name, "*") || !r.stands(name) && !first {
			continue
		}
		p.commands[r.name], found = may, true
	}
	return found
}

// beginning returns a pattern of the server as a name, or one that ends in *.
func beginning(glob string) string {
	if i := strings.IndexAny(glob, `*?[\`); i >= 0 {
		return glob[:i] + "*"
	}
	return glob
}

// Harmless reports whether a command touches no data and no other client: one of the
// connection itself or of a transaction.
func Harmless(name string) bool {
	r, ok := lookup(strings.ReplaceAll(name, " ", "|"))
	in := func(group string) bool { return r.groups&(1<<slices.Index(groupNames(), group)) != 0 }
	return ok && (in("connection") || in("transaction")) && !in("dangerous") && !in("admin")
}

// Writes reports whether a command may change data.
func Writes(name string) bool {
	r, ok := lookup(strings.ReplaceAll(name, " ", "|"))
	return ok && r.groups&(1<<slices.Index(groupNames(), "write")) != 0
}
