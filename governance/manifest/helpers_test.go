package manifest

import (
	"strings"
	"testing"

	"github.com/chaperone-proxy/chaperone/configs"
)

const goodManifest = `apiVersion: chaperone.dev/v1alpha1
kind: PluginManifest
metadata: {name: crm-sync}
spec:
  version: 2.4.1
  vendor: acme.example
  artifact: {kind: image, digest: "sha256:9f2c000000000000000000000000000000000000000000000000000000000001", purl: "pkg:oci/crm-sync@2.4.1"}
  purpose: Copies order status into the CRM
  contacts: [{name: on call, email: oncall@acme.example}]
  support: {contact: sec@acme.example, endOfSupport: 2028-06-30T00:00:00Z}
  host: {apiVersions: ">=1.4.0 <2.0.0"}
  permissions:
  - id: read-orders
    reason: Order status for the timeline
    to: {hosts: [orders.internal.example], ports: [443], tls: {min: "1.3"}}
    methods: [GET]
    paths: ["/v1/orders/*"]
    data: {classes: [confidential], retention: none}
    limits: {requests: 50/1m}
    timeout: 10s
  - id: write-crm
    reason: Writes the timeline entry
    optional: true
    to: {hosts: [eu1.crm.example], tls: {min: "1.3"}}
    methods: [POST]
    paths: ["/api/v3/timeline/**"]
    credential: crm-token
    data: {classes: [internal], retention: 30d}
  credentials:
  - {name: crm-token, kind: bearer, purpose: Writes as the service user}
  limits: {requests: 100/1m}
  sockets: [/run/app/app.sock]
  docs: {runbook: runbook.md}
  supersedes: [2.4.0]
  requires: {accounts: ">=1.2.0 <2.0.0"}
`

const goodGuardrail = `apiVersion: chaperone.dev/v1alpha1
kind: PluginGuardrail
metadata: {name: company}
spec:
  plugins: ["**"]
  never:
  - {id: metadata-service, hosts: [metadata.google.internal, "169.254.169.254"], addresses: [169.254.0.0/16, "fd00:ec2::254/128"]}
  - {id: docker, sockets: [/run/docker/**, "@**"]}
  ceilings:
    schemes: [https, postgres]
    methods: [GET, HEAD, POST]
    tlsMin: "1.3"
    wildcardHosts: single
    hostsPerGrant: 5
    limits: {requests: 1000/1m}
  rules:
  - {id: vendor, require: plugin.vendor == 'acme.example', message: the vendor is not ours}
  - {id: retention, require: p.data.retention <= duration('720h'), message: data are kept at most 30 days}
`

// manifestOf returns the good manifest with replacements, in pairs.
func manifestOf(t testing.TB, pairs ...string) *File {
	t.Helper()
	text := goodManifest
	for i := 0; i+1 < len(pairs); i += 2 {
		if !strings.Contains(text, pairs[i]) {
			t.Fatalf("the manifest has no %q", pairs[i])
		}
		text = strings.Replace(text, pairs[i], pairs[i+1], 1)
	}
	f, err := Read("manifest.yaml", []byte(text))
	if err != nil {
		t.Fatal(err)
	}
	return f
}

func guardrailOf(t testing.TB) Guardrail {
	t.Helper()
	g, err := configs.ParseObject[configs.GuardrailSpec]("guardrail.yaml", []byte(goodGuardrail))
	if err != nil {
		t.Fatal(err)
	}
	return Guardrail{Name: g.Metadata.Name, Path: "guardrail.yaml", Spec: g.Spec, Data: []byte(goodGuardrail)}
}
