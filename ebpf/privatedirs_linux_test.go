package ebpf

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/chaperone-proxy/chaperone/ebpf/sandbox"
)

// viewRig is a confinement whose plugin has a view, and a conversation with the plugin.
func viewRig(t *testing.T, change func(*sandbox.Command)) (r *harness, ask func(string) string, end func() int) {
	t.Helper()
	r = newHarness(t, withView)
	if r.programs.unix == nil {
		if os.Getenv("CHAPERONE_REQUIRE") == "1" {
			t.Fatal("the kernel has no hooks for Unix sockets")
		}
		t.Skip("the kernel has no hooks for Unix sockets")
	}
	ask, end = converse(t, func(c sandbox.Command) (waiter, error) {
		c.Dir = "/"
		if change != nil {
			change(&c)
		}
		return r.Start(c)
	})
	return r, ask, end
}

// TestOwnSockets shows that the plugin reaches by path what it bound in its
// private directories, and nothing else.
func TestOwnSockets(t *testing.T) {
	host := t.TempDir() // below the host's /tmp; it stays visible in the view
	hosts := filepath.Join(host, "s")
	serveUnix(t, "unix", hosts)
	serveUnix(t, "unixgram", filepath.Join(host, "d"))
	for dir := host; dir != "/tmp"; dir = filepath.Dir(dir) {
		if err := os.Chmod(dir, 0o777); err != nil {
			t.Fatal(err)
		}
	}
	same := filepath.Join(os.TempDir(), fmt.Sprintf("chaperone-test-%d", os.Getpid()))
	serveUnix(t, "unix", same) // the plugin's /tmp has another socket of that name, later
	r, ask, end := viewRig(t, func(c *sandbox.Command) { c.Kept = []string{host} })
	defer end()
	user := r.Account()
	long := "/tmp/" + strings.Repeat("x", 95)
	deep := "/tmp/" + strings.Repeat("deep/", 17) // 90 bytes
	for _, step := range []struct{ attempt, want string }{
		{"own-serve stream /tmp/s", "ok"},
		{"own-reach stream /tmp/s", "ok"},
		{"own-reach seqpacket /tmp/s", "EPROTOTYPE"},
		{"own-serve seqpacket /tmp/q", "ok"},
		{"own-reach seqpacket /tmp/q", "ok"},
		{"own-serve dgram /dev/shm/d", "ok"},
		{"own-reach dgram /dev/shm/d", "ok"},
		{"own-reach sendto /dev/shm/d", "ok"},
		{"own-reach stream /tmp/none", "ENOENT"},
		{"own-serve stream /var/tmp/s", "ok"},
		{"own-reach stream /var/tmp/s", "ok"},
		{"own-serve stream " + user.RuntimeDir + "/s", "ok"},
		{"own-reach stream " + user.RuntimeDir + "/s", "ok"},
		{"own-reach stream /var" + user.RuntimeDir + "/s", "ok"},
		{"own-serve stream " + user.Home + "/s", "ok"},
		{"own-reach stream " + user.Home + "/s", "ok"},
		{"own-serve stream " + long, "ok"},
		{"own-reach stream " + long, "ok"},

		// How a name may be written.
		{"own-reach stream //tmp///s", "ok"},
		{"own-reach stream /./tmp/././s", "ok"},
		{"own-reach stream /tmp/s/", "ENOTDIR"},
		{"own-reach stream /tmp/s/.", "ENOTDIR"},
		{`own-raw 7 "/tmp/s"`, "ok"}, // bytes of path, the given text and zeros
		{`own-raw 6 "/tmp/s"`, "ok"},
		{`own-raw 108 "/tmp/s"`, "ok"},
		{`own-raw 108 "/tmp/s\x00/../../x"`, "ok"},
		{`own-raw 5 "/tmp/s"`, "ECONNREFUSED"}, // the directory,
		{`own-raw 4 "/tmp/s"`, "EPERM"},
		{`own-raw 0 "/tmp/s"`, "EINVAL"},
		{`own-raw -1 "/tmp/s"`, "EINVAL"},
		{`own-raw 109 "/tmp/s"`, "EINVAL"},
		{`own-raw 108 "/tmp/` + strings.Repeat("y", 103) + `"`, "EPERM"}, // its twin's path is too long
		{"own-reach stream /tmp/../tmp/s", "EPERM"},
		{"own-reach stream /tmp/a/../s", "EPERM"},
		{"own-reach stream /tmp/..", "EPERM"},
		{"own-reach stream /tmp", "EPERM"},
		{"own-reach stream /tmpx/s", "EPERM"},
		{"own-reach stream /proc/self/root/tmp/s", "EPERM"},
		{"own-reach stream /proc/self/cwd/tmp/s", "EPERM"},

		// Relative to the working directory, which may be long, moved or gone.
		{"own-reach stream tmp/s", "ok"},
		{"own-reach stream ./tmp//s", "ok"},
		{"own-reach stream s", "EPERM"},
		{"own-mkdir " + deep, "ok"},
		{"own-chdir " + deep, "ok"},
		{"own-serve stream r", "ok"},
		{"own-reach stream r", "ok"},
		{"own-reach stream ./r", "ok"},
		{"own-reach stream ../deep/r", "EPERM"},
		{"own-reach stream " + strings.Repeat("r", 20), "EPERM"},
		{"own-rename /tmp/deep /tmp/renamed", "ok"},
		{"own-reach stream r", "ok"},
		{"own-chdir /tmp", "ok"},
		{"own-reach stream s", "ok"},
		{"own-chdir " + host, "ok"},
		{"own-reach stream s", "EPERM"},
		{"own-reach sendto d", "EPERM"},
		{"own-chdir /", "ok"},

		// Sockets of the host's: by path, by link, renamed, linked.
		{"own-reach stream " + hosts, "EPERM"},
		{"own-reach sendto " + host + "/d", "EPERM"},
		{"own-reach stream " + same, "ENOENT"},
		{"own-serve stream " + same, "ok"},
		{"own-reach stream " + same, "ok"},
		{"own-symlink " + hosts + " /tmp/link", "ok"},
		{"own-reach stream /tmp/link", "ELOOP"},
		{"own-symlink " + host + " /tmp/dir", "ok"},
		{"own-reach stream /tmp/dir/s", "ELOOP"},
		{"own-symlink / /tmp/root", "ok"},
		{"own-reach stream /tmp/root/tmp/s", "ELOOP"},
		{"own-symlink /proc/self/root /tmp/magic", "ok"},
		{"own-reach stream /tmp/magic/tmp/s", "ELOOP"},
		{"own-link " + hosts + " /tmp/hard", "EXDEV"},
		{"own-link " + hosts + " /var/tmp/hard", "EXDEV"},
		{"own-rename " + hosts + " /var/tmp/moved", "EXDEV"},
		{"own-rename /tmp/s /tmp/old", "ok"},
		{"own-symlink " + hosts + " /tmp/s", "ok"},
		{"own-reach stream /tmp/s", "ELOOP"},
		{"own-reach stream /tmp/old", "ok"},
		{"own-chdir /tmp/dir", "ok"}, // follows the link to the host's folder
		{"own-reach stream s", "EPERM"},
		{"own-chdir /", "ok"},
		{"own-reach stream /run/systemd/notify", "ENOENT"},
		{"own-reach stream /run/.own/1/old", "ENOENT"},
		{"unix-own", "ok"}, // pairs and abstract names, as ever
	} {
		if got := ask(step.attempt); got != step.want {
			t.Errorf("%s ended with %s, want %s", step.attempt, got, step.want)
		}
	}
}

