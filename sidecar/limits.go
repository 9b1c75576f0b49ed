package sidecar

import (
	"fmt"
	"sync"
	"time"

	"go.uber.org/zap"

	"github.com/chaperone-proxy/chaperone/authz"
	"github.com/chaperone-proxy/chaperone/ebpf"
)

// limits are those that the kernel enforces, and which of them are crossed.
type limits struct {
	setting sync.Mutex // one change after the other

	mu         sync.Mutex
	metered    map[string]authz.MeteredLimit // by the name that the kernel knows them by
	crossed    map[string]ebpf.LimitEvent    // that have not recovered
	suppressed map[string]*suppressed        // crossings since the last record, by limit
	printed    map[string]time.Time          // when one was printed last
}

// recordInterval is how often the crossings of one limit are recorded: a plugin that is
// stopped and resumed in turns crosses its limit ten times in a period.
const recordInterval = 10 * time.Second

// suppressed is when a limit's crossing was last recorded, and what came since.
type suppressed struct {
	at    time.Time
	again int
	limit authz.MeteredLimit
	last  ebpf.LimitEvent
}

// enforceLimits has the kernel enforce the limits of the policy in force. It
// looks at the policy under a lock, so that an older one never replaces a newer.
func (t *KernelTelemetry) enforceLimits() error {
	t.limits.setting.Lock()
	defer t.limits.setting.Unlock()
	var all []ebpf.Limit
	named := map[string]authz.MeteredLimit{}
	for _, m := range t.cfg.Ledger.Metered(t.cfg.Engine.Current(), t.cfg.Plugin, time.Now()) {
		l := kernelLimit(m)
		all = append(all, l)
		named[l.Name] = m
	}
	if err := t.cfg.Confinement().Limit(all); err != nil {
		return fmt.Errorf("set limits in the kernel: %w", err)
	}
	t.limits.replace(named)
	return nil
}

// kernelLimit is a limit as the kernel takes it.
func kernelLimit(m authz.MeteredLimit) ebpf.Limit {
	return ebpf.Limit{
		Name: m.Grant + " " + m.Kind.String(), Kind: kernelKind(m.Kind), Count: m.Limit.Count, Period: m.Limit.Period,
		Used: m.Used, Debt: m.Debt, Action: kernelAction(m.Action), Exact: m.Exact,
	}
}

// kernelKind returns what the kernel is to count; none for requests, which it
// does not see.
func kernelKind(k authz.LimitKind) ebpf.LimitKind {
	switch k {
	case authz.LimitConnections:
		return ebpf.LimitConnections
	case authz.LimitSentBytes:
		return ebpf.LimitSentBytes
	case authz.LimitReceivedBytes:
		return ebpf.LimitReceivedBytes
	case authz.LimitSyscalls:
		return ebpf.LimitSyscalls
	case authz.LimitProcesses:
		return ebpf.LimitProcesses
	case authz.LimitRequests:
	}
	return 0
}

func kernelAction(a authz.OnExceeded) ebpf.Action {
	switch a {
	case authz.OnExceededThrottle:
		return ebpf.ActionThrottle
	case authz.OnExceededStop:
		return ebpf.ActionStop
	case authz.OnExceededKill:
		return ebpf.ActionKill
	case authz.OnExceededDeny:
	}
	return ebpf.ActionDeny
}

// replace forgets the crossings of limits that are gone.
func (l *limits) replace(metered map[string]authz.MeteredLimit) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.metered = metered
	for name := range l.crossed {
		if _, ok := metered[name]; !ok {
			delete(l.crossed, name)
		}
	}
	for name := range l.printed {
		if _, ok := metered[name]; !ok {
			delete(l.printed, name)
		}
	}
}

// note keeps a crossing until it has recovered, and returns the limit as the
// grant states it.
func (l *limits) note(c ebpf.LimitEvent) authz.MeteredLimit {
	l.mu.Lock()
	defer l.mu.Unlock()
	if c.Recovered {
		delete(l.crossed, c.Limit.Name)
	} else {
		if l.crossed == nil {
			l.crossed = map[string]ebpf.LimitEvent{}
		}
		l.crossed[c.Limit.Name] = c
	}
	return l.metered[c.Limit.Name]
}

// named returns the limit that the kernel knows by a name.
func (l *limits) named(name string) (authz.MeteredLimit, bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	m, ok := l.metered[name]
	return m, ok
}

// state returns what a crossed limit does to the plugin, and until when where that
// is known; "" for a limit that is not crossed.
func (l *limits) state(name string) (state string, until time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	c, ok := l.crossed[name]
	if !ok {
		return "", time.Time{}
	}
	return actionState(c.Limit.Action), recoversAt(c)
}

// stopped returns the limit that has stopped the plugin, and until when.
func (l *limits) stopped() (name string, until time.Time, ok bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for n, c := range l.crossed {
		if c.Limit.Action != ebpf.ActionStop {
			continue
		}
		at := recoversAt(c)
		if at.IsZero() || at.After(until) {
			name, until, ok = n, at, true
		}
		if at.IsZero() {
			break
		}
	}
	return name, until, ok
}

// recoversAt returns when a limit that has stopped the plugin will let it go on:
// once a tenth of a rate is free. Zero is never, as for a total that is used up,
// or not known, as for a plugin that goes on trying.
func recoversAt(c ebpf.LimitEvent) time.Time {
	if c.Limit.Period == 0 || c.Limit.Action != ebpf.ActionStop {
		return time.Time{}
	}
	return c.Time.Add(c.Limit.Period / 10)
}

// actionState names what an action does, for status and usage.
func actionState(a ebpf.Action) string {
	switch a {
	case ebpf.ActionThrottle:
		return "throttled"
	case ebpf.ActionStop:
		return "stopped"
	case ebpf.ActionKill:
		return "killed"
	case ebpf.ActionDeny:
	}
	return "refusing"
}

