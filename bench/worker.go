package main

import (
	"bufio"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
	"unsafe"

	"github.com/chaperone-proxy/chaperone/ebpf/sandbox"

	"golang.org/x/sys/unix"

	"github.com/chaperone-proxy/chaperone/ebpf"
)

// The worker is what the kernel scenes measure: the same program in a cage, as a
// plugin, and outside, with nothing attached to it. Its standard input is one
// end of a socket pair on which it takes orders, a line each, and answers with
// a line, sometimes with a descriptor.

// workerThreads is how many threads a worker has to work with, each locked.
const workerThreads = 2

// workerMain is the role "worker".
func workerMain() error {
	threads := make([]*workerThread, workerThreads)
	greeting := []any{}
	for i := range threads {
		threads[i] = newWorkerThread()
		greeting = append(greeting, threads[i].tid)
	}
	if err := answer(fmt.Sprintln(greeting...), -1); err != nil {
		return err
	}
	orders := bufio.NewScanner(os.Stdin)
	for orders.Scan() {
		text, fd, err := obey(threads, strings.Fields(orders.Text()))
		if err != nil {
			text = "error: " + err.Error()
		}
		if err := answer(text+"\n", fd); err != nil {
			return err
		}
	}
	return orders.Err()
}

func answer(text string, fd int) error {
	var rights []byte
	if fd >= 0 {
		rights = unix.UnixRights(fd)
	}
	return unix.Sendmsg(int(os.Stdin.Fd()), []byte(text), rights, nil, 0)
}

// obey carries out one order. fd is -1 when none goes with the answer.
func obey(threads []*workerThread, order []string) (text string, fd int, err error) {
	var n, size int
	var length time.Duration
	target := ""
	scan := func(values ...any) error { return scanOrder(order, values...) }
	each := func(work func() (string, error)) (string, int, error) {
		text, err := together(threads[:n], work)
		return text, -1, err
	}
	switch order[0] {
	case "loopback":
		return "", -1, raiseLoopback()
	case "listen":
		return listenAnywhere()
	case "dial":
		err = scan(&target)
		if err == nil {
			fd, err = dial(target)
		}
		return "", fd, err
	case "filter": // THREADS
		if err := scan(&n); err != nil {
			return "", -1, err
		}
		return each(allowEverything)
	case "connects": // THREADS NUMBER ADDRESS
		if err := scan(&n, &size, &target); err != nil {
			return "", -1, err
		}
		return each(func() (string, error) { return timeConnects(size, target) })
	case "flood": // THREADS SIZE NANOSECONDS ADDRESS
		if err := scan(&n, &size, (*int64)(&length), &target); err != nil {
			return "", -1, err
		}
		return each(func() (string, error) { return flood(size, length, target) })
	case "storm": // THREADS NANOSECONDS ADDRESS
		if err := scan(&n, (*int64)(&length), &target); err != nil {
			return "", -1, err
		}
		return each(func() (string, error) { return storm(length, target) })
	case "children": // NUMBER
		if err := scan(&n); err != nil {
			return "", -1, err
		}
		return "", -1, breed(n)
	}
	text, err = obeyCalls(threads, order)
	return text, -1, err
}

// scanOrder reads the arguments of an order.
func scanOrder(order []string, values ...any) error {
	if len(order)-1 != len(values) {
		return fmt.Errorf("%q takes %d arguments", order[0], len(values))
	}
	_, err := fmt.Sscan(strings.Join(order[1:], " "), values...)
	return err
}

// obeyCalls carries out an order about system calls or switches of threads.
func obeyCalls(threads []*workerThread, order []string) (text string, err error) {
	var n, size int
	var pause time.Duration
	switch order[0] {
	case "calls": // THREADS NUMBER
		if err := scanOrder(order, &n, &size); err != nil {
			return "", err
		}
		return together(threads[:n], func() (string, error) { return timeCalls(size) })
	case "switches": // NUMBER
		if err := scanOrder(order, &size); err != nil {
			return "", err
		}
		return timeSwitches(threads, size)
	case "pace": // CALLS NANOSECONDS: so many calls, and so long a pause, until the next order
		if err := scanOrder(order, &size, (*int64)(&pause)); err != nil {
			return "", err
		}
		threads[0].pace(size, pause)
		return "", nil
	case "rest":
		threads[0].rest()
		return "", nil
	}
	return "", fmt.Errorf("unknown order %q", order[0])
}

