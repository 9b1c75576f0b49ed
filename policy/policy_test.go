package policy

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/chaperone-proxy/chaperone/authz"
	"github.com/chaperone-proxy/chaperone/configs"
)

var noon = time.Date(2026, 12, 1, 12, 0, 0, 0, time.UTC)

// grant returns the text of a grant with one rule at line 8, column 5.
func grant(plugin, name string) string {
	return `apiVersion: chaperone.dev/v1alpha1
kind: PluginGrant
metadata: {name: ` + name + `}
spec:
  plugin: ` + plugin + `
  notAfter: 2027-01-01T00:00:00Z
  rules:
  - id: read
    reason: a test
    to: {hosts: [api.` + plugin + `.example]}
    methods: [GET]
    paths: ["/v1/*"]
`
}

const guardrail = `apiVersion: chaperone.dev/v1alpha1
kind: PluginGuardrail
metadata: {name: company}
spec:
  plugins: ["**"]
  never: [{id: metadata, addresses: [169.254.0.0/16]}]
  ceilings: {methods: [GET]}
`

func sidecarText(plugin string) string {
	return `apiVersion: chaperone.dev/v1alpha1
kind: Sidecar
metadata: {name: ` + plugin + `-sidecar}
spec:
  plugin: ` + plugin + `
  grants: [` + plugin + `.yaml]
  stateDir: state
  mode: observe
  observeUntil: 2026-12-02T12:00:00Z
  listen: {proxy: "127.0.0.1:15001"}
`
}

