package proxy_test

import (
	"context"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"github.com/chaperone-proxy/chaperone/authz"
	"github.com/chaperone-proxy/chaperone/internal/testenv"
	"github.com/chaperone-proxy/chaperone/internal/unixsock"
	"github.com/chaperone-proxy/chaperone/proxy"
)

// stream opens an exit and starts an answer without an end.
func (w *world) stream(t *testing.T, api *testenv.Upstream, path, host string) io.Reader {
	t.Helper()
	c, err := w.leave(path).over(t, api.Pool(), host)
	testenv.Must(t, err)
	c.write("GET /stream HTTP/1.1\r\nHost: " + host + "\r\n\r\n")
	response, err := http.ReadResponse(c.in, nil)
	testenv.Must(t, err)
	t.Cleanup(func() { _ = response.Body.Close() })
	return response.Body
}

// TestExitEndsWithItsRule revokes rules while answers stream through egress sockets.
func TestExitEndsWithItsRule(t *testing.T) {
	api := upstream(t, testenv.UpstreamConfig{Authorize: func(*http.Request) bool { return true }})
	w := newWorld(t, setup{input: granted(rule(api, "first"), rule(api, "second"))})
	exits := w.exits()
	first := w.stream(t, api, exits["first api.weather.example"], "api.weather.example")
	also := w.stream(t, api, exits["first api.weather.example"], "api.weather.example")
	second := w.stream(t, api, exits["second api.weather.example"], "api.weather.example")
	if open := w.proxy.Open(); open != 3 {
		t.Fatalf("%d are open", open)
	}
	pause := authz.Revocation{ID: "p", Plugin: plugin, Level: authz.LevelPause}
	w.engine.Revoke(pause)
	if cut := w.proxy.Revalidate(); cut != 0 || w.proxy.Open() != 3 {
		t.Errorf("a pause cut %d, and %d are open", cut, w.proxy.Open())
	}
	if !w.leave(exits["second api.weather.example"]).gone() {
		t.Error("while it is paused a new connection leaves")
	}
	w.engine.Restore(pause.ID)
	w.engine.Revoke(authz.Revocation{ID: "r", Plugin: plugin, Rule: "first", Level: authz.LevelQuarantine})
	if cut := w.proxy.Revalidate(); cut != 2 {
		t.Errorf("%d were cut, not the two of the rule", cut)
	}
	// When Revalidate has returned no more data is forwarded, and none arrives beyond the
	// bytes in flight.
	for _, c := range []io.Reader{first, also} {
		if _, err := io.Copy(io.Discard, c); err == nil {
			t.Error("got a complete answer on a connection that was cut, want an error")
		}
	}
	testenv.Must(t, api.WaitStreams(t.Context(), 1)) // the upstream's side too
	if _, err := io.CopyN(io.Discard, second, 1<<20); err != nil {
		t.Errorf("the other rule's connection ended: %v", err)
	}
	if !w.leave(exits["first api.weather.example"]).gone() {
		t.Error("got a new connection for a revoked rule, want it refused")
	}
	w.engine.Revoke(quarantine)
	if cut := w.proxy.Revalidate(); cut != 1 {
		t.Errorf("%d were cut with the plugin", cut)
	}
	w.settled()
	var reasons []string
	for _, r := range w.records.of(authz.KindDecision) {
		reasons = append(reasons, string(r.Door)+" "+r.Reason)
	}
	if !slices.Equal(reasons, []string{"ext_authz revoked", "ext_authz revoked"}) {
		t.Errorf("recorded are %q", reasons)
	}
}

