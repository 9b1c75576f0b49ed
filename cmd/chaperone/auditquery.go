package main

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/chaperone-proxy/chaperone/audit"
	"github.com/chaperone-proxy/chaperone/authz"
	"github.com/chaperone-proxy/chaperone/internal/command"
	"github.com/chaperone-proxy/chaperone/internal/phrase"
	"github.com/chaperone-proxy/chaperone/internal/printable"
	"github.com/chaperone-proxy/chaperone/internal/sortlarge"
)

// auditQuery is one run of audit query.
type auditQuery struct {
	*cli
	query           audit.Query
	since, until    string
	denied, allowed bool
	format, summary string
	count           bool
}

// The formats of audit query. The first is the records as they stand in the log.
const (
	formatLines = "jsonl"
	formatTable = "table"
	formatJSON  = "json"
	formatYAML  = "yaml"
)

// maxSummary bounds the distinct values of a summary, which the plugin can choose.
// The others are counted together.
const maxSummary = 10_000

func (c *cli) auditQueryCommand() *cobra.Command {
	q := auditQuery{cli: c, format: formatLines}
	cmd := c.withConfig(&cobra.Command{
		Use: "query [FILE]", Short: "Print the records that match",
		Long: "Print the records that match every flag: as stored, or with --output as a table, a list or YAML.\n" +
			"--count prints their number, --summary the number for each value of a field.\n\n" +
			"  chaperone audit query --plugin weather --denied --since 1h --summary host\n" +
			"  chaperone audit query --config sidecar.yaml --host evil.example --output table",
		Args: atMostOneFile,
		RunE: func(cmd *cobra.Command, args []string) error { return q.run(cmd.Context(), args) },
	})
	f := cmd.Flags()
	filter := &q.query.Filter
	f.StringVar(&filter.Decision, "decision", "", "with this decision or revocation `ID`")
	f.Var(command.OneOf(&filter.Kind, audit.Kinds()...), "kind", "of this `KIND`: "+strings.Join(audit.Kinds(), ", "))
	f.Var(command.OneOf(&filter.Door, doorNames()...), "door", "at this `DOOR`: "+strings.Join(doorNames(), ", "))
	f.Var(command.OneOf(&filter.Reason, reasonNames()...).Or(map[string]string{"denied": "--denied", "refused": "--denied", "allowed": "--allowed"}), "reason", "with this `REASON`, as denied decisions and metrics name it")
	f.StringVar(&filter.Plugin, "plugin", "", "of this `PLUGIN`; without FILE and --config also the log of its sidecar on this host")
	f.StringVar(&filter.Grant, "grant", "", "by this `GRANT`")
	f.StringVar(&filter.Rule, "rule", "", "by this rule's `ID`")
	f.StringVar(&filter.Method, "method", "", "with this `METHOD`; CONNECT for tunnels")
	f.Var(command.OneOf(&filter.Scheme, "https", "http", "tls", "tcp", "postgres", "redis", "udp", "unix"), "scheme", "with this `SCHEME`: https, http, tls, tcp, postgres, redis, udp or unix")
	f.StringVar(&filter.Host, "host", "", "for this `HOST`, a name or an address")
	f.Uint16Var(&filter.Port, "port", 0, "for this `PORT`")
	f.IntVar(&filter.PID, "pid", 0, "by this process `ID`")
	f.StringVar(&filter.Exe, "exe", "", "by this program's `PATH`")
	f.StringVar(&q.since, "since", "", "not before this `TIME`: RFC 3339, or a duration ago as in 1h")
	f.StringVar(&q.until, "until", "", "before this `TIME`: RFC 3339, or a duration ago as in 10m")
	f.BoolVar(&q.denied, "denied", false, "refused accesses")
	f.BoolVar(&q.allowed, "allowed", false, "allowed accesses")
	f.IntVar(&q.query.Last, "last", 0, "at most this number of `RECORDS`, from the end")
	f.Var(command.OneOf(&q.format, formatLines, formatTable, formatJSON, formatYAML), "output", "`FORMAT`: jsonl (as in the log), table, json or yaml")
	f.BoolVar(&q.count, "count", false, "print the number of matching records")
	f.Var(command.OneOf(&q.summary, summaryFields()...), "summary", "count by this `FIELD`: "+strings.Join(summaryFields(), ", "))
	return cmd
}

