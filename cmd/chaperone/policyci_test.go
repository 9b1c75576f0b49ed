package main

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/goccy/go-yaml"

	"github.com/chaperone-proxy/chaperone/audit"
)

// workflow holds what the example of a workflow uses of GitHub's format. A field
// that the test does not handle is an error of the decoder.
type workflow struct {
	Name        string              `yaml:"name"`
	On          map[string]struct{} `yaml:"on"`
	Permissions map[string]string   `yaml:"permissions"`
	Defaults    struct {
		Run struct {
			Shell string `yaml:"shell"`
		} `yaml:"run"`
	} `yaml:"defaults"`
	Jobs map[string]workflowJob `yaml:"jobs"`
}

type workflowJob struct {
	RunsOn      string            `yaml:"runs-on"`
	Outputs     map[string]string `yaml:"outputs"`
	Needs       string            `yaml:"needs"`
	If          string            `yaml:"if"`
	Environment string            `yaml:"environment"`
	Steps       []workflowStep    `yaml:"steps"`
}

type workflowStep struct {
	Name            string            `yaml:"name"`
	ID              string            `yaml:"id"`
	Uses            string            `yaml:"uses"`
	With            map[string]any    `yaml:"with"`
	Env             map[string]string `yaml:"env"`
	Run             string            `yaml:"run"`
	ContinueOnError bool              `yaml:"continue-on-error"`
}

// workflowRun runs the steps of a job as a runner does: one bash each, in the
// checkout, until one fails.
type workflowRun struct {
	t        *testing.T
	checkout string
	temp     string
	context  map[string]string // values of expressions
	output   strings.Builder
	codes    map[string]int // exit codes by name
}

var workflowExpression = regexp.MustCompile(`\$\{\{ ([a-zA-Z_.]+) \}\}`)

func (r *workflowRun) expand(text string) string {
	return workflowExpression.ReplaceAllStringFunc(text, func(expression string) string {
		name := workflowExpression.FindStringSubmatch(expression)[1]
		value, ok := r.context[name]
		if !ok && !strings.HasPrefix(name, "steps.") { // an output that no step has set is empty
			r.t.Errorf("%s is not a value of the workflow", name)
		}
		return value
	})
}

func (r *workflowRun) step(step workflowStep) (code int) {
	r.t.Helper()
	if strings.Contains(step.Run, "${{") {
		r.t.Errorf("the script of %s holds an expression: a name of a branch could be a command there", step.Name)
	}
	script, outputs := filepath.Join(r.temp, "step.sh"), filepath.Join(r.temp, "outputs")
	write(r.t, script, step.Run)
	write(r.t, outputs, "")
	// GitHub runs this for `shell: bash`.
	cmd := exec.CommandContext(r.t.Context(), "bash", "--noprofile", "--norc", "-eo", "pipefail", script)
	cmd.Dir, cmd.Stdout, cmd.Stderr = r.checkout, &r.output, &r.output
	cmd.Env = append(os.Environ(), "RUNNER_TEMP="+r.temp, "GITHUB_OUTPUT="+outputs, "CHAPERONE_REGISTRY="+r.temp+"/registry")
	for name, value := range step.Env {
		cmd.Env = append(cmd.Env, name+"="+r.expand(value))
	}
	err := cmd.Run()
	if exit := (*exec.ExitError)(nil); errors.As(err, &exit) {
		code = exit.ExitCode()
	} else if err != nil {
		r.t.Fatal(err)
	}
	set, err := os.ReadFile(outputs)
	if err != nil {
		r.t.Fatal(err)
	}
	for line := range strings.Lines(string(set)) {
		name, value, _ := strings.Cut(strings.TrimSpace(line), "=")
		r.context["steps."+step.ID+".outputs."+name] = value
	}
	return code
}

// job reports whether a job succeeds; it runs no step that only names an action.
func (r *workflowRun) job(name string, job workflowJob) bool {
	r.t.Helper()
	for _, step := range job.Steps {
		if step.Uses != "" {
			continue
		}
		code := r.step(step)
		r.codes[step.Name] = code
		if code != 0 && !step.ContinueOnError {
			return false
		}
	}
	for output, value := range job.Outputs {
		r.context["needs."+name+".outputs."+output] = r.expand(value)
	}
	return true
}

