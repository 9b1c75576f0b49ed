package evidence

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/chaperone-proxy/chaperone/internal/dsse"
	"github.com/chaperone-proxy/chaperone/internal/printable"
)

// Bounds of a source. A larger one is refused, never cut: a cut report has fewer findings.
const (
	MaxSource     = 16 << 20 // bytes
	maxContainers = 400_000  // objects and lists of a source
	maxFindings   = 10_000
	maxComponents = 20_000
	maxStatements = 10_000
	maxTests      = 200_000
	maxDepth      = 64
	maxName       = 512 // bytes of a name, which is never cut
	maxMessage    = 300 // bytes of text for people, which is cut
)

// decode reads one JSON value into out. Unknown fields are ignored, as the formats demand.
func decode(data []byte, out any) error {
	if n := bytes.Count(data, []byte("{")) + bytes.Count(data, []byte("[")); n > maxContainers {
		return fmt.Errorf("it has %d objects and lists; at most %d are allowed", n, maxContainers)
	}
	if err := dsse.CheckJSON(data); err != nil {
		return err
	}
	if err := json.Unmarshal(data, out); err != nil {
		return fmt.Errorf("it is not the expected JSON: %s", printable.Clip(err.Error(), maxMessage))
	}
	return nil
}

// Canonical returns the JSON of a value of this package or of governance/risk: fields in
// the order of their declaration, no spaces, and characters as they are.
func Canonical(v any) ([]byte, error) {
	var out bytes.Buffer
	e := json.NewEncoder(&out)
	e.SetEscapeHTML(false)
	if err := e.Encode(v); err != nil {
		return nil, fmt.Errorf("write JSON: %w", err)
	}
	return bytes.TrimRight(out.Bytes(), "\n"), nil
}

// reader collects the first fault of a source's fields, with the field's name.
type reader struct{ err error }

func (r *reader) fail(format string, args ...any) {
	if r.err == nil {
		r.err = fmt.Errorf(format, args...)
	}
}

// name returns a name that others are compared with. It is refused rather than cut or
// escaped, since two names must not become one. Spaces around it are removed.
func (r *reader) name(field, s string) string {
	s = strings.TrimSpace(s)
	if len(s) > maxName || !utf8.ValidString(s) || strings.ContainsFunc(s, func(c rune) bool { return !unicode.IsPrint(c) }) {
		r.fail("%s %s: a name of at most %d bytes without control characters is required", field, quote(s), maxName)
		return ""
	}
	return s
}

// required is name of a field that has to be there.
func (r *reader) required(field, s string) string {
	if s = r.name(field, s); s == "" {
		r.fail("%s is missing", field)
	}
	return s
}

// text returns text for people, escaped and cut.
func text(s string) string { return printable.Clip(strings.TrimSpace(s), maxMessage) }

// quote shows a value of a source in an error.
func quote(s string) string {
	if len(s) > 64 {
		s = s[:64] + "..."
	}
	return strconv.QuoteToASCII(s)
}

// time reads a time of a source. An empty one is absent.
func (r *reader) time(field, s string) *time.Time {
	if s == "" {
		return nil
	}
	for _, layout := range []string{time.RFC3339Nano, "2006-01-02T15:04:05.999999999", "2006-01-02 15:04:05"} {
		if at, err := time.Parse(layout, s); err == nil && at.Year() >= 1990 && at.Year() <= 9999 {
			at = at.UTC().Truncate(time.Second)
			return &at
		}
	}
	r.fail("%s %s is not a time (RFC 3339)", field, quote(s))
	return nil
}

// sha256 returns the digest of a list of hashes in its form sha256:HEX. It is empty for
// another algorithm.
func (r *reader) sha256(algorithm, value string) string {
	switch strings.ToLower(strings.ReplaceAll(algorithm, "-", "")) {
	case "sha256":
	default:
		return ""
	}
	value = strings.ToLower(value)
	if !isDigest("sha256:" + value) {
		r.fail("SHA-256 %s is not 64 hexadecimal digits", quote(value))
		return ""
	}
	return "sha256:" + value
}

// isDigest reports whether s is sha256: and 64 lower-case hexadecimal digits.
func isDigest(s string) bool {
	digits, found := strings.CutPrefix(s, "sha256:")
	if !found || len(digits) != 2*sha256.Size || strings.ToLower(digits) != digits {
		return false
	}
	_, err := hex.DecodeString(digits)
	return err == nil
}

// tenths returns a CVSS score in tenths.
func (r *reader) tenths(field string, score float64) int {
	if !(score >= 0 && score <= 10) { // false for NaN as well
		r.fail("%s is %v; a CVSS score is between 0 and 10", field, score)
		return 0
	}
	return int(math.Round(score * 10))
}

// permille returns a probability in thousandths.
func (r *reader) permille(field string, p float64) int {
	if !(p >= 0 && p <= 1) {
		r.fail("%s is %v; a probability is between 0 and 1", field, p)
		return 0
	}
	return int(math.Round(p * 1000))
}