func doorNames() []string {
	return []string{string(authz.DoorProxy), string(authz.DoorExtAuthz), string(authz.DoorKernel)}
}

func reasonNames() []string {
	var names []string
	for _, r := range authz.Reasons() {
		names = append(names, r.String())
	}
	return names
}

// complete reads the flags, all of them before the log is.
func (q *auditQuery) complete(now time.Time) (err error) {
	f := &q.query.Filter
	switch {
	case q.denied && q.allowed:
		return usageError("query: --denied and --allowed contradict each other")
	case q.count && q.summary != "":
		return usageError("query: --count and --summary contradict each other")
	case q.query.Last < 0 || f.PID < 0:
		return usageError("query: --last and --pid take no negative number")
	case q.denied || q.allowed:
		f.Allowed = &q.allowed
	}
	if q.since != "" {
		if f.Since, err = parseSince(q.since, now); err != nil {
			return usageError("query: --since: %w", err)
		}
	}
	if q.until != "" {
		if f.Until, err = parseSince(q.until, now); err != nil {
			return usageError("query: --until: %w", err)
		}
	}
	if !f.Since.IsZero() && !f.Until.IsZero() && !f.Since.Before(f.Until) {
		return usageError("query: --since %s is not before --until %s", f.Since.Format(time.RFC3339), f.Until.Format(time.RFC3339))
	}
	if f.Host != "" {
		// Records have the canonical spelling. A value without one is searched for as it is.
		if d, err := authz.NewDestination(authz.SchemeTCP, net.JoinHostPort(strings.Trim(f.Host, "[]"), "1"), ""); err == nil {
			f.Host = d.Host()
		}
	}
	return nil
}

func (q *auditQuery) run(ctx context.Context, args []string) error {
	if err := q.complete(time.Now()); err != nil {
		return err
	}
	file, _, err := q.auditLog(args, q.query.Filter.Plugin)
	if err != nil {
		return err
	}
	q.query.File = file
	switch {
	case q.count:
		n := 0
		if err := q.eachRecord(ctx, q.query, func(audit.Entry) error { n++; return nil }); err != nil {
			return err
		}
		_, err := fmt.Fprintln(q.stdout, n)
		return err
	case q.summary != "":
		return q.printSummary(ctx)
	case q.format == formatLines:
		return q.eachRecord(ctx, q.query, q.printRaw)
	}
	entries := []json.RawMessage{}
	var rows []audit.Entry
	err = q.eachRecord(ctx, q.query, func(e audit.Entry) error {
		if e.Kind == "" { // bytes that are no record
			quoted, err := json.Marshal(string(e.Raw))
			e.Raw = quoted
			if err != nil {
				return err
			}
		}
		entries, rows = append(entries, e.Raw), append(rows, e)
		return nil
	})
	if err != nil {
		return err
	}
	q.output = q.format
	return q.print(entries, func(w io.Writer) { recordsTable(w, rows) })
}

func recordsTable(w io.Writer, rows []audit.Entry) {
	row(w, "TIME", "KIND", "PLUGIN", "REASON", "METHOD", "TO", "RULE", "PID", "PROGRAM", "EVENTS", "DETAIL")
	for _, e := range rows {
		if e.Kind == "" {
			row(w, "", "NO RECORD", "", "", "", "", "", "", "", "", clipText(string(e.Raw)))
			continue
		}
		pid := ""
		if e.PID != 0 {
			pid = strconv.Itoa(e.PID)
		}
		row(w, e.Time.UTC().Format("2006-01-02T15:04:05.000Z"), clipText(e.Kind), clipText(e.Plugin), clipText(e.Reason), clipText(e.Method),
			clipText(targetText(e)), clipText(phrase.Rule(e.Grant, e.Rule)), pid, clipText(e.Exe), events(e), clipText(detailText(e)))
	}
}

