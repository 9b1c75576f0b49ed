package report

import (
	"fmt"
	"strings"
	"time"

	"github.com/chaperone-proxy/chaperone/internal/printable"
)

// Markdown renders the report for a retrospective. Text that people wrote is escaped.
func (r *Report) Markdown() string {
	var b strings.Builder
	s := &r.Summary
	fmt.Fprintf(&b, "# Governance from %s to %s\n\n", date(r.Since), date(r.At))
	fmt.Fprintf(&b, "%d requests: %d issued, %d open, %d overdue, %d reworked. %d findings block.\n\n", s.Requests, s.Issued, s.Open, s.Overdue, s.Reworked, s.Blocking)
	b.WriteString("| time | requests | median | 90th percentile |\n|---|---|---|---|\n")
	for _, row := range []struct {
		name string
		t    Times
	}{{"submission to last evidence", s.ToEvidence}, {"evidence to last approval", s.ToApproval}, {"submission to grant", s.Cycle}} {
		fmt.Fprintf(&b, "| %s | %d | %s | %s |\n", row.name, row.t.Count, span(row.t, row.t.Median), span(row.t, row.t.P90))
	}
	b.WriteString("\n## Requests\n\n")
	table(&b, r.Requests, "| plugin | version | stage | risk | submitted | to grant | rejections | waits for |\n|---|---|---|---|---|---|---|---|\n", func(q Request) string {
		cycle := "open"
		if !q.Issued.IsZero() {
			cycle = duration(q.Cycle())
		}
		stage := q.Stage
		if q.Overdue {
			stage += " (overdue)"
		}
		return fmt.Sprintf("| %s | %s | %s | %d %s | %s | %s | %d | %d |\n", cell(q.Plugin), cell(q.Version), stage, q.Score, q.Band, date(q.Submitted), cycle, q.Rejections, q.Problems)
	})
	b.WriteString("\n## Exemptions\n\n")
	table(&b, r.Exemptions, "| exemption | plugin | from | owner | ticket | state | days left |\n|---|---|---|---|---|---|---|\n", func(e Exemption) string {
		return fmt.Sprintf("| %s | %s | %s | %s | %s | %s | %d |\n", cell(e.Name), cell(strings.Trim(e.Plugin+"/"+e.Permission, "/")), cell(e.GuardrailRule), cell(e.Owner), cell(e.Ticket), e.State, e.DaysLeft)
	})
	b.WriteString("\n## Grants to renew\n\n")
	table(&b, r.Renewals, "| plugin | generation | renew before | ends |\n|---|---|---|---|\n", func(n Renewal) string {
		return fmt.Sprintf("| %s | %d | %s | %s |\n", cell(n.Plugin), n.Generation, date(n.RenewBefore), date(n.NotAfter))
	})
	for i, fault := range r.Faults {
		if i == 0 {
			b.WriteString("\n## Requests that cannot be read\n\n")
		}
		fmt.Fprintf(&b, "- %s\n", cell(fault))
	}
	return b.String()
}

func table[T any](b *strings.Builder, rows []T, head string, row func(T) string) {
	if len(rows) == 0 {
		b.WriteString("None.\n")
		return
	}
	b.WriteString(head)
	for _, r := range rows {
		b.WriteString(row(r))
	}
}

// cell escapes text that people wrote.
func cell(s string) string { return printable.Markdown(s) }

func date(t time.Time) string {
	if t.IsZero() {
		return "not stated"
	}
	return t.UTC().Format(time.DateOnly)
}

func span(t Times, seconds float64) string {
	if t.Count == 0 {
		return "none"
	}
	return duration(time.Duration(seconds * float64(time.Second)))
}

// duration rounds to what a person compares.
func duration(d time.Duration) string {
	switch {
	case d >= 2*day:
		return fmt.Sprintf("%.1f days", d.Hours()/24)
	case d >= time.Hour:
		return fmt.Sprintf("%.1f hours", d.Hours())
	}
	return d.Round(time.Second).String()
}
