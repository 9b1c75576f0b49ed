package ebpf

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strconv"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/chaperone-proxy/chaperone/ebpf/sandbox"
)

// rounds is how often a benchmark goes around its variants. They take turns, so
// that a noisy moment hits all of them.
const rounds = 15

// Compare measures variants in turns and reports the median cost of each, in ns
// an operation, and of each beyond the first how much more that is. A variant
// returns the time that n operations took.
func Compare(b *testing.B, n int, names []string, measure func(variant, n int) time.Duration) {
	b.Helper()
	cost := make([][]float64, len(names))
	for range rounds {
		for variant := range names {
			cost[variant] = append(cost[variant], float64(measure(variant, n).Nanoseconds())/float64(n))
		}
	}
	for variant, name := range names {
		slices.Sort(cost[variant])
		median := cost[variant][rounds/2]
		b.ReportMetric(median, "ns/"+name)
		if variant > 0 {
			base := cost[0][rounds/2]
			b.ReportMetric(median-base, "+ns/"+name)
			b.ReportMetric(100*(median/base-1), "+%/"+name)
		}
	}
	b.ReportMetric(0, "ns/op") // means nothing here
}

// threadTime is the time that this thread had the processor for: what others do
// on the machine does not count.
func threadTime() time.Duration {
	var spec unix.Timespec
	_ = unix.ClockGettime(unix.CLOCK_THREAD_CPUTIME_ID, &spec)
	return time.Duration(spec.Nano())
}

// worker is this program again, as a process that measures itself when asked:
// what was in a confinement once does not leave it.
type worker struct {
	ask func(line string) time.Duration
}

// employ starts a worker in a cgroup, or, without one, where this process is.
// Its descriptor 3 is the listener.
func employ(b *testing.B, group *sandbox.Cgroup, listener *os.File) worker {
	b.Helper()
	command := exec.Command("/proc/self/exe", "worker")
	command.Args[0] = pluginName
	command.Stderr = os.Stderr
	command.ExtraFiles = []*os.File{listener}
	if group != nil {
		command.SysProcAttr = &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: int(group.Dir.Fd())}
	}
	stdin, err := command.StdinPipe()
	if err != nil {
		b.Fatal(err)
	}
	stdout, err := command.StdoutPipe()
	if err != nil {
		b.Fatal(err)
	}
	if err := command.Start(); err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		_ = stdin.Close()
		_ = command.Wait()
	})
	return worker{func(line string) time.Duration {
		b.Helper()
		var spent time.Duration
		if _, err := fmt.Fprintln(stdin, line); err != nil {
			b.Fatal(err)
		}
		if _, err := fmt.Fscanln(stdout, &spent); err != nil {
			b.Fatal(err)
		}
		return spent
	}}
}

// work is the plugin that a worker is: each line names what to do and how often.
func work([]string) error {
	for {
		var what string
		var size, n int
		if _, err := fmt.Scanln(&what, &size, &n); err != nil {
			return nil //nolint:nilerr // the end of the benchmark
		}
		var spent time.Duration
		var err error
		switch what {
		case "calls":
			spent = calls(size, n)
		case "turns":
			spent, err = turns(size, n)
		case "connects":
			spent, err = connects(n)
		}
		if err != nil {
			return err
		}
		fmt.Println(int64(spent))
	}
}

// calls is how long n system calls take on each of some threads.
func calls(threads, n int) time.Duration {
	spent := make([]time.Duration, threads)
	var all sync.WaitGroup
	for i := range threads {
		all.Go(func() {
			runtime.LockOSThread()
			defer runtime.UnlockOSThread()
			before := threadTime()
			for range n {
				_, _, _ = unix.RawSyscall(unix.SYS_GETPPID, 0, 0, 0)
			}
			spent[i] = threadTime() - before
		})
	}
	all.Wait()
	return slices.Max(spent)
}

// bench is a confinement with one worker outside and one inside. The listener, which
// is its proxy, is outside, as a sidecar's is.
func bench(b *testing.B) (c *Confinement, outside, inside worker) {
	b.Helper()
	h, err := hostPlaces.FindCgroupMount()
	if err != nil {
		b.Fatal(err)
	}
	group, err := sandbox.MakeCgroup(h, "chaperone-bench-"+rand.Text())
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = errors.Join(group.Kill(), group.Remove(), group.Close()) })
	if c, err = New(Config{StateDir: b.TempDir(), CgroupPath: group.Path}); err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = errors.Join(c.Close(), Detach(c.config.StateDir, true)) })
	proxy, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	listener, err := proxy.(*net.TCPListener).File()
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = errors.Join(listener.Close(), proxy.Close()) })
	if err := unix.SetNonblock(int(listener.Fd()), false); err != nil {
		b.Fatal(err)
	}
	if err := c.Attach(Endpoints{Proxy4: tcpPort(proxy)}); err != nil {
		b.Fatal(err)
	}
	return c, employ(b, nil, listener), employ(b, c.group, listener)
}

