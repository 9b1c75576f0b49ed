package main

import (
	"bytes"
	"context"
	_ "embed"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"text/template"
	"time"

	"github.com/chaperone-proxy/chaperone/internal/testenv"
	"github.com/chaperone-proxy/chaperone/internal/testenv/scenario"
)

var (
	//go:embed sidecar.yaml.tmpl
	sidecarYAML string
	//go:embed grant.yaml.tmpl
	grantYAML string
)

const apiHost = scenario.Host

// pluginUID is a uid without an account.
const pluginUID = 61999

// env is the components and the files of one run of the demo.
type env struct {
	binary string
	parts  *scenario.Components
	dir    string
	root   bool // the kernel can confine the plugin
	vault  *testenv.Vault
	api    *testenv.Upstream
	envoy  *testenv.Envoy
	cgroup *os.File // of the plugin's programs; nil without root

	sidecar *process
	via     string // the address of the plugin's proxy
}

func newEnv(ctx context.Context, binary string) (e *env, err error) {
	e = &env{root: testenv.Missing(testenv.Superuser(), testenv.CgroupV2(), testenv.BTF()) == nil}
	if e.binary, err = filepath.Abs(binary); err != nil {
		return e, err
	}
	if e.parts, err = scenario.Start(ctx, scenario.Config{}); err != nil {
		return e, err
	}
	e.dir, e.vault, e.api = e.parts.Dir, e.parts.Vault, e.parts.API
	if e.root {
		if err := e.makeCgroup(); err != nil {
			return e, err
		}
	} else if e.via, err = freeAddress(ctx); err != nil {
		return e, err
	}
	if err := e.writeFiles(); err != nil {
		return e, err
	}
	if err := e.startSidecar(ctx); err != nil {
		return e, err
	}
	return e, e.startEnvoy(ctx)
}

// Close ends every component and removes the files.
func (e *env) Close() error {
	var errs []error
	if e.sidecar != nil {
		e.sidecar.end()
	}
	if e.cgroup != nil {
		cmd := exec.CommandContext(context.Background(), e.binary, "detach", "--config", e.config(), "--kill")
		if out, err := cmd.CombinedOutput(); err != nil {
			errs = append(errs, fmt.Errorf("detach: %w: %s", err, out))
		}
		errs = append(errs, e.cgroup.Close(), removeCgroup(e.cgroup.Name()))
	}
	if e.envoy != nil {
		errs = append(errs, e.envoy.Close())
	}
	if e.parts != nil {
		errs = append(errs, e.parts.Close())
	}
	return errors.Join(errs...)
}

// makeCgroup creates the plugin's cgroup.
func (e *env) makeCgroup() error {
	root, err := testenv.CgroupRoot()
	if err != nil {
		return err
	}
	dir, err := os.MkdirTemp(root, "chaperone-demo-")
	if err != nil {
		return err
	}
	e.cgroup, err = os.Open(dir)
	return err
}

// removeCgroup removes a cgroup as soon as its killed processes are gone.
func removeCgroup(dir string) error {
	var err error
	for range 100 {
		if err = os.Remove(dir); err == nil || errors.Is(err, os.ErrNotExist) {
			return nil
		}
		time.Sleep(20 * time.Millisecond)
	}
	return err
}

// freeAddress returns an unused address.
func freeAddress(ctx context.Context) (string, error) {
	l, err := new(net.ListenConfig).Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	return l.Addr().String(), l.Close()
}

func (e *env) writeFiles() error {
	values := map[string]any{
		"Host": apiHost, "Port": e.api.Addr.Port(), "Address": e.api.Addr.Addr(), "Vault": e.vault.Address, "Explicit": e.via,
		"NotAfter": time.Now().Add(24 * time.Hour).UTC().Format(time.RFC3339),
	}
	for name, text := range map[string]string{"sidecar.yaml": sidecarYAML, "grant.yaml": grantYAML} {
		parsed, err := template.New(name).Parse(text)
		if err != nil {
			return err
		}
		var out bytes.Buffer
		if err := parsed.Execute(&out, values); err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(e.dir, name), out.Bytes(), 0o600); err != nil {
			return err
		}
	}
	return nil
}

// startSidecar starts chaperone serve and returns when it is ready.
func (e *env) startSidecar(ctx context.Context) error {
	args := []string{"serve", "--config", e.config()}
	if e.root {
		args = append(args, "--cgroup", e.cgroup.Name())
	}
	e.printCommand(args)
	p, err := start(exec.CommandContext(ctx, e.binary, args...))
	if err != nil {
		return err
	}
	e.sidecar = p
	status, err := e.await(ctx, "the sidecar is ready", func(s status) bool { return s.Ready })
	if err != nil {
		return fmt.Errorf("%w\n%s", err, p.output.String())
	}
	for _, d := range status.Doors {
		if d.Name == "proxy" {
			e.via = d.Address
		}
	}
	return nil
}

