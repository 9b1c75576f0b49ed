package resp

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

// TestRightsOf: keys, channels and logins of rules, and rules that do not exist.
func TestRightsOf(t *testing.T) {
	for _, test := range []struct{ rules, want string }{
		{"~app:* +get resetchannels &news.*", "get keys app:*/rw channels news.*"},
		{"%R~a* %W~b %RW~c", "keys a*/r b/w c/rw"},
		{"allkeys +get -get", "keys */rw"},
		{"~a ~b resetkeys ~c", "keys c/rw"},
		{"~a?c:* ~b[0-9]", `keys a*/rw b*/rw`},
		{"+config|get +config -config|set", "config get, config help, config resetstat, config rewrite keys"},
		{"+@scripting -@all +ping", "ping keys"},
		{"+select|0", "select keys"},
		{"+get -get|x", "get keys 1 unread"},
		{"(~tmp:* +set) (%R~log:* +get", "set keys tmp:*/rw 1 unread"},
		{"(~tmp:* +set)", "set keys tmp:*/rw"},
		{"(~x +get) clearselectors ~y", "keys y/rw"},
		{"~x +get reset ~y", "keys y/rw logins reset"},
		{"off nopass >secret #0123 <secret", "keys logins off, nopass, a password in its rules, a password in its rules, a password in its rules"},
		{"+frob +@frob % %X~a db=0 frob", "keys 6 unread"},
		{"+get* +*", "keys 2 unread"},
	} {
		if got := written(RightsOf(strings.Fields(test.rules))); got != test.want {
			t.Errorf("%s: got %q, want %q", test.rules, got, test.want)
		}
	}
}

func written(r Rights) string {
	words := []string{strings.Join(r.Commands, ", "), "keys"}
	for _, k := range r.Keys {
		mode := "/"
		if k.Read {
			mode += "r"
		}
		if k.Write {
			mode += "w"
		}
		words = append(words, k.Pattern+mode)
	}
	if len(r.Channels) > 0 {
		words = append(words, "channels", strings.Join(r.Channels, " "))
	}
	if len(r.Logins) > 0 {
		words = append(words, "logins", strings.Join(r.Logins, ", "))
	}
	if r.Unread > 0 {
		words = append(words, fmt.Sprintf("%d unread", r.Unread))
	}
	return strings.TrimSpace(strings.Join(words, " "))
}

// TestRightsAreTheServers: the server allows a user exactly the commands that are read from
// its rules.
func TestRightsAreTheServers(t *testing.T) {
	server := startServer(t)
	names := slices.DeleteFunc(commandNames(), func(name string) bool {
		r, _ := lookup(name)
		withoutLogin := slices.Contains([]string{"auth", "hello", "quit", "reset"}, name) // allowed whatever the rules are
		return withoutLogin || r.container && r.name != "command"
	})
	var tries [][]string // of each command, with as many arguments as it needs
	for _, name := range names {
		r, _ := lookup(name)
		try := append([]string{"ACL", "DRYRUN", "drawn"}, strings.Fields(r.name)...)
		for len(try)-3 < max(int(r.arity), -int(r.arity)) {
			try = append(try, "1")
		}
		tries = append(tries, try)
	}
	words := []string{"allcommands", "nocommands"}
	for _, group := range groupNames() {
		words = append(words, "+@"+group, "-@"+group)
	}
	for _, name := range commandNames() {
		words = append(words, "+"+name, "-"+name)
	}
	rapid.Check(t, func(t2 *rapid.T) {
		rules := rapid.SliceOfN(rapid.SampledFrom(words), 1, 6).Draw(t2, "rules")
		if got := server.do(t, append([]string{"ACL", "SETUSER", "drawn", "reset"}, rules...)...); got != "OK" {
			t2.Fatalf("ACL SETUSER is answered %v", got)
		}
		rights := RightsOf(rules)
		for i, answer := range server.all(t, tries) {
			text, name := fmt.Sprint(answer), names[i]
			if strings.Contains(text, "wrong number of arguments") {
				t2.Fatalf("%s: %s", name, text)
			}
			name = strings.ReplaceAll(name, "|", " ")
			if may := !strings.Contains(text, "has no permissions to run"); may != slices.Contains(rights.Commands, name) {
				t2.Fatalf("rules %q, command %q: the server allows it: %v (%s)", rules, name, may, text)
			}
		}
		if rights.Unread != 0 {
			t2.Fatalf("rules %q: %d are not read", rules, rights.Unread)
		}
	})
}
