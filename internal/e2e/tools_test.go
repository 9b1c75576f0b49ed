package e2e

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/cgi"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/chaperone-proxy/chaperone/internal/testenv"
)

// script is the command line of a shell script of testdata.
func script(name string, args ...string) []string {
	return append([]string{"/bin/sh", staged("sh", name)}, args...)
}

// TestTools runs programs of the system as a plugin would.
func TestTools(t *testing.T) {
	for _, c := range []struct {
		script string
		needs  []testenv.Need
		args   func(e *env) []string
		want   []string
	}{
		{"make.sh", []testenv.Need{testenv.Program("gcc"), testenv.Program("make")}, nil, []string{"sum 10\n"}},
		{"gpg.sh", []testenv.Need{testenv.Program("gpg"), testenv.Program("gpg-agent")}, nil, []string{"verified\n", "agent\n"}},
		{"tmux.sh", []testenv.Need{testenv.Program("tmux")}, nil, []string{"read back\n"}},
		{
			"postgres.sh",
			[]testenv.Need{testenv.PostgreSQL()},
			func(e *env) []string { return []string{testenv.MustGet(testenv.PostgreSQLBin())(e.t)} },
			[]string{"unix: 42\n", "owner: me\n", "tcp: 42\n", "stopped\n"},
		},
		{
			"busybox.sh",
			[]testenv.Need{testenv.Program("busybox")},
			func(e *env) []string { return []string{originHost, e.origins.plain("/open/hello")} },
			[]string{"hello GET\n", "nslookup found it\n", "nslookup found nothing\n", "nc: served\n"},
		},
		{
			"chromium.sh",
			[]testenv.Need{testenv.Program("chromium"), testenv.Program("certutil")},
			func(e *env) []string { return []string{e.origins.secure("/open/page")} },
			[]string{"rendered: hello GET"},
		},
		{
			"git.sh",
			[]testenv.Need{testenv.Program("git")},
			func(e *env) []string { return []string{e.serveGit()} },
			[]string{"cloned by file: one\n", "cloned over http: served\n", "author An Origin\n"},
		},
	} {
		t.Run(strings.TrimSuffix(c.script, ".sh"), func(t *testing.T) {
			testenv.Require(t, c.needs...)
			e := newEnv(t, "{}")
			var args []string
			if c.args != nil {
				args = c.args(e)
			}
			e.prints(script(c.script, args...), c.want...)
		})
	}
}

// serveGit serves a repository over http by git's own CGI program and returns
// its granted address.
func (e *env) serveGit() string {
	e.t.Helper()
	root := e.t.TempDir()
	work := filepath.Join(root, "work")
	git := func(args ...string) string {
		cmd := exec.Command("git", args...)
		cmd.Env = append(os.Environ(), "GIT_CONFIG_GLOBAL=/dev/null",
			"GIT_AUTHOR_NAME=An Origin", "GIT_AUTHOR_EMAIL=origin@test.example", "GIT_COMMITTER_NAME=An Origin", "GIT_COMMITTER_EMAIL=origin@test.example")
		out, err := cmd.CombinedOutput()
		if err != nil {
			e.t.Fatalf("git %v: %v\n%s", args, err, out)
		}
		return strings.TrimSpace(string(out))
	}
	git("init", "-q", work)
	testenv.Must(e.t, os.WriteFile(filepath.Join(work, "file"), []byte("served\n"), 0o644))
	git("-C", work, "add", "file")
	git("-C", work, "commit", "-q", "-m", "Add a file")
	git("clone", "-q", "--bare", work, filepath.Join(root, "repo.git"))
	e.origins.mux.Handle("/open/git/", &cgi.Handler{
		Path: filepath.Join(git("--exec-path"), "git-http-backend"),
		Root: "/open/git",
		Env:  []string{"GIT_PROJECT_ROOT=" + root, "GIT_HTTP_EXPORT_ALL=1", "GIT_CONFIG_GLOBAL=/dev/null"},
	})
	return e.origins.plain("/open/git/repo.git")
}

// TestNginx serves the host by a port of process.listen, over connections that
// are kept, and logs to the standard streams.
func TestNginx(t *testing.T) {
	testenv.Require(t, testenv.Program("nginx"))
	port := testenv.FreePort(t)
	e := newEnv(t, fmt.Sprintf("{listen: [%d]}", port))
	b := e.start(script("nginx.sh", fmt.Sprint(port))...)
	e.answers(port)
	client := &http.Client{Timeout: time.Minute}
	for _, path := range []string{"/", "/", "/behind", "/missing"} {
		answer := testenv.MustGet(client.Get(fmt.Sprintf("http://127.0.0.1:%d%s", port, path)))(t)
		body := testenv.MustGet(io.ReadAll(answer.Body))(t)
		answer.Body.Close()
		if path == "/missing" {
			if answer.StatusCode != http.StatusNotFound {
				t.Errorf("%s: status %d", path, answer.StatusCode)
			}
			continue
		}
		if string(body) != "from nginx\n" {
			t.Errorf("%s: %d %q", path, answer.StatusCode, body)
		}
	}
	b.Stop()
	for _, part := range []string{`"GET /behind HTTP/1.1" 200`, "No such file"} { // the access log and the error log
		if !strings.Contains(b.Output.String(), part) {
			t.Errorf("%q is missing:\n%s", part, tail(b.Output.String()))
		}
	}
}

