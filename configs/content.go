package configs

import (
	"slices"
	"strconv"
	"strings"

	"github.com/chaperone-proxy/chaperone/authz"
	"github.com/chaperone-proxy/chaperone/facts/sql"
	"github.com/chaperone-proxy/chaperone/internal/nearword"
)

// everyName is the pattern of every name of a list.
const everyName = "*"

// Matcher returns the condition on content that a rule states; nil for a scheme without one.
func Matcher(r *authz.Rule) *authz.Matcher {
	switch r.To.Scheme {
	case authz.SchemePostgres:
		return postgresMatcher(r.Content)
	case authz.SchemeRedis:
		return redisMatcher(r.Content)
	case authz.SchemeHTTPS, authz.SchemeHTTP, authz.SchemeTLS, authz.SchemeTCP:
	default: // the check refuses it
	}
	return nil
}

// matcherOf returns the condition on the databases of a rule and on opaque statements.
func matcherOf(protocol authz.Protocol, c authz.Content) *authz.Matcher {
	m := &authz.Matcher{Protocol: protocol, Facts: factsOf(authz.FactDatabase, databaseNames(c))}
	if c.Opaque == authz.OpaqueAllow {
		m.Facts = append(m.Facts, authz.Fact{Kind: authz.FactOpaque, Name: everyName})
	}
	return m
}

// factsOf returns names as facts of a kind, without those that no fact can have, which
// the check refuses.
func factsOf(kind authz.FactKind, names []string) []authz.Fact {
	facts := make([]authz.Fact, 0, len(names))
	for _, name := range names {
		if name != "" && len(name) <= authz.MaxFactName {
			facts = append(facts, authz.Fact{Kind: kind, Name: name})
		}
	}
	return facts
}

// contentCheck checks what a rule states of the content of requests.
type contentCheck struct {
	rule         authz.Rule
	path         string // of the rule
	report, warn reporter
}

// check reports what is wrong with the fields that grant content.
func (c contentCheck) check() {
	scheme := c.rule.To.Scheme
	if scheme == "" {
		scheme = authz.SchemeHTTPS
	}
	content := c.rule.Content
	for _, f := range []struct {
		name    string
		set     bool
		schemes []authz.Scheme
	}{
		{"databases", len(content.Databases) > 0, []authz.Scheme{authz.SchemePostgres, authz.SchemeRedis}},
		{"statements", content.Statements != nil, []authz.Scheme{authz.SchemePostgres}},
		{"opaque", content.Opaque != "", []authz.Scheme{authz.SchemePostgres, authz.SchemeRedis}},
		{"commands", len(content.Commands) > 0, []authz.Scheme{authz.SchemeRedis}},
		{"keys", len(content.Keys) > 0, []authz.Scheme{authz.SchemeRedis}},
		{"channels", len(content.Channels) > 0, []authz.Scheme{authz.SchemeRedis}},
	} {
		if f.set && !slices.Contains(f.schemes, scheme) {
			c.report(c.path+"."+f.name, "does not apply to scheme %s; remove it", clip(string(scheme)))
		}
	}
	oneOf(c.report, c.path+".opaque", content.Opaque, authz.OpaqueDeny, authz.OpaqueAllow)
	switch scheme {
	case authz.SchemePostgres:
		c.postgres()
	case authz.SchemeRedis:
		c.redis()
	case authz.SchemeHTTPS, authz.SchemeHTTP, authz.SchemeTLS, authz.SchemeTCP:
	default: // reported as no scheme
	}
}

// opaque warns of a rule that grants what its statements do not show.
func (c contentCheck) opaque(examples string) {
	if c.rule.Opaque == authz.OpaqueAllow {
		c.warn(c.path+".opaque", "allows %s, which may do whatever the role in the database may, beyond what the rule names", examples)
	}
}

// names checks a list of names, each exact or with one * at its end. wrong returns what
// is wrong with a name, without its * and whether it had one; "" if nothing is.
func (c contentCheck) names(field string, names []string, wrong func(name string, pattern bool) string) {
	for i, name := range names {
		exact, pattern := strings.CutSuffix(name, everyName)
		message := ""
		switch {
		case name == "":
			message = "is empty; write a name"
		case len(name) > authz.MaxFactName:
			message = strconv.Quote(clip(name)) + " is too long for a name; write at most " + strconv.Itoa(authz.MaxFactName) + " bytes"
		case strings.Contains(exact, everyName):
			message = strconv.Quote(clip(name)) + " has a * before its end; write an exact name, or one that ends in one *"
		case slices.Contains(names[:i], name):
			message = strconv.Quote(clip(name)) + " is given twice; write it once"
		case exact != "":
			message = wrong(exact, pattern)
		}
		if message != "" {
			c.report(at(c.path+"."+field, i), "%s", message)
		}
	}
}

// unknownWord returns the message for a word that is not among those known.
func unknownWord(word, what string, known []string) string {
	message := strconv.Quote(clip(word)) + " is not a " + what
	if lower := strings.ToLower(word); lower != word && slices.Contains(known, lower) {
		return message + "; write " + lower
	}
	if near := nearword.Suggest(word, known); near != "" {
		return message + "; did you mean " + near + "?"
	}
	const most = 12
	alike := slices.DeleteFunc(slices.Clone(known), func(k string) bool { return !strings.Contains(k, strings.TrimSuffix(word, everyName)) })
	switch {
	case len(alike) > 0 && len(alike) <= most:
		return message + "; use " + strings.Join(alike, ", ")
	case what == "verb":
		return message + "; known are " + strings.Join(known, ", ")
	}
	return message
}

// matching returns the known words that a name, or a pattern with one * at its end, stands for.
func matching(name string, known []string) (out []string) {
	prefix, pattern := strings.CutSuffix(name, everyName)
	for _, word := range known {
		if word == name || pattern && strings.HasPrefix(word, prefix) {
			out = append(out, word)
		}
	}
	return out
}

func isWriting(verb string) bool { return !sql.ReadingVerb(verb) }
