package authz

import (
	"slices"
	"testing"
	"time"
)

// TestSockets: the sockets of grants in force unite, less what no grant passes.
func TestSockets(t *testing.T) {
	first, second, other := forecast(), forecast(), forecast()
	first.Sockets = []string{"/run/db.sock", "@bus", "/run/docker.sock", "/run/private/a/b"}
	second.Name, second.NotAfter, second.Sockets = "second", noon.Add(time.Hour), []string{"/run/db.sock", "/run/cache.sock"}
	other.Name, other.Plugin, other.Sockets = "other", "other", []string{"/run/other.sock"}
	in := input(first, second, other)
	in.Guardrails = []Guardrail{{Name: "company", Plugins: []string{"weather"}, Never: []Never{
		{ID: "engine", Sockets: []string{"/run/docker.sock"}}, {ID: "private", Sockets: []string{"/run/private/**"}},
	}}}
	revoked := func(level Level, rule string) Revocation {
		return Revocation{ID: "r", Plugin: "weather", Rule: rule, Level: level}
	}
	for _, test := range []struct {
		name        string
		revocations []Revocation
		plugin      Principal
		after       time.Duration
		want        []string
	}{
		{"both grants", nil, "weather", 0, []string{"/run/cache.sock", "/run/db.sock", "@bus"}},
		{"one has ended", nil, "weather", time.Hour, []string{"/run/db.sock", "@bus"}},
		{"both have", nil, "weather", 1000 * time.Hour, nil},
		{"paused", []Revocation{revoked(LevelPause, "")}, "weather", time.Hour, []string{"/run/db.sock", "@bus"}},
		{"quarantined", []Revocation{revoked(LevelQuarantine, "")}, "weather", 0, nil},
		{"halted", []Revocation{revoked(LevelHalt, "")}, "weather", 0, nil},
		{"a rule is", []Revocation{revoked(LevelHalt, "read-forecast")}, "weather", time.Hour, []string{"/run/db.sock", "@bus"}},
		{"another plugin", nil, "other", 0, []string{"/run/other.sock"}},
		{"nobody", nil, "nobody", 0, nil},
	} {
		s := snapshot(t, in, test.revocations...)
		if got := s.Sockets(test.plugin, noon.Add(test.after)); !slices.Equal(got, test.want) {
			t.Errorf("%s: %q, not %q", test.name, got, test.want)
		}
	}
	in.Guardrails[0].Never = []Never{{ID: "abstract", Sockets: []string{"@**"}}, {ID: "all", Sockets: []string{"/run/c**"}}}
	if got, want := snapshot(t, in).Sockets("weather", noon), []string{"/run/db.sock", "/run/docker.sock", "/run/private/a/b"}; !slices.Equal(got, want) {
		t.Errorf("%q, not %q", got, want)
	}
	if got := (&Snapshot{}).Sockets("weather", noon); got != nil {
		t.Errorf("without a policy: %q", got)
	}
}
