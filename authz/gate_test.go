package authz

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"regexp"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

var errBroken = errors.New("it is broken")

func TestNewGate(t *testing.T) {
	full := GateConfig{Engine: &Engine{}, Ledger: NewLedger(), Recorder: &recorder{}, Now: time.Now}
	for name, change := range map[string]func(*GateConfig){
		"engine": func(c *GateConfig) { c.Engine = nil }, "ledger": func(c *GateConfig) { c.Ledger = nil },
		"recorder": func(c *GateConfig) { c.Recorder = nil }, "clock": func(c *GateConfig) { c.Now = nil },
	} {
		cfg := full
		change(&cfg)
		if _, err := NewGate(cfg); err == nil {
			t.Errorf("there is a gate without %s", name)
		}
	}
	gate, err := NewGate(full)
	if err != nil {
		t.Fatal(err)
	}
	a, err := gate.Admit(t.Context(), get(t, forecastURL), Source{})
	if err != nil || a.Decision.Reason != NotReady || a.Refusal == nil || a.Refusal.Status() != 503 {
		t.Errorf("before a policy is loaded: %+v, %v", a.Decision, err)
	}
}

// TestAdmit: an access is decided, its credential fetched and its record
// written before anything else may happen; its end is written once.
func TestAdmit(t *testing.T) {
	w := newWorld(t, input(withKey(forecast())))
	var order []string
	w.recorder.log, w.source.log = &order, &order
	src := Source{Door: DoorProxy, PID: 7, UID: 1000, Exe: "/usr/bin/curl", TraceID: "t1"}
	a, err := w.gate.Admit(t.Context(), get(t, forecastURL+"?days=3"), src)
	if err != nil {
		t.Fatal(err)
	}
	if a.Decision.Reason != Granted || a.Refusal != nil || a.Source != src || !a.StillAllowed() {
		t.Errorf("%+v", a.Decision)
	}
	if i := a.Injection; i.Kind != InjectHeader || i.Name != "authorization" || i.Value.Reveal() != "Bearer hunter2" || i.Generation != 1 {
		t.Errorf("%+v", i)
	}
	if !slices.Equal(order, []string{"credential", "record decision"}) {
		t.Errorf("the order was %q", order)
	}
	w.advance(250 * time.Millisecond)
	if err := a.End(Outcome{Address: "203.0.113.7:443", SentBytes: 1, Bytes: 2, Detail: "done"}); err != nil {
		t.Fatal(err)
	}
	if err := a.End(Outcome{Detail: "again"}); err != nil {
		t.Fatal(err)
	}
	decision := Record{
		Time: noon, Kind: KindDecision, Plugin: "weather", Door: DoorProxy, Decision: a.ID, Allowed: true, Reason: "granted",
		Grant: "weather", Rule: "read-forecast", Generation: 1, Method: "GET", Scheme: "https", Host: "api.weather.example", Port: 443,
		Path: "/v1/forecast/berlin", Query: "days=3", Pattern: "/v1/forecast/*", Credential: "key", Lease: "lease-1",
		PID: 7, UID: 1000, Exe: "/usr/bin/curl", TraceID: "t1",
	}
	end := decision
	end.Kind, end.Time, end.Address, end.SentBytes, end.Bytes, end.Detail = KindEnd, noon.Add(250*time.Millisecond), "203.0.113.7:443", 1, 2, "done"
	end.Latency = 250 * time.Millisecond
	if diff := cmp.Diff([]Record{decision, end}, w.recorder.all()); diff != "" {
		t.Errorf("records (-want +got):\n%s", diff)
	}
}

// TestAdmitRefused: a refusal is recorded, and fetches nothing.
func TestAdmitRefused(t *testing.T) {
	w := newWorld(t, input(withKey(forecast())))
	var order []string
	w.recorder.log, w.source.log = &order, &order
	a := w.admit(t, get(t, "POST "+forecastURL))
	if a.Decision.Allowed() || a.Refusal == nil || a.Injection != (Injection{}) || a.StillAllowed() {
		t.Errorf("%+v", a)
	}
	if !slices.Equal(order, []string{"record decision"}) {
		t.Errorf("the order was %q", order)
	}
	// The path that a rule's pattern matched is masked by it, although its
	// method was refused.
	if r := w.recorder.all()[0]; r.Allowed || r.Reason != "method_not_granted" || r.Pattern != "/v1/forecast/*" || r.Rule != "" {
		t.Errorf("%+v", r)
	}
}

