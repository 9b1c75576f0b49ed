package plugintest

import (
	"encoding/xml"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/chaperone-proxy/chaperone/internal/printable"
)

// The elements of a JUnit report that GitLab, Jenkins and the reporters of GitHub Actions
// read: names and times, the failure's message and text, and the place. GitLab identifies a
// test by classname and name, and takes file as its source.
type (
	junitReport struct {
		XMLName  xml.Name     `xml:"testsuites"`
		Name     string       `xml:"name,attr"`
		Tests    int          `xml:"tests,attr"`
		Failures int          `xml:"failures,attr"`
		Errors   int          `xml:"errors,attr"`
		Time     string       `xml:"time,attr"` // in seconds
		Suites   []junitSuite `xml:"testsuite"`
	}
	junitSuite struct {
		Name     string      `xml:"name,attr"`
		Tests    int         `xml:"tests,attr"`
		Failures int         `xml:"failures,attr"`
		Errors   int         `xml:"errors,attr"`
		Skipped  int         `xml:"skipped,attr"`
		Time     string      `xml:"time,attr"`
		File     string      `xml:"file,attr"`
		Cases    []junitCase `xml:"testcase"`
	}
	junitCase struct {
		Name      string      `xml:"name,attr"`
		ClassName string      `xml:"classname,attr"`
		File      string      `xml:"file,attr"`
		Line      int         `xml:"line,attr"`
		Time      string      `xml:"time,attr"`
		Failure   *junitFault `xml:"failure"`
		Error     *junitFault `xml:"error"`
	}
	junitFault struct {
		Message string `xml:"message,attr"`
		Type    string `xml:"type,attr"`
		Text    string `xml:",chardata"`
	}
)

// WriteJUnit writes results as JUnit XML. An expectation that is not decided is an error.
func WriteJUnit(w io.Writer, results []Result) error {
	report := junitReport{Name: "chaperone policy test"}
	var total, elapsed time.Duration
	for i, r := range results {
		if i == 0 || r.Test != results[i-1].Test || r.File != results[i-1].File {
			report.Suites = append(report.Suites, junitSuite{Name: printable.Text(r.Test), File: printable.Text(r.File)})
			elapsed = 0
		}
		s := &report.Suites[len(report.Suites)-1]
		one := junitCase{Name: printable.Text(r.Name), ClassName: printable.Text(r.Test), File: printable.Text(r.File), Line: r.Line, Time: seconds(r.Elapsed)}
		switch r.Status {
		case Fail:
			one.Failure = r.fault(string(r.Status))
			report.Failures, s.Failures = report.Failures+1, s.Failures+1
		case Undecided:
			one.Error = r.fault(string(r.Status))
			report.Errors, s.Errors = report.Errors+1, s.Errors+1
		case Pass:
		}
		s.Cases = append(s.Cases, one)
		total, elapsed = total+r.Elapsed, elapsed+r.Elapsed
		report.Tests, s.Tests, s.Time = report.Tests+1, s.Tests+1, seconds(elapsed)
	}
	report.Time = seconds(total)
	data, err := xml.MarshalIndent(report, "", "  ")
	if err != nil {
		return fmt.Errorf("encode JUnit report: %w", err)
	}
	_, err = io.WriteString(w, xml.Header+string(data)+"\n")
	return err
}

func seconds(d time.Duration) string { return fmt.Sprintf("%.6f", d.Seconds()) }

// fault describes a result that is not as expected.
func (r *Result) fault(kind string) *junitFault {
	var text strings.Builder
	for _, line := range r.lines() {
		fmt.Fprintf(&text, "%s: %s\n", line.name, printable.Text(line.value))
	}
	return &junitFault{Message: printable.Text("expected " + r.Expected + ", got " + r.Got), Type: kind, Text: text.String()}
}