// TestOwnSocketsWhileShut shows that the plugin's own sockets stay reachable
// while the plugin is blocked, are no refusals, and are not reported.
func TestOwnSocketsWhileShut(t *testing.T) {
	r, ask, end := viewRig(t, nil)
	if got := ask("own-serve stream /tmp/old"); got != "ok" {
		t.Fatal(got)
	}
	if err := r.Block(true); err != nil {
		t.Fatal(err)
	}
	before, err := r.Usage()
	if err != nil {
		t.Fatal(err)
	}
	if got := ask("own-reach stream /tmp/old"); got != "ok" {
		t.Errorf("with the plugin blocked: %s", got)
	}
	if got := ask("unix-own"); got != "ok" {
		t.Errorf("abstract, with the plugin blocked: %s", got)
	}
	if got := ask("own-reach stream /usr/none"); got != "EPERM" {
		t.Errorf("elsewhere with the plugin blocked: %s", got)
	}
	after, err := r.Usage()
	if err != nil || after.Refused != before.Refused+1 {
		t.Errorf("refused %d, then %d, want one more; %v", before.Refused, after.Refused, err)
	}
	end()
	for _, d := range r.seen() {
		if d.Family == "unix" && d.Path != "/usr/none" {
			t.Errorf("reported %+v", d)
		}
	}
}

