package ebpf

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/chaperone-proxy/chaperone/ebpf/sandbox"
)

// callsPlugin is the plugin of [burstCalls].
const callsPlugin = "calls"

// farCalls is a limit that a plugin which idles is far from, on this machine.
func farCalls(action Action) (Limit, error) {
	cpus, err := onlineCPUs()
	cost := min(fastestCall()/callMargin, maxCallCost)
	return Limit{Name: "calls", Kind: LimitSyscalls, Count: uncountedShare * cpus * uint64(80*time.Millisecond/cost), Action: action}, err
}

// burstCalls is a plugin that waits for standard input, and then makes system calls on some
// threads. Each thread counts its own in the memory of standard output, before it makes one.
func burstCalls(args []string) error {
	threads, err := strconv.Atoi(args[0])
	if err != nil {
		return err
	}
	memory, err := unix.Mmap(1, 0, os.Getpagesize(), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return err
	}
	if _, err := os.Stdin.Read(make([]byte, 1)); err != nil {
		return err
	}
	for i := range threads {
		counter := (*uint64)(unsafe.Pointer(&memory[64*i]))
		go func() {
			runtime.LockOSThread()
			for {
				_, _, _ = unix.RawSyscall(unix.SYS_GETPPID, 0, 0, 0)
				atomic.AddUint64(counter, 1)
			}
		}()
	}
	select {}
}

// caller is a plugin that bursts when it is asked to.
type caller struct {
	t      *testing.T
	counts *os.File
	start  io.WriteCloser
}

// newCaller returns a caller and what is to be its standard input.
func newCaller(t *testing.T) (p *caller, stdin *os.File) {
	t.Helper()
	counts, err := os.Create(filepath.Join(t.TempDir(), "counts"))
	if err != nil {
		t.Fatal(err)
	}
	if err := counts.Truncate(int64(os.Getpagesize())); err != nil {
		t.Fatal(err)
	}
	stdin, start, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _, _, _ = start.Close(), stdin.Close(), counts.Close() })
	return &caller{t, counts, start}, stdin
}

func (p *caller) burst() {
	p.t.Helper()
	if _, err := io.WriteString(p.start, "x"); err != nil {
		p.t.Fatal(err)
	}
}

// made is how many calls the threads have made.
func (p *caller) made() uint64 {
	p.t.Helper()
	page := make([]byte, os.Getpagesize())
	if _, err := p.counts.ReadAt(page, 0); err != nil {
		p.t.Fatal(err)
	}
	var n uint64
	for i := 0; i < len(page); i += 64 {
		n += binary.NativeEndian.Uint64(page[i:])
	}
	return n
}

// eventually waits for a condition.
func eventually(t *testing.T, what string, is func() bool) {
	t.Helper()
	for deadline := time.Now().Add(patience); !is(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("waited in vain: %s", what)
		}
	}
}

// watched makes a confinement whose counter is off, with an idle plugin in it.
func watched(t *testing.T, l Limit) (*harness, *caller) {
	t.Helper()
	r := newHarness(t, nil)
	limitFar(t, r, l)
	p, stdin := newCaller(t)
	command := sandbox.Command{
		Path: "/proc/self/exe", Args: []string{pluginName, callsPlugin, "2"}, Env: pluginEnv(), Stdin: stdin, Stdout: p.counts, Stderr: os.Stderr,
	}
	if _, err := r.Start(command); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the counter is off", func() bool { return !r.Info().Syscalls })
	return r, p
}

func limitFar(t *testing.T, r *harness, l Limit) {
	t.Helper()
	if err := r.Limit([]Limit{l}); err != nil {
		t.Fatal(err)
	}
	if r.Info().CallCost == 0 {
		skipUnsupported(t, errors.New("calls are always counted on this kernel"))
	}
}

// standstill waits until the plugin has made calls and makes no more, and returns how many.
func (p *caller) standstill() uint64 {
	p.t.Helper()
	eventually(p.t, "the plugin makes calls", func() bool { return p.made() > 0 })
	return p.rest()
}

