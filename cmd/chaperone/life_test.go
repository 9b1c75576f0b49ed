package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"

	"github.com/chaperone-proxy/chaperone/internal/admin"
	"github.com/chaperone-proxy/chaperone/internal/testenv"
)

// group is a cgroup of the test's own, whose processes are nobody's children.
type group struct {
	w   *world
	dir string
}

func (w *world) group() *group {
	w.t.Helper()
	root := testenv.MustGet(testenv.CgroupRoot())(w.t)
	dir := testenv.MustGet(os.MkdirTemp(root, "chaperone-test-"))(w.t)
	w.t.Cleanup(func() {
		if err := os.Remove(dir); err != nil && !errors.Is(err, os.ErrNotExist) {
			w.t.Error(err)
		}
	})
	return &group{w, dir}
}

// command is a program that starts in the cgroup, as an ordinary user.
func (g *group) command(program ...string) *exec.Cmd {
	g.w.t.Helper()
	dir := testenv.MustGet(os.Open(g.dir))(g.w.t)
	g.w.t.Cleanup(func() { _ = dir.Close() })
	cmd := exec.Command(program[0], program[1:]...)
	cmd.Env = append(os.Environ(), "CURL_CA_BUNDLE=")
	cmd.SysProcAttr = &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: int(dir.Fd()), Credential: &syscall.Credential{Uid: 61999, Gid: 61999}}
	return cmd
}

// protect starts serve --cgroup. The test removes what it leaves on the cgroup.
func (g *group) protect() *background {
	g.w.t.Helper()
	b := g.w.startCommand("serve", "--config", g.w.file("sidecar.yaml"), "--cgroup", g.dir)
	g.w.t.Cleanup(func() {
		_ = b.cmd.Process.Signal(syscall.SIGTERM) // it may have ended
		b.wait()
		g.w.chaperone("detach", "--config", g.w.file("sidecar.yaml"), "--kill")
	})
	return b
}

// TestServeRestart kills the sidecar of a plugin that goes on: nothing passes
// until another takes over, and usage in between is charged once.
func TestServeRestart(t *testing.T) {
	w := newWorld(t, "required", "  limits: {connections: 1000000}\n")
	g := w.group()
	b := g.protect()
	w.ready()
	out := new(lockedBuffer)
	loop := g.command("sh", "-c", fmt.Sprintf(
		`while :; do curl -sS -k -m 5 --noproxy '*' -o /dev/null -w '%%{http_code}\n' %s 2>/dev/null || echo refused; sleep 0.05; done`, w.url("/v1/forecast")))
	loop.Stdout = out
	testenv.Must(t, loop.Start())
	stop := func() { _ = loop.Process.Kill(); _ = loop.Wait() }
	defer stop()
	passed := func() int { return strings.Count(out.String(), "200") }
	eventually(t, "a request has passed", func() (int, bool) { return 0, passed() > 2 })

	testenv.Must(t, b.cmd.Process.Kill())
	b.wait()
	total, refused := w.api.Total(), strings.Count(out.String(), "refused")
	eventually(t, "it is refused, again and again", func() (int, bool) { return 0, strings.Count(out.String(), "refused") > refused+5 })
	if w.api.Total() != total {
		t.Error("the API was reached while no sidecar lived")
	}

	g.protect()
	w.ready()
	before := passed()
	eventually(t, "requests pass again", func() (int, bool) { return 0, passed() > before+2 })
	stop()
	usage := eventually(t, "usage charged once", func() (admin.Usage, bool) {
		u, err := admin.Dial(w.file("state/admin.sock")).Usage(t.Context())
		return u, err == nil && u.Counters != nil && u.Counters.Connections > 0 && u.Limits[0].Used >= u.Counters.Connections
	})
	if used, counted := usage.Limits[0].Used, usage.Counters.Connections; used != counted {
		t.Errorf("%d connections are charged, and the kernel counted %d", used, counted)
	}
}

// TestServeSevered removes the cgroup under its sidecar and makes another in
// its place, which is not taken for protected.
func TestServeSevered(t *testing.T) {
	w := newWorld(t, "required", "")
	g := w.group()
	b := g.protect()
	w.ready()
	testenv.Must(t, os.Remove(g.dir))
	testenv.Must(t, os.Mkdir(g.dir, 0o755))
	if status := b.wait(); status != exitFailure {
		t.Errorf("status %d, not %d", status, exitFailure)
	}
	contains(t, b.output.String(), "no longer on the cgroup")
}
