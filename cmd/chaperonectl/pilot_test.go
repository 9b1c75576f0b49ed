package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/chaperone-proxy/chaperone/governance"
	"github.com/chaperone-proxy/chaperone/governance/evidence"
	"github.com/chaperone-proxy/chaperone/governance/grantcheck"
	"github.com/chaperone-proxy/chaperone/governance/manifest"
	"github.com/chaperone-proxy/chaperone/governance/pilot"
	"github.com/chaperone-proxy/chaperone/internal/dsse"
	"github.com/chaperone-proxy/chaperone/internal/testenv"
)

const apiHost = "api.test.example"

// chaperoneBeside builds the sidecar beside the tests' own binary, once.
var chaperoneBeside = sync.OnceValue(func() error {
	if os.Getenv(inIsolation) != "" {
		return nil // built by the process that isolated this one
	}
	self, err := os.Executable()
	if err != nil {
		return err
	}
	return testenv.BuildChaperone(context.Background(), filepath.Join(filepath.Dir(self), "chaperone"))
})

// pilotRig is a repository with one plugin, real people's keys, and a real API.
type pilotRig struct {
	t    *testing.T
	dir  string
	api  *testenv.Upstream
	port uint16
}

// newPilotRig needs root and the kernel. guardrail is added to the spec of the guardrail.
func newPilotRig(t *testing.T, guardrail string) *pilotRig {
	t.Helper()
	testenv.Require(t, testenv.Superuser(), testenv.CgroupV2(), testenv.BTF(), testenv.Program("python3"))
	testenv.Must(t, chaperoneBeside())
	t.Setenv("CHAPERONE_REGISTRY", filepath.Join(t.TempDir(), "registry")) // not the host's
	r := &pilotRig{
		t: t, dir: t.TempDir(), port: testenv.FreePort(t),
		api: testenv.MustUpstream(t, testenv.UpstreamConfig{Names: []string{apiHost}, Authorize: func(*http.Request) bool { return true }}),
	}
	testenv.Must(t, os.Chmod(filepath.Dir(r.dir), 0o755)) // the plugin's user enters it
	args := []string{"plugin", "trust", "init", r.file("corp")}
	for _, role := range []string{"root,policy", "author", "measurer", "compliance", "author,measurer"} {
		name := strings.ReplaceAll(role, ",", "-")
		k := testenv.MustGet(dsse.GenerateKey())(t)
		r.write(name+".key", string(testenv.MustGet(k.PEM())(t)))
		args = append(args, "--signer", fmt.Sprintf("%s=%s@corp=%s", role, name, halfOf(k.Public(), "").Ed25519))
	}
	r.ctl(0, args...)
	r.write("corp/guardrails/company.yaml", `apiVersion: chaperone.dev/v1alpha1
kind: PluginGuardrail
metadata: {name: company}
spec:
  plugins: ["**"]
`+guardrail)
	r.ctl(0, "plugin", "sign", r.file("corp/guardrails/company.yaml"), "--key", r.file("root-policy.key"))
	r.write("sidecar.yaml", fmt.Sprintf(`apiVersion: chaperone.dev/v1alpha1
kind: Sidecar
metadata: {name: reader}
spec:
  plugin: reader
  grants: [grants]
  stateDir: state
  process: {listen: [%d]}
  listen: {proxy: "127.0.0.1:15001"}
  dns: {hosts: {%s: [127.0.0.1]}}
  drain: 2s
`, r.port, apiHost))
	r.write("load.yaml", fmt.Sprintf(`phases:
- {level: typical, duration: 2s, rate: 20, concurrency: 4, http: {port: %[1]d, requests: [{path: /}]}}
- {level: peak, duration: 1s, rate: 60, concurrency: 16, http: {port: %[1]d, requests: [{path: /}]}}
`, r.port))
	return r
}

func (r *pilotRig) file(name string) string { return filepath.Join(r.dir, name) }

func (r *pilotRig) write(name, text string) {
	r.t.Helper()
	testenv.Must(r.t, os.MkdirAll(filepath.Dir(r.file(name)), 0o755))
	testenv.Must(r.t, os.WriteFile(r.file(name), []byte(text), 0o600))
}

