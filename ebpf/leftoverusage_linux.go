package ebpf

import (
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"time"

	"github.com/cilium/ebpf"
)

// UsedBefore returns what a killed sidecar's plugin had used of a limit, by its Name and
// Kind, when this confinement took its place: the kernel has counted on without a sidecar.
// Of a cgroup that was given nothing is left, since its limits stay in force.
func (c *Confinement) UsedBefore(l Limit) (LimitUsage, bool) {
	s, ok := c.usedBefore[l.digest()]
	return s, ok
}

// readLeftoverUsage reads the limits that are pinned in a directory, before the pins are
// removed. The maps of another version may have another shape; what they hold is then not
// known.
func readLeftoverUsage(dir string) (map[[2]uint64]LimitUsage, error) {
	maps := map[string]*ebpf.Map{"door": nil, "limits": nil, "standings": nil}
	defer func() {
		for _, m := range maps {
			_ = m.Close() // read only
		}
	}()
	for name := range maps {
		m, err := ebpf.LoadPinnedMap(filepath.Join(dir, name), nil)
		if errors.Is(err, fs.ErrNotExist) {
			return nil, nil
		}
		if err != nil {
			return nil, fmt.Errorf("read limits left behind: %w", err)
		}
		maps[name] = m
	}
	left, err := usageIn(maps["door"], maps["limits"], maps["standings"])
	if err != nil {
		return nil, fmt.Errorf("read limits left behind: %w", err)
	}
	return left, nil
}

func usageIn(doors, limits, standings *ebpf.Map) (map[[2]uint64]LimitUsage, error) {
	var door hooksControl
	if err := doors.Lookup(zero, &door); err != nil {
		return nil, err
	}
	left, now := make(map[[2]uint64]LimitUsage), clock()
	for i := range uint32(kinds * MaxLimits) {
		var rule hooksLimit
		if err := limits.Lookup((door.InForce&inForceWhich)*kinds*MaxLimits+i, &rule); err != nil {
			return nil, err
		}
		if rule.Set == 0 {
			continue
		}
		var standing hooksLimitState
		if err := standings.Lookup(rule.Slot, &standing); err != nil {
			return nil, err
		}
		left[rule.Name] = rule.usage(standing.Level, now)
	}
	return left, nil
}

// usage returns what a level of a limit means.
func (k *hooksLimit) usage(level, now uint64) LimitUsage {
	if k.Period == 0 {
		return LimitUsage{Used: level}
	}
	return LimitUsage{Period: time.Duration(k.Period), Debt: time.Duration(max(level, now) - now)}
}