// rest waits until the plugin makes no more calls, and returns how many it has made.
func (p *caller) rest() uint64 {
	p.t.Helper()
	deadline := time.Now().Add(patience)
	for before := p.made(); ; {
		time.Sleep(300 * time.Millisecond)
		made := p.made()
		if made == before {
			return made
		}
		if time.Now().After(deadline) {
			p.t.Fatalf("the plugin goes on: it has made %d calls, %d of them in the last 300 ms", made, made-before)
		}
		before = made
	}
}

// stallsOf calls f, and returns for how long at most the machine stood still during it: a
// thread that goes before others did not run although its sleep was over. A virtual machine
// stands still while its host runs another.
func stallsOf(t *testing.T, f func()) (longest time.Duration) {
	t.Helper()
	const nap = time.Millisecond
	done, stall := make(chan struct{}), make(chan time.Duration)
	go func() {
		runtime.LockOSThread() // and the thread ends with the goroutine
		first := unix.SchedAttr{Size: unix.SizeofSchedAttr, Policy: unix.SCHED_FIFO, Priority: 2}
		_ = unix.SchedSetAttr(0, &first, 0) // as far as it is permitted
		var longest time.Duration
		for before := time.Now(); ; before = time.Now() {
			select {
			case <-done:
				stall <- longest
				return
			default:
			}
			request := unix.NsecToTimespec(int64(nap))
			_ = unix.Nanosleep(&request, nil) // a signal ends it early
			longest = max(longest, time.Since(before)-nap)
		}
	}()
	defer func() { longest = <-stall }()
	defer close(done)
	f()
	return longest
}

// A plugin that idles and then makes calls on every CPU right after a look is held to its
// limit as if every call had been counted. The time for which the machine stands still while
// a thread of the plugin has a processor is charged too: then it is tried again.
func TestBurstAfterLook(t *testing.T) {
	const tries, tolerated = 5, 50 * time.Millisecond
	for _, action := range []Action{ActionStop, ActionKill} {
		t.Run(action.String(), func(t *testing.T) {
			for try := 1; ; try++ {
				var early string
				stall := stallsOf(t, func() { early = burstAfterLook(t, action) })
				if early == "" {
					return
				}
				if stall < tolerated || try == tries {
					t.Fatalf("%s; the machine stood still for %v at most", early, stall)
				}
				t.Logf("again, since the machine stood still for %v: %s", stall, early)
			}
		})
	}
}

// burstAfterLook has a plugin burst, and returns how the limit acted too early, if it has.
func burstAfterLook(t *testing.T, action Action) (early string) {
	t.Helper()
	l, err := farCalls(action)
	if err != nil {
		t.Fatal(err)
	}
	r, p := watched(t, l)
	defer r.close()
	looked := r.programs.watch.looks.Load()
	eventually(t, "a look", func() bool { return r.programs.watch.looks.Load() > looked })
	p.burst()
	eventually(t, "the counter is back", func() bool { return r.Info().Syscalls })
	eventually(t, "the limit acts", func() bool { return atomic.LoadUint32(&r.programs.limits.enforcement.Action) != 0 })
	made, used := p.rest(), r.used().Syscalls
	if made > l.Count+2*lease || made > used.Total {
		t.Errorf("made %d calls of %d, counted %+v", made, l.Count, used)
	}
	if least := l.Count - l.Count/uncountedShare; made < least {
		return fmt.Sprintf("held after %d calls, before %d of %d: counted %+v", made, least, l.Count, used)
	}
	return ""
}

// usualCalls is a limit that a burst of some milliseconds uses up.
func usualCalls(period time.Duration) Limit {
	return Limit{Name: "calls", Kind: LimitSyscalls, Count: 200_000, Period: period, Action: ActionStop}
}

