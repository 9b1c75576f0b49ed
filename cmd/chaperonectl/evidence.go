package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/chaperone-proxy/chaperone/authz"
	"github.com/chaperone-proxy/chaperone/governance"
	"github.com/chaperone-proxy/chaperone/governance/evidence"
	"github.com/chaperone-proxy/chaperone/internal/atomicfile"
	"github.com/chaperone-proxy/chaperone/internal/command"
	"github.com/chaperone-proxy/chaperone/internal/dsse"
)

const dirEvidence = "evidence"

func (c *cli) evidenceCommand() *cobra.Command {
	return group("evidence", "Add and verify reports of scanners, tests and builds", "Add and verify the evidence of a request: signed statements about its artifact.",
		c.evidenceAddCommand(), c.evidenceListCommand(), c.evidenceVerifyCommand())
}

// evidenceAdd are the flags of `evidence add`.
type evidenceAdd struct {
	*cli
	key      string
	validFor authz.Duration
	level    int
	plan     evidence.Plan
	due      string
	old      []string
	replaces []string // digests of old
}

func (c *cli) evidenceAddCommand() *cobra.Command {
	f := &evidenceAdd{cli: c}
	cmd := &cobra.Command{
		Use: "add DIR [REPORT...] --key KEY", Short: "Sign reports as evidence about the artifact", Args: command.AtLeast(1, "DIR, the folder of a request, as in plugins/weather/1.4.0"),
		Long: "Read reports, and sign what they state about the artifact of the request. Formats, by content: SARIF 2.1.0,\n" +
			"CycloneDX 1.4 to 1.7 (JSON), SPDX 2.2 and 2.3 (JSON), OpenVEX, JUnit XML, go test -json, and in-toto statements\n" +
			"(test-result v0.1, vulns v0.2, SLSA provenance v1). - is standard input. A report of another artifact, of a scan\n" +
			"that failed, or of the future is refused. The key has to be of a role that signs this type of evidence.\n\n" +
			"With --plan, sign a plan of remediation for a finding. It unblocks until it is due, at most 90 days ahead.",
		Example: "  chaperonectl plugin evidence add plugins/weather/1.4.0 scan.sarif sbom.cdx.json --key ci.key\n" +
			"  chaperonectl plugin evidence add plugins/weather/1.4.0 --plan F-5a404a0a7c424445dd27 --text 'Update libfoo to 1.1' \\\n" +
			"    --owner payments --due 2026-12-24T00:00:00Z --key dev.key",
		RunE: func(cmd *cobra.Command, args []string) error { return f.run(cmd.Context(), args[0], args[1:]) },
	}
	flags := cmd.Flags()
	keyFlag(cmd, &f.key)
	flags.Var(duration{&f.validFor}, "valid-for", "how long the evidence counts, as in 7d (default as long as the guardrail's maxAge)")
	flags.IntVar(&f.level, "level", 0, "the `LEVEL` of SLSA's Build track that you verified a provenance to have, 1 to 3 (default 1)")
	flags.StringArrayVar(&f.old, "replaces", nil, "a `FILE` of evidence that you signed and that this replaces; repeatable")
	flags.StringVar(&f.plan.Finding, "plan", "", "the id of a `FINDING`, or a vulnerability, to plan the remediation of")
	flags.StringVar(&f.plan.Plan, "text", "", "with --plan: `WHAT` will be done")
	flags.StringVar(&f.plan.Owner, "owner", "", "with --plan: the `TEAM` that will do it")
	flags.StringVar(&f.due, "due", "", "with --plan: the `TIME` by when (RFC 3339)")
	return c.repoFlag(cmd)
}

func (f *evidenceAdd) run(ctx context.Context, dir string, files []string) error {
	if (f.plan.Finding == "") == (len(files) == 0) {
		return command.Usage("evidence add: name reports, or a finding with --plan")
	}
	k, err := signer(ctx, f.key)
	if err != nil {
		return err
	}
	r, q, err := f.openRequest(dir)
	if err != nil {
		return err
	}
	defer r.close()
	if err := f.readOld(r, q); err != nil {
		return err
	}
	if f.plan.Finding != "" {
		n, err := f.remediation()
		if err != nil {
			return err
		}
		return f.add(ctx, r, q, k, "--plan", []evidence.Normalised{n})
	}
	for _, file := range files {
		data, err := f.read(file)
		if err != nil {
			return err
		}
		found, err := evidence.Normalise(data, f.options())
		if err != nil {
			return fmt.Errorf("%s: %w", file, err)
		}
		if err := f.add(ctx, r, q, k, file, found); err != nil {
			return err
		}
	}
	return nil
}

