package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/chaperone-proxy/chaperone/authz"
	"github.com/chaperone-proxy/chaperone/governance"
	"github.com/chaperone-proxy/chaperone/governance/grantcheck"
	"github.com/chaperone-proxy/chaperone/internal/command"
	"github.com/chaperone-proxy/chaperone/internal/dsse"
)

func (c *cli) submitCommand() *cobra.Command {
	var key, artifact string
	cmd := &cobra.Command{
		Use: "submit DIR --key KEY", Short: "Submit a manifest, as its author", Args: oneFolder(),
		Long: "Sign that this manifest, for this artifact, is to be approved. A submission does not change any more: a changed\n" +
			"manifest is submitted again, and everything that was approved before is void.",
		Example: "  chaperonectl plugin submit plugins/weather/1.4.0 --artifact bin/weather --key dev.key",
		RunE: func(cmd *cobra.Command, args []string) error {
			k, err := signer(cmd.Context(), key)
			if err != nil {
				return err
			}
			return c.withRequest(cmd.Context(), args[0], func(r *repo, e *governance.Evaluation) error {
				return c.submit(cmd.Context(), r, e.Request, artifact, k)
			})
		},
	}
	keyFlag(cmd, &key)
	cmd.Flags().StringVar(&artifact, "artifact", "", "the `FILE` or folder of the artifact: its digest has to be that of the manifest")
	return c.repoFlag(cmd)
}

func (c *cli) submit(ctx context.Context, r *repo, q *governance.Request, artifact string, key dsse.Signer) error {
	identity, _ := r.Roles(key.Public())
	if identity == "" {
		return unknownKey("submit "+q.Dir, key)
	}
	want := q.Manifest.Spec.Artifact.Artifact
	if artifact != "" {
		got, err := digestOf(want.Kind, artifact)
		switch {
		case err != nil:
			return err
		case got != want.Digest:
			return fmt.Errorf("submit %s: %s has digest %s, and the manifest states %s; correct one of them", q.Dir, artifact, got, want.Digest)
		}
	}
	payload, err := r.NewSubmission(q, c.now())
	if err != nil {
		return err
	}
	e, err := dsse.Sign(ctx, dsse.KindSubmission, payload, key)
	if err != nil {
		return err
	}
	if _, err := r.Root.Verify(e, dsse.KindSubmission); err != nil {
		return fmt.Errorf("submit %s: %w", q.Dir, err)
	}
	if err := r.write(path.Join(q.Dir, governance.FileSubmission), e.Marshal()); err != nil {
		return err
	}
	c.say("%s %s submitted by %s: manifest %s, artifact %s %s", q.Plugin, q.Version, identity, q.ManifestDigest, want.Kind, want.Digest)
	if artifact == "" && want.Kind != grantcheck.ArtifactImage {
		c.warn("the artifact was not read: with --artifact its digest is compared")
	}
	return nil
}

// digestOf returns the digest of an artifact on this machine.
func digestOf(kind grantcheck.ArtifactKind, artifact string) (string, error) {
	if kind == grantcheck.ArtifactTree {
		root, err := os.OpenRoot(artifact)
		if err != nil {
			return "", fmt.Errorf("read artifact: %w", err)
		}
		defer root.Close()
		return grantcheck.TreeDigest(root.FS())
	}
	if kind == grantcheck.ArtifactImage {
		return "", command.Usage("--artifact is a file or a folder; the digest of an image is that of its manifest in the registry")
	}
	f, _, err := openRegular(artifact)
	if err != nil {
		return "", fmt.Errorf("read artifact: %w", err)
	}
	defer f.Close()
	return grantcheck.FileDigest(f)
}

func unknownKey(what string, key dsse.Signer) error {
	return fmt.Errorf("%s: the trust root lists no key %s, or it is revoked", what, key.Public().KeyID())
}

// decideFlags are the flags of commands that sign a decision.
type decideFlags struct {
	role, key, comment, grant, keep string
	expires                         authz.Duration
}

