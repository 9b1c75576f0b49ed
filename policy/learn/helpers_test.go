package learn_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/chaperone-proxy/chaperone/authz"
	"github.com/chaperone-proxy/chaperone/policy"
	"github.com/chaperone-proxy/chaperone/policy/learn"
)

var noon = time.Date(2026, 12, 1, 12, 0, 0, 0, time.UTC)

// request returns a request, written as METHOD URL or METHOD URL UPGRADE.
func request(t testing.TB, text string) authz.Request {
	t.Helper()
	words := append(strings.Fields(text), "")
	req, err := policy.Request("weather", policy.Words{Method: words[0], URL: words[1], Upgrade: words[2]})
	if err != nil {
		t.Fatalf("%s: %v", text, err)
	}
	return req
}

// accesses returns one access a minute.
func accesses(t testing.TB, requests ...string) []learn.Access {
	t.Helper()
	var out []learn.Access
	for i, text := range requests {
		out = append(out, learn.Access{Request: request(t, text), Time: noon.Add(time.Duration(i) * time.Minute)})
	}
	return out
}

// repeat returns a format with the numbers from 0 to n-1.
func repeat(n int, format string) []string {
	var out []string
	for i := range n {
		out = append(out, fmt.Sprintf(format, i))
	}
	return out
}

var terms = learn.Terms{Plugin: "weather", Name: "weather-learned", NotAfter: noon.Add(90 * 24 * time.Hour), Now: noon}

// propose returns what is learned from accesses.
func propose(t testing.TB, all []learn.Access) *learn.Proposal {
	t.Helper()
	l := learn.New()
	for _, a := range all {
		l.Add(a)
	}
	return l.Propose(terms)
}

// text returns the YAML of a proposal.
func text(t testing.TB, p *learn.Proposal, notes ...string) string {
	t.Helper()
	var b strings.Builder
	if err := p.YAML(&b, notes...); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

// summarise returns the rules of a proposal, one a line.
func summarise(p *learn.Proposal) string {
	var lines []string
	for _, r := range p.Rules {
		line := strings.Join(r.Methods, ",") + " " + string(r.To.Scheme) + strings.Join(r.To.Hosts, ",")
		if len(r.To.Ports) > 0 {
			line += fmt.Sprint(r.To.Ports)
		}
		if len(r.Upgrades) > 0 {
			line += " upgrade " + strings.Join(r.Upgrades, ",")
		}
		lines = append(lines, strings.TrimSpace(line+" "+strings.Join(r.Paths, " ")))
	}
	return strings.Join(lines, "\n")
}
