package main

import (
	"crypto/sha256"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/chaperone-proxy/chaperone/authz"
	"github.com/chaperone-proxy/chaperone/internal/command"
	"github.com/chaperone-proxy/chaperone/internal/phrase"
	"github.com/chaperone-proxy/chaperone/policy"
)

// question is an access that explain is asked about.
type question struct {
	words                policy.Words
	plugin, door         string
	address, revocations string
	at                   instant
}

func (q *question) flags(cmd *cobra.Command) {
	flags := cmd.Flags()
	flags.StringVar(&q.words.Upgrade, "upgrade", "", "the `PROTOCOL` the access upgrades to, as in websocket")
	flags.StringVar(&q.plugin, "plugin", "", "the `PLUGIN`, of a configuration with several")
	flags.Var(&q.at, "at", "the `TIME` of the access, as in 2026-12-01T12:00:00Z (default now)")
	flags.Var(command.OneOf(&q.door, policy.DoorNames()...), "door", "the `DOOR` at which the access arrives: "+command.Alternatives(policy.DoorNames())+" (default proxy)")
	flags.StringVar(&q.address, "address", "", "the `ADDRESS` to which the name resolves")
	flags.StringVar(&q.revocations, "revocations", "", "a `FILE` of revocations that are in force")
}

// explainAccess explains an access under a configuration of any kind, and for a Sidecar
// under the revocations of its stateDir.
func (c *cli) explainAccess(q question) error {
	stated := !q.at.IsZero()
	at := q.at.orNow()
	subject, err := c.explainedPolicy(q, at)
	if err != nil {
		return err
	}
	if cfg := subject.Config(); cfg != nil && !stated {
		at = cfg.Latest(at)
	}
	snapshot, err := subjectSnapshot(subject, q.revocations)
	if err != nil {
		return err
	}
	if socket, ok := strings.CutPrefix(q.words.URL, "unix:"); ok {
		return c.explainSocket(snapshot, subject.Plugin, socket, at)
	}
	req, err := policy.Request(authz.Principal(subject.Plugin), q.words)
	if err != nil {
		return c.printExplained(explained{Reason: policy.ReasonOf(err).String(), Detail: err.Error()})
	}
	var addr netip.Addr
	if q.address != "" {
		if addr, err = netip.ParseAddr(q.address); err != nil {
			return usageError("explain: --address %q is not an address, as in 192.0.2.1", q.address)
		}
	}
	door, _ := policy.DoorNamed(q.door) // the flag takes no other
	req.Unenforceable = door.Unenforceable
	e := snapshot.Explain(req, authz.Usage{}, at)
	if reason := e.Decision.CheckAddress(addr); e.Decision.Allowed() && addr.IsValid() && reason != authz.Granted {
		detail := fmt.Sprintf("%s may not connect to %s for %s", req.Principal, addr, policy.Format(req))
		if outside := e.Decision.OutsideRegions(addr); outside != "" {
			detail += ": it is " + outside
		}
		return c.printExplained(explained{Reason: reason.String(), Grant: e.Decision.Grant, Rule: e.Decision.Rule, Detail: detail, Region: e.Decision.Region(addr)})
	}
	out := explained{
		Allowed: e.Decision.Allowed(), Reason: e.Decision.Reason.String(), Detail: e.Detail, Grant: e.Decision.Grant,
		Rule: e.Decision.Rule, Secret: e.Decision.Credential, Nearest: e.Nearest, Remedy: e.Remedy, YAML: e.YAML,
	}
	out.ofSession(snapshot, req, at)
	if out.Allowed {
		out.describe(snapshot, e.Decision, req, at)
		out.Region = e.Decision.Region(addr)
	}
	if e.Decision.Reason == authz.Observed {
		out.Secret, out.Injects = "", ""
		return c.explainObserved(snapshot.Input(), at, req, e, out, authz.RuleTerms{})
	}
	return c.printExplained(out)
}

