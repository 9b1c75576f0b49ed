package main

import (
	"bytes"
	"context"
	"embed"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"text/template"
	"time"

	"github.com/chaperone-proxy/chaperone/internal/dsse"
	"github.com/chaperone-proxy/chaperone/internal/testenv"
)

//go:embed files
var files embed.FS

const apiHost = "api.weather.example"

// env is the files and the API of one run of the demo.
type env struct {
	programs string
	dir      string // corp is the repository below it
	root     bool   // the kernel can confine the plugin
	api      *testenv.Upstream
	halves   map[string]string // the public half of each person's key
}

func newEnv(ctx context.Context, programs string) (e *env, err error) {
	e = &env{root: testenv.Missing(testenv.Superuser(), testenv.CgroupV2(), testenv.BTF()) == nil, halves: map[string]string{}}
	if e.programs, err = filepath.Abs(programs); err != nil {
		return e, err
	}
	if e.dir, err = os.MkdirTemp("", "chaperone-governance-"); err != nil {
		return e, err
	}
	if err := os.Chmod(e.dir, 0o755); err != nil { // the plugin's user runs its program here
		return e, err
	}
	anybody := func(*http.Request) bool { return true }
	if e.api, err = testenv.StartUpstream(ctx, testenv.UpstreamConfig{Names: []string{apiHost}, Authorize: anybody}); err != nil {
		return e, err
	}
	if err := e.api.CA.WriteFile(e.path("api-ca.pem")); err != nil {
		return e, err
	}
	for _, name := range []string{"scan.sarif", "clean.sarif", "sbom.cdx.json", "curlrc"} {
		if err := e.copy(name, name); err != nil {
			return e, err
		}
	}
	return e, errors.Join(e.sidecar("sidecar.yaml", true), e.sidecar("pilot.yaml", false))
}

// Close ends the API and removes the files.
func (e *env) Close() error {
	var err error
	if e.api != nil {
		err = e.api.Close()
	}
	return errors.Join(err, os.RemoveAll(e.dir))
}

func (e *env) path(name string) string { return filepath.Join(e.dir, name) }

func (e *env) url(path string) string { return e.api.URL(apiHost, path) }

func (e *env) read(name string) (string, error) {
	data, err := os.ReadFile(e.path(name))
	return string(data), err
}

func (e *env) write(name string, data []byte, mode os.FileMode) error {
	if err := os.MkdirAll(filepath.Dir(e.path(name)), 0o755); err != nil {
		return err
	}
	return os.WriteFile(e.path(name), data, mode)
}

// copy writes a file of the demo under a name.
func (e *env) copy(file, name string) error {
	data, err := files.ReadFile("files/" + file)
	if err != nil {
		return err
	}
	return e.write(name, data, 0o644)
}

// fill writes a template of the demo under a name.
func (e *env) fill(file, name string, values any) error {
	t, err := template.ParseFS(files, "files/"+file)
	if err != nil {
		return err
	}
	var out bytes.Buffer
	if err := t.Execute(&out, values); err != nil {
		return err
	}
	return e.write(name, out.Bytes(), 0o644)
}

func (e *env) sidecar(name string, trust bool) error {
	return e.fill("sidecar.yaml.tmpl", name, map[string]any{"Host": apiHost, "Kernel": e.root, "Trust": trust})
}

// version writes a version of the plugin's program, and its manifest. The program is curl,
// with a few bytes at its end, so that each version has another digest.
func (e *env) version(version, program string, orders bool) error {
	curl, err := exec.LookPath("curl")
	if err != nil {
		return err
	}
	text, err := os.ReadFile(curl)
	if err != nil {
		return err
	}
	text = append(text, program...)
	if err := e.write(program, text, 0o755); err != nil {
		return err
	}
	authority, err := os.ReadFile(e.path("api-ca.pem"))
	if err != nil {
		return err
	}
	dir := "corp/plugins/weather/" + version
	return errors.Join(
		e.write(dir+"/api-ca.pem", authority, 0o644),
		e.write(dir+"/runbook.md", []byte("It reads the forecast, and keeps nothing.\n"), 0o644),
		e.fill("manifest.yaml.tmpl", dir+"/manifest.yaml", map[string]any{
			"Version": version, "Digest": dsse.Digest(text), "Host": apiHost, "Port": e.api.Addr.Port(), "Orders": orders,
		}))
}

// result is the output and exit status of a command.
type result struct {
	output string
	status int
}

// command runs a program of the product in the folder of the demo, and prints it.
func (e *env) command(ctx context.Context, program string, args ...string) (result, error) {
	fmt.Println("   $ " + program + " " + strings.NewReplacer(e.dir+"/", "", "\n", " ").Replace(strings.Join(args, " ")))
	return e.quietly(ctx, program, args...)
}