// TestUnrecorded: what cannot be recorded is refused, before its effect.
func TestUnrecorded(t *testing.T) {
	w := newWorld(t, input(withKey(forecast())))
	w.recorder.broken = errBroken
	a, err := w.gate.Admit(t.Context(), get(t, forecastURL), Source{})
	if !errors.Is(err, errBroken) || a.Decision.Reason != AuditUnavailable || a.Injection != (Injection{}) {
		t.Errorf("%+v, %v", a.Decision, err)
	}
	if a.Refusal == nil || a.Refusal.Status() != 503 || a.Refusal.Detail != "the access could not be recorded" || a.StillAllowed() {
		t.Errorf("%+v", a.Refusal)
	}
	a, err = w.gate.Admit(t.Context(), get(t, "POST "+forecastURL), Source{})
	if !errors.Is(err, errBroken) || a.Refusal == nil || a.Refusal.Reason != MethodNotGranted {
		t.Errorf("%+v, %v", a.Decision, err)
	}
	w.recorder.broken = nil
	a = w.admit(t, get(t, forecastURL))
	w.recorder.broken = errBroken
	if err := a.End(Outcome{}); !errors.Is(err, errBroken) {
		t.Errorf("End() = %v", err)
	}
	if _, err := w.gate.Refuse(MalformedRequest, Attempt{}, Source{}); !errors.Is(err, errBroken) {
		t.Errorf("Refuse() = %v", err)
	}
	// Both causes are returned.
	w.source.err = errors.New("vault is sealed")
	a, err = w.gate.Admit(t.Context(), get(t, forecastURL), Source{})
	if !errors.Is(err, errBroken) || !errors.Is(err, w.source.err) || a.Decision.Reason != CredentialUnavailable {
		t.Errorf("%s, %v", a.Decision.Reason, err)
	}
}

type laterError struct{ error }

func (laterError) RetryAfter() time.Duration { return 1500 * time.Millisecond }

// TestCredentialUnavailable: without a credential that is valid now there is
// no access.
func TestCredentialUnavailable(t *testing.T) {
	for _, test := range []struct {
		name       string
		err        error
		credential Credential
		retry      string
		says       string
	}{
		{"vault is down", errBroken, Credential{}, "", "fetch credential key of grant weather: it is broken"},
		{"vault knows when", fmt.Errorf("wrapped: %w", laterError{errBroken}), Credential{}, "2", "fetch credential key of grant weather: wrapped: it is broken"},
		{"expired now", nil, Credential{Fields: apiKey("x").Fields, NotAfter: noon}, "", "credential is past its end"},
		{"expired", nil, Credential{Fields: apiKey("x").Fields, NotAfter: noon.Add(-time.Hour)}, "", "credential is past its end"},
		{"no field", nil, Credential{Fields: map[string]Secret{"other": NewSecret("canary")}}, "", "Vault's answer has no field api_key; it has other"},
		{"empty field", nil, apiKey(""), "", "Vault's answer has no field api_key"},
		{"control byte", nil, apiKey("canary\n"), "", "value holds a control byte"},
	} {
		t.Run(test.name, func(t *testing.T) {
			w := newWorld(t, input(withKey(forecast())))
			w.source.err, w.source.credential = test.err, test.credential
			a, err := w.gate.Admit(t.Context(), get(t, forecastURL), Source{})
			if a.Decision.Reason != CredentialUnavailable || a.Injection != (Injection{}) || a.Refusal == nil || a.Refusal.Status() != 503 {
				t.Errorf("%+v %+v", a.Decision, a.Injection)
			}
			if got := a.Refusal.RetrySeconds(); got != test.retry {
				t.Errorf("retry after %q", got)
			}
			if err == nil || !strings.Contains(err.Error(), test.says) || strings.Contains(err.Error(), "canary") {
				t.Errorf("the error is %v", err)
			}
			if r := w.recorder.all()[0]; r.Allowed || r.Reason != "credential_unavailable" || r.Credential != "key" {
				t.Errorf("%+v", r)
			}
		})
	}
	w := newWorld(t, input(withKey(forecast())))
	w.gate.cfg.Credentials = nil
	if a, err := w.gate.Admit(t.Context(), get(t, forecastURL), Source{}); err == nil || a.Decision.Reason != CredentialUnavailable {
		t.Errorf("without a source: %s, %v", a.Decision.Reason, err)
	}
	w = newWorld(t, input(withKey(forecast())))
	w.source.credential.NotAfter = noon.Add(time.Nanosecond)
	if a := w.admit(t, get(t, forecastURL)); !a.Decision.Allowed() {
		t.Error("a credential is refused before its end")
	}
}

