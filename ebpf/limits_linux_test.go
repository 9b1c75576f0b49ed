package ebpf

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/bits"
	"net"
	"net/netip"
	"os"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/chaperone-proxy/chaperone/ebpf/sandbox"
)

// flood is a plugin that does one thing as often as it can, from several threads
// at once, and prints how often that worked, how often it did not, for how many
// ns all of them tried, and for how many any did.
func flood(args []string) error {
	what, target := args[0], netip.MustParseAddrPort(args[1])
	length, err := time.ParseDuration(args[2])
	if err != nil {
		return err
	}
	senders, err := strconv.Atoi(args[3])
	if err != nil {
		return err
	}
	size := 472
	if len(args) > 4 {
		if size, err = strconv.Atoi(args[4]); err != nil {
			return err
		}
	}
	var done, refused atomic.Int64
	began, ended := make([]int64, senders), make([]int64, senders)
	var failed atomic.Value
	var all sync.WaitGroup
	start := time.Now()
	for i := range senders {
		all.Go(func() {
			once, err := sender(what, target, size)
			for err == nil && time.Since(start) < length {
				began[i] = time.Since(start).Nanoseconds()
				switch err = once(); {
				case err == nil:
					done.Add(1)
				case errors.Is(err, unix.EPERM):
					refused.Add(1)
					err = nil
				}
				ended[i] = time.Since(start).Nanoseconds()
			}
			if err != nil {
				failed.Store(err)
			}
		})
	}
	all.Wait()
	fmt.Println(done.Load(), refused.Load(), slices.Min(began), slices.Max(ended))
	err, _ = failed.Load().(error)
	return err
}

// sender is what a flood repeats.
func sender(what string, target netip.AddrPort, size int) (func() error, error) {
	to := sockaddr(unix.AF_INET, target)
	payload := make([]byte, size)
	switch what {
	case "connect":
		return func() error {
			fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_NONBLOCK, 0)
			if err != nil {
				return err
			}
			defer unix.Close(fd)
			if err := unix.SetsockoptLinger(fd, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1}); err != nil {
				return err
			}
			if err := unix.Connect(fd, to); !errors.Is(err, unix.EINPROGRESS) {
				return err
			}
			return nil
		}, nil
	case "call":
		return func() error {
			unix.Getppid()
			return nil
		}, nil
	}
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM, 0)
	if err != nil || what == "udp" {
		return func() error { return unix.Sendto(fd, payload, 0, to) }, err
	}
	if err := unix.Connect(fd, to); err != nil {
		return nil, err
	}
	return func() error {
		_, err := unix.Write(fd, payload)
		return err
	}, nil
}

// flooded is what a flood achieved.
type flooded struct {
	done, refused float64
	all, any      time.Duration // for how long all of its senders sent, and any of them
}

func (r *harness) flood(args ...string) flooded {
	r.t.Helper()
	var f flooded
	if _, err := fmt.Sscan(r.ok(r.run(append([]string{"flood"}, args...)...)), &f.done, &f.refused, &f.all, &f.any); err != nil {
		r.t.Fatal(err)
	}
	return f
}

// limit sets limits.
func (r *harness) limit(limits ...Limit) {
	r.t.Helper()
	if err := r.Limit(limits); err != nil {
		r.t.Fatal(err)
	}
}

// accepts takes connections and drops them.
func accepts(l net.Listener) {
	for {
		conn, err := l.Accept()
		if err != nil {
			return
		}
		_ = conn.(*net.TCPConn).SetLinger(0)
		_ = conn.Close()
	}
}

// permits is how much a limit allows in a time, its burst included.
func (l Limit) permits(elapsed time.Duration) float64 {
	if l.Period == 0 {
		return float64(l.Count)
	}
	return float64(l.Count) * (1 + elapsed.Seconds()/l.Period.Seconds())
}

// lands fails when got is more than a limit permits while anybody sent, and
// reports whether it is at most half a percent less than it permits while
// everybody did. A machine on which a sender does not get to run in time can
// make it less, so it may be tried again; nothing can make it more.
func lands(t *testing.T, what string, got float64, l Limit, f flooded) bool {
	t.Helper()
	least, most := l.permits(f.all), l.permits(f.any)
	t.Logf("%s: %.0f, which is %+.3f%% and %+.3f%%", what, got, 100*(got/least-1), 100*(got/most-1))
	if got > most {
		t.Errorf("%s: %.0f, more than %.1f", what, got, most)
	}
	return got >= least*0.995
}