// ofSession adds the facts of a statement, and the decision on the connection of its session,
// which comes first: a statement of a connection that is denied is denied too.
func (e *explained) ofSession(s *authz.Snapshot, req authz.Request, at time.Time) {
	if !req.Destination.Scheme().Database() {
		return
	}
	e.Facts = req.Facts.All()
	connection, ok := policy.Connection(req)
	if !ok || connection == req {
		return
	}
	x := s.Explain(connection, authz.Usage{}, at)
	e.Connection = x.Decision.Reason.String()
	if rule := phrase.Rule(x.Decision.Grant, x.Decision.Rule); rule != "" {
		e.Connection += " by " + rule
	}
	if !x.Decision.Allowed() && e.Allowed {
		e.Allowed, e.Reason, e.Detail = false, x.Decision.Reason.String(), x.Detail
		e.Nearest, e.Remedy, e.YAML = x.Nearest, x.Remedy, x.YAML
	}
}

// explainedPolicy returns the policy of the one plugin that the question is about.
func (c *cli) explainedPolicy(q question, at time.Time) (policy.Subject, error) {
	subjects, err := policy.Load(at, policy.Options{Plugin: q.plugin}, c.config)
	if err != nil {
		return policy.Subject{}, fmt.Errorf("load %s:\n%w", c.config, err)
	}
	if len(subjects) > 1 {
		var names []string
		for _, s := range subjects {
			names = append(names, strings.Trim(s.Plugin+" ("+s.Name+")", " ()"))
		}
		return policy.Subject{}, usageError("explain: %s has the policies of %s; say --plugin, or name one Sidecar's file", c.config, phrase.List(names))
	}
	c.noteAssumed(subjects)
	return subjects[0], nil
}

// subjectSnapshot returns a policy in force under the revocations of a file, or else of
// the Sidecar's stateDir.
func subjectSnapshot(s policy.Subject, revocations string) (*authz.Snapshot, error) {
	if cfg := s.Config(); cfg != nil && revocations == "" {
		return offline(cfg)
	}
	all, err := revocationsIn(revocations)
	if err != nil {
		return nil, err
	}
	return s.With(all), nil
}

func (c *cli) explainSocket(s *authz.Snapshot, plugin, socket string, at time.Time) error {
	if slices.Contains(s.Sockets(authz.Principal(plugin), at), socket) {
		return c.printExplained(explained{Allowed: true, Reason: authz.Granted.String(), Detail: plugin + " may connect to " + socket})
	}
	return c.printExplained(explained{Reason: authz.DestinationNotGranted.String(), Detail: plugin + " may not connect to " + socket})
}

// describe adds what an allowed access carries, where it is forwarded to and what bounds
// it.
func (e *explained) describe(s *authz.Snapshot, d authz.Decision, req authz.Request, at time.Time) {
	if to := d.Upstream(req.Destination); to != req.Destination {
		e.Upstream = to.URL()
	}
	if terms := d.Terms(); terms != (authz.Terms{TLSMin: "1.2"}) {
		e.Terms = termsText(terms)
	}
	for _, g := range s.Input().Grants {
		if g.Plugin != string(req.Principal) || !at.Before(g.NotAfter) {
			continue
		}
		e.addLimits(g.Name, g.Limits)
		if g.Name != d.Grant {
			continue
		}
		for _, r := range g.Rules {
			if r.ID == d.Rule {
				e.addLimits(phrase.Rule(g.Name, r.ID), r.Limits)
				e.Regions = r.Data.Regions
			}
		}
		for _, cr := range g.Credentials {
			if cr.Name == d.Credential {
				e.Injects = cr.Vault.Path + " as " + cr.Inject.Describe()
			}
		}
	}
}

func (e *explained) addLimits(name string, l authz.Limits) {
	if text := l.String(); text != "" {
		e.Limits = append(e.Limits, name+" "+text)
	}
}

func termsText(t authz.Terms) string {
	text := "TLS " + t.TLSMin
	if t.CA != "" {
		text += fmt.Sprintf(", authorities with SHA-256 %.8x", sha256.Sum256([]byte(t.CA)))
	}
	if t.Timeout > 0 {
		text += ", timeout " + t.Timeout.String()
	}
	return text
}
