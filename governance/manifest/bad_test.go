package manifest

import (
	"fmt"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"

	"github.com/chaperone-proxy/chaperone/configs"
)

// refusedBy returns why a manifest is refused, by its reading or by a check under the good guardrail; "" if it
// passes.
func refusedBy(t testing.TB, name string, data []byte, guardrail Guardrail) string {
	f, err := Read(name, data)
	if err != nil {
		return err.Error()
	}
	result := Check(t.Context(), Input{File: f, Now: testNow, Guardrails: []Guardrail{guardrail}})
	for _, finding := range result.Findings {
		if finding.Level == LevelError {
			return finding.Text()
		}
	}
	return ""
}

// TestBadManifests puts a wrong value in the place of each value of a good manifest, removes what is required, and
// attacks the readers: each is refused, with a reason.
func TestBadManifests(t *testing.T) {
	guardrail := guardrailOf(t)
	if why := refusedBy(t, "manifest.yaml", []byte(goodManifest), guardrail); why != "" {
		t.Fatalf("the good manifest is refused: %s", why)
	}
	n := 0
	bad := func(what, name string, data []byte) {
		n++
		if refusedBy(t, name, data, guardrail) == "" {
			t.Errorf("%s: accepted", what)
		}
	}
	mutated(t, bad)
	for _, b := range badText() {
		if b.old != "" && !strings.Contains(goodManifest, b.old) {
			t.Fatalf("the manifest has no %q", b.old)
		}
		bad(b.new, "manifest.yaml", []byte(strings.Replace(goodManifest, b.old, b.new, 1)))
	}
	for what, data := range badBytes() {
		bad(what, "manifest.yaml", []byte(data))
		bad(what+" as JSON", "manifest.json", []byte(data))
	}
	t.Logf("%d bad manifests, each refused", n)
	const least = 300
	if n < least {
		t.Errorf("%d bad manifests; at least %d are tried", n, least)
	}
}

// mutated replaces each value of the good manifest by values of other types.
func mutated(t *testing.T, bad func(what, name string, data []byte)) {
	var root yaml.Node
	if err := yaml.Unmarshal([]byte(goodManifest), &root); err != nil {
		t.Fatal(err)
	}
	try := func(what string) {
		data, err := yaml.Marshal(&root)
		if err != nil {
			t.Fatal(err)
		}
		bad(what, "manifest.yaml", data)
	}
	var walk func(n *yaml.Node, path string)
	walk = func(n *yaml.Node, path string) {
		was := *n
		for what, text := range map[string]string{"a mapping": "{evil: 1}", "nested lists": "[[[1]]]", "nothing": "null", "an unknown field": "{apiVersion: a, evil: [b]}"} {
			if strings.HasSuffix(path, ".requires") && what == "a mapping" {
				continue
			}
			var doc yaml.Node
			if err := yaml.Unmarshal([]byte(text), &doc); err != nil {
				t.Fatal(err)
			}
			*n = *doc.Content[0]
			try(path + " is " + what)
		}
		*n = was
		if n.Kind == yaml.MappingNode {
			n.Content = append(n.Content, &yaml.Node{Kind: yaml.ScalarNode, Value: "evil"}, &yaml.Node{Kind: yaml.ScalarNode, Value: "yes"})
			try(path + " has a field evil")
			n.Content = was.Content
			for i := 0; i+1 < len(n.Content); i += 2 {
				n.Content = append(n.Content[:len(was.Content):len(was.Content)], was.Content[i], was.Content[i+1])
				try(path + " has " + was.Content[i].Value + " twice")
				n.Content = was.Content
				walk(n.Content[i+1], path+"."+n.Content[i].Value)
			}
		}
		if n.Kind == yaml.SequenceNode {
			for i, item := range n.Content {
				walk(item, fmt.Sprintf("%s[%d]", path, i))
			}
		}
	}
	walk(root.Content[0], "")
}

type replacement struct{ old, new string }

