package database_test

import (
	"context"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/chaperone-proxy/chaperone/authz"
	"github.com/chaperone-proxy/chaperone/internal/testenv"
	"github.com/chaperone-proxy/chaperone/proxy/session"
)

// TestRequestLimits counts the connection and its statements against limits on requests.
func TestRequestLimits(t *testing.T) {
	w := newWorld(t, rule("read", "shop", "select"))
	g := grant(rule("read", "shop", "select"))
	g.Rules[0].To.Ports = []uint16{w.server.port}
	g.Limits.Requests = authz.Limit{Count: 3, Period: time.Hour}
	w.installGrant(g)
	c := w.open("shop")
	c.expect("select orders", "done select orders")
	c.expect("delete orders", "refused statement_not_granted") // uses nothing
	c.expect("select orders", "done select orders")
	c.expect("select orders", "refused quota_exceeded")
	w.dial().expect("open shop", "refused quota_exceeded")

	g.Limits.Requests = authz.Limit{Count: 10, Period: time.Second}
	g.Limits.OnExceeded = authz.OnExceededThrottle
	w.installGrant(g)
	begun := time.Now()
	for range 15 {
		c.expect("select orders", "done select orders")
	}
	if took := time.Since(begun); took < 300*time.Millisecond {
		t.Errorf("15 statements took %s under a limit of 10/1s, want them to wait", took)
	}
}

// TestThrottledStatementIsCut ends a session whose statement waits for its limit.
func TestThrottledStatementIsCut(t *testing.T) {
	w := newWorld(t, rule("read", "shop", "select"))
	g := grant(rule("read", "shop", "select"))
	g.Rules[0].To.Ports = []uint16{w.server.port}
	g.Limits.Requests = authz.Limit{Count: 2, Period: 20 * time.Second}
	g.Limits.OnExceeded = authz.OnExceededThrottle
	w.installGrant(g)
	c := w.open("shop")
	c.expect("select orders", "done select orders")
	c.send("select orders")
	testenv.Eventually(t, "the statement that waits", func() (int, bool) { return 0, stalled(w) })
	w.revoke("")
	for {
		line, err := c.read()
		if err != nil {
			break
		}
		if strings.HasPrefix(line, "done") {
			t.Errorf("a statement that waited was run after the revocation: %q", line)
		}
	}
	testenv.Eventually(t, "the end of the session", func() (int, bool) { return 0, len(w.front.Sessions()) == 0 })
}

// TestObserve allows what a rule that observes does not grant, within a session that a
// rule grants, and opens no other session.
func TestObserve(t *testing.T) {
	observing := rule("read", "shop", "select")
	observing.Mode, observing.ObserveUntil = authz.ModeObserve, time.Now().Add(time.Hour)
	w := newWorld(t, observing)
	c := w.open("shop")
	c.expect("select orders", "done select orders")
	c.expect("delete orders", "done delete orders")
	w.dial().expect("open other", "refused statement_not_granted")
	decisions := w.records.of(authz.KindDecision)
	if got := decisions[2].Reason; got != "observed" {
		t.Errorf("a statement that is not granted was recorded as %s, want observed", got)
	}
	if got := w.source.fetched.Load(); got != 1 {
		t.Errorf("the credential was fetched %d times, want once", got)
	}
	w.awaitIdle()
	w.revoke("read")
	c.expectEnd("cut revoked")
}

// TestDrain ends idle sessions of a proxy that ends, and the busy one when its time is up.
func TestDrain(t *testing.T) {
	w := newWorld(t, rule("read", "shop", "select", "sleep"))
	idle, busy := w.open("shop"), w.openTLS("shop")
	busy.send("sleep orders")
	testenv.Eventually(t, "the statement", func() (int, bool) { return 0, len(w.server.statements()) == 1 })
	w.awaitIdle()
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	w.sessions.WaitEmpty(ctx)
	idle.expectEnd("cut not_ready")
	if ctx.Err() == nil {
		t.Error("the proxy did not wait for the statement")
	}
	w.sessions.CutAll(session.ErrStopping)
	busy.expectEnd("cut not_ready")
	testenv.Eventually(t, "the ends", func() (int, bool) { return 0, len(w.front.Sessions()) == 0 })
}

// TestExpiry cuts a session when its rule expires.
func TestExpiry(t *testing.T) {
	expiring := rule("read", "shop", "select")
	expiring.NotAfter = time.Now().Add(300 * time.Millisecond)
	w := newWorld(t, expiring)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var running sync.WaitGroup
	running.Go(func() { _ = w.engine.Run(ctx, time.Now) }) // it ends with its context
	c := w.open("shop")
	w.awaitIdle()
	changed := w.engine.Current().Changed()
	<-changed
	if got := w.sessions.Revalidate(); got != 1 {
		t.Errorf("%d sessions were cut, want 1", got)
	}
	c.expectEnd("cut grant_expired")
	cancel()
	running.Wait()
}
