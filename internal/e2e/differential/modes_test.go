package differential

import (
	"bufio"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	pkcs12 "software.sslmate.com/src/go-pkcs12"

	"github.com/chaperone-proxy/chaperone/internal/testenv"
	"github.com/chaperone-proxy/chaperone/internal/testenv/scenario"
	"github.com/chaperone-proxy/chaperone/internal/testenv/selfreplay"
)

// atOnce is how many clients run at a time: most wait.
const atOnce = 8

// job and outcome are what the runner takes and gives; see testdata/client.
type job struct {
	ID      string
	Args    []string
	Env     []string
	Direct  bool
	Kind    string
	Timeout time.Duration
}

type outcome struct {
	ID     string
	Fields map[string]string
	Stderr string
}

// runner is a running program that runs clients where it runs itself.
type runner struct {
	proxy bool // clients see the variables that name a proxy
	*process
}

type process struct {
	in   io.WriteCloser
	log  scenario.Buffer
	mu   sync.Mutex
	wait map[string]chan outcome
	err  error
}

// startRunner starts cmd, which becomes the runner.
func startRunner(t *testing.T, cmd *exec.Cmd) *process {
	t.Helper()
	p := &process{wait: map[string]chan outcome{}}
	p.in = testenv.MustGet(cmd.StdinPipe())(t)
	out := testenv.MustGet(cmd.StdoutPipe())(t)
	cmd.Stderr = &p.log
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGTERM}
	testenv.Must(t, cmd.Start())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		p.read(out)
		p.end(cmd.Wait())
	}()
	t.Cleanup(func() {
		p.in.Close()
		select {
		case <-ended:
		case <-time.After(30 * time.Second):
			t.Errorf("%s does not end", cmd.Path)
			_ = cmd.Process.Kill() // it may have ended
			<-ended
		}
		if t.Failed() {
			t.Logf("%s: %s", strings.Join(cmd.Args, " "), tail(p.log.String(), 20000))
		}
	})
	return p
}

func (p *process) read(out io.Reader) {
	lines := json.NewDecoder(bufio.NewReader(out))
	for {
		var o outcome
		if lines.Decode(&o) != nil {
			return
		}
		p.mu.Lock()
		if c := p.wait[o.ID]; c != nil {
			c <- o
			delete(p.wait, o.ID)
		}
		p.mu.Unlock()
	}
}

func (p *process) end(err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.err = errors.Join(errors.New("the runner has ended"), err)
	for id, c := range p.wait {
		c <- outcome{ID: id, Fields: map[string]string{"error": p.err.Error()}}
	}
	p.wait = nil
}

// run runs the clients of pairs, atOnce at a time, and returns what each saw.
func (r *runner) run(t *testing.T, mode string, pairs []pair, atOnce int) map[string]outcome {
	t.Helper()
	seen := map[string]outcome{}
	var (
		all  sync.WaitGroup
		mu   sync.Mutex
		gate = make(chan struct{}, atOnce)
	)
	for _, p := range pairs {
		gate <- struct{}{}
		all.Go(func() {
			o := r.one(p.job(mode, !r.proxy))
			mu.Lock()
			seen[p.name] = o
			mu.Unlock()
			<-gate
		})
	}
	all.Wait()
	return seen
}

func (p *process) one(j job) outcome {
	c := make(chan outcome, 1)
	p.mu.Lock()
	if p.err != nil {
		p.mu.Unlock()
		return outcome{ID: j.ID, Fields: map[string]string{"error": p.err.Error()}}
	}
	p.wait[j.ID] = c
	err := json.NewEncoder(p.in).Encode(j)
	p.mu.Unlock()
	if err != nil {
		return outcome{ID: j.ID, Fields: map[string]string{"error": err.Error()}}
	}
	return <-c
}

// startDirect starts a runner that reaches the origins by itself: their names are
// in its hosts file, and the system's bundle and the variables that chaperone run
// sets name their authority.
func startDirect(l *lab) map[string]*runner {
	l.write("hosts", "127.0.0.1 localhost\n"+l.hostLines())
	l.write("resolv.conf", "nameserver 127.0.0.1\n")
	bundle := testenv.MustGet(os.ReadFile("/etc/ssl/certs/ca-certificates.crt"))(l.t)
	l.write("bundle.pem", string(bundle)+string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: l.ca.Certificate.Raw})))
	store := testenv.MustGet(pkcs12.Modern.EncodeTrustStoreEntries([]pkcs12.TrustStoreEntry{{Cert: l.ca.Certificate, FriendlyName: "origin"}}, "changeit"))(l.t)
	l.write("truststore.p12", string(store))
	const set = `mount --bind "$1/hosts" /etc/hosts && mount --bind "$1/resolv.conf" /etc/resolv.conf && mount --bind "$1/bundle.pem" /etc/ssl/certs/ca-certificates.crt &&
shift && exec setpriv --reuid nobody --regid nogroup --clear-groups "$@"`
	cmd := command(l.t.Context(), "unshare", "--mount", "--propagation", "private", "/bin/sh", "-c", set, "sh", l.dir, filepath.Join(stage, "bin", "client"), "runner")
	cmd.Env = append(withoutProxy(cmd.Env), "TMPDIR=/tmp", "JAVA_TOOL_OPTIONS=-Djavax.net.ssl.trustStore="+l.file("truststore.p12")+" -Djavax.net.ssl.trustStorePassword=changeit")
	for _, name := range []string{"SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "NODE_EXTRA_CA_CERTS", "GIT_SSL_CAINFO"} {
		cmd.Env = append(cmd.Env, name+"="+l.file("bundle.pem"))
	}
	return map[string]*runner{direct: {process: startRunner(l.t, cmd)}}
}

