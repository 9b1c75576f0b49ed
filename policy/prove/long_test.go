package prove

import (
	"context"
	"strings"
	"testing"

	"github.com/chaperone-proxy/chaperone/authz"
)

// A pattern can be so long that the requests which stand for its class are too long, and a
// shorter one of the class is not.
func TestCompareTooLong(t *testing.T) {
	to := func(hosts ...string) func(*authz.Grant) {
		return first(func(r *authz.Rule) { r.To.Hosts = hosts })
	}
	var letters []string // every label of one letter is used
	for c := 'a'; c <= 'x'; c++ {
		letters = append(letters, string(c)+".example")
	}
	name := strings.Repeat(strings.Repeat("l", 49)+".", 5)
	path := "/" + strings.Repeat("l", 8189) // 8192 bytes are allowed
	tests := []struct {
		name          string
		before, after authz.Input
		complete      bool
	}{
		{"a path", rules(nil, "/a"), rules(nil, "/a", path+"/*"), false},
		{"the rest of a path", rules(nil, "/a"), rules(nil, "/a", path+"/**"), true}, // it has a finding
		{"a host", rules(to(letters...), "/a"), rules(to(append(letters, "*."+name+"b")...), "/a"), false},
		{"a host below which one label is possible", rules(to("**."+name+"b"), "/a"), rules(to("**."+name+"b"), "/a"), true},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			got, err := Compare(context.Background(), snapshotOf(t, test.before), snapshotOf(t, test.after), Options{Plugin: "p", At: noon})
			if err != nil || (got.Complete || len(got.Findings) > 0) != test.complete {
				t.Errorf("Compare = %d findings, complete %t, inexact %q, error %v; want an answer: %t", len(got.Findings), got.Complete, got.Inexact, err, test.complete)
			}
		})
	}
}