// ctl runs the command, checks its status and returns what it printed.
func (r *pilotRig) ctl(status int, args ...string) string {
	r.t.Helper()
	return r.ctlIn(r.t.Context(), status, args...)
}

func (r *pilotRig) ctlIn(ctx context.Context, status int, args ...string) string {
	r.t.Helper()
	var out bytes.Buffer
	if got := execute(ctx, args, strings.NewReader(""), &out, &out, time.Now); got != status {
		r.t.Fatalf("chaperonectl %s: status %d, want %d\n%s", strings.Join(args, " "), got, status, out.String())
	}
	return out.String()
}

// submit makes and submits a version whose artifact is the plugin of the tests. permissions
// are added to the one that it declares.
func (r *pilotRig) submit(version, permissions string) (dir string) {
	r.t.Helper()
	program := append([]byte("#!"+testenv.SystemPython+"\n"), testenv.MustGet(os.ReadFile("../../internal/pilotrun/testdata/plugin.py"))(r.t)...)
	testenv.Must(r.t, os.WriteFile(r.file("plugin-"+version+".py"), program, 0o755))
	dir = "corp/" + governance.RequestDir("reader", version)
	r.write(dir+"/manifest.yaml", fmt.Sprintf(`apiVersion: chaperone.dev/v1alpha1
kind: PluginManifest
metadata: {name: reader}
spec:
  version: %s
  vendor: acme.example
  artifact: {kind: file, digest: %q}
  purpose: Shows the items
  permissions:
  - id: read-items
    reason: Shows the items on the card
    to: {hosts: [%s], ports: [%d], addresses: [127.0.0.1/32], tls: {caFile: ca.pem}}
    methods: [GET]
    paths: [/open]
    data: {classes: [internal], regions: [local], retention: none}
%s`, version, dsse.Digest(program), apiHost, r.api.Addr.Port(), permissions))
	testenv.Must(r.t, r.api.CA.WriteFile(r.file(dir+"/ca.pem")))
	r.ctl(0, "plugin", "submit", r.file(dir), "--artifact", r.file("plugin-"+version+".py"), "--key", r.file("author.key"))
	return dir
}

// pilot runs a pilot of five seconds. options are of the plugin.
func (r *pilotRig) pilot(status int, dir, key string, options ...string) string {
	r.t.Helper()
	version := filepath.Base(dir)
	program := r.file("plugin-" + version + ".py")
	args := []string{
		"plugin", "pilot", r.file(dir), "--config", r.file("sidecar.yaml"), "--for", "5s", "--load", r.file("load.yaml"),
		"--key", r.file(key + ".key"), "--", program, fmt.Sprint(r.port), r.api.URL(apiHost, "/open"),
	}
	return r.ctl(status, append(args, options...)...)
}

// evidence returns the predicate of the one statement of a type in a request.
func evidenceOf[T any](r *pilotRig, dir, predicateType string) (out T) {
	r.t.Helper()
	root := testenv.MustGet(governance.ReadTrust(os.DirFS(r.file("corp"))))(r.t)
	n := 0
	for _, file := range testenv.MustGet(filepath.Glob(r.file(dir + "/evidence/*.dsse.json")))(r.t) {
		e := testenv.MustGet(dsse.Parse(testenv.MustGet(os.ReadFile(file))(r.t)))(r.t)
		item := testenv.MustGet(evidence.Read(root, e))(r.t)
		if item.PredicateType == predicateType {
			n++
			testenv.Must(r.t, json.Unmarshal(item.Predicate, &out))
		}
	}
	if n != 1 {
		r.t.Fatalf("%d statements of type %s", n, predicateType)
	}
	return out
}

// TestPilot pilots versions of a real plugin, and looks at the evidence that is written: one
// that stays within its manifest, one that accesses more, and one that needs more memory.
func TestPilot(t *testing.T) {
	r := newPilotRig(t, `  performance: {memoryP95: 200MiB, latencyP99: 10s, regression: 50%}
  ceilings: {credentialLifetime: 15m}
  regions: {local: [127.0.0.0/8]}
`)
	r.write("corp/checklists/company.yaml", checklist)
	r.ctl(0, "plugin", "sign", r.file("corp/checklists/company.yaml"), "--key", r.file("root-policy.key"))
	t.Run("within its manifest", r.within)
	t.Run("undeclared access", r.beyond)
	t.Run("more memory", r.grown)
	if left := testenv.MustGet(filepath.Glob(filepath.Join(os.TempDir(), "chaperone-pilot-*")))(t); len(left) > 0 {
		t.Errorf("left behind: %q", left)
	}
}

