package sidecar

import (
	"runtime"
	"slices"
	"testing"
	"time"

	"go.uber.org/zap"
	"golang.org/x/sys/unix"

	"github.com/chaperone-proxy/chaperone/authz"
	"github.com/chaperone-proxy/chaperone/internal/testenv"
	"github.com/chaperone-proxy/chaperone/proxy"
	"github.com/chaperone-proxy/chaperone/proxy/inbound"
)

// threads is a kernel half that records on which thread it enforces a revocation.
type threads struct {
	Confinement

	steps   []string
	ids     []int
	urgent  []bool // the thread goes before others
	other   int    // a thread of the sidecar that does not cut, if not 0
	others  []bool // it goes before those of other processes
	blocked error
}

func (c *threads) note(step string) {
	c.steps, c.ids = append(c.steps, step), append(c.ids, unix.Gettid())
	c.urgent, c.others = append(c.urgent, isUrgent(0)), append(c.others, isUrgent(c.other))
}

// isUrgent reports whether a thread, the caller's for 0, goes before others.
func isUrgent(thread int) bool {
	attr, err := unix.SchedGetAttr(thread, 0)
	return err == nil && (attr.Policy == unix.SCHED_RR || attr.Nice < 0)
}

func (c *threads) Kernel() bool                { return true }
func (c *threads) Block(bool) error            { c.note("block"); return c.blocked }
func (c *threads) AllowSockets([]string) error { c.note("sockets"); return nil }
func (c *threads) CutDirect() (int, error)     { c.note("direct"); return 2, nil }

// newThreadsControl returns a control of a plugin in the kernel half, without a proxy.
func newThreadsControl(t *testing.T, kernel *threads) *PolicyControl {
	t.Helper()
	c := newTestControl(t, nil, t.TempDir())
	confinement := func() Confinement { return kernel }
	c.cfg.Confinement, c.cfg.Metrics, c.cfg.Record = confinement, newMetrics(), func(*authz.Record) {}
	c.cfg.Proxy, c.cfg.Inbound = func() *proxy.Proxy { return nil }, func() *inbound.Forwarder { return nil }
	c.cfg.Telemetry = &KernelTelemetry{cfg: TelemetryConfig{Plugin: "weather", Engine: c.engine, Confinement: confinement, Log: zap.NewNop()}}
	return c
}

// TestKernelEnforcesOnTheThreadThatCuts revokes everything: the kernel blocks the plugin on
// the thread that cuts, which goes before others, and once. On another thread it would take
// turns with the processes that the cut wakes: two hundred servers of a database kept it
// waiting for 200 ms.
func TestKernelEnforcesOnTheThreadThatCuts(t *testing.T) {
	kernel := &threads{}
	c := newThreadsControl(t, kernel)
	out := c.cut(revocationOf("new"))
	if want := []string{"block", "sockets", "direct"}; !slices.Equal(kernel.steps, want) {
		t.Errorf("the kernel's steps are %q, want %q", kernel.steps, want)
	}
	if len(slices.Compact(kernel.ids)) != 1 {
		t.Errorf("the steps ran on the threads %d, want one", kernel.ids)
	}
	if slices.Contains(kernel.urgent, false) && unix.Geteuid() == 0 {
		t.Errorf("the steps ran with a high priority: %t, want all", kernel.urgent)
	}
	if out.cut != 2 || len(out.failed) != 0 {
		t.Errorf("%d were cut and %q failed, want 2 and nothing", out.cut, out.failed)
	}
}

// TestTheWholeSidecarGoesFirstDuringACut revokes everything: until it is cut, the other threads
// of the sidecar go before other processes too. The scheduler of Go, a lock or the garbage
// collector may have the cut wait for any of them, and it would wait for the processes that
// it wakes.
func TestTheWholeSidecarGoesFirstDuringACut(t *testing.T) {
	testenv.Require(t, testenv.Superuser())
	thread, end := make(chan int), make(chan struct{})
	defer close(end)
	go func() {
		runtime.LockOSThread()
		thread <- unix.Gettid()
		<-end
	}()
	kernel := &threads{other: <-thread}
	newThreadsControl(t, kernel).cut(revocationOf("new"))
	if len(kernel.others) == 0 || slices.Contains(kernel.others, false) {
		t.Errorf("another thread goes before other processes at the steps: %t, want all", kernel.others)
	}
	if isUrgent(kernel.other) {
		t.Error("another thread goes before other processes after the cut")
	}
}

// TestRevocationReportsTheKernelsFailure has the kernel fail to block: the answer names
// that, and the rest of the revocation takes its effect.
func TestRevocationReportsTheKernelsFailure(t *testing.T) {
	kernel := &threads{blocked: unix.EIO}
	c := newThreadsControl(t, kernel)
	out := c.cut(revocationOf("new"))
	if want := []string{"kernel: " + unix.EIO.Error()}; !slices.Equal(out.failed, want) || out.cut != 2 {
		t.Errorf("%q failed and %d were cut, want %q and 2", out.failed, out.cut, want)
	}
	if c.engine.Current().RevokedLevel("weather", time.Now()) != authz.LevelQuarantine {
		t.Error("the revocation is not in force")
	}
}
