package ebpf

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/chaperone-proxy/chaperone/ebpf/sandbox"
	"github.com/chaperone-proxy/chaperone/internal/runtimedir"
)

// steadyDir is a directory that only root can change, on the way as well.
func steadyDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("/run", "chaperone-test-") //nolint:usetesting // not below /tmp
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	return dir
}

// serveUnix answers on a Unix socket that everybody may connect to.
func serveUnix(t *testing.T, Network, path string) {
	t.Helper()
	if Network == "unixgram" {
		conn, err := net.ListenPacket(Network, path)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = conn.Close() })
	} else {
		listener, err := net.Listen(Network, path)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = listener.Close() })
		go func() {
			for {
				conn, err := listener.Accept()
				if err != nil {
					return
				}
				_ = conn.Close()
			}
		}()
	}
	if !strings.HasPrefix(path, "@") {
		if err := os.Chmod(path, 0o777); err != nil {
			t.Fatal(err)
		}
	}
}

func TestAllowedSockets(t *testing.T) {
	r := newHarness(t, nil)
	dir := steadyDir(t)
	stream, log, other := filepath.Join(dir, "s"), filepath.Join(dir, "log"), filepath.Join(dir, "other")
	serveUnix(t, "unix", stream)
	serveUnix(t, "unixgram", log)
	serveUnix(t, "unix", other)
	if err := os.Symlink(stream, filepath.Join(dir, "link")); err != nil {
		t.Fatal(err)
	}
	ask, end := converse(t, func(c sandbox.Command) (waiter, error) {
		c.Dir = dir
		return r.Start(c)
	})
	all := []string{stream, log}
	for _, step := range []struct {
		allow   []string
		attempt string
		want    string
	}{
		{nil, "unix " + stream, "EPERM"},
		{all, "unix " + stream, "ok"},
		{all, "unix-raw nul " + stream, "ok"},
		{all, "unix-raw bare " + stream, "ok"},
		{all, "unix-raw long " + stream, "ok"},
		{all, "unix-dgram " + log, "ok"},
		{all, "unix-send " + log, "ok"},
		{all, "unix-pair " + log, "ok"},
		{all, "unix " + other, "EPERM"},
		{all, "unix " + stream + "x", "EPERM"},
		{all, "unix s", "EPERM"},
		{all, "unix ./s", "EPERM"},
		{all, "unix " + dir + "/link", "EPERM"},
		{all, "unix " + dir + "//s", "EPERM"},
		{all, "unix " + dir + "/./s", "EPERM"},
		{all, "unix @" + stream, "ECONNREFUSED"},
		{all, "unix-own", "ok"},
		{[]string{log}, "unix " + stream, "EPERM"},
		{[]string{log}, "unix-send " + log, "ok"},
		{nil, "unix-send " + log, "EPERM"},
	} {
		if err := r.AllowSockets(step.allow); err != nil {
			t.Fatal(err)
		}
		if got := ask(step.attempt); got != step.want {
			t.Errorf("%s with %v ended with %s, want %s", step.attempt, step.allow, got, step.want)
		}
	}
	// Blocking refuses allowed names as well.
	if err := errors.Join(r.AllowSockets(all), r.Block(true)); err != nil {
		t.Fatal(err)
	}
	if got := ask("unix " + stream); got != "EPERM" {
		t.Errorf("with the plugin blocked: %s", got)
	}
	if err := r.Block(false); err != nil {
		t.Fatal(err)
	}
	before, err := r.Usage()
	if err != nil {
		t.Fatal(err)
	}
	ask("unix " + stream)
	if after, err := r.Usage(); err != nil || after.Refused != before.Refused {
		t.Errorf("an allowed use counts as refused: %d, %v", after.Refused-before.Refused, err)
	}
	end()
	allowed := 0
	for _, d := range r.seen() {
		if d.Cause == sandbox.CauseAllowed && d.Path != stream && d.Path != log {
			t.Errorf("allowed %+v", d)
		}
		if d.Cause == sandbox.CauseAllowed && d.PID != 0 && d.UID == uint32(r.user.UID) {
			allowed++
		}
	}
	if allowed < 2 {
		t.Errorf("%d uses were reported", allowed)
	}
}