// attachEmpty attaches a program that does nothing to the tracepoint of the system call
// counter: the floor of what any counter costs.
func attachEmpty(b *testing.B) io.Closer {
	b.Helper()
	l, err := AttachEmptyTrace("sys_exit")
	if err != nil {
		b.Fatal(err)
	}
	return l
}

// BenchmarkSyscall compares a system call without the counter, beside it, and
// counted and limited, on one processor and on two. Variants with an empty program in
// place of the counter are the floor.
func BenchmarkSyscall(b *testing.B) {
	c, outside, inside := bench(b)
	limit := []Limit{{Name: "bench", Kind: LimitSyscalls, Count: 1 << 40, Period: time.Second, Exact: true}}
	variants := []struct {
		name   string
		who    worker
		limits []Limit
		empty  bool
	}{
		{"none", outside, nil, false},
		{"empty", outside, nil, true},
		{"unmetered", outside, limit, false},
		{"inside-empty", inside, nil, true},
		{"metered", inside, limit, false},
	}
	names := make([]string, len(variants))
	for i, v := range variants {
		names[i] = v.name
	}
	for _, threads := range []int{1, 2} {
		b.Run(strconv.Itoa(threads), func(b *testing.B) {
			Compare(b, 100_000, names, func(variant, n int) time.Duration {
				v := variants[variant]
				if v.empty {
					defer attachEmpty(b).Close()
				}
				if err := c.Limit(v.limits); err != nil {
					b.Fatal(err)
				}
				return v.who.ask(fmt.Sprint("calls ", threads, " ", n))
			})
		})
	}
}

// compareWire compares what a client does outside a confinement, in it, and in it with
// limits in force.
func compareWire(b *testing.B, what string, size, n int) {
	b.Helper()
	c, outside, inside := bench(b)
	huge := func(kind LimitKind) Limit {
		return Limit{Name: "bench", Kind: kind, Count: 1 << 40, Period: time.Second}
	}
	limits := []Limit{huge(LimitConnections), huge(LimitSentBytes), huge(LimitReceivedBytes)}
	Compare(b, n, []string{"outside", "inside", "limited"}, func(variant, n int) time.Duration {
		in, who := []Limit(nil), inside
		switch variant {
		case 0:
			who = outside
		case 2:
			in = limits
		}
		if err := c.Limit(in); err != nil {
			b.Fatal(err)
		}
		return who.ask(fmt.Sprint(what, " ", size, " ", n))
	})
}

// connected connects to the listener and accepts, in one thread.
func connected() (near, far int, err error) {
	const listener = 3
	address, err := unix.Getsockname(listener)
	if err != nil {
		return -1, -1, err
	}
	if near, err = unix.Socket(unix.AF_INET, unix.SOCK_STREAM, 0); err != nil {
		return -1, -1, err
	}
	if err := unix.Connect(near, address); err != nil {
		return -1, -1, err
	}
	far, _, err = unix.Accept(listener)
	return near, far, err
}

// turns sends size bytes one way and one byte back on one connection, both ends
// in one thread, so that no wake-up is measured.
func turns(size, n int) (time.Duration, error) {
	payload := make([]byte, size)
	near, far, err := connected()
	if err != nil {
		return 0, err
	}
	defer unix.Close(near)
	defer unix.Close(far)
	before := threadTime()
	for range n {
		if err := errors.Join(pass(near, far, payload), pass(far, near, payload[:1])); err != nil {
			return 0, err
		}
	}
	return threadTime() - before, nil
}

func pass(from, to int, payload []byte) error {
	if _, err := unix.Write(from, payload); err != nil {
		return err
	}
	for got := 0; got < len(payload); {
		n, err := unix.Read(to, payload)
		if err != nil {
			return err
		}
		got += n
	}
	return nil
}

// connects opens n connections and ends each.
func connects(n int) (time.Duration, error) {
	var spent time.Duration
	for range n {
		before := threadTime()
		near, far, err := connected()
		if err != nil {
			return 0, err
		}
		spent += threadTime() - before
		err = unix.SetsockoptLinger(near, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1})
		if err = errors.Join(err, unix.Close(near), unix.Close(far)); err != nil {
			return 0, err
		}
	}
	return spent, nil
}

// BenchmarkRoundTrip is one byte to the sidecar and one back.
func BenchmarkRoundTrip(b *testing.B) { compareWire(b, "turns", 1, 2000) }

// BenchmarkTransfer64K is 64 KiB to the sidecar and one byte back.
func BenchmarkTransfer64K(b *testing.B) { compareWire(b, "turns", 64<<10, 1000) }

// BenchmarkConnect is a connection with its redirect and its identity.
func BenchmarkConnect(b *testing.B) { compareWire(b, "connects", 0, 300) }
