package main

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"github.com/chaperone-proxy/chaperone/configs"
	"github.com/chaperone-proxy/chaperone/ebpf"
	"github.com/chaperone-proxy/chaperone/internal/testenv"
)

func TestServiceOf(t *testing.T) {
	services := []configs.Service{{Port: 8080}, {Socket: "/tmp/plugin*"}, {Socket: "/tmp/*.sock"}, {Socket: "/tmp/exact"}}
	for path, want := range map[string]string{
		"/tmp/plugin":              "/tmp/plugin*",
		"/tmp/plugin123":           "/tmp/plugin*",
		"/tmp/a.sock":              "/tmp/*.sock",
		"/tmp/.sock":               "/tmp/*.sock",
		"/tmp/exact":               "/tmp/exact",
		"/tmp/exactly":             "",
		"/tmp/plugin/s":            "",
		"/tmp/d/plugin1":           "",
		"/var/tmp/plugin1":         "",
		"/tmp/plugi":               "",
		"/tmp/a.socket":            "",
		"/tmp/plugin1 (deleted)/x": "",
		"":                         "",
	} {
		got, ok := serviceOf(services, path)
		if got.Socket != want || ok != (want != "") {
			t.Errorf("%q: %q, %t, want %q", path, got.Socket, ok, want)
		}
	}
}

// TestListenOnHost shows where and how a socket is made on the host.
func TestListenOnHost(t *testing.T) {
	testenv.Require(t, testenv.Superuser())
	dir := t.TempDir()
	for at := dir; at != "/tmp"; at = filepath.Dir(at) {
		testenv.Must(t, os.Chmod(at, 0o755))
	}
	path := filepath.Join(dir, "s")
	t.Run("mode, owner and removal", func(t *testing.T) {
		t.Setenv("SUDO_UID", "4242")
		t.Setenv("SUDO_GID", "4343")
		l, remove, err := listenOnHost(path)
		testenv.Must(t, err)
		info := testenv.MustGet(os.Lstat(path))(t)
		stat := info.Sys().(*syscall.Stat_t)
		if info.Mode() != os.ModeSocket|0o600 || stat.Uid != 4242 || stat.Gid != 4343 {
			t.Errorf("mode %v, owner %d:%d", info.Mode(), stat.Uid, stat.Gid)
		}
		testenv.Must(t, l.Close())
		remove()
		if _, err := os.Lstat(path); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("it stays: %v", err)
		}
	})
	t.Run("what took its place stays", func(t *testing.T) {
		l, remove, err := listenOnHost(path)
		testenv.Must(t, err)
		defer l.Close()
		testenv.Must(t, errors.Join(os.Remove(path), os.WriteFile(path, nil, 0o600)))
		remove()
		testenv.Must(t, os.Remove(path))
	})
	t.Run("one that a killed sidecar left is replaced", func(t *testing.T) {
		left := testenv.MustGet(net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"}))(t)
		left.SetUnlinkOnClose(false)
		testenv.Must(t, left.Close())
		l, remove, err := listenOnHost(path)
		testenv.Must(t, err)
		testenv.Must(t, l.Close())
		remove()
	})
	for _, test := range []struct {
		name, path, want string
		make             func(path string) error
	}{
		{"in use", path, "is in use", func(path string) error {
			l, err := net.Listen("unix", path)
			if err == nil {
				t.Cleanup(func() { _ = l.Close() })
			}
			return err
		}},
		{"a file", filepath.Join(dir, "file"), "is not a socket", func(path string) error { return os.WriteFile(path, nil, 0o600) }},
		{"a link", filepath.Join(dir, "link"), "is not a socket", func(path string) error { return os.Symlink("/nowhere/s", path) }},
		{"another user's socket", filepath.Join(dir, "theirs"), "is not a socket of this user", func(path string) error {
			l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
			if err != nil {
				return err
			}
			l.SetUnlinkOnClose(false)
			return errors.Join(l.Close(), os.Lchown(path, 4242, 4242))
		}},
		{"another user's folder", filepath.Join(dir, "d", "s"), "belongs to uid 4242", func(path string) error {
			return errors.Join(os.Mkdir(filepath.Dir(path), 0o755), os.Chown(filepath.Dir(path), 4242, 4242))
		}},
		{"a folder for everybody", filepath.Join(dir, "open", "s"), "can be changed by others (mode 0777); make it 0755", func(path string) error {
			return errors.Join(os.Mkdir(filepath.Dir(path), 0o755), os.Chmod(filepath.Dir(path), 0o777))
		}},
		{"a link to a folder", filepath.Join(dir, "l", "s"), "is not a folder", func(path string) error { return os.Symlink("/etc", filepath.Dir(path)) }},
		{"no folder", filepath.Join(dir, "none", "s"), "inspect", func(string) error { return nil }},
		{"a control character", filepath.Join(dir, "\x1b[2J"), "cannot be printed", func(string) error { return nil }},
	} {
		t.Run(test.name, func(t *testing.T) {
			testenv.Must(t, test.make(test.path))
			if l, _, err := listenOnHost(test.path); err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("%v, %v, want %q", l, err, test.want)
			}
		})
	}
}

