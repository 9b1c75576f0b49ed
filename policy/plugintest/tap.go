package plugintest

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"strings"

	"github.com/chaperone-proxy/chaperone/internal/printable"
)

// WriteTAP writes results in the Test Anything Protocol, version 14: a plan, a line for
// each test point, and a YAML block below one that has not passed. An undecided test point
// is not ok: a proof that did not end proves nothing.
func WriteTAP(w io.Writer, results []Result) error {
	var out strings.Builder
	fmt.Fprintf(&out, "TAP version 14\n1..%d\n", len(results))
	for i, r := range results {
		if r.Status == Pass {
			fmt.Fprintf(&out, "ok %d - %s\n", i+1, tapText(r.Test+": "+r.Name))
			continue
		}
		fmt.Fprintf(&out, "not ok %d - %s\n  ---\n", i+1, tapText(r.Test+": "+r.Name))
		for _, line := range r.lines() {
			fmt.Fprintf(&out, "  %s: %s\n", line.name, tapValue(line.value))
		}
		out.WriteString("  ...\n")
	}
	_, err := io.WriteString(w, out.String())
	return err
}

// WriteComment writes a line that readers of TAP take as a comment.
func WriteComment(w io.Writer, format string, args ...any) {
	fmt.Fprintln(w, "# "+printable.Text(fmt.Sprintf(format, args...)))
}

// tapText escapes the description of a test point: # would begin a directive.
func tapText(s string) string {
	return printable.Text(strings.NewReplacer(`\`, `\\`, `#`, `\#`).Replace(s))
}

// tapValue returns a text as a quoted scalar, without escapes if possible: an expectation
// is there to be copied.
func tapValue(s string) string {
	if strings.Contains(s, `"`) && !strings.Contains(s, "'") && printable.Text(s) == s {
		return "'" + s + "'"
	}
	return quote(s)
}

// quote returns a text as a double-quoted scalar, which YAML and JSON read alike.
func quote(s string) string {
	var out bytes.Buffer
	encoder := json.NewEncoder(&out)
	encoder.SetEscapeHTML(false)
	_ = encoder.Encode(s) // a string always encodes
	return strings.TrimSuffix(out.String(), "\n")
}
