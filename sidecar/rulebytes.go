package sidecar

import (
	"sync"

	"github.com/chaperone-proxy/chaperone/ebpf"
	"github.com/chaperone-proxy/chaperone/internal/phrase"
)

// ruleNumbers numbers rules for the kernel, which counts what a connection
// exchanges under a number. A rule keeps its number as long as the sidecar
// lives, also over a reload; a rule too many has number 0, under which nothing
// is counted.
type ruleNumbers struct {
	mu      sync.Mutex
	numbers map[string]uint32
	names   []string // of the numbers, from 1
	before  map[uint32]ebpf.Traffic
}

// number returns the number of a rule; 0 for no rule.
func (a *ruleNumbers) number(grant, rule string) uint32 {
	if grant == "" {
		return 0
	}
	name := phrase.Rule(grant, rule)
	a.mu.Lock()
	defer a.mu.Unlock()
	if n, ok := a.numbers[name]; ok {
		return n
	}
	if len(a.names)+1 >= ebpf.MaxRules {
		return 0
	}
	if a.numbers == nil {
		a.numbers = map[string]uint32{}
	}
	a.names = append(a.names, name)
	a.numbers[name] = uint32(len(a.names))
	return a.numbers[name]
}

// begin notes what stands under the numbers already: an earlier sidecar gave
// them to rules that nobody remembers.
func (a *ruleNumbers) begin(all []ebpf.Traffic) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.before = map[uint32]ebpf.Traffic{}
	for _, t := range all {
		a.before[t.Rule] = t
	}
}

// ruleTraffic is what the connections of one rule have exchanged since the
// sidecar started.
type ruleTraffic struct {
	rule string // GRANT/ID
	ebpf.Traffic
}

// named gives each figure the name of its rule.
func (a *ruleNumbers) named(all []ebpf.Traffic) []ruleTraffic {
	a.mu.Lock()
	defer a.mu.Unlock()
	var out []ruleTraffic
	for _, t := range all {
		if t.Rule == 0 || int(t.Rule) > len(a.names) {
			continue
		}
		was := a.before[t.Rule]
		t.SentBytes -= was.SentBytes
		t.SentPackets -= was.SentPackets
		t.ReceivedBytes -= was.ReceivedBytes
		t.ReceivedPackets -= was.ReceivedPackets
		out = append(out, ruleTraffic{a.names[t.Rule-1], t})
	}
	return out
}

// attribute has the kernel count a connection's bytes for a rule.
func (t *KernelTelemetry) attribute(cookie uint64, grant, rule string) {
	t.cfg.Confinement().Attribute(cookie, t.ruleNumbers.number(grant, rule))
}

// ruleTraffic reads what each rule's connections have exchanged. It returns nil
// on an error.
func (t *KernelTelemetry) ruleTraffic() []ruleTraffic {
	all, err := t.cfg.Confinement().Traffic()
	if err != nil {
		return nil
	}
	return t.ruleNumbers.named(all)
}
