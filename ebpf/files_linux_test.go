package ebpf

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/chaperone-proxy/chaperone/ebpf/sandbox"
	"github.com/chaperone-proxy/chaperone/ebpf/sandbox/launcher"
	"github.com/chaperone-proxy/chaperone/internal/runtimedir"
)

// fileAttempts are what a plugin may try with files.
func fileAttempts() map[string]func([]string) error {
	return map[string]func([]string) error{
		"read":     func(args []string) error { _, err := os.ReadFile(args[0]); return err },
		"list":     func(args []string) error { _, err := os.ReadDir(args[0]); return err },
		"write":    func(args []string) error { _, err := os.OpenFile(args[0], os.O_WRONLY, 0); return err },
		"make":     func(args []string) error { return os.WriteFile(args[0], nil, 0o600) },
		"mkdir":    func(args []string) error { return os.Mkdir(args[0], 0o700) },
		"link":     func(args []string) error { return os.Link(args[0], args[1]) },
		"symlink":  func(args []string) error { return os.Symlink(args[0], args[1]) },
		"move":     func(args []string) error { return os.Rename(args[0], args[1]) },
		"remove":   func(args []string) error { return os.Remove(args[0]) },
		"truncate": func(args []string) error { return os.Truncate(args[0], 0) },
		"run":      func(args []string) error { return exec.Command(args[0]).Run() },
		"through":  func(args []string) error { _, err := os.ReadFile("/proc/self/root" + args[0]); return err },
		"by-child": readAsChild,
		"hold":     hold,
		"held":     held,
	}
}

// hold connects to a Unix socket and stays connected, on descriptor 100.
func hold(args []string) error {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM, 0)
	if err != nil {
		return err
	}
	if err := unix.Connect(fd, &unix.SockaddrUnix{Name: args[0]}); err != nil {
		return err
	}
	return unix.Dup3(fd, 100, 0)
}

// held reports whether what hold holds is still connected.
func held([]string) error {
	_, err := unix.SendmsgN(100, []byte("x"), nil, nil, unix.MSG_NOSIGNAL)
	return err
}

// readAsChild reads by way of another process and its place in /proc.
func readAsChild(args []string) error {
	out, err := exec.Command("/bin/sh", "-c", "exec 3<.; cat "+args[0]+" 2>&1").CombinedOutput()
	if strings.Contains(string(out), "Permission denied") {
		return unix.EACCES
	}
	return err
}

// waiter is a started program of any kind.
type waiter interface{ Wait() (int, error) }

// converse starts the test binary as a plugin that makes the attempts it is
// asked for, one at a time.
func converse(t *testing.T, start func(sandbox.Command) (waiter, error)) (ask func(attempt string) string, end func() int) {
	t.Helper()
	stdin, toPlugin, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	fromPlugin, stdout, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	p, err := start(sandbox.Command{
		Path: "/proc/self/exe", Args: []string{pluginName, "tries"}, Env: pluginEnv(),
		Stdin: stdin, Stdout: stdout, Stderr: os.Stderr,
	})
	_, _ = stdin.Close(), stdout.Close()
	if err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewScanner(fromPlugin)
	ask = func(attempt string) string {
		t.Helper()
		fmt.Fprintln(toPlugin, attempt)
		if !lines.Scan() {
			t.Fatalf("the plugin ended: %v", lines.Err())
		}
		return lines.Text()
	}
	end = func() int {
		_ = toPlugin.Close()
		status, err := p.Wait()
		if err != nil {
			t.Error(err)
		}
		_ = fromPlugin.Close()
		return status
	}
	return ask, end
}

