package main

import (
	"encoding/json"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/chaperone-proxy/chaperone/configs"
	"github.com/chaperone-proxy/chaperone/governance/grantcheck"
	"github.com/chaperone-proxy/chaperone/internal/admin"
	"github.com/chaperone-proxy/chaperone/internal/dsse"
	"github.com/chaperone-proxy/chaperone/internal/granttest"
	"github.com/chaperone-proxy/chaperone/internal/testenv"
	"github.com/chaperone-proxy/chaperone/internal/testenv/scenario"
)

// signedEnv is an environment whose sidecar loads only what is signed.
type signedEnv struct {
	*env
	*granttest.World
	draft *granttest.Draft
}

// newSignedEnv has the grant of newEnv signed for an artifact. change changes the
// guardrail's spec.
func newSignedEnv(t *testing.T, kernel, trust string, artifact grantcheck.Artifact, change func(guardrail granttest.Object)) *signedEnv {
	t.Helper()
	w := &signedEnv{env: newEnv(t, kernel, ""), World: granttest.New(t, time.Now())}
	testenv.Must(t, os.Chmod(w.Dir, 0o755))
	w.World.Write(w.File("trust.yaml"), w.TrustRoot())
	guardrail := w.Guardrail()
	if change != nil {
		change(guardrail["spec"].(granttest.Object))
	}
	signed := w.Sign(dsse.KindGuardrail, guardrail, granttest.Policy)
	w.World.Write(w.File("guardrails/company.dsse.json"), signed)
	w.env.Write("sidecar.yaml", strings.Replace(w.Read("sidecar.yaml"), "grants: [grant.yaml]", "grants: [weather.dsse.json]\n  guardrails: [guardrails]\n  trust: "+trust, 1))

	grant := testenv.MustGet(configs.ParseObject[configs.GrantSpec]("grant.yaml", []byte(w.Read("grant.yaml"))))(t)
	data := testenv.MustGet(configs.RenderObject(grant))(t)
	var document struct{ Spec granttest.Object }
	testenv.Must(t, json.Unmarshal(data, &document))
	delete(document.Spec, "plugin")
	delete(document.Spec, "notAfter")
	w.draft = w.Draft(signed.Digest(), artifact)
	w.draft.Spec = document.Spec
	for i := range grant.Spec.Rules {
		file := grant.Spec.Rules[i].To.TLS.CAFile
		w.draft.Binding.Authorities = append(w.draft.Binding.Authorities, grantcheck.Authority{File: file, Digest: dsse.Digest([]byte(w.Read(file)))})
	}
	w.issue()
	return w
}

// issue signs the grant as it is drafted.
func (w *signedEnv) issue() { w.World.Write(w.File("weather.dsse.json"), w.draft.Bundle()) }

// next drafts the next generation.
func (w *signedEnv) next() {
	w.draft.Binding.Previous = w.draft.Bundle().Grant.Digest()
	w.draft.Binding.Generation++
}

// program copies a program into the environment and returns its path and artifact.
func program(t *testing.T, dir, name, from string) (string, grantcheck.Artifact) {
	t.Helper()
	path := filepath.Join(dir, name)
	data := testenv.MustGet(os.ReadFile(testenv.MustGet(filepath.EvalSymlinks(from))(t)))(t)
	testenv.Must(t, os.WriteFile(path, data, 0o755))
	return path, grantcheck.Artifact{Kind: grantcheck.ArtifactFile, Digest: dsse.Digest(data)}
}

func programDir(t *testing.T) string {
	dir := t.TempDir()
	testenv.Must(t, os.Chmod(filepath.Dir(dir), 0o755))
	testenv.Must(t, os.Chmod(dir, 0o755))
	return dir
}

