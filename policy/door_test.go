package policy

import (
	"testing"

	"github.com/chaperone-proxy/chaperone/authz"
)

// TestStatementFacts: a statement has the facts with which the door decides it, the
// database of its session among them.
func TestStatementFacts(t *testing.T) {
	for line, want := range map[string]string{
		"redis://cache.internal/2 PING":                                              `["command:ping","database:2"]`,
		"redis://cache.internal/2 SELECT 3":                                          `["command:select","database:3"]`,
		"redis://cache.internal/2 MOVE a 3":                                          `["command:move","database:2","database:3","key:a"]`,
		"postgres://db.internal/shop PREPARE p AS SELECT * FROM a; EXECUTE p":        `["database:shop","table:public.a","verb:execute","verb:prepare","verb:select"]`,
		"postgres://db.internal/shop EXECUTE p":                                      `["database:shop","opaque:execute","verb:execute"]`,
		"postgres://db.internal/shop PREPARE p AS SELECT 1; DEALLOCATE p; EXECUTE p": `["database:shop","opaque:execute","verb:deallocate","verb:execute","verb:prepare","verb:select"]`,
	} {
		req, err := Request("p", ParseWords(line))
		if err != nil {
			t.Errorf("%s: %v", line, err)
			continue
		}
		if got := listFacts(ParseFacts(req.Facts)); got != want {
			t.Errorf("%s: got %s, want %s", line, got, want)
		}
		if req.Facts.Protocol() == "" || authz.Scheme(req.Facts.Protocol()) != req.Destination.Scheme() {
			t.Errorf("%s: protocol %s", line, req.Facts.Protocol())
		}
	}
}