// patience is for how long a test waits for a condition, and for how long a flood
// is repeated that misses its limit from below: on a loaded machine its senders
// stand still.
const patience = 2 * time.Minute

// A storm of connects lands on the limit, from one thread and from two.
func TestConnectStorm(t *testing.T) {
	r := newHarness(t, nil)
	go accepts(r.proxy4)
	for _, senders := range []string{"1", "2"} {
		landed := false
		for try, began := 0, time.Now(); !landed && time.Since(began) < patience; try++ {
			l := Limit{Name: senders + strconv.Itoa(try), Kind: LimitConnections, Count: 400, Period: 200 * time.Millisecond}
			r.limit(l)
			before := r.used()
			got := r.flood("connect", "240.0.0.9:80", "800ms", senders)
			landed = lands(t, "connects", got.done, l, got)
			after := r.used()
			connections, limited := float64(after.Connections-before.Connections), float64(after.Limited-before.Limited)
			if connections != got.done || limited != got.refused || limited == 0 {
				t.Errorf("counted %.0f and %.0f limited, the plugin %v", connections, limited, got)
			}
		}
		if !landed {
			t.Errorf("%s senders stay below the limit", senders)
		}
	}
}

// A flood of datagrams lands on the limit, as the receiver sees it.
func TestDatagramFlood(t *testing.T) {
	r := newHarness(t, nil)
	received := r.receive()
	for _, flood := range []string{"udp 1", "udp 2", "connected 2"} {
		landed := false
		for try, began := 0, time.Now(); !landed && time.Since(began) < patience; try++ {
			l := Limit{Name: flood + strconv.Itoa(try), Kind: LimitSentBytes, Count: 200_000, Period: 200 * time.Millisecond}
			r.limit(l)
			before, sum := r.used(), received()
			how, senders, _ := strings.Cut(flood, " ")
			got := r.flood(how, "10.8.8.8:53", "800ms", senders)
			after, bytes := r.used(), received()-sum
			landed = lands(t, "bytes", bytes, l, got)
			sent, questions := float64(after.SentBytes-before.SentBytes), float64(after.DNSQueries-before.DNSQueries)
			if sent != bytes || questions != got.done {
				t.Errorf("counted %.0f bytes in %.0f questions, the receiver %.0f, the plugin %v", sent, questions, bytes, got)
			}
		}
		if !landed {
			t.Errorf("%s stays below the limit", flood)
		}
	}
}

// used are the totals.
func (r *harness) used() Usage {
	r.t.Helper()
	u, err := r.Usage()
	if err != nil {
		r.t.Fatal(err)
	}
	return u
}

// receive counts the IP bytes that arrive at the resolver.
func (r *harness) receive() func() float64 {
	r.t.Helper()
	if err := r.dns4.(*net.UDPConn).SetReadBuffer(8 << 20); err != nil {
		r.t.Fatal(err)
	}
	var bytes atomic.Uint64
	go func() {
		buffer := make([]byte, 1<<16)
		for {
			n, _, err := r.dns4.ReadFrom(buffer)
			if err != nil {
				return
			}
			bytes.Add(uint64(n) + 20 + 8)
		}
	}()
	return func() float64 {
		for before := bytes.Load(); ; {
			time.Sleep(20 * time.Millisecond)
			now := bytes.Load()
			if now == before {
				return float64(now)
			}
			before = now
		}
	}
}

// stoppable is a rig whose crossings are kept.
type stoppable struct {
	*harness
	mu        sync.Mutex
	crossings []LimitEvent
}

func newStoppable(t *testing.T, change func(*Config)) *stoppable {
	t.Helper()
	s := &stoppable{}
	s.harness = newHarness(t, func(c *Config) {
		c.LimitChanged = func(crossing LimitEvent) {
			s.mu.Lock()
			defer s.mu.Unlock()
			s.crossings = append(s.crossings, crossing)
		}
		if change != nil {
			change(c)
		}
	})
	return s
}

// crossed are the crossings so far, as "name over" and "name free".
func (s *stoppable) crossed() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	var all []string
	for _, c := range s.crossings {
		state := " over"
		if c.Recovered {
			state = " free"
		}
		all = append(all, c.Limit.Name+state)
	}
	return all
}

