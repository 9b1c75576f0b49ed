package ebpf

import (
	"errors"
	"net"
	"os"
	"strconv"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// storm opens connections as fast as it can and ends each in one of three ways:
// when the sidecar has, in good order at once, or by a reset at once.
func storm(args []string) error {
	n, err := strconv.Atoi(args[0])
	if err != nil {
		return err
	}
	const at = 50
	failed := make(chan error, at)
	for worker := range at {
		go func() {
			for i := worker; i < n; i += at {
				conn, err := net.Dial("tcp", "240.0.0.9:"+strconv.Itoa(1000+i%60000))
				if err != nil {
					failed <- err
					return
				}
				switch i % 3 {
				case 0:
					_, _ = conn.Read(make([]byte, 1))
				case 1:
					_ = conn.(*net.TCPConn).SetLinger(0)
				}
				_ = conn.Close()
			}
			failed <- nil
		}()
	}
	for range at {
		err = errors.Join(err, <-failed)
	}
	return err
}

// unexplained is the difference between the connections that the kernel
// allowed and those that it can account for.
func (r *harness) unexplained() (difference int64, u Usage, strays []UnmediatedConn) {
	r.t.Helper()
	u, err := r.Usage()
	if err != nil {
		r.t.Fatal(err)
	}
	strays, err = r.Unmediated()
	if err != nil {
		r.t.Fatal(err)
	}
	return int64(u.Connections) - int64(u.Identified+u.Abandoned+u.Pending) - int64(len(strays)), u, strays
}

// Every one of ten thousand connections is accounted for, however it ended.
func TestMediationIsComplete(t *testing.T) {
	r := newHarness(t, nil)
	const n = 10000
	go func() {
		for {
			conn, err := r.proxy4.Accept()
			if err != nil {
				return
			}
			r.Identify(conn)
			_ = conn.Close()
		}
	}()
	r.ok(r.run("storm", strconv.Itoa(n)))
	// A connection that the plugin closed in good order may still wait to be accepted.
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
		if u, err := r.Usage(); err != nil || u.Pending == 0 {
			break
		}
	}
	difference, u, strays := r.unexplained()
	if difference != 0 || u.Connections != n || u.Pending != 0 || len(strays) != 0 || u.Identified < n/3 {
		t.Errorf("%d of %+v are not explained; strays: %v", difference, u, strays)
	}
}

// A sidecar that does not accept, or does not ask who connected, shows at once.
func TestStrays(t *testing.T) {
	for name, accept := range map[string]bool{"it does not accept": false, "it does not identify": true} {
		t.Run(name, func(t *testing.T) {
			r := newHarness(t, nil)
			if accept {
				go func() {
					for {
						conn, err := r.proxy4.Accept()
						if err != nil {
							return
						}
						t.Cleanup(func() { _ = conn.Close() })
					}
				}()
			}
			ask, finish := r.dialogue("python3", "python3", "-c", talker)
			for port := range 3 {
				if got := ask(`tcp("240.0.0.9", ` + strconv.Itoa(80+port) + `)`); got != "ok" {
					t.Fatal(got)
				}
			}
			if difference, u, strays := r.unexplained(); difference != 0 || u.Pending != 3 || len(strays) != 0 {
				t.Errorf("at first: %d, %+v, %v", difference, u, strays)
			}
			time.Sleep(unmediatedAfter + 100*time.Millisecond)
			difference, u, strays := r.unexplained()
			if difference != 0 || u.Pending != 0 || len(strays) != 3 {
				t.Fatalf("later: %d, %+v, %v", difference, u, strays)
			}
			seen := map[uint16]bool{}
			for _, s := range strays {
				seen[s.Original.Port()] = true
				if s.Original.Addr().String() != "240.0.0.9" || s.PID == 0 || s.Comm == "" || s.Why == "" || time.Since(s.Since) > time.Minute {
					t.Errorf("stray %+v", s)
				}
			}
			if len(seen) != 3 {
				t.Errorf("strays to ports %v", seen)
			}
			// A reset takes an entry back.
			if got := ask(`held[0].setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, bytes([1, 0, 0, 0, 0, 0, 0, 0])) or held.pop(0).close()`); got != "ok" {
				t.Fatal(got)
			}
			if difference, u, strays := r.unexplained(); difference != 0 || u.Abandoned != 1 || len(strays) != 2 {
				t.Errorf("after a reset: %d, %+v, %v", difference, u, strays)
			}
			finish()
		})
	}
}