// write makes a folder of files.
func write(t *testing.T, files map[string]string) string {
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

func TestLoad(t *testing.T) {
	dir := write(t, map[string]string{
		"alone/weather.yaml":      grant("weather", "weather"),
		"both/weather.yaml":       grant("weather", "weather"),
		"both/mail.yaml":          grant("mail", "mail"),
		"both/company.yaml":       guardrail,
		"served/weather.yaml":     grant("weather", "weather"),
		"served/unnamed.yaml":     grant("weather", "unnamed"),
		"served/sidecar.yaml":     sidecarText("weather"),
		"many/a/weather.yaml":     grant("weather", "weather"),
		"many/a/sidecar.yaml":     sidecarText("weather"),
		"many/b/mail.yaml":        grant("mail", "mail"),
		"many/b/sidecar.yaml":     sidecarText("mail"),
		"guardrails/company.yaml": guardrail,
		"ceiling/weather.yaml":    strings.Replace(grant("weather", "weather"), "[GET]", "[POST]", 1),
		"ceiling/company.yaml":    guardrail,
	})
	tests := []struct {
		name  string
		o     Options
		path  string
		want  string // plugin, Sidecar and number of grants of each subject
		notes string
		err   string
	}{
		{name: "a grant's file", path: "alone/weather.yaml", want: "weather//1", notes: "weather: no guardrail and mode enforce are assumed, as no Sidecar states others"},
		{name: "a folder of grants and guardrails", path: "both", want: "mail//1 weather//1", notes: "mail: guardrails company and mode enforce are assumed, as no Sidecar states others"},
		{name: "one plugin of a folder", path: "both", o: Options{Plugin: "weather"}, want: "weather//1", notes: "weather: guardrails company and mode enforce"},
		{name: "a Sidecar's file", path: "served/sidecar.yaml", want: "weather/weather-sidecar/1"},
		{name: "a grant beside its Sidecar that the Sidecar does not name", path: "served", want: "weather/weather-sidecar/1"},
		{name: "a folder of Sidecars", path: "many", o: Options{Recursive: true}, want: "mail/mail-sidecar/1 weather/weather-sidecar/1"},
		{name: "guardrails alone", path: "guardrails", err: "no policy; name a Sidecar"},
		{name: "a plugin that is not there", path: "both", o: Options{Plugin: "maps"}, err: `no policy of plugin "maps"; the plugins are mail, weather`},
		{name: "a ceiling that a grant exceeds", path: "ceiling", err: "ceiling/weather.yaml:11:15: spec.rules[0].methods[0]:"},
		{name: "a file that is not there", path: "none.yaml", err: "does not exist"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			got, err := Load(noon, test.o, filepath.Join(dir, test.path))
			if test.err != "" {
				if err == nil || !strings.Contains(err.Error(), test.err) {
					t.Fatalf("Load(%s) = %v, want an error with %q", test.path, err, test.err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			var names, notes []string
			for _, s := range got {
				names = append(names, s.Plugin+"/"+s.Name+"/"+string(rune('0'+len(s.Input.Grants))))
				notes = append(notes, s.Notes...)
			}
			if strings.Join(names, " ") != test.want || !strings.HasPrefix(strings.Join(notes, " "), test.notes) {
				t.Errorf("Load(%s) = %q with notes %q, want %q with %q", test.path, names, notes, test.want, test.notes)
			}
		})
	}
}

// TestPosition finds the lines of rules, grants and fields.
func TestPosition(t *testing.T) {
	dir := write(t, map[string]string{"weather.yaml": grant("weather", "weather"), "sidecar.yaml": sidecarText("weather")})
	subjects, err := Load(noon, Options{}, filepath.Join(dir, "sidecar.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	s := subjects[0]
	at := func(p Position, ok bool) string {
		if !ok {
			return "unknown"
		}
		return strings.TrimPrefix(p.String(), dir+"/")
	}
	origin := s.Input.Grants[0].Origin
	for want, got := range map[string]string{
		"weather.yaml:8:5":   at(s.Position("weather", "read")),
		"weather.yaml:3:18":  at(s.Position("weather", "")),
		"weather.yaml:6:13":  at(s.FieldPosition(origin, "spec.notAfter")),
		"sidecar.yaml:8:9":   at(s.FieldPosition("", "spec.mode")),
		"weather.yaml:11:14": at(s.FieldPosition(origin, "spec.rules[0].methods")),
	} {
		if got != want {
			t.Errorf("position = %s, want %s", got, want)
		}
	}
	if got := at(s.Position("weather", "other")); got != "unknown" {
		t.Errorf("position of a rule that does not exist = %s, want none", got)
	}
}

// TestLoadErrors keeps the errors of files as they are, for their positions.
func TestLoadErrors(t *testing.T) {
	dir := write(t, map[string]string{"weather.yaml": grant("weather", "weather") + "    wrong: yes\n"})
	_, err := Load(noon, Options{}, dir)
	if errs, ok := errors.AsType[configs.Errors](err); !ok || errs[0].Line != 13 {
		t.Errorf("Load = %#v, want an error of configs in line 13", err)
	}
}

func TestRequest(t *testing.T) {
	tests := []struct{ method, url, upgrade, want string }{
		{"GET", "https://API.example", "", "GET https://api.example/"},
		{"GET", "https://api.example:443/a%7Eb?q=1", "", "GET https://api.example/a~b?q=1"},
		{"GET", "http://api.example:8080/a%2Fb", "WebSocket", "GET http://api.example:8080/a%2Fb (upgrade websocket)"},
		{"GET", "https://[2001:db8::1]:8443/", "", "GET https://[2001:db8::1]:8443/"},
		{"-", "tls://db.example", "", "CONNECT tls://db.example"},
		{"CONNECT", "tcp://10.0.0.1:5432", "", "CONNECT tcp://10.0.0.1:5432"},
	}
	for _, test := range tests {
		req, err := Request("p", Words{Method: test.method, URL: test.url, Upgrade: test.upgrade})
		if err != nil {
			t.Errorf("Request(%s %s) = %v", test.method, test.url, err)
			continue
		}
		if got := Format(req); got != test.want {
			t.Errorf("Format(Request(%s %s)) = %q, want %q", test.method, test.url, got, test.want)
		}
		if again, err := Request("p", Text(req)); err != nil || again != req {
			t.Errorf("Request(Text(%s)) = %+v, %v, want the same request", test.want, again, err)
		}
	}
	for _, wrong := range [][3]string{{"GET", "api.example/", ""}, {"GET", "tls://a.example", ""}, {"-", "tls://a.example", "websocket"}, {"G T", "https://a.example/", ""}, {"GET", "https://a.example/../x", ""}} {
		if req, err := Request("p", Words{Method: wrong[0], URL: wrong[1], Upgrade: wrong[2]}); err == nil {
			t.Errorf("Request(%q) = %v, want an error", wrong, req)
		}
	}
}

// TestWith puts revocations into force.
func TestWith(t *testing.T) {
	dir := write(t, map[string]string{"weather.yaml": grant("weather", "weather")})
	subjects, err := Load(noon, Options{}, dir)
	if err != nil {
		t.Fatal(err)
	}
	req, err := Request("weather", Words{Method: "GET", URL: "https://api.weather.example/v1/a"})
	if err != nil {
		t.Fatal(err)
	}
	revoked := subjects[0].With([]authz.Revocation{{ID: "v", Plugin: "weather", Grant: "weather", Rule: "read", Level: authz.LevelPause}})
	if got, want := subjects[0].Snapshot.Decide(req, authz.Usage{}, noon).Reason, authz.Granted; got != want {
		t.Errorf("Decide = %v, want %v", got, want)
	}
	if got, want := revoked.Decide(req, authz.Usage{}, noon).Reason, authz.Revoked; got != want {
		t.Errorf("Decide under a revocation = %v, want %v", got, want)
	}
}