// TestExitsInAStorm revokes a rule repeatedly while connections are opened through its
// egress socket as fast as possible: when Revalidate has returned, their data is not
// forwarded.
func TestExitsInAStorm(t *testing.T) {
	var arrived, open atomic.Int64
	server := tcpServer(t, func(c net.Conn) {
		open.Add(1)
		defer open.Add(-1)
		for buf := make([]byte, 64); ; {
			n, err := c.Read(buf)
			arrived.Add(int64(n))
			if _, broken := c.Write(buf[:n]); err != nil || broken != nil {
				return
			}
		}
	})
	w := newWorld(t, setup{input: granted(tcpRule(server, authz.SchemeTCP, "127.0.0.1"))})
	path := w.exits()["tcp 127.0.0.1"]
	ctx, cancel := context.WithCancel(t.Context())
	var running sync.WaitGroup
	for range 16 {
		running.Go(func() {
			for ctx.Err() == nil {
				c, err := net.Dial("unix", path)
				if err != nil {
					continue
				}
				for range 20 {
					if _, err := c.Write([]byte("x")); err != nil {
						break
					}
					if _, err := c.Read(make([]byte, 1)); err != nil {
						break
					}
				}
				_ = c.Close()
			}
		})
	}
	for range 10 {
		before := arrived.Load()
		for late := testDeadline(); arrived.Load() < before+100 && !late(); {
		}
		w.engine.Revoke(authz.Revocation{ID: "r", Plugin: plugin, Rule: "tcp", Level: authz.LevelQuarantine})
		w.proxy.Revalidate()
		// Bytes that were sent before may be read late. The server has read them all
		// once each connection has ended and none was accepted for a while.
		after := arrived.Load()
		quiet := time.Now()
		for late := testDeadline(); time.Since(quiet) < 200*time.Millisecond && !late(); {
			if now := arrived.Load(); now != after || open.Load() > 0 {
				after, quiet = now, time.Now()
			}
		}
		time.Sleep(50 * time.Millisecond)
		if later := arrived.Load(); later != after || open.Load() > 0 || after == before {
			t.Errorf("got %d bytes after the revocation and %d before it, want none after and some before", later-after, after-before)
		}
		w.engine.Restore("r")
	}
	cancel()
	running.Wait()
	w.settled()
}

// TestExitEndsWithItsGrant ends a grant by its expiry, and by its absence from the next
// policy.
func TestExitEndsWithItsGrant(t *testing.T) {
	api := upstream(t, testenv.UpstreamConfig{Authorize: func(*http.Request) bool { return true }})
	input := granted(rule(api, "read"), rule(api, "gone"))
	input.Grants[0].NotAfter = time.Now().Add(1500 * time.Millisecond)
	w := newWorld(t, setup{input: input})
	exits := w.exits()
	read := w.stream(t, api, exits["read api.weather.example"], "api.weather.example")
	gone := w.stream(t, api, exits["gone api.weather.example"], "api.weather.example")
	next := granted(rule(api, "read"))
	next.Grants[0].NotAfter = input.Grants[0].NotAfter
	w.install(next)
	if w.proxy.Revalidate(); w.proxy.Open() > 1 {
		late := testDeadline()
		for w.proxy.Open() > 1 && !late() {
		}
	}
	if _, err := io.Copy(io.Discard, gone); err == nil {
		t.Error("got a complete answer for a grant that the policy removed, want an error")
	}
	ctx, cancel := context.WithCancel(t.Context())
	var running sync.WaitGroup
	running.Go(func() { testenv.Must(t, w.engine.Run(ctx, time.Now)) })
	if _, err := io.Copy(io.Discard, read); err == nil || time.Now().Before(input.Grants[0].NotAfter) {
		t.Errorf("it ended %s before its time, %v", time.Until(input.Grants[0].NotAfter), err)
	}
	w.settled()
	cancel()
	running.Wait()
}

// TestExitEndsWithAPartOfItsRule removes a part of a rule: only the Envoy sees which part
// the requests use, so the connection is cut. An addition cuts no connection.
func TestExitEndsWithAPartOfItsRule(t *testing.T) {
	api := upstream(t, testenv.UpstreamConfig{Authorize: func(*http.Request) bool { return true }})
	policy := func(paths ...string) authz.Input {
		r := rule(api, "read")
		r.Paths = paths
		return granted(r)
	}
	w := newWorld(t, setup{input: policy("/stream")})
	stream := w.stream(t, api, w.exits()["read api.weather.example"], "api.weather.example")
	w.install(policy("/stream", "/more"))
	if cut := w.proxy.Revalidate(); cut != 0 || w.proxy.Open() != 1 {
		t.Errorf("a path more cut %d, and %d are open", cut, w.proxy.Open())
	}
	// It may carry a request for the other path since.
	w.install(policy("/stream"))
	if w.proxy.Revalidate(); w.proxy.Open() != 0 {
		late := testDeadline()
		for w.proxy.Open() != 0 && !late() {
		}
	}
	if _, err := io.Copy(io.Discard, stream); err == nil || w.proxy.Open() != 0 {
		t.Errorf("a path less leaves %d open, %v", w.proxy.Open(), err)
	}
	w.settled()
}