func (f *evidenceAdd) options() evidence.Options {
	return evidence.Options{IssuedAt: f.now(), ValidFor: time.Duration(f.validFor), Level: f.level, Replaces: f.replaces}
}

// readOld finds the digests of the evidence that is replaced.
func (f *evidenceAdd) readOld(r *repo, q *governance.Request) error {
	if len(f.old) == 0 {
		return nil
	}
	files, err := r.EvidenceFiles(q)
	if err != nil {
		return err
	}
	for _, name := range f.old {
		i := slices.IndexFunc(files, func(e governance.EvidenceFile) bool { return path.Base(e.File) == path.Base(name) })
		if i < 0 || files[i].Err != nil {
			return fmt.Errorf("--replaces %s: it is not verified evidence of %s; see chaperonectl plugin evidence list", name, q.Dir)
		}
		f.replaces = append(f.replaces, files[i].Item.Digest)
	}
	return nil
}

// read reads a report from a file or standard input, bounded.
func (f *evidenceAdd) read(file string) ([]byte, error) {
	if file != "-" {
		return atomicfile.Read(file, evidence.MaxSource)
	}
	data, err := io.ReadAll(io.LimitReader(f.stdin, evidence.MaxSource+1))
	if err != nil {
		return nil, fmt.Errorf("read standard input: %w", err)
	}
	return data, nil
}

func (f *evidenceAdd) remediation() (evidence.Normalised, error) {
	due, err := time.Parse(time.RFC3339, f.due)
	if err != nil {
		return evidence.Normalised{}, command.Usage("evidence add: --due %q is not a time; write one as in 2026-12-24T00:00:00Z", f.due)
	}
	f.plan.Due = due
	return evidence.NewRemediation([]evidence.Plan{f.plan}, f.options())
}

// add signs predicates about the artifact, and writes those that the trust root accepts.
func (f *evidenceAdd) add(ctx context.Context, r *repo, q *governance.Request, k dsse.Signer, file string, found []evidence.Normalised) error {
	artifact := q.Manifest.Spec.Artifact.Digest
	subject, err := subjects(q)
	if err != nil {
		return err
	}
	for _, n := range found {
		if len(n.Artifacts) > 0 && !slices.Contains(n.Artifacts, artifact) {
			return fmt.Errorf("%s: the report is about %s; the artifact of %s is %s: scan that one", file, strings.Join(n.Artifacts, ", "), q.Dir, artifact)
		}
		payload, err := evidence.New(subject, n.PredicateType, n.Predicate)
		if err != nil {
			return fmt.Errorf("%s: %w", file, err)
		}
		e, err := dsse.Sign(ctx, dsse.KindEvidence, payload, k)
		if err != nil {
			return fmt.Errorf("%s: %w", file, err)
		}
		item, err := evidence.Read(r.Root, e)
		if err != nil {
			return fmt.Errorf("%s: %w", file, err)
		}
		name := path.Join(q.Dir, dirEvidence, shortType(n.PredicateType)+"-"+shortDigest(item.Digest)+".dsse.json")
		err = r.create(name, e.Marshal())
		if errors.Is(err, fs.ErrExist) {
			item, err = cosign(ctx, r, name, e, k)
		}
		if err != nil {
			return err
		}
		f.say("%s: %s, signed by %s", name, n.Summary, signers(&item))
	}
	return nil
}

// cosign adds a signature to a statement that somebody has signed already: without it, a
// second person's signature of the same report would be lost.
func cosign(ctx context.Context, r *repo, name string, e *dsse.Envelope, k dsse.Signer) (item evidence.Item, err error) {
	data, err := readDocument(filepath.Join(r.dir, filepath.FromSlash(name)))
	if err != nil {
		return item, err
	}
	there, err := dsse.Parse(data)
	if err != nil || there.PayloadType != e.PayloadType || there.Digest() != e.Digest() {
		return item, fmt.Errorf("%s is there and is not this statement; remove it", name)
	}
	if err := there.Add(ctx, k); err != nil {
		return item, fmt.Errorf("%s: %w", name, err)
	}
	if item, err = evidence.Read(r.Root, there); err != nil {
		return item, fmt.Errorf("%s: %w", name, err)
	}
	return item, r.write(name, there.Marshal())
}

