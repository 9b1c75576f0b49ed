package proxy_test

import (
	"context"
	"fmt"
	"net"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/miekg/dns"

	"github.com/chaperone-proxy/chaperone/authz"
	"github.com/chaperone-proxy/chaperone/internal/testenv"

	proxydns "github.com/chaperone-proxy/chaperone/proxy/dns"
)

// TestQuestionsInFlightAreBounded floods the resolver with names while its records are
// not written. It holds few questions; the others wait in the socket or are dropped there
// and counted. Afterwards it answers again.
func TestQuestionsInFlightAreBounded(t *testing.T) {
	w := newWorld(t, setup{input: names("api.weather.example")})
	release := make(chan struct{})
	resolver, err := proxydns.NewResolver(proxydns.Config{
		Plugin: plugin, Gate: w.gate, Engine: w.engine, Refused: func(authz.Refusal) { <-release },
	})
	testenv.Must(t, err)
	w.resolver = resolver
	server := w.resolve()
	w.ask("api.weather.example", dns.TypeA) // it serves
	before := runtime.NumGoroutine()
	flood, err := new(net.Dialer).DialContext(t.Context(), "udp", server)
	testenv.Must(t, err)
	defer flood.Close()
	for i := range 20_000 {
		question := new(dns.Msg)
		question.SetQuestion(fmt.Sprintf("n%d.evil.example.", i), dns.TypeA)
		packed, err := question.Pack()
		testenv.Must(t, err)
		_, _ = flood.Write(packed) // a full queue drops the packet, in the kernel or in the resolver
	}
	for late := testDeadline(); resolver.Stats().Dropped == 0 && !late(); {
		time.Sleep(time.Millisecond)
	}
	const inFlight, spare = 32, 16 // questions of one socket that are answered at a time; goroutines that do not belong to the flood
	if now := runtime.NumGoroutine(); now > before+inFlight+spare {
		t.Errorf("%d goroutines run after %d before the flood, want at most %d more", now, before, inFlight+spare)
	}
	if resolver.Stats().Dropped == 0 {
		t.Error("no packet is counted as dropped")
	}
	close(release)
	for late := testDeadline(); ; {
		question := new(dns.Msg)
		question.SetQuestion("api.weather.example.", dns.TypeA)
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		answer, _, err := (&dns.Client{Net: "udp"}).ExchangeContext(ctx, question, server)
		cancel()
		if err == nil && len(answer.Answer) == 1 {
			break
		}
		if late() {
			t.Fatalf("after the flood: %v, %v", answer, err)
		}
	}
}

// TestRefusedNamesDoNotFloodTheLog asks for more names than are remembered: one record a
// second stands for all the others.
func TestRefusedNamesDoNotFloodTheLog(t *testing.T) {
	const asked, remembered = 3000, 1024
	w := newWorld(t, setup{input: names("api.weather.example")})
	began := time.Now()
	var later atomic.Int64
	resolver, err := proxydns.NewResolver(proxydns.Config{
		Plugin: plugin, Gate: w.gate, Engine: w.engine, Now: func() time.Time { return began.Add(time.Duration(later.Load())) },
	})
	testenv.Must(t, err)
	w.resolver = resolver
	for i := range asked {
		w.ask(fmt.Sprintf("n%d.evil.example", i), dns.TypeA)
	}
	records := w.records.of(authz.KindDecision)
	if len(records) != remembered+1 {
		t.Errorf("%d names are recorded by %d records", asked, len(records))
	}
	later.Store(int64(2 * time.Second))
	w.ask("last.evil.example", dns.TypeA)
	records = w.records.of(authz.KindDecision)
	want := fmt.Sprintf("%d other names were refused too", asked-remembered-1)
	if last := records[len(records)-1]; !strings.Contains(last.Detail, want) {
		t.Errorf("got the detail %q in the record after a second, want %q in it", last.Detail, want)
	}
	if got := resolver.Stats().UDP.Refused; got != asked+1 {
		t.Errorf("%d are counted", got)
	}
}

// TestPacketsThatAreNoQuestions sends packets that are not questions: the resolver
// answers as the DNS specifies or not at all, and continues.
func TestPacketsThatAreNoQuestions(t *testing.T) {
	w := newWorld(t, setup{input: names("api.weather.example")})
	server := w.resolve()
	c, err := new(net.Dialer).DialContext(t.Context(), "udp", server)
	testenv.Must(t, err)
	defer c.Close()
	question := new(dns.Msg)
	question.SetQuestion("api.weather.example.", dns.TypeA)
	whole, err := question.Pack()
	testenv.Must(t, err)
	two := question.Copy()
	two.Question = append(two.Question, two.Question[0])
	twice, err := two.Pack()
	testenv.Must(t, err)
	update := question.Copy()
	update.Opcode = dns.OpcodeUpdate
	updating, err := update.Pack()
	testenv.Must(t, err)
	response := question.Copy()
	response.Response = true
	responding, err := response.Pack()
	testenv.Must(t, err)
	for _, silent := range [][]byte{nil, []byte("x"), whole[:11], responding} {
		_, err := c.Write(silent)
		testenv.Must(t, err)
	}
	for name, test := range map[string]struct {
		packet []byte
		code   int
	}{
		"cut short": {whole[:20], dns.RcodeFormatError}, "two questions": {twice, dns.RcodeFormatError},
		"an update": {updating, dns.RcodeNotImplemented}, "a question": {whole, dns.RcodeSuccess},
	} {
		_, err := c.Write(test.packet)
		testenv.Must(t, err)
		testenv.Must(t, c.SetReadDeadline(time.Now().Add(time.Minute)))
		buf := make([]byte, 512)
		n, err := c.Read(buf)
		testenv.Must(t, err)
		answer := new(dns.Msg)
		testenv.Must(t, answer.Unpack(buf[:n]))
		if answer.Rcode != test.code || answer.Id != question.Id || !answer.Response {
			t.Errorf("%s is answered %s", name, answer)
		}
	}
}
