package evidence

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	"github.com/chaperone-proxy/chaperone/internal/dsse"
)

// goEvent is a line of go test -json (go doc test2json).
type goEvent struct {
	Time        string
	Action      string
	Package     string
	ImportPath  string
	Test        string
	FailedBuild string
}

func isGoTest(line []byte) bool {
	if len(line) > 1<<20 {
		return false
	}
	var e goEvent
	return json.Unmarshal(line, &e) == nil && e.Action != "" && (e.Package != "" || e.ImportPath != "")
}

// readGoTest reads the events of go test -json. A package and a test that began and did not
// end are refused: the report is cut.
func readGoTest(data []byte, source Source, o Options) ([]Normalised, error) {
	source.Format = "go-test-json"
	source.Tools = []Tool{{Name: "go test"}}
	var r reader
	p := TestPredicate{Head: o.head()}
	running := map[string]bool{}
	number := 0
	for line := range bytes.Lines(data) {
		number++
		if line = bytes.TrimSpace(line); len(line) == 0 {
			continue
		}
		var e goEvent
		if err := dsse.CheckJSON(line); err != nil {
			return nil, fmt.Errorf("line %d: %w", number, err)
		}
		if err := json.Unmarshal(line, &e); err != nil || e.Action == "" {
			return nil, fmt.Errorf("line %d is not an event of go test -json", number)
		}
		source.observed(r.time("Time", e.Time))
		e.count(&p, running)
		if r.err != nil {
			return nil, fmt.Errorf("line %d: %w", number, r.err)
		}
		if len(running) > maxTests || p.Passed+p.Failed+p.Skipped > maxTests {
			return nil, fmt.Errorf("it has more than %d tests", maxTests)
		}
	}
	if len(running) > 0 {
		return nil, fmt.Errorf("%d packages or tests began and did not end: the report is cut", len(running))
	}
	if number == 0 {
		return nil, errors.New("it has no event")
	}
	p.Source = source
	out, err := testPredicate(p, nil)
	if err != nil {
		return nil, err
	}
	return []Normalised{out}, nil
}

// count adds an event. A package counts only when it fails by itself, as it does when it
// does not compile.
func (e *goEvent) count(p *TestPredicate, running map[string]bool) {
	name := e.Package + " " + e.Test
	switch e.Action {
	case "start", "run":
		running[name] = true
		return
	case "build-fail": // the package's own failure may be in a part that was cut
		p.Failed++
		p.FailedTests = append(p.FailedTests, text("build "+e.ImportPath))
		return
	case "pass", "fail", "skip":
	default:
		return
	}
	delete(running, name)
	switch {
	case e.Test == "" && e.Action != "fail":
	case e.Action == "pass":
		p.Passed++
	case e.Action == "skip":
		p.Skipped++
	default:
		p.Failed++
		p.FailedTests = append(p.FailedTests, text(strings.TrimSpace(name)))
	}
}