func (l *lab) hostLines() string {
	var lines strings.Builder
	for line := range strings.Lines(l.names("%[2]s %[1]s\n")) {
		lines.WriteString(line)
	}
	return lines.String()
}

// withoutProxy drops what the machine itself has of a proxy.
func withoutProxy(env []string) []string {
	var kept []string
	for _, entry := range env {
		name, _, _ := strings.Cut(entry, "=")
		if !strings.HasSuffix(strings.ToUpper(name), "_PROXY") {
			kept = append(kept, entry)
		}
	}
	return kept
}

// sidecarFile is the configuration of a sidecar whose plugin is the runner.
func (l *lab) sidecarFile(name, more string) string {
	l.write("grant.yaml", l.grant())
	l.write(name+".yaml", fmt.Sprintf(`apiVersion: chaperone.dev/v1alpha1
kind: Sidecar
metadata: {name: %[1]s}
spec:
  plugin: pairs
  grants: [grant.yaml]
  stateDir: %[1]s-state
  kernel: required
  listen: {proxy: "127.0.0.1:0"}
  audit: {paths: full}
  drain: 2s
%[2]s  dns: {hosts: {%[3]s}}
`, name, more, strings.TrimSuffix(l.names("%[1]s: [%[2]s], "), ", ")))
	selfreplay.AtEnd(l.t, l.file(name+".yaml"))
	return l.file(name + ".yaml")
}

// plugin starts a runner as the plugin of a sidecar.
func (l *lab) plugin(config string) *process {
	cmd := command(l.t.Context(), filepath.Join(stage, "bin", "chaperone"), "run", "--config", config, "--", filepath.Join(stage, "bin", "client"), "runner")
	cmd.Env = append(withoutProxy(cmd.Env), "CHAPERONE_REGISTRY="+l.file("registry"), "TMPDIR=/tmp",
		"SSL_CERT_FILE="+l.file("origin-ca.pem")) // the plugin trusts the operator's authorities: tls is not terminated in between
	return startRunner(l.t, cmd)
}

func startSidecar(l *lab) map[string]*runner {
	p := l.plugin(l.sidecarFile("sidecar", ""))
	return map[string]*runner{"explicit": {true, p}, "transparent": {false, p}}
}

// startEnvoy starts a second sidecar, and the Envoy that it configures.
func startEnvoy(l *lab) map[string]*runner {
	// Not the test's own folder, whose name is long for the path of a socket.
	folder := testenv.MustGet(os.MkdirTemp("", "pairs-envoy-"))(l.t)
	l.t.Cleanup(func() { testenv.Must(l.t, os.RemoveAll(folder)) })
	config := l.sidecarFile("envoy", fmt.Sprintf("  envoy: {dir: %s, accessLog: \"off\"}\n", folder))
	p := l.plugin(config)
	chaperone := func(args ...string) ([]byte, error) {
		cmd := command(l.t.Context(), append([]string{filepath.Join(stage, "bin", "chaperone")}, args...)...)
		cmd.Env = append(cmd.Env, "CHAPERONE_REGISTRY="+l.file("registry"))
		return cmd.Output()
	}
	bootstrap := testenv.MustGet(chaperone("envoy", "bootstrap", "--config", config))(l.t)
	envoy := testenv.MustEnvoy(l.t, testenv.EnvoyConfig{Bootstrap: string(bootstrap)})
	l.t.Cleanup(func() {
		if l.t.Failed() {
			l.t.Logf("Envoy: %s", tail(envoy.Log(), 4000))
		}
	})
	eventually(l.t, "Envoy has the grants", func() error {
		text, err := chaperone("status", "--config", config, "--output", "json")
		var status struct {
			Envoy struct {
				Connected []struct{ Current bool }
			}
		}
		if err := errors.Join(err, json.Unmarshal(text, &status)); err != nil {
			return err
		}
		if len(status.Envoy.Connected) == 0 || !status.Envoy.Connected[0].Current {
			return fmt.Errorf("status: %s", text)
		}
		return nil
	})
	return map[string]*runner{"envoy": {true, p}, "envoy-transparent": {false, p}}
}
