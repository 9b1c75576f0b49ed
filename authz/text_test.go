package authz

import (
	"encoding/json"
	"go/ast"
	"go/parser"
	"go/token"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// sources parses the package's files, but for its tests.
func sources(t *testing.T) (*token.FileSet, []*ast.File) {
	t.Helper()
	names, err := filepath.Glob("*.go")
	if err != nil {
		t.Fatal(err)
	}
	set := token.NewFileSet()
	var files []*ast.File
	for _, name := range names {
		if strings.HasSuffix(name, "_test.go") {
			continue
		}
		file, err := parser.ParseFile(set, name, nil, parser.ParseComments)
		if err != nil {
			t.Fatal(err)
		}
		files = append(files, file)
	}
	if len(files) == 0 {
		t.Fatal("there are no files")
	}
	return set, files
}

// TestImports: the package imports the standard library, and of that neither
// net/http nor os, and never looks at a clock.
func TestImports(t *testing.T) {
	set, files := sources(t)
	for _, file := range files {
		for _, spec := range file.Imports {
			path := strings.Trim(spec.Path.Value, `"`)
			first, _, _ := strings.Cut(path, "/")
			switch {
			case strings.Contains(first, "."), path == "net/http", path == "os", path == "log", path == "unsafe", path == "C":
				t.Errorf("%s: imports %s", set.Position(spec.Pos()), path)
			}
		}
		ast.Inspect(file, func(n ast.Node) bool {
			s, ok := n.(*ast.SelectorExpr)
			if !ok {
				return true
			}
			if x, ok := s.X.(*ast.Ident); ok && x.Name == "time" && slices.Contains([]string{"Now", "Since", "Until"}, s.Sel.Name) {
				t.Errorf("%s: looks at the clock", set.Position(s.Pos()))
			}
			return true
		})
	}
}

// TestDocumented: every exported function and type has a comment.
func TestDocumented(t *testing.T) {
	set, files := sources(t)
	for _, file := range files {
		for _, decl := range file.Decls {
			switch d := decl.(type) {
			case *ast.FuncDecl:
				if d.Name.IsExported() && d.Doc == nil {
					t.Errorf("%s: %s has no comment", set.Position(d.Pos()), d.Name)
				}
			case *ast.GenDecl:
				for _, spec := range d.Specs {
					if s, ok := spec.(*ast.TypeSpec); ok && s.Name.IsExported() && d.Doc == nil && s.Doc == nil {
						t.Errorf("%s: %s has no comment", set.Position(s.Pos()), s.Name)
					}
				}
			}
		}
	}
}

func TestUpgradesAsked(t *testing.T) {
	for _, test := range []struct{ sent, want string }{
		{"", ""},
		{"websocket", "websocket"},
		{"SPDY/3.1", "SPDY/3.1"},
		{"TLS/1.2", ""},
		{"TLS/1.0, HTTP/1.1", ""},
		{"h2c", ""},
		{"H2C", ""},
		{"HTTP/2.0, SHTTP/1.3, IRC/6.9, RTA/x11", "SHTTP/1.3|IRC/6.9|RTA/x11"}, // RFC 9110, section 7.8
		{"h2c, websocket", "websocket"},
		{" ,, tcp ,", "tcp"},
		{"h2cx", "h2cx"},
	} {
		if got := strings.Join(UpgradesAsked([]string{test.sent}), "|"); got != test.want {
			t.Errorf("%q asks for %q, want %q", test.sent, got, test.want)
		}
	}
	if got := UpgradesAsked([]string{"h2c", "tcp", "TLS/1.3"}); len(got) != 1 || got[0] != "tcp" {
		t.Errorf("three values ask for %q", got)
	}
}

func TestAction(t *testing.T) {
	for _, test := range []struct{ method, upgrade, want string }{
		{"GET", "", "GET"},
		{"get", "", "get"},
		{"GET", "WebSocket", "GET+websocket"},
		{strings.Repeat("X", 64), "", strings.Repeat("X", 64)},
		{strings.Repeat("X", 65), "", `method "` + strings.Repeat("X", 65) + `" is not a token of at most 64 bytes`},
		{"", "", `method "" is not a token of at most 64 bytes`},
		{"GET\r\n", "", `method "GET??" is not a token of at most 64 bytes`},
		{"CONNECT", "", "method CONNECT is not a request; use another method"},
		{"PRI", "", "method PRI is not a request; use another method"},
		{"GET", "websocket, h2c", `upgrade "websocket, h2c" is not one protocol; name one, as in websocket`},
		{"GET", "SPDY/3.1", "GET+spdy/3.1"},
		{"GET", "spdy/3/1", `upgrade "spdy/3/1" is not one protocol; name one, as in websocket`},
		{"GET", "/1", `upgrade "/1" is not one protocol; name one, as in websocket`},
		{"GET", strings.Repeat("x", 65), `upgrade "` + strings.Repeat("x", 65) + `" is not one protocol; name one, as in websocket`},
	} {
		a, err := NewAction(test.method, test.upgrade)
		got := a.Method
		if a.Upgrade != "" {
			got += "+" + a.Upgrade
		}
		if err != nil {
			got = err.Error()
			if a != (Action{}) {
				t.Errorf("%q: an action beside an error", test.method)
			}
		}
		if got != test.want {
			t.Errorf("%q %q is %q", test.method, test.upgrade, got)
		}
	}
}

func TestClip(t *testing.T) {
	long := strings.Repeat("ä", 150)
	for in, want := range map[string]string{
		"":                       "",
		"plain text, äöü 漢字":     "plain text, äöü 漢字",
		"a\x1b[31m\r\nb\x00c":    "a?[31m??b?c",
		"bidi\u202Eevil\u2066":   "bidi?evil?",
		"line\u2028para\u2029":   "line?para?",
		"c1\u0085\u009b":         "c1??",
		"bad\xff\xfeutf8":        "bad??utf8",
		"\ufffd":                 "?",
		strings.Repeat("x", 200): strings.Repeat("x", 200),
		strings.Repeat("x", 201): strings.Repeat("x", 200) + "...",
		long:                     strings.Repeat("ä", 100) + "...",
		"a" + long:               "a" + strings.Repeat("ä", 99) + "?...",
	} {
		if got := clip(in); got != want {
			t.Errorf("%q is clipped to %q", in, got)
		}
	}
}

// TestUnits: what is read is what is written.
func TestUnits(t *testing.T) {
	type unit interface {
		UnmarshalText([]byte) error
		MarshalText() ([]byte, error)
	}
	duration := func() unit { return new(Duration) }
	size := func() unit { return new(Size) }
	limit := func() unit { return new(Limit) }
	bytes := func() unit { return new(ByteLimit) }
	for _, test := range []struct {
		of       func() unit
		in, want string // "" when it is refused
	}{
		{duration, "250ms", "250ms"},
		{duration, "10s", "10s"},
		{duration, "60s", "1m"},
		{duration, "24h", "1d"},
		{duration, "30d", "30d"},
		{duration, "1500ms", "1500ms"},
		{duration, "", ""},
		{duration, "10", ""},
		{duration, "0s", ""},
		{duration, "-1s", ""},
		{duration, "+1s", ""},
		{duration, "01s", ""},
		{duration, "1.5s", ""},
		{duration, "1h30m", ""},
		{duration, "1 s", ""},
		{duration, "1S", ""},
		{duration, "s", ""},
		{duration, "1us", ""},
		{duration, "106752d", ""},
		{duration, "106751d", "106751d"},
		{duration, "9223372036854775808ms", ""},
		{size, "10KiB", "10KiB"},
		{size, "5MiB", "5MiB"},
		{size, "1GiB", "1GiB"},
		{size, "1024KiB", "1MiB"},
		{size, "1KB", "1000"},
		{size, "2MB", "2000000"},
		{size, "3GB", "3000000000"},
		{size, "7", "7"},
		{size, "", ""},
		{size, "0", ""},
		{size, "10B", ""},
		{size, "10kib", ""},
		{size, "1TiB", ""},
		{size, "9223372036854775807", "9223372036854775807"},
		{size, "9223372036854775808", ""},
		{size, "8589934592GiB", ""},
		{limit, "100/1m", "100/1m"},
		{limit, "5000", "5000"},
		{limit, "1/90s", "1/90s"},
		{limit, "", ""},
		{limit, "0", ""},
		{limit, "0/1m", ""},
		{limit, "1/", ""},
		{limit, "/1m", ""},
		{limit, "1/m", ""},
		{limit, "1/1m/1", ""},
		{limit, "10KiB/1m", ""},
		{limit, "1e3", ""},
		{limit, "1_000", ""},
		{bytes, "10MiB/1m", "10MiB/1m"},
		{bytes, "5GiB", "5GiB"},
		{bytes, "100/1s", "100/1s"},
		{bytes, "x", ""},
		{bytes, "1MiB/0s", ""},
	} {
		u := test.of()
		err := u.UnmarshalText([]byte(test.in))
		if test.want == "" {
			if err == nil || !strings.Contains(err.Error(), "write") || !strings.Contains(err.Error(), "as in") {
				t.Errorf("%T %q: %v", u, test.in, err)
			}
			continue
		}
		text, merr := u.MarshalText()
		if err != nil || merr != nil || string(text) != test.want {
			t.Errorf("%T %q is %q (%v, %v)", u, test.in, text, err, merr)
		}
		again := test.of()
		if err := again.UnmarshalText(text); err != nil {
			t.Errorf("%T %q is not read again: %v", u, text, err)
		}
	}
	for _, zero := range []unit{new(Limit), new(ByteLimit)} {
		if text, err := zero.MarshalText(); err != nil || len(text) != 0 {
			t.Errorf("the zero %T is %q, %v", zero, text, err)
		}
	}
	if Duration(0).String() != "0" || Size(0).String() != "0" || Duration(time.Millisecond).String() != "1ms" {
		t.Error("zero units are written otherwise")
	}
	data, err := json.Marshal(forecast().Limits)
	if err != nil || string(data) != "{}" {
		t.Errorf("no limits are %s, %v", data, err)
	}
}

func TestSchemes(t *testing.T) {
	for scheme, port := range map[Scheme]uint16{SchemeHTTPS: 443, SchemeHTTP: 80, SchemeTLS: 443, SchemeTCP: 0, "gopher": 0} {
		if scheme.DefaultPort() != port {
			t.Errorf("the port of %s is %d", scheme, scheme.DefaultPort())
		}
	}
}
