package configs

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

const minimalManifest = `
apiVersion: chaperone.dev/v1alpha1
kind: PluginManifest
metadata: {name: crm-sync}
spec:
  version: 2.4.1
  vendor: acme.example
  artifact: {kind: file, digest: "sha256:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"}
  purpose: Copies the status of orders into the CRM
  permissions:
  - {id: read, reason: Reads orders, to: {hosts: [orders.internal.example]}, methods: [GET], paths: [/v1/orders/*], data: {classes: [confidential], regions: [eu], retention: none}}
`

func TestParseObject(t *testing.T) {
	m, err := ParseObject[PluginManifest]("manifest.yaml", []byte(minimalManifest))
	if err != nil {
		t.Fatal(err)
	}
	data, err := RenderObject(m)
	if err != nil {
		t.Fatal(err)
	}
	again, err := ParseObject[PluginManifest]("manifest.dsse.json", data)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(m, again); diff != "" {
		t.Errorf("want (-), got (+):\n%s", diff)
	}
	if _, err := ParseObject[GrantSpec]("manifest.yaml", []byte(minimalManifest)); err == nil || err.Error() != "manifest.yaml:3:7: kind: is PluginManifest; write PluginGrant" {
		t.Errorf("got %v", err)
	}
	slip := strings.Replace(minimalManifest, "vendor", "vender", 1)
	if _, err := ParseObject[PluginManifest]("manifest.yaml", []byte(slip)); err == nil || !strings.Contains(err.Error(), "manifest.yaml:7:3: spec.vender: is not a field here; did you mean vendor?") {
		t.Errorf("got %v", err)
	}
	if _, err := ParseObject[PluginManifest]("two.yaml", []byte(minimalManifest+"---"+minimalManifest)); err == nil || err.Error() != "two.yaml: holds 2 documents; write one" {
		t.Errorf("got %v", err)
	}
}

// A rubric keeps points of 0, whose default is another number.
func TestRubricKeepsZero(t *testing.T) {
	const text = `{"apiVersion":"chaperone.dev/v1alpha1","kind":"RiskRubric","metadata":{"name":"r"},"spec":{"generation":3,"compliance":{"failedControl":0,"exemption":0,"staleChecklist":0}}}`
	r, err := ParseObject[RiskRubric]("rubric.json", []byte(text))
	if err != nil {
		t.Fatal(err)
	}
	want := DefaultRubric()
	want.Generation, want.Compliance = 3, CompliancePoints{}
	if diff := cmp.Diff(want, r.Spec); diff != "" {
		t.Errorf("want (-), got (+):\n%s", diff)
	}
	data, err := RenderObject(r)
	if err != nil {
		t.Fatal(err)
	}
	again, err := ParseObject[RiskRubric]("rubric.json", data)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(r, again); diff != "" {
		t.Errorf("want (-), got (+):\n%s", diff)
	}
}

func TestPercent(t *testing.T) {
	for text, want := range map[string]Percent{"10%": 1000, "99.99%": 9999, "1.5%": 150, "0.05%": 5, "1000%": 100000, "1000.99%": 100099} {
		var p Percent
		if err := p.UnmarshalText([]byte(text)); err != nil || p != want || p.String() != text {
			t.Errorf("%s: got %d %s, %v", text, p, p, err)
		}
	}
	for _, text := range []string{"", "%", "0%", "0.00%", "10", "-1%", "+1%", "01%", "1.%", "1.234%", "1001%", "1e1%", "1.x%", ".5%", "1.+1%"} {
		var p Percent
		if err := p.UnmarshalText([]byte(text)); err == nil {
			t.Errorf("%q: got %s, want an error", text, p)
		}
	}
}

// A signed grant is read where the files that it names are not.
func TestParseObjectWithoutAuthorities(t *testing.T) {
	const text = `{"apiVersion":"chaperone.dev/v1alpha1","kind":"PluginGrant","metadata":{"name":"g"},"spec":{"plugin":"weather","notAfter":"2027-01-01T00:00:00Z",
		"rules":[{"id":"read","reason":"Reads","to":{"hosts":["api.weather.example"],"tls":{"caFile":"ca.pem"}},"methods":["GET"],"paths":["/"],"credential":"token"}],
		"credentials":[{"name":"token","vault":{"path":"secret/data/x"},"inject":{"oauth2":{"tokenURL":"https://id.example/token","caFile":"ca.pem"}}}]}}`
	g, err := ParseObject[GrantSpec]("grant.json", []byte(text))
	if err != nil {
		t.Fatal(err)
	}
	if g.Spec.Rules[0].To.TLS.CA != "" || g.Spec.Credentials[0].Inject.OAuth2.CA != "" {
		t.Error("the grant has authorities that nobody read")
	}
}
