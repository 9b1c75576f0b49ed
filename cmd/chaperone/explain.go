package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/chaperone-proxy/chaperone/audit"
	"github.com/chaperone-proxy/chaperone/authz"
	"github.com/chaperone-proxy/chaperone/configs"
	"github.com/chaperone-proxy/chaperone/internal/phrase"
	"github.com/chaperone-proxy/chaperone/policy"
	"github.com/chaperone-proxy/chaperone/proxy/upstream"
	"github.com/chaperone-proxy/chaperone/sidecar"
)

func (c *cli) explainCommand() *cobra.Command {
	var effective bool
	var ask question
	cmd := c.withOutput(c.withConfig(&cobra.Command{
		Use:   "explain [METHOD URL | DATABASE-URL [STATEMENT] | DECISION-ID]",
		Short: "Explain a decision",
		Long: "Explain how an access would be decided, without resolving or dialling; or explain a recorded\n" +
			"decision. Exit status 3: denied.\n\n" +
			"  chaperone explain --config sidecar.yaml GET https://api.weather.example/v1/forecast/1\n" +
			"  chaperone explain --config grants/ --plugin weather --at 2027-01-01T00:00:00Z GET https://api.weather.example/\n" +
			"  chaperone explain --config sidecar.yaml postgres://db.internal/shop 'SELECT * FROM orders'\n" +
			"  chaperone explain --config sidecar.yaml redis://cache.internal/0 'GET app:1'\n" +
			"  chaperone explain --config sidecar.yaml 0193f6c2-...\n" +
			"  chaperone explain --config sidecar.yaml --effective",
		RunE: func(cmd *cobra.Command, args []string) error {
			switch {
			case c.config == "":
				return usageError("explain: --config is missing; name the Sidecar's file, as in --config sidecar.yaml")
			case !effective && (len(args) == 2 || len(args) == 1 && strings.Contains(args[0], "://")):
				upgrade := ask.words.Upgrade
				ask.words = policy.ParseWords(strings.Join(args, " "))
				ask.words.Upgrade = upgrade
				return c.explainAccess(ask)
			}
			cfg, err := loadConfig(c.config)
			switch {
			case err != nil:
				return err
			case effective && len(args) == 0:
				return c.printEffective(cfg)
			case !effective && len(args) == 1:
				return c.explainRecord(cmd.Context(), cfg, args[0])
			}
			return usageError("explain: takes METHOD and URL, the URL of a database and a statement, a decision's id, or --effective")
		},
	}))
	cmd.Flags().BoolVar(&effective, "effective", false, "print the whole effective policy")
	ask.flags(cmd)
	return cmd
}

// loadConfig reads a Sidecar's file and prints what is wrong with it.
func loadConfig(path string) (*configs.Config, error) {
	cfg, err := configs.Load(path, time.Now())
	if err != nil {
		return nil, fmt.Errorf("load %s:\n%w", path, err)
	}
	return cfg, nil
}

// offline returns the snapshot that a sidecar would decide with: the files'
// policy and the revocations of the stateDir.
func offline(cfg *configs.Config) (*authz.Snapshot, error) {
	engine, err := sidecar.OfflineEngine(cfg)
	if err != nil {
		return nil, err
	}
	return engine.Current(), nil
}

// explained is the answer of explain.
type explained struct {
	Decision string   `json:"decision,omitempty"`
	Allowed  bool     `json:"allowed"`
	Reason   string   `json:"reason"`
	Detail   string   `json:"detail,omitempty"`
	Facts    []string `json:"facts,omitempty"` // of a statement, as its reader found them
	// Connection is the decision on the connection of a statement, in a few words.
	Connection string         `json:"connection,omitempty"`
	Grant      string         `json:"grant,omitempty"`
	Rule       string         `json:"rule,omitempty"`
	Secret     string         `json:"credential,omitempty"`
	Injects    string         `json:"injects,omitempty"`
	Upstream   string         `json:"upstream,omitempty"`
	Terms      string         `json:"terms,omitempty"`
	Regions    []string       `json:"regions,omitempty"` // of the rule: the destination has to be in one of them
	Region     string         `json:"region,omitempty"`  // of the address, or of the host
	Limits     []string       `json:"limits,omitempty"`
	Nearest    *authz.Nearest `json:"nearest,omitempty"`
	Remedy     string         `json:"remedy,omitempty"`
	YAML       string         `json:"yaml,omitempty"`
}

