package compliance

import (
	"regexp"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/chaperone-proxy/chaperone/authz"
	"github.com/chaperone-proxy/chaperone/governance/pilot"
)

// TestMermaid draws what is declared, used, unused and undeclared.
func TestMermaid(t *testing.T) {
	unused := authz.Rule{ID: "sync", To: authz.To{Hosts: []string{"db.example"}, Scheme: authz.SchemePostgres, Ports: []uint16{5432}}}
	declared := authz.Grant{Rules: []authz.Rule{rule("read"), unused}}
	trace := &pilot.Trace{Declared: []pilot.Use{{Permission: "read", Uses: 7}}, Undeclared: []pilot.Undeclared{{Scheme: "https", Host: "evil.example", Port: 443, Method: "POST", Count: 3}}}
	got := Mermaid("reader", Flows(declared, trace))
	want := `flowchart LR
  plugin["plugin reader"]
  d0["https://api.example"]
  plugin -->|"read / internal / in eu / kept 7d / with key / 7 uses"| d0
  d1["postgres://db.example:5432"]
  plugin -.->|"sync / unused"| d1
  d2["https://evil.example:443"]
  plugin ==>|"POST / UNDECLARED, 3 uses"| d2
  class d2 undeclared
  classDef undeclared stroke:#c00,stroke-width:3px
`
	if got != want {
		t.Errorf("got:\n%s\nwant:\n%s", got, want)
	}
	findings := Findings(Flows(declared, trace))
	if len(findings) != 2 || findings[0].Level != pilot.LevelNote || findings[1].Level != pilot.LevelError {
		t.Errorf("findings are %+v", findings)
	}
	for _, f := range Flows(declared, nil) {
		if f.State != StateDeclared {
			t.Errorf("without a pilot a flow is %s", f.State)
		}
	}
}

// TestMermaidEscapes draws hostile names: every line stays one of a diagram.
func TestMermaidEscapes(t *testing.T) {
	line := regexp.MustCompile("^(flowchart LR|  [a-z]+[0-9]*\\[\"[A-Za-z0-9 .,:/#;-]*\"\\]|  plugin (-->|-\\.->|==>)\\|\"[A-Za-z0-9 .,:/#;-]*\"\\| d[0-9]+|  class d[0-9]+ undeclared|  classDef undeclared stroke:#c00,stroke-width:3px)$")
	check := func(t interface{ Errorf(string, ...any) }, text string) {
		trace := &pilot.Trace{Undeclared: []pilot.Undeclared{{Scheme: text, Host: text, Port: 1, Method: text, Count: 1}}}
		out := Mermaid(text, Flows(authz.Grant{}, trace))
		for one := range strings.SplitSeq(strings.TrimSuffix(out, "\n"), "\n") {
			if !line.MatchString(one) {
				t.Errorf("%q becomes the line %q", text, one)
			}
		}
		for _, f := range Findings(Flows(authz.Grant{}, trace)) {
			if strings.ContainsAny(f.Text, "\n\x1b\u202e") {
				t.Errorf("%q becomes the finding %q", text, f.Text)
			}
		}
	}
	for _, text := range []string{
		"a\"]\nclick d0 call alert()", "```\n# heading", "<img src=x onerror=alert(1)>", "\x1b[2J", "\u202eevil", "%%{init: {}}%%", "a|b", "end", "#quot;", "a;b", "\xff\xfe", "x-->y", strings.Repeat("a", 5000),
	} {
		check(t, text)
	}
	rapid.Check(t, func(rt *rapid.T) { check(rt, rapid.String().Draw(rt, "text")) })
}