// twinOf is what the hooks are to do, in other words: the path that they write
// over a name, or false where they refuse it.
func twinOf(trees map[string]string, directory, name string) (string, bool) {
	name, _, _ = strings.Cut(name, "\x00")
	if name == "" {
		return "", false
	}
	if name[0] != '/' {
		name = directory + "/" + name
	}
	var parts []string
	given := strings.Split(name, "/")
	for i, part := range given {
		switch {
		case part == "..":
			return "", false
		case (part == "" || part == ".") && i < len(given)-1:
		default:
			parts = append(parts, part)
		}
	}
	clean, best := "/"+strings.Join(parts, "/"), ""
	for tree := range trees {
		if strings.HasPrefix(clean, tree+"/") && len(tree) > len(best) {
			best = tree
		}
	}
	if best == "" {
		return "", false
	}
	out := trees[best] + clean[len(best):]
	return out, len(clean) < 256 && len(out) < 108
}

// TestOwnSocketNames tries names that nobody would write.
func TestOwnSocketNames(t *testing.T) {
	r, ask, end := viewRig(t, nil)
	defer end()
	view, err := sandbox.NewView(sandbox.ViewConfig{User: &r.user, Account: r.Account(), StateDir: r.config.StateDir, Twins: true})
	if err != nil {
		t.Fatal(err)
	}
	shared := twins(view.Trees)
	bound := map[string]bool{}
	for _, name := range []string{"/tmp/s", "/tmp/a/s", "/tmp/a/b/s", "/var/tmp/s", "/dev/shm/a/s"} {
		if got := ask("own-mkdir " + filepath.Dir(name)); got != "ok" {
			t.Fatal(got)
		}
		if got := ask("own-serve stream " + name); got != "ok" {
			t.Fatal(got)
		}
		twin, _ := twinOf(shared, "/", name)
		bound[twin] = true
	}
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	parts := []string{"tmp", "a", "b", "s", "s", ".", "", "", "..", "var", "run", "dev", "shm", "tmpx", "...", ".s", "\x00", strings.Repeat("x", 90)}
	directory, reached := "/", 0
	for range 3000 {
		var given []string
		for range 1 + random.IntN(7) {
			given = append(given, parts[random.IntN(len(parts))])
		}
		name := strings.Join(given, "/")
		if random.IntN(2) == 0 {
			name = []string{"/tmp/", "/var/tmp/", "/dev/shm/", "//tmp/./"}[random.IntN(4)] + name
		}
		if name == "" || name[0] == 0 || len(name) > 108 {
			continue // unnamed, abstract, or refused by every kernel
		}
		if random.IntN(20) == 0 {
			directory = []string{"/", "/tmp", "/tmp/a", "/tmp/a/b", "/dev/shm/a", "/usr", "/var"}[random.IntN(7)]
			if got := ask("own-chdir " + directory); got != "ok" {
				t.Fatal(got)
			}
		}
		twin, ok := twinOf(shared, strings.TrimSuffix(directory, "/"), name)
		got := ask("own-raw " + strconv.Itoa(len(name)) + " " + strconv.Quote(name))
		switch {
		case !ok && got != "EPERM":
			t.Errorf("%q in %s ended with %s, want EPERM", name, directory, got)
		case ok && got == "EPERM":
			t.Errorf("%q in %s was refused, want %s", name, directory, twin)
		case ok && bound[twin] != (got == "ok"):
			t.Errorf("%q in %s ended with %s, and %s is bound: %t", name, directory, got, twin, bound[twin])
		}
		if got == "ok" {
			reached++
		}
	}
	if reached < 20 {
		t.Errorf("%d names reached a socket", reached)
	}
}

