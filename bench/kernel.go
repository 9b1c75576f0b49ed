package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"runtime"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/chaperone-proxy/chaperone/ebpf"
)

// kernelRounds is how often everything that is compared takes its turn, and
// kernelBatches how often it is measured in a turn. The fastest batches are
// compared: what else the machine does can only slow one, and never all.
const kernelRounds, kernelBatches = 15, 24

// elsewhere is where the plugin believes to connect to: an address that exists
// nowhere, so that nothing but the redirect leads anywhere.
const elsewhere = "240.0.0.9:443"

// harness is a cage with the listeners of its sidecar, which is this program.
type harness struct {
	cage     *ebpf.Confinement
	proxy    net.Listener
	resolver net.PacketConn
	stop     context.CancelFunc
	stopped  chan error
}

// newRig makes a cage and attaches nothing yet.
func (w *env) newRig() (r *harness, err error) {
	r = &harness{}
	defer func() {
		if err != nil {
			err = errors.Join(err, r.Close())
		}
	}()
	state := w.file("cage")
	if err := os.MkdirAll(state, 0o700); err != nil {
		return r, err
	}
	if r.cage, err = ebpf.New(ebpf.Config{Plugin: "bench", StateDir: state}); err != nil {
		return r, err
	}
	if r.proxy, err = r.cage.Listen("tcp", "127.0.0.1:0"); err != nil {
		return r, err
	}
	r.resolver, err = r.cage.ListenPacket("udp", "127.0.0.1:0")
	return r, err
}

// attach puts the programs on the cgroup and reports what they say, unread.
func (r *harness) attach(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	ends := ebpf.Endpoints{Proxy4: endpoint(r.proxy.Addr()), Resolver4: endpoint(r.resolver.LocalAddr())}
	if err := r.cage.Attach(ends); err != nil {
		return err
	}
	ctx, r.stop = context.WithCancel(ctx)
	r.stopped = make(chan error, 1)
	go func() { r.stopped <- r.cage.Run(ctx) }()
	return nil
}

func endpoint(a net.Addr) netip.AddrPort { return netip.MustParseAddrPort(a.String()) }

// Close ends the plugin and takes everything off again.
func (r *harness) Close() error {
	var errs []error
	if r.stop != nil {
		r.stop()
		errs = append(errs, <-r.stopped)
	}
	if r.proxy != nil {
		errs = append(errs, r.proxy.Close())
	}
	if r.resolver != nil {
		errs = append(errs, r.resolver.Close())
	}
	if r.cage != nil {
		errs = append(errs, r.cage.Close())
	}
	return errors.Join(errs...)
}

// undisturbed gives a thread a CPU of its own as far as the machine allows: no
// other thread runs on it while this one does not wait. Where it is not allowed
// the figures are noisier, and no less true.
func undisturbed(tid, cpu int) {
	var set unix.CPUSet
	set.Set(cpu % runtime.NumCPU())
	_ = unix.SchedSetaffinity(tid, &set)
	_ = unix.SchedSetAttr(tid, &unix.SchedAttr{Size: unix.SizeofSchedAttr, Policy: unix.SCHED_FIFO, Priority: 50}, 0)
}

// alone runs work undisturbed. The thread is given back as it was: another
// thread's end would end the processes that it started (PR_SET_PDEATHSIG).
func alone(work func() error) error {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	var before unix.CPUSet
	if err := unix.SchedGetaffinity(0, &before); err != nil {
		return err
	}
	undisturbed(0, 0)
	err := work()
	return errors.Join(err, unix.SchedSetaffinity(0, &before), unix.SchedSetAttr(0, &unix.SchedAttr{Size: unix.SizeofSchedAttr}, 0))
}

// series is what one row has seen, batch by batch, in picoseconds.
type series []int64

func (s series) fastest() int64 { return slices.Min(s) }

func (s series) median() int64 { return middle(s) }

// percent is how much longer than base it takes.
func (s series) percent(base series) float64 {
	return 100 * (float64(s.fastest())/float64(base.fastest()) - 1)
}

func middle(values []int64) int64 {
	sorted := slices.Sorted(slices.Values(values))
	return sorted[len(sorted)/2]
}

// ns writes picoseconds as nanoseconds.
func ns(picoseconds int64) string { return fmt.Sprintf("%.1f ns", float64(picoseconds)/1000) }
