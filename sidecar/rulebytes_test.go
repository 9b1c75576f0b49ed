package sidecar

import (
	"strconv"
	"testing"

	"github.com/chaperone-proxy/chaperone/ebpf"
)

// TestAttribution numbers as many rules as the kernel distinguishes, permanently.
func TestAttribution(t *testing.T) {
	var a ruleNumbers
	if n := a.number("", ""); n != 0 {
		t.Errorf("no rule has number %d", n)
	}
	for i := range uint32(ebpf.MaxRules) {
		want := i + 1
		if want >= ebpf.MaxRules {
			want = 0
		}
		for range 2 {
			if n := a.number("grant", strconv.Itoa(int(i))); n != want {
				t.Fatalf("rule %d: got number %d, want %d", i, n, want)
			}
		}
	}
	a.begin([]ebpf.Traffic{{Rule: 1, SentBytes: 5}})
	got := a.named([]ebpf.Traffic{{Rule: 0, SentBytes: 9}, {Rule: 1, SentBytes: 7}, {Rule: 2, SentBytes: 3}})
	if len(got) != 2 || got[0].rule != "grant/0" || got[0].SentBytes != 2 || got[1].SentBytes != 3 {
		t.Errorf("%+v", got)
	}
}