func (e *env) quietly(ctx context.Context, program string, args ...string) (result, error) {
	cmd := exec.CommandContext(ctx, filepath.Join(e.programs, program), args...)
	cmd.Dir = e.dir
	cmd.Env = append(os.Environ(), "CHAPERONE_REGISTRY="+e.path("registry")) // not the machine's
	out, err := cmd.CombinedOutput()
	if _, ended := errors.AsType[*exec.ExitError](err); ended {
		err = nil
	}
	if err != nil {
		return result{}, err
	}
	return result{string(out), cmd.ProcessState.ExitCode()}, nil
}

// outcome is what a command has to do: end with a status and print texts. Lines with those
// texts are shown.
type outcome struct {
	status int
	texts  []string
}

func works(texts ...string) outcome { return outcome{0, texts} }

func refused(texts ...string) outcome { return outcome{1, texts} }

// plugin runs chaperonectl plugin, and checks its outcome.
func (e *env) plugin(ctx context.Context, want outcome, args ...string) error {
	return e.expect(ctx, want, "chaperonectl", append([]string{"plugin"}, args...)...)
}

// approve approves the grant whose digest the packet of a request prints.
func (e *env) approve(ctx context.Context, dir string, args ...string) error {
	packet, err := e.command(ctx, "chaperonectl", "plugin", "review", dir)
	if err != nil {
		return err
	}
	m := regexp.MustCompile(`with digest\s+(sha256:[0-9a-f]{64})\s`).FindStringSubmatch(packet.output)
	if m == nil {
		return fmt.Errorf("the packet of %s has no digest\n%s", dir, packet.output)
	}
	return e.plugin(ctx, works("approved: grant"), append([]string{"approve", dir, "--grant", m[1]}, args...)...)
}

func (e *env) expect(ctx context.Context, want outcome, program string, args ...string) error {
	r, err := e.command(ctx, program, args...)
	if err != nil {
		return err
	}
	show(r.output, want.texts...)
	missing := func(text string) bool { return !strings.Contains(r.output, text) }
	if r.status != want.status || slices.ContainsFunc(want.texts, missing) {
		return fmt.Errorf("status %d, want %d with %q\n%s", r.status, want.status, want.texts, r.output)
	}
	return nil
}

// all runs steps until one fails.
func all(do ...func() error) error {
	for _, one := range do {
		if err := one(); err != nil {
			return err
		}
	}
	return nil
}

// keys makes a key for each person, and shows the first.
func (e *env) keys(ctx context.Context, people ...string) error {
	for i, name := range people {
		run := e.quietly
		if i == 0 {
			run = e.command
		}
		r, err := run(ctx, "chaperonectl", "plugin", "keygen", "--out", name+".key", "--output", "json")
		if err != nil {
			return err
		}
		var key struct{ Ed25519 string }
		if err := json.Unmarshal([]byte(r.output), &key); err != nil || r.status != 0 || key.Ed25519 == "" {
			return fmt.Errorf("no key for %s: %w\n%s", name, err, r.output)
		}
		e.halves[name] = key.Ed25519
	}
	say("and so do %s", strings.Join(people[1:], ", "))
	return nil
}

// calls runs a program as the plugin, and reports its output and how many requests reached
// the API.
func (e *env) calls(ctx context.Context, program, method, path string) (result, int, error) {
	before := e.api.Total()
	r, err := e.command(ctx, "chaperone", "run", "--config", "sidecar.yaml", "--", e.path(program), "-K", e.path("curlrc"), "-X", method, e.url(path))
	return r, e.api.Total() - before, err
}

// reaches has the plugin call the API, which has to answer.
func (e *env) reaches(ctx context.Context, program, method, path string) error {
	r, reached, err := e.calls(ctx, program, method, path)
	if err != nil {
		return err
	}
	show(r.output, "the API answered")
	if r.status != 0 || reached != 1 || !strings.Contains(r.output, "with 200") {
		return fmt.Errorf("status %d, %d requests\n%s", r.status, reached, r.output)
	}
	return nil
}

// stopped has the plugin call the API, which must not be reached, for a reason.
func (e *env) stopped(ctx context.Context, program, method, path string, reasons ...string) error {
	r, reached, err := e.calls(ctx, program, method, path)
	if err != nil {
		return err
	}
	show(r.output, reasons...)
	missing := func(text string) bool { return !strings.Contains(r.output, text) }
	if reached != 0 || slices.ContainsFunc(reasons, missing) {
		return fmt.Errorf("status %d, %d requests, want %q\n%s", r.status, reached, reasons, r.output)
	}
	return nil
}

// in returns the time in a format of RFC 3339.
func in(d time.Duration) string { return time.Now().Add(d).UTC().Format(time.RFC3339) }