// subjects are what evidence of a request is about: its artifact and its manifest.
func subjects(q *governance.Request) ([]evidence.Subject, error) {
	artifact, err := evidence.Artifact(q.Plugin, q.Manifest.Spec.Artifact.Digest)
	if err != nil {
		return nil, fmt.Errorf("%s: artifact: %w", q.Dir, err)
	}
	manifest, err := evidence.Artifact(governance.FileManifest, q.ManifestDigest)
	if err != nil {
		return nil, fmt.Errorf("%s: manifest: %w", q.Dir, err)
	}
	return []evidence.Subject{artifact, manifest}, nil
}

// shortType is the name of a predicate type in a file name, as in findings.
func shortType(predicateType string) string {
	parts := strings.Split(predicateType, "/")
	if len(parts) < 2 {
		return dirEvidence
	}
	return parts[len(parts)-2]
}

func shortDigest(digest string) string {
	const digits = 12
	hex := strings.TrimPrefix(digest, "sha256:")
	return hex[:min(digits, len(hex))]
}

// signers names who signed, as in ci@corp (scanner).
func signers(i *evidence.Item) string {
	var out []string
	for _, s := range i.Signed {
		out = append(out, s.Identity+" ("+s.Role+")")
	}
	slices.Sort(out)
	return strings.Join(slices.Compact(out), ", ")
}

// statement is one file of evidence, as listed.
type statement struct {
	File          string           `json:"file"`
	PredicateType string           `json:"predicateType,omitempty"`
	Digest        string           `json:"digest,omitempty"`
	ObservedAt    time.Time        `json:"observedAt,omitzero"`
	ExpiresAt     time.Time        `json:"expiresAt,omitzero"`
	Signed        []evidenceSigner `json:"signed,omitempty"`
	// State is good, old, refused or replaced.
	State string `json:"state"`
	Why   string `json:"why,omitempty"`

	item evidence.Item
}

type evidenceSigner struct {
	Role     string `json:"role"`
	Identity string `json:"identity"`
}

// The states of a statement.
const (
	stateGood    = "good"
	stateOld     = "old"
	stateRefused = "refused"
	// stateReplaced is of a statement that a newer one of the same signer replaces.
	stateReplaced = "replaced"
)

// statements reads every file of evidence of a request. A file that is not evidence is listed
// with the reason.
func (c *cli) statements(r *repo, q *governance.Request) ([]statement, error) {
	files, err := r.EvidenceFiles(q)
	if err != nil {
		return nil, err
	}
	needs := r.Requirements(q.Plugin)
	var items []evidence.Item
	for i := range files {
		if files[i].Err == nil {
			items = append(items, files[i].Item)
		}
	}
	current := evidence.Current(items)
	out := []statement{}
	for i := range files {
		s := statement{File: files[i].File, State: stateRefused, item: files[i].Item}
		if files[i].Err == nil && !slices.ContainsFunc(current, func(c evidence.Item) bool { return c.Digest == s.item.Digest }) {
			s.State, s.PredicateType, s.Digest, s.ObservedAt = stateReplaced, s.item.PredicateType, s.item.Digest, s.item.ObservedAt
			out = append(out, s)
			continue
		}
		if err := files[i].Err; err != nil {
			s.Why = err.Error()
		} else {
			s.judge(q.Target(), needs, c.now())
		}
		out = append(out, s)
	}
	return out, nil
}

// judge sets the state of a verified statement.
func (s *statement) judge(target evidence.Target, needs []evidence.Requirement, now time.Time) {
	i := &s.item
	s.PredicateType, s.Digest, s.ObservedAt, s.ExpiresAt, s.State = i.PredicateType, i.Digest, i.ObservedAt, i.ExpiresAt, stateGood
	for _, one := range i.Signed {
		s.Signed = append(s.Signed, evidenceSigner{one.Role, one.Identity})
	}
	all := []evidence.Requirement{{PredicateType: i.PredicateType}}
	for _, need := range needs {
		if need.PredicateType == i.PredicateType {
			all = append(all, need)
		}
	}
	for _, need := range all {
		err := i.Check(target, need, now)
		var stale *evidence.StaleError
		switch {
		case err == nil:
			continue
		case errors.As(err, &stale):
			s.State = stateOld
		default:
			s.State = stateRefused
		}
		s.Why = err.Error()
		return
	}
}

