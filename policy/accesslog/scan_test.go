package accesslog

import (
	"encoding/json"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/chaperone-proxy/chaperone/audit"
	"github.com/chaperone-proxy/chaperone/authz"
)

// lines returns lines that the log writes: a decision with all fields, an end, a count.
func lines(tb testing.TB) []string {
	dir := tb.TempDir()
	at := time.Date(2026, 12, 1, 12, 0, 0, 123456789, time.UTC)
	log, err := audit.Open(audit.Config{StateDir: dir, Now: func() time.Time { return at }})
	if err != nil {
		tb.Fatal(err)
	}
	full := authz.Record{
		Time: at, Kind: authz.KindDecision, Plugin: "weather", Door: authz.DoorExtAuthz, Decision: "0193f6c2-7c1e-7000-8000-0123456789ab",
		Allowed: true, Reason: "granted", Grant: "weather", Rule: "read", Generation: 3, Method: "GET", Scheme: "https", Host: "api.weather.example",
		Port: 443, Path: "/v1/forecast/oslo", Pattern: "/v1/forecast/*", Query: "a=1&b=2", Credential: "key", Lease: "lease", PID: 4711,
		Exe: "/usr/bin/curl", UID: 1000, Actor: "uid:0", TraceID: "4bf92f3577b34da6a3ce929d0e0e4736", SpanID: "00f067aa0ba902b7", Latency: time.Millisecond,
		AskedScheme: "http", AskedPort: 80, Upgrade: "websocket", Unenforceable: authz.ConditionTLS | authz.ConditionTimeout, DecidedBy: authz.StateLimits,
	}
	end := full
	end.Kind, end.Bytes, end.SentBytes, end.Address, end.Detail = authz.KindEnd, 10, 20, "192.0.2.1:443", "no answer"
	end.Resolved = []netip.Addr{netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("2001:db8::1")}
	end.Region, end.TLS = "eu", "1.3"
	attempt := authz.Record{Time: at, Kind: authz.KindDecision, Attempt: true, Host: "evil.example", Reason: "no_grant", UID: -1}
	escaped := full
	escaped.Detail, escaped.Plugin = "\x1b\"\u202e", `wea"ther`
	for _, r := range []*authz.Record{&full, &end, &attempt, &escaped, {Time: at, Kind: authz.KindReload, Files: map[string]string{"a": "b"}}} {
		if err := log.Record(r); err != nil {
			tb.Fatal(err)
		}
	}
	if err := log.Close(); err != nil {
		tb.Fatal(err)
	}
	data, err := os.ReadFile(dir + "/" + audit.DefaultFile)
	if err != nil {
		tb.Fatal(err)
	}
	return strings.Split(strings.TrimSpace(string(data)), "\n")
}

// TestScanIsFast: lines of accesses are scanned, unless they hold an escape.
func TestScanIsFast(t *testing.T) {
	all := lines(t)
	for i, want := range []bool{true, true, true, false, false} {
		if got := newScanner().access([]byte(all[i])) != nil; got != want {
			t.Errorf("%s: scanned %v, want %v", all[i], got, want)
		}
	}
}

// failer is a test, or one case of a property.
type failer interface {
	Fatalf(format string, args ...any)
}

// compare checks that a line is scanned to what encoding/json decodes, or not at all.
func compare(t failer, s *scanner, line string) {
	scanned := s.access([]byte(line))
	if scanned == nil {
		return
	}
	got := *scanned
	var want audit.Entry
	if err := json.Unmarshal([]byte(line), &want); err != nil {
		t.Fatalf("%q is scanned, and encoding/json reports: %v", line, err)
	}
	prev, hash := prevAndHash([]byte(line))
	got.Prev, got.Hash = string(prev), string(hash)
	// These are not decoded, and are read as the values that they must have.
	want.Lease, want.PID, want.Exe, want.UID, want.Actor, want.TraceID, want.SpanID, want.Detail = "", 0, "", nil, "", "", "", ""
	want.TLS = ""
	if want.Kind == "end" {
		want.Plugin, want.Door, want.Grant, want.Rule, want.Method, want.Scheme, want.Host, want.Path = "", "", "", "", "", "", "", ""
		want.Query, want.Masked, want.AskedScheme, want.Upgrade, want.DecidedBy, want.Credential = "", "", "", "", "", ""
		want.Generation, want.Port = 0, 0
	}
	if diff := cmp.Diff(want, got, cmp.Comparer(func(a, b netip.Addr) bool { return a == b })); diff != "" {
		t.Fatalf("%q (-encoding/json +scanned):\n%s", line, diff)
	}
}

