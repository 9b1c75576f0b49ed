package ebpf

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"
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

func (r *rig) flood(args ...string) flooded {
	r.t.Helper()
	var f flooded
	if _, err := fmt.Sscan(r.ok(r.run(append([]string{"flood"}, args...)...)), &f.done, &f.refused, &f.all, &f.any); err != nil {
		r.t.Fatal(err)
	}
	return f
}

// limit sets limits.
func (r *rig) limit(limits ...Limit) {
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

// permits is how much a limit lets through in a time, its burst included.
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

// floodTries is how often a flood may miss its limit from below.
const floodTries = 4

// A storm of connects lands on the limit, from one thread and from two.
func TestConnectStorm(t *testing.T) {
	r := newRig(t, nil)
	go accepts(r.proxy4)
	for _, senders := range []string{"1", "2"} {
		landed := false
		for try := 0; try < floodTries && !landed; try++ {
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
	r := newRig(t, nil)
	received := r.receive()
	for _, flood := range []string{"udp 1", "udp 2", "connected 2"} {
		landed := false
		for try := 0; try < floodTries && !landed; try++ {
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
func (r *rig) used() Usage {
	r.t.Helper()
	u, err := r.Usage()
	if err != nil {
		r.t.Fatal(err)
	}
	return u
}

// receive counts the IP bytes that arrive at the resolver.
func (r *rig) receive() func() float64 {
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
