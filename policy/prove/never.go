package prove

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/chaperone-proxy/chaperone/authz"
	"github.com/chaperone-proxy/chaperone/policy"
)

// Pattern is a set of requests, as in GET,HEAD https://*.a.example:8443/b/**, or of
// statements, as in postgres://db.internal/shop DELETE FROM orders.
type Pattern struct {
	Text string

	rule      authz.Rule
	schemes   []authz.Scheme // nil: all
	anyHost   bool
	anyPort   bool
	anyMethod bool
	address   netip.Addr   // of the host, if it is an IP literal
	facts     []authz.Fact // each of which a request to a database has; a * at the end of a name is a prefix
}

// Parts of a request that the pattern does not state are replaced by these, before the
// rule that grants the pattern is asked.
const (
	anyName   = "any.invalid"
	anyNumber = 443
)

// ParsePattern reads METHODS and URL. METHODS are separated by commas, or *, which
// includes TRACE. The URL's scheme may be *; its host is written as in a rule, or * for any
// host. Without a port it holds every port, and without a path every path: a prohibition
// does not depend on defaults. A host that is an address also holds the names that resolve
// to it, and the IPv6 addresses that embed it.
//
// Of a database, the path is the name of the database, and every database without it. The
// URL of a database with a statement holds each statement that does what this one does, and
// more; facts in place of the statement may end in *.
func ParsePattern(text string) (Pattern, error) {
	fail := func(format string, args ...any) (Pattern, error) {
		return Pattern{}, fmt.Errorf("pattern %q: %w", text, fmt.Errorf(format, args...))
	}
	fields := strings.Fields(text)
	statement := ""
	if w := policy.ParseWords(strings.TrimSpace(text)); policy.DatabaseScheme(w.URL) != "" && strings.HasPrefix(strings.TrimSpace(text), w.URL) {
		fields, statement = []string{"*", w.URL}, w.Statement
	}
	if len(fields) != 2 {
		return fail("write METHODS and URL, as in * https://169.254.169.254/**")
	}
	scheme, rest, ok := strings.Cut(fields[1], "://")
	if !ok {
		return fail("%q is not a URL, as in https://api.weather.example/v1/**", fields[1])
	}
	p := Pattern{Text: strings.Join(strings.Fields(text), " "), rule: authz.Rule{ID: "never", Reason: "a pattern", EncodedSlash: "allow"}}
	if scheme != "*" {
		p.schemes = []authz.Scheme{authz.Scheme(scheme)}
		if authz.Scheme(scheme) != authz.SchemeTCP && authz.Scheme(scheme).DefaultPort() == 0 {
			return fail("%q is not a scheme; write https, http, tls, tcp or *", scheme)
		}
	}
	path := "/**"
	if i := strings.IndexByte(rest, '/'); i >= 0 {
		rest, path = rest[:i], rest[i:]
	}
	if authz.Scheme(scheme).Database() {
		var err error
		if p.facts, err = databaseFacts(authz.Scheme(scheme), path, statement); err != nil {
			return fail("%w", err)
		}
		path = "/**"
	}
	p.rule.Paths = []string{path}
	p.methods(fields[0])
	if err := p.authority(rest); err != nil {
		return fail("%w", err)
	}
	if _, problems := authz.Compile(p.input(), time.Time{}); len(problems) > 0 {
		return fail("%s", problems[0].Message)
	}
	return p, nil
}

// databaseFacts returns the facts of a statement, and of the database that the path of its URL
// names.
func databaseFacts(scheme authz.Scheme, path, statement string) ([]authz.Fact, error) {
	const nameless = "any"
	w := policy.Words{Method: "CONNECT", URL: string(scheme) + "://" + anyName + path, Statement: statement}
	if statement != "" {
		w.Method = ""
	}
	if strings.Trim(strings.TrimSuffix(path, "**"), "/") == "" {
		w.URL = string(scheme) + "://" + anyName + "/" + nameless
	}
	req, err := policy.Request(neverPlugin, w)
	if err != nil {
		return nil, err
	}
	facts := policy.ParseFacts(req.Facts)
	return slices.DeleteFunc(facts, func(f authz.Fact) bool { return policy.IsDatabase(f) && f.Name == nameless }), nil
}

func (p *Pattern) methods(text string) {
	p.rule.Methods = strings.Split(text, ",")
	tunnels := len(p.schemes) == 1 && !p.schemes[0].HTTP()
	if p.anyMethod = text == "*" || tunnels && (text == "CONNECT" || text == "-"); p.anyMethod {
		p.rule.Methods = []string{"*"}
	}
}

// authority reads HOST or HOST:PORT.
func (p *Pattern) authority(text string) error {
	host, port := text, ""
	if i := strings.LastIndexByte(text, ':'); i > strings.LastIndexByte(text, ']') {
		host, port = text[:i], text[i+1:]
	}
	if p.anyPort = port == "" || port == "*"; p.anyPort {
		port = strconv.Itoa(anyNumber)
	}
	number, err := strconv.ParseUint(port, 10, 16)
	if err != nil || number == 0 {
		return fmt.Errorf("port %q is not a number from 1 to 65535, or *", port)
	}
	p.rule.To.Ports = []uint16{uint16(number)}
	host = strings.TrimSuffix(strings.TrimPrefix(host, "["), "]")
	if host == "" {
		return errors.New("the host is missing; write * for any")
	}
	if addr, err := netip.ParseAddr(host); err == nil {
		p.address = addr.Unmap()
	}
	if p.anyHost = host == "*" || host == "**" || p.address.IsValid(); p.anyHost {
		host = anyName
	}
	p.rule.To.Hosts = []string{host}
	return nil
}