func (c *cli) decideCommand(decision grantcheck.Decision, short, long string) *cobra.Command {
	var f decideFlags
	name := string(decision)
	also := map[bool]string{true: " --grant DIGEST", false: " --comment TEXT"}[decision == grantcheck.DecisionApprove]
	cmd := &cobra.Command{
		Use: name + " DIR --role ROLE --key KEY" + also, Short: short, Long: long, Args: oneFolder(),
		Example: "  chaperonectl plugin " + name + " plugins/weather/1.4.0 --role security --key bo.key " + map[bool]string{true: "--grant sha256:...", false: "--comment 'Read the packet of 1.4.0'"}[decision == grantcheck.DecisionApprove],
		RunE: func(cmd *cobra.Command, args []string) error {
			k, err := signer(cmd.Context(), f.key)
			if err != nil {
				return err
			}
			if f.role == "" {
				return command.Usage("%s: --role is missing: name the role that you decide in", name)
			}
			return c.withRequest(cmd.Context(), args[0], func(r *repo, e *governance.Evaluation) error {
				return c.decide(cmd.Context(), r, e, decision, f, k)
			})
		},
	}
	keyFlag(cmd, &f.key)
	cmd.Flags().StringVar(&f.role, "role", "", "the `ROLE` that you decide in")
	cmd.Flags().StringVar(&f.comment, "comment", "", "a `TEXT` for the others")
	if decision == grantcheck.DecisionAnnotate {
		cmd.Flags().StringVar(&f.keep, "keep", "", "keep this unused `PERMISSION` in a renewal; the comment is the reason")
	}
	if decision == grantcheck.DecisionApprove {
		cmd.Flags().StringVar(&f.grant, "grant", "", "the `DIGEST` of the grant that you reviewed, as the packet states it, or its first 32 digits (asked for at a terminal)")
		cmd.Flags().Var(duration{&f.expires}, "expires", "end the approval, and so the grant, after this `DURATION`, as in 30d")
	}
	return c.repoFlag(cmd)
}

func (c *cli) decide(ctx context.Context, r *repo, e *governance.Evaluation, decision grantcheck.Decision, f decideFlags, key dsse.Signer) error {
	q := e.Request
	identity, _ := r.Roles(key.Public())
	if identity == "" {
		return unknownKey(fmt.Sprintf("%s %s", decision, q.Dir), key)
	}
	var err error
	ruling := governance.Ruling{Role: f.role, Identity: identity, Decision: decision, Comment: f.comment, Digest: f.grant}
	if f.keep != "" && strings.TrimSpace(f.comment) != "" {
		ruling.Comment = governance.KeepComment(f.keep, f.comment)
	}
	if f.expires > 0 {
		ruling.Expires = c.now().Add(time.Duration(f.expires))
	}
	if decision == grantcheck.DecisionApprove && f.grant == "" && e.Draft != "" && isTerminal(c.stdin) {
		if ruling.Digest, err = c.askGrant(); err != nil {
			return err
		}
	}
	payload, err := r.Decide(e, ruling, c.now())
	if err != nil {
		return err
	}
	signed, err := dsse.Sign(ctx, dsse.KindApproval, payload, key)
	if err != nil {
		return err
	}
	name := path.Join(q.Dir, "approvals", fmt.Sprintf("%s-%s-%s%s", f.role, decision, short(signed.Digest()), signedEnding))
	if err := r.createOnce(name, signed.Marshal()); err != nil {
		return err
	}
	c.say("%s: %s as %s of %s %s", name, decided(decision), f.role, q.Plugin, q.Version)
	if decision == grantcheck.DecisionApprove {
		c.say("approved: grant %s, score %d (%s)", e.Draft, e.Score, e.Band)
	}
	return nil
}

// isTerminal reports whether a person is asked.
func isTerminal(in io.Reader) bool {
	f, ok := in.(*os.File)
	return ok && term.IsTerminal(int(f.Fd()))
}

// askGrant asks for the digest that a reviewer has read in the packet.
func (c *cli) askGrant() (string, error) {
	fmt.Fprintf(c.stderr, "the digest in the packet that you read, or its first %d digits: ", governance.ShortDigest)
	const longest = 128
	line, err := bufio.NewReader(io.LimitReader(c.stdin, longest)).ReadString('\n')
	if answer := strings.TrimSpace(line); answer != "" {
		return answer, nil
	}
	if err == nil || errors.Is(err, io.EOF) {
		err = errors.New("no digits were entered")
	}
	return "", fmt.Errorf("approve: %w; review the grant, and state its digest with --grant", err)
}

func decided(d grantcheck.Decision) string {
	switch d {
	case grantcheck.DecisionApprove:
		return "approved"
	case grantcheck.DecisionReject:
		return "rejected"
	case grantcheck.DecisionWithdraw:
		return "withdrew the decision"
	case grantcheck.DecisionAnnotate:
		return "commented"
	}
	return string(d)
}

// short returns the first digits of a digest, for the name of a file.
func short(digest string) string {
	const digits = 12
	digest = strings.TrimPrefix(digest, "sha256:")
	return digest[:min(digits, len(digest))]
}