// TestRender: each slot, and what may not stand in it.
func TestRender(t *testing.T) {
	fields := func(pairs ...string) Credential {
		c := Credential{Fields: map[string]Secret{}, Generation: 3}
		for i := 0; i < len(pairs); i += 2 {
			c.Fields[pairs[i]] = NewSecret(pairs[i+1])
		}
		return c
	}
	for _, test := range []struct {
		name       string
		inject     Inject
		credential Credential
		want       string
	}{
		{"header", Inject{Header: "X-API-Key", Value: "{k}"}, fields("k", "v"), "1 x-api-key=v"},
		{"two fields", Inject{Header: "x", Value: "a {k}-{l} z"}, fields("k", "1", "l", "2"), "1 x=a 1-2 z"},
		{"query", Inject{Query: "key", Value: "{k}"}, fields("k", "a&b=c"), "2 key=a&b=c"},
		{"cookie", Inject{Cookie: "sid", Value: "{k}"}, fields("k", "abc"), "3 sid=abc"},
		{"basic", Inject{Basic: &Basic{"{u}", "{p}"}}, fields("u", "Aladdin", "p", "open sesame"), "1 authorization=Basic QWxhZGRpbjpvcGVuIHNlc2FtZQ=="},
		{"basic with a fixed user", Inject{Basic: &Basic{"x-access-token", "{p}"}}, fields("p", "t"), "1 authorization=Basic eC1hY2Nlc3MtdG9rZW46dA=="},
		{"basic without a password", Inject{Basic: &Basic{"{u}", ""}}, fields("u", "sk_1"), "1 authorization=Basic c2tfMTo="},
		{"basic with a colon", Inject{Basic: &Basic{"{u}", "{p}"}}, fields("u", "a:b", "p", "c"), "render credential key: username holds a colon (RFC 7617, section 2)"},
		{"basic with a control byte", Inject{Basic: &Basic{"{u}", "{p}"}}, fields("u", "a", "p", "c\n"), "render credential key: value holds a control byte"},
		{"basic with a control byte in the user", Inject{Basic: &Basic{"{u}", "{p}"}}, fields("u", "a\x00", "p", "c"), "render credential key: value holds a control byte"},
		{"basic without its field", Inject{Basic: &Basic{"{u}", "{p}"}}, fields("u", "a"), "render credential key: Vault's answer has no field p; it has u"},
		{"header with a line break", Inject{Header: "x", Value: "{k}"}, fields("k", "a\r\nb: c"), "render credential key: value holds a control byte"},
		{"header with DEL", Inject{Header: "x", Value: "{k}"}, fields("k", "a\x7f"), "render credential key: value holds a control byte"},
		{"header beyond ASCII", Inject{Header: "x", Value: "{k}"}, fields("k", "ä"), "1 x=ä"},
		{"cookie with a semicolon", Inject{Cookie: "sid", Value: "{k}"}, fields("k", "a;b"), "render credential key: value holds a byte that a cookie value must not hold (RFC 6265, section 4.1.1)"},
		{"cookie beyond ASCII", Inject{Cookie: "sid", Value: "{k}"}, fields("k", "\x80"), "render credential key: value holds a byte that a cookie value must not hold (RFC 6265, section 4.1.1)"},
	} {
		t.Run(test.name, func(t *testing.T) {
			g := withKey(forecast())
			g.Credentials[0].Inject = test.inject
			spec := compile(t, input(g)).plugins["weather"].rules[0].credential
			for range 2 { // cold and warm
				i, err := spec.render(test.credential)
				got := fmt.Sprintf("%d %s=%s", i.Kind, i.Name, i.Value.Reveal())
				if err != nil {
					got = err.Error()
				} else if i.Generation != 3 {
					t.Errorf("generation %d", i.Generation)
				}
				if got != test.want {
					t.Errorf("rendered %q", got)
				}
			}
		})
	}
}