// badText returns replacements in the text of the good manifest, each of which makes it wrong.
func badText() (out []replacement) {
	each := func(old string, news ...string) {
		for _, n := range news {
			out = append(out, replacement{old, n})
		}
	}
	for _, field := range []string{"  version: 2.4.1\n", "  vendor: acme.example\n", "  purpose: Copies order status into the CRM\n", "  - id: read-orders\n", "    reason: Writes the timeline entry\n", "    methods: [POST]\n", "metadata: {name: crm-sync}\n", "kind: PluginManifest\n", "apiVersion: chaperone.dev/v1alpha1\n", `    paths: ["/api/v3/timeline/**"]` + "\n"} {
		each(field, strings.Repeat(" ", len(field)-len(strings.TrimLeft(field, " ")))+"# "+strings.TrimLeft(field, " "))
	}
	each("version: 2.4.1", `version: "2"`, `version: "2.4"`, "version: v2.4.1", "version: 02.4.1", "version: 2.4.1.0", "version: 2.4.1-", "version: 2.4.1-01", "version: 2.4.x", `version: " 2.4.1"`, `version: ""`, "version: latest", "version: 2.4.1+a+b", "version: 2.4.-1", "version: "+strings.Repeat("9", 200)+".0.0", "version: 99999999999999999999.0.0")
	each("name: crm-sync", "name: CRM", "name: ../crm", "name: crm sync", `name: ""`, "name: crm/sync", "name: -crm", `name: "crm\n"`, "name: crm\u0430")
	each("kind: PluginManifest", "kind: PluginGrant", "kind: Manifest", "kind: pluginmanifest")
	each("chaperone.dev/v1alpha1", "chaperone.dev/v1", "v1")
	each(`"sha256:9f2c000000000000000000000000000000000000000000000000000000000001"`, "latest", `"sha256:"`, `"sha256:9F2C000000000000000000000000000000000000000000000000000000000001"`, `"sha1:9f2c000000000000000000000000000000000001"`, `"md5:1"`, `"`+noDigest+`"`)
	each("kind: image", "kind: script", "kind: ''")
	each("hosts: [eu1.crm.example]",
		`hosts: ["*"]`, `hosts: ["**"]`, `hosts: ["**.crm.example"]`, "hosts: []", `hosts: ["eu1.crm.example:443"]`, `hosts: ["https://eu1.crm.example"]`, `hosts: ["user@eu1.crm.example"]`,
		"hosts: [metadata.google.internal]", "hosts: [METADATA.google.internal]", "hosts: [metadata.google.internal.]", `hosts: ["169.254.169.254"]`, `hosts: ["0xa9fea9fe"]`, `hosts: ["2852039166"]`,
		`hosts: ["0251.0376.0251.0376"]`, `hosts: ["[::ffff:169.254.169.254]"]`, `hosts: ["::ffff:169.254.169.254"]`, `hosts: ["0.0.0.0"]`, `hosts: ["255.255.255.255"]`, `hosts: ["224.0.0.1"]`,
		`hosts: ["*.google.internal"]`, `hosts: ["e*1.crm.example"]`, `hosts: [a.example, b.example, c.example, d.example, e.example, f.example]`, `hosts: [EU1.crm.example]`,
		`hosts: ["eu1..crm.example"]`, `hosts: ["eu1 .crm.example"]`, `hosts: ["eu1.crm.example/"]`, `hosts: ["eu1.crm.example#"]`, `hosts: ["*.*.example"]`, `hosts: ["eu1.crm.example%00"]`)
	each("ports: [443]", "ports: [0]", "ports: [65536]", "ports: [-1]", "ports: [443, 443]", `ports: ["443"]`, "ports: [0x1bb]", "scheme: tcp", "scheme: ftp", "scheme: http", "scheme: tls", "scheme: HTTPS", "scheme: mysql", "addresses: [169.254.169.254/32]", "addresses: [169.254.0.0/17, 169.254.128.0/17]", "addresses: [10.0.0.1/8]", "addresses: [everything]")
	each(`tls: {min: "1.3"}}`, `tls: {min: "1.2"}}`, `tls: {min: "1.1"}}`, `tls: {min: TLS1.3}}`, "tls: {}}")
	each("methods: [POST]", "methods: [PUT]", "methods: [DELETE]", "methods: [post]", "methods: [TRACE]", `methods: ["*"]`, `methods: [POST, "*"]`, `methods: ["POST, GET"]`, "methods: []", `methods: ["P OST"]`, `methods: ["POST\r\nX: y"]`)
	each(`paths: ["/api/v3/timeline/**"]`, `paths: ["api"]`, `paths: ["/api/../admin"]`, `paths: ["/api//x"]`, `paths: ["/api/%2e%2e/x"]`, `paths: ["/api/**/x"]`, `paths: ["/api/a*"]`, `paths: ["/api/%2Fx"]`, `paths: ["/api?x=1"]`, `paths: ["/api#x"]`, `paths: ["/api\\x"]`, `paths: ["/api/%zz"]`, `paths: ["/api;v=1"]`, `paths: []`, `paths: [""]`)
	each("credential: crm-token", "credential: secret/data/crm", "credential: other", "credential: CRM", `credential: "{{ token }}"`, "credential: crm-token\n    insecure: true", "credential: crm-token\n    wildcardCredential: true")
	each("{name: crm-token, kind: bearer, purpose: Writes as the service user}", "{name: crm-token, kind: root, purpose: p}", "{name: crm-token, kind: bearer}", "{name: crm-token, kind: bearer, purpose: TODO}", "{name: crm-token, kind: bearer, purpose: p, vault: {path: secret/a}}", "{name: crm-token, kind: bearer, purpose: p, value: hunter2}", "{name: a/b, kind: bearer, purpose: p}", "{name: crm-token, kind: database, purpose: p}")
	each("reason: Writes the timeline entry", "reason: TODO", `reason: "  "`, "reason: todo!", "reason: TODO:", `reason: as AKIAIOSFODNN7EXAMPLE`, "reason: ghp_abcdefghijklmnopqrstuvwxyz0123456789", "reason: glpat-abcdefghijklmnopqrst", "reason: xoxb-123456789012-abcdef", "reason: hvs.abcdefghijklmnopqrstuvwx", "reason: AIzaSyA1234567890abcdefghijklmnopqrstuvw", "reason: eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0In0.abcdefghijkl", `reason: "-----BEGIN RSA PRIVATE KEY-----"`, "reason: postgres://app:hunter2@db.example/x", `reason: "Bearer abcdefghijklmnopqrstuvwxyz0123"`, "reason: sk-ant-abcdefghijklmnopqrstuvwxyz0123456789", "reason: npm_abcdefghijklmnopqrstuvwxyz0123456789", "reason: AGE-SECRET-KEY-1QQQQQQQQQQQQQQQQQQQQQQQQQQQQQQQQQQQQQQQQQQQQQQQQQQ")
	each("classes: [internal]", "classes: [secret]", "classes: [Internal]", "regions: [eu]", "regions: [EU!]")
	each("retention: 30d", "retention: 31d", "retention: forever", "retention: 0", "retention: -1d")
	each("  limits: {requests: 100/1m}\n  sockets", "  sockets", "  limits: {requests: 1001/1m}\n  sockets", "  limits: {requests: 0/1m}\n  sockets", "  limits: {requests: many}\n  sockets", "  limits: {connections: 1/1m}\n  sockets")
	each("sockets: [/run/app/app.sock]", "sockets: [/run/docker/docker.sock]", "sockets: [run/app.sock]", `sockets: ["@app"]`, "sockets: [/run/../run/docker/docker.sock]", "sockets: [/run/app/app.sock, /run/app/app.sock]")
	each("runbook: runbook.md", "runbook: ../runbook.md", "runbook: /etc/passwd", `runbook: "sha256:1"`, "runbook: a/../b", "runbook: .")
	each("supersedes: [2.4.0]", "supersedes: [2.4.1]", "supersedes: [3.0.0]", "supersedes: [old]", `supersedes: ["2.4"]`)
	each(`requires: {accounts: ">=1.2.0 <2.0.0"}`, "requires: {crm-sync: '>1'}", "requires: {Accounts: '>1'}", "requires: {accounts: new}", `requires: {accounts: ""}`, "requires: {../x: '>1'}")
	each(`apiVersions: ">=1.4.0 <2.0.0"`, "apiVersions: newest", `apiVersions: ">=1.4.0 <<2.0.0"`)
	each("vendor: acme.example", "vendor: TODO", "vendor: evil.example")
	each("purpose: Copies order status into the CRM", "purpose: TODO", `purpose: ""`, "purpose: todo.")
	for _, hidden := range []string{"\\u202e", "\\u2066", "\\u200b", "\\u009b31m", "\\u001b[2J", "\\u0085", "\\u2028", "\\0"} {
		each("purpose: Copies order status into the CRM", `purpose: "Copies `+hidden+`status"`)
		each("reason: Writes the timeline entry", `reason: "Writes `+hidden+`entry"`)
		each("vendor: acme.example", `vendor: "acme`+hidden+`.example"`)
		each("purpose: Writes as the service user", `purpose: "as `+hidden+`user"`)
		each("contact: sec@acme.example", `contact: "sec`+hidden+`@acme.example"`, `contact: sec@acme.example, migration: "a`+hidden+`b"`)
	}
	each("email: oncall@acme.example", "email: oncall", `email: "a@b\ncc: c@d"`, `webhook: "http://hooks.acme.example/"`, `webhook: "https://user:secret@hooks.acme.example/"`, `webhook: "javascript:alert(1)"`, "email: ''")
	each("pkg:oci/crm-sync@2.4.1", "crm-sync", "pkg:oci")
	each("id: write-crm", "id: read-orders", "id: Write", "id: a/b", `id: ""`)
	each("endOfSupport: 2028-06-30T00:00:00Z", "endOfSupport: 2020-01-01T00:00:00Z", "endOfSupport: tomorrow", "endOfSupport: 2028-06-30")
	each("optional: true", "optional: yes", "optional: 1", "mode: observe", "mode: enforce\n    observeUntil: 2027-01-01T00:00:00Z", "mode: off", "upgrades: [connect-udp]", "encodedSlash: maybe", "timeout: fast", "notAfter: never", "databases: [shop]", "commands: [get]", "keys: ['*']", "opaque: allow", "statements: {verbs: [select]}")
	return out
}