const checklist = `apiVersion: chaperone.dev/v1alpha1
kind: ComplianceChecklist
metadata: {name: company}
spec:
  items:
  - {id: residency, control: "GDPR:44", title: Data stay here, proof: auto, query: {regions: [local]}}
  - {id: transit, control: "ISO27001:A.8.24", title: Encrypted in transit, proof: auto, query: {tlsMin: "1.2"}}
  - {id: retention, control: "GDPR:5.1.e", title: Nothing is kept, proof: auto, query: {retention: none}}
  - {id: access, control: "ISO27001:A.5.15", title: Short credentials, proof: auto, query: {credentialLifetime: 15m}}
  - {id: declared, control: "ISO27001:A.8.9", title: Nothing undeclared, proof: auto, query: {undeclared: 0}}
  - {id: mediated, control: "ISO27001:A.8.20", title: Nothing past the sidecar, proof: auto, query: {mediation: 99.99%}}
  - {id: contract, control: "GDPR:28", title: Data processing agreement, proof: attested}
`

func (r *pilotRig) within(t *testing.T) {
	r.t = t
	dir := r.submit("1.0.0", "")
	contains(t, r.pilot(1, dir, "author"), "an author's own measurement does not count")
	r.ctl(0, "plugin", "submit", r.file(dir), "--key", r.file("author-measurer.key"))
	contains(t, r.pilot(1, dir, "author-measurer"), "author-measurer@corp submitted it, and an author's own measurement does not count")
	r.ctl(0, "plugin", "submit", r.file(dir), "--key", r.file("author.key"))
	program := testenv.MustGet(os.ReadFile(r.file("plugin-1.0.0.py")))(t)
	testenv.Must(t, os.WriteFile(r.file("plugin-1.0.0.py"), append(program, '\n'), 0o644))
	contains(t, r.pilot(1, dir, "measurer"), "and the manifest states sha256:")
	testenv.Must(t, os.WriteFile(r.file("plugin-1.0.0.py"), program, 0o644))
	good := testenv.MustGet(os.ReadFile(r.file("sidecar.yaml")))(t)
	r.write("sidecar.yaml", strings.Replace(string(good), "  process:", "  proces:", 1))
	contains(t, r.pilot(1, dir, "measurer"), "sidecar.yaml:8", "proces")
	r.write("sidecar.yaml", strings.Replace(string(good), "plugin: reader", "plugin: writer", 1))
	contains(t, r.pilot(1, dir, "measurer"), "is the Sidecar of plugin writer")
	r.write("sidecar.yaml", string(good)+"  trust: {root: corp/trust.yaml}\n")
	contains(t, r.pilot(1, dir, "compliance"), "no key of compliance@corp is in role measurer")
	r.pilot(0, dir, "measurer")
	p := evidenceOf[pilot.Performance](r, dir, pilot.PerformanceType)
	if p.Memory.RSSP95Bytes < 1<<20 || p.CPU.TotalUS == 0 || p.Syscalls.Classes["network"] == 0 || p.Latency.Typical == nil || p.Latency.Peak == nil || p.Startup.ReadyMS == nil {
		t.Errorf("figures are missing: %+v", p)
	}
	if trace := evidenceOf[pilot.Trace](r, dir, pilot.TraceType); trace.Verdict != pilot.Passed || trace.Declared[0].Uses == 0 {
		t.Errorf("the trace is %+v", trace)
	}
	contains(t, r.ctl(0, "plugin", "dataflow", r.file(dir)), `plugin -->|"read-items GET / internal / in local / kept none / `)

	out := r.ctl(1, "plugin", "compliance", r.file(dir), "--key", r.file("measurer.key"))
	contains(t, out, "residency", "contract")
	for line := range strings.Lines(out) {
		if f := strings.Fields(line); len(f) > 1 && strings.Contains(checklist, "id: "+f[0]+",") && (f[1] == "missing") != (f[0] == "contract") {
			t.Errorf("item %s is %s:\n%s", f[0], f[1], out)
		}
	}
	contains(t, r.ctl(1, "plugin", "compliance", r.file(dir), "--key", r.file("author.key")), "an author's own checklist does not count")
	r.write("agreement.pdf", "agreed")
	contains(t, r.ctl(0, "plugin", "compliance", r.file(dir), "--attest", "contract="+r.file("agreement.pdf"), "--key", r.file("compliance.key")), "attested")
	if status := r.ctl(0, "plugin", "status", r.file(dir)); strings.Contains(status, "company/") {
		t.Errorf("the checklist blocks:\n%s", status)
	}
	r.edited(t, dir)
	r.forged(t, dir)
}