// suppress reports whether a crossing is to be recorded now. One that comes soon
// after another of the same limit is counted, for [limits.untold].
func (l *limits) suppress(m authz.MeteredLimit, c ebpf.LimitEvent) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	t := l.suppressed[c.Limit.Name]
	if t != nil && c.Time.Sub(t.at) < recordInterval {
		t.again++
		t.limit, t.last = m, c
		return false
	}
	if l.suppressed == nil {
		l.suppressed = map[string]*suppressed{}
	}
	l.suppressed[c.Limit.Name] = &suppressed{at: c.Time}
	return true
}

// due takes the crossings that were counted and not recorded and are due, or
// all of them.
func (l *limits) due(now time.Time, all bool) (due []suppressed) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for name, t := range l.suppressed {
		switch {
		case t.again > 0 && (all || now.Sub(t.at) >= recordInterval):
			due = append(due, *t)
			*t = suppressed{at: now}
		case now.Sub(t.at) >= recordInterval:
			delete(l.suppressed, name)
		}
	}
	return due
}

// limitExceededInKernel records that a limit began to refuse, once until it has
// recovered. The action of the limit has been taken by then.
func (t *KernelTelemetry) limitExceededInKernel(c ebpf.LimitEvent) {
	m := t.limits.note(c)
	if c.Recovered {
		t.cfg.Log.Info("limit recovered", zap.String("limit", c.Limit.Name))
		return
	}
	t.cfg.Metrics.crossings.WithLabelValues(c.Limit.Name).Inc()
	if t.limits.suppress(m, c) {
		t.recordCrossing(m, c, 1)
	}
	if t.limits.print(c) {
		t.reportAction(fmt.Sprintf("limit %s of grant %s exceeded: %s; %s", m.Kind, m.Grant, meteredText(m), actionText(c.Limit)), limitRemedy(m))
	}
}

// printInterval is how often the crossings of one limit are printed, which come again
// and again while the plugin runs at its limit.
const printInterval = time.Minute

// print reports whether a crossing is to be printed now. A connect that is
// refused is printed as such, with its destination.
func (l *limits) print(c ebpf.LimitEvent) bool {
	if c.Limit.Kind == ebpf.LimitConnections && refuses(c.Limit) {
		return false
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if last, ok := l.printed[c.Limit.Name]; ok && c.Time.Sub(last) < printInterval && c.Limit.Action != ebpf.ActionKill {
		return false
	}
	if l.printed == nil {
		l.printed = map[string]time.Time{}
	}
	l.printed[c.Limit.Name] = c.Time
	return true
}

// refuses reports whether a limit refuses what goes beyond it. A connect and the
// start of a process cannot be slowed down.
func refuses(l ebpf.Limit) bool {
	atOnce := l.Kind == ebpf.LimitConnections || l.Kind == ebpf.LimitProcesses
	return l.Action == ebpf.ActionDeny || l.Action == ebpf.ActionThrottle && atOnce
}

// recordSuppressed records the crossings that came soon after others, as one.
func (t *KernelTelemetry) recordSuppressed(now time.Time, all bool) {
	for _, due := range t.limits.due(now, all) {
		t.recordCrossing(due.limit, due.last, due.again)
	}
}

func (t *KernelTelemetry) recordCrossing(m authz.MeteredLimit, c ebpf.LimitEvent, count int) {
	t.cfg.Record(&authz.Record{
		Time: c.Time, Kind: authz.KindLimit, Door: authz.DoorKernel, Reason: authz.QuotaExceeded.String(), Grant: m.Grant, Count: count,
		PID: int(c.PID), Exe: c.Comm, UID: t.offenderUID(c), Detail: fmt.Sprintf("%s exceeded: %s; %s", m.Kind, meteredText(m), actionText(c.Limit)),
	})
}

// offenderUID is the user of who crossed a limit; -1 when nobody is known.
func (t *KernelTelemetry) offenderUID(c ebpf.LimitEvent) int {
	if c.PID == 0 {
		return -1
	}
	return t.cfg.Confinement().UID()
}

// meteredText is a limit as the grant states it.
func meteredText(m authz.MeteredLimit) string {
	return limitText(authz.UsageOf{Kind: m.Kind, Limit: m.Limit})
}

// actionText describes what the kernel did at a limit.
func actionText(l ebpf.Limit) string {
	forever := l.Period == 0
	if refuses(l) {
		what := "further use is refused"
		if l.Kind == ebpf.LimitProcesses {
			what = "further processes are ended"
		}
		if forever {
			what += " permanently"
		}
		return what
	}
	switch l.Action {
	case ebpf.ActionStop:
		if forever {
			return "the plugin is stopped permanently"
		}
		return "the plugin is stopped until a tenth of it is free"
	case ebpf.ActionKill:
		return "the plugin is ended"
	case ebpf.ActionThrottle, ebpf.ActionDeny:
	}
	return "the plugin is slowed down to it"
}

// explainLimit describes, in the words of a refusal that a limit refused.
func (t *KernelTelemetry) explainLimit(name string) (detail, remedy string) {
	m, ok := t.limits.named(name)
	if !ok {
		return "a limit is used up", ""
	}
	detail = fmt.Sprintf("%s may use %s: %s, and has", t.cfg.Plugin, m.Kind, meteredText(m))
	return detail, limitRemedy(m)
}

// limitRemedy is what to ask for when a limit has acted.
func limitRemedy(m authz.MeteredLimit) string {
	remedy := fmt.Sprintf("ask for a higher limits.%s in grant %s", m.Kind, m.Grant)
	if m.Limit.Period > 0 {
		remedy = "wait, or " + remedy
	}
	return remedy
}
