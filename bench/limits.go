package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"time"

	"github.com/chaperone-proxy/chaperone/ebpf"
)

// overrun is how long a limit is run against, in periods of a second.
const overrun = 3 * time.Second

// attempt is one way to run against a limit.
type attempt struct {
	name  string
	limit ebpf.Limit
	unit  uint64 // used part of the limit for each success
	order []any  // after the number of threads
	used  func(ebpf.Usage) uint64
}

// limitsScene runs against a limit as fast as it goes, with one sender and with
// two, and compares what came through with what the limit allows: its burst and
// its rate for as long as it took.
func limitsScene(ctx context.Context, w *env) (*table, error) {
	const payload = 472 // and 28 bytes of headers: half a kilobyte less a little
	attempts := []attempt{
		{
			"UDP flood, sentBytes: 10 MiB/s",
			ebpf.Limit{Kind: ebpf.LimitSentBytes, Count: 10 << 20, Period: time.Second},
			payload + 28,
			[]any{payload, int64(overrun), "240.0.0.9:53"},
			func(u ebpf.Usage) uint64 { return u.SentBytes },
		},
		{
			"connect storm, connections: 1000/s",
			ebpf.Limit{Kind: ebpf.LimitConnections, Count: 1000, Period: time.Second},
			1,
			[]any{int64(overrun), elsewhere},
			func(u ebpf.Usage) uint64 { return u.Connections },
		},
	}
	t := &table{
		title: fmt.Sprintf("Running against a limit for %s; it may be used up once at the start and then as its rate allows", overrun),
		heads: []string{"attempt", "senders", "tried", "came through", "arithmetic", "share", "goal: 99.5 to 100 %"},
	}
	for _, a := range attempts {
		for senders := 1; senders <= workerThreads; senders++ {
			if err := w.overrun(ctx, t, a, senders); err != nil {
				return nil, fmt.Errorf("%s, %d senders: %w", a.name, senders, err)
			}
		}
	}
	return t, nil
}

func (w *env) overrun(ctx context.Context, t *table, a attempt, senders int) (err error) {
	r, err := w.newRig()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, r.Close()) }()
	if err := r.attach(ctx); err != nil {
		return err
	}
	go r.receive()
	plugin, err := inside(r.cage)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, plugin.Close()) }()
	before, err := r.cage.Usage()
	if err != nil {
		return err
	}
	a.limit.Name = "bench"
	if err := r.cage.Limit([]ebpf.Limit{a.limit}); err != nil {
		return err
	}
	order := "flood"
	if a.limit.Kind == ebpf.LimitConnections {
		order = "storm"
	}
	seen, err := plugin.numbers(slices.Concat([]any{order, senders}, a.order)...)
	if err != nil {
		return err
	}
	after, err := r.cage.Usage()
	if err != nil {
		return err
	}
	var done, tried int64
	begun, ended := seen[2], seen[3]
	for result := range slices.Chunk(seen, 4) {
		done, tried = done+result[0], tried+result[0]+result[1]
		begun, ended = min(begun, result[2]), max(ended, result[3])
	}
	through := uint64(done) * a.unit
	if counted := a.used(after) - a.used(before); counted != through {
		return fmt.Errorf("the plugin sent %d, and the kernel counted %d", through, counted)
	}
	allowed := float64(a.limit.Count) * (1 + float64(ended-begun)/float64(a.limit.Period))
	share := 100 * float64(through) / allowed
	t.add(a.name, fmt.Sprint(senders), fmt.Sprint(uint64(tried)*a.unit), fmt.Sprint(through), fmt.Sprintf("%.0f", allowed),
		fmt.Sprintf("%.3f %%", share), verdict(share >= 99.5 && share <= 100))
	return nil
}

// receive is a sidecar that takes what comes, until its listeners close.
func (r *harness) receive() {
	go func() {
		buffer := make([]byte, 1<<16)
		for {
			if _, _, err := r.resolver.ReadFrom(buffer); err != nil {
				return
			}
		}
	}()
	for {
		conn, err := r.proxy.Accept()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err == nil { // a client that is gone already is nothing new
			r.cage.Identify(conn)
			_ = conn.Close()
		}
	}
}