// becomes waits until something is so.
func becomes(t *testing.T, what string, so func() bool) {
	t.Helper()
	for deadline := time.Now().Add(patience); !so(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("not within %v: %s", patience, what)
		}
	}
}

// A rate that stops lets the plugin run again when a tenth of it is free; the
// plugin sees no error, and never more than the rate.
func TestStopAndResume(t *testing.T) {
	for _, test := range []struct {
		kind LimitKind
		what string
	}{{LimitConnections, "connect"}, {LimitSyscalls, "call"}} {
		t.Run(test.kind.String(), func(t *testing.T) {
			s := newStoppable(t, nil)
			go accepts(s.proxy4)
			l := Limit{Name: "stop", Kind: test.kind, Count: 20_000, Period: 500 * time.Millisecond, Action: ActionStop}
			if test.kind == LimitConnections {
				l.Count = 500
			}
			s.limit(l)
			before := s.used()
			start := time.Now()
			got := s.flood(test.what, "240.0.0.9:80", "1200ms", "2")
			after := s.used()
			used := float64(after.Connections - before.Connections)
			if test.kind == LimitSyscalls {
				used = float64(after.Syscalls.Total - before.Syscalls.Total)
			}
			most := l.permits(time.Since(start)) + 2*lease
			t.Logf("used %.0f of %.0f, %v; %v", used, most, got, s.crossed())
			if used > most || used < most/2 {
				t.Errorf("used %.0f of %.0f", used, most)
			}
			crossings := s.crossed()
			// The thread that crosses stops before it returns. The other one may be in
			// a call of its own by then, once for each stop.
			if got.refused > float64(len(crossings)) {
				t.Errorf("%v: refused, with %d crossings", got, len(crossings))
			}
			if len(crossings) < 4 || crossings[0] != "stop over" || crossings[1] != "stop free" {
				t.Errorf("crossings: %v", crossings)
			}
		})
	}
}

// A process beyond a limit on processes does not get to run.
func TestProcessLimit(t *testing.T) {
	t.Run("host view", func(t *testing.T) { testProcessLimit(t, nil) })
	// The process that starts the program there, and the program, do not count.
	t.Run("own view", func(t *testing.T) { testProcessLimit(t, withView) })
}

func testProcessLimit(t *testing.T, change func(*Config)) {
	s := newStoppable(t, change)
	s.limit(Limit{Name: "few", Kind: LimitProcesses, Count: 7})
	const twenty = `n=0; for i in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20; do /bin/true && n=$((n+1)); done 2>/dev/null; echo $n`
	if got := s.ok(s.command(sandbox.Command{Path: "/bin/sh", Args: []string{"sh", "-c", twenty}})); got != "7" {
		t.Errorf("%s of 20 processes ran, 7 may", got)
	}
	if u := s.used(); u.Processes != 7 { // a process that did not run was not started
		t.Errorf("%d processes are counted", u.Processes)
	}
	becomes(t, "crossing", func() bool { return slices.Equal(s.crossed(), []string{"few over"}) })
	s.mu.Lock()
	who := s.crossings[0]
	s.mu.Unlock()
	if who.PID != 0 && who.Comm != "sh" { // it may be found out before it is called for
		t.Errorf("crossed by %d %q", who.PID, who.Comm)
	}
}

// A limit that kills ends every process of the plugin.
func TestKillAtLimit(t *testing.T) {
	for _, kind := range []LimitKind{LimitConnections, LimitSentBytes, LimitSyscalls, LimitProcesses} {
		t.Run(kind.String(), func(t *testing.T) {
			s := newStoppable(t, nil)
			go accepts(s.proxy4)
			what := map[LimitKind]string{
				LimitConnections: `exec 3<>/dev/tcp/240.0.0.9/80`, LimitSentBytes: `exec 3<>/dev/udp/10.8.8.8/53; printf %050d 0 >&3`,
				LimitSyscalls: `cd /`, LimitProcesses: `/bin/true`,
			}[kind]
			s.limit(Limit{Name: "kill", Kind: kind, Count: 700, Period: time.Hour, Action: ActionKill})
			got := s.command(sandbox.Command{Path: "/bin/bash", Args: []string{"bash", "-c", "sleep 60 & while :; do " + what + "; done"}})
			if got.status != 128+9 {
				t.Errorf("ended with %d: %s", got.status, got.stderr)
			}
			becomes(t, "the end of the other process", func() bool {
				populated, err := s.group.Populated()
				return !populated && err == nil
			})
			becomes(t, "crossing", func() bool { return len(s.crossed()) > 0 })
			if got := s.crossed(); !slices.Equal(got, []string{"kill over"}) {
				t.Errorf("crossings are %v", got)
			}
		})
	}
}