// A plugin that idles costs nobody a counted call under a usual limit, and one that then
// makes calls on every CPU, right after a look, does not pass it, whether user space
// attaches the counter in time or does not come to it.
func TestBurstUnderUsualLimit(t *testing.T) {
	for _, late := range []bool{false, true} {
		t.Run(fmt.Sprintf("late=%t", late), func(t *testing.T) {
			l := usualCalls(0)
			if late { // so that only a late look stops it
				l.Action = ActionDeny
			}
			r, p := watched(t, l)
			looked := r.programs.watch.looks.Load()
			eventually(t, "a look", func() bool { return r.programs.watch.looks.Load() > looked })
			if late {
				r.Confinement.mu.Lock() // nobody looks
			}
			p.burst()
			made := p.standstill()
			overdue := atomic.LoadUint64(&r.programs.watch.state.Overdue)
			if late {
				r.Confinement.mu.Unlock()
				eventually(t, "the plugin goes on", func() bool { return p.made() > made })
			}
			if used := r.used().Syscalls; made > l.Count+2*lease || made > used.Total {
				t.Errorf("made %d calls of %d, counted %+v", made, l.Count, used)
			}
			if late && overdue == 0 {
				t.Error("not stopped without a look")
			}
		})
	}
}

// A plugin that makes calls all the time has them counted, and no longer when it is calm
// again.
func TestCountedWhileBusy(t *testing.T) {
	l := usualCalls(time.Second)
	l.Action = ActionDeny
	r, p := watched(t, l)
	p.burst()
	eventually(t, "the counter is on", func() bool { return r.Info().Syscalls })
	eventually(t, "calls", func() bool { return p.made() > 2*l.Count })
	if !r.Info().Syscalls {
		t.Error("the counter is off while the plugin makes calls")
	}
	if err := r.Kill(); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the counter is off again", func() bool { return !r.Info().Syscalls })
}

// When user space does not look in time, the kernel stops the plugin before it can have
// passed its limit, and it goes on after the next look.
func TestLateLook(t *testing.T) {
	l, err := farCalls(ActionDeny)
	if err != nil {
		t.Fatal(err)
	}
	r, p := watched(t, l)
	r.Confinement.mu.Lock() // nobody looks
	p.burst()
	made := p.standstill()
	time.Sleep(100 * time.Millisecond) // no process that stands still is killed
	overdue := atomic.LoadUint64(&r.programs.watch.state.Overdue)
	r.Confinement.mu.Unlock()
	if made > l.Count || overdue == 0 {
		t.Errorf("made %d calls of %d without a look, overdue %d times", made, l.Count, overdue)
	}
	eventually(t, "the plugin goes on", func() bool { return p.made() > made })
	if used := r.used().Syscalls; used.Uncounted < made {
		t.Errorf("made %d calls, charged %+v", made, used)
	}
}

// Processes that are continued while user space does not look, as they could continue each
// other, are killed before they can have passed the limit.
func TestLateLookDefied(t *testing.T) {
	l, err := farCalls(ActionDeny)
	if err != nil {
		t.Fatal(err)
	}
	r, p := watched(t, l)
	r.Confinement.mu.Lock() // nobody looks
	p.burst()
	eventually(t, "the plugin is killed", func() bool {
		if err := r.group.Signal(unix.SIGCONT); err != nil {
			t.Error(err)
		}
		alive, err := r.group.Populated()
		return err == nil && !alive
	})
	made := p.made()
	r.Confinement.mu.Unlock()
	if made > l.Count {
		t.Errorf("made %d calls of %d without a look", made, l.Count)
	}
}

// A plugin that is charged for more calls than it made is charged no more than a quarter of
// its limit too many.
func TestUncountedShare(t *testing.T) {
	l, err := farCalls(ActionDeny)
	if err != nil {
		t.Fatal(err)
	}
	r := newHarness(t, nil)
	limitFar(t, r, l)
	r.start(&sandbox.Command{Args: []string{"sh", "-c", "while :; do :; done"}})
	eventually(t, "the counter is on", func() bool { return r.Info().Syscalls })
	if used := r.used().Syscalls; used.Uncounted > l.Count/uncountedShare {
		t.Errorf("charged %+v of %d", used, l.Count)
	}
}

