package pilot

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/chaperone-proxy/chaperone/audit"
	"github.com/chaperone-proxy/chaperone/internal/printable"
)

// Skew is how far in the future a time may be.
const Skew = 5 * time.Minute

// hexOf returns the hexadecimal digits of a digest, sha256:HEX.
func hexOf(digest string) string { return strings.TrimPrefix(digest, "sha256:") }

// ParsePerformance reads the predicate of a measured-performance statement whose signature
// was verified.
func ParsePerformance(predicate []byte) (*Performance, error) {
	var p Performance
	if err := decode(predicate, &p); err != nil {
		return nil, fmt.Errorf("read measured-performance: %w", err)
	}
	if err := errors.Join(times(p.IssuedAt, p.Started, p.Ended), p.Log.check(), p.check()); err != nil {
		return nil, fmt.Errorf("read measured-performance: %w", err)
	}
	return &p, nil
}

// check refuses figures that no measurement has.
func (p *Performance) check() error {
	switch {
	case p.Plugin == "" || p.Version == "":
		return errors.New("it names no plugin and version")
	case p.Memory.Samples < 1:
		return errors.New("it has no samples; measure for longer")
	case p.Memory.RSSP95Bytes < 0 || p.Memory.RSSMaxBytes < p.Memory.RSSP95Bytes || p.CPU.TotalUS < 0 || p.CPU.Per1000US < 0:
		return errors.New("figures of memory or CPU are impossible: one is negative, or a percentile exceeds the maximum")
	case p.Mediation != p.Mediation.complete():
		return errors.New("mediation.completenessPpm does not follow from the counts")
	}
	for _, l := range []*Latency{p.Latency.Typical, p.Latency.Peak} {
		if l != nil && (l.Requests == 0 || l.Failed > l.Requests || l.P50US < 0 || l.P50US > l.P99US || l.P99US > l.MaxUS) {
			return errors.New("figures of latency are impossible: no request, or a percentile exceeds a higher one")
		}
	}
	for _, ms := range []*int64{p.Startup.ReadyMS, p.Startup.FirstAccessMS} {
		if ms != nil && *ms < 0 {
			return errors.New("figures of startup are negative")
		}
	}
	return nil
}

// ParseTrace reads the predicate of a runtime-trace statement whose signature was verified.
func ParseTrace(predicate []byte) (*Trace, error) {
	var t Trace
	if err := decode(predicate, &t); err != nil {
		return nil, fmt.Errorf("read runtime-trace: %w", err)
	}
	if err := errors.Join(times(t.IssuedAt, t.Started, t.Ended), t.Log.check()); err != nil {
		return nil, fmt.Errorf("read runtime-trace: %w", err)
	}
	switch {
	case t.Plugin == "" || t.Version == "":
		return nil, errors.New("read runtime-trace: it names no plugin and version")
	case t.Verdict != t.verdict():
		return nil, fmt.Errorf("read runtime-trace: verdict %s does not follow from what was observed; it is %s", printable.Clip(string(t.Verdict), maxText), t.verdict())
	case t.Mediation != t.Mediation.complete():
		return nil, errors.New("read runtime-trace: mediation.completenessPpm does not follow from the counts")
	}
	return &t, nil
}

// decode reads one JSON object. Unknown fields are ignored, as in-toto demands.
func decode(data []byte, to any) error {
	d := json.NewDecoder(bytes.NewReader(data))
	if err := d.Decode(to); err != nil {
		return fmt.Errorf("it is not the expected JSON: %w", err)
	}
	if d.More() {
		return errors.New("it goes on after the first JSON value")
	}
	return nil
}

// times refuses times that are missing or out of order.
func times(issued, started, ended time.Time) error {
	switch {
	case issued.IsZero() || started.IsZero() || ended.IsZero():
		return errors.New("issuedAt, startedAt and endedAt are required")
	case !started.Before(ended):
		return fmt.Errorf("startedAt %s is not before endedAt %s", started.Format(time.RFC3339), ended.Format(time.RFC3339))
	case issued.Before(ended.Add(-Skew)):
		return fmt.Errorf("issuedAt %s is before endedAt %s", issued.Format(time.RFC3339), ended.Format(time.RFC3339))
	}
	return nil
}

// check refuses a log that was not read to its end.
func (l Log) check() error {
	if l.Records == 0 || l.First == 0 || l.Last < l.First || l.Head == "" || len(hexOf(l.Grant)) != 64 {
		return errors.New("log lacks the number of records, the head or the digest of the grant")
	}
	return nil
}

// LogOf returns the log that was verified, up to its last record. grant is the digest of
// the file of the declared access, sha256:HEX.
func LogOf(report audit.Report, last audit.Entry, grant string) (Log, error) {
	switch {
	case report.Problem != nil:
		return Log{}, fmt.Errorf("the pilot's log is broken: %s", report.Problem.String())
	case !report.Keyed:
		return Log{}, errors.New("the pilot's log is not proved: its key (audit.key) is missing")
	case report.Removed > 0:
		return Log{}, fmt.Errorf("the pilot's log lacks its first %d records; set a larger audit.maxSize or keep in the Sidecar", report.Removed)
	case last.Seq == 0 || last.Seq != report.Last:
		return Log{}, fmt.Errorf("the pilot's log ends with record %d, and %d was read", report.Last, last.Seq)
	}
	return Log{Records: report.Records, First: report.First, Last: report.Last, Head: last.Hash, Grant: grant}, nil
}

// Same refuses a log that is not the one of a statement.
func (l Log) Same(found Log) error {
	if l == found {
		return nil
	}
	return fmt.Errorf("the log ends with record %d, hash %s; the statement is about record %d, hash %s; name the log of the pilot (--log)",
		found.Last, strconv.QuoteToASCII(printable.Clip(found.Head, maxText)), l.Last, strconv.QuoteToASCII(printable.Clip(l.Head, maxText)))
}