// filesTree is a tree that modes alone leave open.
func filesTree(t *testing.T, uid int) string {
	t.Helper()
	dir := publicDir(t)
	for _, name := range []string{"read", "write", "hidden"} {
		path := filepath.Join(dir, name)
		err := errors.Join(os.Mkdir(path, 0o755), os.WriteFile(filepath.Join(path, "x"), []byte("x"), 0o666), os.Chmod(filepath.Join(path, "x"), 0o666),
			os.WriteFile(filepath.Join(path, "script"), []byte("#!/bin/sh\n"), 0o755), os.Chown(path, uid, uid))
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink(filepath.Join(dir, "hidden/x"), filepath.Join(dir, "read/link")); err != nil {
		t.Fatal(err)
	}
	return dir
}

func TestFiles(t *testing.T) {
	if err := launcher.FilesSupported(); err != nil {
		skipUnsupported(t, err)
	}
	r := newHarness(t, nil)
	dir := filesTree(t, r.user.UID)
	files := &sandbox.Files{Read: []string{dir + "/read"}, Write: []string{dir + "/write"}}
	ask, end := converse(t, func(c sandbox.Command) (waiter, error) {
		c.Files = files
		return r.Start(c)
	})
	for _, test := range []struct{ attempt, want string }{
		{"read D/read/x", "ok"},
		{"list D/read", "ok"},
		{"run D/read/script", "ok"},
		{"write D/read/x", "EACCES"},
		{"make D/read/y", "EACCES"},
		{"truncate D/read/x", "EACCES"},
		{"remove D/read/x", "EACCES"},
		{"mkdir D/read/z", "EACCES"},
		{"symlink a D/read/s", "EACCES"},
		{"read D/write/x", "ok"},
		{"list D/write", "ok"},
		{"run D/write/script", "ok"},
		{"write D/write/x", "ok"},
		{"make D/write/y", "ok"},
		{"truncate D/write/x", "ok"},
		{"mkdir D/write/z", "ok"},
		{"symlink ../hidden/x D/write/s", "ok"},
		{"move D/write/y D/write/z/y", "ok"},
		{"remove D/write/z/y", "ok"},
		{"read D/write/s", "EACCES"},
		{"read D/read/link", "EACCES"},
		{"read D/hidden/x", "EACCES"},
		{"list D/hidden", "EACCES"},
		{"write D/hidden/x", "EACCES"},
		{"truncate D/hidden/x", "EACCES"},
		{"remove D/hidden/x", "EACCES"},
		{"make D/hidden/y", "EACCES"},
		{"run D/hidden/script", "EACCES"},
		{"link D/hidden/x D/write/h", "EXDEV"},
		{"move D/hidden/x D/write/h", "EACCES"},
		{"move D/write/x D/hidden/h", "EACCES"},
		{"through D/hidden/x", "EACCES"},
		{"by-child D/hidden/x", "EACCES"},
		{"list /", "EACCES"},
		{"list /etc", "EACCES"},
		{"list /proc", "EACCES"},
		{"read /proc/1/cmdline", "EACCES"},
		{"read /etc/hostname", "EACCES"},
		{"make /tmp/chaperone-files-test", "EACCES"},
		{"make /dev/shm/chaperone-files-test", "EACCES"},
		{"read /etc/hosts", "ok"},
		{"read /etc/resolv.conf", "ok"},
		{"read /proc/self/status", "ok"},
		{"read /proc/meminfo", "ok"},
		{"write /dev/null", "ok"},
		{"run /bin/true", "ok"},
		{"write /proc/sys/kernel/core_pattern", "EACCES"},
	} {
		if got := ask(strings.ReplaceAll(test.attempt, "D", dir)); got != test.want {
			t.Errorf("%s ended with %s, want %s", test.attempt, got, test.want)
		}
	}
	if status := end(); status != 0 {
		t.Errorf("status %d", status)
	}
}

// Programs of every kind start when no file is granted.
func TestFilesLeaveEnoughToStart(t *testing.T) {
	if err := launcher.FilesSupported(); err != nil {
		skipUnsupported(t, err)
	}
	r := newHarness(t, nil)
	script := filepath.Join(publicDir(t), "script")
	if err := os.WriteFile(script, []byte("#!/usr/bin/env sh\necho 42\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	for _, args := range [][]string{
		{"sh", "-c", "echo 42 2>/dev/null"},
		{"bash", "-c", "cat <(echo 42)"},
		{script},
		{"/usr/bin/python3", "-c", "import ssl, socket, json, subprocess; ssl.create_default_context(); print(42)"},
		{"/usr/bin/node", "-e", "console.log(42)"},
		{"/usr/bin/curl", "-sS", "-o", "/dev/null", "-w", "42", "file:///etc/hosts"},
		{"/usr/bin/java", "-XshowSettings:none", "-cp", "/", "-version"},
	} {
		t.Run(filepath.Base(args[0]), func(t *testing.T) {
			if _, err := exec.LookPath(args[0]); err != nil {
				skipUnsupported(t, err)
			}
			got := r.command(sandbox.Command{Args: args, Files: &sandbox.Files{}})
			if got.status != 0 || !strings.Contains(got.stdout, "42") && !strings.Contains(got.stderr, "ersion") {
				t.Errorf("%v ended with %d\n%s%s", args, got.status, got.stdout, got.stderr)
			}
		})
	}
	got := r.command(sandbox.Command{Args: []string{filepath.Join(filepath.Dir(script), "none")}, Files: &sandbox.Files{}})
	if got.status != 127 {
		t.Errorf("a program that is not there: %d %s", got.status, got.stderr)
	}
}

func TestFilesAreRefused(t *testing.T) {
	private := filepath.Join(publicDir(t), "private")
	secret := filepath.Join(private, "secret")
	if err := errors.Join(os.Mkdir(private, 0o700), os.WriteFile(secret, nil, 0o600)); err != nil {
		t.Fatal(err)
	}
	link := filepath.Join(publicDir(t), "link")
	if err := os.Symlink(private, link); err != nil {
		t.Fatal(err)
	}
	r := newHarness(t, func(c *Config) { c.Private = []string{secret} })
	for name, files := range map[string]*sandbox.Files{
		"itself":                  {Read: []string{secret}},
		"above it":                {Read: []string{private}},
		"everything":              {Read: []string{"/"}},
		"by a link":               {Write: []string{link}},
		"the state":               {Read: []string{r.config.StateDir}},
		"in the state":            {Write: []string{mkdir(t, r.config.StateDir, "sub")}},
		"the sidecars' directory": {Read: []string{runtimedir.Default}},
		"relative":                {Read: []string{"usr"}},
		"nothing there":           {Read: []string{"/no/such/file"}},
	} {
		if p, err := r.Start(sandbox.Command{Args: []string{"true"}, Files: files}); err == nil {
			_, _ = p.Wait()
			t.Errorf("%s: started", name)
		} else {
			t.Log(err)
		}
	}
	// An interpreter is the plugin's choice, too.
	script := filepath.Join(publicDir(t), "script")
	if err := errors.Join(os.WriteFile(script, []byte("#!"+secret+"\n"), 0o755), os.Chmod(secret, 0o755), os.Chmod(private, 0o755)); err != nil {
		t.Fatal(err)
	}
	if p, err := r.Start(sandbox.Command{Args: []string{script}, Files: &sandbox.Files{}}); err == nil {
		_, _ = p.Wait()
		t.Error("started with an interpreter that is private")
	}
}

func mkdir(t *testing.T, dir, name string) string {
	t.Helper()
	path := filepath.Join(dir, name)
	if err := os.Mkdir(path, 0o755); err != nil {
		t.Fatal(err)
	}
	return path
}

// A start is refused while the plugin's user could read the sidecar's files.
func TestPrivateIsUnreadable(t *testing.T) {
	dir := publicDir(t)
	file, folder := filepath.Join(dir, "secret-id"), mkdir(t, dir, "state")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		name  string
		apply func(uid int) error
		want  string
	}{
		{"nobody else's", func(int) error { return os.Chmod(folder, 0o700) }, ""},
		{"everyone's file", func(int) error { return os.Chmod(file, 0o604) }, "chmod 0600 " + file},
		{"everyone's to write", func(int) error { return os.Chmod(file, 0o602) }, "chmod 0600 " + file},
		{"the plugin's group's", func(gid int) error { return errors.Join(os.Chmod(file, 0o640), os.Chown(file, 0, gid)) }, "chmod 0600 " + file},
		{"a list's", func(uid int) error {
			err := errors.Join(os.Chown(file, 0, 0), os.Chmod(file, 0o600))
			// A POSIX access control list is not to be made without its tool here.
			if _, missing := exec.LookPath("setfacl"); missing == nil {
				err = errors.Join(err, exec.Command("setfacl", "-m", fmt.Sprintf("u:%d:r", uid), file).Run())
			} else {
				err = errors.Join(err, os.Chown(file, uid, 0))
			}
			return err
		}, "chmod 0600 " + file},
		{"everyone's directory", func(int) error {
			return errors.Join(os.Remove(file), os.WriteFile(file, nil, 0o600), os.Chmod(folder, 0o701))
		}, "chmod 0700 " + folder},
	} {
		t.Run(test.name, func(t *testing.T) {
			r := newHarness(t, func(c *Config) { c.Private = []string{file, folder, "/no/such/file"} })
			if err := test.apply(r.user.UID); err != nil {
				t.Fatal(err)
			}
			p, err := r.Start(sandbox.Command{Args: []string{"true"}})
			if err == nil {
				_, _ = p.Wait()
			}
			if got := fmt.Sprint(err); (err == nil) != (test.want == "") || !strings.Contains(got, test.want) {
				t.Errorf("got %v, want %q", err, test.want)
			}
		})
	}
	if err := os.Chmod(file, 0o644); err != nil {
		t.Fatal(err)
	}
	r := newHarness(t, func(c *Config) {
		c.Private, c.User, c.UnsafeSameUser = []string{file}, strconv.Itoa(os.Getuid()), true
	})
	r.ok(r.command(sandbox.Command{Args: []string{"true"}}))
}
