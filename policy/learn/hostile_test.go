package learn_test

import (
	"fmt"
	"math/rand/v2"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/chaperone-proxy/chaperone/policy/learn"
)

// A plugin can make paths whose subtrees are large at each of 30 levels.
func TestProposeCopiesLittle(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	l := learn.New()
	for i := range 10_000 {
		var path strings.Builder
		for range 30 {
			if rng.IntN(2) == 0 {
				fmt.Fprintf(&path, "/%d", rng.IntN(7))
			} else {
				fmt.Fprintf(&path, "/w%c", 'a'+rng.IntN(3))
			}
		}
		l.Add(learn.Access{Request: request(t, "GET https://h.example/w"+path.String()), Time: noon.Add(time.Duration(i) * time.Second)})
	}
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	l.Propose(terms)
	runtime.ReadMemStats(&after)
	if allocated := (after.TotalAlloc - before.TotalAlloc) >> 20; allocated > 1000 {
		t.Errorf("Propose allocated %d MiB for 10,000 paths, want at most 1000", allocated)
	}
}

func TestWildcardHostOfMixedHosts(t *testing.T) {
	all := append(repeat(9, "GET https://b%d.tiles.example.com/x"), repeat(30, "GET https://s%d.github.io/x")...)
	all = append(all, "GET https://evil.example/x")
	got := text(t, propose(t, accesses(t, all...)))
	if want := "# 9 of 40 hosts are below one name: to grant all below it, put \"*.tiles.example.com\" in place of them\n"; !strings.Contains(got, want) {
		t.Errorf("the proposal lacks %q:\n%s", want, got)
	}
}