// edited has the log of a pilot changed, cut and removed.
func (r *pilotRig) edited(t *testing.T, dir string) {
	log := r.file(dir + "/pilot/audit.jsonl")
	good := testenv.MustGet(os.ReadFile(log))(t)
	last := bytes.TrimSpace(good)
	last = last[bytes.LastIndexByte(last, '\n')+1:]
	for name, c := range map[string]struct{ from, to string }{
		"another region":  {`"region":"local"`, `"region":"mars"`},
		"another plugin":  {`"plugin":"reader"`, `"plugin":"writer"`},
		"a shorter log":   {string(last) + "\n", ""},
		"no line of JSON": {`{"seq":2,`, `{"seq":2`},
	} {
		changed := bytes.Replace(good, []byte(c.from), []byte(c.to), 1)
		if bytes.Equal(changed, good) {
			t.Errorf("%s: the log has no %s", name, c.from)
		}
		testenv.Must(t, os.WriteFile(log, changed, 0o600))
		contains(t, r.ctl(1, "plugin", "compliance", r.file(dir)), "the pilot's log is broken")
	}
	testenv.Must(t, os.WriteFile(log, good, 0o600))
	for _, name := range []string{"audit.key", "audit.jsonl"} {
		file := r.file(dir + "/pilot/" + name)
		testenv.Must(t, os.Rename(file, file+".away"))
		contains(t, r.ctl(1, "plugin", "compliance", r.file(dir), "--log", r.file(dir+"/pilot")), name)
		testenv.Must(t, os.Rename(file+".away", file))
	}
}

// contains checks that a text contains every part.
func contains(t *testing.T, text string, parts ...string) {
	t.Helper()
	for _, p := range parts {
		if !strings.Contains(text, p) {
			t.Errorf("%q is missing in:\n%s", p, text)
		}
	}
}

func (r *pilotRig) beyond(t *testing.T) {
	r.t = t
	dir := r.submit("1.1.0", `  - id: never-used
    reason: Is not used
    to: {hosts: [unused.test.example]}
    methods: [GET]
    paths: [/]
    data: {classes: [internal], regions: [local], retention: none}
`)
	out := r.pilot(1, dir, "measurer", "undeclared="+r.api.URL(apiHost, "/echo?secret=1"))
	contains(t, out, "access: FAILED", "error: undeclared: POST https://"+apiHost, "note: unused: permission never-used", "chaperone audit query ", "audit.jsonl --reason observed --output table")
	trace := evidenceOf[pilot.Trace](r, dir, pilot.TraceType)
	if len(trace.Undeclared) != 1 || trace.Undeclared[0].Paths[0] != "/echo" || trace.Verdict != pilot.Failed {
		t.Errorf("undeclared access is %+v, verdict %s", trace.Undeclared, trace.Verdict)
	}
	contains(t, r.ctl(1, "plugin", "dataflow", r.file(dir)), "plugin ==>|", "UNDECLARED", "plugin -.->|", "error: undeclared flow")
	out = r.ctl(1, "plugin", "compliance", r.file(dir))
	contains(t, out, "were not declared", trace.Undeclared[0].Decisions[0])
	contains(t, r.ctl(0, "plugin", "status", r.file(dir)), "undeclared: POST https://"+apiHost)
	contains(t, r.ctl(1, "plugin", "compliance", r.file(dir), "--log", r.file("corp/plugins/reader/1.0.0/pilot")), "the statement is about record", "name the log of the pilot")
}

