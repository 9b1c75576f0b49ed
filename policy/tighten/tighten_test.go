package tighten_test

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/chaperone-proxy/chaperone/audit"
	"github.com/chaperone-proxy/chaperone/authz"
	"github.com/chaperone-proxy/chaperone/policy"
	"github.com/chaperone-proxy/chaperone/policy/accesslog"
	"github.com/chaperone-proxy/chaperone/policy/tighten"
	"github.com/chaperone-proxy/chaperone/policy/usage"
)

var noon = time.Date(2026, 12, 1, 12, 0, 0, 0, time.UTC)

const day = 24 * time.Hour

const head = `# The grant of weather.
apiVersion: chaperone.dev/v1alpha1
kind: PluginGrant
metadata: {name: weather}
spec:
  plugin: weather
  notAfter: 2027-06-01T00:00:00Z
  rules:
  # Reads forecasts.
  - id: read
    reason: a test
    to: {hosts: [api.example, other.example, "*.tiles.example"]} # three
    methods:
    - GET
    - HEAD # for caches
    paths: ["/v1/*", /never]
    upgrades: [websocket]
`

// write writes a grant, and a log of a year in which the grant was in force and the given
// URLs were fetched, one a day from 300 days ago on.
func write(t *testing.T, grant string, urls ...string) (file, log string) {
	t.Helper()
	dir := t.TempDir()
	file = filepath.Join(dir, "grant.yaml")
	if err := os.WriteFile(file, []byte(grant), 0o640); err != nil {
		t.Fatal(err)
	}
	sum := sha256.Sum256([]byte(strings.TrimSuffix(grant, edited)))
	now := noon.Add(-365 * day)
	state := filepath.Join(dir, "state")
	if err := os.Mkdir(state, 0o700); err != nil {
		t.Fatal(err)
	}
	l, err := audit.Open(audit.Config{StateDir: state, Keep: -1, FullPaths: func() bool { return true }, Now: func() time.Time { return now }})
	if err != nil {
		t.Fatal(err)
	}
	record := func(r authz.Record) {
		t.Helper()
		r.Time, r.UID, r.Plugin = now, -1, "weather"
		if err := l.Record(&r); err != nil {
			t.Fatal(err)
		}
	}
	// advance records a start of the plugin each week, as a sidecar that runs does.
	advance := func(to time.Time) {
		for to.Sub(now) > 7*day {
			now = now.Add(7 * day)
			record(authz.Record{Kind: authz.KindProcess})
		}
		now = to
	}
	record(authz.Record{Kind: authz.KindReload, Allowed: true, Files: map[string]string{"grant.yaml": hex.EncodeToString(sum[:])}})
	for i, url := range urls {
		advance(noon.Add(-time.Duration(300-i) * day))
		w := policy.ParseWords(url)
		if strings.HasPrefix(url, "https://") {
			w = policy.Words{Method: "GET", URL: url}
		}
		req, err := policy.Request("weather", w)
		if err != nil {
			t.Fatal(err)
		}
		to := req.Destination
		record(authz.Record{
			Kind: authz.KindDecision, Door: authz.DoorProxy, Decision: fmt.Sprint(i), Allowed: true, Reason: "granted", Grant: "weather", Rule: "read",
			Method: req.Action.Method, Scheme: string(to.Scheme()), Host: to.Host(), Port: to.Port(), Path: to.Path(),
			Protocol: string(req.Facts.Protocol()), Facts: req.Facts.All(),
		})
	}
	advance(noon)
	record(authz.Record{Kind: authz.KindProcess})
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	return file, filepath.Join(state, audit.DefaultFile)
}

// plan returns what is proposed for a grant.
func plan(t *testing.T, now time.Time, file, log string) *tighten.Result {
	t.Helper()
	subjects, err := policy.Load(now, policy.Options{}, file)
	if err != nil {
		t.Fatal(err)
	}
	o := accesslog.Options{Paths: []string{log}}
	report, err := usage.Read(context.Background(), usage.Options{Log: o, Subjects: subjects, Now: now})
	if err != nil {
		t.Fatal(err)
	}
	result, err := tighten.Plan(context.Background(), tighten.Options{Paths: []string{file}, Report: report, Log: o, Now: now})
	if err != nil {
		t.Fatal(err)
	}
	return result
}

// diffOf returns the removed and the added lines.
func diffOf(r *tighten.Result) string {
	var out []string
	for _, f := range r.Files {
		for line := range strings.SplitSeq(f.Diff(), "\n") {
			if line != "" && (line[0] == '+' || line[0] == '-') && !strings.HasPrefix(line, "+++") && !strings.HasPrefix(line, "---") {
				out = append(out, line)
			}
		}
	}
	return strings.Join(out, "\n")
}

// edited ends a grant that was never in force as it is.
const edited = "# edited\n"

const idle = "  - {id: idle, reason: a test, to: {hosts: [idle.example]}, methods: [GET], paths: [/]}\n"