// TestRunSigned runs the approved program under a signed grant, and nothing else.
func TestRunSigned(t *testing.T) {
	both(t, func(t *testing.T, kernel string) {
		dir := programDir(t)
		path, artifact := program(t, dir, "plugin", "/usr/bin/curl")
		w := newSignedEnv(t, kernel, "{root: trust.yaml}", artifact, nil)
		get := func() scenario.Result {
			return w.Run(path, "-sS", "-o", "/dev/null", "-w", "%{http_code} %{errormsg}", w.URL("/v1/forecast"))
		}
		if r := get(); r.Status != 0 || !strings.HasPrefix(r.Stdout, "200") {
			t.Fatalf("status %d\n%s%s", r.Status, r.Stdout, r.Stderr)
		}
		if kernel == "required" {
			scenario.Contains(t, w.audit(), `"exe":"`+path+`"`)
		}
		var seen configs.Generations
		testenv.Must(t, json.Unmarshal([]byte(w.Read("state/"+configs.GenerationsFile)), &seen))
		if got := seen.Grants["weather"].Generation; got != 1 || seen.Trust != 1 || time.Since(seen.Time) > time.Hour {
			t.Errorf("generations are %+v", seen)
		}

		// Another program in its place.
		right := testenv.MustGet(os.ReadFile(path))(t)
		testenv.Must(t, os.WriteFile(path, append(right, '\n'), 0o755))
		r := get()
		if r.Status != exitSidecar || w.API.Total() != 1 {
			t.Errorf("a swapped program: status %d, %d requests\n%s", r.Status, w.API.Total(), r.Stderr)
		}
		scenario.Contains(t, r.Stderr, "its digest is "+dsse.Digest(append(right, '\n'))+", and the grant is for file "+artifact.Digest)
		scenario.Contains(t, w.audit(), `"kind":"process"`, "not started: ")
		testenv.Must(t, os.WriteFile(path, right, 0o755))

		// The next generation, and then the one before.
		old := w.Read("weather.dsse.json")
		w.next()
		w.issue()
		if r := get(); r.Status != 0 {
			t.Errorf("generation 2: %s", r.Stderr)
		}
		w.env.Write("weather.dsse.json", old)
		r = get()
		scenario.Contains(t, r.Stderr, "weather.dsse.json: spec.binding.generation: is 1, and generation 2 was in force")
		if r.Status != exitSidecar || w.API.Total() != 2 {
			t.Errorf("generation 1 after 2: status %d, %d requests", r.Status, w.API.Total())
		}
	})
}

// TestRunSignedOtherRoot exchanges the trust root and all that it is about for those of
// somebody else's keys, and then accepts them.
func TestRunSignedOtherRoot(t *testing.T) {
	path, artifact := program(t, programDir(t), "plugin", "/usr/bin/true")
	w := newSignedEnv(t, "off", "{root: trust.yaml}", artifact, nil)
	if r := w.Run(path); r.Status != 0 {
		t.Fatalf("status %d\n%s", r.Status, r.Stderr)
	}
	w.World = granttest.New(t, time.Now())
	w.World.Write(w.File("trust.yaml"), w.TrustRoot())
	guardrail := w.Sign(dsse.KindGuardrail, w.Guardrail(), granttest.Policy)
	w.World.Write(w.File("guardrails/company.dsse.json"), guardrail)
	draft := w.World.Draft(guardrail.Digest(), artifact)
	draft.Spec, draft.Binding.Authorities, draft.Binding.Generation, draft.Binding.Previous = w.draft.Spec, w.draft.Binding.Authorities, 2, w.draft.Bundle().Grant.Digest()
	w.draft = draft
	w.issue()
	r := w.Run(path)
	if r.Status != exitSidecar {
		t.Errorf("status %d\n%s", r.Status, r.Stderr)
	}
	digest := w.Root().Digest()
	scenario.Contains(t, r.Stderr, "does not follow version 1 that was in force", digest)
	accept := func(args ...string) scenario.Result {
		return w.Chaperone(append([]string{"statedir", "accept", "--config", w.File("sidecar.yaml"), "--reason", "keys were lost", "--trust-root"}, args...)...)
	}
	if r := accept("latest"); r.Status != exitUsage {
		t.Errorf("accepted without a digest: status %d\n%s", r.Status, r.Stderr)
	}
	if r := accept(digest); r.Status != 0 {
		t.Fatalf("status %d\n%s", r.Status, r.Stderr)
	}
	if r := w.Run(path); r.Status != 0 || !strings.Contains(w.audit(), "trust root "+digest+" instead of version 1") {
		t.Errorf("accepted: status %d\n%s\n%s", r.Status, r.Stderr, w.audit())
	}
}