// TestRenderAnew: a value that was replaced is never sent again, whatever generations
// the source states and leases; one that was not is not made again.
func TestRenderAnew(t *testing.T) {
	user, first, second := NewSecret("u"), NewSecret("1"), NewSecret("2")
	for _, test := range []struct {
		inject Inject
		want   map[Secret]string
	}{
		{Inject{Header: "x", Value: "{p}"}, map[Secret]string{first: "1", second: "2"}},
		{Inject{Basic: &Basic{"{u}", "{p}"}}, map[Secret]string{first: "Basic dTox", second: "Basic dToy"}},
		{Inject{Basic: &Basic{"{p}", "{u}"}}, map[Secret]string{first: "Basic MTp1", second: "Basic Mjp1"}},
	} {
		g := withKey(forecast())
		g.Credentials[0].Inject = test.inject
		spec := compile(t, input(g)).plugins["weather"].rules[0].credential
		var last Secret
		var lastValue Secret
		for _, password := range []Secret{first, first, second, first, second, second} {
			i, err := spec.render(Credential{Fields: map[string]Secret{"u": user, "p": password}})
			if want := test.want[password]; err != nil || i.Value.Reveal() != want {
				t.Errorf("%+v renders %q, %v; want %q", test.inject, i.Value.Reveal(), err, want)
			}
			if (i.Value == lastValue) != (password == last) {
				t.Errorf("%+v: rendered again: %t", test.inject, i.Value != lastValue)
			}
			last, lastValue = password, i.Value
		}
	}
}

// TestOriginateAtTheGate: the admission is for https, and is decided
// again as asked.
func TestOriginateAtTheGate(t *testing.T) {
	g := withKey(forecast())
	g.Rules[0].To.TLS.Originate = true
	w := newWorld(t, input(g))
	a := w.admit(t, get(t, "http://api.weather.example/v1/forecast/berlin"))
	if a.Request.Destination.HostPort() != "api.weather.example:443" || a.Request.Destination.Scheme() != SchemeHTTPS || !a.StillAllowed() {
		t.Errorf("%+v", a.Request)
	}
	if r := w.recorder.all()[0]; r.Scheme != "https" || r.Port != 443 {
		t.Errorf("%+v", r)
	}
	g.Rules[0].To.TLS.Originate = false
	w.engine.Install(compile(t, input(g)))
	if a.StillAllowed() {
		t.Error("plain http lives on where only https is granted")
	}
	a = w.admit(t, get(t, "http://api.weather.example/v1/forecast/berlin"))
	if a.Request.Destination.Scheme() != SchemeHTTP || a.Refusal == nil || a.Refusal.URL != "http://api.weather.example/v1/forecast/berlin" {
		t.Errorf("%+v", a.Request)
	}
}

// TestStillAllowed: what is in flight ends when it is revoked, and when the
// credential that it carries is no longer its own.
func TestStillAllowed(t *testing.T) {
	keyed := withKey(forecast())
	for _, test := range []struct {
		name   string
		change func(w *world)
		want   bool
	}{
		{"nothing", func(*world) {}, true},
		{"bump", func(w *world) { w.engine.Bump() }, true},
		{"pause", func(w *world) { w.engine.Revoke(Revocation{ID: "r", Plugin: "weather", Level: LevelPause}) }, true},
		{"pause of the rule", func(w *world) {
			w.engine.Revoke(Revocation{ID: "r", Plugin: "weather", Grant: "weather", Rule: "read-forecast", Level: LevelPause})
		}, true},
		{"quarantine", func(w *world) { w.engine.Revoke(Revocation{ID: "r", Plugin: "weather", Level: LevelQuarantine}) }, false},
		{"quarantine of the rule", func(w *world) {
			w.engine.Revoke(Revocation{ID: "r", Plugin: "weather", Grant: "weather", Rule: "read-forecast", Level: LevelQuarantine})
		}, false},
		{"expiry", func(w *world) { w.advance(365 * 24 * time.Hour) }, false},
		{"reload without the grant", func(w *world) { w.engine.Install(compile(t, input())) }, false},
		{"reload with the same", func(w *world) { w.engine.Install(compile(t, input(withKey(forecast())))) }, true},
		{"reload with the credential gone", func(w *world) { w.engine.Install(compile(t, input(forecast()))) }, false},
		{"reload with the credential from elsewhere", func(w *world) {
			g := withKey(forecast())
			g.Credentials[0].Vault.Path = "secret/data/other"
			w.engine.Install(compile(t, input(g)))
		}, false},
		{"reload with the rule renamed", func(w *world) {
			g := withKey(forecast())
			g.Rules[0].ID = "renamed"
			w.engine.Install(compile(t, input(g)))
		}, true},
		{"observing instead of granting", func(w *world) {
			in := input()
			in.Observe, in.ObserveUntil = true, noon.Add(time.Hour)
			w.engine.Install(compile(t, in))
		}, false},
		{"another path, and observed", func(w *world) {
			g := withKey(forecast())
			g.Rules[0].Paths, g.Rules[0].Mode, g.Rules[0].ObserveUntil = []string{"/v2"}, ModeObserve, noon.Add(time.Hour)
			w.engine.Install(compile(t, input(g)))
		}, false},
		{"never", func(w *world) {
			in := input(withKey(forecast()))
			in.Guardrails = []Guardrail{{Name: "g", Plugins: []string{"*"}, Never: []Never{{ID: "n", Hosts: []string{"**.example"}}}}}
			w.engine.Install(compile(t, in))
		}, false},
		{"nothing is loaded", func(w *world) { w.engine.Install(nil) }, false},
	} {
		t.Run(test.name, func(t *testing.T) {
			w := newWorld(t, input(keyed))
			a := w.admit(t, get(t, forecastURL))
			test.change(w)
			if got := a.StillAllowed(); got != test.want {
				t.Errorf("it is still allowed: %t", got)
			}
			a.Refuse(UpstreamTimeout, "")
			if a.StillAllowed() {
				t.Error("a refused access is still allowed")
			}
		})
	}
	// Without a credential, another rule may take over.
	w := newWorld(t, input(forecast()))
	a := w.admit(t, get(t, forecastURL))
	g := forecast()
	g.Name = "renewed"
	w.engine.Install(compile(t, input(g)))
	if !a.StillAllowed() {
		t.Error("a renewed grant ends what it allows")
	}
}

