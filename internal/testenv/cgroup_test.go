package testenv_test

import (
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"syscall"
	"testing"

	"github.com/chaperone-proxy/chaperone/internal/testenv"
)

func TestCgroupHoldsAndKills(t *testing.T) {
	testenv.Require(t, testenv.Superuser(), testenv.CgroupV2())
	group := testenv.MustGet(testenv.NewCgroup(t.Context()))(t)
	cmd := exec.Command("sleep", "1000")
	cmd.SysProcAttr = group.SysProcAttr()
	testenv.Must(t, cmd.Start())
	if pids := testenv.MustGet(group.PIDs())(t); !slices.Contains(pids, cmd.Process.Pid) {
		t.Errorf("the cgroup holds %v, not %d", pids, cmd.Process.Pid)
	}
	testenv.Must(t, os.Mkdir(filepath.Join(group.Path, "below"), 0o755))
	if id := testenv.MustGet(group.ID())(t); id == 0 {
		t.Error("the cgroup has no id")
	}
	testenv.Must(t, group.Close())
	var exit *exec.ExitError
	if err := cmd.Wait(); !errors.As(err, &exit) || exit.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL {
		t.Errorf("the child ended with %v, want SIGKILL", err)
	}
	if _, err := os.Stat(group.Path); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the cgroup is still there: %v", err)
	}
}

// recorder stands for a test: it remembers what Require did to it.
type recorder struct {
	testing.TB
	did string
}

func (r *recorder) Helper()               { r.TB.Helper() }
func (r *recorder) Skipf(string, ...any)  { r.first("skip") }
func (r *recorder) Fatalf(string, ...any) { r.first("fail") }

// first keeps what a real test would have ended with.
func (r *recorder) first(did string) {
	if r.did == "" {
		r.did = did
	}
}

func TestRequireSkipsOnlyWhereItMay(t *testing.T) {
	there, absent := testenv.Program("sh"), testenv.Program("no-such-program")
	for _, test := range []struct {
		needs   []testenv.Need
		require string
		want    string
	}{
		{[]testenv.Need{there}, "", ""},
		{[]testenv.Need{there}, "1", ""},
		{[]testenv.Need{there, absent}, "", "skip"},
		{[]testenv.Need{there, absent}, "0", "skip"},
		{[]testenv.Need{there, absent}, "1", "fail"},
	} {
		t.Setenv("CHAPERONE_REQUIRE", test.require)
		r := &recorder{TB: t}
		testenv.Require(r, test.needs...)
		if r.did != test.want {
			t.Errorf("with %d needs and CHAPERONE_REQUIRE=%q it did %q, want %q", len(test.needs), test.require, r.did, test.want)
		}
	}
}