// TestRunSignedEnded starts the plugin under a grant whose approval has ended, and with
// a clock that was set back.
func TestRunSignedEnded(t *testing.T) {
	path, artifact := program(t, programDir(t), "plugin", "/usr/bin/curl")
	w := newSignedEnv(t, "off", "{root: trust.yaml}", artifact, nil)
	refused := func(when string) {
		t.Helper()
		r := w.Run(path, "-sS", w.URL("/v1/forecast"))
		scenario.Contains(t, r.Stderr, "expired")
		if w.API.Total() != 0 {
			t.Errorf("%s: the API was reached", when)
		}
	}
	w.draft.Decisions[0].ExpiresAt = w.Now.Add(-time.Second)
	w.issue()
	refused("an approval that has ended")
	w.draft.Decisions[0].ExpiresAt = time.Time{}
	w.next()
	w.issue()
	data := testenv.MustGet(json.Marshal(configs.Generations{Time: w.draft.NotAfter.Add(time.Hour)}))(t)
	testenv.Must(t, os.WriteFile(w.File("state/"+configs.GenerationsFile), data, 0o600))
	refused("a clock that was set back")
	r := w.Chaperone("explain", "--config", w.File("sidecar.yaml"), "GET", w.URL("/v1/forecast"))
	scenario.Contains(t, r.Stdout, "expired")
}

// TestRunSignedScript runs a script, whose interpreter reads the descriptor that was
// verified, and refuses one that the plugin's user may change.
func TestRunSignedScript(t *testing.T) {
	dir := programDir(t)
	path := filepath.Join(dir, "plugin")
	script := []byte("#!/bin/sh\necho ran with $1$LD_DEBUG_OUTPUT\n")
	t.Setenv("LD_DEBUG_OUTPUT", "a variable of the dynamic loader")
	testenv.Must(t, os.WriteFile(path, script, 0o755))
	artifact := grantcheck.Artifact{Kind: grantcheck.ArtifactFile, Digest: dsse.Digest(script)}
	w := newSignedEnv(t, "required", "{root: trust.yaml}", artifact, nil)
	if r := w.Run(path, "one"); r.Status != 0 || r.Stdout != "ran with one\n" {
		t.Errorf("status %d\n%s%s", r.Status, r.Stdout, r.Stderr)
	}
	testenv.Must(t, os.Chmod(path, 0o777))
	if r := w.Run(path, "one"); r.Status != exitSidecar || !strings.Contains(r.Stderr, "may change "+path) {
		t.Errorf("a script that everybody may change: status %d\n%s", r.Status, r.Stderr)
	}
}

// TestRunSignedWritable refuses a program that the plugin's user could write in place after
// it was verified.
func TestRunSignedWritable(t *testing.T) {
	path, artifact := program(t, programDir(t), "plugin", "/usr/bin/true")
	w := newSignedEnv(t, "required", "{root: trust.yaml}", artifact, nil)
	if r := w.Run(path); r.Status != 0 {
		t.Errorf("status %d\n%s", r.Status, r.Stderr)
	}
	testenv.Must(t, os.Chmod(path, 0o777))
	if r := w.Run(path); r.Status != exitSidecar || !strings.Contains(r.Stderr, "may change "+path) {
		t.Errorf("a program that everybody may change: status %d\n%s", r.Status, r.Stderr)
	}
}

