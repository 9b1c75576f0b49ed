package authz

import (
	"errors"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// batches is a recorder that takes several records at once.
type batches struct {
	recorder

	together []int
}

func (b *batches) RecordAll(records []*Record) error {
	b.together = append(b.together, len(records))
	for _, r := range records {
		if err := b.Record(r); err != nil {
			return err
		}
	}
	return nil
}

// brief is a world whose recorder takes one record at a time, or several.
func brief(t *testing.T, together bool) (*world, *recorder, *batches) {
	t.Helper()
	w, b := newWorld(t, input(withKey(forecast()))), &batches{}
	if !together {
		return w, w.recorder, b
	}
	var err error
	if w.gate, err = NewGate(GateConfig{Engine: w.engine, Ledger: w.ledger, Recorder: b, Credentials: w.source, Now: w.clock}); err != nil {
		t.Fatal(err)
	}
	return w, &b.recorder, b
}

// TestAdmitAndEnd: what ends with the door's answer leaves the records that any
// access leaves, after the answer was made and before it may be given.
func TestAdmitAndEnd(t *testing.T) {
	for _, together := range []bool{false, true} {
		w, r, b := brief(t, together)
		var order []string
		r.log, w.source.log = &order, &order
		a, err := w.gate.AdmitAndEnd(t.Context(), get(t, forecastURL), Source{Door: DoorExtAuthz, UID: -1}, func(a *Admission) Outcome {
			if a.Injection.Value.Reveal() != "Bearer hunter2" || a.Request.Destination.Host() != "api.weather.example" {
				t.Errorf("finishes %+v", a)
			}
			order = append(order, "answer")
			w.advance(time.Second)
			return Outcome{Detail: "done"}
		})
		if err != nil || a.Refusal != nil || a.Decision.Reason != Granted {
			t.Fatalf("%+v, %v", a.Decision, err)
		}
		if want := []string{"credential", "answer", "record decision", "record end"}; !slices.Equal(order, want) {
			t.Errorf("the order was %q", order)
		}
		if err := a.End(Outcome{Detail: "again"}); err != nil || len(r.all()) != 2 {
			t.Errorf("ended again: %v, %d records", err, len(r.all()))
		}
		decision := Record{
			Time: noon.Add(time.Second), Kind: KindDecision, Plugin: "weather", Door: DoorExtAuthz, Decision: a.ID, Allowed: true, Reason: "granted",
			Grant: "weather", Rule: "read-forecast", Generation: 1, Method: "GET", Scheme: "https", Host: "api.weather.example", Port: 443,
			Path: "/v1/forecast/berlin", Pattern: "/v1/forecast/*", Credential: "key", Lease: "lease-1", UID: -1, Latency: time.Second,
		}
		end := decision
		end.Kind, end.Detail = KindEnd, "done"
		if diff := cmp.Diff([]Record{decision, end}, r.all()); diff != "" {
			t.Errorf("records (-want +got):\n%s", diff)
		}
		if together != slices.Equal(b.together, []int{2}) {
			t.Errorf("written together: %v", b.together)
		}
	}
}

// TestAdmitAndEndRefused: what is refused is not finished, and what finishing
// refuses was decided otherwise.
func TestAdmitAndEndRefused(t *testing.T) {
	w, r, b := brief(t, true)
	a, err := w.gate.AdmitAndEnd(t.Context(), get(t, "POST "+forecastURL), Source{}, func(*Admission) Outcome {
		t.Error("a refused access is finished")
		return Outcome{}
	})
	if err != nil || a.Refusal == nil || a.Refusal.Reason != MethodNotGranted || len(r.all()) != 1 || b.together != nil {
		t.Fatalf("%+v, %v, %d records", a.Decision, err, len(r.all()))
	}
	a, err = w.gate.AdmitAndEnd(t.Context(), get(t, forecastURL), Source{}, func(a *Admission) Outcome {
		if refusal := a.Refuse(NotEnforceableHere, "not here"); refusal.Detail != "not here" {
			t.Errorf("%+v", refusal)
		}
		if err := a.End(Outcome{Detail: "too early"}); err != nil {
			t.Error(err)
		}
		return Outcome{Detail: "not here"}
	})
	if err != nil || a.Refusal != nil || a.StillAllowed() {
		t.Errorf("%+v, %v", a.Refusal, err)
	}
	records := r.all()[1:]
	if len(records) != 2 || !records[0].Allowed || records[0].Reason != "granted" || records[1].Allowed || records[1].Reason != "not_enforceable_here" || records[1].Detail != "not here" {
		t.Errorf("recorded %+v", records)
	}
}

// TestAdmitAndEndUnrecorded: where either record cannot be written, the answer
// is void.
func TestAdmitAndEndUnrecorded(t *testing.T) {
	for _, together := range []bool{false, true} {
		w, r, _ := brief(t, together)
		for _, refuses := range []bool{false, true} {
			r.broken = errBroken
			a, err := w.gate.AdmitAndEnd(t.Context(), get(t, forecastURL), Source{}, func(a *Admission) Outcome {
				if refuses {
					a.Refuse(NotEnforceableHere, "")
				}
				return Outcome{}
			})
			if !errors.Is(err, errBroken) || a.Refusal == nil || a.Refusal.Reason != AuditUnavailable || a.Injection != (Injection{}) || a.StillAllowed() {
				t.Errorf("%+v, %v", a.Decision, err)
			}
		}
	}
	w, r, _ := brief(t, false)
	second := &secondBroken{recorder: r}
	w.gate.cfg.Recorder = second
	a, err := w.gate.AdmitAndEnd(t.Context(), get(t, forecastURL), Source{}, func(*Admission) Outcome { return Outcome{} })
	if !errors.Is(err, errBroken) || a.Refusal == nil || a.Refusal.Reason != AuditUnavailable {
		t.Errorf("without its end: %+v, %v", a.Decision, err)
	}
}

// secondBroken writes one record and no more.
type secondBroken struct {
	*recorder

	written int
}

func (s *secondBroken) Record(r *Record) error {
	if s.written++; s.written > 1 {
		return errBroken
	}
	return s.recorder.Record(r)
}