// TestSSH reaches a server on a granted host by the rule of a tcp destination.
func TestSSH(t *testing.T) {
	testenv.Require(t, testenv.Program("ssh"), testenv.Program("ssh-keygen"), testenv.Program("sshd"))
	e := newEnv(t, "{}")
	port := testenv.FreePort(t)
	key := e.serveSSH(port)
	e.rule(fmt.Sprintf(`  - id: ssh
    reason: Tests
    to: {scheme: tcp, hosts: [%s], ports: [%d], addresses: [127.0.0.1/32]}
`, originHost, port))
	e.prints(script("ssh.sh", originHost, fmt.Sprint(port), key, "root"), "OpenSSH\n", "whoami\n", "agent\n", "remote: 42\n")
}

// serveSSH runs a server that root may log in to with the key it returns.
func (e *env) serveSSH(port uint16) string {
	e.t.Helper()
	dir := e.t.TempDir()
	e.enterable(dir)
	key := filepath.Join(dir, "key")
	for _, name := range []string{"key", "host"} {
		e.build("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", filepath.Join(dir, name))
	}
	testenv.Must(e.t, os.Chmod(key, 0o644)) // the plugin copies it
	config := filepath.Join(dir, "sshd_config")
	testenv.Must(e.t, os.WriteFile(config, fmt.Appendf(nil, `ListenAddress 127.0.0.1:%d
HostKey %[2]s/host
AuthorizedKeysFile %[2]s/key.pub
PidFile none
StrictModes no
PermitRootLogin prohibit-password
PasswordAuthentication no
UsePAM no
`, port, dir), 0o644))
	testenv.Must(e.t, os.MkdirAll("/run/sshd", 0o755)) // its place for separated privileges
	path := testenv.MustGet(exec.LookPath("sshd"))(e.t)
	cmd := exec.Command(path, "-D", "-e", "-f", config)
	var log bytes.Buffer
	cmd.Stderr = &log
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	testenv.Must(e.t, cmd.Start())
	e.t.Cleanup(func() {
		_ = cmd.Process.Kill() // it may have ended
		_ = cmd.Wait()         // killed
		if e.t.Failed() {
			e.t.Logf("sshd: %s", log.String())
		}
	})
	e.answers(port)
	return key
}

// TestAlone checks that a plugin sees its own processes and memory and not the
// host's.
func TestAlone(t *testing.T) {
	testenv.Require(t, testenv.Program("ps"))
	e := newEnv(t, "{}")
	name := fmt.Sprintf("e2e-%d", os.Getpid())
	memory := "/dev/shm/" + name
	testenv.Must(t, os.WriteFile(memory, []byte("of the host"), 0o644))
	t.Cleanup(func() { testenv.Must(t, os.Remove(memory)) })
	// A process number that the plugin's own namespace does not reach.
	ctx, cancel := context.WithCancel(t.Context())
	other := exec.CommandContext(ctx, "sleep", "300")
	testenv.Must(t, other.Start())
	defer func() { cancel(); _ = other.Wait() }() // killed
	r := e.run(script("alone.sh", fmt.Sprint(other.Process.Pid), name)...)
	if want := "sees itself\nsees its children\nend\n"; r.stdout != want {
		t.Errorf("not %q: %v", want, r)
	}
}

// TestFilesOfProcess runs programs under process.files that names nothing of
// the system: what every program needs must be there.
func TestFilesOfProcess(t *testing.T) {
	const files = `{files: {read: [/usr, %q]}}`
	for _, c := range []struct {
		name    string
		needs   []testenv.Need
		program []string
		want    string
	}{
		{"ps", []testenv.Need{testenv.Program("ps")}, []string{"sh", "-c", "ps -o comm= -p $$"}, "sh\n"},
		{"a child's own proc", nil, []string{"sh", "-c", "sh -c 'head -n 1 /proc/self/status'"}, "Name:\thead\n"},
		{"git", []testenv.Need{testenv.Program("git")}, []string{"git", "config", "--list", "--show-origin"}, ""},
		{"script", []testenv.Need{testenv.Program("script")}, []string{"script", "-qec", "tty >/dev/null && echo terminal", "/dev/null"}, "terminal"},
		{"multiprocessing", nil, []string{systemPython, "-c", "import multiprocessing as m; print(m.get_context('fork').Pool(2).map(abs, [-1]))"}, "[1]\n"},
		{"temporary file", nil, []string{"sh", "-c", "f=$(mktemp) && echo x >$f && cat $f"}, "x\n"},
		{"home", nil, []string{"sh", "-c", "echo x >$HOME/f && cat $HOME/f"}, "x\n"},
		{"java", []testenv.Need{testenv.Program("java")}, []string{"java", "-XshowSettings:properties", "-version"}, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			testenv.Require(t, c.needs...)
			e := newEnv(t, fmt.Sprintf(files, stage))
			e.prints(c.program, c.want)
		})
	}
	t.Run("other files are refused", func(t *testing.T) {
		dir := t.TempDir()
		secret := filepath.Join(dir, "secret")
		testenv.Must(t, errors.Join(os.Chmod(filepath.Dir(dir), 0o755), os.WriteFile(secret, []byte("x"), 0o644)))
		e := newEnv(t, fmt.Sprintf(files, stage))
		if r := e.run("cat", secret); r.status == 0 {
			t.Error(r)
		}
	})
}