// TestSocketLeaseEnds refuses a name when its lease is not renewed.
func TestSocketLeaseEnds(t *testing.T) {
	r := newHarness(t, nil)
	path := filepath.Join(steadyDir(t), "s")
	serveUnix(t, "unix", path)
	if err := r.AllowSockets([]string{path}); err != nil {
		t.Fatal(err)
	}
	key := unixSocketName{Length: uint32(len(path))}
	copy(key.Bytes[:], path)
	var now unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &now); err != nil {
		t.Fatal(err)
	}
	if err := r.programs.unix.Maps["sockets"].Put(key, uint64(now.Nano())); err != nil {
		t.Fatal(err)
	}
	ask, end := converse(t, func(c sandbox.Command) (waiter, error) { return r.Start(c) })
	if got := ask("unix " + path); got != "EPERM" {
		t.Errorf("after its time: %s", got)
	}
	r.recheckAllowlist()
	if got := ask("unix " + path); got != "ok" {
		t.Errorf("after the next look: %s", got)
	}
	end()
}

func TestUntrustedSockets(t *testing.T) {
	r := newHarness(t, nil)
	private := filepath.Join(steadyDir(t), "admin.sock")
	serveUnix(t, "unix", private)
	r.config.Private = []string{private}
	dir := steadyDir(t)
	made := func(name string, mode os.FileMode, uid int) string {
		path := filepath.Join(dir, name)
		if err := errors.Join(os.Mkdir(path, 0o700), os.Chown(path, uid, 0), os.Chmod(path, mode)); err != nil {
			t.Fatal(err)
		}
		return path + "/s"
	}
	if err := errors.Join(os.Symlink(dir, filepath.Join(dir, "link")), os.Symlink(private, filepath.Join(dir, "alias")),
		os.Link(private, filepath.Join(dir, "hard")), os.WriteFile(filepath.Join(dir, "file"), nil, 0o666)); err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]string{
		"":                                  "absolute",
		"s":                                 "absolute",
		"./s":                               "absolute",
		"/":                                 "empty part",
		dir + "//s":                         "empty part",
		dir + "/../s":                       "empty part",
		dir + "/s/":                         "empty part",
		dir + "/a\x00b":                     "zero byte",
		dir + "/" + strings.Repeat("x", 99): "longer",
		"/no/such/directory/s":              "inspect /no",
		dir + "/link/s":                     "is a link",
		dir + "/alias":                      "is a link",
		"/var/run/docker.sock":              "/var/run is a link; name its target: /run",
		dir + "/file":                       "not a socket",
		dir + "/file/s":                     "not a directory",
		"/tmp/s":                            "can be changed",
		made("group", 0o775, 0):             "can be changed",
		made("others", 0o757, 0):            "can be changed",
		made("sticky", 0o1777, 0):           "can be changed",
		made("plugin", 0o755, r.user.UID):   "belongs to uid",
		made("service", 0o755, 12345):       "belongs to uid",
		private:                             "the sidecar's own",
		dir + "/hard":                       "the sidecar's own",
		runtimedir.Default + "/admin":       "the sidecar's own",
		r.config.StateDir + "/admin.sock":   "can be changed", // it lies below /tmp
		"@host":                             "not in the plugin's own network",
	} {
		if err := r.AllowSockets([]string{path}); !strings.Contains(fmt.Sprint(err), want) {
			t.Errorf("%q: %v, want %q", path, err, want)
		}
		var key unixSocketName
		var until uint64
		if r.programs.unix.Maps["sockets"].Iterate().Next(&key, &until) {
			t.Errorf("%q is allowed", path)
		}
	}
	// One that is not good leaves the others.
	good := filepath.Join(dir, "absent")
	if err := r.AllowSockets([]string{"/tmp/s", good}); err == nil || r.allowlist.refused[good] != nil {
		t.Errorf("%v, %v", err, r.allowlist.refused)
	}
	if err := r.AllowSockets(make([]string, MaxSockets+1)); err == nil || len(r.allowlist.wanted) != 0 {
		t.Errorf("too many: %v, %v", err, r.allowlist.wanted)
	}
}