const workflowGuardrail = `apiVersion: chaperone.dev/v1alpha1
kind: PluginGuardrail
metadata: {name: company}
spec: {plugins: ["**"], ceilings: {methods: [GET, HEAD, POST]}}
`

const workflowTest = `apiVersion: chaperone.dev/v1alpha1
kind: PluginTest
metadata: {name: weather}
spec:
  grants: [weather.yaml]
  guardrails: [company.yaml]
  expect:
  - {allow: GET https://api.weather.example/v1/forecast/oslo, rule: weather/read-forecast}
  - {deny: DELETE https://api.weather.example/v1/forecast/oslo, reason: method_not_granted}
`

func workflowGrant() string {
	return `apiVersion: chaperone.dev/v1alpha1
kind: PluginGrant
metadata: {name: weather}
spec:
  plugin: weather
  notAfter: ` + time.Now().Add(30*24*time.Hour).UTC().Format(time.RFC3339) + `
  rules:
  - id: read-forecast
    reason: Shows the forecast on the card
    to: {hosts: [api.weather.example]}
    methods: [GET, HEAD]
    paths: ["/v1/forecast/*"]
  - id: read-alerts
    reason: Shows warnings of storms
    to: {hosts: [alerts.weather.example]}
    methods: [GET]
    paths: ["/v1/alerts/**"]
`
}

// TestWorkflow runs the example of a workflow on pull requests.
func TestWorkflow(t *testing.T) {
	example, err := os.ReadFile("../../examples/ci/policy.yml")
	if err != nil {
		t.Fatal(err)
	}
	var flow workflow
	if err := yaml.UnmarshalWithOptions(example, &flow, yaml.Strict()); err != nil {
		t.Fatal(err)
	}
	approval := flow.Jobs["approve"]
	if flow.Defaults.Run.Shell != "bash" || approval.Environment == "" || approval.Needs != "policy" ||
		approval.If != "needs.policy.outputs.wider == 'true'" {
		t.Fatalf("the workflow runs in %q, and approves by %+v", flow.Defaults.Run.Shell, approval)
	}
	for _, test := range []struct {
		name     string
		old, new string // replaced in the grant
		fork     bool
		passed   bool
		wider    string
		codes    map[string]int // of the steps that ran, without those that end with 0
		printed  string
	}{
		{name: "narrower", old: "[GET, HEAD]", new: "[GET]", passed: true, wider: "false", printed: "narrower"},
		{name: "no change", passed: true, wider: "false"},
		{
			name: "wider, also for recorded traffic", old: "[GET, HEAD]\n    paths: [\"/v1/forecast/*\"]",
			new: "[GET, HEAD, POST]\n    paths: [\"/v1/**\"]", passed: true, wider: "true",
			codes: map[string]int{"Diff": 3, "Prove": 3}, printed: "https://api.weather.example",
		},
		{name: "recorded traffic breaks", old: "/v1/alerts/**", new: "/v1/alerts/*", codes: map[string]int{"Replay": 3}, printed: "breaks: 1"},
		{name: "a test fails", old: "[GET, HEAD]", new: "[HEAD]", codes: map[string]int{"Test": 3}, printed: "not ok 1"},
		{
			name: "below the floor", old: "[alerts.weather.example]", new: "[alerts.weather.example], addresses: [169.254.0.0/16]",
			codes: map[string]int{"Floor": 3}, printed: "169.254.169.254",
		},
		{name: "malformed", old: "methods: [GET]", new: "methods: GET", codes: map[string]int{"Test": 1}, printed: "weather.yaml:16:"},
		{name: "above a ceiling", old: "[GET, HEAD]", new: "[GET, HEAD, PUT]", codes: map[string]int{"Test": 1}, printed: "company"},
		{name: "a fork has no key of the masks", fork: true, codes: map[string]int{"Replay": 1}, printed: "mask key"},
	} {
		t.Run(test.name, func(t *testing.T) {
			run := pullRequest(t, test.old, test.new, test.fork)
			passed := run.job("policy", flow.Jobs["policy"])
			for name, code := range run.codes {
				if code != test.codes[name] {
					t.Errorf("%s ended with %d, not %d", name, code, test.codes[name])
				}
			}
			wider := run.context["needs.policy.outputs.wider"]
			if passed != test.passed || wider != test.wider || !strings.Contains(run.output.String(), test.printed) {
				t.Errorf("passed: %v, wider: %q, without %q; it printed:\n%s", passed, wider, test.printed, run.output.String())
			}
			if passed {
				checkSARIF(t, run.checkout, test.old != "")
			}
		})
	}
}

