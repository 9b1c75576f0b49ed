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
)

var (
	//go:embed sidecar.yaml.tmpl
	sidecarYAML string
	//go:embed grant.yaml.tmpl
	grantYAML string
)

const apiHost = "api.weather.example"

// pluginUID is nobody's in particular.
const pluginUID = 61999

// world is the real parts and the files of one demonstration.
type world struct {
	binary string
	dir    string
	root   bool // the kernel can hold the plugin
	vault  *testenv.Vault
	api    *testenv.Upstream
	envoy  *testenv.Envoy
	cgroup *os.File // of the plugin's programs; nil without root

	sidecar *process
	via     string // where a plugin asks that uses a proxy
}

func newWorld(ctx context.Context, binary string) (w *world, err error) {
	w = &world{root: testenv.Missing(testenv.Superuser(), testenv.CgroupV2(), testenv.BTF()) == nil}
	if w.binary, err = filepath.Abs(binary); err != nil {
		return w, err
	}
	if w.dir, err = os.MkdirTemp("", "chaperone-demo-"); err != nil {
		return w, err
	}
	if w.vault, err = testenv.StartVault(ctx, testenv.VaultConfig{}); err != nil {
		return w, err
	}
	if w.api, err = testenv.StartUpstream(ctx, testenv.UpstreamConfig{Names: []string{apiHost}}); err != nil {
		return w, err
	}
	if err := w.fillVault(ctx); err != nil {
		return w, err
	}
	if w.root {
		if err := w.makeCgroup(); err != nil {
			return w, err
		}
	} else if w.via, err = freeAddress(ctx); err != nil {
		return w, err
	}
	if err := w.writeFiles(); err != nil {
		return w, err
	}
	if err := w.startSidecar(ctx); err != nil {
		return w, err
	}
	return w, w.startEnvoy(ctx)
}

// Close ends every part and removes the files.
func (w *world) Close() error {
	var errs []error
	if w.sidecar != nil {
		w.sidecar.end()
	}
	if w.cgroup != nil {
		cmd := exec.CommandContext(context.Background(), w.binary, "detach", "--config", w.config(), "--kill")
		if out, err := cmd.CombinedOutput(); err != nil {
			errs = append(errs, fmt.Errorf("detach: %w: %s", err, out))
		}
		errs = append(errs, w.cgroup.Close(), removeCgroup(w.cgroup.Name()))
	}
	if w.envoy != nil {
		errs = append(errs, w.envoy.Close())
	}
	if w.api != nil {
		errs = append(errs, w.api.Close())
	}
	if w.vault != nil {
		errs = append(errs, w.vault.Close())
	}
	if w.dir != "" {
		errs = append(errs, os.RemoveAll(w.dir))
	}
	return errors.Join(errs...)
}

// makeCgroup makes the cgroup that the kernel half is put around.
func (w *world) makeCgroup() error {
	root, err := testenv.CgroupRoot()
	if err != nil {
		return err
	}
	dir, err := os.MkdirTemp(root, "chaperone-demo-")
	if err != nil {
		return err
	}
	w.cgroup, err = os.Open(dir)
	return err
}

// removeCgroup removes a cgroup as soon as what was killed in it is gone.
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

// freeAddress returns an address that nobody listens on now.
func freeAddress(ctx context.Context) (string, error) {
	l, err := new(net.ListenConfig).Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	return l.Addr().String(), l.Close()
}

// fillVault puts the API's token into Vault, and makes a login for the sidecar
// that may read it.
func (w *world) fillVault(ctx context.Context) error {
	if err := w.vault.PutSecret(ctx, "weather", map[string]any{"api_key": w.api.Token()}); err != nil {
		return err
	}
	login, err := w.vault.AppRole(ctx, "weather", testenv.AppRole{Policy: `path "secret/data/weather" { capabilities = ["read"] }`})
	if err != nil {
		return err
	}
	return errors.Join(
		os.WriteFile(filepath.Join(w.dir, "role-id"), []byte(login.RoleID), 0o600),
		os.WriteFile(filepath.Join(w.dir, "secret-id"), []byte(login.SecretID), 0o600))
}

