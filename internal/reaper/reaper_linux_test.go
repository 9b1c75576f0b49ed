package reaper

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// adopting makes this process a child subreaper while the test runs.
func adopting(t *testing.T) {
	t.Helper()
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0); err != nil {
			t.Error(err)
		}
	})
}

// running runs a Reaper until the test ends.
func running(t *testing.T) *Reaper {
	t.Helper()
	r := New()
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- r.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	return r
}

// start starts a shell by way of a Reaper.
func start(r *Reaper, script string) (*exec.Cmd, error) {
	command := exec.Command("sh", "-c", script)
	_, err := r.Start(func() (*os.Process, error) {
		err := command.Start()
		return command.Process, err
	})
	return command, err
}

// zombies counts the children of this process that have ended and were not
// waited for.
func zombies(t *testing.T) (n int) {
	t.Helper()
	all, err := children()
	if err != nil {
		t.Fatal(err)
	}
	for _, pid := range all {
		stat, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
		if err == nil && strings.HasPrefix(string(stat[strings.LastIndexByte(string(stat), ')')+1:]), " Z") {
			n++
		}
	}
	return n
}

// left counts the children of this process, running or ended. A test that
// leaves one behind would give the next test a zombie that it did not expect.
func left(t *testing.T) int {
	t.Helper()
	all, err := children()
	if err != nil {
		t.Fatal(err)
	}
	return len(all)
}

func eventually(t *testing.T, what string, holds func() bool) {
	t.Helper()
	for deadline := time.Now().Add(2 * time.Minute); !holds(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("waited in vain for %s", what)
		}
	}
}

// TestStatusesAreKept: each child that was started here keeps its own exit
// status, however many orphans are collected beside it.
func TestStatusesAreKept(t *testing.T) {
	adopting(t)
	r := running(t)
	var all sync.WaitGroup
	for status := range 60 {
		all.Go(func() {
			for range 5 {
				command, err := start(r, "(true &) ; (sleep 0.01 &) ; exit "+strconv.Itoa(status))
				if err != nil {
					t.Error(err)
					return
				}
				err = command.Wait()
				r.Done(command.Process.Pid)
				if got := command.ProcessState.ExitCode(); got != status {
					t.Errorf("a child that ended with %d has status %d, %v", status, got, err)
				}
			}
		})
	}
	all.Wait()
	eventually(t, "the last orphan", func() bool { return left(t) == 0 })
}

// TestBehindAnOwnChild: orphans are collected while a child that nobody waits
// for yet stands before them.
func TestBehindAnOwnChild(t *testing.T) {
	adopting(t)
	r := running(t)
	first, err := start(r, "exit 7")
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, "the end of the child", func() bool { return zombies(t) == 1 })
	second, err := start(r, "(true &) ; (true &) ; sleep 0.2; (true &) ; exit 8")
	if err != nil {
		t.Fatal(err)
	}
	if err := second.Wait(); second.ProcessState.ExitCode() != 8 {
		t.Errorf("the second ended with %v", err)
	}
	r.Done(second.Process.Pid)
	eventually(t, "the orphans", func() bool { return left(t) == 1 })
	if err := first.Wait(); first.ProcessState.ExitCode() != 7 {
		t.Errorf("the first ended with %v", err)
	}
	r.Done(first.Process.Pid)
}

// TestOrphansFromBefore: what became an orphan before Run is collected as well.
func TestOrphansFromBefore(t *testing.T) {
	adopting(t)
	if err := exec.Command("sh", "-c", "(sleep 0.05 &)").Run(); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the orphan's end", func() bool { return zombies(t) == 1 })
	running(t)
	eventually(t, "it to be collected", func() bool { return left(t) == 0 })
}

// TestNobodysParent: where orphans go elsewhere, Run returns and starts nothing.
func TestNobodysParent(t *testing.T) {
	if adopts, err := Adopts(); adopts || err != nil {
		t.Fatalf("this process adopts orphans: %v", err)
	}
	if err := New().Run(t.Context()); err != nil {
		t.Error(err)
	}
}

// TestNil: without a Reaper children start as ever.
func TestNil(t *testing.T) {
	var r *Reaper
	command, err := start(r, "exit 3")
	if err != nil {
		t.Fatal(err)
	}
	if err := command.Wait(); command.ProcessState.ExitCode() != 3 {
		t.Errorf("ended with %v", err)
	}
	r.Done(command.Process.Pid)
	failed := errors.New("failed")
	if _, err := New().Start(func() (*os.Process, error) { return nil, failed }); !errors.Is(err, failed) {
		t.Errorf("a start that fails returns %v", err)
	}
}