func (r *pilotRig) grown(t *testing.T) {
	r.t = t
	dir := r.submit("1.2.0", "")
	contains(t, r.pilot(1, dir, "measurer", "memory=100"), "memoryP95", "of the previous version, and 50% are allowed")
	p := evidenceOf[pilot.Performance](r, dir, pilot.PerformanceType)
	if p.Result.Verdict != pilot.Failed || p.Result.Previous != "1.1.0" || p.Memory.RSSP95Bytes < 100<<20 {
		t.Errorf("memory is %+v, and the result %+v", p.Memory, p.Result)
	}
}

// TestPilotOfImage pilots a plugin that something else starts in a cgroup: the test, and a
// container runtime, in whose container the plugin accesses more than it declares.
func TestPilotOfImage(t *testing.T) {
	r := newPilotRig(t, "  performance: {startup: 1m}\n")
	t.Run("process", func(t *testing.T) {
		p, trace := r.image(t, "1.0.0", 0, r.process)
		if p.Result.Verdict != pilot.Passed || trace.Verdict != pilot.Passed {
			t.Errorf("performance %+v, trace %+v", p.Result, trace)
		}
	})
	t.Run("container", func(t *testing.T) {
		testenv.Require(t, testenv.ContainerRuntime())
		p, trace := r.image(t, "1.1.0", 1, r.container)
		if p.Result.Verdict == pilot.Failed || trace.Verdict != pilot.Failed || len(trace.Undeclared) != 1 || trace.Undeclared[0].Paths[0] != "/echo" {
			t.Errorf("performance %+v, trace %+v", p.Result, trace)
		}
	})
}

// image pilots a version whose artifact is an image: start starts the plugin of the tests in a
// cgroup, with the sidecar's bundle as a mounted file, and returns what waits for its end.
func (r *pilotRig) image(t *testing.T, version string, status int, start func(cgroup, bundle string) (wait func())) (pilot.Performance, pilot.Trace) {
	t.Helper()
	r.t = t
	dir := r.submit(version, "")
	manifest, digest := string(testenv.MustGet(os.ReadFile(r.file(dir+"/manifest.yaml")))(t)), dsse.Digest([]byte("manifest of the image"))
	manifest = regexp.MustCompile(`artifact: .*`).ReplaceAllString(manifest, fmt.Sprintf("artifact: {kind: image, digest: %q}", digest))
	r.write(dir+"/manifest.yaml", strings.NewReplacer(", regions: [local]", "").Replace(manifest))
	r.ctl(0, "plugin", "submit", r.file(dir), "--key", r.file("author.key"))
	cgroup := testenv.MustCgroup(t).Path
	contains(t, r.pilot(1, dir, "measurer"), "write --cgroup FOLDER --image DIGEST in place of a program")
	args := []string{
		"plugin", "pilot", r.file(dir), "--config", r.file("sidecar.yaml"), "--for", "5s", "--load", r.file("load.yaml"), "--key", r.file("measurer.key"), "--cgroup", cgroup,
	}
	contains(t, r.ctl(1, append(args, "--image", dsse.Digest(nil))...), "and the manifest states "+digest)

	found := make(chan string, 1)
	out := &lines{found: found}
	ended := make(chan int, 1)
	go func() {
		ended <- execute(t.Context(), append(args, "--image", digest), strings.NewReader(""), out, out, time.Now)
	}()
	var bundle string
	select {
	case bundle = <-found:
	case status := <-ended:
		t.Fatalf("status %d\n%s", status, out.text())
	}
	wait := start(cgroup, bundle)
	if got := <-ended; got != status {
		t.Errorf("status %d, want %d\n%s", got, status, out.text())
	}
	wait()
	p, trace := evidenceOf[pilot.Performance](r, dir, pilot.PerformanceType), evidenceOf[pilot.Trace](r, dir, pilot.TraceType)
	if p.Memory.RSSP95Bytes < 1<<20 || p.CPU.TotalUS == 0 || p.Syscalls.Classes["network"] == 0 || p.Latency.Peak == nil || p.Startup.ReadyMS == nil || !trace.Mediation.Known {
		t.Errorf("figures are missing: %+v, %+v", p, trace.Mediation)
	}
	if trace.Declared[0].Uses == 0 {
		t.Errorf("the trace is %+v", trace)
	}
	return p, trace
}

