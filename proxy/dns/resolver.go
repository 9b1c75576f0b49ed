package dns

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/miekg/dns"
	"go.uber.org/zap"

	"github.com/chaperone-proxy/chaperone/authz"
	"github.com/chaperone-proxy/chaperone/internal/atomicfile"
	"github.com/chaperone-proxy/chaperone/internal/ratelimit"
	"github.com/chaperone-proxy/chaperone/proxy/session"
)

const (
	// answerTTL is short, for those who look a name up again after a grant;
	// the pair itself lasts for ever.
	answerTTL = 10
	// suppressFor is how long equal refused names are recorded once.
	suppressFor = time.Minute
	// maxSuppressed bounds the names that are folded. Of further ones one is recorded a
	// second, with how many it stands for: a flood of names is no flood of records.
	maxSuppressed = 1024
	// questionTimeout is how long a question over TCP may take to arrive.
	questionTimeout = 10 * time.Second
	// maxDNSConnections bounds the resolver's TCP connections.
	maxDNSConnections = 64
)

// Config is what a Resolver is made of. Plugin, Gate and Engine are required.
type Config struct {
	Plugin authz.Principal
	Gate   *authz.Gate
	Engine *authz.Engine
	// NamesFile keeps which name has which address, append-only and readable
	// by its owner alone. Empty: pairs end with the process.
	NamesFile string
	// Refused is called with every refusal that is recorded; equal names are
	// recorded once a minute. It must not block. Nil: not called.
	Refused func(authz.Refusal)
	// Probe is called with every question that a resolver library made up and the
	// name it is about. Such a question is answered NXDOMAIN, and Refused is not
	// called. It must not block. Nil: such a question is taken like any other.
	Probe func(probe authz.Probe, name string)
	// Identify returns the process that a question came from, for the record of a
	// refusal. Nil: it is not known.
	Identify func(from net.Addr) (session.Peer, bool)
	// Now is the wall clock. Nil: time.Now.
	Now func() time.Time
	// Log is the operator's log. Nil: none.
	Log *zap.Logger
}

// Resolver is the plugin's name server. It answers granted names, and no
// others, with an address of 240.0.0.0/4 that stands for the name and nothing
// else: connections to it are redirected to the proxy, which resolves the name
// itself. A plugin thus learns no address that it could dial past the proxy,
// nothing can be rebound, and no question of its leaves the machine.
//
// AAAA is answered with an address of 2001:20::/96 that stands for the same name:
// the IPv4 address is its last 32 bits (2001:20::f000:1 for 240.0.0.1).
type Resolver struct {
	cfg       Config
	addresses *addressMap
	stats     struct{ udp, tcp questions }
	search    searchList

	mu         sync.Mutex
	suppressed map[string]time.Time // refused names, and until when they are folded
	overflow   ratelimit.Sampler    // of refused names that no room is left for in folded
	swept      time.Time            // when folded was looked through for what is over
	sockets    []net.PacketConn     // over which it serves
}

