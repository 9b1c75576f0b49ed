package authz

import (
	"context"
	"strings"
	"sync"
	"testing"
	"time"
)

// noon is when most tests take place.
var noon = time.Date(2026, 11, 21, 12, 0, 0, 0, time.UTC)

// compile compiles the input, which must be without a problem.
func compile(tb testing.TB, in Input) *Policy {
	tb.Helper()
	policy, problems := Compile(in, noon)
	for _, p := range problems {
		tb.Errorf("%s %s: %s: %s", p.Kind, p.Name, p.Path, p.Message)
	}
	if len(problems) > 0 {
		tb.FailNow()
	}
	return policy
}

// snapshot returns the first generation of the input.
func snapshot(tb testing.TB, in Input, revocations ...Revocation) *Snapshot {
	tb.Helper()
	return newSnapshot(compile(tb, in), revocations, 1)
}

// get returns the request of weather for a URL, with a method before it unless
// it is GET.
func get(tb testing.TB, what string) Request {
	tb.Helper()
	method, url, ok := strings.Cut(what, " ")
	if !ok {
		method, url = "GET", what
	}
	scheme, rest, ok := strings.Cut(url, "://")
	if !ok {
		tb.Fatalf("%q is not a URL", url)
	}
	authority, target := rest, ""
	if i := strings.IndexAny(rest, "/?"); i >= 0 {
		authority, target = rest[:i], rest[i:]
	}
	d, err := NewDestination(Scheme(scheme), authority, target)
	if err != nil {
		tb.Fatal(err)
	}
	req := Request{Principal: "weather", Destination: d}
	if d.Scheme().HTTP() {
		if req.Action, err = NewAction(method, ""); err != nil {
			tb.Fatal(err)
		}
	}
	return req
}

// forecast returns a grant as small as can be.
func forecast() Grant {
	return Grant{
		Name: "weather", Plugin: "weather", NotAfter: noon.AddDate(0, 1, 0),
		Rules: []Rule{{
			ID: "read-forecast", Reason: "Shows the forecast", To: To{Hosts: []string{"api.weather.example"}},
			Methods: []string{"GET"}, Paths: []string{"/v1/forecast/*"},
		}},
	}
}

// withKey gives the grant's first rule a credential.
func withKey(g Grant) Grant {
	g.Rules[0].Credential = "key"
	g.Credentials = []CredentialSpec{{
		Name: "key", Vault: VaultPath{Path: "secret/data/weather"},
		Inject: Inject{Header: "Authorization", Value: "Bearer {api_key}"},
	}}
	return g
}

func input(grants ...Grant) Input { return Input{Plugin: "weather", Grants: grants} }

const forecastURL = "https://api.weather.example/v1/forecast/berlin"

// recorder keeps its records, unless it is broken.
type recorder struct {
	mu      sync.Mutex
	broken  error
	records []Record
	log     *[]string // of the order of effects, shared with a source
}

func (r *recorder) Record(record *Record) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.log != nil {
		*r.log = append(*r.log, "record "+string(record.Kind))
	}
	if r.broken != nil {
		return r.broken
	}
	r.records = append(r.records, *record)
	return nil
}

func (r *recorder) all() []Record {
	r.mu.Lock()
	defer r.mu.Unlock()
	return append([]Record(nil), r.records...)
}

// source hands out one credential, or an error.
type source struct {
	credential Credential
	err        error
	log        *[]string
	meanwhile  func() // happens while a credential is fetched
}

func (s *source) Credential(context.Context, CredentialRef) (Credential, error) {
	if s.meanwhile != nil {
		s.meanwhile()
	}
	if s.log != nil {
		*s.log = append(*s.log, "credential")
	}
	return s.credential, s.err
}

func apiKey(value string) Credential {
	return Credential{Fields: map[string]Secret{"api_key": NewSecret(value)}, Generation: 1, Lease: "lease-1"}
}

// world is a gate and what it is made of. Its clock stands still unless a test
// moves it.
type world struct {
	gate     *Gate
	engine   *Engine
	ledger   *Ledger
	recorder *recorder
	source   *source
	crossed  []Crossing

	mu  sync.Mutex
	now time.Time
}

func newWorld(tb testing.TB, in Input) *world {
	tb.Helper()
	w := &world{
		engine: &Engine{}, ledger: NewLedger(), recorder: &recorder{}, source: &source{credential: apiKey("hunter2")}, now: noon,
	}
	w.engine.Install(compile(tb, in))
	var err error
	w.gate, err = NewGate(GateConfig{
		Engine: w.engine, Ledger: w.ledger, Recorder: w.recorder, Credentials: w.source, Now: w.clock,
		Crossed: func(c Crossing) { w.crossed = append(w.crossed, c) },
	})
	if err != nil {
		tb.Fatal(err)
	}
	return w
}

func (w *world) clock() time.Time {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.now
}

func (w *world) advance(d time.Duration) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.now = w.now.Add(d)
}

// admit admits a request, which must not fail for a cause outside the policy.
func (w *world) admit(tb testing.TB, req Request) *Admission {
	tb.Helper()
	a, err := w.gate.Admit(tb.Context(), req, Source{Door: DoorProxy, UID: -1})
	if err != nil {
		tb.Fatal(err)
	}
	return a
}
