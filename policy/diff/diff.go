package diff

import (
	"context"
	"slices"
	"time"

	"github.com/chaperone-proxy/chaperone/authz"
	"github.com/chaperone-proxy/chaperone/policy"
	"github.com/chaperone-proxy/chaperone/policy/prove"
)

// Class is what a change is about.
type Class string

// The classes of changes.
const (
	ClassPlugin      Class = "plugin"      // a plugin that one side does not have
	ClassHost        Class = "host"        // a host
	ClassPort        Class = "port"        // a port or scheme
	ClassMethod      Class = "method"      // a method or upgrade
	ClassPath        Class = "path"        // a path
	ClassDatabase    Class = "database"    // a database
	ClassVerb        Class = "verb"        // a verb of SQL
	ClassTable       Class = "table"       // a table
	ClassFunction    Class = "function"    // a function
	ClassSetting     Class = "setting"     // a parameter that statements set
	ClassCommand     Class = "command"     // a command of Redis
	ClassKey         Class = "key"         // a key of Redis
	ClassChannel     Class = "channel"     // a channel of Redis
	ClassOpaque      Class = "opaque"      // statements whose effect their text does not show
	ClassAddress     Class = "address"     // an address that a name may resolve to
	ClassData        Class = "data"        // the classes, regions and retention of data
	ClassCredential  Class = "credential"  // a credential, by its source and place
	ClassTerms       Class = "terms"       // TLS or the timeout
	ClassLimit       Class = "limit"       // a limit
	ClassLifetime    Class = "lifetime"    // the end of a grant or rule
	ClassObserve     Class = "observe"     // accesses without a grant are allowed
	ClassGuardrail   Class = "guardrail"   // a never-list, a ceiling, or a whole guardrail
	ClassRevocation  Class = "revocation"  // a rule that is revoked under another name
	ClassSocket      Class = "socket"      // a Unix socket
	ClassConfinement Class = "confinement" // how the Sidecar confines the plugin
	ClassReason      Class = "reason"      // the reason of a rule
	ClassOwner       Class = "owner"       // labels and annotations of a document
)

// About is a class, and what it is about.
type About struct {
	Class Class
	Text  string
}

// Classes returns every class, in the order in which changes are listed.
func Classes() []About {
	return []About{
		{ClassPlugin, "A plugin is added or removed"},
		{ClassHost, "Another host"},
		{ClassPort, "Another port or scheme"},
		{ClassMethod, "Another method or upgrade"},
		{ClassPath, "Another path"},
		{ClassDatabase, "Another database"},
		{ClassVerb, "Another verb of SQL"},
		{ClassTable, "Another table"},
		{ClassFunction, "Another function"},
		{ClassSetting, "Another parameter that statements set"},
		{ClassCommand, "Another command of Redis"},
		{ClassKey, "Another key of Redis"},
		{ClassChannel, "Another channel of Redis"},
		{ClassOpaque, "Statements whose effect their text does not show"},
		{ClassAddress, "Another address that a name may resolve to"},
		{ClassData, "Other classes, regions or retention of data"},
		{ClassCredential, "Another credential, by its source and place"},
		{ClassTerms, "Other terms: TLS version, authorities, timeout"},
		{ClassLimit, "Another limit"},
		{ClassLifetime, "Another end of a grant or rule"},
		{ClassObserve, "Accesses without a grant are allowed"},
		{ClassGuardrail, "Another bound of a guardrail"},
		{ClassRevocation, "A revoked rule under another name"},
		{ClassSocket, "Another Unix socket"},
		{ClassConfinement, "Another confinement of the plugin"},
		{ClassReason, "Another reason of a rule"},
		{ClassOwner, "Other labels or annotations"},
	}
}

// Change is one difference between two configurations.
type Change struct {
	Class   Class  `json:"class"`
	Summary string `json:"summary"`
	// Rule is GRANT/RULE, GRANT or GUARDRAIL/ID; "" for a Sidecar.
	Rule string `json:"rule,omitempty"`
	// Position is where it is written: in the new configuration, or in the old one for what
	// is removed.
	Position *policy.Position `json:"position,omitempty"`
	// Shown is a request that shows the change; nil if no request does.
	Shown *prove.Demonstration `json:"shown,omitempty"`
	// More is the number of further requests of the same class and rules.
	More int `json:"more,omitempty"`
}

// Plugin holds the changes of one plugin.
type Plugin struct {
	Plugin   string   `json:"plugin"`
	Sidecar  string   `json:"sidecar,omitempty"` // its metadata.name
	Wider    []Change `json:"wider"`
	Narrower []Change `json:"narrower"`
	Changed  []Change `json:"changed"`
	Complete bool     `json:"complete"` // every request was compared
	Inexact  []string `json:"inexact,omitempty"`
}