// A limit whose calls are to be counted exactly has them counted, however far it is.
func TestExactCalls(t *testing.T) {
	l, err := farCalls(ActionDeny)
	if err != nil {
		t.Fatal(err)
	}
	r := newHarness(t, nil)
	l.Exact = true
	limitFar(t, r, l)
	looked := r.programs.watch.looks.Load()
	eventually(t, "looks", func() bool { return r.programs.watch.looks.Load() > looked+2 })
	if !r.Info().Syscalls {
		t.Error("the counter is off")
	}
}

// With the sidecar killed while calls are not counted, the kernel holds the plugin to its
// limit, and the next sidecar finds what was used.
func TestKilledSidecarsUncountedCalls(t *testing.T) {
	needKernel(t)
	l, err := farCalls(ActionDeny)
	if err != nil {
		t.Fatal(err)
	}
	dir := publicDir(t)
	state, out := filepath.Join(dir, "state"), filepath.Join(dir, "out")
	if err := os.Mkdir(state, 0o700); err != nil {
		t.Fatal(err)
	}
	command := exec.Command("/proc/self/exe", state, out, callsPlugin)
	command.Args[0] = sidecarName
	command.Stderr = os.Stderr
	stdin, err := command.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := command.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := command.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := Detach(state, true); err != nil {
			t.Error(err)
		}
	})
	var left doomed
	if err := json.NewDecoder(stdout).Decode(&left); err != nil {
		t.Fatal(err)
	}
	if left.Info.CallCost == 0 {
		skipUnsupported(t, errors.New("calls are always counted on this kernel"))
	}
	eventually(t, "the counter is off", func() bool { return !exists(filepath.Join(left.Info.Pins, counterPin)) })
	if err := command.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	counts, err := os.Open(out)
	if err != nil {
		t.Fatal(err)
	}
	defer counts.Close()
	p := &caller{t, counts, stdin}
	p.burst()
	_ = command.Wait()
	made := p.standstill()
	if made > l.Count {
		t.Errorf("made %d calls of %d without a sidecar", made, l.Count)
	}
	next, err := New(Config{StateDir: state, EndLeft: func(int) {}})
	if err != nil {
		t.Fatal(err)
	}
	if used, ok := next.UsedBefore(l); !ok || used.Used < made {
		t.Errorf("made %d calls, the next sidecar found %+v, %t", made, used, ok)
	}
	if err := next.Close(); err != nil {
		t.Error(err)
	}
}

// A sidecar that leaves a cgroup that it was given has calls counted until the next one
// comes, which goes on with the count.
func TestCountedWithoutSidecar(t *testing.T) {
	l, err := farCalls(ActionDeny)
	if err != nil {
		t.Fatal(err)
	}
	group, path := given(t)
	config := func(c *Config) { c.CgroupPath, c.NetworkPath = group.Path, path }
	r := newHarness(t, config)
	limitFar(t, r, l)
	p, stdin := newCaller(t)
	plugin := exec.Command("/proc/self/exe", callsPlugin, "2")
	plugin.Args[0] = pluginName
	plugin.Stdin, plugin.Stdout, plugin.Stderr = stdin, p.counts, os.Stderr
	plugin.SysProcAttr = &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: int(group.Dir.Fd())}
	if err := plugin.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _, _ = plugin.Process.Kill(), plugin.Wait() })
	eventually(t, "the counter is off", func() bool { return !r.Info().Syscalls })
	r.seen() // ends the looks
	if s := r.programs.watch.state; !r.Info().Syscalls || atomic.LoadUint64(&s.Opened) != 0 {
		t.Errorf("left with the counter %t, state %+v", r.Info().Syscalls, s)
	}
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
	p.burst()
	eventually(t, "calls", func() bool { return p.made() > 100_000 })
	made := p.made()
	next := newHarness(t, func(c *Config) { config(c); c.StateDir = r.config.StateDir })
	limitFar(t, next, l)
	if used := next.used().Syscalls; used.Total < made {
		t.Errorf("made %d calls, counted %+v", made, used)
	}
}