// process starts the plugin as a process in a cgroup.
func (r *pilotRig) process(cgroup, bundle string) (wait func()) {
	r.t.Helper()
	mounted := r.file("bundle.pem")
	testenv.Must(r.t, os.WriteFile(mounted, testenv.MustGet(os.ReadFile(bundle))(r.t), 0o644))
	folder := testenv.MustGet(os.Open(cgroup))(r.t)
	defer folder.Close()
	cmd := exec.Command(testenv.SystemPython, r.file("plugin-1.0.0.py"), fmt.Sprint(r.port), r.api.URL(apiHost, "/open"))
	cmd.Env = []string{"SSL_CERT_FILE=" + mounted}
	const user = 61999
	cmd.SysProcAttr = &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: int(folder.Fd()), Credential: &syscall.Credential{Uid: user, Gid: user}, Pdeathsig: syscall.SIGKILL}
	cmd.Stdout, cmd.Stderr = os.Stderr, os.Stderr
	testenv.Must(r.t, cmd.Start())
	return func() {
		killed := time.AfterFunc(10*time.Second, func() { _ = cmd.Process.Kill() })
		_ = cmd.Wait() // it was killed
		if !killed.Stop() {
			r.t.Error("the plugin runs on after the pilot")
		}
	}
}

// container starts the plugin in a container, with an access that is not declared.
func (r *pilotRig) container(cgroup, bundle string) (wait func()) {
	r.t.Helper()
	c := testenv.RunContainer(r.t, testenv.ContainerConfig{
		Cgroup: filepath.Join(cgroup, "plugin"), UID: 61999, Env: []string{"SSL_CERT_FILE=/etc/ca.pem"},
		Args:  []string{testenv.SystemPython, "/etc/plugin.py", fmt.Sprint(r.port), r.api.URL(apiHost, "/open"), "undeclared=" + r.api.URL(apiHost, "/echo")},
		Files: map[string]string{"/etc/ca.pem": bundle, "/etc/plugin.py": r.file("plugin-1.0.0.py")},
	})
	return func() {
		const killed = 128 + int(syscall.SIGKILL)
		if status := c.Wait(); status != killed {
			r.t.Errorf("the container ended with %d, want %d\n%s", status, killed, c.Output())
		}
	}
}

// lines is output that is searched for the sidecar's bundle.
type lines struct {
	mu    sync.Mutex
	buf   bytes.Buffer
	found chan string
}

func (l *lines) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.buf.Write(b)
	if _, rest, ok := strings.Cut(l.buf.String(), "SSL_CERT_FILE="); ok && strings.Contains(rest, "\n") && l.found != nil {
		file, _, _ := strings.Cut(rest, "\n")
		l.found <- file
		l.found = nil
	}
	return len(b), nil
}

func (l *lines) text() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.String()
}