// A total refuses permanently, and what was used before counts.
func TestTotal(t *testing.T) {
	s := newStoppable(t, nil)
	go accepts(s.proxy4)
	total := Limit{Name: "total", Kind: LimitConnections, Count: 50, Used: 20}
	s.limit(total)
	if got := s.flood("connect", "240.0.0.9:80", "50ms", "2"); got.done != 30 || got.refused == 0 {
		t.Errorf("%v, want 30 connects", got)
	}
	s.limit(total)
	if got := s.flood("connect", "240.0.0.9:80", "60ms", "1"); got.done != 0 {
		t.Errorf("%v after it was set again", got)
	}
	total.Count = 60
	s.limit(total)
	becomes(t, "recovery", func() bool { return len(s.crossed()) == 2 })
	if got := s.flood("connect", "240.0.0.9:80", "60ms", "1"); got.done != 10 {
		t.Errorf("%v after it was raised by 10", got)
	}
	becomes(t, "the second crossing", func() bool { return len(s.crossed()) == 3 })
	s.limit(total, Limit{Name: "bytes", Kind: LimitSentBytes, Count: 10_000})
	received := s.receive()
	s.flood("udp", "10.8.8.8:53", "60ms", "2")
	if got := received(); got != 10_000 {
		t.Errorf("%.0f bytes of 10,000", got)
	}
	becomes(t, "the last crossing", func() bool { return len(s.crossed()) == 4 })
	if want := []string{"total over", "total free", "total over", "bytes over"}; !slices.Equal(s.crossed(), want) {
		t.Errorf("crossings are %v", s.crossed())
	}
	denied := 0
	for _, d := range s.seen() {
		if d.Cause == sandbox.CauseLimit && d.Hook == sandbox.HookConnect && d.Limit == "total" && d.Address.String() == "240.0.0.9:80" {
			denied++
		}
	}
	if denied == 0 {
		t.Error("no refusal names its limit")
	}
}

// All limits of a kind apply, and one that refuses costs the others nothing.
func TestAllApply(t *testing.T) {
	r := newHarness(t, nil)
	go accepts(r.proxy4)
	wide := Limit{Name: "wide", Kind: LimitConnections, Count: 40}
	r.limit(wide, Limit{Name: "narrow", Kind: LimitConnections, Count: 10})
	if got := r.flood("connect", "240.0.0.9:80", "50ms", "2"); got.done != 10 {
		t.Errorf("%v, want 10 connects", got)
	}
	r.limit(wide)
	if got := r.flood("connect", "240.0.0.9:80", "50ms", "2"); got.done != 30 {
		t.Errorf("%v, want 30 more", got)
	}
}

// To set limits again while they are used neither refills nor empties them.
func TestReloadUnderFlood(t *testing.T) {
	for _, other := range []Limit{
		{Count: 400, Period: 200 * time.Millisecond}, // the same
		{Count: 800, Period: 400 * time.Millisecond}, // the same rate with twice the burst
	} {
		t.Run(other.Period.String(), func(t *testing.T) {
			for began := time.Now(); !reloadUnderFlood(t, other); {
				if time.Since(began) > patience {
					t.Error("got too little, or more than one crossing, in each flood")
					break
				}
			}
		})
	}
}