// pullRequest makes a repository of a base, and a head that replaces a part of
// the grant, with a log that the base's policy recorded.
func pullRequest(t *testing.T, old, replacement string, fork bool) *workflowRun {
	t.Helper()
	checkout, temp, state := t.TempDir(), t.TempDir(), t.TempDir()
	grant := workflowGrant()
	if strings.Count(grant, old) == 0 {
		t.Fatalf("the grant has no %q", old)
	}
	write(t, checkout+"/policy/company.yaml", workflowGuardrail)
	write(t, checkout+"/policy/weather.yaml", grant)
	write(t, checkout+"/policy/weather_test.yaml", workflowTest)
	gitIn(t, checkout, "init", "--quiet")
	gitIn(t, checkout, "add", "policy")
	gitIn(t, checkout, "commit", "--quiet", "--message", "policy: grant the forecast")
	base := gitIn(t, checkout, "rev-parse", "HEAD")
	accesses := []string{
		"GET https://api.weather.example/v1/forecast/oslo", "GET https://alerts.weather.example/v1/alerts/no/storm",
		"POST https://api.weather.example/v1/telemetry",
	}
	if err := recordedLog(state, checkout+"/policy", false, time.Now().Add(-time.Hour), accesses); err != nil {
		t.Fatal(err)
	}
	log, err := os.ReadFile(state + "/audit.jsonl")
	if err != nil {
		t.Fatal(err)
	}
	write(t, checkout+"/logs/weather/audit.jsonl", string(log))
	key := maskKey(t, state)
	if fork {
		key = ""
	}
	write(t, checkout+"/policy/weather.yaml", strings.Replace(grant, old, replacement, 1))
	gitIn(t, checkout, "commit", "--quiet", "--all", "--allow-empty", "--message", "policy: change it")
	return &workflowRun{t: t, checkout: checkout, temp: temp, codes: map[string]int{}, context: map[string]string{
		"github.event.pull_request.base.sha": base, "secrets.CHAPERONE_MASK_KEY": key,
	}}
}

func gitIn(t *testing.T, dir string, args ...string) string {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "git", args...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "GIT_CONFIG_GLOBAL=/dev/null", "GIT_CONFIG_SYSTEM=/dev/null",
		"GIT_AUTHOR_NAME=author", "GIT_AUTHOR_EMAIL=author@weather.example",
		"GIT_COMMITTER_NAME=author", "GIT_COMMITTER_EMAIL=author@weather.example")
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("git %s: %v", strings.Join(args, " "), err)
	}
	return strings.TrimSpace(string(out))
}

// write writes a file, and the folders above it.
func write(t *testing.T, path, text string) {
	t.Helper()
	if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o700), os.WriteFile(path, []byte(text), 0o600)); err != nil {
		t.Fatal(err)
	}
}

// maskKey returns the text of the exported key of the masks of a log.
func maskKey(t *testing.T, stateDir string) string {
	t.Helper()
	key, err := audit.LoadKey(stateDir)
	if err != nil {
		t.Fatal(err)
	}
	path := stateDir + "/exported"
	if err := key.MaskKey().Create(path); err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(text))
}

// checkSARIF fails unless the report for the pull request names the file as the
// repository does, so that a finding is shown at its line.
func checkSARIF(t *testing.T, checkout string, changed bool) {
	t.Helper()
	report, err := os.ReadFile(checkout + "/diff.sarif")
	if err != nil {
		t.Fatal(err)
	}
	if changed && !strings.Contains(string(report), `"uri": "policy/weather.yaml"`) || strings.Contains(string(report), `"uri": "/`) {
		t.Errorf("a result is not at policy/weather.yaml: %s", report)
	}
}
