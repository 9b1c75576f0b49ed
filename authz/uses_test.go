package authz

import (
	"errors"
	"testing"
)

// An access counts as one that carries its credential from its admission to its
// end, and what is refused never does.
func TestUsesOfACredential(t *testing.T) {
	w := newWorld(t, input(withKey(forecast())))
	uses := &Uses{}
	w.source.credential.Uses = uses
	first, second := w.admit(t, get(t, forecastURL)), w.admit(t, get(t, forecastURL))
	if err := first.End(Outcome{}); err != nil || !uses.Open() {
		t.Fatalf("with one of two ended, open is %v, %v", uses.Open(), err)
	}
	_ = first.End(Outcome{}) // ending again counts nothing
	if !uses.Open() {
		t.Error("an access was ended twice")
	}
	if err := second.End(Outcome{}); err != nil || uses.Open() || uses.Hidden() {
		t.Errorf("with both ended, open is %v, %v", uses.Open(), err)
	}

	w.recorder.broken = errors.New("full")
	if a, err := w.gate.Admit(t.Context(), get(t, forecastURL), Source{}); err == nil || a.Refusal == nil || uses.Open() {
		t.Errorf("what cannot be recorded carries it: %v", err)
	}
	w.recorder.broken = nil
	w.source.meanwhile = func() {
		w.engine.Revoke(Revocation{ID: "r1", Plugin: "weather", Level: LevelQuarantine})
	}
	if a, _ := w.gate.Admit(t.Context(), get(t, forecastURL), Source{}); a.Refusal == nil || uses.Open() {
		t.Errorf("what was overtaken carries it: %+v", a.Decision)
	}
}

// Where an Envoy makes the access nobody sees its end.
func TestUsesThatAreNotSeenToEnd(t *testing.T) {
	for _, refuse := range []bool{true, false} {
		w := newWorld(t, input(withKey(forecast())))
		uses := &Uses{}
		w.source.credential.Uses = uses
		if _, err := w.gate.AdmitAndEnd(t.Context(), get(t, forecastURL), Source{Door: DoorExtAuthz}, func(a *Admission) Outcome {
			if !uses.Open() {
				t.Error("it is not counted while the answer is made")
			}
			if refuse {
				a.Refuse(NotEnforceableHere, "")
			}
			return Outcome{}
		}); err != nil {
			t.Fatal(err)
		}
		if uses.Open() || uses.Hidden() == refuse {
			t.Errorf("refused %v: open %v, hidden %v", refuse, uses.Open(), uses.Hidden())
		}
	}
	var none *Uses
	none.Begin()
	none.Hide()
	none.End()
	if none.Open() || none.Hidden() {
		t.Error("nothing is counted by none")
	}
}
