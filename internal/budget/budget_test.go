package budget_test

import (
	"context"
	"errors"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"
	"pgregory.net/rapid"

	"github.com/chaperone-proxy/chaperone/internal/budget"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func held(b *budget.Budget) (sum int64) {
	for _, kind := range budget.Kinds() {
		bytes, _ := b.Held(kind)
		sum += bytes
	}
	return sum
}

// TestSum takes and gives in any order: what is held is what was taken and not
// given back, never more than the limit, and nothing once all have ended.
func TestSum(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		limit := rapid.Int64Range(0, 1000).Draw(t, "limit")
		b := budget.New(limit)
		type mine struct {
			*budget.Holding
			of    [5]int64
			ended bool
		}
		var all []*mine
		var sum int64
		for range rapid.IntRange(1, 60).Draw(t, "steps") {
			if len(all) == 0 || rapid.Bool().Draw(t, "hold") && len(all) < 5 {
				all = append(all, &mine{Holding: b.Hold()})
			}
			h := all[rapid.IntRange(0, len(all)-1).Draw(t, "which")]
			kind, n := budget.Kind(rapid.IntRange(0, 4).Draw(t, "kind")), rapid.Int64Range(0, 400).Draw(t, "n")
			switch rapid.IntRange(0, 4).Draw(t, "what") {
			case 0:
				h.Give(kind, n)
				n = min(n, h.of[kind])
				h.of[kind] -= n
				sum -= n
			case 1:
				h.End()
				for i := range h.of {
					sum -= h.of[i]
				}
				h.of, h.ended = [5]int64{}, true
			default:
				err := h.Take(kind, n)
				switch {
				case h.ended && !errors.Is(err, budget.ErrEnded), !h.ended && (err == nil) != (sum+n <= limit):
					t.Fatalf("take %d of %d, %d are taken: %v", n, limit, sum, err)
				case err == nil:
					h.of[kind] += n
					sum += n
				}
			}
			if got := held(b); got != sum || got > limit {
				t.Fatalf("%d of %d are held, want %d", got, limit, sum)
			}
		}
		for _, h := range all {
			h.End()
			h.End()
		}
		if got := held(b); got != 0 {
			t.Fatalf("%d are held of nothing", got)
		}
	})
}

// TestConcurrently has many take, wait and end at the same time.
func TestConcurrently(t *testing.T) {
	b := budget.New(100)
	var running sync.WaitGroup
	for i := range 50 {
		running.Go(func() {
			for range 100 {
				h := b.Hold()
				_ = h.Take(budget.Kind(i%5), int64(i))
				_ = h.TakeWithin(t.Context(), time.Millisecond, budget.Body, 30)
				h.Give(budget.Body, 7)
				running.Go(h.End)
				h.End()
			}
		})
	}
	running.Wait()
	if got := held(b); got != 0 {
		t.Errorf("%d are held of nothing", got)
	}
}

func TestTakeWithin(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := budget.New(10)
		first, second := b.Hold(), b.Hold()
		if err := first.Take(budget.Decoder, 8); err != nil {
			t.Fatal(err)
		}
		began := time.Now()
		if err := second.TakeWithin(t.Context(), time.Second, budget.Decoder, 3); !errors.Is(err, budget.ErrFull) || time.Since(began) != time.Second {
			t.Errorf("after %v: %v", time.Since(began), err)
		}
		time.AfterFunc(time.Second, func() { first.Give(budget.Decoder, 1) })
		began = time.Now()
		if err := second.TakeWithin(t.Context(), time.Minute, budget.Decoder, 3); err != nil || time.Since(began) != time.Second {
			t.Errorf("after %v: %v", time.Since(began), err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		time.AfterFunc(time.Second, cancel)
		if err := second.TakeWithin(ctx, time.Minute, budget.Body, 3); !errors.Is(err, budget.ErrFull) {
			t.Errorf("after its context: %v", err)
		}
		if _, refused := b.Held(budget.Decoder); refused != 1 {
			t.Errorf("%d are counted as refused", refused)
		}
		time.AfterFunc(time.Second, second.End)
		if err := second.TakeWithin(t.Context(), time.Minute, budget.Body, 9); !errors.Is(err, budget.ErrEnded) {
			t.Errorf("of what ended: %v", err)
		}
	})
}
