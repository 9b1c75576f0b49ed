package prove

import (
	"cmp"
	"context"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/chaperone-proxy/chaperone/authz"
	"github.com/chaperone-proxy/chaperone/policy"
)

// Kind is the kind of a difference by which the new policy is wider.
type Kind string

// The kinds of differences.
const (
	KindAccess     Kind = "access"     // a request is allowed that was denied
	KindCredential Kind = "credential" // a request carries a credential that it did not carry
	KindUpstream   Kind = "upstream"   // a request is forwarded to another scheme or port
	KindAddress    Kind = "address"    // a request may connect to an address that was refused
	KindTerms      Kind = "terms"      // TLS version, authorities or timeout are weaker
	KindLimit      Kind = "limit"      // a limit is higher, missing or counts afresh
	KindSocket     Kind = "socket"     // a Unix socket may be used
)

// Answer is the decision of one policy on the request of a [Finding].
type Answer struct {
	Reason     authz.Reason
	Grant      string // of the winning rule, "" without one
	Rule       string // its id
	Credential string // its credential's name, "" without one
	Terms      authz.Terms
	Upstream   authz.Destination // where an allowed request is forwarded to
}

// RuleName returns GRANT/RULE, or "" without a winner.
func (a Answer) RuleName() string {
	if a.Rule == "" {
		return ""
	}
	return a.Grant + "/" + a.Rule
}

// Finding is one way in which the new policy is wider than the old one, with a request
// that shows it. A finding of KindSocket has no request.
type Finding struct {
	Kind     Kind
	Request  authz.Request
	At       time.Time
	Door     policy.Door
	Address  netip.Addr // of KindAddress: the address that is refused by the old policy
	Socket   string     // of KindSocket
	Limit    Limit      // of KindLimit: the limit of the old policy
	Old, New Answer
	// Facts are those of the request's content that show the difference, each by itself with
	// the connection's; together if no single one does. They are as the rule names them: of
	// one kind, unless they show it together.
	Facts []authz.Fact
	// Never reports that the finding is of [Never]: Old is not set.
	Never bool
}

// Result is the result of a comparison.
type Result struct {
	// Findings hold one request for each kind of difference, pair of winning rules and action. The
	// new policy is within the old one if it is empty and Complete is set.
	Findings []Finding
	// Complete reports whether every class of requests was compared. It is false if the
	// context ended first, or for a reason in Inexact.
	Complete bool
	// Inexact lists parts of the comparison that are conservative, and so may report a
	// difference where both policies are alike, or that are not complete.
	Inexact []string
	// Requests is the number of requests that both policies decided.
	Requests int
}

// Options are the bounds of a comparison.
type Options struct {
	Plugin authz.Principal // the plugin that makes the requests
	At     time.Time       // the instant from which the comparison holds
	Most   int             // findings; 0 for all

	facts int // that a request has at most; 0 for authz.MaxFacts
}

func (o Options) maxFacts() int { return cmp.Or(o.facts, authz.MaxFacts) }

// Compare asks both policies every kind of request that the plugin can make. It
// returns an error only for options that are not valid; when ctx ends, the result is
// not complete.
func Compare(ctx context.Context, before, after *authz.Snapshot, o Options) (Result, error) {
	if err := o.check(); err != nil {
		return Result{}, err
	}
	c := newComparison(newSide(before, o.Plugin), newSide(after, o.Plugin), o)
	c.judge = c.compare
	c.sockets()
	complete := c.run(ctx)
	c.limits()
	return c.result(complete), nil
}

func (o Options) check() error {
	if o.Plugin == "" || o.At.IsZero() {
		return fmt.Errorf("compare policies: plugin %q and time %v must be stated", o.Plugin, o.At)
	}
	return nil
}

// run asks the requests to every host. It reports false when ctx has ended.
func (c *comparison) run(ctx context.Context) bool {
	for _, host := range c.hosts() {
		if !c.host(ctx, host) {
			return false
		}
	}
	return true
}

// comparison is one comparison of two policies.
type comparison struct {
	opts          Options
	before, after *side
	fresh         fresh
	doors         []policy.Door
	judge         func(req authz.Request, at time.Time, door policy.Door)
	never         *never // of a proof that requests are never allowed

	addresses addressSet
	// largeContent reports that a rule grants more facts than one request can have, and that
	// more rules than that do not grant all of them.
	largeContent bool
	// tooLong reports that a class of requests has no example that is short enough.
	tooLong   bool
	patterns  map[authz.Fact]authz.Fact // that facts of requests stand for
	limitEnds []time.Time
	limited   map[limitPair]bool         // the pairs that were compared
	judged    map[addressPair]netip.Addr // the witness of each pair of winners that was compared, invalid without one
	kept      map[counter]*keptBy        // the limits of the old policy that applied so far
	seen      map[findingKey]bool
	out       Result
}

// findingKey groups findings: the first request of a group is reported.
type findingKey struct {
	kind             Kind
	oldRule, newRule string
	oldReason        authz.Reason
	scheme           authz.Scheme
	action           authz.Action
	limit            counter
	socket           string
	content          authz.Facts    // the whole content that was compared
	fact             authz.FactKind // of what shows the difference
}

func newComparison(before, after *side, o Options) *comparison {
	c := &comparison{
		opts: o, before: before, after: after, doors: policy.Doors(), limitEnds: limitEnds(before, after), limited: map[limitPair]bool{},
		judged: map[addressPair]netip.Addr{}, kept: map[counter]*keptBy{}, seen: map[findingKey]bool{},
		patterns: map[authz.Fact]authz.Fact{},
	}
	c.fresh = newFresh(before, after)
	c.addresses = newAddressSet(before, after)
	return c
}

