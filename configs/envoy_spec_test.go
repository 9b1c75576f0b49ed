package configs

import (
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/chaperone-proxy/chaperone/authz"
)

// loadEnvoy loads a Sidecar with a spec.envoy, whose schema it fits too.
func loadEnvoy(t *testing.T, dir, spec string) *Config {
	t.Helper()
	path := filepath.Join(dir, "sidecar.yaml")
	write(t, path, strings.Replace(minimalSidecar, "[grants]", `[], listen: {proxy: "127.0.0.1:0"}, envoy: `+spec, 1))
	if errs := validateDocument(t, parseFile(t, path)[0]); len(errs) > 0 {
		t.Errorf("%s: the schema finds %s", spec, strings.Join(errs, "; "))
	}
	c, err := Load(path, now)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func TestEnvoyDefaults(t *testing.T) {
	dir := t.TempDir()
	got := loadEnvoy(t, dir, "{}").Sidecar.Envoy
	want := &Envoy{Dir: dir + "/state/envoy", MaxStreamDuration: authz.Duration(time.Hour), AccessLog: AccessLogStdout}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("want (-), got (+):\n%s", diff)
	}
}

func TestEnvoyStated(t *testing.T) {
	dir := t.TempDir()
	c := loadEnvoy(t, dir, `{dir: run, group: envoy, explicit: "127.0.0.1:15080", transparent: "0.0.0.0:15006", maxStreamDuration: 10m, accessLog: /var/log/envoy.log}`)
	want := &Envoy{
		Dir: dir + "/run", Group: "envoy", Explicit: Address{"tcp", "127.0.0.1:15080"}, Transparent: Address{"tcp", "0.0.0.0:15006"},
		MaxStreamDuration: authz.Duration(10 * time.Minute), AccessLog: "/var/log/envoy.log",
	}
	if diff := cmp.Diff(want, c.Sidecar.Envoy); diff != "" {
		t.Errorf("want (-), got (+):\n%s", diff)
	}
	for field, part := range map[string]string{
		"spec.envoy.explicit": "takes whoever connects there for the plugin", "spec.envoy.transparent": "can be reached from other hosts",
	} {
		if !slices.ContainsFunc(c.Warnings, func(e Error) bool { return e.Field == field && strings.Contains(e.Message, part) }) {
			t.Errorf("%s is not warned of in %v", field, c.Warnings)
		}
	}
	if longest := want.Exits() + "/" + strings.Repeat("f", 26) + ".sock"; len(longest)-len(want.Dir) != maxExit {
		t.Errorf("a path of an exit is %d bytes longer than the folder, not %d", len(longest)-len(want.Dir), maxExit)
	}
}

// TestEnvoyGrants warns of rules that have no way through Envoy.
func TestEnvoyGrants(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "sidecar.yaml")
	write(t, path, strings.Replace(minimalSidecar, "[grants]", `[grants], listen: {proxy: "127.0.0.1:0"}, envoy: {}, vault: {address: "https://vault.example:8200", auth: {method: token, tokenFile: token}}`, 1))
	write(t, filepath.Join(dir, "grants", "weather.yaml"), strings.Replace(minimalGrant, "rules: [", `credentials: [{name: c, vault: {path: pki/issue/weather}, inject: {mtls: {}}}]
  rules: [{id: any, reason: Tests, to: {scheme: tcp, hosts: ["a.example", "*.b.example"], ports: [9]}},
    {id: deep, reason: Tests, to: {hosts: ["*.d.example", "**.e.example"]}, methods: [GET], paths: [/]},
    {id: shown, reason: Tests, to: {hosts: [c.example]}, methods: [GET], paths: [/], credential: c}, `, 1))
	c, err := Load(path, now)
	if err != nil {
		t.Fatal(err)
	}
	var fields []string
	for _, w := range c.Warnings {
		if strings.Contains(w.Message, "spec.envoy") {
			fields = append(fields, w.Field)
		}
	}
	slices.Sort(fields)
	if diff := cmp.Diff([]string{"spec.credentials[0].inject", "spec.rules[0].to.hosts[1]", "spec.rules[1].to.hosts[1]"}, fields); diff != "" {
		t.Errorf("want (-), got (+):\n%s", diff)
	}
}

// TestTunnelsToWebPorts warns of tcp where requests could be granted.
func TestTunnelsToWebPorts(t *testing.T) {
	path := filepath.Join(t.TempDir(), "weather.yaml")
	write(t, path, strings.Replace(minimalGrant, "rules: [", `rules: [{id: any, reason: Tests, to: {scheme: tcp, hosts: [a.example], ports: [22, 443, 80, 8443]}},
    {id: web, reason: Tests, to: {hosts: [a.example], ports: [443]}, methods: [GET], paths: [/]}, `, 1))
	checked, err := Check(now, path)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, w := range checked.Warnings {
		if strings.Contains(w.Message, "scheme: tcp grants every request") {
			got = append(got, w.Field+" "+strings.Fields(w.Message)[0])
		}
	}
	want := []string{"spec.rules[0].to.ports[1] 443", "spec.rules[0].to.ports[2] 80"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("want (-), got (+):\n%s", diff)
	}
}
