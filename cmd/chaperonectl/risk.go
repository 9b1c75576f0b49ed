package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"github.com/chaperone-proxy/chaperone/configs"
	"github.com/chaperone-proxy/chaperone/governance"
	"github.com/chaperone-proxy/chaperone/governance/risk"
	"github.com/chaperone-proxy/chaperone/internal/command"
	"github.com/chaperone-proxy/chaperone/internal/dsse"
)

// fileRisk is the stored score in the folder of a request.
const fileRisk = "risk.json"

// riskFlags are the flags of `risk`.
type riskFlags struct {
	*cli
	save, verify, table bool
	replay              string
}

func (c *cli) riskCommand() *cobra.Command {
	f := &riskFlags{cli: c}
	cmd := &cobra.Command{
		Use: "risk [DIR]", Short: "Compute the risk of a request, addend by addend", Args: cobra.MaximumNArgs(1),
		Long: "Compute the risk of a request by the signed rubric, and explain every addend with the digest of its evidence. --save\n" +
			"writes it as risk.json beside the manifest; --verify computes that file again and compares every byte, so that an\n" +
			"edited file and an input that has moved are refused.\n\n" +
			"--table compares all requests of the repository. --replay shows which of them change band under another rubric.\n\n" +
			"Exit status 0: done. 1: a stored score does not verify, a request has no score, or a replay changes a band.",
		Example: "  chaperonectl plugin risk plugins/weather/1.4.0 --save\n" +
			"  chaperonectl plugin risk plugins/weather/1.4.0 --verify\n" +
			"  chaperonectl plugin risk --table\n" +
			"  chaperonectl plugin risk --replay stricter.yaml",
		RunE: func(cmd *cobra.Command, args []string) error { return f.run(cmd.Context(), args) },
	}
	flags := cmd.Flags()
	flags.BoolVar(&f.save, "save", false, "write the score as "+fileRisk+" into the folder of the request")
	flags.BoolVar(&f.verify, "verify", false, "compute "+fileRisk+" again, and compare every byte")
	flags.BoolVar(&f.table, "table", false, "compare all requests of the repository")
	flags.StringVar(&f.replay, "replay", "", "a `RUBRIC`, in YAML or signed, to score all requests by")
	return c.repoFlag(c.withOutput(cmd))
}

func (f *riskFlags) run(ctx context.Context, args []string) error {
	all := f.table || f.replay != ""
	switch {
	case all && (f.save || f.verify || f.table && f.replay != ""), f.save && f.verify:
		return command.Usage("risk: say one of --save, --verify, --table and --replay")
	case !all && len(args) != 1:
		return command.Usage("risk: takes the folder of a request, as in plugins/weather/1.4.0; see chaperonectl plugin risk --help")
	}
	dir := "."
	if len(args) == 1 {
		dir = args[0]
	}
	switch {
	case all:
		return f.all(ctx, dir)
	case f.verify:
		return f.verifyStored(ctx, dir)
	}
	return f.withRequest(ctx, dir, f.one)
}

// one prints and stores the score of a request.
func (f *riskFlags) one(r *repo, e *governance.Evaluation) error {
	if e.Risk == nil {
		return noScore(e)
	}
	text, err := e.Risk.JSON()
	if err != nil {
		return err
	}
	if f.save {
		if err := r.write(path.Join(e.Request.Dir, fileRisk), text); err != nil {
			return err
		}
	}
	if f.output == "json" { // the canonical bytes, which --verify compares
		_, err := f.stdout.Write(text)
		return err
	}
	return f.print(e.Risk, func(w io.Writer) { explainRisk(w, e.Risk) })
}

// noScore returns why a request has no score.
func noScore(e *governance.Evaluation) error {
	var why []string
	for _, s := range e.Stages {
		if s.Name == "risk" {
			for _, p := range s.Problems {
				why = append(why, p.Message)
			}
		}
	}
	return fmt.Errorf("%s has no score: %s", e.Request.Dir, strings.Join(why, "; "))
}

func explainRisk(w io.Writer, r *risk.Result) {
	command.Row(w, "risk", fmt.Sprintf("%d of 100, band %s", r.Score, r.Band))
	for _, s := range r.Stops {
		command.Row(w, "hard stop", s.Code+": "+s.Text)
	}
	for _, p := range r.Parts {
		command.Row(w, p.Name, fmt.Sprintf("%d (sum %d, at most %d)", p.Points, p.Sum, p.Cap))
		for _, a := range r.Addends {
			if a.Part != p.Name {
				continue
			}
			ref := a.Code
			if a.Ref != "" {
				ref += " " + a.Ref
			}
			text := a.Text
			if a.Evidence != "" {
				text += " [" + shortDigest(a.Evidence) + "]"
			}
			command.Row(w, fmt.Sprintf("  +%d", a.Counted), ref, text)
		}
	}
}