// workerThread is a thread that does one thing at a time.
type workerThread struct {
	tid   int
	work  chan func()
	paced chan struct{} // closed when the pacing has ended
	end   atomic.Bool   // it is to end
}

// pace has the thread make calls in the background, some at a time, until [workerThread.rest].
func (t *workerThread) pace(calls int, pause time.Duration) {
	t.paced = make(chan struct{})
	t.end.Store(false)
	t.work <- func() {
		defer close(t.paced)
		wait := unix.NsecToTimespec(int64(pause))
		for !t.end.Load() {
			for range calls {
				_, _, _ = unix.RawSyscall(unix.SYS_GETPPID, 0, 0, 0)
			}
			// Without a report to the Go runtime its monitor takes 2 % of a CPU during the pause.
			if pause > 0 {
				_ = unix.Nanosleep(&wait, nil)
			}
		}
	}
}

// rest ends what pace began.
func (t *workerThread) rest() {
	t.end.Store(true)
	<-t.paced
}

func newWorkerThread() *workerThread {
	t := &workerThread{work: make(chan func())}
	tid := make(chan int)
	go func() {
		runtime.LockOSThread()
		tid <- unix.Gettid()
		for work := range t.work {
			work()
		}
	}()
	t.tid = <-tid
	return t
}

// together has every thread do the work at the same time.
func together(threads []*workerThread, work func() (string, error)) (string, error) {
	texts, errs := make([]string, len(threads)), make([]error, len(threads))
	var done, ready sync.WaitGroup
	begin := make(chan struct{})
	done.Add(len(threads))
	ready.Add(len(threads))
	for i, t := range threads {
		t.work <- func() {
			defer done.Done()
			ready.Done()
			<-begin
			texts[i], errs[i] = work()
		}
	}
	ready.Wait()
	close(begin)
	done.Wait()
	return strings.Join(texts, " "), errors.Join(errs...)
}

// timeCalls returns how much CPU time a system call that does next to nothing
// takes, in picoseconds.
func timeCalls(n int) (string, error) {
	before := threadTime()
	for range n {
		_, _, _ = unix.RawSyscall(unix.SYS_GETPPID, 0, 0, 0)
	}
	return fmt.Sprint((threadTime() - before) * 1000 / int64(n)), nil
}

// timeSwitches returns how long a switch between two threads takes that pass a byte to and
// fro, in picoseconds. They have to run on one CPU.
func timeSwitches(threads []*workerThread, n int) (string, error) {
	var there, back [2]int
	if err := errors.Join(unix.Pipe(there[:]), unix.Pipe(back[:])); err != nil {
		return "", err
	}
	var place atomic.Int32
	var took atomic.Int64
	_, err := together(threads, func() (string, error) {
		first := place.Add(1) == 1
		reads, writes := there[0], back[1]
		if first {
			reads, writes = back[0], there[1]
		}
		var b [1]byte
		begun := monotonic()
		for range n {
			if first {
				_, _, _ = unix.RawSyscall(unix.SYS_WRITE, uintptr(writes), uintptr(unsafe.Pointer(&b[0])), 1)
			}
			if got, _, errno := unix.RawSyscall(unix.SYS_READ, uintptr(reads), uintptr(unsafe.Pointer(&b[0])), 1); got != 1 {
				return "", errno
			}
			if !first {
				_, _, _ = unix.RawSyscall(unix.SYS_WRITE, uintptr(writes), uintptr(unsafe.Pointer(&b[0])), 1)
			}
		}
		if first {
			took.Store(monotonic() - begun)
		}
		return "", nil
	})
	for _, fd := range slices.Concat(there[:], back[:]) {
		err = errors.Join(err, unix.Close(fd))
	}
	return fmt.Sprint(took.Load() * 1000 / int64(2*n)), err
}

// allowEverything puts the calling thread under a seccomp filter of one instruction.
func allowEverything() (string, error) {
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return "", err
	}
	filter := unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_ALLOW}
	program := unix.SockFprog{Len: 1, Filter: &filter}
	_, _, errno := unix.RawSyscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, 0, uintptr(unsafe.Pointer(&program)))
	if errno != 0 {
		return "", fmt.Errorf("install seccomp filter: %w", errno)
	}
	return "", nil
}

// threadTime is the CPU time of the calling thread in nanoseconds.
func threadTime() int64 { return clock(unix.CLOCK_THREAD_CPUTIME_ID) }

