package sidecar

import (
	"fmt"
	"os"
	"reflect"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/chaperone-proxy/chaperone/authz"
)

// writtenRates is how rates stand, as ratesFile holds it: for how long, from a
// moment on, something of each is in use. The moment is stated by two clocks. The
// one that counts since the machine was started is nobody's to set, and means
// something until the machine is started again.
type writtenRates struct {
	At        time.Time     `json:"at"`
	Boot      string        `json:"boot,omitempty"` // /proc/sys/kernel/random/boot_id
	SinceBoot time.Duration `json:"sinceBoot,omitempty"`
	Rates     []writtenRate `json:"rates,omitempty"`
}

type writtenRate struct {
	Plugin string        `json:"plugin"`
	Grant  string        `json:"grant"`
	Rule   string        `json:"rule,omitempty"`
	Kind   string        `json:"kind"`
	Period time.Duration `json:"period"`
	Debt   time.Duration `json:"debt"` // until nothing of it is in use
}

// writeRates returns what is to be written of rates at now.
func writeRates(rates []authz.Rate, now time.Time) writtenRates {
	w := writtenRates{At: now.UTC()}
	w.Boot, w.SinceBoot = bootClock()
	for _, r := range rates {
		w.Rates = append(w.Rates, writtenRate{r.Plugin, r.Grant, r.Rule, r.Kind, r.Period, r.Empty.Sub(now)})
	}
	return w
}

// standing returns the rates as they stand at now, when the machine was started
// boot with a clock of sinceBoot. A clock that was set back lets no time pass.
func (w *writtenRates) standing(now time.Time, boot string, sinceBoot time.Duration) ([]authz.Rate, error) {
	passed := now.Sub(w.At)
	if boot != "" && boot == w.Boot {
		passed = sinceBoot - w.SinceBoot
	}
	var rates []authz.Rate
	for _, r := range w.Rates {
		if r.Period <= 0 || r.Debt < 0 {
			return nil, fmt.Errorf("rate %s of grant %s: period %d and debt %d are not possible", r.Kind, r.Grant, r.Period, r.Debt)
		}
		if left := r.Debt - max(passed, 0); left > 0 {
			rates = append(rates, authz.Rate{Plugin: r.Plugin, Grant: r.Grant, Rule: r.Rule, Kind: r.Kind, Period: r.Period, Empty: now.Add(left)})
		}
	}
	return rates, nil
}

// bootClock returns which start of the machine this is, and how long ago it was,
// suspension included; "" where that is not known.
func bootClock() (boot string, since time.Duration) {
	id, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	var spec unix.Timespec
	if err != nil || unix.ClockGettime(unix.CLOCK_BOOTTIME, &spec) != nil {
		return "", 0
	}
	return strings.TrimSpace(string(id)), time.Duration(spec.Nano())
}

// restoreUsed puts back what earlier runs have used of limits.
func (c *PolicyControl) restoreUsed() error {
	if err := c.state.load(totalsFile, &c.used); err != nil {
		return err
	}
	var written writtenRates
	if err := c.state.load(ratesFile, &written); err != nil {
		return err
	}
	now := time.Now()
	boot, since := bootClock()
	rates, err := written.standing(now, boot, since)
	if err != nil {
		return fmt.Errorf("load %s: %w", c.state.path(ratesFile), err)
	}
	c.used.Rates, c.restored = rates, true
	c.ledger.Restore(c.used, now)
	c.ledger.MarkPersisted(c.used)
	return nil
}

// saveUsed writes down what is used of limits, with what the ledger sets aside, and
// the reading of the counters up to which that holds, unless both are unchanged.
func (c *PolicyControl) saveUsed() error {
	c.saving.Lock()
	defer c.saving.Unlock()
	now := time.Now()
	used, due := c.ledger.Reserve(now)
	return c.writeUsed(used, due, now)
}

// saveUsedExactly is saveUsed at an orderly end: nothing is set aside.
func (c *PolicyControl) saveUsedExactly() error {
	if !c.restored {
		return nil // the saved state was not read
	}
	c.saving.Lock()
	defer c.saving.Unlock()
	now := time.Now()
	used := c.ledger.State(now)
	return c.writeUsed(used, !reflect.DeepEqual(used.Rates, c.used.Rates), now)
}

// writeUsed writes rates first: a reading that is older than they are charges
// something twice, and never nothing.
func (c *PolicyControl) writeUsed(used authz.State, rates bool, now time.Time) error {
	if c.cfg.Cgroup == "" {
		used.Samples = nil
	}
	for i := range used.Samples {
		used.Samples[i].At = used.Samples[i].At.Truncate(time.Minute) // an unchanged reading is not written
	}
	if rates {
		if err := c.state.save(ratesFile, writeRates(used.Rates, now)); err != nil {
			return err
		}
		c.used.Rates = used.Rates
	}
	if !reflect.DeepEqual(used.Totals, c.used.Totals) || !reflect.DeepEqual(used.Samples, c.used.Samples) {
		if err := c.state.save(totalsFile, used); err != nil {
			return err
		}
		c.used.Totals, c.used.Samples = used.Totals, used.Samples
	}
	c.ledger.MarkPersisted(authz.State{Totals: c.used.Totals, Rates: c.used.Rates})
	return nil
}

// restoreKernelUsage charges what the kernel still holds of the limits that a killed sidecar
// had it enforce: the kernel has counted every call and packet.
func (t *KernelTelemetry) restoreKernelUsage() {
	now := time.Now()
	var left authz.State
	for _, m := range t.cfg.Ledger.Metered(t.cfg.Engine.Current(), t.cfg.Plugin, now) {
		standing, ok := t.cfg.Confinement().UsedBefore(kernelLimit(m))
		switch {
		case !ok:
		case standing.Period == 0:
			left.Totals = append(left.Totals, authz.Total{Plugin: string(t.cfg.Plugin), Grant: m.Grant, Kind: m.Kind.String(), Used: standing.Used})
		default:
			left.Rates = append(left.Rates, authz.Rate{Plugin: string(t.cfg.Plugin), Grant: m.Grant, Kind: m.Kind.String(), Period: standing.Period, Empty: now.Add(standing.Debt)})
		}
	}
	t.cfg.Ledger.Restore(left, now)
}

// charged reports whether an earlier run wrote down up to where counters were charged.
func (c *PolicyControl) charged() bool { return len(c.used.Samples) > 0 }
