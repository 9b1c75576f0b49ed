package sidecar

import (
	"fmt"
	"reflect"
	"slices"

	"github.com/chaperone-proxy/chaperone/authz"
	"github.com/chaperone-proxy/chaperone/configs"
)

// describeChanges describes what a reload changes, rule by rule, and which
// fields of the Sidecar wait for a restart, whichever reload read them first.
func describeChanges(running configs.Sidecar, old, next *configs.Config) []string {
	out := diff("rule", rules(old.Grants), rules(next.Grants))
	out = append(out, diff("grant", grants(old.Grants), grants(next.Grants))...)
	out = append(out, diff("guardrail", guardrails(old.Guardrails), guardrails(next.Guardrails))...)
	if pending := pendingText(restartFields(running, next.Sidecar)); pending != "" {
		out = append(out, pending)
	}
	if len(out) == 0 {
		return []string{"nothing changed"}
	}
	return out
}

// diff compares named values.
func diff(what string, old, next map[string]any) []string {
	var out []string
	for name, value := range next {
		switch before, ok := old[name]; {
		case !ok:
			out = append(out, fmt.Sprintf("%s %s added", what, name))
		case !reflect.DeepEqual(before, value):
			out = append(out, fmt.Sprintf("%s %s changed", what, name))
		}
	}
	for name := range old {
		if _, ok := next[name]; !ok {
			out = append(out, fmt.Sprintf("%s %s removed", what, name))
		}
	}
	slices.Sort(out)
	return out
}

func rules(all []authz.Grant) map[string]any {
	out := map[string]any{}
	for _, g := range all {
		for _, r := range g.Rules {
			out[g.Name+"/"+r.ID] = r
		}
	}
	return out
}

// grants leaves the rules out: they are compared by themselves.
func grants(all []authz.Grant) map[string]any {
	out := map[string]any{}
	for _, g := range all {
		g.Rules, g.Origin = nil, ""
		out[g.Name] = g
	}
	return out
}

func guardrails(all []authz.Guardrail) map[string]any {
	out := map[string]any{}
	for _, g := range all {
		g.Origin = ""
		out[g.Name] = g
	}
	return out
}