// socketServer is a plugin as go-plugin starts it: it makes a socket below its
// folder for temporary files, names it on stdout, and answers in capitals.
const socketServer = `
import os, socket, tempfile, time
def serve(prefix):
    path = tempfile.mktemp(prefix=prefix)
    s = socket.socket(socket.AF_UNIX)
    s.bind(path)
    s.listen()
    return path, s
hidden, _ = serve("other")
path, s = serve("plugin")
print(path, hidden, flush=True)
while True:
    conn, _ = s.accept()
    while data := conn.recv(100):
        if data == b"close":
            s.close()
            os.remove(path)
            time.sleep(60)
        conn.sendall(data.upper())
`

// printedSockets waits for the paths that the plugin prints.
func printedSockets(t *testing.T, p *background) (path, hidden string) {
	t.Helper()
	line := eventually(t, "the plugin names its sockets", func() (string, bool) {
		_, rest, found := strings.Cut("\n"+p.output.String(), "\n/tmp/plugin")
		line, _, whole := strings.Cut(rest, "\n")
		return "/tmp/plugin" + line, found && whole
	})
	path, hidden, _ = strings.Cut(line, " ")
	return path, hidden
}

func TestRunListenUnix(t *testing.T) {
	w := newWorld(t, "required", "")
	w.spec("  process: {listen: [\"unix:/tmp/plugin*\"]}\n")
	p := w.start("python3", "-c", socketServer)
	path, hidden := printedSockets(t, p)
	if _, err := os.Lstat(hidden); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a socket that process.listen does not name is on the host: %v", err)
	}
	if mode := testenv.MustGet(os.Lstat(path))(t).Mode(); mode != os.ModeSocket|0o600 {
		t.Errorf("mode %v", mode)
	}
	ask := func(conn net.Conn, text string) string {
		t.Helper()
		testenv.MustGet(io.WriteString(conn, text))(t)
		answer := make([]byte, 100)
		testenv.Must(t, conn.SetReadDeadline(time.Now().Add(10*time.Second)))
		n, err := conn.Read(answer)
		if err != nil {
			return err.Error()
		}
		return string(answer[:n])
	}
	conn := testenv.MustGet(net.Dial("unix", path))(t)
	defer conn.Close()
	if got := ask(conn, "hello"); got != "HELLO" {
		t.Errorf("answered %q", got)
	}
	service := w.ready().Process.Listen[0]
	if service.Path != "/tmp/plugin*" || !service.Forwarded || service.Open != 1 || fmt.Sprint(service.Addresses) != "[unix:"+path+"]" {
		t.Errorf("status: %+v", service)
	}
	contains(t, w.audit(), `"kind":"inbound"`)
	contains(t, w.audit(), fmt.Sprintf(`"path":%q,"pid":%d`, path, os.Getpid()))
	if r := w.revoke(); r.Cut != 1 || len(r.Failed) > 0 {
		t.Errorf("%+v", r)
	}
	cutOff(t, conn)
	if late, err := net.Dial("unix", path); err == nil {
		cutOff(t, late)
		_ = late.Close()
	}
	contains(t, w.audit(), `"detail":"cut: access was taken away"`)
}