func TestTreeEntry(t *testing.T) {
	for _, test := range []struct{ directory, twin, want string }{
		{"/tmp", "/run/.own/1", ""},
		{"tmp", "/run/.own/1", "no clean"},
		{"/", "/run/.own/1", "no clean"},
		{"/tmp/", "/run/.own/1", "no clean"},
		{"/a/../tmp", "/run/.own/1", "no clean"},
		{"/" + strings.Repeat("x", 255), "/run/.own/1", "no clean"},
		{"/tmp", "run", "its twin"},
		{"/tmp", "/" + strings.Repeat("x", 32), "its twin"},
	} {
		_, _, err := treeEntry(test.directory, test.twin)
		if got := fmt.Sprint(err); (err == nil) != (test.want == "") || !strings.Contains(got, test.want) {
			t.Errorf("%s at %s: %v, want %q", test.directory, test.twin, err, test.want)
		}
	}
}

// TestUnixWithoutRewriting loads what a kernel gets that does not accept the
// rewriting of paths.
func TestUnixWithoutRewriting(t *testing.T) {
	needKernel(t)
	spec, err := loadUnix()
	if err == nil {
		err = spec.Variables["rewrites"].Set(uint32(0))
	}
	if err != nil {
		t.Fatal(err)
	}
	collection, err := ebpf.NewCollection(spec)
	if err != nil {
		t.Fatal(err)
	}
	collection.Close()
}

// TestServingUnix shows which sockets are reported before the plugin listens on
// them, and that listen(2) goes on.
func TestServingUnix(t *testing.T) {
	reported := make(chan sandbox.Listener, 10)
	r := newHarness(t, func(c *Config) {
		withView(c)
		c.Listen.Unix = func(l sandbox.Listener) { reported <- l }
	})
	ask, end := converse(t, func(c sandbox.Command) (waiter, error) {
		c.Dir = "/"
		return r.Start(c)
	})
	defer end()
	for _, step := range []struct{ attempt, want, path string }{
		{"own-serve stream /tmp/s", "ok", "/tmp/s"},
		{"own-serve seqpacket tmp/../tmp/q", "ok", "/tmp/q"},
		{"own-serve stream /var/tmp/s", "ok", "/var/tmp/s"},
		{"own-serve dgram /tmp/d", "ok", ""}, // no listen(2)
		{"own-symlink /tmp /tmp/link", "ok", ""},
		{"own-serve stream /tmp/link/l", "ok", "/tmp/l"},
		{"unix-own", "ok", ""}, // abstract
		{"own-listen 127.0.0.1:0", "ok", ""},
		{"own-listen-number 1000", "EBADF", ""},
		{"own-listen-number -1", "EBADF", ""},
		{"own-listen-number 0", "ENOTSOCK", ""},
	} {
		if got := ask(step.attempt); got != step.want {
			t.Errorf("%s ended with %s, want %s", step.attempt, got, step.want)
		}
		got := ""
		select {
		case l := <-reported:
			got = l.Path
			bound, err := r.Bound([]uint64{l.Socket, 1})
			if err != nil || !bound[l.Socket] || bound[1] {
				t.Errorf("%s: bound %v, %v", step.attempt, bound, err)
			}
			if err := l.File.Close(); err != nil {
				t.Error(err)
			}
		default:
		}
		if got != step.path {
			t.Errorf("%s was reported as %q, want %q", step.attempt, got, step.path)
		}
	}
}