func TestPlan(t *testing.T) {
	const used = "https://api.example/v1/a"
	tests := map[string]struct {
		grant string
		urls  []string
		want  string // the lines of the diff
		left  string
	}{
		"values": {
			head,
			[]string{used, "https://x.tiles.example/v1/b"},
			"-    to: {hosts: [api.example, other.example, \"*.tiles.example\"]} # three\n+    to: {hosts: [api.example, \"*.tiles.example\"]} # three\n" +
				"-    - HEAD # for caches\n-    paths: [\"/v1/*\", /never]\n-    upgrades: [websocket]\n+    paths: [\"/v1/*\"]\n+    upgrades: []", "",
		},
		"an unused rule": {
			strings.Replace(head, "    upgrades: [websocket]\n", "", 1) + idle,
			[]string{used, "https://other.example/never", "https://x.tiles.example/v1/b"},
			"-    - HEAD # for caches\n-  - {id: idle, reason: a test, to: {hosts: [idle.example]}, methods: [GET], paths: [/]}\n" +
				"+  - {id: idle, notAfter: 2026-12-16T00:00:00Z, reason: a test, to: {hosts: [idle.example]}, methods: [GET], paths: [/]}", "",
		},
		"an unused rule that ends soon": {
			strings.Replace(head, "    upgrades: [websocket]\n", "", 1) + strings.Replace(idle, "reason", "notAfter: 2026-12-10T00:00:00Z, reason", 1),
			[]string{used, "https://other.example/never", "https://x.tiles.example/v1/b"},
			"-    - HEAD # for caches", "",
		},
		"an unused rule that has ended": {
			head[:strings.Index(head, "    upgrades")] + strings.Replace(idle, "reason", "notAfter: 2026-11-10T00:00:00Z, reason", 1),
			[]string{used, "https://other.example/never", "https://x.tiles.example/v1/b"},
			"-    - HEAD # for caches\n-  - {id: idle, notAfter: 2026-11-10T00:00:00Z, reason: a test, to: {hosts: [idle.example]}, methods: [GET], paths: [/]}", "",
		},
		"an unproved rule that has ended": {
			head[:strings.Index(head, "    upgrades")] + strings.Replace(idle, "reason", "notAfter: 2026-11-10T00:00:00Z, reason", 1) + edited,
			[]string{used},
			"-  - {id: idle, notAfter: 2026-11-10T00:00:00Z, reason: a test, to: {hosts: [idle.example]}, methods: [GET], paths: [/]}", "",
		},
		// The unused rule takes its host from the other one, under which requests carry a credential.
		"a rule that shadows another": {
			head[:strings.Index(head, "    upgrades")] + "    credential: key\n" +
				"  - {id: shadow, reason: a test, to: {hosts: [a.tiles.example]}, methods: [GET], paths: [\"/v1/*\"]}\n" +
				"  credentials:\n  - {name: key, vault: {path: secret/data/a}, inject: {header: X-Key, value: \"{a}\"}}\n",
			nil, "", "weather/shadow: to be removed; it ends at 2026-12-16T00:00:00Z: it would widen (credential): GET https://a.tiles.example/v1/",
		},
		"no use of anything": {
			head, nil, "+    notAfter: 2026-12-16T00:00:00Z # to be removed: unused; delete this line to keep the rule", "",
		},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			if name == "a rule that shadows another" {
				test.grant = strings.Replace(test.grant, `"*.tiles.example"]}`, `"*.tiles.example"]}`, 1)
				test.grant = strings.Replace(test.grant, "    credential: key\n", "    credential: key\n    wildcardCredential: true\n", 1)
				test.urls = []string{used, "https://other.example/never", "https://x.tiles.example/v1/b"}
			}
			file, log := write(t, test.grant, test.urls...)
			result := plan(t, noon, file, log)
			got := diffOf(result)
			if test.left == "" && got != test.want {
				t.Errorf("got\n%s\nwant\n%s\n%v", got, test.want, result.Left)
			}
			if left := strings.Join(result.Left, "\n"); !strings.Contains(left, test.left) || test.left == "" && left != "" {
				t.Errorf("left %q, want %q", left, test.left)
			}
			if test.urls != nil && result.Replayed+result.NotReplayable != len(test.urls) {
				t.Errorf("replayed %d and %d not, want %d", result.Replayed, result.NotReplayable, len(test.urls))
			}
		})
	}
}

// TestWrite writes, keeps a copy, and never overwrites what it has not read.
func TestWrite(t *testing.T) {
	file, log := write(t, head, "https://api.example/v1/a")
	result := plan(t, noon, file, log)
	backups, err := result.Write(noon)
	if err != nil || len(backups) != 1 {
		t.Fatalf("got %v, %v, want one copy", backups, err)
	}
	read := func(path string) string {
		data, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		return string(data)
	}
	if read(backups[0].Copy) != head || read(file) != string(result.Files[0].After) {
		t.Error("got other contents, want the old file in the copy and the new one in its place")
	}
	if info, err := os.Stat(file); err != nil || info.Mode().Perm() != 0o640 {
		t.Errorf("got mode %v, %v, want 0640", info.Mode(), err)
	}
	if subjects, err := policy.Load(noon, policy.Options{}, filepath.Dir(file)); err != nil || len(subjects) != 1 {
		t.Errorf("got %v, want the folder to load without the copy", err)
	}
	if err := os.WriteFile(file, []byte(head+"# changed\n"), 0o640); err != nil {
		t.Fatal(err)
	}
	if _, err := result.Write(noon.Add(time.Second)); err == nil || !strings.Contains(err.Error(), "was changed since it was read") || !strings.HasSuffix(read(file), "# changed\n") {
		t.Errorf("got %v, want an error for a file that was changed", err)
	}
	if names, _ := filepath.Glob(file + ".*"); len(names) != 1 {
		t.Errorf("got %v, want the first copy only", names)
	}
}