// TestOvertaken: access that is revoked while a credential is fetched is refused.
func TestOvertaken(t *testing.T) {
	for _, test := range []struct {
		name      string
		meanwhile func(w *world)
		want      Reason
	}{
		{"nothing", func(*world) {}, Granted},
		{"bump", func(w *world) { w.engine.Bump() }, Granted},
		{"reload with the same", func(w *world) { w.engine.Install(compile(t, input(withKey(forecast())))) }, Granted},
		{"pause", func(w *world) { w.engine.Revoke(Revocation{ID: "r", Plugin: "weather", Level: LevelPause}) }, Revoked},
		{"halt", func(w *world) { w.engine.Revoke(Revocation{ID: "r", Plugin: "weather", Level: LevelHalt}) }, Revoked},
		{"expiry", func(w *world) { w.advance(365 * 24 * time.Hour); w.engine.Bump() }, GrantExpired},
		{"reload without the grant", func(w *world) { w.engine.Install(compile(t, input())) }, NoGrant},
		{"reload without the credential", func(w *world) { w.engine.Install(compile(t, input(forecast()))) }, CredentialUnavailable},
	} {
		t.Run(test.name, func(t *testing.T) {
			w := newWorld(t, input(withKey(forecast())))
			w.source.meanwhile = func() { test.meanwhile(w) }
			a, err := w.gate.Admit(t.Context(), get(t, forecastURL), Source{})
			if a.Decision.Reason != test.want || (err != nil) != (test.want == CredentialUnavailable) {
				t.Errorf("it is %s, %v", a.Decision.Reason, err)
			}
			if (a.Injection.Kind == InjectNone) != (test.want != Granted) || (a.Refusal == nil) != (test.want == Granted) {
				t.Errorf("injected %+v, refused %+v", a.Injection, a.Refusal)
			}
			if test.want == Revoked && !strings.Contains(a.Refusal.Detail, ", r)") {
				t.Errorf("refused with %q", a.Refusal.Detail)
			}
			if r := w.recorder.all()[0]; r.Reason != test.want.String() || r.Allowed != (test.want == Granted) {
				t.Errorf("%+v", r)
			}
		})
	}
}

