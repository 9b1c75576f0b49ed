package prove

import (
	"strings"
	"time"

	"github.com/chaperone-proxy/chaperone/authz"
	"github.com/chaperone-proxy/chaperone/policy"
)

// Sampler finds requests of rules, to show a rule by.
type Sampler struct {
	c  *comparison
	at time.Time
}

// NewSampler returns a sampler of the plugin's rules.
func NewSampler(s *authz.Snapshot, o Options) *Sampler {
	rules := newSide(s, o.Plugin)
	return &Sampler{newComparison(rules, rules, o), o.At}
}

// Of returns a request that the rule wins, with the decision as New; false if there is no
// such request.
func (s *Sampler) Of(grant, rule string) (Finding, bool) {
	r := s.c.after.byName[ruleName{grant, rule}]
	if r == nil {
		return Finding{}, false
	}
	for _, host := range r.rule.To.Hosts {
		if _, base, wild := strings.Cut(host, "*."); wild {
			host = s.c.fresh.label + "." + base
		}
		for _, shape := range s.c.localRules(host).shapes() {
			for req := range shape.requests(s.c.opts.Plugin, host, func() {}) {
				if d := s.c.after.snapshot.Decide(req, authz.Usage{}, s.at); d.Grant == grant && d.Rule == rule {
					return Finding{Kind: KindAccess, Request: req, At: s.at, Door: policy.Doors()[0], New: answer(d, req), Never: true}, true
				}
			}
		}
	}
	return Finding{}, false
}