// verifyStored compares the stored score of a request with what the files give at its time.
func (f *riskFlags) verifyStored(ctx context.Context, dir string) error {
	r, q, err := f.openRequest(dir)
	if err != nil {
		return err
	}
	defer r.close()
	name := path.Join(q.Dir, fileRisk)
	stored, err := governance.ReadFile(r.files(), name)
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("%s is not there; write it: chaperonectl plugin risk %s --save", name, q.Dir)
	}
	if err != nil {
		return err
	}
	old, err := risk.Parse(stored)
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	e, err := r.Evaluate(ctx, q, old.AsOf)
	if err != nil {
		return err
	}
	if err := risk.Verify(stored, r.RiskRubric(), *r.RiskRequest(e), f.now()); err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	return f.print(e.Risk, func(w io.Writer) {
		command.Say(w, "%s verifies: %d of 100, band %s, as of %s", name, old.Score, old.Band, old.AsOf.Format("2006-01-02T15:04:05Z07:00"))
	})
}

// all compares the requests of the repository, or replays them.
func (f *riskFlags) all(ctx context.Context, dir string) error {
	r, err := f.openRepo(dir)
	if err != nil {
		return err
	}
	defer r.close()
	if f.replay != "" {
		return f.replayed(ctx, r)
	}
	evaluations, unread := r.EvaluateAll(ctx, f.now())
	results, faults := []*risk.Result{}, []error{unread}
	for _, e := range evaluations {
		if e.Risk == nil {
			faults = append(faults, noScore(e))
			continue
		}
		results = append(results, e.Risk)
	}
	err = f.print(results, func(w io.Writer) { tableRisk(w, results) })
	return errors.Join(append(faults, err)...) // one folder does not hide the others
}

func tableRisk(w io.Writer, results []*risk.Result) {
	command.Row(w, "PLUGIN", "VERSION", "RISK", "BAND", "EXPOSURE", "VULNERABILITIES", "PROVENANCE", "BEHAVIOUR", "COMPLIANCE", "MOSTLY")
	for _, r := range results {
		cells := []any{r.Plugin, r.Version, r.Score, r.Band}
		for _, p := range r.Parts {
			cells = append(cells, p.Points)
		}
		var why []string
		for _, s := range r.Stops {
			why = append(why, s.Code)
		}
		for _, a := range r.Top(3) {
			why = append(why, strings.TrimSpace(a.Code+" "+a.Ref))
		}
		command.Row(w, append(cells, strings.Join(why, ", "))...)
	}
}

// replayed shows the requests whose score another rubric changes.
func (f *riskFlags) replayed(ctx context.Context, r *repo) error {
	after, err := readRubric(r, f.replay)
	if err != nil {
		return err
	}
	evaluations, unread := r.EvaluateAll(ctx, f.now())
	var requests []*risk.Request
	for _, e := range evaluations {
		requests = append(requests, r.RiskRequest(e))
	}
	changes, err := risk.Replay(r.RiskRubric(), after, requests)
	if err != nil {
		return err
	}
	bands := 0
	for _, one := range changes {
		if one.BandChanges() {
			bands++
		}
	}
	err = f.print(changes, func(w io.Writer) {
		command.Say(w, "%d of %d requests change score, %d of them band", len(changes), len(requests), bands)
		for _, one := range changes {
			command.Row(w, one.Plugin, one.Version, fmt.Sprintf("%d %s", one.Score, one.Band), "->", fmt.Sprintf("%d %s", one.NewScore, one.NewBand))
		}
	})
	if err = errors.Join(err, unread); err == nil && bands > 0 {
		err = command.ExitError{Status: command.ExitFailure}
	}
	return err
}

// readRubric reads a rubric that is not in force: in YAML, or signed by the role policy.
func readRubric(r *repo, file string) (risk.Rubric, error) {
	data, err := readBounded(file)
	if err != nil {
		return risk.Rubric{}, fmt.Errorf("read rubric: %w", err)
	}
	digest := ""
	if strings.HasSuffix(file, ".dsse.json") {
		e, err := dsse.Parse(data)
		if err != nil {
			return risk.Rubric{}, fmt.Errorf("%s: %w", file, err)
		}
		doc, err := r.Root.Verify(e, dsse.KindRubric)
		if err != nil {
			return risk.Rubric{}, fmt.Errorf("%s: %w", file, err)
		}
		data, digest = doc.Payload, doc.Digest
	}
	object, err := configs.ParseObject[configs.RiskRubric](filepath.Base(file), data)
	if err != nil {
		return risk.Rubric{}, err
	}
	return risk.Rubric{RiskRubric: object.Spec, Digest: digest}, nil
}