// startEnvoy starts Envoy with the output of chaperone envoy bootstrap.
func (e *env) startEnvoy(ctx context.Context) error {
	bootstrap, err := e.chaperone(ctx, "envoy", "bootstrap", "--config", e.config())
	if err != nil {
		return err
	}
	if err := expect(bootstrap.status == 0, bootstrap, "no bootstrap"); err != nil {
		return err
	}
	say("$ envoy --config-path bootstrap.yaml")
	if e.envoy, err = testenv.StartEnvoy(ctx, testenv.EnvoyConfig{Bootstrap: bootstrap.stdout}); err != nil {
		return err
	}
	_, err = e.await(ctx, "Envoy has applied the grants", func(s status) bool {
		return len(s.Envoy.Connected) == 1 && s.Envoy.Connected[0].Current
	})
	return err
}

// status is the used part of chaperone status.
type status struct {
	Ready bool
	Doors []struct{ Name, Address string }
	Envoy struct {
		Connected []struct {
			Version string
			Current bool
		}
	}
}

// await polls the sidecar's status.
func (e *env) await(ctx context.Context, what string, is func(status) bool) (status, error) {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	for {
		var s status
		out, err := exec.CommandContext(ctx, e.binary, "status", "--config", e.config(), "--output", "json").Output()
		if err == nil && json.Unmarshal(out, &s) == nil && is(s) {
			return s, nil
		}
		select {
		case <-ctx.Done():
			return s, fmt.Errorf("not within 30 s: %s", what)
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// url is an address of the API for the plugin: plain http, which Envoy forwards
// over TLS.
func (e *env) url(path string) string {
	return fmt.Sprintf("http://%s:%d%s", apiHost, e.api.Addr.Port(), path)
}

func (e *env) config() string { return filepath.Join(e.dir, "sidecar.yaml") }

// result is the output and exit status of a command.
type result struct {
	stdout, stderr string
	status         int
}

func (e *env) printCommand(args []string) {
	say("$ chaperone %s", strings.ReplaceAll(strings.Join(args, " "), e.dir+"/", ""))
}

// chaperone runs a command of the program.
func (e *env) chaperone(ctx context.Context, args ...string) (result, error) {
	e.printCommand(args)
	return finish(exec.CommandContext(ctx, e.binary, args...))
}

// curl is the plugin: it runs curl where the plugin's programs run.
func (e *env) curl(ctx context.Context, args ...string) *exec.Cmd {
	say("plugin$ curl %s", strings.Join(args, " "))
	base := []string{"-sS", "-N", "-m", "60", "--noproxy", "*"}
	if !e.root {
		base = []string{"-sS", "-N", "-m", "60", "--proxy", "http://" + e.via}
	}
	cmd := exec.CommandContext(ctx, "curl", append(base, args...)...)
	if e.root {
		cmd.SysProcAttr = &syscall.SysProcAttr{
			UseCgroupFD: true, CgroupFD: int(e.cgroup.Fd()), Credential: &syscall.Credential{Uid: pluginUID, Gid: pluginUID},
		}
	}
	return cmd
}

// ask runs curl and waits for it.
func (e *env) ask(ctx context.Context, args ...string) (result, error) {
	return finish(e.curl(ctx, args...))
}

func finish(cmd *exec.Cmd) (result, error) {
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err := cmd.Run()
	if _, ok := errors.AsType[*exec.ExitError](err); ok {
		err = nil
	}
	return result{stdout.String(), stderr.String(), cmd.ProcessState.ExitCode()}, err
}

// process is a program that goes on.
type process struct {
	cmd    *exec.Cmd
	output output
	ended  chan struct{}
}

// output is what a process has printed so far.
type output struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.buf.Write(p)
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.buf.String()
}

func start(cmd *exec.Cmd) (*process, error) {
	p := &process{cmd: cmd, ended: make(chan struct{})}
	if cmd.Stdout == nil {
		cmd.Stdout = &p.output
	}
	cmd.Stderr = &p.output
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	go func() { _ = cmd.Wait(); close(p.ended) }() // how it ended is seen elsewhere
	return p, nil
}

// end ends a process gently, and soon.
func (p *process) end() {
	_ = p.cmd.Process.Signal(syscall.SIGTERM) // it may have ended
	select {
	case <-p.ended:
	case <-time.After(15 * time.Second):
		_ = p.cmd.Process.Kill()
		<-p.ended
	}
}