func monotonic() int64 { return clock(unix.CLOCK_MONOTONIC) }

func clock(id int32) int64 {
	var spec unix.Timespec
	_ = unix.ClockGettime(id, &spec) // every Linux has these
	return spec.Nano()
}

// timeConnects returns the median of n connects in nanoseconds. Over loopback
// the whole handshake is done when connect returns.
func timeConnects(n int, target string) (string, error) {
	to, family, err := socketAddress(target)
	if err != nil {
		return "", err
	}
	took := make([]time.Duration, 0, n)
	for range n {
		fd, err := unix.Socket(family, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return "", err
		}
		begun := time.Now()
		err = unix.Connect(fd, to)
		took = append(took, time.Since(begun))
		if err != nil {
			return "", errors.Join(fmt.Errorf("connect %s: %w", target, err), unix.Close(fd))
		}
		if err := vanish(fd); err != nil {
			return "", err
		}
	}
	slices.Sort(took)
	return fmt.Sprint(int64(took[n/2])), nil
}

// vanish closes a connection without leaving its port in TIME_WAIT.
func vanish(fd int) error {
	err := unix.SetsockoptLinger(fd, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1})
	return errors.Join(err, unix.Close(fd))
}

// flood sends datagrams of size bytes for length, and returns how many left and
// how many were refused, and when it began and ended in
// nanoseconds of a clock that all threads share.
func flood(size int, length time.Duration, target string) (string, error) {
	to, family, err := socketAddress(target)
	if err != nil {
		return "", err
	}
	fd, err := unix.Socket(family, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return "", err
	}
	defer func() { _ = unix.Close(fd) }()
	payload := make([]byte, size)
	return count(length, func() error { return unix.Sendto(fd, payload, 0, to) })
}

// storm connects for length; it counts like flood.
func storm(length time.Duration, target string) (string, error) {
	to, family, err := socketAddress(target)
	if err != nil {
		return "", err
	}
	return count(length, func() error {
		fd, err := unix.Socket(family, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		refused := unix.Connect(fd, to)
		if err := vanish(fd); err != nil {
			return err
		}
		return refused
	})
}

// count repeats what a limit may refuse, until it has refused after the time: a
// sender that had to wait for its CPU leaves nothing of the limit unused.
func count(length time.Duration, once func() error) (string, error) {
	done, refused := 0, 0
	begun := monotonic()
	for {
		switch err := once(); {
		case err == nil:
			done++
		case !errors.Is(err, unix.EPERM):
			return "", err
		default:
			refused++
			if now := monotonic(); now-begun >= int64(length) {
				return fmt.Sprint(done, refused, begun, now), nil
			}
		}
	}
}

// breed starts n processes that wait for their end.
func breed(n int) error {
	for range n {
		cmd := exec.Command("sleep", "600") //nolint:noctx // ended with the worker's cgroup
		cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
		if err := cmd.Start(); err != nil {
			return err
		}
	}
	return nil
}

func socketAddress(text string) (unix.Sockaddr, int, error) {
	address, err := net.ResolveTCPAddr("tcp4", text)
	if err != nil {
		return nil, 0, err
	}
	return &unix.SockaddrInet4{Port: address.Port, Addr: [4]byte(address.IP.To4())}, unix.AF_INET, nil
}

// dial returns a connected socket made by this process.
func dial(target string) (int, error) {
	to, family, err := socketAddress(target)
	if err != nil {
		return -1, err
	}
	fd, err := unix.Socket(family, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, err
	}
	if err := unix.Connect(fd, to); err != nil {
		return -1, errors.Join(fmt.Errorf("connect %s: %w", target, err), unix.Close(fd))
	}
	return fd, nil
}

// listenAnywhere returns a listener of this process's network namespace.
func listenAnywhere() (string, int, error) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return "", -1, err
	}
	if err := unix.Bind(fd, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}); err != nil {
		return "", -1, err
	}
	return "", fd, unix.Listen(fd, 4096)
}

// raiseLoopback makes the loopback of a new network namespace work.
func raiseLoopback() error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer func() { _ = unix.Close(fd) }()
	request, err := unix.NewIfreq("lo")
	if err != nil {
		return err
	}
	request.SetUint16(unix.IFF_UP | unix.IFF_LOOPBACK)
	return unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, request)
}

// worker is the other end: a worker process as the scenes see it.
type worker struct {
	orders *os.File
	heard  *bufio.Reader
	fds    []int // that came with the answers, not yet taken
	tids   [workerThreads]int
	pid    int
	wait   func() error
}