// forged has the signed trace of a request replaced by ones that must not count.
func (r *pilotRig) forged(t *testing.T, dir string) {
	file := testenv.MustGet(filepath.Glob(r.file(dir + "/evidence/runtime-trace-*")))(t)[0]
	good := testenv.MustGet(os.ReadFile(file))(t)
	e := testenv.MustGet(dsse.Parse(good))(t)
	artifact := strings.TrimPrefix(dsse.Digest(testenv.MustGet(os.ReadFile(r.file("plugin-1.0.0.py")))(t)), "sha256:")
	resign := func(key, from, to string) []byte {
		text := strings.ReplaceAll(string(e.Unverified), from, to)
		if text == string(e.Unverified) && from != "" {
			t.Errorf("the statement has no %s", from)
		}
		k := testenv.MustGet(readKey(r.file(key + ".key")))(t)
		return testenv.MustGet(dsse.Sign(t.Context(), dsse.KindEvidence, []byte(text), k))(t).Marshal()
	}
	stranger := testenv.MustGet(dsse.GenerateKey())(t)
	r.write("stranger.key", string(testenv.MustGet(stranger.PEM())(t)))
	edited := *e
	edited.Unverified = bytes.Replace(e.Unverified, []byte(`"uses":`), []byte(`"uses":1`), 1)
	other := *e
	other.PayloadType = dsse.KindApproval.PayloadType()
	for name, c := range map[string]struct {
		data []byte
		want string
	}{
		"an edited payload":         {edited.Marshal(), "does not verify"},
		"another kind":              {other.Marshal(), "payload type"},
		"no envelope":               {[]byte("{}"), "read envelope"},
		"no JSON":                   {good[:len(good)/2], "read envelope"},
		"signed by a stranger":      {resign("stranger", "", ""), "signed"},
		"signed by the author":      {resign("author", "", ""), "signed"},
		"signed by compliance":      {resign("compliance", "", ""), "is signed by role measurer"},
		"of another artifact":       {resign("measurer", artifact, strings.Repeat("ab", 32)), "is about sha256:abab"},
		"of another type":           {resign("measurer", pilot.TraceType, "https://chaperone.dev/attestation/sbom/v1"), "sbom"},
		"of the future":             {resign("measurer", `"issuedAt":"2026`, `"issuedAt":"2036`), "future"},
		"a verdict that is not so":  {resign("measurer", `"uses":`, `"uses":0,"was":`), "does not follow from what was observed"},
		"mediation that is not so":  {resign("measurer", `"unmediated":0`, `"unmediated":5`), "does not follow from the counts"},
		"no time of measuring":      {resign("measurer", `"endedAt"`, `"ended"`), "are required"},
		"no head of the log":        {resign("measurer", `"head"`, `"tail"`), "log lacks"},
		"a field in another case":   {resign("measurer", `"verdict":"PASSED"`, `"verdict":"FAILED","Verdict":"PASSED"`), "given twice"},
		"text behind the statement": {resign("measurer", `"verdict":"PASSED"`, `"verdict":"PASSED"}}{"x":{"y":1`), "first JSON value"},
	} {
		t.Run(name, func(t *testing.T) {
			r.t = t
			testenv.Must(t, os.WriteFile(file, c.data, 0o600))
			contains(t, r.ctl(1, "plugin", "dataflow", r.file(dir)), c.want)
		})
	}
	r.t = t
	testenv.Must(t, os.WriteFile(file, good, 0o600))
}

// TestPilotProgram: a pilot measures the program that a sidecar would start, and no other one
// under the name of the artifact.
func TestPilotProgram(t *testing.T) {
	dir := t.TempDir()
	write := func(name, text string) string {
		path := filepath.Join(dir, name)
		testenv.Must(t, os.MkdirAll(filepath.Dir(path), 0o755))
		testenv.Must(t, os.WriteFile(path, []byte(text), 0o755))
		return path
	}
	good, other := write("good/weather", "#!/bin/sh\n"), write("other/weather", "#!/bin/sh\nexit\n")
	tree := write("tree/bin/weather", "#!/bin/sh\n")
	folder := filepath.Dir(filepath.Dir(tree))
	file := grantcheck.Artifact{Kind: grantcheck.ArtifactFile, Digest: dsse.Digest([]byte("#!/bin/sh\n"))}
	of := grantcheck.Artifact{Kind: grantcheck.ArtifactTree, Digest: testenv.MustGet(grantcheck.TreeDigest(os.DirFS(folder)))(t)}
	t.Chdir(filepath.Dir(good))
	t.Setenv("PATH", filepath.Dir(other))
	for name, test := range map[string]struct {
		artifact grantcheck.Artifact
		flag     string // --artifact
		command  string
		want     string // in the error; "" for none
	}{
		"the artifact":                {file, "", good, ""},
		"another program":             {file, good, other, "a sidecar starts the artifact itself"},
		"an interpreter":              {file, good, "/bin/sh", "a sidecar starts the artifact itself"},
		"another one of PATH":         {file, "", "weather", "has digest"},
		"a program of the folder":     {of, folder, tree, ""},
		"a program out of the folder": {of, folder, good, "is not in the artifact's folder"},
	} {
		q := &governance.Request{Dir: "plugins/weather/1.0.0", Plugin: "weather", Manifest: &manifest.File{}}
		q.Manifest.Spec.Artifact.Artifact = test.artifact
		p := pilotRun{artifact: test.flag}
		if err := p.checkArtifact(q, []string{test.command}); (err == nil) != (test.want == "") || err != nil && !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: %v, want %q", name, err, test.want)
		}
	}
}
