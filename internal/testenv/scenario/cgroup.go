package scenario

import (
	"errors"
	"os"
	"os/exec"
	"syscall"

	"github.com/chaperone-proxy/chaperone/internal/testenv"
)

// Cgroup is a cgroup for processes that are not children of the sidecar.
type Cgroup struct {
	Env *Env
	Dir string
}

// Cgroup makes a cgroup, which is removed when the test ends.
func (e *Env) Cgroup() *Cgroup {
	e.T.Helper()
	root := testenv.MustGet(testenv.CgroupRoot())(e.T)
	dir := testenv.MustGet(os.MkdirTemp(root, "chaperone-test-"))(e.T)
	e.T.Cleanup(func() {
		if err := os.Remove(dir); err != nil && !errors.Is(err, os.ErrNotExist) {
			e.T.Error(err)
		}
	})
	return &Cgroup{e, dir}
}

// Command is a program that starts in the cgroup, as an ordinary user.
func (g *Cgroup) Command(program ...string) *exec.Cmd {
	g.Env.T.Helper()
	dir := testenv.MustGet(os.Open(g.Dir))(g.Env.T)
	g.Env.T.Cleanup(func() { _ = dir.Close() })
	cmd := exec.Command(program[0], program[1:]...)
	cmd.Env = append(os.Environ(), "CURL_CA_BUNDLE=")
	cmd.SysProcAttr = &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: int(dir.Fd()), Credential: &syscall.Credential{Uid: 61999, Gid: 61999}}
	return cmd
}

// Protect starts serve --cgroup. When the test ends, it removes what the sidecar leaves
// on the cgroup.
func (g *Cgroup) Protect() *Process {
	g.Env.T.Helper()
	b := g.Env.StartCommand("serve", "--config", g.Env.File("sidecar.yaml"), "--cgroup", g.Dir)
	g.Env.T.Cleanup(func() {
		_ = b.Cmd.Process.Signal(syscall.SIGTERM) // it may have ended
		b.Wait()
		g.Env.Chaperone("detach", "--config", g.Env.File("sidecar.yaml"), "--kill")
	})
	return b
}
