package compliance

import (
	"errors"
	"iter"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/chaperone-proxy/chaperone/authz"
	"github.com/chaperone-proxy/chaperone/configs"
	"github.com/chaperone-proxy/chaperone/governance/pilot"
)

// rule is a permission without a fault.
func rule(id string) authz.Rule {
	return authz.Rule{
		ID: id, To: authz.To{Hosts: []string{"api.example"}, TLS: authz.TLS{Min: "1.3"}}, Credential: "key",
		Data: authz.Data{Classes: []authz.DataClass{authz.DataInternal}, Regions: []string{"eu"}, Retention: "7d"},
	}
}

func accesses(all ...Access) iter.Seq2[Access, error] {
	return func(yield func(Access, error) bool) {
		for _, a := range all {
			if !yield(a, nil) {
				return
			}
		}
	}
}

// access is one that a permission grants.
func access(change func(*Access)) Access {
	a := Access{Decision: "d-1", Plugin: "reader", Rule: "read", Scheme: authz.SchemeHTTPS, Host: "api.example", Region: "eu", TLS: "1.3"}
	if change != nil {
		change(&a)
	}
	return a
}

func input() Input {
	return Input{
		Declared:   authz.Grant{Rules: []authz.Rule{rule("read")}},
		Guardrails: []authz.Guardrail{{}, {Ceilings: authz.Ceilings{CredentialLifetime: authz.Duration(10 * time.Minute)}}},
		Trace:      &pilot.Trace{Mediation: pilot.Mediation{Known: true, Admitted: 9, Handled: 9, CompletenessPPM: 1_000_000}},
		Accesses:   accesses(access(nil), access(nil)),
	}
}