// TestRefuseLate: a refusal after the decision is in the end record, and names what
// to ask for.
func TestRefuseLate(t *testing.T) {
	in := input(withKey(forecast()))
	in.Guardrails = []Guardrail{{Name: "company", Plugins: []string{"*"}, Never: []Never{{ID: "metadata", Addresses: []netip.Prefix{netip.MustParsePrefix("169.254.0.0/16")}}}}}
	w := newWorld(t, in)
	for _, test := range []struct {
		name           string
		refuse         func(a *Admission) Refusal
		reason         Reason
		detail, remedy string
	}{
		{
			"a private address", func(a *Admission) Refusal { return a.RefuseAddress(netip.MustParseAddr("::ffff:10.0.0.1")) }, AddressNotAllowed,
			"api.weather.example resolves to 10.0.0.1, which is not public", "ask for addresses: [10.0.0.1/32] on rule read-forecast of grant weather",
		},
		{
			"a private address in IPv6", func(a *Admission) Refusal { return a.RefuseAddress(netip.MustParseAddr("fe80::1%eth0")) }, AddressNotAllowed,
			"api.weather.example resolves to fe80::1%eth0, which is not public", "ask for addresses: [fe80::1/128] on rule read-forecast of grant weather",
		},
		{
			"an address of a never-list", func(a *Admission) Refusal { return a.RefuseAddress(netip.MustParseAddr("169.254.169.254")) }, GuardrailDenied,
			"api.weather.example:443 is blocked by guardrail company/metadata", "use another destination: no grant can allow this one",
		},
		{
			"an address that is allowed", func(a *Admission) Refusal { return a.RefuseAddress(netip.MustParseAddr("8.8.8.8")) }, NotReady,
			"no policy is loaded yet", "try again later",
		},
		{
			"an address in the door's words", func(a *Admission) Refusal { return a.Refuse(AddressNotAllowed, "it leads nowhere good") }, AddressNotAllowed,
			"it leads nowhere good", "ask for the address under to.addresses of a rule, if the name should resolve to it",
		},
		{
			"an address in our words", func(a *Admission) Refusal { return a.Refuse(AddressNotAllowed, "") }, AddressNotAllowed,
			"api.weather.example resolves to an address that is not public", "ask for the address under to.addresses of a rule, if the name should resolve to it",
		},
		{
			"unreachable", func(a *Admission) Refusal { return a.Refuse(UpstreamUnreachable, "") }, UpstreamUnreachable,
			"api.weather.example:443 cannot be reached", "try again later",
		},
		{
			"timeout", func(a *Admission) Refusal { return a.Refuse(UpstreamTimeout, "") }, UpstreamTimeout,
			"api.weather.example:443 did not answer in time", "try again later",
		},
		{"no refusal", func(a *Admission) Refusal { return a.Refuse(Granted, "") }, NotReady, "no policy is loaded yet", "try again later"},
		{
			"misplaced", func(a *Admission) Refusal { return a.Refuse(CredentialMisplaced, "") }, CredentialMisplaced,
			"placeholder of a credential found outside the credential's slot", "send the placeholder of a credential in the credential's own slot only",
		},
	} {
		t.Run(test.name, func(t *testing.T) {
			a := w.admit(t, get(t, forecastURL))
			r := test.refuse(a)
			if r.Reason != test.reason || r.Detail != test.detail || r.Remedy != test.remedy || r.Decision != a.ID || r.Plugin != "weather" {
				t.Errorf("%+v", r)
			}
			if a.StillAllowed() {
				t.Error("a refused access is still allowed")
			}
			if err := a.End(Outcome{}); err != nil {
				t.Fatal(err)
			}
			records := w.recorder.all()
			last := records[len(records)-1]
			if last.Kind != KindEnd || last.Allowed || last.Reason != test.reason.String() || !records[len(records)-2].Allowed {
				t.Errorf("%+v", last)
			}
		})
	}
	g := forecast()
	g.Rules[0].To.Addresses = []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}
	a := newWorld(t, input(g)).admit(t, get(t, forecastURL))
	if r := a.RefuseAddress(netip.MustParseAddr("8.8.8.8")); r.Detail != "api.weather.example resolves to 8.8.8.8, which is not among the addresses of rule read-forecast of grant weather" {
		t.Error(r.Detail)
	}
}

// TestRefuseForEveryReason: every refusal has words, whichever rule decided or
// none, and never another's reason.
func TestRefuseForEveryReason(t *testing.T) {
	observing := input(withKey(forecast()))
	observing.Observe, observing.ObserveUntil = true, noon.Add(time.Hour)
	w := newWorld(t, observing)
	for _, url := range []string{forecastURL, "https://example.org/", "POST " + forecastURL, "tcp://example.org:22"} {
		for _, reason := range Reasons() {
			r := w.admit(t, get(t, url)).Refuse(reason, "")
			if reason.Allowed() {
				reason = NotReady
			}
			if r.Reason != reason || r.Detail == "" || r.Remedy == "" || r.Status() < 400 {
				t.Errorf("%s, %s: %+v", url, reason, r)
			}
			if _, err := w.gate.Refuse(reason, Attempt{Principal: "weather", Detail: "x"}, Source{}); err != nil {
				t.Error(err)
			}
		}
	}
}

