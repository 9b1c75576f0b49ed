package session_test

import (
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/chaperone-proxy/chaperone/authz"
	"github.com/chaperone-proxy/chaperone/proxy/session"
)

// TestRevalidateReturnsAfterLastMessages cuts as many sessions as one plugin's pools hold:
// they have their last messages when the answer to the revocation comes.
func TestRevalidateReturnsAfterLastMessages(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const sessions = 200
		engine := new(authz.Engine)
		r := session.NewRegistry(engine)
		var messages atomic.Int32
		for range sessions {
			r.Add(&session.Session{
				Recheck: func() bool { return engine.Current().Generation() == 0 },
				OnCut:   func(error) {},
				AfterCut: func(error) {
					time.Sleep(10 * time.Microsecond) // as the system calls take
					messages.Add(1)
				},
			})
		}
		engine.Bump()
		if cut := r.Revalidate(); cut != sessions || messages.Load() != sessions {
			t.Errorf("%d sessions were cut and %d had their last message, want %d", cut, messages.Load(), sessions)
		}
	})
}

// TestRevalidateDoesNotAwaitAThousand leaves the last messages of more sessions than end in
// good time to a helper.
func TestRevalidateDoesNotAwaitAThousand(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		engine := new(authz.Engine)
		r := session.NewRegistry(engine)
		begin := make(chan struct{})
		var messages atomic.Int32
		for range 1000 {
			r.Add(&session.Session{
				Recheck: func() bool { return engine.Current().Generation() == 0 },
				OnCut:   func(error) {},
				AfterCut: func(error) {
					<-begin
					messages.Add(1)
				},
			})
		}
		engine.Bump()
		before := time.Now()
		if cut := r.Revalidate(); cut != 1000 || time.Since(before) != 0 || messages.Load() != 0 {
			t.Errorf("%d sessions were cut, in %s, and %d had their last message, want 1000 at once without one", cut, time.Since(before), messages.Load())
		}
		close(begin)
		r.WaitPass()
		if messages.Load() != 1000 {
			t.Errorf("%d sessions had their last message, want all", messages.Load())
		}
	})
}
