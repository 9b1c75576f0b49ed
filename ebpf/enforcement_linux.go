package ebpf

import (
	"errors"
	"fmt"
	"os"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// stopSlice is for how long a throttled plugin is stopped at a time, if
	// its limit allows anything in it.
	stopSlice = 25 * time.Millisecond
	// recoveryTime is for how long a limit that refuses must not have refused to be
	// taken for recovered: senders come back in bursts.
	recoveryTime = time.Second
)

// offender is who crossed a limit, as a program reported it.
type offender struct {
	time time.Time
	pid  uint32
	comm string
}

// enforce reports crossings and recoveries, freezes or kills a plugin that was
// to be stopped or killed, and lets it run again when its limits allow it.
func (m *meter) enforce() error {
	c := m.confinement
	c.mu.Lock()
	if c.closed {
		c.mu.Unlock()
		return nil
	}
	now := clock()
	crossings := c.programs.limits.events(now, m.offenders)
	kill, wait, err := c.applyPending(now)
	c.mu.Unlock()
	clear(m.offenders)
	if kill {
		err = errors.Join(err, c.group.Kill())
	}
	if c.config.LimitChanged != nil {
		for _, crossing := range crossings {
			c.config.LimitChanged(crossing)
		}
	}
	if err != nil {
		return fmt.Errorf("enforce limits: %w", err)
	}
	if wait > 0 {
		m.enforceTimer.Reset(wait)
	}
	return nil
}

// events are those limits that began to refuse or recovered since it was
// last asked.
func (l *limitTable) events(now uint64, by map[uint32]offender) []LimitEvent {
	var news []LimitEvent
	for i := range l.inForce {
		p := &l.inForce[i]
		s := &l.standings[p.rule.Slot]
		over := atomic.LoadUint32(&s.Over) != 0
		if over && p.reported && l.recovered(p, now) {
			atomic.StoreUint64(&s.Asked, 0)
			atomic.StoreUint32(&s.Over, 0)
			over = false
		}
		if over == p.reported || !p.named {
			continue
		}
		p.reported = over
		crossing := LimitEvent{Time: time.Now(), Limit: p.Limit, Recovered: !over}
		if who, ok := by[p.rule.Slot]; ok && over {
			crossing.Time, crossing.PID, crossing.Comm = who.time, who.pid, who.comm
		}
		news = append(news, crossing)
	}
	return news
}

// recovered reports whether a limit that was crossed allows again for
// more than a moment. A total never does.
func (l *limitTable) recovered(p *placedLimit, now uint64) bool {
	if p.rule.Period == 0 || l.room(p, now) < l.enough(p) {
		return false
	}
	if p.rule.Action != 0 && p.rule.Turns == 0 {
		return true
	}
	refused := atomic.LoadUint64(&l.standings[p.rule.Slot].Refused)
	return now >= refused+uint64(recoveryTime)
}

// enough is how much has to be free for a limit to have recovered: a tenth of
// it, and what it refused.
func (l *limitTable) enough(p *placedLimit) uint64 {
	asked := atomic.LoadUint64(&l.standings[p.rule.Slot].Asked)
	return max(p.rule.Depth/10, p.rule.Unit, min(asked, p.rule.Depth))
}

// applyPending does what the pending action of the plugin asks for. The caller holds the
// confinement's lock.
func (c *Confinement) applyPending(now uint64) (kill bool, wait time.Duration, err error) {
	custody := c.programs.limits.enforcement
	sentence := atomic.LoadUint32(&custody.Action)
	if sentence == 0 {
		if atomic.LoadUint32(&custody.Release) != 0 { // begun by a sidecar that is gone
			return false, 0, c.resume()
		}
		return false, 0, nil
	}
	need, freeze := c.programs.limits.remaining(now)
	if sentence == pendingKill && !c.killedByLimit {
		c.killedByLimit = true
		return true, max(need, time.Millisecond), nil
	}
	if need == 0 {
		return false, 0, c.resume()
	}
	if sentence == pendingKill {
		return true, need, nil
	}
	if freeze && !c.frozenByLimit {
		c.frozenByLimit = true
		err = c.group.Freeze(true)
	}
	return false, need, err
}

// remaining is for how long the plugin stays to be stopped or killed, and whether that is worth
// freezing it for.
func (l *limitTable) remaining(now uint64) (need time.Duration, freeze bool) {
	for i := range l.inForce {
		p := &l.inForce[i]
		if p.rule.Action == 0 {
			continue
		}
		room, enough := l.room(p, now), l.enough(p)
		if p.rule.Turns != 0 {
			enough = max(min(enough, uint64(stopSlice)), p.rule.Unit)
		}
		total := p.rule.Period == 0
		if total && atomic.LoadUint32(&l.standings[p.rule.Slot].Over) != 0 {
			room = 0
		}
		if room >= enough || total && room > 0 {
			continue
		}
		freeze = freeze || p.rule.Turns == 0
		left := time.Duration(enough - room)
		if total {
			left = maxPeriod
		}
		need = max(need, left)
	}
	return need, freeze
}

// resume lets the plugin run again: the processes that were stopped are
// continued while they are frozen, so that none of them misses it. It is noted
// before it begins, for the next sidecar to end it.
func (c *Confinement) resume() error {
	custody := c.programs.limits.enforcement
	atomic.StoreUint32(&custody.Release, 1)
	atomic.StoreUint32(&custody.Beyond, 0)
	atomic.StoreUint32(&custody.Action, 0)
	if err := c.group.Signal(unix.SIGCONT); err != nil {
		return err
	}
	if atomic.LoadUint32(&custody.Frozen) == 0 {
		if err := c.group.Freeze(false); err != nil {
			return err
		}
	}
	c.frozenByLimit, c.killedByLimit = false, false
	atomic.StoreUint32(&custody.Release, 0)
	return nil
}

// Freeze stops every process of the plugin, or lets them run again. While a
// limit holds the plugin, to let it run again takes effect when the limit does.
func (c *Confinement) Freeze(on bool) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return fmt.Errorf("freeze the plugin: %w", os.ErrClosed)
	}
	wanted := uint32(0)
	if on {
		wanted = 1
	}
	atomic.StoreUint32(&c.programs.limits.enforcement.Frozen, wanted)
	if err := c.group.Freeze(on || c.frozenByLimit); err != nil {
		return fmt.Errorf("freeze the plugin: %w", err)
	}
	return nil
}