// TestExitsAreReplaced checks that a route that stays keeps its path and its connections.
func TestExitsAreReplaced(t *testing.T) {
	server := tcpServer(t, greeter)
	first, second, third := tcpRule(server, authz.SchemeTCP, "127.0.0.1"), tcpRule(server, authz.SchemeTCP, "127.0.0.1"), tcpRule(server, authz.SchemeTCP, "127.0.0.1")
	first.ID, second.ID, third.ID = "first", "second", "third"
	w := newWorld(t, setup{input: granted(first, second, third)})
	all := w.engine.Current().Routes(plugin, time.Now())
	dir := w.exitDir()
	before, err := w.proxy.EgressSockets(dir, "", all[:2])
	testenv.Must(t, err)
	conns := []*rawConn{w.leave(before[0]), w.leave(before[1])}
	for _, c := range conns {
		if _, err := c.in.ReadString('\n'); err != nil {
			t.Fatal(err)
		}
	}

	t.Run("an error changes nothing", func(t *testing.T) {
		broken := all[2]
		broken.Rule = "fourth"
		paths, err := w.proxy.EgressSockets(dir, "", append(slices.Clone(all), broken))
		testenv.Must(t, err)
		inTheWay := paths[3]
		_, err = w.proxy.EgressSockets(dir, "", all[:2])
		testenv.Must(t, err)
		testenv.Must(t, os.Mkdir(inTheWay, 0o700))
		if _, err := w.proxy.EgressSockets(dir, "", append(slices.Clone(all), broken)); err == nil {
			t.Fatal("got no error for a directory in place of a socket")
		}
		testenv.Must(t, os.Remove(inTheWay))
		want := []string{filepath.Base(before[0]), filepath.Base(before[1])}
		slices.Sort(want)
		if got := listing(t, dir); !slices.Equal(got, want) {
			t.Errorf("in the folder are %q, not %q", got, want)
		}
		for _, other := range [][2]string{{dir + "x", ""}, {dir, "0"}} {
			if _, err := w.proxy.EgressSockets(other[0], other[1], all[:2]); err == nil {
				t.Errorf("the exits moved to %q", other)
			}
		}
	})

	after, err := w.proxy.EgressSockets(dir, "", []authz.Route{all[1], all[2], all[1]})
	testenv.Must(t, err)
	if after[0] != before[1] || after[2] != before[1] || after[1] == before[0] || len(listing(t, dir)) != 2 {
		t.Errorf("the paths are %q, were %q, and in the folder are %q", after, before, listing(t, dir))
	}
	for i, c := range conns { // also the one whose exit is closed: its rule stands
		c.write("ping\r\n")
		if line, err := c.in.ReadString('\n'); err != nil || line != "ping\r\n" {
			t.Errorf("connection %d: %q, %v", i, line, err)
		}
	}
	if _, err := new(net.Dialer).DialContext(t.Context(), "unix", before[0]); err == nil {
		t.Error("an exit that is gone takes connections")
	}
	if c := w.leave(after[1]); c.gone() {
		t.Error("a new exit takes none")
	}
	if _, err := w.proxy.EgressSockets(dir, "", nil); err != nil || len(listing(t, dir)) > 0 {
		t.Errorf("%v, and in the folder are %q", err, listing(t, dir))
	}
	w.stop()
	if _, err := w.proxy.EgressSockets(dir, "", all); err == nil {
		t.Error("a proxy that has ended makes exits")
	}
}

func listing(t *testing.T, dir string) []string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	testenv.Must(t, err)
	var out []string
	for _, e := range entries {
		if !strings.HasSuffix(e.Name(), unixsock.LockSuffix) {
			out = append(out, e.Name())
		}
	}
	return out
}

