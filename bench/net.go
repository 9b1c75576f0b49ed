package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/chaperone-proxy/chaperone/ebpf"
)

// ends are both ends of one connection, as descriptors that block.
type ends struct{ client, server int }

func (e *ends) Close() error { return errors.Join(unix.Close(e.client), unix.Close(e.server)) }

// connected has the worker connect to where l listens, by the address it is told.
func connected(w *worker, l net.Listener, target string) (*ends, error) {
	client, err := w.descriptor("dial", target)
	if err != nil {
		return nil, err
	}
	conn, err := l.Accept()
	if err != nil {
		return nil, errors.Join(err, unix.Close(client))
	}
	server, err := blockingCopy(conn.(*net.TCPConn))
	err = errors.Join(err, conn.Close())
	if err != nil {
		return nil, errors.Join(err, unix.Close(client))
	}
	for _, fd := range []int{client, server} {
		err = errors.Join(err, unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1),
			unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_SNDBUF, 1<<20), unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, 1<<20))
	}
	return &ends{client, server}, err
}

// blockingCopy takes the connection from Go's poller: the thread that measures
// holds both ends and waits for nothing.
func blockingCopy(conn *net.TCPConn) (fd int, err error) {
	raw, err := conn.SyscallConn()
	if err != nil {
		return -1, err
	}
	failed := raw.Control(func(theirs uintptr) {
		if fd, err = unix.FcntlInt(theirs, unix.F_DUPFD_CLOEXEC, 0); err == nil {
			err = unix.SetNonblock(fd, false)
		}
	})
	return fd, errors.Join(failed, err)
}

// pass sends size bytes from one end to the other.
func pass(from, to int, buffer []byte) error {
	if n, err := unix.Write(from, buffer); err != nil || n != len(buffer) {
		return errors.Join(err, fmt.Errorf("sent %d of %d bytes", n, len(buffer)))
	}
	for rest := len(buffer); rest > 0; {
		n, err := unix.Read(to, buffer[:rest])
		if err != nil || n == 0 {
			return errors.Join(err, fmt.Errorf("%d bytes did not arrive", rest))
		}
		rest -= n
	}
	return nil
}

// roundTrip sends a byte there and back.
func (e *ends) roundTrip() error {
	buffer := make([]byte, 1)
	return errors.Join(pass(e.client, e.server, buffer), pass(e.server, e.client, buffer))
}

// timed runs work n times, undisturbed, and returns the median in picoseconds.
func timed(n int, work func() error) (int64, error) {
	took := make([]int64, 0, n)
	err := alone(func() error {
		for range n {
			begun := time.Now()
			if err := work(); err != nil {
				return err
			}
			took = append(took, int64(time.Since(begun))*1000)
		}
		return nil
	})
	if err != nil {
		return 0, err
	}
	return middle(took), nil
}

// netRow is a row of netScene: who takes part, in the order of its columns.
type netRow struct{ nothing, outside, inside, limited series }

// netRows are the rows of netScene.
type netRows struct{ trip, transfer, connect netRow }

// netScene measures what the programs on a cgroup cost its connections, and
// those of everybody else.
func netScene(ctx context.Context, w *world) (*table, error) {
	var rows netRows
	for range kernelRounds {
		if err := rows.round(ctx, w); err != nil {
			return nil, err
		}
	}
	t := &table{
		title: fmt.Sprintf("Loopback TCP, both ends in one thread, the median of each of %d rounds in turn", kernelRounds),
		heads: []string{"", "nothing attached", "outside, a sidecar runs", "the plugin, by the redirect", "the plugin, with limits", "goal for the plugin"},
	}
	add := func(name string, row netRow, most float64) {
		cells := []string{name, us(time.Duration(row.nothing.median() / 1000))}
		for _, s := range []series{row.outside, row.inside, row.limited} {
			cells = append(cells, fmt.Sprintf("%+.1f %%", s.percent(row.nothing)))
		}
		worst := max(row.inside.percent(row.nothing), row.limited.percent(row.nothing))
		t.add(append(cells, fmt.Sprintf("at most +%.0f %%: %s", most, verdict(worst <= most)))...)
	}
	add("round trip of a byte", rows.trip, 10)
	add("64 KiB", rows.transfer, 7)
	add("connect, with original destination and identity", rows.connect, 25)
	return t, nil
}

func (rows *netRows) round(ctx context.Context, w *world) (err error) {
	outsider, err := outside()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, outsider.Close()) }()
	fd, err := outsider.descriptor("listen")
	if err != nil {
		return err
	}
	file := os.NewFile(uintptr(fd), "listener")
	listener, err := net.FileListener(file)
	if err = errors.Join(err, file.Close()); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, listener.Close()) }()
	target := listener.Addr().String()
	if err := rows.of(outsider, listener, target, func(row *netRow) *series { return &row.nothing }); err != nil {
		return err
	}
	r, err := w.newRig()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, r.Close()) }()
	if err := r.attach(ctx); err != nil {
		return err
	}
	plugin, err := inside(r.cage)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, plugin.Close()) }()
	if err := rows.of(outsider, listener, target, func(row *netRow) *series { return &row.outside }); err != nil {
		return err
	}
	if err := rows.of(plugin, r.proxy, elsewhere, func(row *netRow) *series { return &row.inside }); err != nil {
		return err
	}
	var limits []ebpf.Limit
	for _, kind := range []ebpf.LimitKind{ebpf.LimitConnections, ebpf.LimitSentBytes, ebpf.LimitReceivedBytes} {
		limits = append(limits, ebpf.Limit{Name: "bench", Kind: kind, Count: 1 << 40, Period: time.Second})
	}
	if err := r.cage.Limit(limits); err != nil {
		return err
	}
	return rows.of(plugin, r.proxy, elsewhere, func(row *netRow) *series { return &row.limited })
}

// of measures everything once, between a worker and a listener.
func (rows *netRows) of(w *worker, l net.Listener, target string, column func(*netRow) *series) (err error) {
	undisturbed(w.tids[0], 0)
	e, err := connected(w, l, target)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, e.Close()) }()
	put := func(row *netRow, value int64, failed error) {
		s := column(row)
		*s, err = append(*s, []int64{value}), errors.Join(err, failed)
	}
	trip, failed := timed(4000, e.roundTrip)
	put(&rows.trip, trip, failed)
	buffer := make([]byte, 64<<10)
	transfer, failed := timed(1000, func() error { return pass(e.client, e.server, buffer) })
	put(&rows.transfer, transfer, failed)
	took, failed := w.numbers("connects", 1, 400, target)
	if err := errors.Join(err, failed, drain(l)); err != nil {
		return err
	}
	put(&rows.connect, took[0]*1000, nil)
	return err
}

// drain takes what waits to be accepted.
func drain(l net.Listener) error {
	tcp := l.(*net.TCPListener)
	for {
		if err := tcp.SetDeadline(time.Now().Add(time.Millisecond)); err != nil {
			return err
		}
		conn, err := tcp.Accept()
		if errors.Is(err, os.ErrDeadlineExceeded) {
			return tcp.SetDeadline(time.Time{})
		}
		if err != nil && !errors.Is(err, syscall.ECONNABORTED) {
			return err
		}
		if err == nil {
			_ = conn.Close() // its other end is gone
		}
	}
}
