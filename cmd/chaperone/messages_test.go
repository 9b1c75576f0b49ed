package main

import (
	"bytes"
	"context"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/chaperone-proxy/chaperone/internal/testenv"
)

const (
	messageSidecar = `apiVersion: chaperone.dev/v1alpha1
kind: Sidecar
metadata: {name: weather}
spec:
  plugin: weather
  grants: [grant.yaml]
  kernel: off
  stateDir: state
  listen: {proxy: "127.0.0.1:15001"}
`
	messageGrant = `apiVersion: chaperone.dev/v1alpha1
kind: PluginGrant
metadata: {name: weather}
spec:
  plugin: weather
  notAfter: 2099-12-05T00:00:00Z
  rules:
  - id: api
    reason: Tests
    to: {hosts: [api.weather.example]}
    methods: [GET]
    paths: ["/v1/*"]
`
)

// message is one mistake in a file or a command line, and the whole error.
type message struct {
	name           string
	sidecar, grant [2]string // the text that is replaced, and its replacement
	args           string    // "" checks sidecar.yaml
	env, value     string
	file, content  string // another file
	status         int
	want           string
}

// TestMessages keeps the messages whole: each has the fault, the value, and the
// text to write instead.
func TestMessages(t *testing.T) {
	for _, m := range slices.Concat(fileMessages(), moreFileMessages(), commandMessages()) {
		t.Run(m.name, func(t *testing.T) {
			t.Chdir(t.TempDir())
			t.Setenv("CHAPERONE_REGISTRY", "none")
			for file, text := range map[string]string{
				"sidecar.yaml": strings.Replace(messageSidecar, m.sidecar[0], m.sidecar[1], 1),
				"grant.yaml":   strings.Replace(messageGrant, m.grant[0], m.grant[1], 1),
			} {
				testenv.Must(t, os.WriteFile(file, []byte(text), 0o600))
			}
			if m.file != "" {
				testenv.Must(t, os.WriteFile(m.file, []byte(m.content), 0o600))
			}
			if m.env != "" {
				t.Setenv(m.env, m.value)
			}
			args := "check sidecar.yaml"
			if m.args != "" {
				args = m.args
			}
			var out bytes.Buffer
			status := execute(context.Background(), strings.Fields(args), strings.NewReader(""), &out, &out)
			if got := strings.TrimSpace(out.String()); got != m.want || status != m.status {
				t.Errorf("status %d, want %d\ngot  %s\nwant %s", status, m.status, got, m.want)
			}
		})
	}
}

