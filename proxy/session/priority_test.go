package session_test

import (
	"os"
	"runtime"
	"slices"
	"strconv"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/chaperone-proxy/chaperone/internal/testenv"
	"github.com/chaperone-proxy/chaperone/proxy/session"
)

// ordinaryThreads returns the threads of this process that take their turns with all others.
func ordinaryThreads(t *testing.T) (threads []int) {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/task")
	testenv.Must(t, err)
	for _, entry := range entries {
		thread, err := strconv.Atoi(entry.Name())
		testenv.Must(t, err)
		if attr, err := unix.SchedGetAttr(thread, 0); err == nil && attr.Policy == unix.SCHED_NORMAL && attr.Nice >= 0 {
			threads = append(threads, thread)
		}
	}
	return threads
}

// hold returns a thread of this process that is not the caller's, until the test ends.
func hold(t *testing.T) (thread int) {
	t.Helper()
	id, end := make(chan int), make(chan struct{})
	go func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		id <- unix.Gettid()
		<-end
	}()
	t.Cleanup(func() { close(end) })
	return <-id
}

// TestAtHighPriorityRaisesTheProcess has every thread of the process go before all others
// while accesses are cut: the scheduler of Go may have the cut wait for any of them. Then each
// has its own priority again.
func TestAtHighPriorityRaisesTheProcess(t *testing.T) {
	testenv.Require(t, testenv.Superuser())
	other := hold(t)
	before := ordinaryThreads(t)
	if !slices.Contains(before, other) {
		t.Fatalf("the thread %d is not among the ordinary ones, %d", other, before)
	}
	session.AtHighPriority(func() {
		for _, thread := range ordinaryThreads(t) {
			if slices.Contains(before, thread) { // not one that the scheduler of Go has just started
				t.Errorf("the thread %d takes its turns during a cut", thread)
			}
		}
	})
	after := ordinaryThreads(t)
	for _, thread := range before {
		if !slices.Contains(after, thread) && unix.Tgkill(unix.Getpid(), thread, 0) == nil {
			t.Errorf("the thread %d has a high priority after the cut", thread)
		}
	}
}

// TestAtHighPriorityLeavesOtherStretches has a thread that goes before others by itself keep
// the priority that it has.
func TestAtHighPriorityLeavesOtherStretches(t *testing.T) {
	testenv.Require(t, testenv.Superuser())
	other := hold(t)
	own := unix.SchedAttr{Size: unix.SizeofSchedAttr, Policy: unix.SCHED_NORMAL, Nice: -20}
	testenv.Must(t, unix.SchedSetAttr(other, &own, 0))
	defer func() {
		own.Nice = 0
		testenv.Must(t, unix.SchedSetAttr(other, &own, 0))
	}()
	session.AtHighPriority(func() {})
	if attr, err := unix.SchedGetAttr(other, 0); err != nil || attr.Policy != own.Policy || attr.Nice != own.Nice {
		t.Errorf("the thread has the priority %+v, %v, want its own, %+v", attr, err, own)
	}
}

// TestAtHighPriorityIsBounded has a stretch that does not end: the other threads take their
// turns again.
func TestAtHighPriorityIsBounded(t *testing.T) {
	testenv.Require(t, testenv.Superuser())
	other := hold(t)
	session.AtHighPriority(func() {
		for late := time.Now().Add(30 * time.Second); !slices.Contains(ordinaryThreads(t), other); time.Sleep(time.Millisecond) {
			if time.Now().After(late) {
				t.Fatal("the other threads go before those of all processes without a bound")
			}
		}
	})
}

// TestHighPriorityIsNotTakenForOwn has a stretch begin on a thread that another one has raised,
// and that other one end first: the thread takes its turns afterwards.
func TestHighPriorityIsNotTakenForOwn(t *testing.T) {
	testenv.Require(t, testenv.Superuser())
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	attr := unix.SchedAttr{Size: unix.SizeofSchedAttr, Policy: unix.SCHED_NORMAL}
	before, err := unix.SchedGetAttr(0, 0)
	testenv.Must(t, err)
	defer func() { testenv.Must(t, unix.SchedSetAttr(0, before, 0)) }()
	raised := attr
	raised.Nice, raised.Flags = -20, unix.SCHED_FLAG_RESET_ON_FORK
	testenv.Must(t, unix.SchedSetAttr(0, &raised, 0))
	session.InParallel([]int{0}, func(int) bool {
		testenv.Must(t, unix.SchedSetAttr(0, &attr, 0))
		return true
	})
	if now, err := unix.SchedGetAttr(0, 0); err != nil || now.Policy != attr.Policy || now.Nice != attr.Nice {
		t.Errorf("the thread has the priority %+v, %v, want %+v", now, err, attr)
	}
}

// TestAtHighPriorityWithoutCapability has the stretch end without CAP_SYS_NICE, as that of a
// sidecar whose limits alone allow a high priority: each thread takes its turns again.
func TestAtHighPriorityWithoutCapability(t *testing.T) {
	testenv.Require(t, testenv.Superuser())
	other := hold(t)
	type policies struct{ during, after, own uint32 }
	got := make(chan policies)
	go func() {
		runtime.LockOSThread() // and never unlocks: the thread ends without the capability
		var p policies
		session.AtHighPriority(func() {
			p.during = policyOf(t, other)
			dropCapability(t, unix.CAP_SYS_NICE)
		})
		p.after, p.own = policyOf(t, other), policyOf(t, 0)
		got <- p
	}()
	if p := <-got; p != (policies{during: unix.SCHED_RR, after: unix.SCHED_NORMAL, own: unix.SCHED_NORMAL}) {
		t.Errorf("the policies are %+v, want %d of the other thread during the cut, and %d of both after it", p, unix.SCHED_RR, unix.SCHED_NORMAL)
		testenv.Must(t, unix.SchedSetAttr(other, &unix.SchedAttr{Size: unix.SizeofSchedAttr, Policy: unix.SCHED_NORMAL}, 0))
	}
}

// policyOf returns the policy by which a thread is scheduled.
func policyOf(t *testing.T, thread int) uint32 {
	attr, err := unix.SchedGetAttr(thread, 0)
	if err != nil {
		t.Error(err)
		return 0
	}
	return attr.Policy
}

// dropCapability drops a capability of the calling thread.
func dropCapability(t *testing.T, capability uint) {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&header, &data[0]); err != nil {
		t.Error(err)
	}
	data[capability/32].Effective &^= 1 << (capability % 32)
	if err := unix.Capset(&header, &data[0]); err != nil {
		t.Error(err)
	}
}
