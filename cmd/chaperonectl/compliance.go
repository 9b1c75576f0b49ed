package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/chaperone-proxy/chaperone/authz"
	"github.com/chaperone-proxy/chaperone/governance"
	"github.com/chaperone-proxy/chaperone/governance/compliance"
	"github.com/chaperone-proxy/chaperone/governance/grantcheck"
	"github.com/chaperone-proxy/chaperone/governance/pilot"
	"github.com/chaperone-proxy/chaperone/internal/atomicfile"
	"github.com/chaperone-proxy/chaperone/internal/command"
	"github.com/chaperone-proxy/chaperone/internal/dsse"
	"github.com/chaperone-proxy/chaperone/internal/pilotrun"
)

// complianceRun is one run of plugin compliance.
type complianceRun struct {
	*cli
	key, log string
	attest   []string
}

func (c *cli) complianceCommand() *cobra.Command {
	p := complianceRun{cli: c}
	cmd := &cobra.Command{
		Use: "compliance DIR [--key KEY]", Short: "Check a plugin against the checklists, and sign the result", Args: oneFolder(),
		Long: "Check the request against every checklist of the repository (checklists/). Items of proof auto are proved by queries\n" +
			"over the manifest's permissions and over the log of the pilot, which is verified to be the one that the signed\n" +
			"runtime-trace names. Items of proof attested rest on a document: --attest ITEM=FILE states its digest, in the name of\n" +
			"the person who signs. With --key the result is written to DIR/evidence.\n\n" +
			"Exit status 0: every item is proved or attested, by this or by other statements. 1: an item has failed or is missing.",
		Example: "  chaperonectl plugin compliance plugins/weather/1.4.0 --key ci.key\n" +
			"  chaperonectl plugin compliance plugins/weather/1.4.0 --attest dpa=contracts/acme-dpa.pdf --key cy.key",
		RunE: func(cmd *cobra.Command, args []string) error { return p.run(cmd.Context(), args[0]) },
	}
	keyFlag(cmd, &p.key)
	cmd.Flags().StringVar(&p.log, "log", "", "the `FOLDER` with the pilot's audit log (default DIR/pilot)")
	cmd.Flags().StringArrayVar(&p.attest, "attest", nil, "attest an item by a document: `ITEM=FILE`; repeatable")
	return c.repoFlag(c.withOutput(cmd))
}

// checked is the state of one checklist, for printing.
type checked struct {
	Checklist compliance.Checklist `json:"checklist"`
	Items     []compliance.Verdict `json:"items"`
	Done      bool                 `json:"done"`
}

func (p *complianceRun) run(ctx context.Context, dir string) error {
	var key dsse.Signer
	if p.key != "" || len(p.attest) > 0 {
		var err error
		if key, err = signer(ctx, p.key); err != nil {
			return err
		}
	}
	return p.withRequest(ctx, dir, func(r *repo, e *governance.Evaluation) error {
		if len(r.Checklists) == 0 {
			return fmt.Errorf("compliance %s: the repository has no checklists; write one as checklists/NAME.yaml and sign it", e.Request.Dir)
		}
		documents, err := p.documents(r, e.Request, key)
		if err != nil {
			return err
		}
		return p.check(ctx, r, e, documents, key)
	})
}