// TestRunTrustRemoved removes spec.trust from a sidecar that is started again.
func TestRunTrustRemoved(t *testing.T) {
	path, artifact := program(t, programDir(t), "plugin", "/usr/bin/true")
	w := newSignedEnv(t, "off", "{root: trust.yaml}", artifact, nil)
	if r := w.Run(path); r.Status != 0 {
		t.Fatalf("status %d\n%s", r.Status, r.Stderr)
	}
	text := strings.NewReplacer("grants: [weather.dsse.json]", "grants: [grant.yaml]", "  guardrails: [guardrails]\n", "", "  trust: {root: trust.yaml}\n", "").Replace(w.Read("sidecar.yaml"))
	w.env.Write("sidecar.yaml", text)
	if r := w.Run(path); r.Status != exitSidecar || !strings.Contains(r.Stderr, "spec.trust: is missing, and trust root version 1 was in force") {
		t.Errorf("without spec.trust: status %d\n%s", r.Status, r.Stderr)
	}
}

// TestRunSignedTree runs a program of an approved folder.
func TestRunSignedTree(t *testing.T) {
	dir := filepath.Join(programDir(t), "app")
	testenv.Must(t, os.Mkdir(dir, 0o755))
	path, _ := program(t, dir, "plugin", "/usr/bin/true")
	testenv.Must(t, os.WriteFile(filepath.Join(dir, "data"), []byte("data"), 0o644))
	digest := testenv.MustGet(grantcheck.TreeDigest(os.DirFS(dir)))(t)
	w := newSignedEnv(t, "required", "{root: trust.yaml, artifact: {kind: tree, path: "+dir+"}}", grantcheck.Artifact{Kind: grantcheck.ArtifactTree, Digest: digest}, nil)
	run := func(program, want string) {
		t.Helper()
		if r := w.Run(program); r.Status != 0 != (want != "") || !strings.Contains(r.Stderr, want) {
			t.Errorf("status %d, want %q\n%s", r.Status, want, r.Stderr)
		}
	}
	run(path, "")
	run("/usr/bin/true", "it is not in "+dir)
	testenv.Must(t, os.Chmod(filepath.Join(dir, "data"), 0o666))
	run(path, "may change "+filepath.Join(dir, "data"))
	testenv.Must(t, os.Chmod(filepath.Join(dir, "data"), 0o644))
	testenv.Must(t, os.WriteFile(filepath.Join(dir, "data"), []byte("date"), 0o644))
	run(path, "and the grant is for tree "+digest)
}

// TestRunSignedCommand runs what was approved with other arguments than were approved.
func TestRunSignedCommand(t *testing.T) {
	path, artifact := program(t, programDir(t), "plugin", "/bin/sh")
	artifact.Command = []string{"plugin", "-c", "echo ran"}
	w := newSignedEnv(t, "off", "{root: trust.yaml}", artifact, nil)
	if r := w.Run(path, "-c", "echo ran"); r.Status != 0 || r.Stdout != "ran\n" {
		t.Errorf("status %d\n%s%s", r.Status, r.Stdout, r.Stderr)
	}
	r := w.Run(path, "-c", "echo hunter2 \x1b[2J")
	want := `argument 2 is "echo hunter2 \x1b[2J", and the grant's command has "echo ran"; start the command that was approved`
	if r.Status != exitSidecar || r.Stdout != "" || !strings.Contains(r.Stderr, want) {
		t.Errorf("another argument: status %d\n%s%s", r.Status, r.Stdout, r.Stderr)
	}
	if log := w.Read("state/audit.jsonl"); strings.Contains(log, "hunter2") || !strings.Contains(log, "CMD is not the command of the grant") {
		t.Errorf("the audit log has the argument, or not the refusal:\n%s", log)
	}
}