// input returns the policy that grants the pattern, and nothing else.
func (p *Pattern) input() authz.Input {
	end := time.Date(9999, 1, 1, 0, 0, 0, 0, time.UTC)
	return authz.Input{Plugin: neverPlugin, Grants: []authz.Grant{{Name: "never", Plugin: neverPlugin, NotAfter: end, Rules: []authz.Rule{p.rule}}}}
}

// neverPlugin is the plugin of the policy that grants a pattern.
const neverPlugin = "never"

// never is a pattern as a policy that grants it.
type never struct {
	Pattern
	policy *authz.Snapshot
}

// holdsScheme reports whether a request of the scheme is, or can carry, one of the
// pattern's: tcp carries anything, and tls https.
func (n *never) holdsScheme(s authz.Scheme) bool {
	return n.schemes == nil || slices.Contains(n.schemes, s) || s == authz.SchemeTCP || s == authz.SchemeTLS && slices.Contains(n.schemes, authz.SchemeHTTPS)
}

// holdsFacts reports whether a request has a fact for each of the pattern's.
func (n *never) holdsFacts(facts authz.Facts) bool {
	all := policy.ParseFacts(facts)
	for _, p := range n.facts {
		if !slices.ContainsFunc(all, func(f authz.Fact) bool { return grantsFact([]authz.Fact{p}, f) }) {
			return false
		}
	}
	return true
}

// holds reports whether the pattern holds a request to a destination.
func (n *never) holds(req authz.Request, to authz.Destination, at time.Time) bool {
	if !n.holdsScheme(to.Scheme()) {
		return false
	}
	if to.Scheme().Database() && !n.holdsFacts(req.Facts) {
		return false
	}
	host, port, target := to.Host(), to.Port(), to.Path()
	if to.Address().Is6() {
		host = "[" + host + "]"
	}
	if n.anyHost {
		host = anyName
	}
	if n.anyPort {
		port = anyNumber
	}
	action := authz.Action{Method: req.Action.Method}
	if n.anyMethod {
		action.Method = "GET"
	}
	if !to.Scheme().HTTP() { // a tunnel carries every method and path
		target = parsePattern(n.rule.Paths[0]).instances("any", 0, false)[0]
		if !n.anyMethod {
			action.Method = n.rule.Methods[0]
		}
	}
	plain, err := authz.NewDestination(authz.SchemeHTTPS, hostPort(host, port), target)
	if err != nil {
		return false
	}
	return n.policy.Decide(authz.Request{Principal: neverPlugin, Action: action, Destination: plain}, authz.Usage{}, at).Allowed()
}

// Never asks the policy every kind of request that the pattern holds. Each that it allows
// is a finding without an Old answer. An access counts by what is requested
// and by what it is forwarded to, and a tunnel by every request that it can carry.
func Never(ctx context.Context, s *authz.Snapshot, p Pattern, o Options) (Result, error) {
	if err := o.check(); err != nil {
		return Result{}, err
	}
	compiled, problems := authz.Compile(p.input(), o.At)
	if len(problems) > 0 {
		return Result{}, fmt.Errorf("compile pattern %q: %s", p.Text, problems[0].Message)
	}
	var engine authz.Engine
	engine.Install(compiled)
	n := &never{p, engine.Current()}
	c := newComparison(newSide(n.policy, neverPlugin), newSide(s, o.Plugin), o)
	c.never, c.judge = n, c.forbid
	if p.address.IsValid() {
		c.addresses.never = append(c.addresses.never, netip.PrefixFrom(p.address, p.address.BitLen()))
	}
	return c.result(c.run(ctx)), nil
}

// forbid reports a request that the policy allows and the pattern holds.
func (c *comparison) forbid(req authz.Request, at time.Time, door policy.Door) {
	now := c.after.snapshot.Decide(req, authz.Usage{}, at)
	if !now.Allowed() || !c.never.holds(req, req.Destination, at) && !c.never.holds(req, now.Upstream(req.Destination), at) {
		return
	}
	f := Finding{Kind: KindAccess, Request: req, At: at, Door: door, New: answer(now, req), Never: true}
	if c.never.address.IsValid() {
		addr := c.reaching(now, req.Destination)
		if !addr.IsValid() {
			return
		}
		if !req.Destination.Address().IsValid() {
			f.Kind, f.Address = KindAddress, addr
		}
	}
	c.report(f)
}

// reaching returns an address to which the request may connect and by which it reaches the
// pattern's address: that itself, or one that embeds it. Otherwise it returns an invalid address.
func (c *comparison) reaching(now authz.Decision, to authz.Destination) netip.Addr {
	reaches := func(addr netip.Addr) bool {
		return slices.Contains(authz.Reaches(addr), c.never.address) && now.CheckAddress(addr) == authz.Granted
	}
	if to.Address().IsValid() {
		if reaches(to.Address()) {
			return to.Address()
		}
		return netip.Addr{}
	}
	pair := c.addresses.pair(authz.Decision{}, now, to)
	witness, known := c.judged[pair]
	if known {
		return witness
	}
	for _, addr := range append([]netip.Addr{c.never.address}, c.addresses.candidates(nil, c.after.addressesOf(pair.after))...) {
		if reaches(addr) {
			witness = addr
			break
		}
	}
	c.judged[pair] = witness
	return witness
}