// fileMessages are mistakes of files.
func fileMessages() []message {
	return []message{
		{
			name: "JSON with a comma too many", args: "check a.json", file: "a.json", content: "{\"apiVersion\": \"x\",}", status: 1,
			want: `a.json:1:19: json: '}' stands where a name in double quotes should; remove the comma before it, or write the quotes`,
		},
		{
			name: "JSON that ends early", args: "check a.json", file: "a.json", content: "[1,2", status: 1,
			want: `a.json:1:5: json: the file ends within a value; close every quote, [ and { that is open`,
		},
		{
			name: "a tab in YAML", sidecar: [2]string{"  kernel: off", "\tkernel: off"}, status: 1,
			want: `sidecar.yaml:7:1: yaml: found character tab (indent with spaces) that cannot start any token`,
		},
		{
			name: "an unknown field", sidecar: [2]string{"kernel", "kernal"}, status: 1,
			want: `sidecar.yaml:7:3: spec.kernal: is not a field here; did you mean kernel?`,
		},
		{
			name: "an unknown kind", sidecar: [2]string{"kind: Sidecar", "kind: Sidcar"}, status: 1,
			want: `sidecar.yaml:2:7: kind: "Sidcar" is not known; write Sidecar, PluginGrant, PluginGuardrail, PluginTest, PluginManifest, GrantExemption, RiskRubric, TrustRoot or ComplianceChecklist`,
		},
		{
			name: "a duration without a unit", sidecar: [2]string{"  kernel: off", "  kernel: off\n  drain: 10"}, status: 1,
			want: `sidecar.yaml:8:10: spec.drain: "10" is not a duration; write a whole number above 0 and a unit, as in 250ms, 10s, 5m, 24h or 30d`,
		},
		{
			name: "a size with a blank", sidecar: [2]string{"  kernel: off", "  kernel: off\n  audit: {maxSize: 10 MB}"}, status: 1,
			want: `sidecar.yaml:8:20: spec.audit.maxSize: "10 MB" is not a size; write a whole number above 0 and a unit, as in 10KiB, 5MiB or 1GiB`,
		},
		{
			name: "a period in words", grant: [2]string{"  rules:", "  limits: {requests: 100/minute}\n  rules:"}, status: 1,
			want: `grant.yaml:7:22: spec.limits.requests: "100/minute" is not a limit: its period "minute" is not a duration; write a whole number above 0 and a unit, as in 250ms, 10s, 5m, 24h or 30d`,
		},
		{
			name: "a limit that nothing counts", grant: [2]string{"  rules:", "  limits: {connections: 5/1m}\n  rules:"}, status: 1,
			want: `grant.yaml:7:25: spec.limits.connections: is counted by the kernel, which sidecar.yaml turns off; remove the limit, or set kernel there`,
		},
		{
			name: "a date without a time", grant: [2]string{"2099-12-05T00:00:00Z", "2099-12-05"}, status: 1,
			want: `grant.yaml:6:13: spec.notAfter: "2099-12-05" is not a time as RFC 3339 has it, as in 2027-01-31T00:00:00Z`,
		},
		{
			name: "no methods", grant: [2]string{"    methods: [GET]\n", ""}, status: 1,
			want: `grant.yaml:8:5: spec.rules[0].methods: is missing; name the methods, or "*" for every one`,
		},
		{
			name: "a method in lower case", grant: [2]string{"[GET]", "[get]"}, status: 1,
			want: `grant.yaml:11:15: spec.rules[0].methods[0]: "get" never matches, because methods are case-sensitive; write GET`,
		},
		{
			name: "a grant that is not there", sidecar: [2]string{"grant.yaml", "grnt.yaml"}, status: 1,
			want: `sidecar.yaml:6:12: spec.grants[0]: grnt.yaml does not exist; write a path relative to this file, or a whole one`,
		},
		{
			name: "a port among hosts", grant: [2]string{"[api.weather.example]", "[\"api.weather.example:443\"]"}, status: 1,
			want: `grant.yaml:10:18: spec.rules[0].to.hosts[0]: "api.weather.example:443" holds a port; write the host alone, api.weather.example, with ports: [443] beside it`,
		},
	}
}

