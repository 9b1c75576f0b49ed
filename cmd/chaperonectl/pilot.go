package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/chaperone-proxy/chaperone/authz"
	"github.com/chaperone-proxy/chaperone/configs"
	"github.com/chaperone-proxy/chaperone/governance"
	"github.com/chaperone-proxy/chaperone/governance/evidence"
	"github.com/chaperone-proxy/chaperone/governance/grantcheck"
	"github.com/chaperone-proxy/chaperone/governance/manifest"
	"github.com/chaperone-proxy/chaperone/governance/pilot"
	"github.com/chaperone-proxy/chaperone/internal/atomicfile"
	"github.com/chaperone-proxy/chaperone/internal/command"
	"github.com/chaperone-proxy/chaperone/internal/dsse"
	"github.com/chaperone-proxy/chaperone/internal/phrase"
	"github.com/chaperone-proxy/chaperone/internal/pilotrun"
)

// roleMeasurer is the role whose signature makes the evidence of a pilot count.
const roleMeasurer = "measurer"

// pilotRun is one run of plugin pilot.
type pilotRun struct {
	*cli
	config, load, key string
	artifact, logDir  string
	cgroup, image     string
	lasts             authz.Duration
	coverage          float64
}

func (c *cli) pilotCommand() *cobra.Command {
	p := pilotRun{cli: c}
	cmd := &cobra.Command{
		Use: "pilot DIR --config FILE --for TIME --key KEY -- CMD [ARG...]", Short: "Measure a plugin in a pilot, and sign the evidence",
		Long: "Run CMD as the plugin of a request: confined by the kernel, with the manifest's permissions as its grant, in mode\n" +
			"observe. Two statements are written to DIR/evidence: measured-performance, of what it needed, and runtime-trace, of\n" +
			"what it accessed. They are signed by a measurer, who is not an author. The audit log is kept in DIR/pilot, which the statements\n" +
			"name by its last hash. An interrupt ends the plugin and leaves nothing behind.\n\n" +
			"For an artifact of kind image the container runtime starts the plugin: with --cgroup, in place of CMD, the sidecar\n" +
			"confines that cgroup and prints when the container is to be started in it. --image is the digest that the runtime states.\n" +
			"Run the pilot in the network namespace that the container will have, as the sidecar of a pod. The cgroup\n" +
			"has to be without processes before; everything in it is killed at the end.\n\n" +
			"The Sidecar of --config states how the plugin is started: its user, its ports (process.listen), DNS, Vault. Its grants,\n" +
			"state and listeners are not used. Run it as root, as chaperone run.\n\n" +
			"Exit status 0: passed, or passed with warnings. 1: a threshold of the guardrail is exceeded, an access is not\n" +
			"declared, or failure. 2: usage.",
		Example: "  chaperonectl plugin pilot plugins/weather/1.4.0 --config sidecar.yaml --for 24h --load load.yaml --key ci.key -- bin/weather\n" +
			"  chaperonectl plugin pilot plugins/weather/1.4.0 --config sidecar.yaml --for 24h --until-coverage 0.99 --key ci.key -- bin/weather\n" +
			"  chaperonectl plugin pilot plugins/weather/1.4.0 --config sidecar.yaml --for 1h --key ci.key --cgroup /sys/fs/cgroup/pilot --image sha256:9f86...",
		Args: func(cmd *cobra.Command, args []string) error {
			if p.cgroup != "" {
				return command.Exactly(1, "one folder, and with --cgroup no program")(cmd, args)
			}
			if cmd.ArgsLenAtDash() != 1 || len(args) < 2 {
				return command.Usage("pilot: takes one folder, then -- and the plugin's program, as in plugins/weather/1.4.0 -- bin/weather")
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error { return p.run(cmd.Context(), args[0], args[1:]) },
	}
	keyFlag(cmd, &p.key)
	f := cmd.Flags()
	f.StringVar(&p.config, "config", "", "the Sidecar `FILE`")
	f.Var(duration{&p.lasts}, "for", "how long the pilot lasts; with --until-coverage, at most: a `TIME` as in 24h")
	f.Float64Var(&p.coverage, "until-coverage", 0, "end the pilot when this `SHARE` of accesses is of kinds that were seen, at 95 % confidence, as in 0.99")
	f.StringVar(&p.load, "load", "", "a load profile `FILE`")
	f.StringVar(&p.artifact, "artifact", "", "the folder of an artifact of kind tree, which has CMD: a `PATH` (default: CMD, for a file)")
	f.StringVar(&p.cgroup, "cgroup", "", "the cgroup v2 `FOLDER` in which a container runtime starts the plugin, an artifact of kind image")
	f.StringVar(&p.image, "image", "", "with --cgroup, the `DIGEST` of the image's manifest that runs there, as the runtime states it")
	f.StringVar(&p.logDir, "log", "", "the `FOLDER` that keeps the audit log (default DIR/pilot)")
	return c.repoFlag(c.withOutput(cmd))
}

func (p *pilotRun) run(ctx context.Context, dir string, args []string) error {
	const longest = 90 * 24 * time.Hour
	switch {
	case p.config == "":
		return command.Usage("pilot: --config is missing; name the Sidecar that states how the plugin is started")
	case p.lasts <= 0 || time.Duration(p.lasts) > longest:
		return command.Usage("pilot: --for is missing, or longer than 90d; write a time as in 24h")
	case p.coverage < 0 || p.coverage >= 1:
		return command.Usage("pilot: --until-coverage is %g; write a share below 1, as in 0.99", p.coverage)
	}
	key, err := signer(ctx, p.key)
	if err != nil {
		return err
	}
	r, q, err := p.openRequest(dir)
	if err != nil {
		return err
	}
	defer r.close()
	if err := mayMeasure(r.Repository, q, key); err != nil {
		return err
	}
	return p.measure(ctx, r, q, key, args)
}

// mayMeasure refuses a measurer who is an author of the request, and a key of another role.
func mayMeasure(r *governance.Repository, q *governance.Request, key dsse.Signer) error {
	identity, roles := r.Roles(key.Public())
	switch {
	case q.Submission == nil:
		return fmt.Errorf("pilot %s: the author has not submitted it: chaperonectl plugin submit %[1]s", q.Dir)
	case identity == "":
		return unknownKey("pilot "+q.Dir, key)
	case slices.Contains(q.Authors, identity):
		return fmt.Errorf("pilot %s: %s submitted it, and an author's own measurement does not count; somebody else of role %s has to run the pilot", q.Dir, identity, roleMeasurer)
	case !slices.Contains(roles, roleMeasurer):
		return fmt.Errorf("pilot %s: no key of %s is in role %s; sign with a key of that role", q.Dir, identity, roleMeasurer)
	}
	return nil
}

// measure runs the pilot and writes what it measured.
func (p *pilotRun) measure(ctx context.Context, r *repo, q *governance.Request, key dsse.Signer, args []string) (err error) {
	if err := p.checkArtifact(q, args); err != nil {
		return err
	}
	work, err := os.MkdirTemp("", "chaperone-pilot-")
	if err != nil {
		return fmt.Errorf("prepare pilot: %w", err)
	}
	defer func() { err = errors.Join(err, os.RemoveAll(work)) }()
	cfg, err := p.configure(r, q, work, args)
	if err != nil {
		return err
	}
	m, err := pilotrun.Run(ctx, cfg)
	if err != nil {
		return fmt.Errorf("pilot %s: %w", q.Dir, err)
	}
	if err := p.checkArtifact(q, args); err != nil {
		return fmt.Errorf("the artifact changed during the pilot: %w", err)
	}
	performance, trace, err := p.statements(r, q, m)
	if err != nil {
		return err
	}
	if err := p.keepLog(r, q, work); err != nil {
		return err
	}
	for _, s := range []struct {
		predicateType string
		predicate     any
	}{{pilot.PerformanceType, performance}, {pilot.TraceType, trace}} {
		if err := p.putEvidence(ctx, r, q, s.predicateType, s.predicate, key); err != nil {
			return err
		}
	}
	return p.report(performance, trace, filepath.Join(p.logFolder(r, q), "audit.jsonl"))
}

// checkArtifact refuses a program that is not the one of the request. Of an image the
// measurer states what the runtime runs, and signs for it.
func (p *pilotRun) checkArtifact(q *governance.Request, args []string) error {
	want := q.Manifest.Spec.Artifact.Artifact
	image := want.Kind == grantcheck.ArtifactImage
	switch {
	case image && p.cgroup == "":
		return fmt.Errorf("pilot %s: the artifact is an image, which chaperone run does not start; write --cgroup FOLDER --image DIGEST in place of a program, and start the container in that cgroup", q.Dir)
	case image && p.image != want.Digest:
		return fmt.Errorf("pilot %s: --image is %q, and the manifest states %s; write the digest that the container runtime states of the running image", q.Dir, p.image, want.Digest)
	case image:
		return nil
	case p.cgroup != "" || p.image != "":
		return fmt.Errorf("pilot %s: the artifact is a %s, and --cgroup and --image are for an image; name its program, as in -- bin/%s", q.Dir, want.Kind, q.Plugin)
	}
	program, err := exec.LookPath(args[0]) // as chaperone run finds it
	if err != nil {
		return fmt.Errorf("pilot %s: %w", q.Dir, err)
	}
	file := cmp.Or(p.artifact, program)
	got, err := digestOf(want.Kind, file)
	switch {
	case err != nil:
		return err
	case got != want.Digest:
		return fmt.Errorf("pilot %s: %s has digest %s, and the manifest states %s; name the artifact with --artifact", q.Dir, file, got, want.Digest)
	}
	if err := checkProgram(want, file, program, args); err != nil {
		return fmt.Errorf("pilot %s: %w", q.Dir, err)
	}
	return nil
}

// checkProgram refuses a program, and arguments, with which chaperone run does not start the
// artifact: what it measured would be of something else.
func checkProgram(want grantcheck.Artifact, artifact, program string, args []string) error {
	if want.Kind != grantcheck.ArtifactTree {
		switch got, err := digestOf(want.Kind, program); {
		case err != nil:
			return err
		case got != want.Digest:
			return fmt.Errorf("CMD is %s with digest %s, and a sidecar starts the artifact itself, %s; name it as CMD, or for a program of an interpreter submit a folder that has both", program, got, want.Digest)
		}
		return want.CheckArgs(args, "", "", nil)
	}
	var resolved [2]string
	for i, name := range []string{artifact, program} {
		absolute, err := filepath.Abs(name)
		if err == nil {
			resolved[i], err = filepath.EvalSymlinks(absolute)
		}
		if err != nil {
			return err
		}
	}
	if rel, err := filepath.Rel(resolved[0], resolved[1]); err != nil || !filepath.IsLocal(rel) {
		return fmt.Errorf("CMD is %s, which is not in the artifact's folder %s, and a sidecar starts a program of it; name one there", resolved[1], resolved[0])
	}
	return want.CheckArgs(args, resolved[0], resolved[1], os.DirFS(resolved[0]))
}

// configure returns the pilot to run.
func (p *pilotRun) configure(r *repo, q *governance.Request, work string, args []string) (pilotrun.Config, error) {
	cfg := pilotrun.Config{
		Dir: work, Version: q.Version, Command: args, Cgroup: p.cgroup, For: time.Duration(p.lasts), Coverage: p.coverage, Output: p.stderr,
		Progress: func(line string) { command.Say(p.stderr, "pilot: %s", line) },
	}
	var err error
	if cfg.Chaperone, err = command.Beside("chaperone"); err != nil {
		return cfg, err
	}
	spec, err := loadPilotSidecar(p.config)
	if err != nil {
		return cfg, err
	}
	if spec.Plugin != q.Plugin {
		return cfg, fmt.Errorf("%s is the Sidecar of plugin %s, and the request is of %s; name a Sidecar of that plugin", p.config, spec.Plugin, q.Plugin)
	}
	cfg.Sidecar = *spec
	if cfg.Grant, err = declaredAccess(r, q); err != nil {
		return cfg, err
	}
	cfg.Grant.NotAfter = time.Now().Add(cfg.For + pilotrun.Margin).UTC().Truncate(time.Second)
	cfg.Guardrails = pilotGuardrails(r.Repository, q.Plugin, time.Now())
	if p.load == "" {
		return cfg, nil
	}
	data, err := readDocument(p.load)
	if err != nil {
		return cfg, err
	}
	cfg.ProfileDigest = dsse.Digest(data)
	if cfg.Profile, err = pilot.ParseProfile(data); err != nil {
		return cfg, fmt.Errorf("%s: %w", p.load, err)
	}
	return cfg, nil
}

// loadPilotSidecar reads a Sidecar whose grants may be missing: a plugin that was never
// approved has no others. Every other fault of the file is an error, so that no plugin is
// measured under settings that were misread.
func loadPilotSidecar(file string) (*configs.Sidecar, error) {
	var faults configs.Errors
	if _, err := configs.Check(time.Now(), file); errors.As(err, &faults) {
		faults = slices.DeleteFunc(faults, func(e configs.Error) bool {
			return e.File != file || strings.HasPrefix(e.Field, "spec.grants") || strings.HasPrefix(e.Field, "spec.trust") || strings.HasPrefix(e.Field, "spec.guardrails")
		})
		if len(faults) > 0 {
			return nil, faults
		}
	}
	return configs.LoadSidecar(file)
}

// declaredAccess returns the grant that the manifest asks for, with the files that it names
// as absolute paths.
func declaredAccess(r *repo, q *governance.Request) (authz.Grant, error) {
	g, err := q.Proposed()
	if err != nil {
		return g, err
	}
	beside := func(ca *string) {
		if *ca != "" {
			*ca = filepath.Join(r.dir, filepath.FromSlash(q.Dir), *ca)
		}
	}
	for i := range g.Rules {
		beside(&g.Rules[i].To.TLS.CAFile)
	}
	for i := range g.Credentials {
		if o := g.Credentials[i].Inject.OAuth2; o != nil {
			own := *o
			beside(&own.CAFile)
			g.Credentials[i].Inject.OAuth2 = &own
		}
	}
	return g, nil
}

// guardrailsOf returns the guardrails of the repository that apply to a plugin.
func guardrailsOf(r *governance.Repository, plugin string) []governance.Guardrail {
	return slices.DeleteFunc(slices.Clone(r.Guardrails), func(g governance.Guardrail) bool { return !g.Guardrail.AppliesTo(plugin) })
}

// pilotGuardrails returns the guardrails of a pilot, relaxed by the exemptions that are in
// force. check judges for which permissions an exemption is; the pilot only measures them.
func pilotGuardrails(r *governance.Repository, plugin string, now time.Time) (out []configs.Object[configs.GuardrailSpec]) {
	for _, g := range guardrailsOf(r, plugin) {
		spec := g.GuardrailSpec
		for i := range r.Exemptions {
			if e := &r.Exemptions[i].Exemption; e.Plugin == plugin && e.State(now, 0) == grantcheck.ExemptionActive {
				spec.Ceilings = manifest.Relaxed(spec.Ceilings, e)
			}
		}
		out = append(out, configs.Object[configs.GuardrailSpec]{Metadata: configs.Metadata{Name: "signed-" + g.Guardrail.Name}, Spec: spec})
	}
	return out
}

// statements returns both statements, compared with the guardrails and with the previous
// version.
func (p *pilotRun) statements(r *repo, q *governance.Request, m *pilot.Measurement) (pilot.Performance, pilot.Trace, error) {
	performance := pilot.Measured(*m)
	trace, err := pilot.Traced(*m)
	if err != nil {
		return performance, trace, err
	}
	var limits pilot.Limits
	for _, g := range guardrailsOf(r.Repository, q.Plugin) {
		limits = limits.Strictest(pilot.LimitsOf(g.Performance))
	}
	previous, err := previousPerformance(r, q)
	if err != nil {
		p.warn("%v", err)
	}
	performance.Result = pilot.Evaluate(&performance, previous, limits)
	performance.IssuedAt, trace.IssuedAt = p.now(), p.now()
	return performance, trace, nil
}

// previousPerformance returns the measurement of the version before, nil for none.
func previousPerformance(r *repo, q *governance.Request) (*pilot.Performance, error) {
	versions, err := r.Versions(q.Plugin)
	if err != nil {
		return nil, err
	}
	versions = slices.DeleteFunc(versions, func(v string) bool { return compareVersions(v, q.Version) >= 0 })
	slices.SortFunc(versions, func(a, b string) int { return compareVersions(b, a) })
	for _, version := range versions {
		before, err := r.Request(governance.RequestDir(q.Plugin, version))
		if err != nil {
			return nil, err
		}
		found, err := newest(r, before, pilot.PerformanceType, roleMeasurer, pilot.ParsePerformance)
		if err != nil {
			return nil, fmt.Errorf("compare with version %s: %w", version, err)
		}
		if found != nil {
			return found.statement, nil
		}
	}
	return nil, nil
}

// keepLog copies the audit log with its key to where the compliance checks look for it.
func (p *pilotRun) keepLog(r *repo, q *governance.Request, work string) error {
	to := p.logFolder(r, q)
	if err := os.MkdirAll(to, 0o700); err != nil {
		return fmt.Errorf("keep the pilot's log: %w", err)
	}
	if err := pilotrun.CopyLog(work, to); err != nil {
		return fmt.Errorf("keep the pilot's log in %s: %w", to, err)
	}
	// The log has paths of requests, which are for no repository.
	return atomicfile.Write(filepath.Join(to, ".gitignore"), []byte("*\n"), 0o600)
}

// logFolder is where the log of a pilot is kept.
func (p *pilotRun) logFolder(r *repo, q *governance.Request) string {
	return cmp.Or(p.logDir, filepath.Join(r.dir, filepath.FromSlash(q.Dir), pilotFolder))
}

// pilotFolder is the folder of a request that has the audit log of its pilot.
const pilotFolder = "pilot"

// putEvidence signs a statement about a request, and writes it.
func (c *cli) putEvidence(ctx context.Context, r *repo, q *governance.Request, predicateType string, predicate any, key dsse.Signer) error {
	raw, err := evidence.Canonical(predicate)
	if err != nil {
		return err
	}
	artifact, err := evidence.Artifact("artifact", q.Manifest.Spec.Artifact.Digest)
	if err != nil {
		return err
	}
	manifest, err := evidence.Artifact(governance.FileManifest, q.ManifestDigest)
	if err != nil {
		return err
	}
	payload, err := evidence.New([]evidence.Subject{artifact, manifest}, predicateType, raw)
	if err != nil {
		return err
	}
	e, err := dsse.Sign(ctx, dsse.KindEvidence, payload, key)
	if err != nil {
		return err
	}
	if _, err := evidence.Read(r.Root, e); err != nil {
		return fmt.Errorf("sign evidence: %w", err)
	}
	const short = 12
	hex := strings.TrimPrefix(e.Digest(), "sha256:")
	file := path.Join(q.Dir, "evidence", path.Base(path.Dir(predicateType))+"-"+hex[:short]+signedEnding)
	err = r.create(file, e.Marshal())
	if errors.Is(err, fs.ErrExist) {
		_, err = cosign(ctx, r, file, e, key)
	}
	if err != nil {
		return err
	}
	command.Say(c.stderr, "%s: evidence %s", file, e.Digest())
	return nil
}

// report prints the result.
func (p *pilotRun) report(performance pilot.Performance, trace pilot.Trace, log string) error {
	findings := trace.Findings()
	out := struct {
		Performance pilot.Performance `json:"performance"`
		Trace       pilot.Trace       `json:"trace"`
	}{performance, trace}
	if err := p.print(out, func(w io.Writer) {
		command.Say(w, "performance: %s", performance.Result.Verdict)
		for _, c := range performance.Result.Checks {
			command.Row(w, "  "+c.ID, c.Figure(), string(c.Verdict), strings.TrimSpace(c.Why+" "+fixOf(c.Fix)))
		}
		command.Say(w, "access: %s", trace.Verdict)
		for _, f := range findings {
			command.Say(w, "  %s: %s", f.Level, f.Text)
		}
		if len(trace.Undeclared) > 0 {
			command.Say(w, "  the pilot's own log has them: chaperone audit query %s --reason observed --output table", phrase.ShellWord(log))
		}
		command.Say(w, "coverage: %s", trace.Coverage)
	}); err != nil {
		return err
	}
	switch {
	case performance.Result.Verdict == pilot.Failed || trace.Verdict == pilot.Failed:
		return command.ExitError{Status: command.ExitFailure}
	case p.coverage > 0 && !trace.Coverage.Reached(p.coverage):
		return fmt.Errorf("the coverage of %g was not reached; run the pilot for longer (--for), or under more load", p.coverage)
	}
	return nil
}

func fixOf(fix string) string {
	if fix == "" {
		return ""
	}
	return "(" + fix + ")"
}