func (c *cli) approveCommand() *cobra.Command {
	return c.decideCommand(grantcheck.DecisionApprove, "Approve the grant of a request", "Approve exactly the grant that the packet shows (see review): its bytes, the guardrail, the rubric, the score, the\n"+
		"exemptions and every piece of evidence. If one of them changes, the approval is void.")
}

func (c *cli) rejectCommand() *cobra.Command {
	return c.decideCommand(grantcheck.DecisionReject, "Reject a request, until you withdraw it", "Reject a request. No grant is issued until the same person withdraws the rejection.")
}

func (c *cli) withdrawCommand() *cobra.Command {
	return c.decideCommand(grantcheck.DecisionWithdraw, "Withdraw what you decided before", "Withdraw an approval or a rejection of your own. A grant that was issued already stays; revoke it, or issue another.")
}

func (c *cli) annotateCommand() *cobra.Command {
	return c.decideCommand(grantcheck.DecisionAnnotate, "Add a signed comment", "Add a signed comment, which neither approves nor rejects. With --keep, a renewal keeps a permission that nothing used.")
}

func (c *cli) issueCommand() *cobra.Command {
	var key string
	cmd := &cobra.Command{
		Use: "issue DIR --key KEY", Short: "Issue the grant that was approved", Args: oneFolder(),
		Long: "Sign the grant that was reviewed and approved, and write grants/NAME.dsse.json, which a sidecar with spec.trust loads, with each\n" +
			"caFile that it names beside it.\n" +
			"The grant is composed once more: if an input has moved since the review, it is refused, and the input named.",
		Example: "  chaperonectl plugin issue plugins/weather/1.4.0 --key release.key",
		RunE: func(cmd *cobra.Command, args []string) error {
			k, err := signer(cmd.Context(), key)
			if err != nil {
				return err
			}
			return c.withRequest(cmd.Context(), args[0], func(r *repo, e *governance.Evaluation) error { return c.issue(cmd.Context(), r, e, k) })
		},
	}
	keyFlag(cmd, &key)
	return c.repoFlag(cmd)
}

func (c *cli) issue(ctx context.Context, r *repo, e *governance.Evaluation, key dsse.Signer) error {
	q := e.Request
	if err := e.Refusal(); err != nil {
		return err
	}
	signed, err := dsse.Sign(ctx, dsse.KindGrant, q.Draft, key)
	if err != nil {
		return err
	}
	file, err := r.Issue(e, signed, c.now())
	if err != nil {
		return err
	}
	generation, err := e.GenerationFile()
	if err != nil {
		return err
	}
	authorities, err := r.AuthorityFiles(e)
	if err != nil {
		return fmt.Errorf("issue grant of %s: %w", q.Dir, err)
	}
	if err := r.write(generation, file); err != nil {
		return err
	}
	for _, a := range authorities { // before the grant that needs them
		if err := r.write(a.Name, a.Data); err != nil {
			return err
		}
		c.say("%s: authorities, digest %s", a.Name, dsse.Digest(a.Data))
	}
	if err := r.write(governance.GrantFile(q.Plugin), file); err != nil {
		return err
	}
	c.say("%s: grant %s for %s %s, score %d (%s)", governance.GrantFile(q.Plugin), e.Draft, q.Plugin, q.Version, e.Score, e.Band)
	return nil
}

func (c *cli) statusCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use: "status [DIR]", Short: "Print the stage of a request, what is missing, and who has to act", Args: cobra.MaximumNArgs(1),
		Long:    "Compute the state of a request, or of every request of the repository, from its files and signatures.",
		Example: "  chaperonectl plugin status plugins/weather/1.4.0\n  chaperonectl plugin status --output json",
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				return c.statusOfAll(cmd.Context(), ".")
			}
			return c.withRequest(cmd.Context(), args[0], func(_ *repo, e *governance.Evaluation) error {
				return c.print(governance.StatusOf(e), func(w io.Writer) { printStatus(w, e) })
			})
		},
	}
	return c.repoFlag(c.withOutput(cmd))
}