func (c *comparison) result(complete bool) Result {
	// Not every combination of addresses within nat64Local is compared.
	c.out.Complete = complete && !c.addresses.inexact && !c.addresses.coarse && !c.tooLong && !c.largeContent
	if c.addresses.inexact {
		c.out.Inexact = append(c.out.Inexact, "not every address within 64:ff9b:1::/48 (RFC 8215) was compared; leave addresses in it as they were")
	}
	if c.addresses.coarse {
		c.out.Inexact = append(c.out.Inexact, fmt.Sprintf("regions of more than %d prefixes were not compared for IPv6 addresses that embed an IPv4 address; leave such addresses out of to.addresses", maxEmbedded))
	}
	if c.tooLong {
		c.out.Inexact = append(c.out.Inexact, "requests that are almost as long as they can be were not compared; shorten the longest paths and hosts, or leave them as they were")
	}
	if c.largeContent {
		c.out.Inexact = append(c.out.Inexact, fmt.Sprintf("rules that grant more than %d facts beside more than %d other rules for the host were compared by a part of their requests; divide them", authz.MaxFacts, authz.MaxFacts))
	}
	if slices.ContainsFunc(c.out.Findings, func(f Finding) bool { return f.Kind == KindLimit }) {
		c.out.Inexact = append(c.out.Inexact, "limits are compared one by one: several that together are not higher are reported too")
	}
	return c.out
}

// host compares every request to one host. It reports false when ctx has ended.
func (c *comparison) host(ctx context.Context, host string) bool {
	local := c.localRules(host)
	if local.empty() {
		return true
	}
	times := local.times(c.opts.At)
	doors := local.doors(c.doors)
	for _, shape := range local.shapes() {
		for req := range shape.requests(c.opts.Plugin, host, func() { c.tooLong = true }) {
			for _, at := range times {
				for _, door := range doors {
					c.ask(req, at, door)
				}
			}
			if c.out.Requests%checkEvery < len(times)*len(doors) && ctx.Err() != nil || c.full() {
				return false
			}
		}
		if ctx.Err() != nil {
			return false
		}
	}
	return true
}

// checkEvery is the number of requests after which the context is looked at.
const checkEvery = 4096

// ask has both policies decide one request at a door.
func (c *comparison) ask(req authz.Request, at time.Time, door policy.Door) {
	c.out.Requests++
	req.Unenforceable = door.Unenforceable
	c.judge(req, at, door)
}

func (c *comparison) full() bool { return c.opts.Most > 0 && len(c.out.Findings) >= c.opts.Most }

// compare reports the differences by which the new policy is wider for one request.
func (c *comparison) compare(req authz.Request, at time.Time, door policy.Door) {
	now := c.after.snapshot.Decide(req, authz.Usage{}, at)
	if !now.Allowed() {
		return
	}
	was := c.before.snapshot.Decide(req, authz.Usage{}, at)
	f := Finding{Request: req, At: at, Door: door, Old: answer(was, req), New: answer(now, req)}
	if !was.Allowed() {
		f.Kind = KindAccess
		c.report(f)
		return
	}
	if c.otherCredential(was, now) {
		f.Kind = KindCredential
		c.report(f)
	}
	if f.New.Upstream != f.Old.Upstream {
		f.Kind = KindUpstream
		c.report(f)
	}
	if weaker(f.New.Terms, f.Old.Terms) {
		f.Kind = KindTerms
		c.report(f)
	}
	c.keepLimits(f)
	if addr := c.newAddress(was, now, req.Destination); addr.IsValid() {
		f.Kind, f.Address = KindAddress, addr
		c.report(f)
	}
}

func answer(d authz.Decision, req authz.Request) Answer {
	return Answer{
		Reason: d.Reason, Grant: d.Grant, Rule: d.Rule, Credential: d.Credential, Terms: d.Terms(), Upstream: d.Upstream(req.Destination),
	}
}

// report adds a finding unless its group has one.
func (c *comparison) report(f Finding) {
	key := findingKey{
		kind: f.Kind, oldRule: f.Old.RuleName(), newRule: f.New.RuleName(), oldReason: f.Old.Reason,
		scheme: f.Request.Destination.Scheme(), action: f.Request.Action, limit: f.Limit.counter, socket: f.Socket,
		content: f.Request.Facts,
	}
	if c.seen[key] || c.full() {
		return
	}
	c.seen[key] = true
	if f.Request.Facts.IsZero() {
		c.out.Findings = append(c.out.Findings, f)
		return
	}
	key.content = authz.Facts{}
	for _, one := range c.narrowed(f) {
		if len(one.Facts) > 0 {
			key.fact = one.Facts[0].Kind
		}
		if !c.seen[key] && !c.full() {
			c.seen[key] = true
			c.out.Findings = append(c.out.Findings, one)
		}
	}
}

// weaker reports whether terms demand less than those of the old policy: a lower TLS
// version, other authorities or a longer timeout.
func weaker(now, was authz.Terms) bool {
	return now.TLSMin < was.TLSMin || now.CA != was.CA || longer(now, was)
}

// longer reports whether an exchange may last longer.
func longer(now, was authz.Terms) bool {
	return was.Timeout > 0 && (now.Timeout == 0 || now.Timeout > was.Timeout)
}

// sockets compares the Unix sockets that the plugin may use.
func (c *comparison) sockets() {
	times := c.before.times(c.opts.At)
	for _, at := range append(times, c.after.times(c.opts.At)...) {
		before := map[string]bool{}
		for _, s := range c.before.snapshot.Sockets(c.opts.Plugin, at) {
			before[s] = true
		}
		for _, s := range c.after.snapshot.Sockets(c.opts.Plugin, at) {
			if !before[s] {
				c.report(Finding{Kind: KindSocket, At: at, Socket: s})
			}
		}
	}
}