// TestSocketIsWatched refuses a socket while other users can write to its
// directory, and allows it again afterwards.
func TestSocketIsWatched(t *testing.T) {
	r := newHarness(t, nil)
	dir := steadyDir(t)
	path := filepath.Join(dir, "s")
	serveUnix(t, "unix", path)
	if err := r.AllowSockets([]string{path}); err != nil {
		t.Fatal(err)
	}
	ask, end := converse(t, func(c sandbox.Command) (waiter, error) { return r.Start(c) })
	if got := ask("unix " + path); got != "ok" {
		t.Fatal(got)
	}
	if err := os.Chmod(dir, 0o777); err != nil {
		t.Fatal(err)
	}
	r.recheckAllowlist()
	r.recheckAllowlist()
	if got := ask("unix " + path); got != "EPERM" {
		t.Errorf("in a directory that anybody can change: %s", got)
	}
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	r.recheckAllowlist()
	if got := ask("unix " + path); got != "ok" {
		t.Errorf("in a directory that is mended: %s", got)
	}
	end()
	reported := slices.DeleteFunc(r.seen(), func(d sandbox.Denial) bool { return d.Cause != sandbox.CauseUntrusted })
	if len(reported) != 1 || reported[0].Path != path {
		t.Errorf("reported %+v", reported)
	}
}

// A connection to a name ends when the name is removed, and not before.
func TestTakenSocketsAreCut(t *testing.T) {
	r := newHarness(t, nil)
	dir := steadyDir(t)
	path, other := filepath.Join(dir, "s"), filepath.Join(dir, "other")
	listener, err := net.Listen("unix", path) // accepted by nobody, and kept
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	if err := errors.Join(os.Chmod(path, 0o777), r.AllowSockets([]string{path, other})); err != nil {
		t.Fatal(err)
	}
	ask, end := converse(t, func(c sandbox.Command) (waiter, error) { return r.Start(c) })
	if got := ask("hold " + path); got != "ok" {
		t.Fatal(got)
	}
	if err := r.AllowSockets([]string{path}); err != nil {
		t.Fatal(err)
	}
	if got := ask("held"); got != "ok" {
		t.Errorf("when another name went: %s", got)
	}
	if err := r.AllowSockets(nil); err != nil {
		t.Fatal(err)
	}
	if got := ask("held"); got != "EPIPE" {
		t.Errorf("when its name went: %s", got)
	}
	end()
}

// smuggler keeps a connection in a message that it sends to itself.
const smuggler = `
import socket, sys, array, errno
near, far = socket.socketpair()
def put(path):
    s = socket.socket(socket.AF_UNIX); s.connect(path)
    near.sendmsg([b"x"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [s.fileno()]))]); s.close()
def take():
    global s
    s = socket.socket(fileno=array.array("i", far.recvmsg(1, socket.CMSG_SPACE(4))[1][0][2])[0])
def say(): s.send(b"x")
for line in sys.stdin:
    try: eval(line); answer = "ok"
    except OSError as e: answer = errno.errorcode.get(e.errno, str(e))
    print(answer, flush=True)
`