func (c *cli) evidenceListCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use: "list DIR", Short: "List the evidence of a request", Args: oneFolder(),
		Long:    "List the evidence of a request: its type, its age, who signed it, and whether it counts.",
		Example: "  chaperonectl plugin evidence list plugins/weather/1.4.0",
		RunE: func(_ *cobra.Command, args []string) error {
			all, err := c.allStatements(args[0])
			if err != nil {
				return err
			}
			return c.print(all, func(w io.Writer) { c.listStatements(w, all) })
		},
	}
	return c.repoFlag(c.withOutput(cmd))
}

func (c *cli) allStatements(dir string) ([]statement, error) {
	r, q, err := c.openRequest(dir)
	if err != nil {
		return nil, err
	}
	defer r.close()
	return c.statements(r, q)
}

func (c *cli) listStatements(w io.Writer, all []statement) {
	command.Row(w, "STATE", "TYPE", "OBSERVED", "SIGNED BY", "FILE", "WHY")
	for i := range all {
		s := &all[i]
		observed := ""
		if !s.ObservedAt.IsZero() {
			observed = s.ObservedAt.Format(time.RFC3339)
		}
		command.Row(w, s.State, shortType(s.PredicateType), observed, signers(&s.item), path.Base(s.File), s.Why)
	}
}

func (c *cli) evidenceVerifyCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use: "verify DIR", Short: "Verify the evidence of a request, and the findings that block", Args: oneFolder(),
		Long: "Verify every file of evidence: signature, role, artifact, time and age. Then list the findings that block a grant,\n" +
			"each with what would unblock it.\n\nExit status 0: all evidence counts and nothing blocks. 1: otherwise.",
		Example: "  chaperonectl plugin evidence verify plugins/weather/1.4.0",
		RunE: func(_ *cobra.Command, args []string) error {
			return c.verifyEvidence(args[0])
		},
	}
	return c.repoFlag(c.withOutput(cmd))
}

// verification is the result of `evidence verify`.
type verification struct {
	Refused  []statement      `json:"refused"`
	Old      []statement      `json:"old"`
	Good     int              `json:"good"`
	Blocking []evidence.Block `json:"blocking"`
}

func (c *cli) verifyEvidence(dir string) error {
	r, q, err := c.openRequest(dir)
	if err != nil {
		return err
	}
	defer r.close()
	all, err := c.statements(r, q)
	if err != nil {
		return err
	}
	v := verification{Refused: []statement{}, Old: []statement{}}
	var items []evidence.Item
	for i := range all {
		switch s := &all[i]; s.State {
		case stateRefused:
			v.Refused = append(v.Refused, *s)
			continue
		case stateReplaced:
			continue
		case stateOld:
			v.Old = append(v.Old, *s)
		default:
			v.Good++
		}
		items = append(items, all[i].item) // findings of an old scan still count
	}
	if v.Blocking, err = r.Blocking(q, items, c.now()); err != nil {
		return err
	}
	if err := c.print(v, func(w io.Writer) { printVerification(w, &v) }); err != nil {
		return err
	}
	if len(v.Refused)+len(v.Old)+len(v.Blocking) > 0 {
		return command.ExitError{Status: command.ExitFailure}
	}
	return nil
}

func printVerification(w io.Writer, v *verification) {
	command.Say(w, "%d good, %d old, %d refused; %d findings block", v.Good, len(v.Old), len(v.Refused), len(v.Blocking))
	for _, list := range [][]statement{v.Refused, v.Old} {
		for i := range list {
			command.Say(w, "%s %s: %s", list[i].State, list[i].File, list[i].Why)
		}
	}
	for i := range v.Blocking {
		b := &v.Blocking[i]
		command.Say(w, "blocks: %s %s %s: %s", b.Finding.ID, b.Finding.Name(), b.Finding.Location, b.Why)
		command.Say(w, "  to unblock: %s", b.Unblock)
	}
}