// moreFileMessages are as fileMessages.
func moreFileMessages() []message {
	return []message{
		{
			name: "a URL among hosts", grant: [2]string{"[api.weather.example]", "[\"http://api.weather.example:8080/v1\"]"}, status: 1,
			want: `grant.yaml:10:18: spec.rules[0].to.hosts[0]: "http://api.weather.example:8080/v1" is a URL; write the host alone, api.weather.example, with scheme: http beside it, with ports: [8080] beside it, and the path under paths`,
		},
		{
			name: "every host", grant: [2]string{"[api.weather.example]", "[\"*\"]"}, status: 1,
			want: `grant.yaml:10:18: spec.rules[0].to.hosts[0]: "*" matches every host; name the hosts, or write *.NAME for those under one name`,
		},
		{
			name: "a template of OpenAPI", grant: [2]string{"\"/v1/*\"", "\"/v1/{id}\""}, status: 1,
			want: `grant.yaml:12:13: spec.rules[0].paths[0]: "/v1/{id}" is a template; write * for a variable segment: "/v1/*"`,
		},
		{
			name: "a query in a path", grant: [2]string{"\"/v1/*\"", "\"/v1?x=1\""}, status: 1,
			want: `grant.yaml:12:13: spec.rules[0].paths[0]: "/v1?x=1" holds a query or a fragment, which paths do not match; write "/v1"`,
		},
		{
			name: "an invalid port", grant: [2]string{"[api.weather.example]", "[api.weather.example], ports: [70000]"}, status: 1,
			want: `grant.yaml:10:48: spec.rules[0].to.ports[0]: is "70000"; write a whole number from 0 to 65535`,
		},
		{
			name: "a credential that is not there", grant: [2]string{"    paths:", "    credential: key\n    paths:"}, status: 1,
			want: `grant.yaml:12:17: spec.rules[0].credential: "key" is not one of the grant's credentials; add it under spec.credentials`,
		},
		{
			name: "an authority that is not there", grant: [2]string{"[api.weather.example]", "[api.weather.example], tls: {caFile: ca.pem}"}, status: 1,
			want: `grant.yaml:10:54: spec.rules[0].to.tls.caFile: ca.pem does not exist; write a path relative to this file, or a whole one`,
		},
		{
			name: "an address without a host", sidecar: [2]string{"15001\"}", "15001\", metrics: \":9090\"}"}, status: 1,
			want: `sidecar.yaml:9:47: spec.listen.metrics: ":9090" is not an address; write unix:PATH, or an IP address and a port, as in 127.0.0.1:15001`,
		},
		{
			name: "an admin API over TCP", sidecar: [2]string{"15001\"}", "15001\", admin: \"127.0.0.1:9\"}"}, status: 1,
			want: `sidecar.yaml:9:45: spec.listen.admin: "127.0.0.1:9" is not a socket; the admin API proves who calls by the socket, write unix:PATH`,
		},
		{
			name: "root as the user", sidecar: [2]string{"kernel: off", "kernel: required\n  process: {user: root}"}, status: 1,
			want: `sidecar.yaml:8:19: spec.process.user: root can end its own confinement; leave user out, name another, or say unsafeSameUser: true`,
		},
		{
			name: "a name server without a port", sidecar: [2]string{"  kernel: off", "  kernel: off\n  dns: {servers: [10.0.0.2]}"}, status: 1,
			want: `sidecar.yaml:8:19: spec.dns.servers[0]: "10.0.0.2" is not an IP address and a port, as in 10.0.0.2:53`,
		},
		{
			name: "a Vault without a scheme", sidecar: [2]string{"  kernel: off", "  kernel: off\n  vault: {address: vault.example, auth: {method: token, tokenFile: t}}"}, status: 1,
			want: `sidecar.yaml:8:20: spec.vault.address: "vault.example" is not Vault's address; write it as in https://vault.example:8200`,
		},
		{
			name: "a home folder", sidecar: [2]string{"stateDir: state", "stateDir: ~/state"}, status: 1,
			want: `sidecar.yaml:8:13: spec.stateDir: "~/state" starts with ~, which only a shell expands; write the whole path, or one relative to this file`,
		},
		{
			name: "a variable", sidecar: [2]string{"stateDir: state", "stateDir: \"${HOME}/state\""}, status: 1,
			want: `sidecar.yaml:8:13: spec.stateDir: "${HOME}/state" holds ${HOME}, which only a shell expands; write the whole path, or one relative to this file`,
		},
		{
			name: "a grant that has ended", grant: [2]string{"2099", "2020"}, args: "check grant.yaml", status: 1,
			want: "expired: grant.yaml:6:13: spec.notAfter: 2020-12-05T00:00:00Z has passed; nothing that this grant states is allowed: write a later time, or remove the grant\n1 document in 1 file: 1 grant expired",
		},
	}
}