// Verdict is the sum of all changes.
type Verdict string

// The verdicts.
const (
	Same      Verdict = "same"      // the same accesses are allowed
	Narrower  Verdict = "narrower"  // fewer are
	Wider     Verdict = "wider"     // a change needs an approval
	Undecided Verdict = "undecided" // the time ended first, and nothing wider was found
)

// Report is the difference between two configurations.
type Report struct {
	Verdict Verdict   `json:"verdict"`
	At      time.Time `json:"at"`
	Plugins []Plugin  `json:"plugins"`
}

// Compare returns the difference from before to after, for every time from q.At. When ctx
// ends, the report is not complete.
func Compare(ctx context.Context, before, after []policy.Subject, q prove.Question) (Report, error) {
	pairs, err := policy.Pairs(before, after, q.At)
	if err != nil {
		return Report{}, err
	}
	r := Report{At: q.At, Plugins: []Plugin{}}
	for _, pair := range pairs {
		p, err := comparePlugin(ctx, pair, q)
		if err != nil {
			return Report{}, err
		}
		r.Plugins = append(r.Plugins, p)
	}
	r.Verdict = r.verdict()
	return r, nil
}

func (r *Report) verdict() Verdict {
	v := Same
	for _, p := range r.Plugins {
		switch {
		case len(p.Wider) > 0:
			return Wider
		case !p.Complete:
			v = Undecided
		case len(p.Narrower) > 0 && v == Same:
			v = Narrower
		}
	}
	return v
}

// Count returns the number of changes of each kind.
func (r *Report) Count() (wider, narrower, changed int) {
	for _, p := range r.Plugins {
		wider, narrower, changed = wider+len(p.Wider), narrower+len(p.Narrower), changed+len(p.Changed)
	}
	return wider, narrower, changed
}

// Under adds the revocations in a file or stateDir to the arguments of explain of every
// change; none for "".
func (r *Report) Under(revocations string) {
	for _, p := range r.Plugins {
		for _, c := range slices.Concat(p.Wider, p.Narrower, p.Changed) {
			if c.Shown != nil {
				c.Shown.Under(revocations)
			}
		}
	}
}

func comparePlugin(ctx context.Context, pair policy.Pair, q prove.Question) (Plugin, error) {
	p := Plugin{Plugin: pair.Plugin, Sidecar: pair.Name, Wider: []Change{}, Narrower: []Change{}, Changed: []Change{}}
	o := prove.Options{Plugin: authz.Principal(pair.Plugin), At: q.At, Most: q.Most}
	was, is := pair.Before.With(q.Revocations), pair.After.With(q.Revocations)
	forth, err := prove.Compare(ctx, was, is, o)
	if err != nil {
		return p, err
	}
	back, err := prove.Compare(ctx, is, was, o)
	if err != nil {
		return p, err
	}
	p.Wider = gather(forth.Findings, direction{pair.Plugin, was, &pair.After, false}, p.Wider)
	p.Narrower = gather(back.Findings, direction{pair.Plugin, is, &pair.Before, true}, p.Narrower)
	p.Complete = forth.Complete && back.Complete
	p.Inexact = append(forth.Inexact, back.Inexact...)
	slices.Sort(p.Inexact)
	p.Inexact = slices.Compact(p.Inexact)
	if pair.Added || pair.Removed {
		p.presence(&pair)
	} else {
		p.guardrails(&pair)
		p.sidecars(&pair)
	}
	p.texts(&pair, q.At)
	return p, nil
}

// presence notes a plugin that one side does not have.
func (p *Plugin) presence(pair *policy.Pair) {
	if pair.Added {
		p.Wider = slices.Insert(p.Wider, 0, Change{Class: ClassPlugin, Summary: "the plugin is added"})
		return
	}
	p.Narrower = slices.Insert(p.Narrower, 0, Change{Class: ClassPlugin, Summary: "the plugin is removed"})
}

// direction is one of the two ways in which configurations are compared.
type direction struct {
	plugin   string
	narrow   *authz.Snapshot // the side that does not allow the request
	wide     *policy.Subject // the side that does
	reversed bool            // the wide side is the old one
}

// group identifies changes that are shown by one request.
type group struct {
	class          Class
	kind           prove.Kind
	oldRule, rule  string
	method, reason string
}

