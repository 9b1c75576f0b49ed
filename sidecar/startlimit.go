package sidecar

import (
	"fmt"
	"os"
	"syscall"
	"time"

	"github.com/chaperone-proxy/chaperone/authz"
)

// limitPoll is how often it is looked whether a limit that waits has room: a
// reload may have raised it.
const limitPoll = 250 * time.Millisecond

// awaitLimits waits until the limits on system calls let a plugin start. An earlier
// run may have left none: what begins then would be stopped or killed at once, in the
// midst of being confined. The status is not 0 after a signal.
func (s *Sidecar) awaitLimits(signals <-chan os.Signal) (status int, err error) {
	announced := false
	for {
		m, wait := s.telemetry.exhaustedLimit(time.Now())
		switch {
		case wait == 0:
			return 0, nil
		case wait < 0:
			return 0, fmt.Errorf("limit %s of grant %s is used up permanently: %s; %s", m.Kind, m.Grant, meteredText(m), limitRemedy(m))
		case m.Action == authz.OnExceededKill:
			return 0, fmt.Errorf("limit %s of grant %s is used up: %s, and would end the plugin at once; start it again in %s, or ask for a higher limits.%s",
				m.Kind, m.Grant, meteredText(m), wait.Round(time.Second), m.Kind)
		case !announced:
			announced = true
			s.cfg.Notice(fmt.Sprintf("limit %s of grant %s is used up: %s; the plugin starts in %s", m.Kind, m.Grant, meteredText(m), wait.Round(time.Second)))
		}
		select {
		case sig := <-signals:
			return 128 + int(sig.(syscall.Signal)), fmt.Errorf("interrupted before the plugin ran: %v", sig) //nolint:forcetypeassert // of package syscall on every Unix
		case <-time.After(min(wait, limitPoll)):
		}
	}
}

// exhaustedLimit returns a limit on system calls that would stop or kill a plugin as it
// starts, and how long until a tenth of it is free; a negative wait never ends, and
// 0 means that there is no such limit.
func (t *KernelTelemetry) exhaustedLimit(now time.Time) (limit authz.MeteredLimit, wait time.Duration) {
	if !t.cfg.Confinement().Kernel() {
		return limit, 0
	}
	for _, m := range t.cfg.Ledger.Metered(t.cfg.Engine.Current(), t.cfg.Plugin, now) {
		if m.Kind != authz.LimitSyscalls || m.Action == authz.OnExceededDeny {
			continue
		}
		if m.Limit.Period == 0 {
			if m.Used >= m.Limit.Count && m.Action != authz.OnExceededThrottle {
				return m, -1
			}
			continue
		}
		if left := m.Debt - (m.Limit.Period - m.Limit.Period/10); left > wait {
			limit, wait = m, left
		}
	}
	return limit, wait
}