// reloadUnderFlood alternates two limits while a plugin floods, and reports
// whether nearly all came through that the smaller one permits, with one crossing.
// Where the senders or the reloads stood still for a while, it is less, or the
// limit recovers in between. More than the larger one permits fails the test.
func reloadUnderFlood(t *testing.T, other Limit) bool {
	t.Helper()
	s := newStoppable(t, nil)
	go accepts(s.proxy4)
	l := Limit{Name: "reload", Kind: LimitConnections, Count: 400, Period: 200 * time.Millisecond}
	other.Name, other.Kind = l.Name, l.Kind
	s.limit(l)
	ended := make(chan struct{})
	reloads := make(chan int)
	go func() {
		for n := 0; ; n++ {
			select {
			case <-ended:
				reloads <- n
				return
			default:
				if err := s.Limit([][]Limit{{l}, {other}}[n%2]); err != nil {
					t.Error(err)
				}
			}
		}
	}()
	got := s.flood("connect", "240.0.0.9:80", "600ms", "2")
	close(ended)
	n := <-reloads
	most := other.permits(got.any)
	t.Logf("%d reloads; %.0f of %.0f", n, got.done, most)
	if got.done > most {
		t.Errorf("got %.0f connections with %d reloads, want at most %.0f", got.done, n, most)
	}
	becomes(t, "recovery", func() bool { return len(s.crossed()) > 0 && len(s.crossed())%2 == 0 })
	crossed := s.crossed()
	for i, got := range crossed {
		if want := []string{"reload over", "reload free"}[i%2]; got != want {
			t.Errorf("got crossings %v, want over and free by turns", crossed)
		}
	}
	return n >= 5 && len(crossed) == 2 && got.done >= l.permits(got.all)*0.9
}

// Two processes that continue each other do not outrun a limit for long, not
// even while the sidecar does nothing: in the end both are stopped, or killed.
func TestPingPong(t *testing.T) {
	r := newHarness(t, nil)
	l := Limit{Name: "calls", Kind: LimitSyscalls, Count: 5000, Period: time.Hour, Action: ActionStop}
	r.limit(l)
	r.stop()
	if err := <-r.stopped; err != nil {
		t.Error(err)
	}
	r.stop = nil
	before := r.used()
	done := r.start(&sandbox.Command{Args: []string{"python3", "-c", `
import os, signal
other = os.fork() or os.getppid()
while True: os.kill(other, signal.SIGCONT)
`}})
	still := func() bool {
		pids, err := r.scan.pids()
		return err == nil && len(pids) == stoppedIn(t, r.group)
	}
	becomes(t, "both to be stopped or killed", still)
	time.Sleep(100 * time.Millisecond)
	if !still() {
		t.Error("one of them goes on")
	}
	calls := r.used().Syscalls.Total - before.Syscalls.Total
	t.Logf("%d calls; %d processes are stopped", calls, stoppedIn(t, r.group))
	// A processor that took a lease of calls before the end may not have made all of them.
	const lease = 32
	least, most := l.Count-lease*uint64(runtime.NumCPU()), l.Count+4096+200
	if calls > most || calls < least {
		t.Errorf("%d calls, want %d to %d", calls, least, most)
	}
	if err := r.Kill(); err != nil {
		t.Error(err)
	}
	if got := done(); got.status != 128+9 {
		t.Errorf("ended with %d: %s", got.status, got.stderr)
	}
}

// stoppedIn counts the processes of a cgroup that a signal stopped.
func stoppedIn(t *testing.T, group *sandbox.Cgroup) int {
	t.Helper()
	text, err := os.ReadFile(group.Path + "/cgroup.procs")
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for pid := range strings.FieldsSeq(string(text)) {
		if stat, err := os.ReadFile("/proc/" + pid + "/stat"); err == nil && strings.Contains(string(stat), ") T ") {
			n++
		}
	}
	return n
}

