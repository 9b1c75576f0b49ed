package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/signal"
	"slices"
	"strconv"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/chaperone-proxy/chaperone/audit"
	"github.com/chaperone-proxy/chaperone/authz"
	"github.com/chaperone-proxy/chaperone/configs"
	"github.com/chaperone-proxy/chaperone/internal/admin"
	"github.com/chaperone-proxy/chaperone/internal/phrase"
)

func (c *cli) auditCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use: "audit", Short: "Read and verify the audit log", Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(c.auditVerifyCommand(), c.auditTailCommand(), c.auditQueryCommand(), c.auditExportMaskKeyCommand())
	return cmd
}

// auditLog returns the log that a command is about: FILE, the one of --config, the
// one of the plugin's sidecar, or of the only sidecar of the host; and the stateDir
// with its key, "" when that is not known.
func (c *cli) auditLog(args []string, plugin string) (file, stateDir string, err error) {
	if c.config != "" {
		spec, err := c.sidecarFile()
		if err != nil {
			return "", "", err
		}
		file, stateDir = spec.Audit.File, spec.StateDir
	}
	if len(args) == 1 {
		file = args[0]
		if stateDir == "" {
			stateDir = audit.DefaultStateDir(file)
		}
	}
	if file != "" {
		return file, stateDir, nil
	}
	all, err := listSidecars()
	if err != nil {
		return "", "", err
	}
	known := slices.DeleteFunc(slices.Clone(all), func(s admin.Sidecar) bool { return s.Audit == "" || plugin != "" && s.Plugin != plugin })
	switch {
	case len(known) == 1:
		return known[0].Audit, known[0].StateDir, nil
	case plugin != "" && len(known) == 0:
		return "", "", fmt.Errorf("%w; name the log: FILE or --config", noSidecarOf(plugin, all))
	}
	return "", "", usageError("which audit log? Say FILE, --config or --plugin; sidecars here: %s", phrase.List(plugins(known)))
}

func (c *cli) auditVerifyCommand() *cobra.Command {
	var plugin string
	cmd := c.withOutput(c.withConfig(&cobra.Command{
		Use:   "verify [FILE]",
		Short: "Verify that no record of the log was edited, removed, reordered or truncated",
		Long: "Verify that no record of the log was edited, removed, reordered or truncated. The key is in the\n" +
			"stateDir (--config, or beside FILE); without it only the links between records are verified.",
		Args: atMostOneFile,
		RunE: func(_ *cobra.Command, args []string) error {
			file, stateDir, err := c.auditLog(args, plugin)
			if err == nil {
				err = existingLog(file)
			}
			if err != nil {
				return err
			}
			report, err := audit.Verify(audit.VerifyConfig{File: file, StateDir: stateDir})
			switch {
			case errors.Is(err, fs.ErrPermission):
				return fmt.Errorf("verify %s: %w; run this as the sidecar's user, which is root unless kernel is off", file, err)
			case err != nil:
				return fmt.Errorf("verify %s: %w", file, err)
			}
			return c.printReport(report)
		},
	}))
	cmd.Flags().StringVar(&plugin, "plugin", "", "the log of the sidecar of this `PLUGIN` on this host")
	return cmd
}

func (c *cli) auditExportMaskKeyCommand() *cobra.Command {
	var plugin, stateDir string
	cmd := c.withConfig(&cobra.Command{
		Use: "export-mask-key FILE", Short: "Write the key of masked paths to a new file",
		Long: "Write the key with which the log masks paths to a new FILE that only its owner may read. policy replay\n" +
			"needs it on a host without the stateDir. The key can show whether a known value stands in the log; it can\n" +
			"neither verify nor forge a record.",
		Args: exactly(1, "the file to write"),
		RunE: func(_ *cobra.Command, args []string) error {
			if stateDir == "" {
				var err error
				if _, stateDir, err = c.auditLog(nil, plugin); err != nil {
					return err
				}
			}
			key, err := audit.LoadKey(stateDir)
			if err != nil {
				return err
			}
			mask := key.MaskKey()
			if err := mask.Create(args[0]); errors.Is(err, fs.ErrExist) {
				return fmt.Errorf("%s exists; name another file", args[0])
			} else if err != nil {
				return err
			}
			say(c.stdout, "mask key %s written to %s", mask.ID(), args[0])
			return nil
		},
	})
	cmd.Flags().StringVar(&plugin, "plugin", "", "the key of the sidecar of this `PLUGIN` on this host")
	cmd.Flags().StringVar(&stateDir, "state-dir", "", "the `FOLDER` that holds audit.key")
	return cmd
}

func atMostOneFile(cmd *cobra.Command, args []string) error {
	if len(args) > 1 {
		return usageError("%s: takes one file", cmd.CommandPath())
	}
	return nil
}

// verifiedLog is the result for one of the two logs.
type verifiedLog struct {
	Files   []string  `json:"files"`
	Records uint64    `json:"records"`
	First   uint64    `json:"first,omitempty"`
	Last    uint64    `json:"last,omitempty"`
	Since   time.Time `json:"since,omitzero"`    // of the first record
	Removed uint64    `json:"removed,omitempty"` // records before it, by audit.maxSize and audit.keep
	Notes   []string  `json:"notes,omitempty"`
}