// statusOfAll prints one line for each request.
func (c *cli) statusOfAll(ctx context.Context, dir string) error {
	r, err := c.openRepo(dir)
	if err != nil {
		return err
	}
	defer r.close()
	all, unread := r.EvaluateAll(ctx, c.now())
	states := make([]governance.Status, 0, len(all))
	for _, e := range all {
		states = append(states, governance.StatusOf(e))
	}
	err = c.print(states, func(w io.Writer) {
		if len(states) == 0 {
			command.Row(w, "no request yet; begin with chaperonectl plugin init --name NAME -o plugins/NAME/VERSION/manifest.yaml")
			return
		}
		command.Row(w, "PLUGIN", "VERSION", "STAGE", "RISK", "WAITS FOR", "DUE")
		for i := range states {
			s := &states[i]
			command.Row(w, s.Plugin, s.Version, s.Stage, fmt.Sprintf("%d %s", s.Score, s.Band), s.WaitsFor, s.DueText)
		}
	})
	return errors.Join(err, unread)
}

func printStatus(w io.Writer, e *governance.Evaluation) {
	s := governance.StatusOf(e)
	command.Row(w, s.Plugin+" "+s.Version, "stage: "+s.Stage, fmt.Sprintf("risk %d (%s)", s.Score, s.Band))
	if !s.NotAfter.IsZero() {
		command.Row(w, "ends", s.NotAfter.UTC().Format("2006-01-02 15:04Z"))
	}
	for _, text := range s.Differences {
		command.Row(w, "differs", text)
	}
	for _, stage := range s.Stages {
		state := "done"
		switch {
		case stage.Name == s.Stage && len(stage.Problems) == 0: // the last, as others have problems
			state = "ready: role release runs chaperonectl plugin issue " + e.Request.Dir
		case !stage.Done && len(stage.Problems) == 0:
			state = "waits"
		case !stage.Done:
			state = "open"
		}
		if stage.Overdue {
			state += ", overdue since " + stage.Due.Format("2006-01-02 15:04Z")
		} else if !stage.Done && !stage.Due.IsZero() {
			state += ", due " + stage.Due.Format("2006-01-02 15:04Z")
		}
		command.Row(w, fmt.Sprintf("%d %s", stage.Number, stage.Name), state)
		for _, p := range stage.Problems {
			command.Row(w, "", "- "+p.Message)
			if len(p.People) > 0 {
				command.Row(w, "", fmt.Sprintf("  may act as %s: %s", p.Role, strings.Join(p.People, ", ")))
			}
		}
	}
}

func (c *cli) reviewCommand() *cobra.Command {
	var lifetime authz.Duration
	var compose bool
	format := "md"
	cmd := &cobra.Command{
		Use: "review DIR", Short: "Print the packet that approvers read, and compose the grant", Args: oneFolder(),
		Long: "Print what a plugin asks for, what it did in its pilot, its risk, the differences to the version before, exemptions and\n" +
			"findings, and the exact bytes that are approved. The first review composes them as grant.json; --compose does so again,\n" +
			"after which every approval is void.",
		Example: "  chaperonectl plugin review plugins/weather/1.4.0 --output md\n" +
			"  chaperonectl plugin review plugins/weather/1.4.0 --compose --for 30d",
		RunE: func(cmd *cobra.Command, args []string) error {
			return c.withRequest(cmd.Context(), args[0], func(r *repo, e *governance.Evaluation) error {
				return c.review(cmd.Context(), r, e, compose, lifetime, format)
			})
		},
	}
	cmd.Flags().BoolVar(&compose, "compose", false, "compose the grant again")
	cmd.Flags().Var(duration{&lifetime}, "for", "the `DURATION` of the grant (default the longest that the guardrails allow in its band)")
	formats := []string{"md", "html", "json"}
	cmd.Flags().Var(command.OneOf(&format, formats...), "output", "`FORMAT`: "+command.Alternatives(formats))
	return c.repoFlag(cmd)
}

func (c *cli) review(ctx context.Context, r *repo, e *governance.Evaluation, compose bool, lifetime authz.Duration, format string) error {
	if compose || len(e.Request.Draft) == 0 {
		payload, err := r.Compose(e, time.Duration(lifetime), c.now())
		if err != nil {
			return err
		}
		if err := r.write(path.Join(e.Request.Dir, governance.FileDraft), append(payload, '\n')); err != nil {
			return err
		}
		if e, err = c.again(ctx, r, e.Request.Dir); err != nil {
			return err
		}
	}
	packet, err := r.Review(e)
	if err != nil {
		return err
	}
	return c.printPacket(packet, format)
}

// again evaluates a request after its folder has changed.
func (c *cli) again(ctx context.Context, r *repo, dir string) (*governance.Evaluation, error) {
	q, err := r.Request(dir)
	if err != nil {
		return nil, err
	}
	return r.Evaluate(ctx, q, c.now())
}