// TestRunSignedTreeCommand starts a program of an approved folder with files in it and beside it.
func TestRunSignedTreeCommand(t *testing.T) {
	dir := filepath.Join(programDir(t), "app")
	testenv.Must(t, os.Mkdir(dir, 0o755))
	path, _ := program(t, dir, "shell", "/bin/sh")
	for name, text := range map[string]string{"main": "echo main", "../main": "echo other"} {
		testenv.Must(t, os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644))
	}
	artifact := grantcheck.Artifact{Kind: grantcheck.ArtifactTree, Digest: testenv.MustGet(grantcheck.TreeDigest(os.DirFS(dir)))(t), Command: []string{"shell", "main"}}
	w := newSignedEnv(t, "off", "{root: trust.yaml, artifact: {kind: tree, path: "+dir+"}}", artifact, nil)
	if r := w.Run(path, filepath.Join(dir, "main")); r.Status != 0 || r.Stdout != "main\n" {
		t.Errorf("status %d\n%s%s", r.Status, r.Stdout, r.Stderr)
	}
	for _, other := range []string{"main", filepath.Join(dir, "../main"), dir + "/../app/main"} {
		if r := w.Run(path, other); r.Status != exitSidecar || r.Stdout != "" || !strings.Contains(r.Stderr, "argument 1 is") {
			t.Errorf("%s: status %d\n%s%s", other, r.Status, r.Stdout, r.Stderr)
		}
	}
}

func image() grantcheck.Artifact {
	return grantcheck.Artifact{Kind: grantcheck.ArtifactImage, Digest: dsse.Digest([]byte("image"))}
}

func imageTrust() string {
	return "{root: trust.yaml, artifact: {kind: image, digest: \"" + image().Digest + "\"}}"
}

// TestServeSigned has a sidecar beside an image keep the last policy when a signed file
// is replaced, and show what is in force.
func TestServeSigned(t *testing.T) {
	w := newSignedEnv(t, "off", imageTrust(), image(), nil)
	_, status := w.Serve()
	proxy, target := scenario.Address(status, "proxy"), w.URL("/v1/forecast")
	if got, body := w.Request(proxy, scenario.Token, "GET", target); got != http.StatusOK {
		t.Fatalf("%d %s", got, body)
	}
	signature := status.Grants[0].Signature
	if status.Trust == nil || status.Trust.Version != 1 || signature == nil || signature.Generation != 1 || signature.Band != "low" || len(signature.Approvals) != 1 {
		t.Errorf("status is %+v, %+v", status.Trust, signature)
	}
	scenario.Contains(t, w.Chaperone("status", "--config", w.File("sidecar.yaml")).Stdout, "signed, generation 1, risk low (10), approved by security@corp as security")
	reload := func(want string) {
		t.Helper()
		if r := w.Chaperone("reload", "--config", w.File("sidecar.yaml")); r.Status != exitFailure || !strings.Contains(r.Stderr, want) {
			t.Errorf("reload: status %d, want %q\n%s", r.Status, want, r.Stderr)
		}
		if got, body := w.Request(proxy, scenario.Token, "GET", target); got != http.StatusOK {
			t.Errorf("after a refused reload: %d %s", got, body)
		}
	}
	right := w.Read("weather.dsse.json")
	w.env.Write("weather.dsse.json", w.Read("grant.yaml"))
	reload("weather.dsse.json: read grant: read envelope")
	w.env.Write("weather.dsse.json", right)
	decisions := w.draft.Decisions
	w.draft.Decisions = nil
	w.next()
	w.issue()
	reload("1 more of role security")
	w.draft.Decisions = decisions
	w.env.Write("weather.dsse.json", right)
	spec := w.Read("sidecar.yaml")
	w.env.Write("sidecar.yaml", strings.Replace(spec, "  drain: 2s", "  mode: observe\n  observeUntil: 2099-01-01T00:00:00Z\n  drain: 2s", 1))
	reload("spec.mode: observe is not signed")
	w.env.Write("sidecar.yaml", spec)
	guardrail := w.Read("guardrails/company.dsse.json")
	other := w.Sign(dsse.KindGuardrail, granttest.Document("PluginGuardrail", "other", granttest.Object{"plugins": []string{"**"}}), granttest.Policy)
	w.World.Write(w.File("guardrails/company.dsse.json"), other)
	reload("replaced, added or removed")
	w.env.Write("guardrails/company.dsse.json", guardrail)
	w.issue()
	if r := w.Chaperone("reload", "--config", w.File("sidecar.yaml")); r.Status != 0 {
		t.Errorf("generation 2: %s", r.Stderr)
	}
	// check and explain load by the same path.
	for _, args := range [][]string{{"check", w.File("sidecar.yaml")}, {"explain", "--config", w.File("sidecar.yaml"), "GET", target}} {
		if r := w.Chaperone(args...); r.Status != 0 {
			t.Errorf("%v: %s%s", args, r.Stdout, r.Stderr)
		}
	}
	w.env.Write("weather.dsse.json", right)
	for _, args := range [][]string{{"check", w.File("sidecar.yaml")}, {"explain", "--config", w.File("sidecar.yaml"), "GET", target}} {
		if r := w.Chaperone(args...); r.Status == 0 || !strings.Contains(r.Stdout+r.Stderr, "generation 2 was in force") {
			t.Errorf("%v: status %d %s%s", args, r.Status, r.Stdout, r.Stderr)
		}
	}
}