// NewResolver returns a resolver and opens its file of names, which Serve
// closes. It starts nothing.
func NewResolver(cfg Config) (*Resolver, error) {
	if cfg.Plugin == "" || cfg.Gate == nil || cfg.Engine == nil {
		return nil, errors.New("make resolver: plugin, gate and engine are required")
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Log == nil {
		cfg.Log = zap.NewNop()
	}
	names, err := openAddressMap(atomicfile.OS{}, cfg.NamesFile)
	if err != nil {
		return nil, fmt.Errorf("make resolver: %w", err)
	}
	return &Resolver{cfg: cfg, addresses: names, suppressed: make(map[string]time.Time), search: searchList{file: "/etc/resolv.conf"}}, nil
}

// Host returns the name that a virtual address of either family was given out for.
func (r *Resolver) Host(addr netip.Addr) (name string, ok bool) { return r.addresses.host(addr) }

// Address returns the virtual IPv4 address that stands for an exact name, and gives it
// one if it has none: for who must know it before the plugin asks. False: no
// address can be given.
func (r *Resolver) Address(name string) (addr netip.Addr, ok bool) {
	addr, err := r.addresses.assign(name, name)
	return addr, err == nil
}

// Serve answers on both sockets, which it closes, until ctx ends, and returns
// nil then. It may be called for several pairs of sockets, which end together:
// once the first has ended no new name is given an address.
func (r *Resolver) Serve(ctx context.Context, packets net.PacketConn, listener net.Listener) error {
	handler := dns.HandlerFunc(r.handle)
	server := &dns.Server{
		Listener: &limitedListener{Listener: listener, left: maxDNSConnections}, Handler: handler, ReadTimeout: questionTimeout,
	}
	r.mu.Lock()
	r.sockets = append(r.sockets, packets)
	r.mu.Unlock()
	ended := make(chan error, 2)
	var running sync.WaitGroup
	started := make(chan struct{})
	server.NotifyStartedFunc = func() { close(started) }
	running.Go(func() { ended <- server.ActivateAndServe() })
	select {
	case <-started: // only then can it be shut down
	case err := <-ended:
		ended <- err
	}
	running.Go(func() { ended <- (&packetServer{packets, handler}).serve(ctx) })
	var err error
	select {
	case <-ctx.Done():
	case err = <-ended:
		ended <- err
	}
	_ = server.Shutdown() // an ended one returns an error
	_ = packets.Close()
	running.Wait()
	if closeErr := r.addresses.close(); closeErr != nil {
		err = errors.Join(err, fmt.Errorf("close names: %w", closeErr))
	}
	if ctx.Err() != nil && errors.Is(err, net.ErrClosed) {
		return nil
	}
	return err
}

// Stats counts the questions that a Resolver has replied to since it
// was made, by the transport that they came over.
type Stats struct {
	UDP, TCP Questions
	// Dropped are the packets that the kernel dropped because they came faster
	// than they were answered, while the resolver serves.
	Dropped uint64
}

// Questions counts questions by verdict. Answered are those whose reply has no
// error, also where there is no record of the type that was asked for; refused
// are all others, the most of them for names that are not granted.
type Questions struct {
	Answered, Refused uint64
}

// Stats returns what was asked so far.
func (r *Resolver) Stats() Stats {
	stats := Stats{UDP: r.stats.udp.read(), TCP: r.stats.tcp.read()}
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, packets := range r.sockets {
		stats.Dropped += dropped(packets)
	}
	return stats
}

// questions counts as Questions does, while others read.
type questions struct{ answered, refused atomic.Uint64 }

func (q *questions) read() Questions { return Questions{q.answered.Load(), q.refused.Load()} }

// count counts a reply.
func (r *Resolver) count(w dns.ResponseWriter, reply *dns.Msg) {
	transport := &r.stats.udp
	if w.RemoteAddr().Network() == "tcp" {
		transport = &r.stats.tcp
	}
	if reply.Rcode == dns.RcodeSuccess {
		transport.answered.Add(1)
	} else {
		transport.refused.Add(1)
	}
}

// handle answers one question.
func (r *Resolver) handle(w dns.ResponseWriter, question *dns.Msg) {
	reply := r.reply(w.RemoteAddr(), question)
	r.count(w, reply)
	if opt := question.IsEdns0(); opt != nil {
		reply.SetEdns0(dns.MinMsgSize, false)
	}
	_ = w.WriteMsg(reply) // an error means that the plugin has gone
}

func (r *Resolver) reply(from net.Addr, question *dns.Msg) *dns.Msg {
	reply := new(dns.Msg)
	reply.SetReply(question)
	reply.RecursionAvailable = true
	switch {
	case question.Opcode != dns.OpcodeQuery:
		reply.Rcode = dns.RcodeNotImplemented
		return reply
	case len(question.Question) != 1:
		reply.Rcode = dns.RcodeFormatError
		return reply
	case question.Question[0].Qclass != dns.ClassINET:
		reply.Rcode = dns.RcodeRefused
		return reply
	}
	q := question.Question[0]
	spelling := strings.TrimSuffix(q.Name, ".")
	lower := strings.ToLower(spelling)
	switch {
	case lower == "localhost" || strings.HasSuffix(lower, ".localhost"): // RFC 6761, section 6.3
		reply.Answer = addressRecords(q, netip.AddrFrom4([4]byte{127, 0, 0, 1}), netip.IPv6Loopback())
	case strings.HasSuffix(lower, ".arpa"): // names of addresses are nowhere to go
		reply.Rcode = dns.RcodeNameError
	default:
		r.answer(from, reply, q, spelling)
	}
	return reply
}

// answer answers a name that is granted.
func (r *Resolver) answer(from net.Addr, reply *dns.Msg, q dns.Question, spelling string) {
	name, err := authz.NewDestination(authz.SchemeTCP, spelling+":1", "")
	if err != nil || name.Address().IsValid() {
		if r.answerProbe(reply, spelling) {
			return
		}
		r.refuse(from, spelling, "the name is not a host name")
		reply.Rcode = dns.RcodeNameError
		return
	}
	pattern, ok := r.cfg.Engine.Current().Name(r.cfg.Plugin, name.Host(), r.cfg.Now())
	if pattern == "" && r.answerProbe(reply, name.Host()) {
		return // also while the sidecar observes: the first name that is answered is the one that is used
	}
	if !ok {
		r.refuse(from, name.Host(), "")
		reply.Rcode = dns.RcodeNameError
		return
	}
	if q.Qtype != dns.TypeA && q.Qtype != dns.TypeAAAA {
		return // HTTPS and SVCB hints would lead past the proxy; there is nothing else to say
	}
	addr, err := r.addresses.assign(name.Host(), pattern)
	switch {
	case errors.Is(err, errMapFull):
		r.refuse(from, name.Host(), fmt.Sprintf("too many names of %s have an address: the limit is %d for one pattern, %d for all", patternText(pattern), maxNamesPerPattern, maxWildcardNames))
		reply.Rcode = dns.RcodeNameError
	case err != nil:
		r.cfg.Log.Error("virtual address allocation failed", zap.Error(err))
		reply.Rcode = dns.RcodeServerFailure
	default:
		reply.Answer = addressRecords(q, addr, toIPv6(addr))
	}
}

// answerProbe answers NXDOMAIN to a question that no program means, and reports whether
// it was one.
func (r *Resolver) answerProbe(reply *dns.Msg, name string) bool {
	probe := r.probe(strings.ToLower(name))
	if probe == "" {
		return false
	}
	reply.Rcode = dns.RcodeNameError
	r.cfg.Probe(probe, name)
	return true
}

func patternText(pattern string) string {
	if pattern == "" {
		return "the observing sidecar"
	}
	return pattern
}

// addressRecords answers A with v4 and AAAA with v6, and other types with nothing.
func addressRecords(q dns.Question, v4, v6 netip.Addr) []dns.RR {
	header := dns.RR_Header{Name: q.Name, Rrtype: q.Qtype, Class: dns.ClassINET, Ttl: answerTTL}
	switch q.Qtype {
	case dns.TypeA:
		return []dns.RR{&dns.A{Hdr: header, A: v4.AsSlice()}}
	case dns.TypeAAAA:
		return []dns.RR{&dns.AAAA{Hdr: header, AAAA: v6.AsSlice()}}
	}
	return nil
}

// refuse records and reports a refused name, equal ones once a minute. Without
// detail the name is one that no rule grants.
func (r *Resolver) refuse(from net.Addr, name, detail string) {
	others, first := r.shouldRecord(name)
	if !first {
		return
	}
	source := authz.Source{Door: authz.DoorProxy, UID: -1}
	if r.cfg.Identify != nil {
		if peer, ok := r.cfg.Identify(from); ok { // it waits for the answer, and so is there still
			source.PID, source.UID, source.Exe = peer.PID, peer.UID, peer.Exe
		}
	}
	suffix := ""
	if others > 0 {
		suffix = fmt.Sprintf("; %d other names were refused too", others)
	}
	var refusal authz.Refusal
	var err error
	if detail == "" {
		// The port is the one that a plugin would most likely ask for.
		refusal, err = r.cfg.Gate.RefuseHost(r.cfg.Engine.Current(), authz.HostAttempt{
			Principal: r.cfg.Plugin, Host: name, Port: authz.SchemeHTTPS.DefaultPort(), HostOnly: true,
			Detail: string(r.cfg.Plugin) + " may not resolve " + name + suffix,
		}, r.cfg.Now(), source)
	} else {
		attempt := authz.Attempt{Principal: r.cfg.Plugin, URL: name, Host: name, HostOnly: true, Detail: detail + suffix}
		refusal, err = r.cfg.Gate.Refuse(authz.DestinationNotGranted, attempt, source)
	}
	if err != nil {
		r.cfg.Log.Error("refuse name", zap.Error(err))
	}
	if r.cfg.Refused != nil {
		r.cfg.Refused(refusal)
	}
}

// shouldRecord reports whether the refusal of a name is to be recorded: it was not in
// the last minute, and there is room to remember it or none was recorded in the
// last second. others is how many other names the record stands for besides.
func (r *Resolver) shouldRecord(name string) (others int, ok bool) {
	now := r.cfg.Now()
	r.mu.Lock()
	defer r.mu.Unlock()
	if until, ok := r.suppressed[name]; ok && now.Before(until) {
		return 0, false
	}
	if len(r.suppressed) >= maxSuppressed && now.Sub(r.swept) >= time.Second {
		r.swept = now
		for old, until := range r.suppressed {
			if !now.Before(until) {
				delete(r.suppressed, old)
			}
		}
	}
	if len(r.suppressed) < maxSuppressed {
		r.suppressed[name] = now.Add(suppressFor)
		return 0, true
	}
	n := r.overflow.Take(now)
	return n - 1, n > 0
}

// limitedListener refuses connections beyond a number that are open at a time.
type limitedListener struct {
	net.Listener
	mu   sync.Mutex
	left int
}

// Accept implements net.Listener.
func (l *limitedListener) Accept() (net.Conn, error) {
	for {
		c, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		if l.take(-1) {
			return &limitedConn{Conn: c, listener: l}, nil
		}
		_ = c.Close() // it was not read from
	}
}

// take changes how many more may be open, unless none may.
func (l *limitedListener) take(n int) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.left+n < 0 {
		return false
	}
	l.left += n
	return true
}

type limitedConn struct {
	net.Conn
	listener *limitedListener
	once     sync.Once
}

// Close implements net.Conn.
func (c *limitedConn) Close() error {
	c.once.Do(func() { c.listener.take(1) })
	return c.Conn.Close()
}
