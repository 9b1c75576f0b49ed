package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strconv"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/chaperone-proxy/chaperone/audit"
	"github.com/chaperone-proxy/chaperone/authz"
	"github.com/chaperone-proxy/chaperone/configs"
)

func (c *cli) auditCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use: "audit", Short: "Read and prove the audit log", Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(c.auditVerifyCommand(), c.auditTailCommand(), c.auditQueryCommand())
	return cmd
}

// auditLog returns the log that a command is about: FILE, or the one of
// --config, and the stateDir with its key, "" when that is not known.
func (c *cli) auditLog(args []string) (file, stateDir string, err error) {
	if c.config != "" {
		spec, err := configs.LoadSidecar(c.config)
		if err != nil {
			return "", "", fmt.Errorf("load %s:\n%w", c.config, err)
		}
		file, stateDir = spec.Audit.File, spec.StateDir
	}
	if len(args) == 1 {
		file = args[0]
		if stateDir == "" {
			stateDir = audit.DefaultStateDir(file)
		}
	}
	if file == "" {
		return "", "", usageError("audit: takes FILE or --config")
	}
	return file, stateDir, nil
}

func (c *cli) auditVerifyCommand() *cobra.Command {
	return c.withOutput(c.withConfig(&cobra.Command{
		Use:   "verify [FILE]",
		Short: "Prove that nothing in the log was edited, removed, reordered or cut off",
		Long: "Prove that nothing in the log was edited, removed, reordered or cut off. With the key, which lies\n" +
			"in the stateDir (--config, or beside FILE), everything is proved; without it only the links are.",
		Args: atMostOneFile,
		RunE: func(_ *cobra.Command, args []string) error {
			file, stateDir, err := c.auditLog(args)
			if err != nil {
				return err
			}
			report, err := audit.Verify(audit.VerifyConfig{File: file, StateDir: stateDir})
			if err != nil {
				return fmt.Errorf("verify %s: %w", file, err)
			}
			return c.printReport(report)
		},
	}))
}

func atMostOneFile(cmd *cobra.Command, args []string) error {
	if len(args) > 1 {
		return usageError("%s: takes one file", cmd.CommandPath())
	}
	return nil
}

func (c *cli) printReport(r audit.Report) error {
	problem := ""
	if r.Problem != nil {
		problem = r.Problem.String()
	}
	answer := struct {
		Files   []string `json:"files"`
		Records uint64   `json:"records"`
		Keyed   bool     `json:"keyed"`
		Proves  string   `json:"proves"`
		Notes   []string `json:"notes,omitempty"`
		Problem string   `json:"problem,omitempty"`
	}{r.Files, r.Records, r.Keyed, r.Proves(), r.Notes, problem}
	err := c.print(answer, func(w io.Writer) {
		for _, note := range r.Notes {
			fmt.Fprintf(w, "note: %s\n", note)
		}
		if r.Problem == nil {
			fmt.Fprintf(w, "verified: %d records in %s: %s\n", r.Records, count(len(r.Files), "file"), r.Proves())
		} else {
			fmt.Fprintf(w, "NOT VERIFIED: %s\n", problem)
		}
	})
	if err == nil && r.Problem != nil {
		return exitError{exitFailure, nil}
	}
	return err
}

func (c *cli) auditTailCommand() *cobra.Command {
	query := audit.Query{}
	cmd := c.withConfig(&cobra.Command{
		Use: "tail [FILE]", Short: "Print the last records, and with -f those to come", Args: atMostOneFile,
		RunE: func(cmd *cobra.Command, args []string) error { return c.printRecords(cmd, args, query) },
	})
	cmd.Flags().IntVarP(&query.Last, "lines", "n", 20, "how many `RECORDS`")
	cmd.Flags().BoolVarP(&query.Follow, "follow", "f", false, "go on with what is written")
	return cmd
}

func (c *cli) auditQueryCommand() *cobra.Command {
	query := audit.Query{}
	var since string
	var denied, allowed bool
	cmd := c.withConfig(&cobra.Command{
		Use: "query [FILE]", Short: "Print the records that fit", Args: atMostOneFile,
		RunE: func(cmd *cobra.Command, args []string) error {
			f := &query.Filter
			if denied && allowed {
				return usageError("query: --denied and --allowed contradict each other")
			}
			if denied || allowed {
				f.Allowed = &allowed
			}
			if since != "" {
				at, err := parseSince(since, time.Now())
				if err != nil {
					return usageError("query: --since: %w", err)
				}
				f.Since = at
			}
			return c.printRecords(cmd, args, query)
		},
	})
	f := cmd.Flags()
	f.StringVar(&query.Filter.Decision, "decision", "", "with this decision or revocation `ID`")
	f.StringVar(&query.Filter.Kind, "kind", "", "of this `KIND`: decision, end, credential, revocation, reload, limit, process, lost, echo")
	f.StringVar(&query.Filter.Reason, "reason", "", "with this `REASON`")
	f.StringVar(&query.Filter.Plugin, "plugin", "", "of this `PLUGIN`")
	f.StringVar(&query.Filter.Grant, "grant", "", "by this `GRANT`")
	f.StringVar(&query.Filter.Rule, "rule", "", "by this rule's `ID`")
	f.StringVar(&query.Filter.Host, "host", "", "for this `HOST`")
	f.StringVar(&since, "since", "", "not before this `TIME`: RFC 3339, or a duration ago as in 1h")
	f.BoolVar(&denied, "denied", false, "accesses that were refused")
	f.BoolVar(&allowed, "allowed", false, "accesses that were let through")
	f.IntVar(&query.Last, "last", 0, "at most so many `RECORDS`, from the end")
	return cmd
}

// parseSince reads a time, or a duration before now.
func parseSince(s string, now time.Time) (time.Time, error) {
	if at, err := time.Parse(time.RFC3339, s); err == nil {
		return at, nil
	}
	var ago authz.Duration
	if err := ago.UnmarshalText([]byte(s)); err != nil {
		return time.Time{}, fmt.Errorf("%q is neither a time nor a duration", s)
	}
	return now.Add(-time.Duration(ago)), nil
}

// printRecords prints records as they stand in the log.
func (c *cli) printRecords(cmd *cobra.Command, args []string, query audit.Query) error {
	file, _, err := c.auditLog(args)
	if err != nil {
		return err
	}
	query.File = file
	ctx, stop := signal.NotifyContext(cmd.Context(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	for entry, err := range audit.Read(ctx, query) {
		if err != nil {
			return err
		}
		line := string(entry.Raw)
		if entry.Kind == "" { // bytes that are no record may hold anything
			line = strconv.Quote(line)
		}
		if _, err := fmt.Fprintln(c.stdout, line); err != nil {
			return err
		}
	}
	return nil
}

// findDecision returns the record of a decision.
func findDecision(ctx context.Context, cfg *configs.Config, id string) (audit.Entry, error) {
	query := audit.Query{File: cfg.Sidecar.Audit.File, Filter: audit.Filter{Decision: id, Kind: string(authz.KindDecision)}, Last: 1}
	for entry, err := range audit.Read(ctx, query) {
		if err != nil {
			return audit.Entry{}, err
		}
		return entry, nil
	}
	return audit.Entry{}, errors.New("no decision with the id " + id + " is in the log")
}