// documents returns the attestations of --attest by item.
func (p *complianceRun) documents(r *repo, q *governance.Request, key dsse.Signer) (map[string]compliance.Attestation, error) {
	if key == nil {
		return nil, nil
	}
	identity, roles := r.Roles(key.Public())
	signs := slices.DeleteFunc(roles, func(role string) bool { return !signsEvidence(r.Root, role, compliance.Type) })
	switch {
	case identity == "":
		return nil, unknownKey("compliance "+q.Dir, key)
	case slices.Contains(q.Authors, identity):
		return nil, fmt.Errorf("compliance %s: %s submitted it, and an author's own checklist does not count; somebody else has to sign", q.Dir, identity)
	case len(signs) == 0:
		return nil, fmt.Errorf("compliance %s: no role of %s signs %s; sign with a key of role compliance or measurer", q.Dir, identity, compliance.Type)
	}
	role := signs[0]
	if slices.Contains(signs, "compliance") {
		role = "compliance"
	}
	out := map[string]compliance.Attestation{}
	for _, one := range p.attest {
		item, file, ok := strings.Cut(one, "=")
		if !ok || file == "" {
			return nil, command.Usage("compliance: --attest %s is not ITEM=FILE", one)
		}
		if !slices.ContainsFunc(r.Checklists, func(c governance.Checklist) bool { return attestable(c, item) }) {
			return nil, fmt.Errorf("compliance %s: no checklist has an item %s of proof attested", q.Dir, item)
		}
		digest, err := digestOf(grantcheck.ArtifactFile, file)
		if err != nil {
			return nil, err
		}
		out[item] = compliance.Attestation{Document: digest, Name: filepath.Base(file), Role: role, Identity: identity}
	}
	return out, nil
}

func attestable(c governance.Checklist, item string) bool {
	for i := range c.Items {
		if c.Items[i].ID == item && c.Items[i].Proof == "attested" {
			return true
		}
	}
	return false
}

// signsEvidence reports whether a role signs evidence of a type.
func signsEvidence(root *dsse.Root, role, predicateType string) bool {
	for _, r := range root.Spec().Roles {
		if r.Name == role {
			return slices.Contains(r.Kinds, dsse.KindEvidence) && slices.Contains(r.PredicateTypes, predicateType)
		}
	}
	return false
}

// check checks the lists, signs the results and prints the state of every item.
func (p *complianceRun) check(ctx context.Context, r *repo, e *governance.Evaluation, documents map[string]compliance.Attestation, key dsse.Signer) error {
	q := e.Request
	in, log, err := p.input(ctx, r, q)
	if err != nil {
		return err
	}
	in.Attested = documents
	statements, err := governance.ChecklistStatements(e)
	if err != nil {
		return err
	}
	var out []checked
	for i := range r.Checklists {
		list := &r.Checklists[i]
		if !list.Signed {
			p.warn("%s is not signed, so that anybody who writes to the repository can change it; sign it: chaperonectl plugin sign %[1]s", list.File)
		}
		results, err := compliance.Check(list.Items, in)
		if err != nil {
			return err
		}
		now := compliance.Statement{IssuedAt: p.now(), Plugin: q.Plugin, Version: q.Version, Checklist: list.Checklist, Log: log, Items: results}
		mine := statements
		if len(results) > 0 {
			signed := compliance.Signed{Statement: now}
			if key != nil {
				if err := p.putEvidence(ctx, r, q, compliance.Type, now, key); err != nil {
					return err
				}
				for _, a := range documents {
					signed.By = []dsse.Signed{{Role: a.Role, Identity: a.Identity}}
				}
			}
			mine = append(slices.Clone(statements), signed)
		}
		all := compliance.Merge(list.Checklist, list.Items, mine)
		out = append(out, checked{list.Checklist, all, compliance.Done(all)})
	}
	return p.printChecked(out)
}

func (p *complianceRun) printChecked(out []checked) error {
	if err := p.print(out, func(w io.Writer) {
		for _, c := range out {
			command.Say(w, "checklist %s", c.Checklist.Name)
			for _, v := range c.Items {
				command.Row(w, "  "+v.ID, string(v.Outcome), v.Control, v.Detail)
				if len(v.Decisions) > 0 {
					command.Row(w, "", "", "decisions", strings.Join(v.Decisions, " "))
				}
			}
		}
	}); err != nil {
		return err
	}
	if slices.ContainsFunc(out, func(c checked) bool { return !c.Done }) {
		return command.ExitError{Status: command.ExitFailure}
	}
	return nil
}