// explainObserved explains an access that passes because something observes: with
// the rule that grants it once nothing does, under the terms that became known.
func (c *cli) explainObserved(in authz.Input, at time.Time, req authz.Request, e authz.Explanation, out explained, terms authz.RuleTerms) error {
	out.Allowed, out.Reason = e.Decision.Allowed(), e.Decision.Reason.String()
	e, err := enforced(in, at, req, terms)
	if err != nil {
		return err
	}
	out.Nearest, out.Remedy, out.YAML = e.Nearest, e.Remedy, e.YAML
	out.Detail = cmp.Or(out.Detail, fmt.Sprintf("%s passed while something observes", req.Principal)) + "; once nothing observes: " + e.Decision.Reason.String() + ", " + e.Detail
	return c.printExplained(out)
}

// enforced explains the request as it will be decided once nothing observes.
func enforced(in authz.Input, at time.Time, req authz.Request, terms authz.RuleTerms) (authz.Explanation, error) {
	grants := in.Grants
	in.Grants, in.Observe, in.ObserveUntil = nil, false, time.Time{}
	for _, g := range grants {
		g.Rules = slices.Clone(g.Rules)
		for i := range g.Rules {
			g.Rules[i].Mode, g.Rules[i].ObserveUntil = authz.ModeEnforce, time.Time{}
		}
		in.Grants = append(in.Grants, g)
	}
	compiled, problems := authz.Compile(in, at)
	if len(problems) > 0 {
		return authz.Explanation{}, fmt.Errorf("compile as enforced: %s: %s", problems[0].Path, problems[0].Message)
	}
	engine := &authz.Engine{}
	engine.Install(compiled)
	return engine.Current().ExplainWith(req, authz.Usage{}, at, terms), nil
}

func (c *cli) printExplained(e explained) error {
	err := c.print(e, func(w io.Writer) {
		verdict := "denied"
		if e.Allowed {
			verdict = "allowed"
		}
		row(w, verdict+":", e.Reason)
		for _, line := range []struct{ name, value string }{
			{"decision:", e.Decision},
			{"why:", e.Detail},
			{"facts:", strings.Join(e.Facts, ", ")},
			{"connection:", e.Connection},
			{"rule:", phrase.Rule(e.Grant, e.Rule)},
			{"credential:", e.Secret},
			{"injects:", e.Injects},
			{"upstream:", e.Upstream},
			{"terms:", e.Terms},
			{"regions:", strings.Join(e.Regions, ", ")},
			{"region:", e.Region},
			{"limits:", strings.Join(e.Limits, ", ")},
			{"remedy:", e.Remedy},
		} {
			if line.value != "" {
				row(w, line.name, line.value)
			}
		}
		if e.Nearest != nil {
			row(w, "nearest:", fmt.Sprintf("%s (differs in %s)", phrase.Rule(e.Nearest.Grant, e.Nearest.Rule), strings.Join(e.Nearest.Differs, ", ")))
		}
		if e.YAML != "" {
			also := "nothing else"
			if strings.Contains(e.YAML, "\n  opaque: allow\n") {
				also = "every statement whose text does not show its effect"
			}
			fmt.Fprintf(w, "this rule would allow it, and %s:\n%s", also, e.YAML)
		}
	})
	if err == nil && !e.Allowed {
		return exitWith(exitDenied, nil)
	}
	return err
}

