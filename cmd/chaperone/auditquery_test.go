package main

import (
	"encoding/json"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/chaperone-proxy/chaperone/audit"
	"github.com/chaperone-proxy/chaperone/authz"
	"github.com/chaperone-proxy/chaperone/internal/phrase"
	"github.com/chaperone-proxy/chaperone/internal/testenv"
)

// writeLog writes an audit log with records of every sort.
func writeLog(t *testing.T, w *env) string {
	t.Helper()
	testenv.Must(t, os.Mkdir(w.File("state"), 0o700))
	file := w.File("state/audit.jsonl")
	log := testenv.MustGet(audit.Open(audit.Config{File: file, StateDir: w.File("state")}))(t)
	at := time.Date(2026, 1, 2, 3, 0, 0, 0, time.UTC)
	for i, r := range []authz.Record{
		{Kind: authz.KindDecision, Door: authz.DoorProxy, Allowed: true, Reason: "granted", Grant: "g", Rule: "read", Method: "GET", Scheme: "https", Host: "api.example", Port: 443, Path: "/v1", PID: 7, Exe: "/usr/bin/curl"},
		{Kind: authz.KindEnd, Door: authz.DoorProxy, Allowed: true, Reason: "granted", Grant: "g", Rule: "read", Method: "GET", Scheme: "https", Host: "api.example", Port: 443, SentBytes: 1000, PID: 7},
		{Kind: authz.KindDecision, Door: authz.DoorProxy, Reason: "destination_not_granted", Method: "CONNECT", Scheme: "https", Host: "evil.example", Port: 443, PID: 8, Exe: "/tmp/\x1b[2Jsh"},
		{Kind: authz.KindDecision, Door: authz.DoorKernel, Reason: "destination_not_granted", Scheme: "tcp", Host: "192.0.2.1", Port: 25, PID: 8, Count: 40},
		{Kind: authz.KindDecision, Door: authz.DoorProxy, Reason: "malformed_request", Host: "\x1b[31mred", Detail: "a\tb\nc"},
		{Kind: authz.KindRevocation, Reason: "revoked", Actor: "uid:0/root", Detail: "quarantine: x"},
		{Kind: authz.KindDecision, Door: authz.DoorProxy, Reason: "statement_not_granted", Scheme: "postgres", Host: "db.example", Port: 5432, Facts: []string{"database:shop", "table:public.customers", "verb:select"}, PID: 9},
	} {
		r.Plugin, r.Time = "weather", at.Add(time.Duration(i)*time.Minute)
		if r.PID == 0 {
			r.UID = -1
		}
		testenv.Must(t, log.Record(&r))
	}
	testenv.Must(t, log.Close())
	return file
}

