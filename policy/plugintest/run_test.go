package plugintest

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/chaperone-proxy/chaperone/configs"
	"github.com/chaperone-proxy/chaperone/policy"
)

// write makes a folder of files.
func write(t testing.TB, files map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	for name, text := range files {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

const grantFile = `apiVersion: chaperone.dev/v1alpha1
kind: PluginGrant
metadata: {name: g}
spec:
  plugin: p
  notAfter: 2027-01-01T00:00:00Z
  rules:
  - {id: read, reason: Reads, to: {hosts: [api.example]}, methods: [GET, HEAD], paths: ["/v1/*"], credential: key}
  - {id: db, reason: Reads, to: {scheme: tcp, hosts: [db.example, 10.0.0.7], ports: [5432], addresses: [10.0.0.0/8]}}
  - {id: live, reason: Streams, to: {hosts: [live.example]}, methods: [GET], paths: ["/**"], upgrades: [websocket], timeout: 10s}
  credentials:
  - {name: key, vault: {path: secret/data/key}, inject: {header: Authorization, value: "Bearer {key}"}}
`

// testFile returns a PluginTest with one expectation a line, from line 7 on.
func testFile(spec string, expectations ...string) string {
	return "apiVersion: chaperone.dev/v1alpha1\nkind: PluginTest\nmetadata: {name: t}\nspec:\n  " + spec +
		"\n  expect:\n  - " + strings.Join(expectations, "\n  - ") + "\n"
}

// TestRun tests single expectations.
func TestRun(t *testing.T) {
	const grants = "grants: [g.yaml]"
	const guarded, observing = grants + "\n  guardrails: [company.yaml]", grants + "\n  mode: observe\n  observeUntil: 2026-12-02T00:00:00Z"
	tests := []struct{ spec, expect, want string }{
		{grants, `{allow: GET https://api.example/v1/a}`, ""},
		{grants, `{allow: GET https://api.example/v1/a, rule: g/read, credential: key, reason: granted}`, ""},
		{grants, `{allow: GET https://api.example/v1/a, rule: g/db}`, "allowed: granted by g/read with key"},
		{grants, `{allow: GET https://api.example/v1/a, credential: ""}`, "allowed: granted by g/read with key"},
		{grants, `{allow: GET https://api.example/v1/a, credential: other}`, "allowed: granted by g/read with key"},
		{grants, `{allow: GET https://api.example/v1/a, reason: observed}`, "allowed: granted by g/read with key"},
		{grants, `{allow: POST https://api.example/v1/a}`, "denied: method_not_granted"},
		{grants, `{allow: GET https://api.example/v1/a, at: 2027-01-01T00:00:00Z}`, "denied: grant_expired"},
		{grants, `{allow: GET https://api.example/v1/a, address: 93.184.215.14}`, ""},
		{grants, `{allow: GET https://api.example/v1/a, address: 10.0.0.1}`, "denied: address_not_allowed"},
		{grants, `{allow: GET https://api.example/v1/a, door: ext_authz}`, ""},
		{grants, `{allow: GET https://api.example/v1/a, door: ext_authz_plain}`, "denied: not_enforceable_here"},
		{grants, `{allow: GET https://live.example/, door: envoy, upgrade: websocket}`, ""},
		{grants, `{allow: GET https://live.example/, door: ext_authz}`, "denied: not_enforceable_here"},
		{grants, `{allow: "tcp://db.example:5432", address: 10.1.2.3}`, ""},
		{grants, `{allow: "tcp://10.0.0.7:5432"}`, ""},
		{grants, `{allow: "CONNECT tcp://10.0.0.7:5432", address: 10.0.0.8}`, "denied: address_not_allowed"},
		{grants, `{allow: GET https://api.example/v1/../a}`, "denied: malformed_request"},
		{grants, `{deny: GET https://api.example/v1/../a, reason: malformed_request}`, ""},
		{grants, `{deny: GET https://api.example/v1/a}`, "allowed: granted by g/read with key"},
		{grants, `{deny: POST https://api.example/v1/a, reason: method_not_granted, nearest: g/read}`, ""},
		{grants, `{deny: POST https://api.example/v1/a, nearest: g/live}`, "denied: method_not_granted"},
		{grants, `{deny: POST https://api.example/v1/a, reason: path_not_granted}`, "denied: method_not_granted"},
		{grants, `{deny: GET https://api.example/v1/a, address: 10.0.0.1, reason: address_not_allowed}`, ""},
		{grants, `{deny: GET https://api.example/v1/a, address: 93.184.215.14, reason: address_not_allowed}`, "allowed: granted by g/read with key"},
		{guarded, `{deny: "tcp://10.0.0.7:5432", reason: guardrail}`, ""},
		{guarded, `{deny: "tcp://db.example:5432", address: 10.0.0.7, reason: guardrail}`, ""},
		{guarded, `{allow: "tcp://db.example:5432", address: 10.0.0.8}`, ""},
		{observing, `{allow: GET https://other.example/}`, "allowed: observed without a credential"},
		{observing, `{allow: GET https://other.example/, reason: observed, credential: ""}`, ""},
		{observing, `{allow: GET https://other.example/, reason: observed, at: 2026-12-02T00:00:00Z}`, "denied: destination_not_granted"},
		{observing, `{deny: GET https://10.0.0.1/, reason: address_not_allowed}`, ""},
		{grants, `{never: "* https://api.example/v2/**"}`, ""},
		{grants, `{never: "POST,PUT https://api.example/**"}`, ""},
		{grants, `{never: "GET https://*.example/v1/**"}`, "GET https://api.example/v1/any2: granted by g/read with key"},
		{guarded, `{never: "* *://10.0.0.7"}`, ""},
		{grants, `{never: "* *://10.0.0.7"}`, "CONNECT tcp://10.0.0.7:5432: granted by g/db"},
		{grants, `{never: "* *://10.0.0.9"}`, "CONNECT tcp://db.example:5432: granted by g/db"},
		{grants, `{atMost: g.yaml}`, ""},
		{grants, `{atMost: less.yaml}`, "GET https://api.example/v1/any2: granted by g/read with key"},
		{grants, `{atMost: less.yaml, at: 2027-01-01T00:00:00Z}`, ""},
	}
	dir := write(t, map[string]string{
		"g.yaml":    grantFile,
		"less.yaml": strings.Replace(grantFile, "GET, HEAD", "HEAD", 1),
		"company.yaml": "apiVersion: chaperone.dev/v1alpha1\nkind: PluginGuardrail\nmetadata: {name: company}\n" +
			"spec: {plugins: [\"**\"], never: [{id: n, addresses: [10.0.0.7/32]}]}\n",
	})
	for i, test := range tests {
		t.Run(fmt.Sprint(test.spec, " ", test.expect), func(t *testing.T) {
			path := filepath.Join(dir, fmt.Sprintf("t%d.yaml", i))
			if err := os.WriteFile(path, []byte(testFile(test.spec, test.expect)), 0o600); err != nil {
				t.Fatal(err)
			}
			got := Run(context.Background(), load(t, path))[0]
			want := Pass
			if test.want != "" {
				want = Fail
			}
			if got.Status != want || got.Got != test.want {
				t.Errorf("got %s, %q (expected %q), want %s, %q", got.Status, got.Got, got.Expected, want, test.want)
			}
		})
	}
}

// TestDoors keeps the doors of tests at the names of [policy.Doors].
func TestDoors(t *testing.T) {
	names := []string{string(configs.TestDoorProxy), string(configs.TestDoorEnvoy), string(configs.TestDoorExtAuthz), string(configs.TestDoorPlain)}
	if !slices.Equal(names, policy.DoorNames()) {
		t.Errorf("the doors of tests are %q, want %q", names, policy.DoorNames())
	}
}

// TestUndecided: a proof that does not end in time is no pass.
func TestUndecided(t *testing.T) {
	dir := write(t, map[string]string{"g.yaml": grantFile, "t.yaml": testFile("grants: [g.yaml]", "{atMost: g.yaml}")})
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if got := Run(ctx, load(t, filepath.Join(dir, "t.yaml")))[0]; got.Status != Undecided {
		t.Errorf("the result is %s, want %s", got.Status, Undecided)
	}
}
