package testenv

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"testing"

	"github.com/miekg/dns"
)

// DNS is a name server on loopback, UDP and TCP on one port, with answers
// for the names that were set, NXDOMAIN for others, and a record of its queries.
type DNS struct {
	// Addr is where it listens.
	Addr netip.AddrPort

	udp, tcp *dns.Server
	served   chan error

	mu      sync.Mutex
	answers map[string]func(dns.Question) *dns.Msg
	queries []dns.Question
}

// maxQueries bounds how many questions a DNS remembers: the first ones.
const maxQueries = 10_000

// MustDNS starts a name server for the length of a test.
func MustDNS(t testing.TB) *DNS {
	t.Helper()
	return mustStart(t, StartDNS)
}

// StartDNS starts a name server on a free port of 127.0.0.1.
func StartDNS(ctx context.Context) (*DNS, error) {
	return StartDNSAt(ctx, "127.0.0.1:0")
}

// StartDNSAt starts a name server on a loopback address and port.
func StartDNSAt(ctx context.Context, address string) (*DNS, error) {
	// A port that is free for TCP may be taken for UDP: ask a few times.
	for attempt := 0; ; attempt++ {
		listener, err := new(net.ListenConfig).Listen(ctx, "tcp", address)
		if err != nil {
			return nil, fmt.Errorf("start name server: %w", err)
		}
		packets, err := new(net.ListenConfig).ListenPacket(ctx, "udp", listener.Addr().String())
		if err == nil {
			return serveDNS(listener, packets), nil
		}
		err = errors.Join(err, listener.Close())
		if attempt == 9 {
			return nil, fmt.Errorf("start name server: %w", err)
		}
	}
}

func serveDNS(listener net.Listener, packets net.PacketConn) *DNS {
	d := &DNS{
		Addr:    netip.MustParseAddrPort(listener.Addr().String()),
		served:  make(chan error, 2),
		answers: make(map[string]func(dns.Question) *dns.Msg),
	}
	var started sync.WaitGroup
	started.Add(2)
	d.tcp = &dns.Server{Listener: listener, Handler: d, NotifyStartedFunc: started.Done}
	d.udp = &dns.Server{PacketConn: packets, Handler: d, NotifyStartedFunc: started.Done}
	go func() { d.served <- d.tcp.ActivateAndServe() }()
	go func() { d.served <- d.udp.ActivateAndServe() }()
	started.Wait()
	return d
}

// Close ends the server.
func (d *DNS) Close() error {
	err := errors.Join(d.tcp.Shutdown(), d.udp.Shutdown())
	return errors.Join(err, <-d.served, <-d.served)
}

// Set answers name with addresses, A or AAAA as they are; none: the name
// exists but has no address. The time to live is 30 seconds.
func (d *DNS) Set(name string, addresses ...netip.Addr) {
	d.SetFunc(name, func(q dns.Question) *dns.Msg { return addressMessage(q, addresses) })
}

// SetSequence answers the n-th A or AAAA question of each type for name with
// the n-th set of addresses, the last one for ever: how a name is rebound.
func (d *DNS) SetSequence(name string, answers ...[]netip.Addr) {
	asked := make(map[uint16]int)
	d.SetFunc(name, func(q dns.Question) *dns.Msg { // called under the lock
		n := min(asked[q.Qtype], len(answers)-1)
		asked[q.Qtype]++
		return addressMessage(q, answers[n])
	})
}

// SetRecords answers name with records in zone file form, whatever is asked:
// "api.example. 5 IN CNAME other.example.".
func (d *DNS) SetRecords(name string, records ...string) error {
	var answer []dns.RR
	for _, text := range records {
		record, err := dns.NewRR(text)
		if err != nil {
			return fmt.Errorf("parse record: %w", err)
		}
		answer = append(answer, record)
	}
	d.SetFunc(name, func(dns.Question) *dns.Msg { return &dns.Msg{Answer: answer} })
	return nil
}

// Fail answers name with an error code such as [dns.RcodeServerFailure].
func (d *DNS) Fail(name string, rcode int) {
	d.SetFunc(name, func(dns.Question) *dns.Msg {
		return &dns.Msg{MsgHdr: dns.MsgHdr{Rcode: rcode}}
	})
}

// Silence never answers questions for name.
func (d *DNS) Silence(name string) {
	d.SetFunc(name, func(dns.Question) *dns.Msg { return nil })
}

// SetFunc answers name with what answer returns: its code and its answer,
// authority and additional sections are used; nil: no answer is sent. Calls
// follow one another; answer must not call the server.
func (d *DNS) SetFunc(name string, answer func(dns.Question) *dns.Msg) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.answers[dns.CanonicalName(name)] = answer
}

// Remove makes name unknown again.
func (d *DNS) Remove(name string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	delete(d.answers, dns.CanonicalName(name))
}

// Queries returns the questions asked so far, at most the first 10,000.
func (d *DNS) Queries() []dns.Question {
	d.mu.Lock()
	defer d.mu.Unlock()
	return append([]dns.Question(nil), d.queries...)
}

// ServeDNS implements [dns.Handler].
func (d *DNS) ServeDNS(w dns.ResponseWriter, request *dns.Msg) {
	reply := new(dns.Msg)
	reply.SetReply(request)
	reply.RecursionAvailable = true
	if len(request.Question) != 1 {
		reply.Rcode = dns.RcodeFormatError
		_ = w.WriteMsg(reply) // an error means that the client has gone
		return
	}
	answer := d.answer(request.Question[0])
	if answer == nil {
		return
	}
	reply.Rcode, reply.Answer, reply.Ns, reply.Extra = answer.Rcode, answer.Answer, answer.Ns, answer.Extra
	if _, isUDP := w.RemoteAddr().(*net.UDPAddr); isUDP {
		size := dns.MinMsgSize
		if opt := request.IsEdns0(); opt != nil {
			size = int(opt.UDPSize())
		}
		reply.Truncate(size)
	}
	_ = w.WriteMsg(reply)
}

func (d *DNS) answer(question dns.Question) *dns.Msg {
	d.mu.Lock()
	defer d.mu.Unlock()
	if len(d.queries) < maxQueries {
		d.queries = append(d.queries, question)
	}
	answer := d.answers[dns.CanonicalName(question.Name)]
	if answer == nil {
		return &dns.Msg{MsgHdr: dns.MsgHdr{Rcode: dns.RcodeNameError}}
	}
	return answer(question)
}

func addressMessage(q dns.Question, addresses []netip.Addr) *dns.Msg {
	message := new(dns.Msg)
	for _, address := range addresses {
		header := dns.RR_Header{Name: q.Name, Class: dns.ClassINET, Ttl: 30}
		switch {
		case q.Qtype == dns.TypeA && address.Is4():
			header.Rrtype = dns.TypeA
			message.Answer = append(message.Answer, &dns.A{Hdr: header, A: address.AsSlice()})
		case q.Qtype == dns.TypeAAAA && address.Is6():
			header.Rrtype = dns.TypeAAAA
			message.Answer = append(message.Answer, &dns.AAAA{Hdr: header, AAAA: address.AsSlice()})
		}
	}
	return message
}
