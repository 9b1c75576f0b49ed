package policy

import (
	"slices"
	"strings"

	"github.com/chaperone-proxy/chaperone/authz"
	"github.com/chaperone-proxy/chaperone/configs"
	"github.com/chaperone-proxy/chaperone/facts/resp"
)

// Part is one list of names of what a rule grants of the content of requests.
type Part struct {
	Field  string // as in statements.verbs
	Kind   authz.FactKind
	Values []string
}

// Parts returns the lists of a rule that have names.
func Parts(c authz.Content) (out []Part) {
	for _, f := range fields() {
		if values := f.list(&c); values != nil && len(*values) > 0 {
			out = append(out, Part{f.name, f.kind, *values})
		}
	}
	return slices.DeleteFunc(append(out, databasesOf(c)), func(p Part) bool { return len(p.Values) == 0 })
}

func databasesOf(c authz.Content) Part {
	p := Part{Field: databases, Kind: authz.FactDatabase}
	for _, d := range c.Databases {
		p.Values = append(p.Values, string(d))
	}
	return p
}

// databases is the field that names databases.
const databases = "databases"

type listField struct {
	name string
	kind authz.FactKind
	list func(c *authz.Content) *[]string // nil if its parent is not there
}

func fields() []listField {
	of := func(list func(s *authz.Statements) *[]string) func(c *authz.Content) *[]string {
		return func(c *authz.Content) *[]string {
			if c.Statements == nil {
				return nil
			}
			return list(c.Statements)
		}
	}
	return []listField{
		{"statements.verbs", authz.FactVerb, of(func(s *authz.Statements) *[]string { return &s.Verbs })},
		{"statements.tables", authz.FactTable, of(func(s *authz.Statements) *[]string { return &s.Tables })},
		{"statements.functions", authz.FactFunction, of(func(s *authz.Statements) *[]string { return &s.Functions })},
		{"commands", authz.FactCommand, func(c *authz.Content) *[]string { return &c.Commands }},
		{"keys", authz.FactKey, func(c *authz.Content) *[]string { return &c.Keys }},
		{"channels", authz.FactChannel, func(c *authz.Content) *[]string { return &c.Channels }},
	}
}

// SetPart replaces a list of a rule, whose condition on content is then made again. The rule
// shares no list with others afterwards.
func SetPart(r *authz.Rule, field string, values []string) {
	if s := r.Statements; s != nil {
		own := *s
		r.Statements = &own
	}
	if field == databases {
		r.Databases = nil
		for _, v := range values {
			r.Databases = append(r.Databases, authz.DatabaseName(v))
		}
	}
	for _, f := range fields() {
		if list := f.list(&r.Content); f.name == field && list != nil {
			*list = values
		}
	}
	r.Matcher = configs.Matcher(r)
}

// Used returns the places of the values by which the part grants facts: for each fact of its
// kind, that of the most specific one.
func (p Part) Used(facts []authz.Fact) (out []int) {
	for _, f := range facts {
		if f.Kind != p.Kind {
			continue
		}
		best := -1
		for i, v := range p.Values {
			if p.grants(v, f.Name) && (best < 0 || p.rank(v) > p.rank(p.Values[best])) {
				best = i
			}
		}
		if best >= 0 && !slices.Contains(out, best) {
			out = append(out, best)
		}
	}
	return out
}

// Wild reports whether a value stands for several names.
func (p Part) Wild(value string) bool {
	return strings.HasSuffix(value, "*") || p.Kind == authz.FactCommand && p.rank(value) < exactRank
}

// grants reports whether a value of the part stands for a name.
func (p Part) grants(value, name string) bool {
	prefix, wild := strings.CutSuffix(value, "*")
	switch {
	case value == name || wild && strings.HasPrefix(name, prefix):
		return true
	case p.Kind == authz.FactCommand:
		commands, err := resp.Expand(value)
		return err == nil && slices.Contains(commands, name)
	}
	return false
}

// exactRank is above the rank of each value that stands for several names.
const exactRank = 1 << 20

// rank orders values: an exact name is more specific than a long prefix, and this more
// than a category.
func (p Part) rank(value string) int {
	switch {
	case strings.HasPrefix(value, "@") && p.Kind == authz.FactCommand:
		return -1
	case strings.HasSuffix(value, "*"):
		return len(value)
	case p.Kind == authz.FactCommand:
		if commands, err := resp.Expand(value); err == nil && len(commands) > 1 {
			return len(value)
		}
	}
	return exactRank
}