// A connection that lies in a message when its name is removed ends when it
// is taken out, and the plugin ends that never does.
func TestCutInFlight(t *testing.T) {
	for name, taken := range map[string]bool{"taken out": true, "kept": false} {
		t.Run(name, func(t *testing.T) {
			r := newHarness(t, nil)
			path := filepath.Join(steadyDir(t), "s")
			listener, err := net.Listen("unix", path)
			if err != nil {
				t.Fatal(err)
			}
			defer listener.Close()
			if err := errors.Join(os.Chmod(path, 0o777), r.AllowSockets([]string{path})); err != nil {
				t.Fatal(err)
			}
			ask, end := r.dialogue("python3", "python3", "-c", smuggler)
			defer end()
			if got := ask(`put("` + path + `")`); got != "ok" {
				t.Fatal(got)
			}
			if err := r.AllowSockets(nil); err != nil {
				t.Fatal(err)
			}
			if taken {
				if got := ask("take()"); got != "ok" {
					t.Fatal(got)
				}
				time.Sleep(checkInterval + checkInterval/5)
				if got := ask("say()"); got != "EPIPE" {
					t.Errorf("a second later: %s", got)
				}
				time.Sleep(2 * checkInterval)
				if got := ask("1"); got != "ok" {
					t.Error("the plugin ended nevertheless")
				}
				return
			}
			if err := r.group.AwaitEmpty(4 * checkInterval); err != nil {
				t.Error(err)
			}
			found := slices.ContainsFunc(r.seen(), func(d sandbox.Denial) bool { return d.Hook == sandbox.HookDescriptor && d.Path == path })
			if !found {
				t.Error("the end was not reported")
			}
		})
	}
}

// A use that cannot be recorded is refused, and one that can be is reported
// whatever else is.
func TestEveryUseIsRecorded(t *testing.T) {
	r := newHarness(t, func(c *Config) { c.Interval = time.Minute })
	path := filepath.Join(steadyDir(t), "s")
	serveUnix(t, "unix", path)
	if err := r.AllowSockets([]string{path}); err != nil {
		t.Fatal(err)
	}
	ask, end := converse(t, func(c sandbox.Command) (waiter, error) { return r.Start(c) })
	for i := range maxDistinct + 10 {
		ask(fmt.Sprintf("unix /refused/%d", i))
	}
	if got := ask("unix " + path); got != "ok" {
		t.Fatal(got)
	}
	reported := slices.ContainsFunc(r.seen(), func(d sandbox.Denial) bool { return d.Cause == sandbox.CauseAllowed && d.Path == path })
	if !reported {
		t.Error("a use behind many refusals was not reported")
	}
	got := "ok" // without a reader
	for i := 0; i < 5000 && got == "ok"; i++ {
		got = ask("unix " + path)
	}
	if got != "EPERM" {
		t.Errorf("unrecorded: %s", got)
	}
	end()
}

// With the host's network abstract names are the host's.
func TestAbstractSockets(t *testing.T) {
	r := newHarness(t, func(c *Config) { c.HostNetwork = true })
	name := fmt.Sprintf("@chaperone-test-%d", os.Getpid())
	serveUnix(t, "unix", name)
	serveUnix(t, "unix", name+"-other")
	ask, end := converse(t, func(c sandbox.Command) (waiter, error) { return r.Start(c) })
	if got := ask("unix " + name); got != "EPERM" {
		t.Errorf("before it was allowed: %s", got)
	}
	if err := r.AllowSockets([]string{name}); err != nil {
		t.Fatal(err)
	}
	for attempt, want := range map[string]string{
		"unix " + name: "ok", "unix " + name + "-other": "EPERM", "unix-raw nul " + name: "EPERM", "unix " + name[1:]: "EPERM",
	} {
		if got := ask(attempt); got != want {
			t.Errorf("%s ended with %s, want %s", attempt, got, want)
		}
	}
	end()
}

func TestSocketsOfOthersAreRefused(t *testing.T) {
	r := newHarness(t, func(c *Config) { c.User, c.UnsafeSameUser = "root", true })
	if err := r.AllowSockets([]string{"/run/s"}); err == nil {
		t.Error("allowed for root")
	}
	if err := r.AllowSockets(nil); err != nil {
		t.Error(err)
	}
	r.group.Own = false
	if err := r.AllowSockets([]string{"/run/s"}); err == nil {
		t.Error("allowed on a cgroup that was given")
	}
	r.group.Own = true
	r.seen() // ends what Close would pull the ground from under
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
	if err := r.AllowSockets(nil); !errors.Is(err, os.ErrClosed) {
		t.Error(err)
	}
}
