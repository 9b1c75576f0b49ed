package session

import (
	"os"
	"runtime"
	"strconv"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// The realtime priorities of a stretch that cuts (sched(7), SCHED_RR). Any of them goes
// before all threads that take turns.
const (
	otherThreads  = 1
	cuttingThread = 2
)

// maxRaised is how long the other threads of the sidecar go before those of the whole
// machine, should a stretch take longer: a cut of 1,000 accesses takes some ten milliseconds.
const maxRaised = 100 * time.Millisecond

// AtHighPriority runs f, which cuts accesses, on a thread that goes before all others, where
// the sidecar may have one (root, CAP_SYS_NICE). Between the steps of a cut a busy machine
// would otherwise have it take turns. Stretches must not overlap.
//
// The other threads of the process go before those of all other processes as well, until f
// has returned or for maxRaised. To f they are not others: the scheduler of Go stops a
// goroutine after 10 ms for the next one, unlocks a mutex by running the one that has
// waited for it, and stops all for the garbage collector. f then goes on when such a thread
// has had its turn, and the first cuts have woken hundreds of processes that would have
// theirs before it, each for milliseconds.
func AtHighPriority(f func()) {
	withHighPriority(runtime.NumCPU() > 1, func(p priority) {
		if !p.raised {
			f()
			return
		}
		lower := raiseOthers(p)
		defer lower()
		f()
	})
}

// priority is that of a thread in withHighPriority.
type priority struct {
	realtime bool            // it takes no turns
	raised   bool            // by this call, and so at its end lowered
	before   *unix.SchedAttr // the priority that it gets back
}

// raiseOthers has those threads of the process go before others that are scheduled as the
// calling one was, and returns a function that gives each its own priority back. Their nice
// values differ in a process of a low one: threads that a raised thread starts have 0.
func raiseOthers(p priority) func() {
	entries, err := os.ReadDir("/proc/self/task")
	if err != nil {
		return func() {} // they take turns
	}
	attr := highestNice()
	if p.realtime {
		attr = realtime(otherThreads)
	}
	self := unix.Gettid()
	var raised []int
	var before []*unix.SchedAttr
	for _, entry := range entries {
		thread, err := strconv.Atoi(entry.Name())
		if err != nil || thread == self {
			continue
		}
		// One in a stretch of its own has a high priority, and takes it back itself.
		now, err := unix.SchedGetAttr(thread, 0)
		if err != nil || now.Policy != p.before.Policy || now.Nice == highestNice().Nice {
			continue
		}
		if unix.SchedSetAttr(thread, &attr, 0) == nil {
			raised, before = append(raised, thread), append(before, now)
		}
	}
	lower := sync.OnceFunc(func() {
		for i, thread := range raised {
			// A thread that has ended must not be taken for one of another process.
			if unix.Tgkill(unix.Getpid(), thread, 0) == nil {
				giveBack(thread, before[i])
			}
		}
	})
	late := time.AfterFunc(maxRaised, lower)
	return func() { late.Stop(); lower() }
}

// withHighPriority runs f on a thread that goes before all others, where the sidecar
// may have one (root, CAP_SYS_NICE): every connection that is cut wakes the
// processes at both its ends, and the last one must not take turns with them. A realtime
// thread takes no turns at all (sched(7), SCHED_RR): f is to end within milliseconds, and
// another CPU is to be left for threads that f may wait for, unless they go before others
// too. A thread that has such a priority already keeps it, and loses it when the one who
// gave it takes it back.
func withHighPriority(mayRealtime bool, f func(priority)) {
	runtime.LockOSThread() // should the priority not come back, the thread ends with the goroutine
	before, err := unix.SchedGetAttr(0, 0)
	p := priority{before: before}
	if err == nil && !isHigh(before) {
		p.realtime = mayRealtime && setPriority(realtime(cuttingThread))
		p.raised = p.realtime || setPriority(highestNice())
	}
	defer func() {
		if !p.raised || giveBack(0, before) {
			runtime.UnlockOSThread()
		}
	}()
	f(p)
}

// isHigh reports whether a thread has one of the priorities of a stretch.
func isHigh(a *unix.SchedAttr) bool {
	high := highestNice()
	return a.Policy == unix.SCHED_RR || a.Policy == high.Policy && a.Nice == high.Nice && a.Flags&high.Flags != 0
}

// giveBack gives a thread, 0 for the calling one, the priority that it had before. A sidecar
// without CAP_SYS_NICE may have got the high one by RLIMIT_RTPRIO or RLIMIT_NICE, and then
// may not clear the flag by which threads that the thread starts do not get it (sched(7),
// SCHED_RESET_ON_FORK): the flag stays, and has no effect on a thread that takes turns.
func giveBack(thread int, before *unix.SchedAttr) bool {
	if unix.SchedSetAttr(thread, before, 0) == nil {
		return true
	}
	flagged := *before
	flagged.Flags |= unix.SCHED_FLAG_RESET_ON_FORK
	return unix.SchedSetAttr(thread, &flagged, 0) == nil
}

// setPriority sets that of the calling thread, and reports whether it may have it.
func setPriority(attr unix.SchedAttr) bool { return unix.SchedSetAttr(0, &attr, 0) == nil }

// realtime returns the priority of a thread, and not of those that it starts, that takes no
// turns.
func realtime(priority uint32) unix.SchedAttr {
	return unix.SchedAttr{Size: unix.SizeofSchedAttr, Policy: unix.SCHED_RR, Priority: priority, Flags: unix.SCHED_FLAG_RESET_ON_FORK}
}

// highestNice returns the highest priority of a thread, and not of those that it starts, that
// takes turns.
func highestNice() unix.SchedAttr {
	const highest = -20
	return unix.SchedAttr{Size: unix.SizeofSchedAttr, Policy: unix.SCHED_NORMAL, Nice: highest, Flags: unix.SCHED_FLAG_RESET_ON_FORK}
}
