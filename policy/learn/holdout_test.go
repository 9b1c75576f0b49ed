package learn_test

import (
	"fmt"
	"math"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/chaperone-proxy/chaperone/authz"
	"github.com/chaperone-proxy/chaperone/policy/learn"
)

// api draws the requests of a synthetic API.
type api struct {
	r         *rand.Rand
	endpoints []func() string
	weights   []float64 // cumulative
}

// newAPI returns an API with n endpoints, of which few are used much and many rarely, as
// Zipf's law with exponent s has it.
func newAPI(seed uint64, n int, s float64) *api {
	a := &api{r: rand.New(rand.NewPCG(seed, 1))}
	sum := 0.0
	for i := range n {
		a.endpoints = append(a.endpoints, a.endpoint(i))
		sum += math.Pow(float64(i+1), -s)
		a.weights = append(a.weights, sum)
	}
	return a
}

// endpoint returns an endpoint whose paths have words, ids, or words that are rare.
func (a *api) endpoint(i int) func() string {
	host := fmt.Sprintf("https://api%d.example", i%3)
	switch i % 5 {
	case 0:
		return func() string { return fmt.Sprintf("GET %s/v1/users/%d/posts/%d", host, a.r.IntN(1e6), a.r.IntN(50)) }
	case 1:
		return func() string { return fmt.Sprintf("POST %s/v1/things%d", host, i) }
	case 2:
		return func() string {
			return fmt.Sprintf("GET %s/v2/kind%d/%08x-0000-4000-8000-%012x", host, i, a.r.Uint32(), a.r.Uint32())
		}
	case 3:
		return func() string {
			word := int(math.Exp(a.r.Float64() * math.Log(40))) // the smaller ones more often
			return fmt.Sprintf("GET %s/city%d/town-%c%c", host, i, 'a'+word%26, 'a'+word/26)
		}
	}
	return func() string { return fmt.Sprintf("DELETE %s/v1/item%d/%d", host, i, a.r.IntN(1e9)) }
}

func (a *api) draw() string {
	x := a.r.Float64() * a.weights[len(a.weights)-1]
	for i, w := range a.weights {
		if x < w {
			return a.endpoints[i]()
		}
	}
	return a.endpoints[0]()
}

// learnFrom returns the estimate of a proposal, and the share of other requests that it refuses.
func learnFrom(t *testing.T, train, test []authz.Request) (learn.Estimate, float64) {
	t.Helper()
	l := learn.New()
	for i, req := range train {
		l.Add(learn.Access{Request: req, Time: noon.Add(time.Duration(i) * time.Second)})
	}
	p := l.Propose(terms)
	snapshot, problems := granted(p)
	if len(problems) > 0 {
		t.Fatalf("the proposal does not compile: %v", problems)
	}
	refused := 0
	for _, req := range test {
		if !snapshot.Decide(req, authz.Usage{}, noon).Allowed() {
			refused++
		}
	}
	return p.Estimate, float64(refused) / float64(len(test))
}

// TestHoldOut learns from nine tenths of the requests to synthetic APIs, ten times, and
// checks that the share of the other tenth that is refused is what was estimated.
func TestHoldOut(t *testing.T) {
	for _, test := range []struct {
		endpoints, n int
		s            float64
	}{{20, 1000, 1}, {100, 3000, 1}, {300, 3000, 0.8}, {300, 20_000, 1.2}} {
		for seed := range uint64(3) {
			a := newAPI(seed, test.endpoints, test.s)
			var all []authz.Request
			for range test.n {
				all = append(all, request(t, a.draw()))
			}
			var refused, unseen, low, high float64
			const folds = 10
			for fold := range folds {
				var train, held []authz.Request
				for i, req := range all {
					if i%folds == fold {
						held = append(held, req)
					} else {
						train = append(train, req)
					}
				}
				e, share := learnFrom(t, train, held)
				refused, unseen, low, high = refused+share/folds, unseen+e.Unseen/folds, low+e.Low/folds, high+e.High/folds
			}
			// The held-out requests are a sample too.
			noise := 3 * math.Sqrt(max(refused, 1/float64(test.n))/float64(test.n))
			t.Logf("%d endpoints, %d requests, seed %d: refused %.3f %%, estimated %.3f %% (%.3f to %.3f)", test.endpoints, test.n, seed, 100*refused, 100*unseen, 100*low, 100*high)
			if refused < low-noise || refused > high+noise {
				t.Errorf("%d endpoints, %d requests, seed %d: got %.3f %% refused, want %.3f to %.3f %%", test.endpoints, test.n, seed, 100*refused, 100*low, 100*high)
			}
		}
	}
}

// TestWeatherTraffic learns from a day of the weather plugin of the examples, and checks that at
// most 0.1 % of the next day is refused, and that the estimate's interval has that share.
func TestWeatherTraffic(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 1))
	draw := func() string {
		const host = "https://api.weather.example"
		switch x := r.Float64(); {
		case x < 0.6:
			city := int(math.Exp(r.Float64()*math.Log(60))) - 1 // of 59 cities, the first ones more often
			return fmt.Sprintf("GET %s/v1/forecast/city-%c%c", host, 'a'+city/10, 'a'+city%10)
		case x < 0.8:
			return "GET " + host + "/v1/alerts"
		case x < 0.95:
			return fmt.Sprintf("GET %s/v1/stations/%d/readings/2026-%02d-%02d", host, r.IntN(5000), 1+r.IntN(12), 1+r.IntN(28))
		}
		return "POST " + host + "/v1/reports"
	}
	var days [2][]authz.Request
	for day := range days {
		for range 20_000 {
			days[day] = append(days[day], request(t, draw()))
		}
	}
	e, refused := learnFrom(t, days[0], days[1])
	t.Logf("refused %.3f %%, estimated %.3f %% (%.3f to %.3f)", 100*refused, 100*e.Unseen, 100*e.Low, 100*e.High)
	if refused > 0.001 || refused < e.Low || refused > e.High {
		t.Errorf("got %.3f %% refused, want at most 0.1 %% and within the estimate %.3f to %.3f %%", 100*refused, 100*e.Low, 100*e.High)
	}
}

// TestBounds checks that a plugin that makes up paths and hosts costs a bounded amount of
// memory, that it causes no wildcard, and that the rest is reported.
func TestBounds(t *testing.T) {
	l := learn.New()
	const n = 200_000
	for i := range n {
		url := fmt.Sprintf("GET https://api.example/x/w-%dx/%dy/z", i, i)
		switch i % 4 {
		case 1:
			url = fmt.Sprintf("GET https://api.example/y-%dx/%dy/a-b-c/d", i, i)
		case 2:
			url = fmt.Sprintf("GET https://h%dx.example/a/b", i)
		case 3:
			url = fmt.Sprintf("M%d https://api.example/%dk", i, i)
		}
		l.Add(learn.Access{Request: request(t, url), Time: noon})
	}
	p := l.Propose(terms)
	paths := 0
	for _, r := range p.Rules {
		for _, path := range r.Paths {
			if paths++; path == "/*" || path == "/x/*" {
				t.Errorf("%s is granted to a plugin that made up paths", path)
			}
		}
	}
	if p.Left.Bounded == 0 || p.Estimate.Uncovered != p.Left.Bounded || p.Estimate.Accesses != n {
		t.Errorf("got %d accesses beyond the bounds and %+v, want all of them counted", p.Left.Bounded, p.Estimate)
	}
	if size := len(text(t, p)); size > 1<<20 {
		t.Errorf("got a grant of %d bytes with %d rules and %d paths, want one that a file may hold", size, len(p.Rules), paths)
	}
}
