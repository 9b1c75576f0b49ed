package ebpf

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/chaperone-proxy/chaperone/ebpf/sandbox"
	"github.com/chaperone-proxy/chaperone/ebpf/sandbox/launcher"
)

// shell runs a shell script in a confinement with a view.
func (r *harness) shell(script string, change ...func(*sandbox.Command)) result {
	r.t.Helper()
	user := r.Account()
	command := sandbox.Command{Args: []string{"sh", "-c", script}, Env: append(pluginEnv(), "HOME="+user.Home, "USER="+user.Name)}
	for _, f := range change {
		f(&command)
	}
	return r.command(command)
}

func withView(c *Config) { c.View = true }

func TestView(t *testing.T) {
	r := newHarness(t, withView)
	marker := filepath.Join(t.TempDir(), "marker") // below the host's /tmp
	if err := os.WriteFile(marker, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	id := r.Info().UID
	for _, test := range []struct{ name, script, want string }{
		{"process table", "test $(ls -d /proc/[0-9]* | wc -l) -le 6 && echo few", "few"}, // the first one, and the shell's
		{"first process is ours", "tr '\\0' ' ' </proc/1/cmdline", "chaperone-init"},
		{"and named", "cat /proc/1/comm", "chaperone-init"},
		{"temporary directory is its own", "ls " + marker + " 2>/dev/null || echo hidden", "hidden"},
		{"temporary directory is writable", "echo x >/tmp/x && cat /tmp/x", "x"},
		{"shared memory is its own", "ls /dev/shm | wc -l; echo x >/dev/shm/x && echo ok", "0\nok"},
		{"home", "cd && echo x >f && pwd", r.Account().Home},
		{"user name", "whoami", "test"},
		{"group name", "id -gn", "test"},
		{"runtime directory", "ls -ld /run/user/* | cut -c1-10", "drwx------"},
		{"nothing else in /run", "ls -A /run | tr '\\n' ' '", ".own home lock user"},
		{"terminals", "ls /dev/pts", "ptmx"},
		{"resolver", "cat /etc/resolv.conf", "nameserver 127.0.0.1\noptions ndots:1"},
		{"orphans are collected", "for i in 1 2 3; do (sh -c 'sleep 0.1 & exit 0'); done; sleep 0.5; grep -l 'State:.Z' /proc/[0-9]*/status | wc -l", "0"},
		{"signals do not end the first process", "sleep 0.3; for s in 1 2 3 6 10 12 13 14 15 20 23 34; do kill -$s 1; done; sleep 0.1; echo alive", "alive"},
		{"signals have their defaults", "sh -c 'kill -TERM $$'; echo $?; sh -c 'kill -USR1 $$'; echo $?", "143\n138"},
		{"status", "exit 37", ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			got := r.shell(test.script)
			if text := strings.TrimSpace(got.stdout); text != test.want {
				t.Errorf("got %q, want %q\n%s", text, test.want, got.stderr)
			}
			if test.name == "status" && got.status != 37 {
				t.Errorf("status %d, want 37", got.status)
			}
		})
	}
	if again := r.Info().UID; again != id {
		t.Errorf("uid %d became %d", id, again)
	}
}

// TestViewKeeps shows that named paths below covered directories stay visible,
// with what is written to them, and that a link that an earlier run left in a
// directory that outlives it leads root nowhere.
func TestViewKeeps(t *testing.T) {
	r := newHarness(t, withView)
	open := func(name string) string {
		dir := filepath.Join(t.TempDir(), name)
		if err := errors.Join(os.Mkdir(dir, 0o755), os.Chmod(dir, 0o777)); err != nil {
			t.Fatal(err)
		}
		return dir
	}
	kept, hidden := open("kept"), open("hidden")
	link := filepath.Join(filepath.Dir(kept), "link")
	if err := os.Symlink(kept, link); err != nil {
		t.Fatal(err)
	}
	keep := func(paths ...string) func(*sandbox.Command) {
		return func(c *sandbox.Command) { c.Kept = paths }
	}
	t.Run("a folder", func(t *testing.T) {
		r.ok(r.shell("echo x >"+kept+"/f && ! ls "+hidden, keep(kept)))
		if text, err := os.ReadFile(filepath.Join(kept, "f")); err != nil || string(text) != "x\n" {
			t.Errorf("the host has %q, %v", text, err)
		}
	})
	t.Run("a link and its target", func(t *testing.T) {
		r.ok(r.shell("cat "+link+"/f && cat "+kept+"/f", keep(link)))
	})
	t.Run("the working directory", func(t *testing.T) {
		got := r.ok(r.shell("pwd; ls", func(c *sandbox.Command) { c.Dir = kept }))
		if got != kept+"\nf" {
			t.Errorf("got %q", got)
		}
	})
	t.Run("a path that is gone is left out", func(t *testing.T) {
		r.ok(r.shell("! ls "+kept+"/none", keep(kept+"/none")))
	})
	t.Run("a link that was left in /var/tmp", func(t *testing.T) {
		host, err := os.MkdirTemp("/var/tmp", "chaperone-test-") //nolint:usetesting // the place is what is tested
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = os.RemoveAll(host) })
		if err := os.MkdirAll(filepath.Join(host, "made"), 0o755); err != nil {
			t.Fatal(err)
		}
		r.ok(r.shell("ln -s " + kept + " " + host))
		command := sandbox.Command{Args: []string{"true"}, Env: pluginEnv(), Kept: []string{filepath.Join(host, "made")}}
		if p, err := r.Start(command); err == nil {
			t.Error("the launcher took the plugin's link for a folder")
			_, _ = p.Wait()
		}
		if _, err := os.Lstat(filepath.Join(kept, "made")); err == nil {
			t.Error("the launcher followed the plugin's link")
		}
	})
}