// TestOwnSocketsElsewhere shows that the plugin reaches what it listens on in a
// directory that it shares with the host, and that no rename or link there leads
// it to the host's socket.
func TestOwnSocketsElsewhere(t *testing.T) {
	for name, dir := range map[string]string{"kept below /tmp": t.TempDir(), "not covered": sharedDir(t)} {
		t.Run(name, func(t *testing.T) {
			for at := dir; at != "/tmp" && at != "/srv"; at = filepath.Dir(at) {
				if err := os.Chmod(at, 0o777); err != nil {
					t.Fatal(err)
				}
			}
			hosts := filepath.Join(dir, "hosts")
			serveUnix(t, "unix", hosts)
			_, ask, end := viewRig(t, func(c *sandbox.Command) { c.Dir = dir })
			defer end()
			step := func(attempt, want string) {
				t.Helper()
				if got := ask(attempt); got != want {
					t.Errorf("%s ended with %s, want %s", attempt, got, want)
				}
			}
			step("own-serve stream "+dir+"/p", "ok")
			step("own-reach stream "+dir+"/p", "ok")
			step("own-reach stream "+dir+"//./p", "ok")
			step("own-reach stream p", "ok")
			step("own-reach stream "+dir+"/p2", "EPERM")
			step("own-reach stream hosts", "EPERM")
			step("own-reach stream "+hosts, "EPERM")
			step("own-serve seqpacket q", "ok")
			step("own-reach seqpacket "+dir+"/q", "ok")
			step("own-serve stream "+dir+"/../"+filepath.Base(dir)+"/r", "ok")
			step("own-reach stream r", "ok")
			step("own-mkdir sub", "ok")
			step("own-symlink sub link", "ok")
			step("own-serve stream link/l", "ok")
			step("own-reach stream sub/l", "ok")
			step("own-reach stream link/l", "ok")

			// The socket that takes the name later is not the one that is reached.
			step("own-rename p moved", "ok")
			step("own-symlink "+hosts+" p", "ok")
			step("own-reach stream "+dir+"/p", "ok")
			step("own-reach stream moved", "EPERM")
			step("own-remove p", "ok")
			step("own-rename hosts p", "ok")
			step("own-reach stream p", "ok")
			step("own-rename p hosts", "ok")
			step("own-remove link", "ok")
			step("own-symlink / link", "ok")
			step("own-reach stream link/l", "ok")
			step("own-serve dgram d", "ok") // without a listener
			step("own-reach sendto d", "EPERM")

			// A closed socket is forgotten, and its path is the next one's at once.
			step("own-close", "ok")
			step("own-reach stream p", "ECONNREFUSED")
			step("own-serve stream p", "ok")
			step("own-reach stream p", "ok")
			step("own-close", "ok")
			for deadline := time.Now().Add(patience); ask("own-reach stream p") != "EPERM"; time.Sleep(50 * time.Millisecond) {
				if time.Now().After(deadline) {
					t.Fatal("a closed socket is not forgotten")
				}
			}
			for i := range maxAliases {
				step(fmt.Sprintf("own-serve stream n%d", i), "ok")
			}
			step(fmt.Sprintf("own-reach stream n%d", maxAliases-1), "ok")
			step("own-serve stream more", "ok")
			step("own-reach stream more", "EPERM")
		})
	}
}

// sharedDir makes a directory that no private directory covers.
func sharedDir(t *testing.T) string {
	t.Helper()
	needKernel(t)
	dir, err := os.MkdirTemp("/srv", "chaperone-test-") //nolint:usetesting // not below /tmp
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir
}

// TestBoundReadsNoNames gives a socket a name that holds a line as /proc/net/unix has
// them: no other socket exists for it.
func TestBoundReadsNoNames(t *testing.T) {
	r := newHarness(t, nil)
	const forged = 4_000_000_001
	var fd int
	err := r.network.Do(func() (err error) {
		if fd, err = unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0); err != nil {
			return err
		}
		return unix.Bind(fd, &unix.SockaddrUnix{Name: fmt.Sprintf("@x\n0000000000000000: 00000002 00000000 00010000 0001 01 %d /x", forged)})
	})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = unix.Close(fd) }()
	var stat unix.Stat_t
	if err := unix.Fstat(fd, &stat); err != nil {
		t.Fatal(err)
	}
	bound, err := r.Bound([]uint64{forged, stat.Ino})
	if err != nil || bound[forged] || !bound[stat.Ino] {
		t.Errorf("%v, %v", bound, err)
	}
}
