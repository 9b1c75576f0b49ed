package main

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"text/tabwriter"
	"time"
	"unicode"

	"go.uber.org/zap"

	"github.com/chaperone-proxy/chaperone/audit"
	"github.com/chaperone-proxy/chaperone/authz"
	"github.com/chaperone-proxy/chaperone/internal/printable"
	"github.com/chaperone-proxy/chaperone/internal/testenv"
)

// hostileTexts would forge lines, move a terminal's cursor or hide what follows.
func hostileTexts() []string {
	return []string{
		"x\nchaperone: FORGED: all is well", "\x1b[2J\x1b]0;owned\x07", "\u009b2J", "\u202eevil\u2066", "a\r\x00b\x7f\x85", "\xff\xc3\x28",
		"\n<3>FORGED", "\u2028\u2029\ufeff", "\v\f\tcell", strings.Repeat("\n\x1b", 500),
	}
}

// hostileText picks one, or several.
func hostileText(r *rand.Rand) string {
	all := hostileTexts()
	return all[r.IntN(len(all))] + all[r.IntN(len(all))]
}

// prints checks that text has the given number of lines, 0 for any, and controls nothing.
func prints(t *testing.T, what, text string, lines int) {
	t.Helper()
	for _, r := range text {
		if r != '\n' && !unicode.IsPrint(r) && (lines > 0 || r != '\t') {
			t.Fatalf("%s prints %q:\n%.300q", what, r, text)
		}
	}
	if n := strings.Count(text, "\n"); lines > 0 && n != lines {
		t.Errorf("%s: got %d lines, want %d:\n%.300q", what, n, lines, text)
	}
	for line := range strings.Lines(text) {
		if strings.HasPrefix(line, "chaperone: FORGED") || strings.HasPrefix(line, "<3>") {
			t.Errorf("%s prints the line %q", what, line)
		}
	}
}

// Text of a plugin, an upstream or a file controls no terminal and forges no line,
// whichever way it is printed.
func TestPrintedTextIsQuoted(t *testing.T) {
	for seed := range uint64(10) {
		r := rand.New(rand.NewPCG(seed, 3))
		text := func() string { return hostileText(r) }
		var out bytes.Buffer
		w := printable.NewWriter(&out)
		printer := newRefusalPrinter(w)
		printer.print(authz.Refusal{
			Reason: authz.PathNotGranted, Detail: text(), Plugin: text(), Decision: text(), Method: text(), URL: text(), Remedy: text(),
		})
		prints(t, "the refusal printer", out.String(), 2)
		out.Reset()
		printer.act(text(), text())
		prints(t, "the limit printer", out.String(), 2)
		out.Reset()
		say(w, "chaperone: %s: %v", text(), errors.Join(errors.New(text()), errors.New(text())))
		prints(t, "a message", out.String(), 1)
		out.Reset()
		table := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
		row(table, text(), "column", text())
		row(table, "a", "b", text())
		testenv.Must(t, table.Flush())
		prints(t, "a table", out.String(), 2)
		out.Reset()
		log := testenv.MustGet(newLogger(w, "info", false))(t)
		log.Warn(text(), zap.String("field", text()), zap.Error(errors.New(text())), zap.ByteString("bytes", []byte(text())))
		prints(t, "the operator's log", out.String(), 1)
	}
}

// A log that was written, and one that somebody else has put bytes into.
func TestPrintedRecordsAreQuoted(t *testing.T) {
	dir := t.TempDir()
	log := testenv.MustGet(audit.Open(audit.Config{StateDir: dir, FullPaths: func() bool { return true }}))(t)
	texts := hostileTexts()
	for i, text := range texts {
		other := texts[(i+1)%len(texts)]
		testenv.Must(t, log.Record(&authz.Record{
			Time: time.Now(), Kind: authz.KindDecision, Plugin: text, Door: authz.DoorProxy, Reason: other, Grant: text, Rule: other,
			Method: text, Scheme: other, Host: text, Path: other, Query: text, Address: text, Credential: other, Exe: text, Detail: other, Actor: text,
		}))
	}
	testenv.Must(t, log.Close())
	file := filepath.Join(dir, audit.DefaultFile)
	f := testenv.MustGet(os.OpenFile(file, os.O_APPEND|os.O_WRONLY, 0))(t)
	for _, text := range texts {
		testenv.MustGet(f.WriteString(text + "\n"))(t)
	}
	testenv.Must(t, f.Close())
	for _, args := range [][]string{
		{"audit", "tail"},
		{"audit", "query"},
		{"audit", "query", "--output", "table"},
		{"audit", "query", "--output", "json"},
		{"audit", "query", "--output", "yaml"},
		{"audit", "query", "--summary", "host"},
		{"audit", "query", "--summary", "exe"},
		{"audit", "verify"},
		{"audit", "verify", "--output", "json"},
		{"audit", "query", "--plugin", texts[1], "--output", "table"},
		{"explain", texts[0], texts[1]},
		{"revoke", texts[1]},
		{texts[1]},
		{"audit", "tail", texts[1]},
	} {
		if args[0] == "audit" && len(args) > 1 && args[len(args)-1] != texts[1] {
			args = append(args, file)
		}
		var stdout, stderr bytes.Buffer
		execute(t.Context(), args, nil, &stdout, &stderr)
		prints(t, strings.Join(args[:min(len(args), 4)], " "), stdout.String()+stderr.String(), 0)
	}
}