// TestRunListenUnixEnds shows that the host's file goes with the plugin's socket.
func TestRunListenUnixEnds(t *testing.T) {
	w := newWorld(t, "required", "")
	w.spec("  process: {listen: [\"unix:/tmp/plugin*\"]}\n")
	p := w.start("python3", "-c", socketServer)
	path, _ := printedSockets(t, p)
	conn := testenv.MustGet(net.Dial("unix", path))(t)
	defer conn.Close()
	testenv.MustGet(io.WriteString(conn, "close"))(t)
	eventually(t, "the host's file is gone", func() (int, bool) {
		_, err := os.Lstat(path)
		return 0, errors.Is(err, os.ErrNotExist)
	})
}

// TestRunDirectUnix shows that a connection of the host's to a socket in a folder
// that the plugin shares is recorded, and cut with the rest.
func TestRunDirectUnix(t *testing.T) {
	w := newWorld(t, "required", "")
	dir := w.file("shared")
	testenv.Must(t, errors.Join(os.Mkdir(dir, 0o755), os.Chmod(dir, 0o777)))
	server := strings.Replace(socketServer, "tempfile.mktemp(prefix=prefix)", fmt.Sprintf("%q + prefix", dir+"/"), 1)
	p := w.start("python3", "-c", server)
	path := dir + "/plugin"
	eventually(t, "the plugin listens", func() (int, bool) { return 0, strings.Contains(p.output.String(), path) })
	dial := func() net.Conn {
		conn := testenv.MustGet(net.Dial("unix", path))(t)
		t.Cleanup(func() { _ = conn.Close() })
		return conn
	}
	conn := dial()
	testenv.MustGet(io.WriteString(conn, "hello"))(t)
	testenv.MustGet(io.ReadFull(conn, make([]byte, 5)))(t)
	began := fmt.Sprintf(`"scheme":"unix","path":%q,"pid":%d`, path, os.Getpid())
	eventually(t, "it is recorded", func() (int, bool) {
		return 0, strings.Contains(w.audit(), `"kind":"inbound"`) && strings.Contains(w.audit(), began)
	})
	if r := w.revoke(); r.Cut != 1 || len(r.Failed) > 0 {
		t.Errorf("%+v", r)
	}
	cutOff(t, conn)
	contains(t, w.audit(), `"detail":"cut: access was taken away"`)
	cutOff(t, dial()) // accepted, and cut at the next look
}

// TestListenAgain forwards one socket once, however often the plugin calls
// listen(2) on it.
func TestListenAgain(t *testing.T) {
	in := newInbound(nil)
	l := ebpf.Listener{Path: "/tmp/plugin", Socket: 7}
	if in.forwards(l) {
		t.Error("a new socket counts as forwarded")
	}
	testenv.Must(t, in.add(&unixDoor{plugin: l}))
	if !in.forwards(l) {
		t.Error("a socket that is forwarded counts as new")
	}
	if in.forwards(ebpf.Listener{Path: l.Path, Socket: 8}) {
		t.Error("another socket under the name counts as forwarded")
	}
}

// TestInboundLogIsBounded writes a message again and again, as a plugin can have it
// written.
func TestInboundLogIsBounded(t *testing.T) {
	core, logs := observer.New(zap.InfoLevel)
	log := sampled(zap.New(core))
	for range 100 {
		log.Error("unix socket not forwarded to the plugin")
	}
	if logs.Len() != 10 {
		t.Errorf("%d lines are written, want 10", logs.Len())
	}
}
