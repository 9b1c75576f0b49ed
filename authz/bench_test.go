package authz

import (
	"fmt"
	"math/rand/v2"
	"testing"
	"time"
)

// many returns a policy of n rules, each for a host of its own.
func many(tb testing.TB, n int, hosts func(i int) string, limits bool) *Snapshot {
	tb.Helper()
	g := Grant{Name: "weather", Plugin: "weather", NotAfter: noon.AddDate(1, 0, 0)}
	for i := range n {
		r := Rule{
			ID: fmt.Sprintf("rule-%d", i), Reason: "bench", To: To{Hosts: []string{hosts(i)}},
			Methods: []string{"GET", "POST"}, Paths: []string{"/v1/forecast/*", "/v1/alerts/**"},
		}
		if limits {
			r.Limits.Requests = Limit{1e12, time.Second}
		}
		g.Rules = append(g.Rules, r)
	}
	if limits {
		g.Limits.Requests = Limit{1e12, time.Second}
	}
	return snapshot(tb, input(g))
}

func exactHost(i int) string { return fmt.Sprintf("api-%d.weather.example", i) }

func wildcardHost(i int) string { return "**." + exactHost(i) }

// hostsOf returns random ones of n hosts, in a random order.
func hostsOf(n int, prefix string) []string {
	random := rand.New(rand.NewPCG(1, 2))
	out := make([]string, 1<<14)
	for i := range out {
		out[i] = prefix + exactHost(random.IntN(n))
	}
	return out
}

// BenchmarkDecide decides requests for random hosts. The rows "map" are what
// looking up the host in a plain map costs, in the same run.
func BenchmarkDecide(b *testing.B) {
	for _, n := range []int{10, 1_000, 100_000} {
		b.Run(fmt.Sprintf("map/%d", n), func(b *testing.B) {
			plain := map[string]*int{}
			for i := range n {
				plain[exactHost(i)] = new(int)
			}
			hosts := hostsOf(n, "")
			b.ReportAllocs()
			for i := 0; b.Loop(); i++ {
				if plain[hosts[i&(len(hosts)-1)]] == nil {
					b.Fatal("host is missing")
				}
			}
		})
		for _, kind := range []struct {
			name   string
			hosts  func(int) string
			prefix string
			limits bool
		}{{"exact", exactHost, "", false}, {"wildcard", wildcardHost, "a.b.", false}, {"limits", exactHost, "", true}} {
			b.Run(fmt.Sprintf("%s/%d", kind.name, n), func(b *testing.B) {
				s, hosts := many(b, n, kind.hosts, kind.limits), hostsOf(n, kind.prefix)
				usage, req := NewLedger().Usage(), get(b, forecastURL)
				b.ReportAllocs()
				for i := 0; b.Loop(); i++ {
					req.Destination.host = hosts[i&(len(hosts)-1)]
					if d := s.Decide(req, usage, noon); d.Reason != Granted {
						b.Fatal(d.Reason)
					}
				}
			})
		}
	}
}

// BenchmarkRefuse explains a denial, which a hostile plugin may ask for at will.
func BenchmarkRefuse(b *testing.B) {
	s := many(b, 1000, exactHost, false)
	for _, url := range []string{"https://api-7.weather.example/v2/x", "https://example.org/"} {
		b.Run(url, func(b *testing.B) {
			req := get(b, url)
			b.ReportAllocs()
			for b.Loop() {
				if s.Explain(req, Usage{}, noon).Remedy == "" {
					b.Fatal("no remedy")
				}
			}
		})
	}
}

type nowhere struct{}

func (nowhere) Record(*Record) error { return nil }

// BenchmarkAdmit is the whole way through the gate, without the writing of the
// audit record.
func BenchmarkAdmit(b *testing.B) {
	limited := withKey(forecast())
	limited.Limits.Requests = Limit{1e12, time.Second}
	for _, kind := range []struct {
		name  string
		grant Grant
		url   string
	}{
		{"plain", forecast(), forecastURL},
		{"credential", withKey(forecast()), forecastURL},
		{"credential+limit", limited, forecastURL},
		{"refused", forecast(), "POST " + forecastURL},
	} {
		b.Run(kind.name, func(b *testing.B) {
			engine := &Engine{}
			engine.Install(compile(b, input(kind.grant)))
			gate, err := NewGate(GateConfig{
				Engine: engine, Ledger: NewLedger(), Recorder: nowhere{}, Now: time.Now,
				Credentials: &source{credential: apiKey("hunter2")},
			})
			if err != nil {
				b.Fatal(err)
			}
			req := get(b, kind.url)
			b.ReportAllocs()
			for b.Loop() {
				if _, err := gate.Admit(b.Context(), req, Source{Door: DoorProxy}); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// BenchmarkAdmitCredential is BenchmarkAdmit for each way to inject a credential
// that was rendered before; the row "none" is what it is to be compared with.
func BenchmarkAdmitCredential(b *testing.B) {
	for _, warm := range append([]warmCredential{{name: "none", grant: forecast()}}, warmCredentials(b)...) {
		b.Run(warm.name, func(b *testing.B) {
			engine := &Engine{}
			engine.Install(compile(b, input(warm.grant)))
			gate, err := NewGate(GateConfig{
				Engine: engine, Ledger: NewLedger(), Recorder: nowhere{}, Now: time.Now, Credentials: &source{credential: warm.credential},
			})
			if err != nil {
				b.Fatal(err)
			}
			req := get(b, forecastURL)
			b.ReportAllocs()
			for b.Loop() {
				if _, err := gate.Admit(b.Context(), req, Source{Door: DoorProxy}); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// BenchmarkNewDestination canonicalises.
func BenchmarkNewDestination(b *testing.B) {
	for _, target := range []string{"/v1/forecast/berlin?days=3", "/v1/forecast/m%c3%bcnchen"} {
		b.Run(target, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if _, err := NewDestination(SchemeHTTPS, "api.weather.example:443", target); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
