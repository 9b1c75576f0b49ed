package governance

import (
	"fmt"
	"slices"
	"strings"

	"github.com/chaperone-proxy/chaperone/configs"
	"github.com/chaperone-proxy/chaperone/governance/grantcheck"
	"github.com/chaperone-proxy/chaperone/internal/dsse"
)

// NewExemption returns an exemption and its bytes to sign. It is refused for a never-list,
// and for a ceiling or a condition that no guardrail of the plugin states: it would be signed
// for nothing, or for a later guardrail that nobody has read.
func (r *Repository) NewExemption(name string, spec configs.GrantExemption) (Document, error) {
	all := r.guardrailsOf(spec.Scope.Plugin)
	rule := spec.GuardrailRule
	for i := range all {
		for _, never := range all[i].Never {
			if rule == never.ID || rule == "never."+never.ID || rule == "never/"+never.ID {
				return Document{}, fmt.Errorf("exempt %s: %s is of a never-list of guardrail %s, and no exemption passes that", spec.Scope.Plugin, rule, all[i].Name)
			}
		}
	}
	if strings.HasPrefix(rule, "never") {
		return Document{}, fmt.Errorf("exempt %s: no exemption passes a never-list", spec.Scope.Plugin)
	}
	if !exemptible(all, rule) {
		return Document{}, fmt.Errorf("exempt %s: no guardrail of it states %q; name a ceiling as in ceilings.tlsMin, the id of a rule as in rules.read-only, or %s", spec.Scope.Plugin, rule, grantcheck.SeverityRule)
	}
	payload, err := configs.RenderObject(&configs.Object[configs.GrantExemption]{Metadata: configs.Metadata{Name: name}, Spec: spec})
	if err != nil {
		return Document{}, err
	}
	if payload, err = canonicalExemption(name+".json", payload); err != nil {
		return Document{}, err
	}
	return Document{dsse.KindExemption, payload}, nil
}

// exemptible reports whether a guardrail states the ceiling or the condition.
func exemptible(all []Guardrail, rule string) bool {
	if rule == grantcheck.SeverityRule {
		return true
	}
	id, isRule := strings.CutPrefix(rule, "rules.")
	_, isCeiling := strings.CutPrefix(rule, "ceilings.")
	return slices.ContainsFunc(all, func(g Guardrail) bool {
		return isCeiling || isRule && slices.ContainsFunc(g.Rules, func(one configs.GovernanceRule) bool { return one.ID == id })
	})
}
