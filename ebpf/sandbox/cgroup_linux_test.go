package sandbox

import (
	"errors"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestHierarchy(t *testing.T) {
	const hybrid = "31 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw\n" +
		"40 31 0:37 / /sys/fs/cgroup/systemd rw,relatime - cgroup cgroup rw,name=systemd\n" +
		"41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw\n"
	for _, test := range []struct{ table, own, want string }{
		{hybrid, "9:name=systemd:/x\n0::/system.slice/a.service\n", "/sys/fs/cgroup/unified/system.slice/a.service"},
		{hybrid, "0::/\n", "/sys/fs/cgroup/unified"},
		{"30 1 0:26 / /sys/fs/cgroup rw shared:4 master:1 - cgroup2 cgroup2 rw\n", "0::/a b\n", "/sys/fs/cgroup/a b"},
		{"30 1 0:26 /docker/x /sys/fs/cgroup rw - cgroup2 cgroup rw\n", "0::/docker/x/y\n", "/sys/fs/cgroup/y"},
		{"30 1 0:26 / /mnt/a\\040b rw - cgroup2 cgroup rw\n", "0::/\n", "/mnt/a b"},
		{"30 1 0:26 /docker/x /sys/fs/cgroup rw - cgroup2 cgroup rw\n", "0::/elsewhere\n", ""},
		{hybrid, "0::/../outside\n", ""},
		// A container that mounted its own part beside the host's, and one that did not.
		{"41 31 0:38 /../.. /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n60 31 0:38 / /run/cg rw - cgroup2 none rw\n", "0::/\n", "/run/cg"},
		{"41 31 0:38 /../.. /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n", "0::/\n", ""},
		{hybrid, "0::/gone (deleted)\n", ""},
		{hybrid, "5:cpu:/\n", ""},
		{"31 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw\n", "0::/\n", ""},
		{"- cgroup2 ", "0::/\n", ""},
	} {
		got := ""
		h, err := parseHierarchy(test.table, test.own)
		if err == nil {
			got, err = h.parseOwnGroup(test.own)
		}
		if got != test.want || (err == nil) != (test.want != "") {
			t.Errorf("%q in %q is %q, %v; want %q", test.own, test.table, got, err, test.want)
		}
	}
}

func FuzzHierarchy(f *testing.F) {
	f.Add("41 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n", "0::/a\n")
	f.Add("30 1 0:26 /docker/x /s\\040\\ rw - cgroup2 cgroup rw", "0::/docker/x/..\n")
	f.Fuzz(func(t *testing.T, table, own string) {
		h, err := parseHierarchy(table, own)
		if err != nil {
			return
		}
		path, err := h.parseOwnGroup(own)
		if err == nil && strings.Contains(path, "..") && !strings.Contains(h.mount, "..") {
			t.Errorf("%q is outside", path)
		}
	})
}

// TestAwaitEmptySleeps waits while a process lives, after the file has changed: the
// wait costs no CPU time, which the processes that a kill ends need, and it ends
// with the process.
func TestAwaitEmptySleeps(t *testing.T) {
	needKernel(t)
	h, err := mountedHierarchy()
	if err != nil {
		t.Fatal(err)
	}
	group, err := MakeCgroup(h, "chaperone-test-await-"+strconv.Itoa(os.Getpid()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := errors.Join(group.Kill(), group.Remove(), group.Close()); err != nil {
			t.Error(err)
		}
	})
	cmd := exec.Command("sleep", "600")
	cmd.SysProcAttr = &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: int(group.Dir.Fd()), Pdeathsig: syscall.SIGKILL}
	// The parent of Pdeathsig is the thread.
	err = OnThread(func() (bool, error) {
		if err := cmd.Start(); err != nil {
			return true, err
		}
		const wait = 500 * time.Millisecond
		before := threadCPU()
		if err := group.AwaitEmpty(wait); err == nil {
			t.Error("a cgroup with a process is empty")
		}
		if cost := threadCPU() - before; cost > wait/10 {
			t.Errorf("a wait of %v took %v of CPU time", wait, cost)
		}
		if err := group.Kill(); err != nil {
			t.Error(err)
		}
		_ = cmd.Wait() // killed
		return true, nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// threadCPU is the CPU time of the calling thread.
func threadCPU() time.Duration {
	var spec unix.Timespec
	_ = unix.ClockGettime(unix.CLOCK_THREAD_CPUTIME_ID, &spec) // every Linux has it
	return time.Duration(spec.Nano())
}