// A connection that the sidecar ends without asking does not fill the table for ever, and
// one that it still holds stays an unmediated connection of one and the same time.
func TestGoneAreForgotten(t *testing.T) {
	const room = 16
	group, path := given(t)
	plugin := settle(t, group, path, python(t), "-c", talker)
	c := version(t, Config{StateDir: t.TempDir(), CgroupPath: group.Path, NetworkPath: path}, room)
	defer func() { _ = c.Close() }()
	proxy, err := c.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer proxy.Close()
	if err := c.Attach(Endpoints{Proxy4: tcpPort(proxy)}); err != nil {
		t.Fatal(err)
	}
	connect := func() net.Conn {
		t.Helper()
		if got := plugin.ask(`tcp("240.0.0.9", 80)`); got != "ok" {
			t.Fatal(got)
		}
		conn, err := proxy.Accept()
		if err != nil {
			t.Fatal(err)
		}
		return conn
	}
	kept := connect()
	defer kept.Close()
	for range room - 1 {
		_ = connect().Close()
		plugin.ask(`held.pop().close()`) // after the sidecar: by way of LAST_ACK
	}
	full := connect()
	if _, ok := c.Identify(full); ok {
		t.Fatal("the table is not full")
	}
	_ = full.Close()
	time.Sleep(goneAfter)
	for range 2 {
		if err := c.scanSockets(); err != nil {
			t.Fatal(err)
		}
	}
	first, err := c.Unmediated()
	if err != nil || len(first) != 1 {
		t.Fatalf("strays %v, %v", first, err)
	}
	if again, err := c.Unmediated(); err != nil || again[0] != first[0] {
		t.Errorf("the same stray is now %v, %v; was %v", again, err, first)
	}
	if u, err := c.Usage(); err != nil || u.Abandoned != room-1 {
		t.Errorf("usage %+v, %v", u, err)
	}
	last := connect()
	defer last.Close()
	if _, ok := c.Identify(last); !ok {
		t.Error("not identified although there is room")
	}
}

// A queue that is full loses no connection from the books.
func TestFullQueue(t *testing.T) {
	r := newHarness(t, nil)
	var small int
	err := r.network.Do(func() (err error) {
		if small, err = unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0); err != nil {
			return err
		}
		if err := unix.Bind(small, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}); err != nil {
			return err
		}
		return unix.Listen(small, 1)
	})
	if err != nil {
		t.Fatal(err)
	}
	file := os.NewFile(uintptr(small), "listener")
	listener, err := net.FileListener(file)
	if err := errors.Join(err, file.Close()); err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	ends := r.endpoints()
	ends.Proxy4 = tcpPort(listener)
	if err := r.Attach(ends); err != nil {
		t.Fatal(err)
	}
	ask, finish := r.dialogue("python3", "python3", "-c", talker)
	const n = 12
	for range n {
		got := ask(`held.append(socket.socket()) or held[-1].setblocking(False) or held[-1].connect(("240.0.0.9", 80))`)
		if got != "EINPROGRESS" && got != "ok" {
			t.Fatal(got)
		}
	}
	if difference, u, strays := r.unexplained(); difference != 0 || u.Connections != n || u.Pending != n || len(strays) != 0 {
		t.Errorf("at first: %d, %+v, %v", difference, u, strays)
	}
	time.Sleep(unmediatedAfter + 100*time.Millisecond)
	if difference, u, strays := r.unexplained(); difference != 0 || u.Pending != 0 || len(strays) != n {
		t.Errorf("later: %d, %+v, %v", difference, u, strays)
	}
	conn, err := listener.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, ok := r.Identify(conn); !ok {
		t.Error("the one that came through is not identified")
	}
	if difference, u, strays := r.unexplained(); difference != 0 || u.Identified != 1 || len(strays) != n-1 {
		t.Errorf("after one was accepted: %d, %+v, %v", difference, u, strays)
	}
	finish()
	if difference, u, _ := r.unexplained(); difference != 0 || u.Connections != n {
		t.Errorf("at the end: %d, %+v", difference, u)
	}
}