// Read makes the worker's answers a stream and collects the descriptors.
func (w *worker) Read(p []byte) (int, error) {
	rights := make([]byte, unix.CmsgSpace(4))
	n, m, _, _, err := unix.Recvmsg(int(w.orders.Fd()), p, rights, unix.MSG_CMSG_CLOEXEC)
	if err != nil {
		return 0, err
	}
	if n == 0 {
		return 0, errors.New("the worker ended")
	}
	messages, err := unix.ParseSocketControlMessage(rights[:m])
	if err != nil {
		return n, err
	}
	for _, message := range messages {
		fds, err := unix.ParseUnixRights(&message)
		if err != nil {
			return n, err
		}
		w.fds = append(w.fds, fds...)
	}
	return n, nil
}

// startWorker starts one with the other end of orders as its standard input.
func startWorker(start func(input *os.File) (pid int, wait func() error, err error)) (*worker, error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	w := &worker{orders: os.NewFile(uintptr(fds[0]), "orders")}
	w.heard = bufio.NewReader(w)
	input := os.NewFile(uintptr(fds[1]), "input")
	w.pid, w.wait, err = start(input)
	err = errors.Join(err, input.Close())
	if err != nil {
		return nil, errors.Join(err, w.orders.Close())
	}
	line, err := w.heard.ReadString('\n')
	if err == nil {
		_, err = fmt.Sscan(line, &w.tids[0], &w.tids[1])
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("start worker: %w", err), w.Close())
	}
	return w, nil
}

// outside starts a worker with nothing attached to it, in a network namespace
// of its own, as the one in the cage has.
func outside() (*worker, error) {
	w, err := startWorker(func(input *os.File) (int, func() error, error) {
		cmd := exec.Command("/proc/self/exe", "role=worker") //nolint:noctx // this program; ended by Close
		cmd.Stdin, cmd.Stderr = input, os.Stderr
		cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Cloneflags: syscall.CLONE_NEWNET}
		if err := cmd.Start(); err != nil {
			return 0, nil, err
		}
		return cmd.Process.Pid, cmd.Wait, nil
	})
	if err != nil {
		return nil, err
	}
	if _, err := w.order("loopback"); err != nil {
		return nil, errors.Join(err, w.Close())
	}
	return w, nil
}

// inside starts a worker as the plugin of a cage.
func inside(cage *ebpf.Confinement) (*worker, error) {
	return startWorker(func(input *os.File) (int, func() error, error) {
		p, err := cage.Start(sandbox.Command{
			Path: "/proc/self/exe", Args: []string{"worker", "role=worker"}, Env: []string{"PATH=" + os.Getenv("PATH")},
			Stdin: input, Stderr: os.Stderr,
		})
		if err != nil {
			return 0, nil, err
		}
		return p.PID(), func() error { _, err := p.Wait(); return err }, nil
	})
}

// order gives one and returns the answer.
func (w *worker) order(order ...any) (string, error) {
	if _, err := fmt.Fprintln(w.orders, order...); err != nil {
		return "", err
	}
	line, err := w.heard.ReadString('\n')
	if err != nil {
		return "", fmt.Errorf("%v: %w", order[0], err)
	}
	line = strings.TrimSpace(line)
	if failure, failed := strings.CutPrefix(line, "error: "); failed {
		return "", fmt.Errorf("%v: %s", order[0], failure)
	}
	return line, nil
}

// numbers gives an order that is answered with numbers.
func (w *worker) numbers(order ...any) ([]int64, error) {
	line, err := w.order(order...)
	if err != nil {
		return nil, err
	}
	var all []int64
	for field := range strings.FieldsSeq(line) {
		var n int64
		if _, err := fmt.Sscan(field, &n); err != nil {
			return nil, err
		}
		all = append(all, n)
	}
	return all, nil
}

// descriptor gives an order that is answered with a descriptor.
func (w *worker) descriptor(order ...any) (int, error) {
	if _, err := w.order(order...); err != nil {
		return -1, err
	}
	if len(w.fds) == 0 {
		return -1, fmt.Errorf("%v: no descriptor received", order[0])
	}
	fd := w.fds[0]
	w.fds = w.fds[1:]
	return fd, nil
}

// Close ends the worker, which ends when its orders do.
func (w *worker) Close() error {
	return errors.Join(w.orders.Close(), w.wait())
}