// A plugin that was stopped stays stopped while no sidecar lives, and the next
// one takes over how its limits stand and lets it run when they do.
func TestStopOutlivesSidecar(t *testing.T) {
	group, path := given(t)
	plugin := settle(t, group, path, python(t), "-c", talker)
	state := t.TempDir()
	l := Limit{Name: "stop", Kind: LimitConnections, Count: 3, Period: 3 * time.Second, Action: ActionStop}
	total := Limit{Name: "total", Kind: LimitConnections, Count: 5}
	open := func() *Confinement {
		t.Helper()
		c, err := New(Config{StateDir: state, CgroupPath: group.Path, NetworkPath: path})
		if err != nil {
			t.Fatal(err)
		}
		if err := c.Limit([]Limit{l, total}); err != nil {
			t.Fatal(err)
		}
		proxy, err := c.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = proxy.Close() })
		if err := c.Attach(Endpoints{Proxy4: tcpPort(proxy)}); err != nil {
			t.Fatal(err)
		}
		return c
	}
	first := open()
	for range 2 {
		if got := plugin.ask(`tcp("240.0.0.9", 80)`); got != "ok" {
			t.Fatal(got)
		}
	}
	answer := make(chan string)
	go func() { answer <- plugin.ask(`tcp("240.0.0.9", 80)`) }()
	becomes(t, "stop from the kernel", func() bool { return stoppedIn(t, group) == 1 })
	if err := first.Close(); err != nil { // its hooks stay, and with them the stop
		t.Fatal(err)
	}
	time.Sleep(1200 * time.Millisecond) // more than a tenth is free by now
	if n := stoppedIn(t, group); n != 1 {
		t.Errorf("%d processes are stopped without a sidecar", n)
	}
	second := open()
	defer func() {
		if err := errors.Join(second.Close(), Detach(state, true)); err != nil {
			t.Error(err)
		}
	}()
	ctx, stop := context.WithCancel(t.Context())
	ran := make(chan error)
	go func() { ran <- second.Run(ctx) }()
	if got := <-answer; got != "ok" {
		t.Errorf("the connect that was the last ended with %s", got)
	}
	for _, want := range []string{"ok", "ok", "EPERM"} { // of the total, 3 are used
		time.Sleep(1100 * time.Millisecond)
		if got := plugin.ask(`tcp("240.0.0.9", 80)`); got != want {
			t.Errorf("after the restart connect ended with %s, want %s", got, want)
		}
	}
	stop()
	if err := <-ran; err != nil {
		t.Error(err)
	}
}

// A plugin that a caller froze stays frozen when a limit would let it run.
func TestFreezeAndStop(t *testing.T) {
	s := newStoppable(t, nil)
	s.limit(Limit{Name: "stop", Kind: LimitConnections, Count: 10, Period: time.Second, Action: ActionStop})
	ask, end := s.dialogue("python3", "python3", "-c", talker)
	for range 9 {
		ask(`tcp("240.0.0.9", 80)`)
	}
	if err := s.Freeze(true); err != nil {
		t.Fatal(err)
	}
	answer := make(chan string)
	go func() { answer <- ask(`tcp("240.0.0.9", 80)`) }()
	select {
	case got := <-answer:
		t.Errorf("frozen, it answered %s", got)
	case <-time.After(300 * time.Millisecond):
	}
	if err := s.Freeze(false); err != nil {
		t.Fatal(err)
	}
	if got := <-answer; got != "ok" {
		t.Error(got)
	}
	for range 20 {
		if got := ask(`tcp("240.0.0.9", 80)`); got != "ok" {
			t.Errorf("stopped at a limit, connect ended with %s", got)
		}
	}
	if err := s.Freeze(true); err != nil {
		t.Fatal(err)
	}
	time.Sleep(300 * time.Millisecond) // a limit that stopped it would have released it
	go func() { answer <- ask(`tcp("240.0.0.9", 80)`) }()
	select {
	case got := <-answer:
		t.Errorf("a limit's release undid a caller's freeze: %s", got)
	case <-time.After(300 * time.Millisecond):
	}
	if err := s.Freeze(false); err != nil {
		t.Fatal(err)
	}
	<-answer
	if status := end(); status != 0 {
		t.Errorf("status %d", status)
	}
}

// Data on open connections waits for its limit and arrives whole.
func TestStreamUnderLimit(t *testing.T) {
	for _, test := range []struct {
		name string
		kind LimitKind
		does Action
	}{
		{"sent", LimitSentBytes, ActionDeny},
		{"sent, paced", LimitSentBytes, ActionThrottle},
		{"sent, stopped", LimitSentBytes, ActionStop},
		{"received", LimitReceivedBytes, ActionDeny},
		{"received, stopped", LimitReceivedBytes, ActionStop},
	} {
		t.Run(test.name, func(t *testing.T) {
			const size = 3 << 20
			s := newStoppable(t, nil)
			l := Limit{Name: "bytes", Kind: test.kind, Count: 1 << 20, Period: 250 * time.Millisecond, Action: test.does}
			s.limit(l)
			got := make(chan int64, 1)
			go func() {
				conn, err := s.proxy4.Accept()
				if err != nil {
					got <- -1
					return
				}
				defer conn.Close()
				if test.kind == LimitReceivedBytes {
					n, _ := conn.Write(make([]byte, size))
					got <- int64(n)
					return
				}
				n, _ := io.Copy(io.Discard, conn)
				got <- n
			}()
			script := `import socket
s = socket.create_connection(("240.0.0.9", 80)); s.sendall(bytes(3 << 20)); s.shutdown(1); s.recv(1)`
			if test.kind == LimitReceivedBytes {
				script = `import socket
s = socket.create_connection(("240.0.0.9", 80)); n = 0
while True:
    b = s.recv(1 << 16)
    if not b: break
    n += len(b)
assert n == 3 << 20, n`
			}
			start := time.Now()
			s.ok(s.command(sandbox.Command{Args: []string{"python3", "-c", script}}))
			u, elapsed := s.used(), time.Since(start)
			if n := <-got; n != size {
				t.Errorf("%d of %d bytes arrived", n, size)
			}
			bytes := float64(u.SentBytes)
			if test.kind == LimitReceivedBytes {
				bytes = float64(u.ReceivedBytes)
			}
			t.Logf("%.0f bytes in %v, at most %.0f; %v", bytes, elapsed, l.permits(elapsed), s.crossed())
			if most := l.permits(elapsed) + 5000; bytes > most { // packets without payload pass
				t.Errorf("%.0f bytes, at most %.0f", bytes, most)
			}
		})
	}
}