// TestExitLeadsNowhereElse rebinds a name that is granted for public addresses.
func TestExitLeadsNowhereElse(t *testing.T) {
	api := upstream(t, testenv.UpstreamConfig{})
	dns := testenv.MustDNS(t)
	public := rule(api, "public")
	public.To.Addresses = nil
	w := newWorld(t, setup{input: granted(public, rule(api, "forbidden", "other.weather.example")), config: func(c *proxy.Config) {
		c.Upstream.Servers, c.Upstream.Hosts = []netip.AddrPort{dns.Addr}, nil
		c.Upstream.Forbidden = func(netip.AddrPort) bool { return true }
	}})
	exits := w.exits()
	for _, test := range []struct {
		exit, address string
		want          authz.Reason
		detail        string
	}{
		{"public api.weather.example", "127.0.0.1", authz.AddressNotAllowed, "the address of the destination is 127.0.0.1"},
		{"public api.weather.example", "", authz.UpstreamUnreachable, "has no address"},
		{"forbidden other.weather.example", "127.0.0.1", authz.AddressNotAllowed, "belongs to the sidecar"},
	} {
		name := strings.Fields(test.exit)[1]
		if test.address != "" {
			dns.Set(name, netip.MustParseAddr(test.address))
		} else {
			dns.Set(name)
		}
		before := len(w.records.of(authz.KindDecision))
		for range 50 { // each is refused, and one a second is recorded
			if !w.leave(exits[test.exit]).gone() {
				t.Fatalf("got a connection from %s to %s, want it refused", test.exit, test.address)
			}
		}
		records := w.records.of(authz.KindDecision)[before:]
		if len(records) == 0 || len(records) > 5 {
			t.Fatalf("%s to %q: %d records", test.exit, test.address, len(records))
		}
		r := records[0]
		if r.Reason != test.want.String() || r.Allowed || r.Host != name || !strings.Contains(r.Detail, test.detail) || !strings.Contains(r.Detail, "weather/") {
			t.Errorf("%s to %q: recorded %+v", test.exit, test.address, r)
		}
	}
	if api.Total() > 0 {
		t.Error("the upstream was asked")
	}
	w.settled()
}

// TestExitIsForFew connects as other users.
func TestExitIsForFew(t *testing.T) {
	testenv.Require(t, testenv.Superuser()) // to become another user
	server := tcpServer(t, greeter)
	const nobody, group = 65534, 4711
	for _, test := range []struct {
		name         string
		group        string
		uid, gid     int
		groups       []uint32
		widen        bool // the modes are opened to all users
		want         bool
		mode, folder fs.FileMode
	}{
		{"root", "", 0, 0, nil, false, true, 0o600, 0o700},
		{"another user", "", nobody, nobody, nil, false, false, 0o600, 0o700},
		{"another user, modes widened", "", nobody, nobody, nil, true, false, 0o666, 0o777},
		{"of the group", "4711", nobody, group, nil, false, true, 0o660, 0o750},
		{"of the group besides", "4711", nobody, nobody, []uint32{1, group, 70000}, false, true, 0o660, 0o750},
		{"of other groups", "4711", nobody, nobody, []uint32{1, 4710}, false, false, 0o660, 0o750},
		{"of other groups, modes widened", "4711", nobody, nobody, manyGroups(300), true, false, 0o666, 0o777},
		{"of many groups", "4711", nobody, nobody, append(manyGroups(300), group), false, true, 0o660, 0o750},
	} {
		t.Run(test.name, func(t *testing.T) {
			w := newWorld(t, setup{input: granted(tcpRule(server, authz.SchemeTCP, "127.0.0.1"))})
			dir := w.exitDir()
			testenv.Must(t, os.Chmod(filepath.Dir(dir), 0o755))
			paths, err := w.proxy.EgressSockets(dir, test.group, w.engine.Current().Routes(plugin, time.Now()))
			testenv.Must(t, err)
			if test.widen {
				testenv.Must(t, os.Chmod(dir, 0o777))
				testenv.Must(t, os.Chmod(paths[0], 0o666))
			}
			if mode(t, paths[0]) != test.mode || mode(t, dir) != test.folder {
				t.Errorf("modes are %o and %o", mode(t, paths[0]), mode(t, dir))
			}
			var served bool
			as(t, test.uid, test.gid, test.groups, func() {
				c, err := net.DialTimeout("unix", paths[0], time.Minute)
				if err != nil {
					return
				}
				defer c.Close()
				_ = c.SetReadDeadline(time.Now().Add(time.Minute))
				n, _ := c.Read(make([]byte, 100))
				served = n > 0
			})
			if served != test.want {
				t.Errorf("served: %t", served)
			}
			w.settled()
		})
	}
}

func manyGroups(n int) (out []uint32) {
	for i := range n {
		out = append(out, uint32(100_000+i))
	}
	return out
}