// explainRecord finds a recorded decision and, where its path was recorded as
// it was, decides it again with today's files.
func (c *cli) explainRecord(ctx context.Context, cfg *configs.Config, id string) error {
	entry, err := findDecision(ctx, cfg, id)
	if err != nil {
		return err
	}
	e := explained{
		Decision: id, Allowed: entry.Allowed != nil && *entry.Allowed, Reason: entry.Reason, Grant: entry.Grant, Rule: entry.Rule, Secret: entry.Credential, Detail: entry.Detail,
		Facts: entry.Facts,
	}
	if entry.Door == string(authz.DoorKernel) {
		if entry.Reason == authz.DestinationNotGranted.String() && entry.Port != 0 {
			snapshot, err := offline(cfg)
			if err != nil {
				return err
			}
			if now, err := snapshot.ExplainConnection(authz.Principal(entry.Plugin), entry.Host, entry.Port, cfg.Latest(time.Now())); err == nil {
				e.Nearest, e.Remedy = now.Nearest, now.Remedy
			}
		}
		return c.printExplained(e) // the kernel's hooks decide by more than a policy
	}
	if req, err := recordedRequest(entry); err == nil {
		snapshot, err := offline(cfg)
		if err != nil {
			return err
		}
		terms, late := lateRefusal(ctx, cfg, id)
		if entry.Reason == authz.Observed.String() {
			if late != nil {
				e.Detail = "it passed, as something observes, and then: " + late.Reason + ", " + late.Detail
			}
			return c.explainObserved(snapshot.Input(), cfg.Latest(time.Now()), req, authz.Explanation{Decision: authz.Decision{Reason: authz.Observed}}, e, terms)
		}
		if now := snapshot.Explain(req, authz.Usage{}, cfg.Latest(time.Now())); now.Decision.Reason.String() == entry.Reason {
			e.Detail, e.Nearest, e.Remedy, e.YAML = now.Detail, now.Nearest, now.Remedy, now.YAML
		} else if e.Detail == "" {
			e.Detail = "decided by earlier files or other usage; today it would be " + now.Decision.Reason.String()
		}
	}
	return c.printExplained(e)
}

// lateRefusal returns what became known of the upstream of an access that was
// admitted and then refused, and the record of its end; nil when it was not.
func lateRefusal(ctx context.Context, cfg *configs.Config, id string) (authz.RuleTerms, *audit.Entry) {
	query := audit.Query{File: cfg.Sidecar.Audit.File, Filter: audit.Filter{Decision: id, Kind: string(authz.KindEnd)}, Last: 1}
	for entry, err := range audit.Read(ctx, query) {
		if err != nil || entry.Allowed == nil || *entry.Allowed {
			return authz.RuleTerms{}, nil
		}
		var terms authz.RuleTerms
		addr, err := netip.ParseAddr(entry.Address)
		switch {
		case entry.Reason == authz.AddressNotAllowed.String() && err == nil:
			terms.Addresses = []netip.Prefix{netip.PrefixFrom(addr, addr.BitLen())}
		case entry.Reason == authz.UpstreamUnreachable.String() && strings.Contains(entry.Detail, upstream.UntrustedAuthority):
			terms.CAFile = "CA-OF-" + entry.Host + ".pem"
		}
		return terms, &entry
	}
	return authz.RuleTerms{}, nil
}

// recordedRequest returns the request of a decision's record. Its error reports that the
// record does not show the whole request, as if a key of Redis is masked.
func recordedRequest(e audit.Entry) (authz.Request, error) {
	w := policy.Words{Method: method(e), URL: entryURL(e)}
	if len(e.Facts) > 0 {
		if e.Masked != "" {
			return authz.Request{}, errors.New("keys are masked")
		}
		facts, err := json.Marshal(e.Facts)
		if err != nil {
			return authz.Request{}, err
		}
		w.Statement = string(facts)
	}
	return policy.Request(authz.Principal(e.Plugin), w)
}

func method(e audit.Entry) string {
	if e.Method == "" {
		return "CONNECT"
	}
	return e.Method
}

func entryURL(e audit.Entry) string {
	return e.Scheme + "://" + net.JoinHostPort(e.Host, fmt.Sprint(e.Port)) + e.Path
}

// effectiveRule is one rule of the effective policy.
type effectiveRule struct {
	Name       string     `json:"name"`
	Reason     string     `json:"reason"`
	State      string     `json:"state"` // in force, observing, expired or revoked
	Rule       authz.Rule `json:"rule"`
	NotAfter   time.Time  `json:"notAfter"`
	Credential string     `json:"vaultPath,omitempty"`
	Injected   string     `json:"injected,omitempty"` // as in header Authorization
	Env        string     `json:"placeholder,omitempty"`
}

