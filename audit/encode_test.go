package audit_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"regexp"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"

	"github.com/chaperone-proxy/chaperone/audit"
	"github.com/chaperone-proxy/chaperone/authz"
)

// written returns the line that a record becomes.
func written(t testing.TB, full bool, r *authz.Record) string {
	t.Helper()
	f := newFolder(t)
	cfg := f.config()
	cfg.FullPaths = func() bool { return full }
	log := f.open(cfg)
	if err := log.Record(r); err != nil {
		t.Fatal(err)
	}
	return strings.TrimSuffix(string(f.read()), "\n")
}

func TestText(t *testing.T) {
	tests := []struct{ in, want string }{
		{"plain ~!@#/<>&'", `plain ~!@#/<>&'`},
		{`"\`, `\"\\`},
		{"a\x00b\x1f\x7f\r\n\t", `a\u0000b\u001f\u007f\u000d\u000a\u0009`},
		{"\x1b[2J", `\u001b[2J`},
		{"\xff\xfe", `\ufffd\ufffd`},
		{"a\xc3", `a\ufffd`},
		{"\xed\xa0\x80", `\ufffd\ufffd\ufffd`}, // a surrogate is not UTF-8
		{"\ufffd", "\ufffd"},
		{"Grüße 天気 🌧", "Grüße 天気 🌧"},
		{"\u0085\u009b", `\u0085\u009b`},
		{"\u2028\u2029", `\u2028\u2029`},
		{"\u202e\u2066\u200b\ufeff", `\u202e\u2066\u200b\ufeff`},
		{"\U000e0001", `\udb40\udc01`},
		{`","allowed":true,"x":"`, `\",\"allowed\":true,\"x\":\"`},
	}
	for _, test := range tests {
		line := written(t, true, &authz.Record{Time: at, Kind: authz.KindLimit, Detail: test.in})
		if want := `"detail":"` + test.want + `","hash"`; !strings.Contains(line, want) {
			t.Errorf("%q is written as %s, want %s", test.in, line, want)
		}
	}
}

func TestLongTextIsCut(t *testing.T) {
	for _, part := range []string{"x", "ü", "🌧", "\x00", "\xff", "\U000e0001", `"`} {
		for pad := range 4 {
			long := strings.Repeat("p", pad) + strings.Repeat(part, 5000)
			line := written(t, true, &authz.Record{Time: at, Kind: authz.KindLimit, Host: long, Path: long, Detail: long})
			var entry audit.Entry
			if err := json.Unmarshal([]byte(line), &entry); err != nil {
				t.Fatalf("%q: %v", part, err)
			}
			for _, text := range []string{entry.Host, entry.Path, entry.Detail} {
				raw := strings.Count(text, "") - 1
				if !strings.HasSuffix(text, "…") || raw < 2048/12 || len(text) > 2048 {
					t.Errorf("%q padded by %d: %d bytes, ends in %q", part, pad, len(text), text[len(text)-6:])
				}
			}
			if len(line) > 3*2048+300 {
				t.Errorf("%q: line of %d bytes", part, len(line))
			}
		}
	}
	exact := strings.Repeat("x", 2048)
	if line := written(t, true, &authz.Record{Time: at, Kind: authz.KindLimit, Detail: exact}); !strings.Contains(line, exact) {
		t.Error("a text of 2048 bytes is cut")
	}
}

func TestManyFilesAreBounded(t *testing.T) {
	files := map[string]string{}
	for i := range 1000 {
		files[fmt.Sprintf("%04d%s", i, strings.Repeat("\x00", 4000))] = strings.Repeat("a", 64)
	}
	line := written(t, true, &authz.Record{Time: at, Kind: authz.KindReload, Files: files})
	var entry audit.Entry
	if err := json.Unmarshal([]byte(line), &entry); err != nil || len(entry.Files) != 65 || entry.Files["…"] != "and 936 more" || len(line) > 100<<10 {
		t.Errorf("%d files, rest %q, %d bytes, %v", len(entry.Files), entry.Files["…"], len(line), err)
	}
}

func TestMask(t *testing.T) {
	const m = "~" // stands for a mask
	long := "/" + strings.Repeat("a/", 40) + "z"
	tests := []struct{ pattern, path, want string }{
		{"/v1/forecast/*", "/v1/forecast/berlin", "/v1/forecast/~"},
		{"/v1/*/days/*", "/v1/berlin/days/3", "/v1/~/days/~"},
		{"/v1/alerts/**", "/v1/alerts/de/be/1", "/v1/alerts/~/~/~"},
		{"/v1/alerts/**", "/v1/alerts/", "/v1/alerts/"},
		{"/**", "/", "/"},
		{"/**", "/a/b/", "/~/~/"},
		{"/a/b", "/a/b", "/a/b"},
		{"", "/a/secret", "/~/~"},                        // no rule came near
		{"", "/secret", "/~"},                            //
		{"", long, strings.Repeat("/~", 16) + "…"},       // the rest is one mask
		{"/a/*", "/a/b/c", "/a/~/~"},                     // beyond the pattern
		{"/a", "/a/token", "/a/~"},                       //
		{"/v1/users/*", "/v2/users/alice", "/~/users/~"}, // the differing part is the plugin's choice
		{"/v1/users/*", "/v1", "/v1"},
		{"/*", "/*", "/~"},
		{"/a/**", "/a/**/b", "/a/~/~"},
		{"/**", "/**", "/~"},
		{"/a/*/b", "/a/~x/b", "/a/~/b"},
		{"/a/*", "/a/\"\xff\x00", "/a/~"},
		{"/**", long, strings.Repeat("/~", 16) + "…"},
		{"/a/*", "/a/b%2Fc", "/a/~%2F"},
		{"/a/b%2Fc/*", "/a/b%2Fc/d", "/a/b%2Fc/~"},
		{"/~AAAAAAAAAAAAAAAA/~A", "/~AAAAAAAAAAAAAAAA/~A", "/~/~A"}, // a literal in the form of a mask is masked
	}
	for _, test := range tests {
		r := sample()
		r.Pattern, r.Path = test.pattern, test.path
		var entry audit.Entry
		if err := json.Unmarshal([]byte(written(t, false, r)), &entry); err != nil {
			t.Fatal(err)
		}
		if got := unmask(entry.Path, m); got != test.want {
			t.Errorf("%s masked by %q is %s (%s), want %s", test.path, test.pattern, got, entry.Path, test.want)
		}
	}
}

// unmask replaces each mask by mark.
func unmask(path, mark string) string {
	segments := strings.Split(path, "/")
	for i, segment := range segments {
		if audit.IsMask(segment) {
			segments[i] = mark + segment[17:]
		}
	}
	return strings.Join(segments, "/")
}

// TestMasksCanBeLookedFor: a known value can be searched for; an unknown one cannot be
// read, and equal ones are equal within one log only.
func TestMasksCanBeLookedFor(t *testing.T) {
	f := newFolder(t)
	log := f.open(f.config())
	record(t, log, 1)
	key, err := audit.LoadKey(f.dir)
	if err != nil {
		t.Fatal(err)
	}
	line := string(f.read())
	for _, want := range []string{
		`"path":"/v1/forecast/` + key.MaskPath("berlin") + `"`,
		`"query":"` + key.MaskQuery("units=metric") + `"`,
		`"lease":"` + key.MaskLease("database/creds/ro/abc") + `"`,
	} {
		if !strings.Contains(line, want) {
			t.Errorf("%s lacks %s", line, want)
		}
	}
	if key.MaskPath("x") == key.MaskQuery("x") || key.MaskPath("x") == key.MaskLease("x") {
		t.Error("one value has the same mask as a segment and as a query")
	}
	for _, secret := range []string{"berlin", "metric", "abc\""} {
		if strings.Contains(line, secret) {
			t.Errorf("%s shows %s", line, secret)
		}
	}
	second := sample()
	second.Lease = "database/creds/ro/def"
	if err := log.Record(second); err != nil || !strings.Contains(f.lines()[1], key.MaskLease(second.Lease)) {
		t.Errorf("%s lacks the second lease (%v)", f.lines()[1], err)
	}
	other := newFolder(t)
	other.write(other.config(), 1)
	if otherKey, err := audit.LoadKey(other.dir); err != nil || otherKey.MaskPath("berlin") == key.MaskPath("berlin") {
		t.Errorf("two logs mask alike (%v)", err)
	}
	if full := written(t, true, sample()); !strings.Contains(full, `"path":"/v1/forecast/berlin","query":"units=metric"`) || strings.Contains(full, "creds") {
		t.Errorf("full: %s", full)
	}
}

// TestMaskQuery: each parameter's name and value is masked on its own.
func TestMaskQuery(t *testing.T) {
	f := newFolder(t)
	f.open(f.config())
	key, err := audit.LoadKey(f.dir)
	if err != nil {
		t.Fatal(err)
	}
	const mask = `~[A-Za-z0-9_-]{16}`
	for query, want := range map[string]string{
		"a=1":                         mask + "=" + mask,
		"a=1&b=":                      mask + "=" + mask + "&" + mask + "=",
		"flag&=x&":                    mask + "&=" + mask + "&",
		"a=b=c":                       mask + "=" + mask,
		strings.Repeat("x&", 7) + "y": strings.Repeat(mask+"&", 7) + mask,
		strings.Repeat("x&", 9) + "y": strings.Repeat(mask+"&", 8) + mask + "…",
	} {
		if got := key.MaskQuery(query); !regexp.MustCompile("^" + want + "$").MatchString(got) {
			t.Errorf("mask of %q is %q, want %s", query, got, want)
		}
	}
	if a, b := key.MaskQuery("page=1"), key.MaskQuery("page=2"); a == b || a[:17] != b[:17] {
		t.Errorf("masks %s and %s, want one name and two values", a, b)
	}
	if name, value, _ := strings.Cut(key.MaskQuery("x=x"), "="); name == value || name == key.MaskPath("x") {
		t.Errorf("a name, a value and a segment have the masks %s, %s and %s, want three", name, value, key.MaskPath("x"))
	}
}

// TestAskedFields: what a decision depends on can be read back.
func TestAskedFields(t *testing.T) {
	r := sample()
	r.AskedScheme, r.AskedPort, r.Upgrade, r.DecidedBy = "http", 8080, "websocket", authz.StateLimits
	r.Unenforceable = authz.ConditionAddresses | authz.ConditionSignature
	r.Protocol, r.Facts = "mcp", []string{"tools/call", "\"x\""}
	r.Resolved = []netip.Addr{netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("2001:db8::1")}
	r.Region, r.TLS = "eu", "1.3"
	var entry audit.Entry
	if err := json.Unmarshal([]byte(written(t, false, r)), &entry); err != nil {
		t.Fatal(err)
	}
	want := entry
	want.Format, want.AskedScheme, want.AskedPort = audit.FormatReplayable, "http", 8080
	want.Upgrade, want.DecidedBy, want.Unenforceable = "websocket", "limits", []string{"addresses", "signature"}
	want.Protocol, want.Facts, want.Resolved = r.Protocol, r.Facts, r.Resolved
	want.Region, want.TLS = r.Region, r.TLS
	if diff := cmp.Diff(want, entry, cmp.Comparer(func(a, b netip.Addr) bool { return a == b })); diff != "" {
		t.Error(diff)
	}
	if len(entry.Masked) != 6 {
		t.Errorf("got key ID %q, want 6 characters", entry.Masked)
	}
	for c := authz.Conditions(1); c.Name() != ""; c <<= 1 {
		if got, ok := authz.ParseCondition(c.Name()); !ok || got != c {
			t.Errorf("condition %q is read as %v", c.Name(), got)
		}
	}
}

// TestStatementFields: a statement's record links to its session, and has the text of the
// statement only in a full log.
func TestStatementFields(t *testing.T) {
	r := sample()
	r.Kind, r.Path, r.Query = authz.KindEnd, "", ""
	r.Session, r.Rows, r.Statement = "0193f6c2-0000-7000-8000-000000000000", 42, "SELECT * FROM orders WHERE name = $1 -- \x1b[2J"
	for _, full := range []bool{false, true} {
		var entry audit.Entry
		if err := json.Unmarshal([]byte(written(t, full, r)), &entry); err != nil {
			t.Fatal(err)
		}
		want := ""
		if full {
			want = r.Statement
		}
		if entry.Session != r.Session || entry.Rows != 42 || entry.Statement != want {
			t.Errorf("full %t: session %q, rows %d, statement %q", full, entry.Session, entry.Rows, entry.Statement)
		}
	}
	if line := written(t, true, r); strings.Contains(line, "\x1b") {
		t.Errorf("a control byte is written raw: %q", line)
	}
}

// FuzzRecord: for any text of a plugin the line is one JSON object with the same
// values, and the chain is valid.
func FuzzRecord(f *testing.F) {
	f.Add("weather", "api.weather.example", "/v1/forecast/x", "/v1/forecast/*", "a=b", "said", 4)
	f.Add("\xff\u2028", "\"},{\"", "//\x00", "/**", "\n", "\x1b[2J\U000e0001", -1)
	dir := newFolder(f)
	cfg := dir.config()
	cfg.MaxSize, cfg.Keep = 64<<10, 2
	log := dir.open(cfg)
	f.Fuzz(func(t *testing.T, plugin, host, path, pattern, query, detail string, number int) {
		err := log.Record(&authz.Record{
			Time: at, Kind: authz.KindDecision, Plugin: plugin, Host: host, Path: path, Pattern: pattern, Query: query,
			Detail: detail, Port: uint16(number), PID: number, UID: number, Count: number, Bytes: int64(number),
			Files: map[string]string{host: path, detail: query},
		})
		if err != nil {
			t.Fatal(err)
		}
		var entry audit.Entry
		for last, err := range audit.Read(t.Context(), audit.Query{File: dir.file(), Last: 1}) {
			if err != nil {
				t.Fatal(err)
			}
			entry = last
		}
		decoder := json.NewDecoder(strings.NewReader(string(entry.Raw)))
		decoder.DisallowUnknownFields()
		if err := errors.Join(decoder.Decode(&audit.Entry{}), checkText(plugin, entry.Plugin), checkText(host, entry.Host), checkText(detail, entry.Detail)); err != nil {
			t.Errorf("%s: %v", entry.Raw, err)
		}
		if entry.PID != number || entry.Kind != "decision" {
			t.Errorf("%s: number %d", entry.Raw, number)
		}
		if report, err := audit.Verify(audit.VerifyConfig{File: dir.file(), StateDir: dir.dir}); err != nil || report.Problem != nil {
			t.Errorf("verify: %v, %v", report.Problem, err)
		}
	})
}

func checkText(said, got string) error {
	want := strings.ToValidUTF8(said, "\ufffd")
	if utf8.ValidString(said) && got != want && !strings.HasSuffix(got, "…") {
		return fmt.Errorf("%q is read as %q", said, got)
	}
	return nil
}