// The price of n is never less than the rate's, the burst is the count, and
// nothing overflows, whatever the count and the period.
func TestPrices(t *testing.T) {
	for _, count := range []uint64{1, 2, 7, 60, 1000, 10 << 20, 1e9 + 7, 1 << 40, 1<<62 - 1, 1 << 63, 1<<64 - 1} {
		for _, period := range []time.Duration{1, 1000, time.Second, 7 * time.Second, time.Hour, maxPeriod} {
			for kind := LimitConnections; kind <= LimitProcesses; kind++ {
				k := compileLimit(Limit{Kind: kind, Count: count, Period: period}, 2, 5*time.Millisecond)
				whole := k.price(k.Count)
				if whole < uint64(period) || whole > uint64(period)+k.Count+1<<k.Shift {
					t.Errorf("%d/%v: the whole costs %d", count, period, whole)
				}
				one := k.price(1)
				high, low := bits.Mul64(one, k.Count)
				if high == 0 && low < uint64(period) {
					t.Errorf("%d/%v: one costs %d", count, period, one)
				}
				small := k.Count <= 30_000 && period >= time.Second
				if unitary := kind == LimitConnections || kind == LimitProcesses || kind == LimitSyscalls && small; unitary && high == 0 {
					if burst := k.Depth / one; burst != k.Count {
						t.Errorf("%s %d/%v: the burst is %d", kind, count, period, burst)
					}
				}
				if k.Depth > forever+uint64(maxPeriod) || k.Reserve > k.Depth {
					t.Errorf("%d/%v: depth %d, reserve %d", count, period, k.Depth, k.Reserve)
				}
			}
		}
	}
	total := compileLimit(Limit{Kind: LimitSyscalls, Count: 100}, 2, 5*time.Millisecond)
	if total.Depth != 100 || total.price(3) != 3 || total.Period != 0 {
		t.Errorf("a total is %+v", total)
	}
}

func TestLimitsAreChecked(t *testing.T) {
	fine := Limit{Name: "x", Kind: LimitConnections, Count: 1}
	for name, limits := range map[string][]Limit{
		"no kind":    {{Name: "x", Count: 1}},
		"no action":  {{Name: "x", Kind: LimitSyscalls, Count: 1, Action: 4}},
		"negative":   {{Name: "x", Kind: LimitSyscalls, Count: 1, Period: -1}},
		"too long":   {{Name: "x", Kind: LimitSyscalls, Count: 1, Period: maxPeriod + 1}},
		"same names": {fine, fine},
		"too many":   append(manyLimits(MaxLimits), fine),
	} {
		if err := checkLimits(limits); err == nil {
			t.Errorf("took limits with %s", name)
		}
	}
	if err := checkLimits([]Limit{fine, {Name: "x", Kind: LimitSyscalls}}); err != nil {
		t.Error(err)
	}
}

