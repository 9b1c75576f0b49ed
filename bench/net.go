package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/chaperone-proxy/chaperone/ebpf"
)

// ends are both ends of one connection, as descriptors that block.
type ends struct{ client, server int }

func (e *ends) Close() error { return errors.Join(unix.Close(e.client), unix.Close(e.server)) }

// connected has the worker connect to the listener l, by the address target.
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

// timed runs batches of n, undisturbed, and returns the median of each in
// picoseconds.
func timed(n int, work func() error) (round []int64, err error) {
	took := make([]int64, n)
	batch := func() error {
		for i := range took {
			begun := time.Now()
			if err := work(); err != nil {
				return err
			}
			took[i] = int64(time.Since(begun)) * 1000
		}
		return nil
	}
	for range kernelBatches {
		if err := alone(batch); err != nil {
			return nil, err
		}
		round = append(round, middle(took))
	}
	return round, nil
}

// netRow is a row of netScene: who takes part, in the order of its columns.
type netRow struct{ before, outside, inside, limited, after series }

// netRows are the rows of netScene.
type netRows struct{ trip, transfer, connect netRow }

// netScene measures what the programs on a cgroup cost its connections, and
// those of everybody else.
func netScene(ctx context.Context, w *env) (*table, error) {
	var rows netRows
	for range kernelRounds {
		if err := rows.round(ctx, w); err != nil {
			return nil, err
		}
	}
	t := &table{
		title: fmt.Sprintf("Loopback TCP, both ends in one thread, the fastest of the batches of %d rounds in turn", kernelRounds),
		heads: []string{"", "nothing attached", "once more: the noise", "outside, a sidecar runs", "the plugin, by the redirect", "the plugin, with limits", "goal for the plugin"},
	}
	add := func(name string, row netRow, most float64) {
		nothing := slices.Concat(row.before, row.after)
		cells := []string{name, fmt.Sprintf("%.2f µs", float64(nothing.fastest())/1e6), fmt.Sprintf("%+.1f %%", row.after.percent(row.before))}
		for _, s := range []series{row.outside, row.inside, row.limited} {
			cells = append(cells, fmt.Sprintf("%+.1f %%", s.percent(nothing)))
		}
		worst := max(row.inside.percent(nothing), row.limited.percent(nothing))
		t.add(append(cells, fmt.Sprintf("at most +%.0f %%: %s", most, verdict(worst <= most)))...)
	}
	add("round trip of a byte", rows.trip, 10)
	add("64 KiB", rows.transfer, 5)
	add("connect, with original destination and identity", rows.connect, 20)
	return t, nil
}

// round measures with nothing attached, then everything else, then that again.
func (rows *netRows) round(ctx context.Context, w *env) (err error) {
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
	foreign := func(column func(*netRow) *series) error {
		return rows.of(outsider, listener, listener.Addr().String(), column)
	}
	if err := foreign(func(row *netRow) *series { return &row.before }); err != nil {
		return err
	}
	err = rows.attached(ctx, w, func() error { return foreign(func(row *netRow) *series { return &row.outside }) })
	return errors.Join(err, foreign(func(row *netRow) *series { return &row.after }))
}

// attached measures while a sidecar runs: those outside, and its plugin.
func (rows *netRows) attached(ctx context.Context, w *env, outside func() error) (err error) {
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
	if err := errors.Join(outside(), rows.of(plugin, r.proxy, elsewhere, func(row *netRow) *series { return &row.inside })); err != nil {
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
	trip, err := timed(250, e.roundTrip)
	if err != nil {
		return err
	}
	buffer := make([]byte, 64<<10)
	transfer, err := timed(100, func() error { return pass(e.client, e.server, buffer) })
	if err != nil {
		return err
	}
	var connects []int64
	for range kernelBatches {
		took, err := w.numbers("connects", 1, 60, target)
		if err := errors.Join(err, drain(l)); err != nil {
			return err
		}
		connects = append(connects, took[0]*1000)
	}
	for row, round := range map[*netRow][]int64{&rows.trip: trip, &rows.transfer: transfer, &rows.connect: connects} {
		*column(row) = append(*column(row), round...)
	}
	return nil
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
