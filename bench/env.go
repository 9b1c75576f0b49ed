package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/chaperone-proxy/chaperone/internal/testenv"
)

const (
	apiHost    = "api.weather.example"
	proxyToken = "a-token-of-the-benchmark"
)

// env is what the scenes share: an origin, the floor, a Vault, and the
// program under measurement with its files.
type env struct {
	binary string
	length time.Duration
	checks int  // of growthScene
	rivals bool // extauthzScene measures other engines
	dir    string
	ca     *testenv.CA
	vault  *testenv.Vault
	origin *process
	floor  *process
	sink   *process
}

func newEnv(ctx context.Context, binary string, length time.Duration) (w *env, err error) {
	w = &env{length: length}
	defer func() {
		if err != nil {
			err = errors.Join(err, w.Close())
		}
	}()
	if w.binary, err = filepath.Abs(binary); err != nil {
		return w, err
	}
	if w.dir, err = os.MkdirTemp("", "chaperone-bench-"); err != nil {
		return w, err
	}
	if err := w.certificates(); err != nil {
		return w, err
	}
	cert, key := w.file("cert.pem"), w.file("key.pem")
	if w.origin, err = startRole("origin", cert, key, ""); err != nil {
		return w, err
	}
	if w.floor, err = startRole("floor", w.file("cert.pem"), key, w.origin.address); err != nil {
		return w, err
	}
	if w.sink, err = startRole("sink", cert, key, ""); err != nil {
		return w, err
	}
	if w.vault, err = testenv.StartVault(ctx, testenv.VaultConfig{}); err != nil {
		return w, err
	}
	return w, w.configure(ctx)
}

func (w *env) file(name string) string { return filepath.Join(w.dir, name) }

