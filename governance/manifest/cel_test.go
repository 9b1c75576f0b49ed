package manifest

import (
	"strings"
	"testing"

	"github.com/chaperone-proxy/chaperone/configs"
)

func ruleOf(require string) []configs.GovernanceRule {
	return []configs.GovernanceRule{{ID: "r", Require: require, Message: "m"}}
}

func TestCompileRulesRefuses(t *testing.T) {
	deep := strings.Repeat("(", 200) + "true" + strings.Repeat(")", 200)
	for name, test := range map[string]struct{ text, want string }{
		"empty":                 {" ", "is empty"},
		"syntax":                {"p.id ==", "does not compile"},
		"unknown variable":      {"q.id == 'a'", "undeclared reference to 'q'"},
		"unknown field":         {"p.egress.hosts.all(h, true)", "undefined field 'egress'"},
		"misspelt field":        {"p.to.host == 'a'", "undefined field 'host'"},
		"unknown function":      {"p.id.reverse() == 'a'", "undeclared reference to 'reverse'"},
		"not a condition":       {"p.methods", "is of type list(string)"},
		"text":                  {"p.id", "is of type string"},
		"wrong types":           {"p.id == 1", "found no matching overload"},
		"macro map":             {"p.methods.map(m, m + m).size() > 0", "undeclared reference to 'map'"},
		"macro filter":          {"p.methods.filter(m, true).size() > 0", "undeclared reference to 'filter'"},
		"too many nested lists": {"plugin.permissions.all(a, plugin.permissions.all(b, plugin.permissions.all(c, a.id != b.id || c.id == a.id)))", "may cost"},
		"cost of four lists":    {"p.methods.all(a, p.paths.all(b, p.to.hosts.all(c, p.upgrades.all(d, a+b+c+d != ''))))", "may cost"},
		"too long":              {"p.id == '" + strings.Repeat("a", maxExpression) + "'", "does not compile"},
		"too deep":              {deep, "does not compile"},
		"a large regexp":        {"p.id.matches('(a{1,100}){1,100}')", "does not compile"},
		"an invalid regexp":     {"p.id.matches('(')", ""},
		"a wrong duration":      {"p.data.retention < duration('soon')", ""},
	} {
		_, errs := CompileRules(ruleOf(test.text))
		if len(errs) == 0 {
			if test.want == "" {
				// It is found when it is evaluated, and denies then.
				compiled, _ := CompileRules(ruleOf(test.text))
				if got := compiled.evaluate(t.Context(), view(t)); len(got) == 0 || got[0].failure == "" {
					t.Errorf("%s: holds", name)
				}
				continue
			}
			t.Errorf("%s: compiles", name)
			continue
		}
		if !strings.Contains(errs[0].Message, test.want) || errs[0].Path() != "spec.rules[0].require" || strings.Contains(errs[0].Message, "\n") {
			t.Errorf("%s: %s: %s, want %q", name, errs[0].Path(), errs[0].Message, test.want)
		}
	}
	_, errs := CompileRules([]configs.GovernanceRule{{ID: "a", When: "p.x", Require: "true"}, {ID: "b", Require: "1"}})
	if len(errs) != 2 || errs[0].Path() != "spec.rules[0].when" || errs[1].Path() != "spec.rules[1].require" {
		t.Errorf("errors are %+v; all are reported at once", errs)
	}
}

func view(t testing.TB) *celPlugin {
	t.Helper()
	f, err := Read("manifest.yaml", []byte(goodManifest))
	if err != nil {
		t.Fatal(err)
	}
	return viewPlugin(f.Plugin, &f.Spec)
}

func TestEvaluate(t *testing.T) {
	for text, want := range map[string]bool{
		// The defaults are those that are enforced.
		"p.to.scheme == 'https' && p.to.ports == [443] && p.to.tls.min >= '1.2'":                  true,
		"p.encodedSlash == 'refuse' && p.opaque == 'deny'":                                        true,
		"p.limits.connections.count == 0 && p.limits.connections.period == duration('0s')":        true,
		"plugin.limits.requests.count == 100 && plugin.limits.requests.period == duration('60s')": true,
		"plugin.name == 'crm-sync' && plugin.version == '2.4.1'":                                  true,
		"plugin.permissions.exists(q, q.id == 'write-crm')":                                       true,
		"plugin.permissions.exists_one(q, q.credential != '')":                                    true,
		"plugin.credentials.all(c, c.kind != 'basic')":                                            true,
		"plugin.docs.runbook.startsWith('sha256:')":                                               false,
		"plugin.support.endOfSupport > timestamp('2026-01-01T00:00:00Z')":                         true,
		"p.data.retention <= duration('720h')":                                                    true,
		"p.reason.matches('^[A-Z]')":                                                              true,
		"has(p.to) && size(p.to.hosts) == 1":                                                      true,
		"plugin.requires.all(k, plugin.requires[k] != '')":                                        true,
		"false":                false,
		"p.methods == []":      false,
		"p.to.hosts[5] == 'a'": false, // an error denies
	} {
		compiled, errs := CompileRules(ruleOf(text))
		if len(errs) > 0 {
			t.Errorf("%s: %s", text, errs[0].Message)
			continue
		}
		if got := len(compiled.evaluate(t.Context(), view(t))) == 0; got != want {
			t.Errorf("%s: holds %t, want %t", text, got, want)
		}
	}
}

// A condition that the estimate of its cost allowed is stopped by its bound on a manifest that is larger than the estimate assumes.
func TestEvaluateCostBound(t *testing.T) {
	plugin := view(t)
	for range 9 {
		plugin.Permissions = append(plugin.Permissions, plugin.Permissions...)
	}
	compiled, errs := CompileRules(ruleOf("plugin.permissions.all(a, plugin.permissions.all(b, a.optional == a.optional))"))
	if len(errs) > 0 {
		t.Fatal(errs[0].Message)
	}
	got := compiled.evaluate(t.Context(), plugin)
	if len(got) != 1 || got[0].permission != -1 || !strings.Contains(got[0].failure, "limit exceeded") {
		t.Errorf("violations are %+v; the cost of %d permissions is beyond the bound", got, len(plugin.Permissions))
	}
}

// A condition with when is asked only if it applies, and one that does not name p once.
func TestEvaluateOnce(t *testing.T) {
	compiled, errs := CompileRules([]configs.GovernanceRule{
		{ID: "never-applies", When: "p.id == 'nobody'", Require: "false", Message: "m"},
		{ID: "whole", Require: "plugin.name == ''", Message: "m"},
		{ID: "each", Require: "p.id == ''", Message: "m"},
		{ID: "when-fails", When: "p.to.hosts[9] == ''", Require: "true", Message: "m"},
	})
	if len(errs) > 0 {
		t.Fatal(errs[0].Message)
	}
	var got []string
	for _, v := range compiled.evaluate(t.Context(), view(t)) {
		got = append(got, v.rule.ID)
	}
	if want := "whole each each when-fails when-fails"; strings.Join(got, " ") != want {
		t.Errorf("violations are %v, want %s", got, want)
	}
}