// FuzzScan: for any line the scanner has the result of encoding/json, or leaves it to it,
// whatever lines it read before.
func FuzzScan(f *testing.F) {
	all := lines(f)
	for i, line := range all {
		before := all[(i+len(all)-1)%len(all)]
		f.Add(before, line)
		for _, change := range [][2]string{
			{`"port":443`, `"port":65536`},
			{`"port":443`, `"port":-0`},
			{`"port":443`, `"port":0443`},
			{`"port":443`, `"Port":443`},
			{`"port":443`, `"port":443,"port":1`},
			{`:00.123456789Z`, `:60Z`},
			{`2026-12-01`, `2026-02-30`},
			{`2026-12-01`, `0000-01-01`},
			{`T12:`, `T24:`},
			{`Z"`, `+01:00"`},
			{`.123456789Z`, `.Z`},
			{`true`, `null`},
			{`"kind":"decision"`, `"kind":"decision" `},
			{`192.0.2.1"`, `192.0.2.01"`},
			{`["tls"`, `["tls",`},
			{`"latency_us":1000`, `"latency_us":1e3`},
			{`"pid":4711`, `"pid":9999999999999999999`},
			{`"pid":4711`, `"pid":"4711"`},
			{`"exe":"`, `"exe":"` + "\x7f\xff"},
			{`"seq":1,`, `"seq":0,`},
			{`,"hash"`, `,"x":1,"hash"`},
			{`"format":2`, `"format":-1`},
			{`"generation":3`, `"generation":-3`},
			{`"generation":3`, `"generation":3}`},
		} {
			changed := strings.Replace(line, change[0], change[1], 1)
			f.Add(before, changed)
			f.Add(changed, line)
			f.Add(line, changed)
		}
	}
	f.Fuzz(func(t *testing.T, first, second string) {
		s := newScanner()
		for _, line := range []string{first, second, second, first, second} {
			compare(t, s, line)
		}
	})
}

// TestScanAfterOthers: the fields of a line are its own, whichever fields the lines before
// it had.
func TestScanAfterOthers(t *testing.T) {
	originals, names := lines(t)[:3], names()
	rapid.Check(t, func(t *rapid.T) {
		s, pool := newScanner(), slices.Clone(originals)
		for range rapid.IntRange(1, 4).Draw(t, "changes") {
			edit := drawEdit(t, names[fieldPlugin:])
			for _, line := range pool {
				if changed := edit.apply(line); changed != line {
					pool = append(pool, changed) // a decision and its end alike
				}
			}
		}
		for _, step := range rapid.SliceOfN(rapid.IntRange(0, len(pool)-1), 2, 24).Draw(t, "steps") {
			for range 2 { // a line and the one that was changed like it
				compare(t, s, pool[step%len(pool)])
				step++
			}
		}
	})
}

// TestScanLongerThanBefore: a line that goes on where the one before it ended is read to
// its end.
func TestScanLongerThanBefore(t *testing.T) {
	attempt := lines(t)[2]
	for _, line := range []string{attempt, strings.Replace(attempt, `,"hash"`, `0,"hash"`, 1), strings.Replace(attempt, `,"hash"`, `,"hash":"","hash"`, 1)} {
		s := newScanner()
		compare(t, s, strings.Replace(attempt, `,"attempt":true`, "", 1))
		compare(t, s, attempt)
		compare(t, s, line)
	}
}

// edit removes a field, or gives it another value.
type edit struct{ name, value string }

func drawEdit(t *rapid.T, names []string) edit {
	values := []string{"", `""`, `"a"`, "\"`\"", `"\\n"`, `"\u00fc"`, "0", "1", "11", "65536", "-1", "false", `["tls"]`, `["192.0.2.9"]`, "[]"}
	return edit{rapid.SampledFrom(names).Draw(t, "name"), rapid.SampledFrom(values).Draw(t, "value")}
}

func (e edit) apply(line string) string {
	at := strings.Index(line, ","+e.name)
	if at < 0 {
		return line
	}
	value := line[at+1+len(e.name):]
	end := strings.IndexAny(value, ",}")
	if value[0] == '[' {
		end = strings.IndexByte(value, ']') + 1
	}
	if e.value == "" {
		return line[:at] + value[end:]
	}
	return line[:at+1+len(e.name)] + e.value + value[end:]
}