func TestAuditQuery(t *testing.T) {
	w := bareEnv(t, t.TempDir())
	file := writeLog(t, w)
	for _, c := range []struct {
		args   string
		status int
		want   string // in what is printed
		count  string // the output of --count; "" runs without the flag
	}{
		{"", 0, `"kind":"revocation"`, "7"},
		{"--host evil.example", 0, "evil.example", "1"},
		{"--host EVIL.Example.", 0, "evil.example", "1"},
		{"--host 192.0.2.1", 0, "192.0.2.1", "1"},
		{"--host nobody.example", 0, "", "0"},
		{"--method CONNECT", 0, "evil.example", "1"},
		{"--port 25 --door kernel", 0, "192.0.2.1", "1"},
		{"--pid 8", 0, "192.0.2.1", "2"},
		{"--scheme https --allowed --kind decision", 0, "granted", "1"},
		{"--denied", 0, "malformed_request", "4"},
		{"--scheme postgres", 0, "db.example", "1"},
		{"--scheme redis", 0, "", "0"},
		{"--output table --pid 9", 0, "database:shop table:public.customers verb:select", ""},
		{"--until 2026-01-02T03:01:00Z", 0, "granted", "1"},
		{"--since 2026-01-02T03:01:00Z --until 2026-01-02T03:03:00Z", 0, "evil.example", "2"},
		{"--since 10m", 0, "", "0"},
		{"--until 10m --last 2", 0, "revoked", "2"},
		{"--output table --pid 8", 0, "CONNECT  https://evil.example:443", ""},
		{"--output json --pid 7", 0, `"host": "api.example"`, ""},
		{"--output yaml --pid 7", 0, "host: api.example", ""},
		{"--summary host", 0, "192.0.2.1      40      40       1", ""},
		{"--summary reason --output json", 0, `"value": "destination_not_granted"`, ""},
		{"--summary rule --output yaml", 0, "value: g/read", ""},
		{"--kind decisoin", exitUsage, "did you mean decision?", ""},
		{"--reason denyed", exitUsage, "did you mean --denied?", ""},
		{"--reason revokd", exitUsage, "did you mean revoked?", ""},
		{"--door proxi", exitUsage, "did you mean proxy?", ""},
		{"--output cvs", exitUsage, `"cvs" is not jsonl, table, json or yaml`, ""},
		{"--summary hosts", exitUsage, "did you mean host?", ""},
		{"--summary host --count", exitUsage, "contradict", ""},
		{"--since 1m --until 1h", exitUsage, "is not before --until", ""},
		{"--until yesterday", exitUsage, "neither a time nor a duration", ""},
		{"--last -1", exitUsage, "no negative number", ""},
		{"--denied --allowed", exitUsage, "contradict", ""},
	} {
		args := append([]string{"audit", "query", file}, strings.Fields(c.args)...)
		r := w.Chaperone(args...)
		if r.Status != c.status || !strings.Contains(r.Stdout+r.Stderr, c.want) {
			t.Errorf("%s: status %d, want %d and %q\n%s%s", c.args, r.Status, c.status, c.want, r.Stdout, r.Stderr)
		}
		if strings.ContainsAny(r.Stdout+r.Stderr, "\x1b\t") {
			t.Errorf("%s: the terminal gets what the plugin wrote:\n%q", c.args, r.Stdout)
		}
		if c.count == "" {
			continue
		}
		if r := w.Chaperone(append(args, "--count")...); strings.TrimSpace(r.Stdout) != c.count {
			t.Errorf("%s: %q records, want %s", c.args, r.Stdout, c.count)
		}
	}
	var all []map[string]any
	r := w.Chaperone("audit", "query", file, "--output", "json", "--host", "nobody.example")
	if err := json.Unmarshal([]byte(r.Stdout), &all); err != nil || all == nil || len(all) != 0 {
		t.Errorf("no records as JSON: %q, %v", r.Stdout, err)
	}
	for _, command := range []string{"query", "tail", "verify"} {
		if r := w.Chaperone("audit", command, w.File("none.jsonl")); r.Status != exitFailure || !strings.Contains(r.Stderr, "there is no audit log at") {
			t.Errorf("%s of no log: %d %s", command, r.Status, r.Stderr)
		}
		if r := w.Chaperone("audit", command); r.Status != exitUsage || !strings.Contains(r.Stderr, "which audit log?") {
			t.Errorf("%s without a log: %d %s", command, r.Status, r.Stderr)
		}
	}
}

// TestRefusedHostIsFound has a plugin try hosts in every way, and finds them all by
// name and with the process that tried.
func TestRefusedHostIsFound(t *testing.T) {
	testenv.Require(t, testenv.Superuser(), testenv.CgroupV2(), testenv.BTF(), testenv.Program("curl"), testenv.Program("python3"))
	h := newHost(t, "weather")
	testenv.Must(t, os.Chmod(h.Dir, 0o755))
	h.Write("weather/sidecar.yaml", strings.NewReplacer(`kernel: "off"`, "kernel: required", `extAuthz: "unix:envoy/s"`, `proxy: "127.0.0.1:0"`).Replace(h.Read("weather/sidecar.yaml")))
	r := h.Chaperone("run", "--config", h.config("weather"), "--", "sh", "-c", `
curl -sS https://connect.example/x
curl -sS http://plain.example/x
curl -sS -x "" https://resolved.example/x
python3 -c 'import socket; socket.getaddrinfo("python.example", 1)'
true`)
	if r.Status != 0 {
		t.Fatal(r.Stderr)
	}
	for host, exe := range map[string]string{
		"connect.example": "/curl", "plain.example": "/curl", "resolved.example": "/curl", "python.example": "/python3",
	} {
		r := h.Chaperone("audit", "query", "--config", h.config("weather"), "--host", host, "--kind", "decision", "--denied")
		var e audit.Entry
		if err := json.Unmarshal([]byte(phrase.FirstLine(r.Stdout)), &e); err != nil {
			t.Errorf("%s: %v\n%s%s", host, err, r.Stdout, r.Stderr)
			continue
		}
		if e.PID == 0 || !strings.Contains(e.Exe, exe) || e.UID == nil {
			t.Errorf("%s: by process %d, %q", host, e.PID, e.Exe)
		}
		if resolved := host == "resolved.example" || host == "python.example"; resolved != (e.Port == 0) || resolved != (e.Method == "") {
			t.Errorf("%s: port %d, method %q", host, e.Port, e.Method)
		}
	}
}
