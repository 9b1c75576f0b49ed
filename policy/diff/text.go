package diff

import (
	"cmp"
	"encoding/json"
	"fmt"
	"reflect"
	"time"

	"github.com/chaperone-proxy/chaperone/authz"
	"github.com/chaperone-proxy/chaperone/policy"
	"github.com/chaperone-proxy/chaperone/policy/prove"
)

// field is a field of a rule that people approve, as text.
type field struct {
	class Class
	path  string // below the rule
	name  string
	text  string
}

// fields returns the fields of a rule that the comparison of requests does not show as
// they are written.
func fields(g *authz.Grant, r *authz.Rule) []field {
	end := r.NotAfter
	if end.IsZero() {
		end = g.NotAfter
	}
	mode := string(cmp.Or(r.Mode, authz.ModeEnforce))
	if !r.ObserveUntil.IsZero() {
		mode += " until " + r.ObserveUntil.UTC().Format(time.RFC3339)
	}
	timeout := ""
	if r.Timeout > 0 {
		timeout = r.Timeout.String()
	}
	return []field{
		{ClassReason, "reason", "reason", r.Reason},
		{ClassCredential, "credential", "credential", r.Credential},
		{ClassData, "data", "data", text(r.Data)},
		{ClassTerms, "timeout", "timeout", timeout},
		{ClassTerms, "to.tls", "tls", text(r.To.TLS)},
		{ClassLimit, "limits", "limits", r.Limits.String()},
		{ClassLifetime, "notAfter", "notAfter", end.UTC().Format(time.RFC3339)},
		{ClassObserve, "mode", "mode", mode},
	}
}

// text returns a value of a document on one line, "" for an empty one.
func text(v any) string {
	data, err := json.Marshal(v)
	if err != nil || string(data) == "{}" || string(data) == "null" {
		return ""
	}
	return string(data)
}

// texts lists the fields that differ between rules of the same name, and between grants.
func (p *Plugin) texts(pair *policy.Pair, now time.Time) {
	sampler := prove.NewSampler(pair.After.Snapshot, prove.Options{Plugin: authz.Principal(pair.Plugin), At: now})
	earlier := map[string]*authz.Grant{}
	for i := range pair.Before.Input.Grants {
		earlier[pair.Before.Input.Grants[i].Name] = &pair.Before.Input.Grants[i]
	}
	for i := range pair.After.Input.Grants {
		g := &pair.After.Input.Grants[i]
		was := earlier[g.Name]
		if was == nil {
			continue
		}
		at := func(field string) *policy.Position { return position(&pair.After, g.Origin, field) }
		if old, is := pair.Before.Metadata(was.Origin), pair.After.Metadata(g.Origin); !reflect.DeepEqual(old, is) {
			p.Changed = append(p.Changed, Change{Class: ClassOwner, Summary: differ("labels and annotations", text(old), text(is)), Rule: g.Name, Position: at("metadata")})
		}
		if old, is := was.Limits.String(), g.Limits.String(); old != is {
			p.Changed = append(p.Changed, Change{Class: ClassLimit, Summary: differ("limits", old, is), Rule: g.Name, Position: at("spec.limits")})
		}
		p.rules(pair, sampler, was, g)
	}
}

// rules lists the fields that differ between the rules of one grant.
func (p *Plugin) rules(pair *policy.Pair, sampler *prove.Sampler, was, g *authz.Grant) {
	for j := range g.Rules {
		r := &g.Rules[j]
		for k := range was.Rules {
			if was.Rules[k].ID != r.ID {
				continue
			}
			old, now := fields(was, &was.Rules[k]), fields(g, r)
			for i, f := range now {
				if f.text == old[i].text {
					continue
				}
				c := Change{Class: f.class, Summary: differ(f.name, old[i].text, f.text), Rule: g.Name + "/" + r.ID}
				c.Position = position(&pair.After, g.Origin, fmt.Sprintf("spec.rules[%d].%s", j, f.path))
				if f, ok := sampler.Of(g.Name, r.ID); ok {
					shown := prove.Show(f, pair.Plugin, &pair.After)
					shown.Summary, shown.Old = c.Summary, nil
					c.Shown = &shown
				}
				p.Changed = append(p.Changed, c)
			}
		}
	}
}

func position(s *policy.Subject, origin authz.Origin, field string) *policy.Position {
	at, ok := s.FieldPosition(origin, field)
	if !ok {
		return nil
	}
	return &at
}

// differ returns what a field is, and what it was.
func differ(name, was, is string) string {
	return fmt.Sprintf("%s: %s, was %s", name, quoted(is), quoted(was))
}

func quoted(s string) string {
	if s == "" {
		return "not stated"
	}
	return fmt.Sprintf("%q", s)
}