// badBytes returns whole files that readers of YAML or JSON have had trouble with.
func badBytes() map[string]string {
	return map[string]string{
		"nothing":             "",
		"a comment":           "# none\n",
		"a list":              "- a\n",
		"a text":              "hello",
		"null":                "null",
		"a number":            "1",
		"two documents":       goodManifest + "---\n" + goodManifest,
		"an alias":            strings.Replace(goodManifest, "vendor: acme.example", "vendor: &v acme.example", 1),
		"a bomb":              "a: &a [x,x]\nb: &b [*a,*a]\nc: &c [*b,*b]\n" + goodManifest,
		"a merge key":         strings.Replace(goodManifest, "metadata: {name: crm-sync}", "metadata:\n  <<: {name: crm-sync}", 1),
		"a tag":               strings.Replace(goodManifest, "version: 2.4.1", "version: !!str 2.4.1", 1),
		"a custom tag":        strings.Replace(goodManifest, "version: 2.4.1", "version: !evil 2.4.1", 1),
		"a directive":         "%YAML 1.1\n---\n" + goodManifest,
		"a complex key":       "? a\n: b\n" + goodManifest,
		"deep lists":          goodManifest + "x: " + strings.Repeat("[", 5000) + strings.Repeat("]", 5000),
		"deep mappings":       strings.Repeat("{a: ", 5000) + "1" + strings.Repeat("}", 5000),
		"deep JSON":           strings.Repeat(`{"a":`, 5000) + "1" + strings.Repeat("}", 5000),
		"unclosed":            "{",
		"unclosed text":       `{"apiVersion": "`,
		"a control character": strings.Replace(goodManifest, "acme.example", "acme\x1b[31m.example", 1),
		"a NUL":               goodManifest + "\x00",
		"not UTF-8":           strings.Replace(goodManifest, "acme.example", "acme\xff.example", 1),
		"a line separator":    strings.Replace(goodManifest, "acme.example", "acme\u2028.example", 1),
		"tabs":                strings.Replace(goodManifest, "  version", "\tversion", 1),
		"too large":           goodManifest + "# " + strings.Repeat("x", 1<<20),
		"empty lines":         goodManifest + "x: |\n" + strings.Repeat("\n", 100_000),
		"too many fields":     goodManifest + strings.Repeat("  a: b\n", 100_000),
		"JSON, name twice":    `{"apiVersion":"chaperone.dev/v1alpha1","kind":"PluginManifest","kind":"PluginManifest","metadata":{"name":"a"},"spec":{}}`,
		"JSON, more behind":   `{"apiVersion":"chaperone.dev/v1alpha1","kind":"PluginManifest","metadata":{"name":"a"},"spec":{}} {}`,
		"JSON, NaN":           `{"apiVersion":"chaperone.dev/v1alpha1","kind":"PluginManifest","metadata":{"name":"a"},"spec":{"version":NaN}}`,
		"JSON, a comment":     `{"apiVersion":"chaperone.dev/v1alpha1", /* a */ "kind":"PluginManifest"}`,
		"JSON, another case":  `{"ApiVersion":"chaperone.dev/v1alpha1","Kind":"PluginManifest","Metadata":{"name":"a"},"Spec":{}}`,
		"JSON, a surrogate":   `{"apiVersion":"chaperone.dev/v1alpha1","kind":"PluginManifest","metadata":{"name":"\ud800"},"spec":{}}`,
		"a grant":             "apiVersion: chaperone.dev/v1alpha1\nkind: PluginGrant\nmetadata: {name: a}\nspec: {plugin: a}\n",
		"a guardrail":         goodGuardrail,
	}
}