// certificates writes a certificate for the origin and the floor, with its
// authority behind it in the same file.
func (w *env) certificates() (err error) {
	if w.ca, err = testenv.NewCA("bench"); err != nil {
		return err
	}
	pair, err := w.ca.Issue(apiHost, "localhost", "127.0.0.1")
	if err != nil {
		return err
	}
	if err := testenv.WritePair(pair, w.file("cert.pem"), w.file("key.pem")); err != nil {
		return err
	}
	f, err := os.OpenFile(w.file("cert.pem"), os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = f.Write(w.ca.PEM())
	return errors.Join(err, f.Close(), w.ca.WriteFile(w.file("ca.pem")))
}

// configure fills Vault and writes the sidecar's files.
func (w *env) configure(ctx context.Context) error {
	if _, err := w.vault.Write(ctx, "secret/data/weather", map[string]any{"data": map[string]any{"api_key": "s.the-key-of-the-benchmark"}}); err != nil {
		return err
	}
	login, err := w.vault.AppRole(ctx, "weather", testenv.AppRole{Policy: `path "secret/data/weather" { capabilities = ["read"] }`})
	if err != nil {
		return err
	}
	_, originPort, err := net.SplitHostPort(w.origin.address)
	if err != nil {
		return err
	}
	_, sinkPort, err := net.SplitHostPort(w.sink.address)
	if err != nil {
		return err
	}
	sidecar := fmt.Sprintf(`apiVersion: chaperone.dev/v1alpha1
kind: Sidecar
metadata: {name: weather}
spec:
  plugin: weather
  grants: [grant.yaml]
  stateDir: state
  kernel: "off"
  listen: {proxy: "127.0.0.1:0"}
  dns: {hosts: {%[1]s: [127.0.0.1], plain.weather.example: [127.0.0.1], sink.weather.example: [127.0.0.1]}}
  vault: {address: %[2]s, auth: {method: approle, roleIDFile: role-id, secretIDFile: secret-id}}
`, apiHost, w.vault.Address)
	grant := fmt.Sprintf(`apiVersion: chaperone.dev/v1alpha1
kind: PluginGrant
metadata: {name: weather}
spec:
  plugin: weather
  notAfter: %[4]s
  rules:
  - id: with-credential
    reason: benchmark
    to: {hosts: [%[1]s], ports: [%[2]s], addresses: [127.0.0.1/32], tls: {caFile: ca.pem}}
    methods: [GET]
    paths: ["/secret/*"]
    credential: key
  - id: without
    reason: benchmark
    to: {hosts: [%[1]s], ports: [%[2]s], addresses: [127.0.0.1/32], tls: {caFile: ca.pem}}
    methods: [GET]
    paths: ["/open/*"]
  - id: tunnels
    reason: benchmark
    to: {scheme: tcp, hosts: [sink.weather.example], ports: [%[3]s], addresses: [127.0.0.1/32]}
  credentials:
  - name: key
    vault: {path: secret/data/weather}
    inject: {header: Authorization, value: "Bearer {api_key}"}
`, apiHost, originPort, sinkPort, time.Now().Add(24*time.Hour).UTC().Format(time.RFC3339))
	return errors.Join(
		os.WriteFile(w.file("sidecar.yaml"), []byte(sidecar), 0o600), os.WriteFile(w.file("grant.yaml"), []byte(grant), 0o600),
		os.WriteFile(w.file("role-id"), []byte(login.RoleID), 0o600), os.WriteFile(w.file("secret-id"), []byte(login.SecretID), 0o600),
		os.WriteFile(w.file("proxy-token"), []byte(proxyToken), 0o600))
}

// Close ends every process and removes the files.
func (w *env) Close() error {
	var errs []error
	for _, p := range []*process{w.origin, w.floor, w.sink} {
		if p != nil {
			p.Close()
		}
	}
	if w.vault != nil {
		errs = append(errs, w.vault.Close())
	}
	if w.dir != "" {
		errs = append(errs, os.RemoveAll(w.dir))
	}
	return errors.Join(errs...)
}

// sidecar is the program under measurement, serving.
type sidecar struct {
	process
	stderr bytes.Buffer
	ready  time.Duration // from its start
}

// startSidecar starts chaperone serve and returns when it is ready.
func (w *env) startSidecar(ctx context.Context) (*sidecar, error) {
	return w.serve(ctx, anyCPU, w.file("sidecar.yaml"), w.file("state"))
}

// serve starts chaperone serve on a CPU, with a file and the state folder that
// the file names, and returns when it is ready.
func (w *env) serve(ctx context.Context, cpu int, file, state string, more ...string) (*sidecar, error) {
	s := &sidecar{}
	args := append([]string{"serve", "--config", file, "--proxy-token-file", w.file("proxy-token"), "--log-level", "warn"}, more...)
	s.cmd = exec.Command(w.binary, args...) //nolint:noctx // the program under measurement; ended by Close
	s.cmd.Stderr = &s.stderr
	s.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	started := time.Now()
	if err := startOn(cpu, s.cmd); err != nil {
		return nil, err
	}
	for time.Since(started) < 20*time.Second && ctx.Err() == nil {
		status, err := statusOf(state)
		if err == nil && status.Ready {
			s.ready = time.Since(started)
			s.address = status.door("proxy")
			return s, nil
		}
		time.Sleep(2 * time.Millisecond)
	}
	s.Close()
	return nil, fmt.Errorf("the sidecar did not become ready:\n%s", s.stderr.String())
}

// sidecarStatus is the part of the admin API's answer that is needed here.
type sidecarStatus struct {
	Ready bool `json:"ready"`
	Doors []struct {
		Name    string `json:"name"`
		Address string `json:"address"`
	} `json:"doors"`
	Process struct {
		PID    int    `json:"pid"`
		Cgroup string `json:"cgroup"`
	} `json:"process"` // of a plugin that was started
}

// door returns where a door listens, "" when it is closed.
func (s sidecarStatus) door(name string) string {
	for _, d := range s.Doors {
		if d.Name == name {
			return d.Address
		}
	}
	return ""
}

// status asks the admin socket of the sidecar that most scenes run.
func (w *env) status() (sidecarStatus, error) { return statusOf(w.file("state")) }

// statusOf asks the admin socket in a state folder.
func statusOf(state string) (out sidecarStatus, err error) {
	conn, err := net.DialTimeout("unix", filepath.Join(state, "admin.sock"), time.Second) //nolint:noctx // a socket of this machine
	if err != nil {
		return out, err
	}
	defer func() { _ = conn.Close() }()
	if _, err := fmt.Fprint(conn, "GET /v1/status HTTP/1.0\r\nHost: admin\r\n\r\n"); err != nil {
		return out, err
	}
	var answer bytes.Buffer
	if _, err := answer.ReadFrom(conn); err != nil {
		return out, err
	}
	_, body, _ := strings.Cut(answer.String(), "\r\n\r\n")
	return out, json.Unmarshal([]byte(body), &out)
}
