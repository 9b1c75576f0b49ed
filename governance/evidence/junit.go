package evidence

import (
	"bytes"
	"cmp"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"

	"github.com/chaperone-proxy/chaperone/internal/printable"
)

// readJUnit reads the XML that JUnit's runner for Ant writes, and many others after it. There
// is no specification; elements that are not known are skipped. A failure, an error and a
// rerun that failed count as failed.
func readJUnit(data []byte, source Source, o Options) ([]Normalised, error) {
	source.Format = "junit"
	d := xml.NewDecoder(bytes.NewReader(data))
	d.Strict = true
	// CharsetReader and Entity stay nil: another encoding than UTF-8 and any entity but the
	// five of XML are errors.
	j := junitReader{source: &source, predicate: TestPredicate{Head: o.head()}, now: o.IssuedAt}
	for {
		token, err := d.Token()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, fmt.Errorf("it is not XML in UTF-8: %s", printable.Clip(err.Error(), maxMessage))
		}
		if err := j.token(token); err != nil {
			return nil, fmt.Errorf("at byte %d: %w", d.InputOffset(), err)
		}
	}
	if j.done == 0 {
		return nil, errors.New("it has no element testsuites or testsuite")
	}
	j.predicate.Source = source
	out, err := testPredicate(j.predicate, nil)
	if err != nil {
		return nil, err
	}
	return []Normalised{out}, nil
}

// junitReader follows the elements of a report.
type junitReader struct {
	reader
	source    *Source
	predicate TestPredicate
	now       time.Time
	open      []junitElement
	done      int // root elements
}

type junitElement struct {
	name string
	// stated is the number of failures and errors that a suite's attributes state, and failed
	// the number of those in it.
	stated, failed int
	test           string // the name of a testcase or of a suite
	outcome        string // of a testcase: failure, skipped or ""
}

func (j *junitReader) token(token xml.Token) error {
	switch t := token.(type) {
	case xml.Directive:
		return errors.New("it has a document type definition, which is refused: it could define entities")
	case xml.ProcInst:
		if t.Target != "xml" {
			return fmt.Errorf("it has a processing instruction %s, which is refused", quote(t.Target))
		}
	case xml.CharData:
		if len(j.open) == 0 && len(bytes.TrimSpace(t)) > 0 {
			return errors.New("it has text outside of its root element")
		}
	case xml.StartElement:
		return j.start(t)
	case xml.EndElement:
		j.end()
	}
	return j.err
}

func (j *junitReader) start(t xml.StartElement) error {
	if len(j.open) >= maxDepth {
		return fmt.Errorf("it nests deeper than %d levels", maxDepth)
	}
	name := t.Name.Local
	if len(j.open) == 0 {
		if j.done++; j.done > 1 || name != "testsuites" && name != "testsuite" {
			return fmt.Errorf("element %s is not one testsuites or testsuite", quote(name))
		}
	}
	attrs := map[string]string{}
	for _, a := range t.Attr {
		if _, again := attrs[a.Name.Local]; again && a.Name.Space == "" {
			return fmt.Errorf("attribute %s of %s is given twice", quote(a.Name.Local), quote(name))
		}
		attrs[a.Name.Local] = a.Value
	}
	e := junitElement{name: name}
	switch name {
	case "testsuites", "testsuite":
		e.stated = j.count("failures", attrs) + j.count("errors", attrs)
		e.test = text(attrs["name"])
		j.source.observed(j.began(attrs["timestamp"]))
	case "testcase":
		e.test = text(strings.TrimPrefix(attrs["classname"]+"."+attrs["name"], "."))
		if total := j.predicate.Passed + j.predicate.Failed + j.predicate.Skipped; total >= maxTests {
			return fmt.Errorf("it has more than %d tests", maxTests)
		}
		if inside := j.top(); inside == nil || inside.name != "testsuite" {
			return errors.New("a testcase is in no testsuite")
		}
	case "failure", "error", "rerunFailure", "rerunError":
		j.failure()
	case "skipped", "disabled":
		if c := j.top(); c != nil && c.name == "testcase" && c.outcome == "" {
			c.outcome = "skipped"
		}
	}
	j.open = append(j.open, e)
	return j.err
}

// began reads when a suite began. Many runners write the time of their place without its zone: one
// that is ahead by no more than a zone can be was written east of here, before now.
func (j *junitReader) began(timestamp string) *time.Time {
	const farthestEast = 14 * time.Hour
	at := j.time("timestamp", timestamp)
	if _, err := time.Parse(time.RFC3339Nano, timestamp); err == nil || at == nil || !at.After(j.now) || at.After(j.now.Add(farthestEast)) {
		return at
	}
	now := j.now.UTC().Truncate(time.Second)
	return &now
}

// failure notes that the test which is open failed or, outside of a test, its suite did, as in
// its preparation.
func (j *junitReader) failure() {
	for i := len(j.open) - 1; i >= 0; i-- {
		switch e := &j.open[i]; e.name {
		case "testcase":
			e.outcome = "failure"
			return
		case "testsuite", "testsuites":
			e.failed++
			j.predicate.Failed++
			j.predicate.FailedTests = append(j.predicate.FailedTests, cmp.Or(e.test, e.name))
			return
		}
	}
}

// count reads a number of a suite. It is 0 if absent.
func (j *junitReader) count(name string, attrs map[string]string) int {
	value := strings.TrimSpace(attrs[name])
	if value == "" {
		return 0
	}
	n, err := strconv.Atoi(value)
	if err != nil || n < 0 || n > maxTests {
		j.fail("%s %s is not a number up to %d", name, quote(value), maxTests)
	}
	return n
}

func (j *junitReader) top() *junitElement {
	if len(j.open) == 0 {
		return nil
	}
	return &j.open[len(j.open)-1]
}

func (j *junitReader) end() {
	e := *j.top() // the decoder matches ends with starts
	j.open = j.open[:len(j.open)-1]
	failed := e.failed
	switch e.name {
	case "testcase":
		switch e.outcome {
		case "failure":
			failed = 1
			j.predicate.Failed++
			j.predicate.FailedTests = append(j.predicate.FailedTests, e.test)
		case "skipped":
			j.predicate.Skipped++
		default:
			j.predicate.Passed++
		}
	case "testsuite", "testsuites":
		if e.stated > e.failed {
			j.fail("%s states %d failures and errors, but lists %d: the report is cut, or its runner counts more than tests, as gotestsum counts what a build prints; add the output of go test -json instead", e.name, e.stated, e.failed)
		}
	}
	if parent := j.top(); parent != nil {
		parent.failed += failed
	}
}