func verified(r audit.Report) verifiedLog {
	return verifiedLog{r.Files, r.Records, r.First, r.Last, r.Since.UTC(), r.Removed, r.Notes}
}

func (c *cli) printReport(r audit.Report) error {
	answer := struct {
		verifiedLog
		Keyed   bool         `json:"keyed"`
		Proves  string       `json:"proves"`
		Refused *verifiedLog `json:"refused,omitempty"` // of refusals that the log has no room for
		Problem string       `json:"problem,omitempty"`
	}{verifiedLog: verified(r), Keyed: r.Keyed, Proves: r.Proves()}
	notes := r.Notes
	if r.Refused != nil {
		second := verified(*r.Refused)
		answer.Refused, notes = &second, append(slices.Clip(notes), second.Notes...)
	}
	if r.Problem != nil {
		answer.Problem = r.Problem.String()
	}
	err := c.print(answer, func(w io.Writer) {
		for _, note := range notes {
			say(w, "note: %s", note)
		}
		if r.Problem != nil {
			say(w, "NOT VERIFIED: %s", answer.Problem)
			return
		}
		say(w, "verified: %d records in %s: %s", r.Records, phrase.Count(len(r.Files), "file"), r.Proves())
		say(w, "the log is %s", r.WholeSince())
		if r.Refused != nil {
			say(w, "refusals in the second log: %d records in %s: %s", r.Refused.Records, phrase.Count(len(r.Refused.Files), "file"), r.Refused.WholeSince())
		}
	})
	if err == nil && r.Problem != nil {
		return exitWith(exitFailure, nil)
	}
	return err
}

func (c *cli) auditTailCommand() *cobra.Command {
	query := audit.Query{}
	var plugin string
	cmd := c.withConfig(&cobra.Command{
		Use: "tail [FILE]", Short: "Print the last records; -f follows", Args: atMostOneFile,
		RunE: func(cmd *cobra.Command, args []string) error {
			if query.Last < 1 {
				return usageError("tail: --lines %d is not a number from 1", query.Last)
			}
			file, _, err := c.auditLog(args, plugin)
			if err != nil {
				return err
			}
			query.File = file
			return c.eachRecord(cmd.Context(), query, c.printRaw)
		},
	})
	cmd.Flags().IntVarP(&query.Last, "lines", "n", 20, "number of `RECORDS`")
	cmd.Flags().BoolVarP(&query.Follow, "follow", "f", false, "follow the log")
	cmd.Flags().StringVar(&plugin, "plugin", "", "the log of the sidecar of this `PLUGIN` on this host")
	return cmd
}

// parseSince reads a time, or a duration before now.
func parseSince(s string, now time.Time) (time.Time, error) {
	if at, err := time.Parse(time.RFC3339, s); err == nil {
		return at, nil
	}
	var ago authz.Duration
	if err := ago.UnmarshalText([]byte(s)); err != nil {
		return time.Time{}, fmt.Errorf("%q is neither a time nor a duration; write it as 2026-12-01T12:00:00Z, or as 30d for 30 days ago", s)
	}
	return now.Add(-time.Duration(ago)), nil
}

// existingLog returns an error that names the cause when there is no log yet.
func existingLog(file string) error {
	_, err := os.Stat(file)
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("there is no audit log at %s: a sidecar creates it at its start; check that this is the file of the right sidecar", file)
	}
	return nil // other errors are reported by reading it
}

// eachRecord calls each with the records of a query, until it is interrupted.
func (c *cli) eachRecord(ctx context.Context, query audit.Query, each func(audit.Entry) error) error {
	if err := existingLog(query.File); err != nil {
		return err
	}
	ctx, stop := signal.NotifyContext(ctx, os.Interrupt, syscall.SIGTERM)
	defer stop()
	for entry, err := range audit.Read(ctx, query) {
		if err != nil {
			return err
		}
		if err := each(entry); err != nil {
			return err
		}
	}
	return nil
}

// printRaw prints a record as it stands in the log.
func (c *cli) printRaw(entry audit.Entry) error {
	line := string(entry.Raw)
	if entry.Kind == "" { // bytes that are no record may hold anything
		line = strconv.Quote(line)
	}
	_, err := fmt.Fprintln(c.stdout, line)
	return err
}

// findDecision returns the record of a decision.
func findDecision(ctx context.Context, cfg *configs.Config, id string) (audit.Entry, error) {
	if err := existingLog(cfg.Sidecar.Audit.File); err != nil {
		return audit.Entry{}, err
	}
	query := audit.Query{File: cfg.Sidecar.Audit.File, Filter: audit.Filter{Decision: id, Kind: string(authz.KindDecision)}, Last: 1}
	for entry, err := range audit.Read(ctx, query) {
		if err != nil {
			return audit.Entry{}, err
		}
		return entry, nil
	}
	return audit.Entry{}, errors.New("no decision with the id " + id + " is in the log; refusals equal to a hundred others of a minute are counted there without their ids: chaperone audit query --denied shows them")
}