// input returns what the lists are checked against. Without a pilot there is no log.
func (p *complianceRun) input(ctx context.Context, r *repo, q *governance.Request) (compliance.Input, *pilot.Log, error) {
	declared, err := declaredAccess(r, q)
	if err != nil {
		return compliance.Input{}, nil, err
	}
	in := compliance.Input{Declared: declared}
	for _, g := range guardrailsOf(r.Repository, q.Plugin) {
		in.Guardrails = append(in.Guardrails, g.Guardrail)
	}
	trace, err := newest(r, q, pilot.TraceType, roleMeasurer, pilot.ParseTrace)
	if err != nil || trace == nil {
		return in, nil, err
	}
	in.Trace = trace.statement
	folder := cmp.Or(p.log, filepath.Join(r.dir, filepath.FromSlash(q.Dir), pilotFolder))
	file := filepath.Join(folder, "audit.jsonl")
	if _, err := os.Lstat(file); errors.Is(err, fs.ErrNotExist) && p.log == "" {
		p.warn("the log of the pilot is not in %s, so that nothing is proved by it; name its folder with --log", folder)
		return in, nil, nil
	}
	log, err := pilotrun.VerifyLog(file, folder, trace.statement.Log.Grant)
	if err == nil {
		err = trace.statement.Log.Same(log)
	}
	if err != nil {
		return in, nil, fmt.Errorf("compliance %s: %s: %w", q.Dir, file, err)
	}
	in.Accesses = pilotrun.Accesses(ctx, file, q.Plugin)
	return in, &log, nil
}

func (c *cli) dataflowCommand() *cobra.Command {
	var out string
	cmd := &cobra.Command{
		Use: "dataflow DIR", Short: "Draw the declared and the observed flows of data", Args: oneFolder(),
		Long: "Print a flowchart in Mermaid of the flows of data: those that the manifest declares, and those that the pilot observed,\n" +
			"by its signed runtime-trace. An undeclared flow is a thick line and an error; an unused one is a dotted line and a note.\n" +
			"Differences are printed to standard error.\n\n" +
			"Exit status 0: no undeclared flow. 1: an undeclared flow, or failure.",
		Example: "  chaperonectl plugin dataflow plugins/weather/1.4.0 -o dataflow.mmd",
		RunE: func(cmd *cobra.Command, args []string) error {
			return c.withRequest(cmd.Context(), args[0], func(r *repo, e *governance.Evaluation) error {
				return c.dataflow(r, e.Request, out)
			})
		},
	}
	cmd.Flags().StringVarP(&out, "out", "o", "", "write the diagram to this `FILE`")
	return c.repoFlag(c.withOutput(cmd))
}

func (c *cli) dataflow(r *repo, q *governance.Request, out string) error {
	trace, err := newest(r, q, pilot.TraceType, roleMeasurer, pilot.ParseTrace)
	if err != nil {
		return err
	}
	// A diagram shows names of credentials, and needs no source of them.
	declared := authz.Grant{Rules: q.Manifest.Spec.Rules()}
	var observed *pilot.Trace
	if trace != nil {
		observed = trace.statement
	} else {
		c.warn("there is no pilot to compare with: chaperonectl plugin pilot %s", q.Dir)
	}
	flows := compliance.Flows(declared, observed)
	diagram := compliance.Mermaid(q.Plugin, flows)
	if out != "" {
		if err := atomicfile.Write(out, []byte(diagram), maxPublic); err != nil {
			return fmt.Errorf("write %s: %w", out, err)
		}
	} else if err := c.print(flows, func(w io.Writer) { _, _ = io.WriteString(w, diagram) }); err != nil {
		return err
	}
	failed := false
	for _, f := range compliance.Findings(flows) {
		command.Say(c.stderr, "%s: %s", f.Level, f.Text)
		failed = failed || f.Level == pilot.LevelError
	}
	if failed {
		return command.ExitError{Status: command.ExitFailure}
	}
	return nil
}