// TestKinds: no kind of record is missing where all are listed.
func TestKinds(t *testing.T) {
	source, err := os.ReadFile("record.go")
	if err != nil {
		t.Fatal(err)
	}
	var want []Kind
	for _, m := range regexp.MustCompile(`(?m)^\tKind\w+ +Kind = "(\w+)"`).FindAllSubmatch(source, -1) {
		want = append(want, Kind(m[1]))
	}
	if diff := cmp.Diff(want, Kinds()); diff != "" || len(want) < 10 {
		t.Error(diff)
	}
}

// TestAttemptDestination: what is known of where a refused attempt was to go is
// recorded in fields, spelt as in the records of other accesses.
func TestAttemptDestination(t *testing.T) {
	type destination struct {
		Scheme Scheme
		Host   string
		Port   uint16
	}
	for _, c := range []struct {
		attempt Attempt
		want    destination
	}{
		{Attempt{}, destination{}},
		{Attempt{URL: "https://Evil.Example./x?y"}, destination{SchemeHTTPS, "evil.example", 443}},
		{Attempt{URL: "HTTP://evil.example:8080"}, destination{SchemeHTTP, "evil.example", 8080}},
		{Attempt{URL: "https://user:secret@evil.example/x"}, destination{SchemeHTTPS, "evil.example", 443}},
		{Attempt{URL: "//evil.example/a//b", Scheme: SchemeHTTPS}, destination{SchemeHTTPS, "evil.example", 443}},
		{Attempt{URL: "//evil.example/a"}, destination{"", "evil.example", 0}},
		{Attempt{URL: "evil.example:443"}, destination{"", "evil.example", 443}},
		{Attempt{URL: "tcp://192.0.2.1:25"}, destination{SchemeTCP, "192.0.2.1", 25}},
		{Attempt{URL: "https://[2001:db8::1]:8443/"}, destination{SchemeHTTPS, "2001:db8::1", 8443}},
		{Attempt{URL: "ftp://evil.example/x"}, destination{"", "evil.example", 0}},
		{Attempt{URL: "/only/a/path", Host: "evil.example", Scheme: SchemeHTTPS}, destination{SchemeHTTPS, "evil.example", 0}},
		{Attempt{URL: "https://evil.example", Host: "evil.example", HostOnly: true}, destination{"", "evil.example", 0}},
		{Attempt{URL: "https://evil*.example:0/", Host: "bad\nhost"}, destination{SchemeHTTPS, "bad?host", 0}},
		{Attempt{URL: "https://evil.example:99999/"}, destination{SchemeHTTPS, "", 0}},
		{Attempt{URL: "https://\x1b[2J/"}, destination{SchemeHTTPS, "", 0}},
		{Attempt{URL: strings.Repeat("a", 1<<20)}, destination{}},
	} {
		var got destination
		got.Scheme, got.Host, got.Port = c.attempt.destination()
		if got != c.want {
			t.Errorf("%.100q is %+v, want %+v", c.attempt.URL, got, c.want)
		}
	}
	w := newWorld(t, input(forecast()))
	if r, err := w.gate.Refuse(DestinationNotGranted, Attempt{URL: "https://evil.example", Connect: true}, Source{}); r.Method != "" || err != nil {
		t.Errorf("the refusal of a CONNECT has the method %q, %v", r.Method, err)
	}
	if got := w.recorder.all()[0].Method; got != "CONNECT" {
		t.Errorf("its record has the method %q", got)
	}
}