// TestViewWithFiles shows which files a view leaves when they are limited.
func TestViewWithFiles(t *testing.T) {
	r := newHarness(t, withView)
	read, write, other := filepath.Join(t.TempDir(), "r"), t.TempDir(), filepath.Join(t.TempDir(), "o")
	for _, file := range []string{read, other} {
		if err := os.WriteFile(file, []byte("content\n"), 0o666); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(os.Chmod(write, 0o777), os.Chmod(read, 0o666), os.Chmod(other, 0o666)); err != nil {
		t.Fatal(err)
	}
	limited := func(c *sandbox.Command) {
		c.Files = &sandbox.Files{Read: []string{read}, Write: []string{write}}
		c.Kept = []string{other}
	}
	for _, test := range []struct {
		name, script string
		works        bool
	}{
		{"a named file", "cat " + read, true},
		{"a named file is not written", "echo x >>" + read, false},
		{"a named folder", "echo x >" + write + "/f", true},
		{"another file of the same folder", "cat " + other, false},
		{"another folder", "ls /root /var/log", false},
		{"/tmp", "mktemp", true},
		{"shared memory", "echo x >/dev/shm/x", true},
		{"the home", "echo x >$HOME/x", true},
		{"a child's own status", "sh -c 'cat /proc/self/status /proc/$$/maps' >/dev/null", true},
		{"the process table", "ls /proc >/dev/null && cat /proc/1/comm", true},
		{"a terminal", "python3 -c 'import pty; pty.openpty()'", true},
	} {
		t.Run(test.name, func(t *testing.T) {
			if got := r.shell(test.script, limited); (got.status == 0) != test.works {
				t.Errorf("status %d, works: %v\n%s%s", got.status, test.works, got.stdout, got.stderr)
			}
		})
	}
}

// TestViewTrust shows that programs which ask the system find the bundle, and see
// it replaced.
func TestViewTrust(t *testing.T) {
	dir := t.TempDir()
	bundle := filepath.Join(dir, "bundle.pem")
	replace := func(text string) {
		if err := errors.Join(os.WriteFile(bundle+".new", []byte(text), 0o644), os.Rename(bundle+".new", bundle), os.Chmod(dir, 0o755)); err != nil {
			t.Fatal(err)
		}
	}
	replace("first\n")
	r := newHarness(t, withView)
	read, write, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _, _ = read.Close(), write.Close() }()
	found := ""
	for _, path := range launcher.SystemBundles() {
		if _, err := os.Stat(path); err == nil {
			found = path
		}
	}
	if found == "" {
		t.Fatal("this system has no trust store")
	}
	others, err := os.ReadDir(filepath.Dir(found))
	if err != nil {
		t.Fatal(err)
	}
	done := r.start(&sandbox.Command{
		Args: []string{"sh", "-c", "cat " + found + "; ls " + filepath.Dir(found) + " | wc -l; read go; cat " + found},
		Env:  pluginEnv(), Stdin: read, TrustBundle: bundle,
	})
	time.Sleep(100 * time.Millisecond)
	replace("second\n")
	if _, err := write.WriteString("go\n"); err != nil {
		t.Fatal(err)
	}
	want := fmt.Sprintf("first\n%d\nsecond", len(others))
	if got := r.ok(done()); got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

// TestViewShowsSockets shows that a program reaches the sockets that its grants
// name below /run: those that are there when it starts, those that come later,
// and those that a reload adds.
func TestViewShowsSockets(t *testing.T) {
	r := newHarness(t, withView)
	serve := func(dir string) string {
		path := filepath.Join(dir, "s")
		l, err := net.Listen("unix", path)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = l.Close() })
		if err := os.Chmod(path, 0o777); err != nil {
			t.Fatal(err)
		}
		go func() {
			for {
				conn, err := l.Accept()
				if err != nil {
					return
				}
				_, _ = conn.Write([]byte("hello\n"))
				_ = conn.Close()
			}
		}()
		return path
	}
	folder := func() string {
		dir, err := os.MkdirTemp("/run", "chaperone-test-") //nolint:usetesting // the place is what is tested
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = os.RemoveAll(dir) })
		if err := os.Chmod(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		return dir
	}
	early, late := serve(folder()), folder()
	if err := r.AllowSockets([]string{early}); err != nil {
		t.Fatal(err)
	}
	const client = `
import socket, sys
for line in sys.stdin:
    s = socket.socket(socket.AF_UNIX)
    try: s.connect(line.strip()); print(s.recv(9).decode().strip(), flush=True)
    except OSError as e: print(type(e).__name__, flush=True)`
	stdin, ask, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	done := r.start(&sandbox.Command{Args: []string{"python3", "-c", client}, Stdin: stdin, Env: pluginEnv()})
	_ = stdin.Close()
	fmt.Fprintln(ask, early)
	fmt.Fprintln(ask, filepath.Join(late, "s"))
	time.Sleep(300 * time.Millisecond)
	added := serve(late)
	if err := r.AllowSockets([]string{early, added}); err != nil {
		t.Fatal(err)
	}
	fmt.Fprintln(ask, added)
	fmt.Fprintln(ask, early)
	_ = ask.Close()
	got := strings.Fields(r.ok(done()))
	if len(got) != 4 || got[0] != "hello" || got[1] == "hello" || got[2] != "hello" || got[3] != "hello" {
		t.Errorf("got %q", got)
	}
}