func mode(t *testing.T, path string) fs.FileMode {
	t.Helper()
	info, err := os.Stat(path)
	testenv.Must(t, err)
	return info.Mode().Perm()
}

// as runs f on a thread of another user, which ends with it.
func as(t *testing.T, uid, gid int, groups []uint32, f func()) {
	t.Helper()
	failed := make(chan syscall.Errno)
	go func() {
		runtime.LockOSThread() // and never unlocked
		list := append(groups, 0)
		_, _, errno := syscall.RawSyscall(syscall.SYS_SETGROUPS, uintptr(len(groups)), uintptr(unsafe.Pointer(&list[0])), 0)
		if errno == 0 {
			_, _, errno = syscall.RawSyscall(syscall.SYS_SETRESGID, uintptr(gid), uintptr(gid), uintptr(gid))
		}
		if errno == 0 {
			_, _, errno = syscall.RawSyscall(syscall.SYS_SETRESUID, uintptr(uid), uintptr(uid), uintptr(uid))
		}
		if errno == 0 {
			f()
		}
		failed <- errno
	}()
	if errno := <-failed; errno != 0 {
		t.Fatal(errno)
	}
}

// TestExitsFolder checks that a directory that is not the sidecar's alone is not taken
// over.
func TestExitsFolder(t *testing.T) {
	server := tcpServer(t, greeter)
	exits := func(t *testing.T, dir, group string) ([]string, error) {
		w := newWorld(t, setup{input: granted(tcpRule(server, authz.SchemeTCP, "127.0.0.1"))})
		return w.proxy.EgressSockets(dir, group, w.engine.Current().Routes(plugin, time.Now()))
	}
	for name, prepare := range map[string]func(t *testing.T, dir string) (string, string){
		"relative":      func(*testing.T, string) (string, string) { return "exit", "" },
		"too long":      func(_ *testing.T, dir string) (string, string) { return dir + strings.Repeat("x", 80), "" },
		"no such group": func(_ *testing.T, dir string) (string, string) { return dir, "no such group" },
		"a link": func(t *testing.T, dir string) (string, string) {
			testenv.Must(t, os.Symlink(t.TempDir(), dir))
			return dir, ""
		},
		"a file": func(t *testing.T, dir string) (string, string) {
			testenv.Must(t, os.WriteFile(dir, nil, 0o600))
			return dir, ""
		},
		"another user's": func(t *testing.T, dir string) (string, string) {
			testenv.Require(t, testenv.Superuser()) // to give a folder away
			testenv.Must(t, os.Mkdir(dir, 0o700))
			testenv.Must(t, os.Chown(dir, 65534, 65534))
			return dir, ""
		},
		"below another user's": func(t *testing.T, dir string) (string, string) {
			testenv.Require(t, testenv.Superuser()) // to give a folder away
			testenv.Must(t, os.Chown(filepath.Dir(dir), 65534, 65534))
			return dir, ""
		},
		"served by another process": func(t *testing.T, dir string) (string, string) {
			testenv.Must(t, os.Mkdir(dir, 0o700))
			other, err := new(net.ListenConfig).Listen(t.Context(), "unix", filepath.Join(dir, "x.sock"))
			testenv.Must(t, err)
			t.Cleanup(func() { _ = other.Close() })
			return dir, ""
		},
	} {
		t.Run(name, func(t *testing.T) {
			dir, group := prepare(t, (&world{t: t}).exitDir())
			if paths, err := exits(t, dir, group); err == nil {
				t.Errorf("exits are made: %q", paths)
			}
		})
	}
	t.Run("left by a dead sidecar", func(t *testing.T) {
		dir := (&world{t: t}).exitDir()
		testenv.Must(t, os.Mkdir(dir, 0o777))
		for _, name := range []string{"a.sock", "b.sock"} {
			fd, err := syscall.Socket(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
			testenv.Must(t, err)
			testenv.Must(t, syscall.Bind(fd, &syscall.SockaddrUnix{Name: filepath.Join(dir, name)}))
			testenv.Must(t, syscall.Close(fd))
		}
		paths, err := exits(t, dir, "")
		if err != nil || !slices.Equal(listing(t, dir), []string{filepath.Base(paths[0])}) || mode(t, dir) != 0o700 {
			t.Errorf("%v; in the folder are %q", err, listing(t, dir))
		}
	})
}
