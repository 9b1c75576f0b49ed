package inbound

import (
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"go.uber.org/zap"

	"github.com/chaperone-proxy/chaperone/internal/testenv"
)

func TestServiceOf(t *testing.T) {
	services := []Service{{Port: 8080}, {Socket: "/tmp/plugin*"}, {Socket: "/tmp/*.sock"}, {Socket: "/tmp/exact"}}
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
	t.Run("a replacement stays", func(t *testing.T) {
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
		{"another user's socket", filepath.Join(dir, "theirs"), "is a socket of another user", func(path string) error {
			l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
			if err != nil {
				return err
			}
			l.SetUnlinkOnClose(false)
			return errors.Join(l.Close(), os.Lchown(path, 4242, 4242))
		}},
		{"another user's folder", filepath.Join(dir, "d", "s"), "can be replaced by uid 4242", func(path string) error {
			return errors.Join(os.Mkdir(filepath.Dir(path), 0o755), os.Chown(filepath.Dir(path), 4242, 4242))
		}},
		{"a folder for everybody", filepath.Join(dir, "open", "s"), "who may write to " + filepath.Join(dir, "open") + " (mode 0777)", func(path string) error {
			return errors.Join(os.Mkdir(filepath.Dir(path), 0o755), os.Chmod(filepath.Dir(path), 0o777))
		}},
		{"a link to a folder", filepath.Join(dir, "l", "s"), "is reached through a symbolic link", func(path string) error { return os.Symlink("/etc", filepath.Dir(path)) }},
		{"no folder", filepath.Join(dir, "none", "s"), "no such file", func(string) error { return nil }},
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

// TestListenAgain forwards one socket once, however often the plugin calls
// listen(2) on it.
func TestListenAgain(t *testing.T) {
	in := New(Config{Log: zap.NewNop()})
	l := PluginSocket{Path: "/tmp/plugin", Inode: 7}
	if in.forwards(l) {
		t.Error("a new socket counts as forwarded")
	}
	testenv.Must(t, in.add(&hostSocket{plugin: l}))
	if !in.forwards(l) {
		t.Error("a socket that is forwarded counts as new")
	}
	if in.forwards(PluginSocket{Path: l.Path, Inode: 8}) {
		t.Error("another socket under the name counts as forwarded")
	}
}
