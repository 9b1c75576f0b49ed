package grantcheck

import (
	"encoding/json"
	"fmt"
	"slices"

	"github.com/chaperone-proxy/chaperone/authz"
	"github.com/chaperone-proxy/chaperone/internal/dsse"
)

// Control is a compensating control of an exemption: a rule of the grant with limits that
// it has to state at least, or a measure in words.
type Control struct {
	Rule        string       `json:"rule"`
	Limits      authz.Limits `json:"limits"`
	Description string       `json:"description"`
}

// ruleLimits is what a control demands of a rule, or of the grant as a whole.
type ruleLimits struct {
	id       string
	observes bool // the rule's own limits are recorded and not enforced
	limits   authz.Limits
}

// readRules reads the rules of a grant. Their other fields are decoded by package configs.
func (d *document) readRules() (out []ruleLimits, err error) {
	var rules []map[string]json.RawMessage
	if err := d.field("rules", &rules); err != nil {
		return nil, err
	}
	for i, fields := range rules {
		var rule ruleLimits
		var mode authz.Mode
		for name, into := range map[string]any{"id": &rule.id, "mode": &mode, "limits": &rule.limits} {
			raw, ok := fields[name]
			if !ok {
				continue
			}
			if err := dsse.Decode(raw, into); err != nil {
				return nil, fmt.Errorf("read %s: spec.rules[%d].%s: %w", d.Kind, i, name, err)
			}
		}
		rule.observes = mode == authz.ModeObserve
		out = append(out, rule)
	}
	return out, nil
}

// Unmet returns the limits that the exemption demands as its compensating controls, and that a
// grant with these rules and limits does not state.
func (e *Exemption) Unmet(rules []authz.Rule, limits authz.Limits) []Problem {
	out := make([]ruleLimits, len(rules))
	for i := range rules {
		out[i] = ruleLimits{rules[i].ID, rules[i].Mode == authz.ModeObserve, rules[i].Limits}
	}
	return e.unmet(out, limits)
}

func (e *Exemption) unmet(rules []ruleLimits, limits authz.Limits) (out []Problem) {
	report := func(field, format string, args ...any) {
		out = append(out, Problem{field, fmt.Sprintf(format, args...)})
	}
	for _, control := range e.Controls {
		if control.Rule == "" {
			continue // a measure outside of the sidecar
		}
		i := slices.IndexFunc(rules, func(r ruleLimits) bool { return r.id == control.Rule })
		if i < 0 {
			report("spec.rules", "has no rule %s, which exemption %s demands with limits as its compensating control; add it, or issue the grant without the exemption", quote(control.Rule), quote(e.Name))
			continue
		}
		rule, grant := rules[i], ruleLimits{limits: limits}
		for _, most := range control.Limits.Stated() {
			if !rule.bounds(most, control.Limits.OnExceeded) && !grant.bounds(most, control.Limits.OnExceeded) {
				report(fmt.Sprintf("spec.rules[%d].limits", i), "state %s, and exemption %s demands %s or less of rule %s as its compensating control; state that in the rule or in the grant's limits",
					rule.describe(), quote(e.Name), most, quote(control.Rule))
			}
		}
	}
	return out
}

// bounds reports whether the limits enforce one that is demanded. The limits of a whole
// grant bound each of its rules too.
func (r *ruleLimits) bounds(most authz.StatedLimit, action authz.OnExceeded) bool {
	strict := severity(r.limits.OnExceeded) >= severity(action)
	return strict && !r.observes && slices.ContainsFunc(r.limits.Stated(), func(l authz.StatedLimit) bool {
		return l.Kind == most.Kind && l.Limit.Within(most.Limit)
	})
}

func (r *ruleLimits) describe() string {
	switch text := r.limits.String(); {
	case text == "":
		return "nothing"
	case r.observes:
		return quote(text) + " in mode observe, which does not enforce them"
	default:
		return quote(text)
	}
}

// severity orders the actions on a plugin that exceeds a limit.
func severity(action authz.OnExceeded) int {
	switch action {
	case authz.OnExceededThrottle:
		return 1
	case authz.OnExceededDeny, "":
		return 2
	case authz.OnExceededStop:
		return 3
	case authz.OnExceededKill:
		return 4
	}
	return 0
}