// contained waits until the sidecar has revoked its plugin, restores it as a person would
// and checks that it stays so.
func (w *signedEnv) contained(level, reason string) {
	w.T.Helper()
	client := admin.Dial(w.File("state/admin.sock"))
	r := testenv.Eventually(w.T, "the plugin is revoked", func() (admin.Status, bool) {
		s, err := client.Status(w.T.Context())
		return s, err == nil && len(s.Revocations) == 1
	}).Revocations[0]
	if string(r.Level) != level || r.Actor != "chaperone/containment" || !strings.Contains(r.Reason, reason) {
		w.T.Errorf("revocation is %+v, want %s for %q", r, level, reason)
	}
	testenv.Eventually(w.T, "the revocation is recorded", func() (int, bool) { return 0, strings.Contains(w.audit(), `"actor":"chaperone/containment"`) })
	if out := w.Chaperone("restore", r.ID, "--config", w.File("sidecar.yaml"), "--reason", "reviewed"); out.Status != 0 {
		w.T.Fatalf("restore: %s", out.Stderr)
	}
}

func TestServeStaleEvidence(t *testing.T) {
	w := newSignedEnv(t, "off", imageTrust(), image(), func(guardrail granttest.Object) {
		guardrail["evidence"] = []granttest.Object{{"predicateType": "https://chaperone.dev/attestation/sbom/v1", "maxAge": "1h"}}
		guardrail["onStaleEvidence"] = granttest.Object{"after": "1s", "then": "pause"}
	})
	w.draft.Binding.Evidence[0].IssuedAt = w.Now.Add(-time.Hour + 10*time.Second)
	w.draft.Decisions[0].IssuedAt = w.Now.Add(-time.Minute)
	w.issue()
	_, status := w.Serve()
	w.contained("pause", "evidence of grant weather is stale since")
	time.Sleep(2 * datesLook)
	if got, body := w.Request(scenario.Address(status, "proxy"), scenario.Token, "GET", w.URL("/v1/forecast")); got != http.StatusOK {
		t.Errorf("once it is restored: %d %s", got, body)
	}
}

// datesLook is how often a sidecar looks at the dates of its grants.
const datesLook = time.Second