// gather puts findings into classes, with one request for each class and pair of rules.
func gather(findings []prove.Finding, d direction, out []Change) []Change {
	index := map[group]int{}
	for _, f := range findings {
		class := d.class(f)
		g := group{class, f.Kind, f.Old.RuleName(), f.New.RuleName(), "", f.Old.Reason.String()}
		if class == ClassMethod {
			g.method = f.Request.Action.Method + " " + f.Request.Action.Upgrade
		}
		if f.Kind == prove.KindLimit || f.Kind == prove.KindSocket {
			g.method = f.Limit.Name() + f.Socket
		}
		if i, ok := index[g]; ok {
			out[i].More++
			continue
		}
		index[g] = len(out)
		out = append(out, d.change(class, f))
	}
	rank := func(c Change) int {
		return slices.IndexFunc(Classes(), func(about About) bool { return about.Class == c.Class })
	}
	slices.SortStableFunc(out, func(a, b Change) int { return rank(a) - rank(b) })
	return out
}

// change returns a finding as a change of the class.
func (d direction) change(class Class, f prove.Finding) Change {
	shown := prove.Show(f, d.plugin, d.wide)
	c := Change{Class: class, Summary: shown.Summary, Rule: f.New.RuleName()}
	if p, ok := prove.Place(f, d.wide); ok {
		c.Position = &p
	}
	if d.reversed {
		c.Summary = narrower(f)
		if shown.Old != nil { // the new side is the one that denies
			*shown.Old, shown.New = shown.New, *shown.Old
		}
		shown.Summary = c.Summary
	}
	c.Shown = &shown
	return c
}

// narrower returns what a finding of the reverse comparison is.
func narrower(f prove.Finding) string {
	switch f.Kind {
	case prove.KindAccess:
		return "denied as " + f.Old.Reason.String() + ", was allowed" + prove.ContentText(f.Facts)
	case prove.KindCredential:
		if f.Old.Credential == "" {
			return "carries no credential, was " + f.New.Credential
		}
		return "carries the credential " + f.Old.Credential + ", was " + f.New.Credential
	case prove.KindUpstream:
		return "is forwarded to " + f.Old.Upstream.URL() + ", was " + f.New.Upstream.URL()
	case prove.KindAddress:
		return "may not connect to " + f.Address.String() + " any more"
	case prove.KindTerms:
		return "terms are stricter"
	case prove.KindLimit:
		return "the limit " + f.Limit.Spec.String() + " of " + f.Limit.Name() + " is new or lower"
	case prove.KindSocket:
		return "the socket " + f.Socket + " may not be used any more"
	}
	return string(f.Kind)
}

// class returns what a finding is about.
func (d direction) class(f prove.Finding) Class {
	switch f.Kind {
	case prove.KindCredential:
		return ClassCredential
	case prove.KindUpstream:
		return ClassPort
	case prove.KindTerms:
		return ClassTerms
	case prove.KindLimit:
		return ClassLimit
	case prove.KindSocket:
		return ClassSocket
	case prove.KindAddress:
		if d.narrow.Decide(f.Request, authz.Usage{}, f.At).CheckAddress(f.Address) == authz.GuardrailDenied {
			return ClassGuardrail
		}
		return ClassAddress
	case prove.KindAccess:
	}
	return d.accessClass(f)
}

// accessClass returns why the narrow side denies the request: by its reason, or by the
// fields in which its nearest rule differs.
func (d direction) accessClass(f prove.Finding) Class {
	if f.New.Reason == authz.Observed {
		return ClassObserve
	}
	switch f.Old.Reason {
	case authz.GuardrailDenied:
		return ClassGuardrail
	case authz.Revoked:
		return ClassRevocation
	case authz.GrantExpired:
		return ClassLifetime
	case authz.NotEnforceableHere:
		return ClassTerms
	case authz.NoGrant:
		return ClassHost
	default:
	}
	if len(f.Facts) > 0 && f.Old.Reason == authz.StatementNotGranted {
		return Class(f.Facts[0].Kind)
	}
	near := d.narrow.Explain(f.Request, authz.Usage{}, f.At).Nearest
	if near == nil {
		return ClassHost
	}
	for _, c := range []struct {
		field string
		class Class
	}{
		{"host", ClassHost},
		{"scheme", ClassPort},
		{"port", ClassPort},
		{"method", ClassMethod},
		{"upgrade", ClassMethod},
		{"path", ClassPath},
		{"encodedSlash", ClassPath},
		{"notAfter", ClassLifetime},
	} {
		if slices.Contains(near.Differs, c.field) {
			return c.class
		}
	}
	return ClassPath
}