// TestBadImports: what is not a file of a format is refused, and nothing that it holds reaches an error unescaped.
func TestBadImports(t *testing.T) {
	files := map[string]string{
		"nothing": "", "a list": "[]", "a text": "x", "null": "null", "unclosed": "{", "an empty mapping": "{}", "an alias": "a: &a {}\nb: *a\n", "a bomb": "a: &a [x,x]\nb: &b [*a,*a]\nc: [*b,*b]\n",
		"a merge key": "a:\n  <<: {b: c}\n", "a tag": "a: !!binary eA==\n", "two documents": "a: b\n---\na: b\n", "a name twice": "{\"a\": 1, \"a\": 2}", "a name twice in YAML": "a: 1\na: 2\n",
		"deep lists": "a: " + strings.Repeat("[", 20000), "deep JSON": strings.Repeat(`{"a":`, 20000), "deep and closed": strings.Repeat(`{"a":`, 200) + "1" + strings.Repeat("}", 200), "not UTF-8": "a: \xff", "a control character": "{\"a\": \"\x1b[31m\"}", "more behind": "{} {}", "another format": `{"foo": {"bar": 1}}`,
		"too large": "{\"a\": \"" + strings.Repeat("x", maxImport) + "\"}",
	}
	n := 0
	for _, format := range append(Formats(), "helm") {
		for what, data := range files {
			n++
			d, err := Import(format, "file", []byte(data))
			if err == nil {
				t.Errorf("%s: %s: accepted: %+v", format, what, d)
				continue
			}
			if text := err.Error(); strings.ContainsAny(text, "\x1b\n") || len(text) > 4*maxText {
				t.Errorf("%s: %s: error is %q", format, what, text)
			}
		}
	}
	t.Logf("%d bad imports, each refused", n)
}

func TestBadGuardrailRules(t *testing.T) {
	g := guardrailOf(t)
	g.Spec.Rules = append(g.Spec.Rules, configs.GovernanceRule{ID: "bad", Require: "p.nothing", Message: "m"})
	if why := refusedBy(t, "manifest.yaml", []byte(goodManifest), g); !strings.Contains(why, "undefined field 'nothing'") {
		t.Errorf("a guardrail with a wrong rule: %q", why)
	}
}