// commandMessages are mistakes of command lines.
func commandMessages() []message {
	return []message{
		{
			name: "an unknown format in the environment", args: "status", env: "CHAPERONE_STATUS_OUTPUT", value: "wide", status: 2,
			want: `chaperone: CHAPERONE_STATUS_OUTPUT: invalid argument "wide" for "--output" flag: "wide" is not table, json or yaml`,
		},
		{
			name: "no boolean in the environment", args: "check sidecar.yaml", env: "CHAPERONE_CHECK_KERNEL", value: "perhaps", status: 2,
			want: `chaperone: CHAPERONE_CHECK_KERNEL: invalid argument "perhaps" for "--kernel" flag: it is not true or false`,
		},
		{
			name: "no boolean", args: "check --kernel=perhaps sidecar.yaml", status: 2,
			want: `chaperone: invalid argument "perhaps" for "--kernel" flag: it is not true or false; see chaperone check --help`,
		},
		{
			name: "no duration", args: "top --interval fast --config sidecar.yaml", status: 2,
			want: `chaperone: invalid argument "fast" for "--interval" flag: it is not a duration, as in 500ms, 10s or 5m; see chaperone top --help`,
		},
		{
			name: "an unknown command", args: "stauts", status: 2,
			want: `chaperone: unknown command "stauts" of chaperone; see chaperone --help; did you mean chaperone status?`,
		},
		{
			name: "an unknown command with flags", args: "revok --config sidecar.yaml", status: 2,
			want: `chaperone: unknown command "revok" of chaperone; see chaperone --help; did you mean chaperone revoke?`,
		},
		{
			name: "an unknown flag", args: "status --confg sidecar.yaml", status: 2,
			want: `chaperone: unknown flag: --confg; see chaperone status --help; did you mean --config?`,
		},
		{
			name: "a kind of record", args: "audit query --config sidecar.yaml --kind decisoin", status: 2,
			want: `chaperone: invalid argument "decisoin" for "--kind" flag: "decisoin" is not decision, end, credential, revocation, reload, limit, process, probe, lost, echo, handshake, stray, inbound, rotation or overflow; did you mean decision?; see chaperone audit query --help`,
		},
		{
			name: "no Sidecar", args: "run -- true", status: 2,
			want: `chaperone: run: --config is missing; name the Sidecar's file, as in --config sidecar.yaml`,
		},
		{
			name: "no program", args: "run --config sidecar.yaml", status: 2,
			want: `chaperone: run: the program to run is missing; see chaperone run --help`,
		},
		{
			name: "a level of the log", args: "run --config sidecar.yaml --log-level loud -- true", status: 2,
			want: `chaperone: --log-level: "loud" is not debug, info, warn or error`,
		},
		{
			name: "a level of revocation", args: "revoke --config sidecar.yaml --level kill --reason x", status: 2,
			want: `chaperone: invalid argument "kill" for "--level" flag: "kill" is not pause, quarantine or halt; see chaperone revoke --help`,
		},
		{
			name: "no token for a proxy", args: "serve --config sidecar.yaml", status: 1,
			want: `chaperone: a proxy with the kernel off needs --proxy-token-file, which proves who the plugin is`,
		},
		{
			name: "a socket without unix:", args: "status --admin /run/x.sock", status: 2,
			want: `chaperone: --admin "/run/x.sock" is not a socket; write unix:PATH, as in unix:/run/chaperone/weather/admin.sock`,
		},
		{
			name: "no URL", args: "explain --config sidecar.yaml GET api.weather.example/v1", status: 3,
			want: "denied:  malformed_request\nwhy:     \"api.weather.example/v1\" is not a URL, as in https://api.weather.example/v1",
		},
		{
			name: "a kind of schema", args: "schema Sidcar", status: 2,
			want: `chaperone: "Sidcar" is not a kind; the kinds are Sidecar, PluginGrant, PluginGuardrail, PluginTest, PluginManifest, GrantExemption, RiskRubric, TrustRoot, ComplianceChecklist`,
		},
	}
}