// Attempts of hostile plugins: a segmented datagram, one larger than its rate,
// corked pieces, a limit of nothing, and a limit of everything.
func TestOddLimits(t *testing.T) {
	s := newStoppable(t, nil)
	received := s.receive()
	s.limit(Limit{Name: "none", Kind: LimitConnections, Period: time.Second})
	if got := s.flood("connect", "240.0.0.9:80", "5ms", "1"); got.done != 0 {
		t.Errorf("a limit of nothing let %v through", got)
	}
	s.limit(Limit{Name: "all", Kind: LimitSentBytes, Count: 1 << 63, Period: time.Second})
	if got := s.flood("udp", "10.8.8.8:53", "5ms", "2"); got.refused != 0 {
		t.Errorf("a limit of everything: %v", got)
	}
	before := received()
	l := Limit{Name: "small", Kind: LimitSentBytes, Count: 1000, Period: 50 * time.Millisecond}
	s.limit(l)
	got := s.flood("udp", "10.8.8.8:53", "1s", "1", "9972") // ten times the rate: one per half a second
	if bytes := received() - before; bytes < 20_000 || bytes > 30_000 || got.refused == 0 {
		t.Errorf("%.0f bytes in packets larger than the limit, %v", bytes, got)
	}
	sent := s.used().SentBytes
	l.Name, l.Count, l.Period = "segments", 100_000, 0
	s.limit(l)
	s.ok(s.command(sandbox.Command{Args: []string{"python3", "-c", `
import socket
u = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
u.setsockopt(17, 103, 100)  # SOL_UDP, UDP_SEGMENT
u.connect(("10.8.8.8", 53))
v = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
v.connect(("10.8.8.8", 53))
try:
    while True: u.send(bytes(6000))
except PermissionError: pass
try:
    while True:
        v.send(bytes(10), socket.MSG_MORE); v.send(bytes(10))
except PermissionError: pass
`}}))
	if sent = s.used().SentBytes - sent; sent > 100_000 || sent < 99_900 {
		t.Errorf("%d bytes in segments and pieces of a total of 100,000", sent)
	}
}

// manyLimits returns n limits of one kind.
func manyLimits(n int) (limits []Limit) {
	for i := range n {
		limits = append(limits, Limit{Name: strconv.Itoa(i), Kind: LimitConnections, Count: 1})
	}
	return limits
}

// A change of limits waits for programs that run with those before the present ones. It
// does not wait where there were not any, as at the start of a plugin.
func TestLimitsAwaitEarlierOnes(t *testing.T) {
	r := newHarness(t, nil)
	for i, step := range []struct {
		limits  []Limit
		earlier bool
	}{
		{nil, false},
		{[]Limit{{Kind: LimitConnections, Name: "one", Count: 1}}, false},
		{[]Limit{{Kind: LimitConnections, Name: "two", Count: 2}}, true},
		{nil, true},
		{nil, false},
	} {
		if err := r.Limit(step.limits); err != nil {
			t.Fatal(err)
		}
		if got := r.programs.limits.earlier; got != step.earlier {
			t.Errorf("step %d: the next change waits: %t, want %t", i, got, step.earlier)
		}
	}
	// The limits of an earlier sidecar are unknown.
	again, err := loadCollection(r.pinDir, r.group, true, false, false)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = again.close() }()
	if !again.limits.earlier {
		t.Error("the first change with the maps of an earlier sidecar does not wait")
	}
}

// TestAhead checks that an estimate of the clock is later than the coarse clock by a
// tick at least, and takes at most a 128th of a burst, of limits on bytes alone.
func TestAhead(t *testing.T) {
	const tick = 5 * time.Millisecond
	for _, period := range []time.Duration{time.Millisecond, 100 * time.Millisecond, time.Second, time.Minute, time.Hour, maxPeriod} {
		for kind := LimitConnections; kind <= LimitProcesses; kind++ {
			k := compileLimit(Limit{Kind: kind, Count: 1 << 20, Period: period}, 2, tick)
			bytes := kind == LimitSentBytes || kind == LimitReceivedBytes
			if estimates := k.Ahead != 0; estimates != (bytes && period >= time.Second) {
				t.Errorf("%s in %v: ahead is %d", kind, period, k.Ahead)
			}
			if by := time.Duration(k.Depth >> k.Ahead); k.Ahead != 0 && (by < tick || by > period/128 || by > 32*tick) {
				t.Errorf("%s in %v: the estimate is %v ahead", kind, period, by)
			}
		}
	}
	if k := compileLimit(Limit{Kind: LimitSentBytes, Count: 1 << 20}, 2, tick); k.Ahead != 0 {
		t.Errorf("a total estimates a clock: ahead is %d", k.Ahead)
	}
}