// TestCheck proves items, and shows each way in which one fails.
func TestCheck(t *testing.T) {
	none, two := 0, 2
	regions := configs.ChecklistQuery{Regions: []string{"eu", "ch"}}
	tls := configs.ChecklistQuery{TLSMin: "1.3"}
	retention := configs.ChecklistQuery{Retention: "30d"}
	classes := configs.ChecklistQuery{Classes: []authz.DataClass{authz.DataPublic, authz.DataInternal}}
	lease := configs.ChecklistQuery{CredentialLifetime: authz.Duration(15 * time.Minute)}
	undeclared := pilot.Undeclared{Host: "evil.example", Count: 2, Decisions: []string{"d-7"}}
	log := func(change func(*Access)) func(*Input) {
		return func(in *Input) { in.Accesses = accesses(access(nil), access(change)) }
	}
	edit := func(change func(*authz.Rule)) func(*Input) {
		return func(in *Input) { change(&in.Declared.Rules[0]) }
	}
	for name, c := range map[string]struct {
		query  configs.ChecklistQuery
		change func(*Input)
		want   Outcome
		shown  string // in the detail, the rules or the decisions
	}{
		"regions":                     {regions, nil, Proved, "read"},
		"a rule without a region":     {regions, edit(func(r *authz.Rule) { r.Data.Regions = nil }), Failed, "permission read states no data.regions"},
		"a rule for another region":   {regions, edit(func(r *authz.Rule) { r.Data.Regions = []string{"eu", "us"} }), Failed, "permission read allows region us"},
		"an access elsewhere":         {regions, log(func(a *Access) { a.Region, a.Decision = "us", "d-2" }), Failed, "d-2"},
		"an access to nowhere":        {regions, log(func(a *Access) { a.Region = "" }), Failed, "went to region (none) (1 of 2 accesses)"},
		"an access by no rule":        {regions, log(func(a *Access) { a.Rule = "" }), Failed, "by no declared permission"},
		"an access by another rule":   {regions, log(func(a *Access) { a.Rule = "other" }), Failed, "by no declared permission"},
		"a host that would forge":     {regions, log(func(a *Access) { a.Region, a.Host = "us", "a\x1b[2J\nproved" }), Failed, `a\u001b[2J\u000aproved`},
		"regions without a pilot":     {regions, func(in *Input) { in.Trace, in.Accesses = nil, nil }, Missing, "log of a pilot is missing"},
		"regions without a log":       {regions, func(in *Input) { in.Accesses = nil }, Missing, "log of a pilot is missing"},
		"TLS":                         {tls, nil, Proved, "read"},
		"a rule with an older TLS":    {tls, edit(func(r *authz.Rule) { r.To.TLS.Min = "1.2" }), Failed, "accepts TLS 1.2"},
		"a rule with the default":     {tls, edit(func(r *authz.Rule) { r.To.TLS.Min = "" }), Failed, "accepts TLS 1.2"},
		"a rule in plain text":        {tls, edit(func(r *authz.Rule) { r.To.Scheme = authz.SchemeHTTP }), Failed, "has scheme http"},
		"a rule of raw TCP":           {tls, edit(func(r *authz.Rule) { r.To.Scheme = authz.SchemeTCP }), Failed, "has scheme tcp"},
		"TLS of the plugin's own":     {tls, edit(func(r *authz.Rule) { r.To.Scheme = authz.SchemeTLS }), Failed, "has scheme tls"},
		"an access in plain text":     {tls, log(func(a *Access) { a.Rule, a.Scheme = "", authz.SchemeHTTP }), Failed, "by scheme http, where"},
		"an access by an older TLS":   {tls, log(func(a *Access) { a.TLS, a.Decision = "1.2", "d-2" }), Failed, "to api.example was by TLS 1.2 (1 of 2 accesses) read d-2"},
		"an access by more than asks": {configs.ChecklistQuery{TLSMin: "1.2"}, log(func(a *Access) { a.Rule = "" }), Proved, "at least it for every access"},
		"an access of an older log":   {tls, log(func(a *Access) { a.TLS = "" }), Failed, "no TLS version of an access to api.example"},
		"an access of no scheme":      {tls, log(func(a *Access) { a.Scheme = "gopher" }), Failed, "gopher"},
		"retention":                   {retention, nil, Proved, "read"},
		"no retention is less":        {retention, edit(func(r *authz.Rule) { r.Data.Retention = authz.RetentionNone }), Proved, "read"},
		"too long a retention":        {retention, edit(func(r *authz.Rule) { r.Data.Retention = "31d" }), Failed, "states a retention of 31d"},
		"a retention not stated":      {retention, edit(func(r *authz.Rule) { r.Data.Retention = "" }), Failed, "states no data.retention"},
		"classes":                     {classes, nil, Proved, "read"},
		"another class":               {classes, edit(func(r *authz.Rule) { r.Data.Classes = append(r.Data.Classes, authz.DataRestricted) }), Failed, "carries restricted data"},
		"classes not stated":          {classes, edit(func(r *authz.Rule) { r.Data.Classes = nil }), Failed, "states no data.classes"},
		"leases":                      {lease, nil, Proved, "1 permission with a credential"},
		"leases that last":            {lease, func(in *Input) { in.Guardrails[1].Ceilings.CredentialLifetime = authz.Duration(time.Hour) }, Failed, "allow a credentialLifetime of 1h0m0s"},
		"leases without a bound":      {lease, func(in *Input) { in.Guardrails = nil }, Failed, "no guardrail bounds credentialLifetime"},
		"no credential needs a bound": {lease, func(in *Input) { in.Guardrails, in.Declared.Rules[0].Credential = nil, "" }, Proved, "0 permissions"},
		"a credential for a wildcard": {lease, edit(func(r *authz.Rule) { r.WildcardCredential = true }), Failed, "to a wildcard host"},
		"a credential over http":      {lease, edit(func(r *authz.Rule) { r.Insecure = true }), Failed, "over plain http"},
		"nothing undeclared":          {configs.ChecklistQuery{Undeclared: &none}, nil, Proved, "0 accesses"},
		"something undeclared":        {configs.ChecklistQuery{Undeclared: &none}, func(in *Input) { in.Trace.Undeclared = []pilot.Undeclared{undeclared} }, Failed, "d-7"},
		"as much undeclared as may":   {configs.ChecklistQuery{Undeclared: &two}, func(in *Input) { in.Trace.Undeclared = []pilot.Undeclared{undeclared} }, Proved, "2 accesses"},
		"more than is listed":         {configs.ChecklistQuery{Undeclared: &two}, func(in *Input) { in.Trace.UndeclaredMore = 3 }, Failed, "3 accesses"},
		"undeclared without a pilot":  {configs.ChecklistQuery{Undeclared: &two}, func(in *Input) { in.Trace = nil }, Missing, "missing"},
		"mediation":                   {configs.ChecklistQuery{Mediation: 9999}, nil, Proved, "9 of 9 connections"},
		"an unmediated connection":    {configs.ChecklistQuery{Mediation: 9999}, func(in *Input) { in.Trace.Mediation.Unmediated, in.Trace.Mediation.CompletenessPPM = 1, 888_888 }, Failed, "1 of 9 connections were not mediated"},
		"no kernel half":              {configs.ChecklistQuery{Mediation: 9999}, func(in *Input) { in.Trace.Mediation.Known = false }, Failed, "have to be"},
		"no query":                    {configs.ChecklistQuery{}, nil, Failed, "not supported"},
	} {
		t.Run(name, func(t *testing.T) {
			in := input()
			if c.change != nil {
				c.change(&in)
			}
			got, err := Check([]configs.ChecklistItem{{ID: "one", Proof: configs.ProofAuto, Query: &c.query}}, in)
			if err != nil {
				t.Fatal(err)
			}
			shown := strings.Join(slices.Concat([]string{got[0].Detail}, got[0].Rules, got[0].Decisions), " ")
			if got[0].Outcome != c.want || !strings.Contains(shown, c.shown) {
				t.Errorf("%s: %s; want %s: %s", got[0].Outcome, shown, c.want, c.shown)
			}
		})
	}
}

// TestCheckReadsAll fails with the log, and leaves to others what they have to attest.
func TestCheckReadsAll(t *testing.T) {
	in := input()
	broken := errors.New("broken")
	in.Accesses = func(yield func(Access, error) bool) { yield(Access{}, broken) }
	items := []configs.ChecklistItem{{ID: "auto", Proof: configs.ProofAuto, Query: &configs.ChecklistQuery{TLSMin: "1.2"}}, {ID: "contract", Proof: configs.ProofAttested}, {ID: "open", Proof: configs.ProofAttested}}
	if _, err := Check(items, in); !errors.Is(err, broken) {
		t.Errorf("the error is %v", err)
	}
	in = input()
	in.Attested = map[string]Attestation{"contract": {Document: "sha256:1", Name: "a.pdf"}}
	got, err := Check(items, in)
	if err != nil || len(got) != 2 || got[1].ID != "contract" || got[1].Outcome != Attested {
		t.Errorf("%+v, %v", got, err)
	}
	if got, _ := Check([]configs.ChecklistItem{{ID: "auto", Proof: configs.ProofAuto}}, in); got[0].Outcome != Failed {
		t.Errorf("an item without a query is %s", got[0].Outcome)
	}
}