func TestServeContainment(t *testing.T) {
	w := newSignedEnv(t, "off", imageTrust(), image(), func(guardrail granttest.Object) {
		guardrail["containment"] = []granttest.Object{{"id": "probing", "reasons": []string{"method_not_granted"}, "count": 3, "within": "1m", "then": "quarantine"}}
	})
	_, status := w.Serve()
	proxy := scenario.Address(status, "proxy")
	for range 2 {
		w.Request(proxy, scenario.Token, "DELETE", w.URL("/v1/forecast"))
	}
	w.Request(proxy, scenario.Token, "GET", w.URL("/elsewhere")) // another reason
	if got, body := w.Request(proxy, scenario.Token, "GET", w.URL("/v1/forecast")); got != http.StatusOK {
		t.Fatalf("after two refusals: %d %s", got, body)
	}
	w.Request(proxy, scenario.Token, "DELETE", w.URL("/v1/forecast"))
	w.contained("quarantine", "containment probing: 3 refusals within 1m")
	if got, body := w.Request(proxy, scenario.Token, "GET", w.URL("/v1/forecast")); got != http.StatusOK {
		t.Errorf("once it is restored: %d %s", got, body)
	}
}

// TestServeExemption counts the uses of an exemption across a restart.
func TestServeExemption(t *testing.T) {
	w := newSignedEnv(t, "off", imageTrust(), image(), func(guardrail granttest.Object) {
		guardrail["ceilings"] = granttest.Object{"methods": []string{"HEAD"}}
	})
	e := w.Sign(dsse.KindExemption, granttest.Document("GrantExemption", "ex-1", granttest.Object{
		"guardrailRule": "ceilings.methods", "scope": granttest.Object{"plugin": "weather", "permission": "api"}, "allow": granttest.Object{"methods": []string{"GET", "POST"}},
		"owner": "payments", "ticket": "SEC-1", "justification": "Until the upgrade.", "notAfter": w.Now.Add(time.Hour), "maxUses": 2,
	}), granttest.Policy)
	w.draft.Exemptions = append(w.draft.Exemptions, e)
	w.draft.Binding.Exemptions = []grantcheck.Ref{{Name: "ex-1", Digest: e.Digest()}}
	w.issue()
	b, status := w.Serve()
	for range 2 {
		if got, body := w.Request(scenario.Address(status, "proxy"), scenario.Token, "GET", w.URL("/v1/forecast")); got != http.StatusOK {
			t.Fatalf("within its uses: %d %s", got, body)
		}
	}
	scenario.Contains(t, w.Chaperone("status", "--config", w.File("sidecar.yaml")).Stdout, "exemption ex-1 from ceilings.methods, used up", "used 2 of 2")
	testenv.Must(t, b.Cmd.Process.Kill())
	b.Wait()
	checked := w.Chaperone("check", w.File("sidecar.yaml"))
	scenario.Contains(t, checked.Stderr, "weather.dsse.json: spec.binding.exemptions[0]: exemption ex-1 is used up: 2 of 2 uses are written in the stateDir")
	scenario.Contains(t, checked.Stdout, "grant weather: generation 1, until 20")
	_, status = w.Serve()
	if got, body := w.Request(scenario.Address(status, "proxy"), scenario.Token, "GET", w.URL("/v1/forecast")); got != http.StatusTooManyRequests || !strings.Contains(body, "quota") {
		t.Errorf("beyond its uses after a restart: %d %s", got, body)
	}
}

// TestServeSignedArtifact refuses to serve a plugin whose artifact it cannot know.
func TestServeSignedArtifact(t *testing.T) {
	w := newSignedEnv(t, "off", "{root: trust.yaml}", image(), nil)
	w.env.Write("token", scenario.Token)
	if r := w.Chaperone("serve", "--config", w.File("sidecar.yaml"), "--proxy-token-file", w.File("token")); r.Status == 0 || !strings.Contains(r.Stderr, "spec.trust.artifact: is missing") {
		t.Errorf("serve: status %d %s", r.Status, r.Stderr)
	}
	if r := w.Run("true"); r.Status != exitSidecar || !strings.Contains(r.Stderr, "chaperone run cannot verify") {
		t.Errorf("run: status %d %s", r.Status, r.Stderr)
	}
}