func (w *world) writeFiles() error {
	values := map[string]any{
		"Host": apiHost, "Port": w.api.Addr.Port(), "Address": w.api.Addr.Addr(), "Vault": w.vault.Address, "Explicit": w.via,
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
		if err := os.WriteFile(filepath.Join(w.dir, name), out.Bytes(), 0o600); err != nil {
			return err
		}
	}
	return w.api.CA.WriteFile(filepath.Join(w.dir, "api-ca.pem"))
}

// startSidecar starts chaperone serve and returns when it is ready.
func (w *world) startSidecar(ctx context.Context) error {
	args := []string{"serve", "--config", w.config()}
	if w.root {
		args = append(args, "--cgroup", w.cgroup.Name())
	}
	w.tell(args)
	p, err := start(exec.CommandContext(ctx, w.binary, args...))
	if err != nil {
		return err
	}
	w.sidecar = p
	status, err := w.await(ctx, "the sidecar is ready", func(s status) bool { return s.Ready })
	if err != nil {
		return fmt.Errorf("%w\n%s", err, p.output.String())
	}
	for _, d := range status.Doors {
		if d.Name == "proxy" {
			w.via = d.Address
		}
	}
	return nil
}

// startEnvoy starts Envoy with what chaperone envoy bootstrap prints.
func (w *world) startEnvoy(ctx context.Context) error {
	bootstrap, err := w.chaperone(ctx, "envoy", "bootstrap", "--config", w.config())
	if err != nil {
		return err
	}
	if err := expect(bootstrap.status == 0, bootstrap, "there is no bootstrap"); err != nil {
		return err
	}
	say("$ envoy --config-path bootstrap.yaml")
	if w.envoy, err = testenv.StartEnvoy(ctx, testenv.EnvoyConfig{Bootstrap: bootstrap.stdout}); err != nil {
		return err
	}
	_, err = w.await(ctx, "Envoy has put in force what is granted", func(s status) bool {
		return len(s.Envoy.Connected) == 1 && s.Envoy.Connected[0].Current
	})
	return err
}

// status is what of chaperone status is looked at.
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
func (w *world) await(ctx context.Context, what string, is func(status) bool) (status, error) {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	for {
		var s status
		out, err := exec.CommandContext(ctx, w.binary, "status", "--config", w.config(), "--output", "json").Output()
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

// url is an address of the API as the plugin writes it: in plain http, of which
// Envoy makes TLS.
func (w *world) url(path string) string {
	return fmt.Sprintf("http://%s:%d%s", apiHost, w.api.Addr.Port(), path)
}

func (w *world) config() string { return filepath.Join(w.dir, "sidecar.yaml") }

// result is what a command did.
type result struct {
	stdout, stderr string
	status         int
}

func (w *world) tell(args []string) {
	say("$ chaperone %s", strings.ReplaceAll(strings.Join(args, " "), w.dir+"/", ""))
}

// chaperone runs a command of the program.
func (w *world) chaperone(ctx context.Context, args ...string) (result, error) {
	w.tell(args)
	return finish(exec.CommandContext(ctx, w.binary, args...))
}

// curl is the plugin: it runs curl where the plugin's programs run.
func (w *world) curl(ctx context.Context, args ...string) *exec.Cmd {
	say("plugin$ curl %s", strings.Join(args, " "))
	base := []string{"-sS", "-N", "-m", "60", "--noproxy", "*"}
	if !w.root {
		base = []string{"-sS", "-N", "-m", "60", "--proxy", "http://" + w.via}
	}
	cmd := exec.CommandContext(ctx, "curl", append(base, args...)...)
	if w.root {
		cmd.SysProcAttr = &syscall.SysProcAttr{
			UseCgroupFD: true, CgroupFD: int(w.cgroup.Fd()), Credential: &syscall.Credential{Uid: pluginUID, Gid: pluginUID},
		}
	}
	return cmd
}

// ask runs curl and waits for it.
func (w *world) ask(ctx context.Context, args ...string) (result, error) {
	return finish(w.curl(ctx, args...))
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