// TestGateRefuse: what never became a request is recorded as every other
// refusal, without what travels in user information and query.
func TestGateRefuse(t *testing.T) {
	w := newWorld(t, input(forecast()))
	r, err := w.gate.Refuse(MalformedRequest, Attempt{
		Principal: "weather", Method: "GET\r\nX: y", URL: "https://user:canary@api.example/a\x1b[2J?key=canary", Detail: "path holds ';'",
	}, Source{Door: DoorProxy, PID: 3, UID: -1})
	if err != nil {
		t.Fatal(err)
	}
	want := Refusal{
		Reason: MalformedRequest, Detail: "path holds ';'", Plugin: "weather", Decision: r.Decision, Method: "GET??X: y",
		URL: "https://api.example/a?[2J", Remedy: "send the request in its canonical form",
	}
	if diff := cmp.Diff(want, r, cmp.AllowUnexported(Refusal{})); diff != "" {
		t.Error(diff)
	}
	record := Record{
		Time: noon, Kind: KindDecision, Attempt: true, Plugin: "weather", Door: DoorProxy, Decision: r.Decision, Reason: "malformed_request",
		Generation: 1, Method: "GET??X: y", Scheme: "https", Host: "api.example", Port: 443, PID: 3, UID: -1, Detail: "path holds ';'",
	}
	if diff := cmp.Diff([]Record{record}, w.recorder.all()); diff != "" {
		t.Error(diff)
	}
	if r, _ := w.gate.Refuse(Granted, Attempt{}, Source{}); r.Reason != NotReady || r.Status() != 503 {
		t.Errorf("Refuse(Granted) is %s", r.Reason)
	}
	for url, want := range map[string]string{
		"": "", "/a?b": "/a", "user@host": "host", "a://u@h@i/x@y": "a://i/x@y", "a://h": "a://h", "u:p@h:443": "h:443", `a://u@h\x@y`: `a://h\x@y`, "a://?u@h": "a://",
	} {
		if got := redactURL(url); got != want {
			t.Errorf("%q is presented as %q", url, got)
		}
	}
}

// TestIDs: ids are UUIDs of version 7 in the order of time, and none is twice.
// TestGateSchemes: the gate reports of the policy in force how a host may be reached.
func TestGateSchemes(t *testing.T) {
	w := newWorld(t, input(forecast()))
	to := get(t, forecastURL).Destination
	if got := w.gate.Schemes("weather", to); !slices.Equal(got, []Scheme{SchemeHTTPS}) {
		t.Errorf("reached by %v", got)
	}
	w.engine.Install(compile(t, input()))
	if got := w.gate.Schemes("weather", to); got != nil {
		t.Errorf("after the revocation: %v", got)
	}
}

func TestIDs(t *testing.T) {
	var ids idSource
	form := regexp.MustCompile(`^[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$`)
	seen := map[string]bool{}
	last := ""
	for i := range 500 {
		id := ids.next(noon.Add(time.Duration(i) * time.Millisecond))
		if !form.MatchString(id) || seen[id] || id <= last {
			t.Fatalf("id %q after %q", id, last)
		}
		seen[id], last = true, id
	}
	for _, id := range []string{ids.next(time.UnixMilli(0x0123456789ab)), NewID(time.UnixMilli(0x0123456789ab))} {
		if got, want := id[:13], "01234567-89ab"; got != want || !form.MatchString(id) {
			t.Errorf("got id %s, want it to begin with the time %s", id, want)
		}
	}
}

// TestGateTogether: admitting, ending, cutting and replacing at once.
func TestGateTogether(t *testing.T) {
	w := newWorld(t, input(withKey(forecast())))
	policy := compile(t, input(withKey(forecast())))
	ctx, cancel := context.WithCancel(t.Context())
	var admitted atomic.Int64
	var group sync.WaitGroup
	group.Go(func() {
		defer cancel()
		for i := 0; i < 300 || admitted.Load() < 100; i++ {
			w.engine.Install(policy)
			w.engine.Revoke(Revocation{ID: fmt.Sprint(i), Plugin: "weather", Level: LevelQuarantine})
			w.engine.Restore(fmt.Sprint(i))
		}
	})
	for range 4 {
		group.Go(func() {
			for ctx.Err() == nil {
				a, err := w.gate.Admit(context.Background(), get(t, forecastURL), Source{})
				if err != nil {
					t.Error(err)
				}
				var ends sync.WaitGroup
				ends.Go(func() { a.StillAllowed() })
				ends.Go(func() { a.Refuse(Revoked, "") })
				ends.Go(func() { _ = a.End(Outcome{}) })
				ends.Go(func() { _ = a.End(Outcome{}) })
				ends.Wait()
				admitted.Add(1)
			}
		})
	}
	group.Wait()
	ends, decisions := 0, 0
	for _, r := range w.recorder.all() {
		if r.Kind == KindEnd {
			ends++
		} else {
			decisions++
		}
	}
	if decisions != ends || decisions == 0 {
		t.Errorf("%d decisions and %d ends are recorded", decisions, ends)
	}
}