// printEffective prints what is granted less what has expired or was revoked,
// and what guardrails never allow.
func (c *cli) printEffective(cfg *configs.Config) error {
	snapshot, err := offline(cfg)
	if err != nil {
		return err
	}
	now := cfg.Latest(time.Now())
	answer := struct {
		Plugin     string            `json:"plugin"`
		Revoked    authz.Level       `json:"revoked,omitempty"`
		Rules      []effectiveRule   `json:"rules"`
		Limits     map[string]any    `json:"limits,omitempty"`
		Sockets    []string          `json:"sockets,omitempty"`
		Guardrails []authz.Guardrail `json:"guardrails,omitempty"`
	}{
		Plugin: cfg.Sidecar.Plugin, Revoked: snapshot.RevokedLevel(authz.Principal(cfg.Sidecar.Plugin), now),
		Rules: effectiveRules(cfg, snapshot.Revocations(), now), Limits: map[string]any{}, Guardrails: cfg.Guardrails,
		Sockets: snapshot.Sockets(authz.Principal(cfg.Sidecar.Plugin), now),
	}
	for _, g := range cfg.Grants {
		if g.Limits != (authz.Limits{}) {
			answer.Limits[g.Name] = g.Limits
		}
	}
	return c.print(answer, func(w io.Writer) {
		if answer.Revoked != "" {
			row(w, "the whole plugin is revoked:", answer.Revoked)
		}
		row(w, "RULE", "STATE", "UNTIL", "MAY")
		for _, r := range answer.Rules {
			how := ""
			if r.Injected != "" {
				how = " (" + r.Injected + ")"
			}
			row(w, r.Name, r.State, r.NotAfter.UTC().Format(time.RFC3339), ruleText(r.Rule)+how)
		}
		for _, g := range cfg.Grants {
			if g.Limits != (authz.Limits{}) {
				row(w, g.Name, "limits", g.NotAfter.UTC().Format(time.RFC3339), g.Limits)
			}
		}
		for _, socket := range answer.Sockets {
			row(w, socket, "socket", "", "connect")
		}
		for _, g := range cfg.Guardrails {
			for _, n := range g.Never {
				row(w, g.Name+"/"+n.ID, "never", "", fmt.Sprint(n.Hosts, n.Addresses, n.Sockets))
			}
		}
	})
}

func effectiveRules(cfg *configs.Config, revocations []authz.Revocation, now time.Time) []effectiveRule {
	out := []effectiveRule{}
	for _, g := range cfg.Grants {
		for _, r := range g.Rules {
			e := effectiveRule{Name: phrase.Rule(g.Name, r.ID), Reason: r.Reason, State: "in force", Rule: r, NotAfter: g.NotAfter}
			if !r.NotAfter.IsZero() {
				e.NotAfter = r.NotAfter
			}
			for _, cr := range g.Credentials {
				if cr.Name == r.Credential {
					e.Credential, e.Injected = cr.Vault.Path, cr.Inject.Describe()
					if cr.Placeholder != nil {
						e.Env = cr.Placeholder.Env
					}
				}
			}
			switch {
			case slices.ContainsFunc(revocations, func(v authz.Revocation) bool {
				return (v.Rule == "" || v.Grant == g.Name && v.Rule == r.ID) && (v.Until.IsZero() || now.Before(v.Until))
			}):
				e.State = "revoked"
			case !now.Before(e.NotAfter):
				e.State = "expired"
			case now.Before(r.ObserveUntil):
				e.State = "observing"
			}
			out = append(out, e)
		}
	}
	return out
}

// ruleText returns what a rule grants, on one line.
func ruleText(r authz.Rule) string {
	scheme := r.To.Scheme
	if scheme == "" {
		scheme = authz.SchemeHTTPS
	}
	text := string(scheme) + "://" + strings.Join(r.To.Hosts, ",")
	if len(r.To.Ports) > 0 {
		text += fmt.Sprint(":", r.To.Ports)
	}
	if len(r.Methods) > 0 {
		text = strings.Join(r.Methods, ",") + " " + text + " " + strings.Join(r.Paths, " ")
	}
	if r.Credential != "" {
		text += " with " + r.Credential
	}
	if limits := r.Limits.String(); limits != "" {
		text += " (" + limits + ")"
	}
	return text
}