// targetText returns where an access went, as far as the record has it.
func targetText(e audit.Entry) string {
	to := e.Host
	if e.Port != 0 {
		to = net.JoinHostPort(e.Host, strconv.Itoa(int(e.Port)))
	}
	if e.Scheme != "" {
		to = e.Scheme + "://" + to
	}
	return to + e.Path
}

// detailText returns the detail of a record, and the facts of a statement.
func detailText(e audit.Entry) string {
	return strings.TrimSpace(e.Detail + " " + strings.Join(e.Facts, " "))
}

// events returns how many equal events are folded into a record.
func events(e audit.Entry) int { return max(e.Count, 1) }

// clipText returns a text as a terminal shows it safely, cut to a width that leaves
// room for the others.
func clipText(s string) string {
	const longest = 120
	return printable.Clip(s, longest)
}

// summaryFields returns the fields that a summary counts by.
func summaryFields() []string {
	return []string{"host", "reason", "kind", "door", "method", "rule", "plugin", "exe", "pid", "credential", "actor"}
}

// summaryValue returns the value of a record's field, "" for none.
func summaryValue(e audit.Entry, field string) string {
	switch field {
	case "host":
		return e.Host
	case "reason":
		return e.Reason
	case "kind":
		return e.Kind
	case "door":
		return e.Door
	case "method":
		return e.Method
	case "rule":
		return phrase.Rule(e.Grant, e.Rule)
	case "plugin":
		return e.Plugin
	case "exe":
		return e.Exe
	case "pid":
		if e.PID != 0 {
			return strconv.Itoa(e.PID)
		}
	case "credential":
		return e.Credential
	case "actor":
		return e.Actor
	}
	return ""
}

// summaryRow is one line of a summary.
type summaryRow struct {
	Value     string    `json:"value"`
	Records   int       `json:"records"`
	Events    int       `json:"events"` // with those that were folded into one record
	Refused   int       `json:"refused"`
	SentBytes int64     `json:"sentBytes"`
	First     time.Time `json:"first"`
	Last      time.Time `json:"last"`
}

func (s *summaryRow) add(e audit.Entry) {
	if s.Records == 0 {
		s.First = e.Time
	}
	s.Last = e.Time
	s.Records++
	s.Events += events(e)
	s.SentBytes += e.SentBytes
	if e.Kind == string(authz.KindDecision) && e.Allowed != nil && !*e.Allowed {
		s.Refused += events(e)
	}
}

func (q *auditQuery) printSummary(ctx context.Context) error {
	byValue := map[string]*summaryRow{}
	err := q.eachRecord(ctx, q.query, func(e audit.Entry) error {
		value := summaryValue(e, q.summary)
		s := byValue[value]
		if s == nil && len(byValue) >= maxSummary {
			value = "(others)"
			s = byValue[value]
		}
		if s == nil {
			s = &summaryRow{Value: value}
			byValue[value] = s
		}
		s.add(e)
		return nil
	})
	if err != nil {
		return err
	}
	rows := make([]summaryRow, 0, len(byValue))
	for _, s := range byValue {
		rows = append(rows, *s)
	}
	sortlarge.By(rows, func(a, b *summaryRow) int {
		return cmp.Or(cmp.Compare(b.Events, a.Events), strings.Compare(a.Value, b.Value))
	})
	if q.output = q.format; q.format == formatLines {
		q.output = formatTable
	}
	return q.print(rows, func(w io.Writer) {
		row(w, strings.ToUpper(q.summary), "EVENTS", "REFUSED", "RECORDS", "SENT", "FIRST", "LAST")
		for _, s := range rows {
			row(w, dash(clipText(s.Value)), s.Events, s.Refused, s.Records, s.SentBytes, s.First.UTC().Format(time.RFC3339), s.Last.UTC().Format(time.RFC3339))
		}
	})
}
