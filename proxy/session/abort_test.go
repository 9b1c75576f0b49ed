package session_test

import (
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/chaperone-proxy/chaperone/internal/testenv"
	"github.com/chaperone-proxy/chaperone/proxy/session"
)

// pairOf returns both ends of a connection.
func pairOf(t *testing.T, network, address string) (near, far net.Conn) {
	t.Helper()
	l, err := net.Listen(network, address)
	testenv.Must(t, err)
	defer l.Close()
	near, err = net.Dial(network, l.Addr().String())
	testenv.Must(t, err)
	far, err = l.Accept()
	testenv.Must(t, err)
	t.Cleanup(func() { _, _ = near.Close(), far.Close() })
	return near, far
}

// TestAbortResets aborts a connection while this end is read: the other end reads what has
// arrived and then a reset, never an end of file that a protocol could take for a complete
// answer; the reader of this end finds it ended, and the descriptor is still open.
func TestAbortResets(t *testing.T) {
	for network, want := range map[string]error{"tcp4": syscall.ECONNRESET, "tcp6": syscall.ECONNRESET, "unix": nil} {
		t.Run(network, func(t *testing.T) {
			address := map[string]string{"tcp4": "127.0.0.1:0", "tcp6": "[::1]:0", "unix": filepath.Join(t.TempDir(), "s")}[network]
			near, far := pairOf(t, network, address)
			_, err := io.WriteString(near, "part of an answer")
			testenv.Must(t, err)
			read := make(chan error, 1)
			go func() {
				_, err := io.Copy(io.Discard, near)
				read <- err
			}()
			session.AbortConn(near)
			if got, err := io.ReadAll(far); string(got) != "part of an answer" || !errors.Is(err, want) {
				t.Errorf("the other end read %q, %v, want %v", got, err, want)
			}
			if err := <-read; !errors.Is(err, want) {
				t.Errorf("this end read %v, want %v", err, want)
			}
			if _, err := near.Write([]byte("more")); err == nil {
				t.Error("this end can still write")
			}
			testenv.Must(t, near.Close()) // the descriptor is still this end's
			session.AbortConn(near)
		})
	}
}

// TestAbortOfAnEndedConnection aborts connections whose other end has finished or reset.
func TestAbortOfAnEndedConnection(t *testing.T) {
	near, far := pairOf(t, "tcp4", "127.0.0.1:0")
	testenv.Must(t, near.(*net.TCPConn).CloseWrite())
	session.AbortConn(near)
	if _, err := io.ReadAll(far); err != nil {
		t.Errorf("a direction that had ended reads %v", err)
	}
	if _, err := far.Write([]byte("more")); !errors.Is(err, syscall.ECONNRESET) && !errors.Is(err, syscall.EPIPE) {
		t.Errorf("the other direction goes on: %v", err)
	}
	session.AbortConn(near) // has no effect
	session.AbortConn(far)
}

// TestInParallel calls a function once with each of many, and keeps the caller's thread
// and its priority.
func TestInParallel(t *testing.T) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	before, err := unix.SchedGetAttr(0, 0)
	testenv.Must(t, err)
	all := make([]int, 1000)
	seen := make([]atomic.Int32, len(all))
	for i := range all {
		all[i] = i
	}
	caller := unix.Gettid()
	got := session.InParallel(all, func(i int) bool {
		seen[i].Add(1)
		return i%2 == 0
	})
	for i := range seen {
		if seen[i].Load() != 1 {
			t.Fatalf("%d was called %d times", i, seen[i].Load())
		}
	}
	if got != 500 {
		t.Errorf("got %d, want 500", got)
	}
	after, err := unix.SchedGetAttr(0, 0)
	testenv.Must(t, err)
	if unix.Gettid() != caller || after.Policy != before.Policy || after.Nice != before.Nice || after.Priority != before.Priority {
		t.Errorf("the priority is %+v, and was %+v", after, before)
	}
	if session.InParallel(nil, func(int) bool { return true }) != 0 {
		t.Error("got a count of an empty list, want 0")
	}
}

// TestAtHighPriority cuts within a stretch at high priority, after which the caller has its
// thread and its priority again.
func TestAtHighPriority(t *testing.T) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	before, err := unix.SchedGetAttr(0, 0)
	testenv.Must(t, err)
	caller, within := unix.Gettid(), *before
	session.AtHighPriority(func() {
		session.InParallel(make([]int, 20), func(int) bool { return true })
		attr, err := unix.SchedGetAttr(0, 0)
		testenv.Must(t, err)
		within = *attr
	})
	after, err := unix.SchedGetAttr(0, 0)
	testenv.Must(t, err)
	if unix.Gettid() != caller || after.Policy != before.Policy || after.Nice != before.Nice || after.Priority != before.Priority {
		t.Errorf("the priority is %+v, and was %+v", after, before)
	}
	if os.Geteuid() == 0 && within.Policy == before.Policy && within.Nice == before.Nice {
		t.Errorf("the priority within is %+v, after InParallel, want a higher one than %+v", within, before)
	}
}

// TestRealtimeCutLeavesAProcessor has a thread that takes no turns do everything by
// itself where there is only one other processor.
func TestRealtimeCutLeavesAProcessor(t *testing.T) {
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(2))
	var realtime atomic.Bool
	var threads sync.Map
	session.InParallel(make([]int, 64), func(int) bool {
		if attr, err := unix.SchedGetAttr(0, 0); err == nil && attr.Policy == unix.SCHED_RR {
			realtime.Store(true)
		}
		threads.Store(unix.Gettid(), true)
		time.Sleep(200 * time.Microsecond) // a helper would have time to begin
		return true
	})
	n := 0
	threads.Range(func(any, any) bool { n++; return true })
	if realtime.Load() && n > 1 {
		t.Errorf("%d threads did it, want the realtime one alone", n)
	}
}
