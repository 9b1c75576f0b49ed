package ebpf

import (
	"encoding/binary"
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cilium/ebpf"

	"github.com/chaperone-proxy/chaperone/ebpf/sandbox"
)

// version makes a confinement as a version would whose table of connections has room
// for so many.
func version(t *testing.T, config Config, connections uint32) *Confinement {
	t.Helper()
	c, err := New(config)
	if err != nil {
		t.Fatal(err)
	}
	usual := c.programs
	c.programs, err = loadWallsOf(c, func(spec *ebpf.CollectionSpec) {
		if peers := spec.Maps["peers"]; peers != nil {
			peers.MaxEntries = connections
		}
	})
	if err = errors.Join(err, usual.close()); err != nil {
		t.Fatal(err)
	}
	if c.scan, err = newSocketScan(c); err != nil {
		t.Fatal(err)
	}
	return c
}

func loadWallsOf(c *Confinement, reshape func(*ebpf.CollectionSpec)) (*collection, error) {
	w := newCollection()
	w.reshape = reshape
	return w, w.load(c.pinDir, c.group, c.group.Own, c.config.CountSyscalls)
}

// counting is a listener on the loopback of a namespace, and how many reached it.
func counting(t *testing.T, n *sandbox.Network) (string, *atomic.Uint64) {
	t.Helper()
	var l net.Listener
	if err := n.Do(func() (err error) { l, err = net.Listen("tcp4", "127.0.0.1:0"); return err }); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	reached := new(atomic.Uint64)
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			reached.Add(1)
			_ = conn.Close()
		}
	}()
	return l.Addr().String(), reached
}

// While one version takes the place of another, back and forth, each with maps
// of its own shape, a plugin that never stops trying gets nowhere but to the
// sidecar, and no connection is lost from the count.
func TestUpgrade(t *testing.T) {
	group, path := given(t)
	n, err := sandbox.OpenNetwork(path)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = n.Close() }()
	stranger, reached := counting(t, n)
	config := Config{StateDir: t.TempDir(), CgroupPath: group.Path, NetworkPath: path}
	defer func() {
		if err := Detach(config.StateDir, true); err != nil {
			t.Error(err)
		}
	}()
	var before uint64
	serve := func(connections uint32, shut bool) (down func()) {
		c := version(t, config, connections)
		proxy, err := c.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		go func() {
			for {
				conn, err := proxy.Accept()
				if err != nil {
					return
				}
				c.Identify(conn)
				_ = conn.Close()
			}
		}()
		if err := errors.Join(c.Block(shut), c.Attach(Endpoints{Proxy4: tcpPort(proxy)})); err != nil {
			t.Fatal(err)
		}
		if got := c.programs.pinnedMaps["peers"].MaxEntries(); got != connections {
			t.Errorf("runs with room for %d connections, not %d", got, connections)
		}
		return func() {
			u, err := c.Usage()
			if err != nil || u.Connections < before {
				t.Errorf("counted %d connections after %d, %v", u.Connections, before, err)
			}
			before = u.Connections
			if err := errors.Join(proxy.Close(), c.Close()); err != nil {
				t.Error(err)
			}
		}
	}
	down := serve(16384, false)
	plugin, out := guestIn(t, n, group, "/proc/self/exe", "persist", stranger)
	time.Sleep(50 * time.Millisecond)
	for i := range 12 {
		down()
		time.Sleep(20 * time.Millisecond)
		down = serve([]uint32{4096, 16384}[i%2], i%3 == 2)
		time.Sleep(50 * time.Millisecond)
	}
	if err := group.Freeze(true); err != nil {
		t.Fatal(err)
	}
	time.Sleep(50 * time.Millisecond)
	down()
	_ = plugin.Process.Kill()
	if err := group.Freeze(false); err != nil {
		t.Fatal(err)
	}
	_ = plugin.Wait()
	if n := reached.Load(); n > 0 {
		t.Errorf("%d connections came through", n)
	}
	results := make(map[string]uint64)
	for line := range strings.Lines(out.String()) {
		results[strings.TrimSpace(line)]++
	}
	if results["ok"] == 0 || results["ECONNREFUSED"] == 0 || results["EPERM"] == 0 {
		t.Errorf("connects ended with %v", results)
	}
	var tried uint64
	for result, times := range results {
		if result != "EPERM" { // while the plugin was blocked, before there was a connection
			tried += times
		}
	}
	// The last one may have ended unreported.
	if before < tried || before > tried+1 {
		t.Errorf("counted %d connections, made %v", before, results)
	}
	if names, err := pinned(pinsOf(t, config.StateDir)); err != nil || len(names) == 0 {
		t.Errorf("pins %v, %v", names, err)
	} else {
		for _, name := range names {
			if strings.HasSuffix(name, pendingSuffix) {
				t.Errorf("%s is left", name)
			}
		}
	}
}

// pinsOf is where the confinement of a state directory pins.
func pinsOf(t *testing.T, state string) string {
	t.Helper()
	p, err := sandbox.FindPaths(state)
	if err != nil {
		t.Fatal(err)
	}
	dir, err := pinDir(p)
	if err != nil {
		t.Fatal(err)
	}
	return dir
}

// Values of counters of an older shape are carried over, once.
func TestCountersOfAnotherShape(t *testing.T) {
	group, path := given(t)
	config := Config{StateDir: t.TempDir(), CgroupPath: group.Path, NetworkPath: path}
	dir := pinsOf(t, config.StateDir)
	old, err := ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.PerCPUArray, KeySize: 4, ValueSize: 24, MaxEntries: 1})
	if err != nil {
		t.Fatal(err)
	}
	var value []byte
	for _, n := range []uint64{7, 5, 0} { // connections, refused, lost
		value = binary.NativeEndian.AppendUint64(value, n)
	}
	values := make([][]byte, ebpf.MustPossibleCPU())
	for i := range values {
		values[i] = value
	}
	if err := errors.Join(old.Put(zero, values), old.Pin(filepath.Join(dir, "counters")), old.Close()); err != nil {
		t.Fatal(err)
	}
	cpus := uint64(len(values))
	for range 3 {
		c, err := New(config)
		if err != nil {
			t.Fatal(err)
		}
		if err := c.Attach(Endpoints{}); err != nil {
			t.Fatal(err)
		}
		if u, err := c.Usage(); err != nil || u.Connections != 7*cpus || u.Refused != 5*cpus || u.SentBytes != 0 {
			t.Errorf("usage %+v, %v", u, err)
		}
		// As if killed: what is pinned stays.
		if err := errors.Join(c.programs.close(), c.group.Close(), c.network.Close(), c.stateLock.Release()); err != nil {
			t.Fatal(err)
		}
	}
	if err := Detach(config.StateDir, true); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(dir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("pins are left: %v", err)
	}
}
