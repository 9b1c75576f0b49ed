package sidecar

import (
	"encoding/json"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/chaperone-proxy/chaperone/authz"
	"github.com/chaperone-proxy/chaperone/configs"
	"github.com/chaperone-proxy/chaperone/internal/admin"
	"github.com/chaperone-proxy/chaperone/internal/atomicfile"
)

// trustStatus returns whose signatures count; nil without spec.trust.
func trustStatus(cfg *configs.Config) *admin.Trust {
	if cfg.Trust == nil {
		return nil
	}
	return &admin.Trust{Root: cfg.Trust.Root, Version: cfg.Trust.Version, Digest: cfg.Trust.RootDigest, Guardrail: cfg.Trust.Guardrail}
}

// signatureStatus returns what a signed grant is bound to, and nil for an unsigned one.
func (s *Sidecar) signatureStatus(cfg *configs.Config, grant string, now time.Time) *admin.Signature {
	if cfg.Trust == nil {
		return nil
	}
	for i := range cfg.Trust.Grants {
		g := &cfg.Trust.Grants[i]
		if g.Name != grant {
			continue
		}
		out := &admin.Signature{
			Digest: g.Digest, Generation: g.Binding.Generation, Band: g.Binding.Band, Score: g.Binding.Score,
			Artifact: g.Binding.Artifact.Text(), RenewBefore: g.RenewBefore, Stale: g.Stale,
		}
		for _, a := range g.Approvals {
			if who := a.Identity + " as " + a.Role; !slices.Contains(out.Approvals, who) { // perhaps approved twice
				out.Approvals = append(out.Approvals, who)
			}
		}
		used := s.exemptionUses(now)
		for _, e := range g.Exemptions {
			uses := used["exemption:"+e.Name]
			out.Exemptions = append(out.Exemptions, admin.Exemption{
				Name: e.Name, From: e.GuardrailRule, Owner: e.Owner, Ticket: e.Ticket, State: string(e.State(now, uses)), NotAfter: e.NotAfter, Uses: uses, MaxUses: e.MaxUses,
			})
		}
		return out
	}
	return nil
}

// exemptionUses returns the use of totals by the name of the grant, among them those of
// exemptions.
func (s *Sidecar) exemptionUses(now time.Time) map[string]int64 {
	out := map[string]int64{}
	for _, u := range s.policy.ledger.Report(s.policy.engine.Current(), s.name, now) {
		if u.Rule == "" && u.Limit.Period == 0 {
			out[u.Grant] = int64(min(u.Used, 1<<62))
		}
	}
	return out
}

// ExemptionUses returns how often each exemption was used by what is written in a stateDir; none
// if it may not be read.
func ExemptionUses(stateDir string) map[string]int64 {
	const longest = 64 << 20
	data, err := atomicfile.Read(filepath.Join(stateDir, totalsFile), longest)
	var used authz.State
	if err != nil || json.Unmarshal(data, &used) != nil {
		return nil
	}
	out := map[string]int64{}
	for _, t := range used.Totals {
		if name, ok := strings.CutPrefix(t.Grant, "exemption:"); ok && t.Rule == "" {
			out[name] = int64(min(t.Used, 1<<62))
		}
	}
	return out
}

// dateNotices returns what has become due of signed grants since they were loaded.
func (c *PolicyControl) dateNotices(now time.Time) (out []string) {
	cfg := c.config.Load()
	if cfg.Trust == nil {
		return nil
	}
	loaded := cfg.Trust.Generations.Time
	for _, g := range cfg.Trust.Grants {
		if loaded.Before(g.RenewBefore) && !now.Before(g.RenewBefore) && now.Before(g.NotAfter) {
			out = append(out, fmt.Sprintf("grant %s ends at %s; renew it (chaperone plugin renew)", g.Name, g.NotAfter.UTC().Format(time.RFC3339)))
		}
		if !g.Stale.IsZero() && loaded.Before(g.Stale) && !now.Before(g.Stale) {
			out = append(out, fmt.Sprintf("evidence of grant %s is stale since %s", g.Name, g.Stale.UTC().Format(time.RFC3339)))
		}
	}
	return out
}

// registerTrustMetrics registers the dates of signed grants.
func (s *Sidecar) registerTrustMetrics() {
	grants := func(read func(g *configs.SignedGrant) float64) func(func(float64, ...string)) {
		return func(emit func(float64, ...string)) {
			if t := s.policy.config.Load().Trust; t != nil {
				for i := range t.Grants {
					emit(read(&t.Grants[i]), t.Grants[i].Name)
				}
			}
		}
	}
	label := []string{"grant"}
	s.metrics.collect("chaperone_grant_signature_valid", "1 for a grant whose signatures were verified when it was loaded.", prometheus.GaugeValue, label,
		grants(func(*configs.SignedGrant) float64 { return 1 }))
	s.metrics.collect("chaperone_grant_issue", "Generation of a signed grant.", prometheus.GaugeValue, label,
		grants(func(g *configs.SignedGrant) float64 { return float64(g.Binding.Generation) }))
	s.metrics.collect("chaperone_grant_renew_timestamp_seconds", "When a signed grant is to be renewed, in Unix time.", prometheus.GaugeValue, label,
		grants(func(g *configs.SignedGrant) float64 { return float64(g.RenewBefore.Unix()) }))
	s.metrics.collect("chaperone_grant_stale_timestamp_seconds", "When the evidence of a signed grant becomes stale, in Unix time; absent for never.", prometheus.GaugeValue, label,
		func(emit func(float64, ...string)) {
			if t := s.policy.config.Load().Trust; t != nil {
				for _, g := range t.Grants {
					if !g.Stale.IsZero() {
						emit(float64(g.Stale.Unix()), g.Name)
					}
				}
			}
		})
}
