package sidecar

import (
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/chaperone-proxy/chaperone/authz"
	"github.com/chaperone-proxy/chaperone/configs"
)

// TestContainmentWindow compares the window with a list of all refusals since the last
// revocation.
func TestContainmentWindow(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		rule := configs.Containment{
			ID: "probing", Reasons: []string{"method_not_granted"}, Count: rapid.IntRange(1, 5).Draw(t, "count"), Within: authz.Duration(rapid.IntRange(1, 20).Draw(t, "within")), Then: configs.ContainPause,
		}
		c := newContainment()
		c.follow([]configs.Containment{rule})
		var since []int64
		at := time.Unix(0, 1000)
		for range rapid.IntRange(0, 60).Draw(t, "refusals") {
			at = at.Add(time.Duration(rapid.IntRange(0, 8).Draw(t, "step")))
			r := &authz.Record{Kind: authz.KindDecision, Reason: rapid.SampledFrom([]string{"method_not_granted", "path_not_granted"}).Draw(t, "reason"), Allowed: rapid.IntRange(0, 9).Draw(t, "allowed") == 0}
			if r.Reason == "method_not_granted" && !r.Allowed {
				since = append(since, at.UnixNano())
			}
			counted := r.Reason == "method_not_granted" && !r.Allowed
			want := counted && len(since) >= rule.Count && since[len(since)-1]-since[len(since)-rule.Count] <= int64(rule.Within)
			if rapid.IntRange(0, 9).Draw(t, "reload") == 0 {
				c.follow([]configs.Containment{rule}) // keeps the count
			}
			c.observe(r, at)
			select {
			case <-c.tripped:
				if !want {
					t.Fatalf("revoked after %v", since)
				}
			default:
				if want {
					t.Fatalf("not revoked after %v", since)
				}
			}
			if want {
				since = nil
			}
		}
	})
}

// TestContainmentLate counts accesses that were refused after their decision.
func TestContainmentLate(t *testing.T) {
	c := newContainment()
	c.follow([]configs.Containment{{ID: "elsewhere", Reasons: []string{"address_not_allowed"}, Count: 1, Within: 1}})
	c.observe(&authz.Record{Kind: authz.KindEnd, Reason: "address_not_allowed", Allowed: true}, time.Now())
	if len(c.tripped) > 0 {
		t.Error("an access that was allowed revokes")
	}
	c.observe(&authz.Record{Kind: authz.KindEnd, Reason: "address_not_allowed"}, time.Now())
	if len(c.tripped) != 1 {
		t.Error("an address that was refused after the decision is not counted")
	}
}

func TestContainmentOff(t *testing.T) {
	c := newContainment()
	c.follow([]configs.Containment{{ID: "probing", Reasons: []string{"method_not_granted"}, Count: 1, Within: 1}})
	c.follow(nil)
	c.observe(&authz.Record{Kind: authz.KindDecision, Reason: "method_not_granted"}, time.Now())
	if len(c.tripped) > 0 {
		t.Error("a rule that is gone revokes")
	}
}

// TestContainmentBurst: a rule that is met many times while the plugin is being revoked hides no
// other one, and the one that revokes the most comes first.
func TestContainmentBurst(t *testing.T) {
	c := newContainment()
	c.follow([]configs.Containment{
		{ID: "probing", Reasons: []string{"method_not_granted"}, Count: 1, Within: authz.Duration(time.Hour), Then: configs.ContainPause},
		{ID: "storm", Reasons: []string{"method_not_granted"}, Count: 100, Within: authz.Duration(time.Hour), Then: configs.ContainStop},
	})
	for range 100 {
		c.observe(&authz.Record{Kind: authz.KindDecision, Reason: "method_not_granted"}, time.Now())
	}
	<-c.tripped
	got := c.take()
	if len(got) != 2 || got[0].ID != "storm" || got[1].ID != "probing" {
		t.Errorf("taken are %+v", got)
	}
	if len(c.tripped) != 0 || len(c.take()) != 0 {
		t.Error("rules are taken twice")
	}
}
