package gameday

import (
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/chaperone-proxy/chaperone/audit"
	"github.com/chaperone-proxy/chaperone/authz"
)

// after returns a time after the turn, in milliseconds.
func after(ms int) time.Time {
	return time.Date(2026, 11, 30, 12, 0, 0, 0, time.UTC).Add(time.Duration(ms) * time.Millisecond)
}

// perfect is a measurement that has all points.
func perfect() Measurement {
	return Measurement{
		Plugin: "gameday-7", Seed: 7, Started: after(-1000), Turned: after(0), LastByte: after(2000),
		Log:          &Observed{FirstRefusal: after(10), Revoked: after(2001), Refusals: map[string]int{"guardrail": 3}, Destination: "orders.gameday.test", Sent: 704},
		LeakedBefore: new(int64(640)), LeakedAfter: new(int64(0)), Pieces: 10, PieceBytes: 64,
		Tried: map[string]int{"bypass": 1, "collector": 1, "dns": 1, "metadata": 1, "name": 1}, Reached: new(0),
		Chain: true, Evidence: "evidence.tar.gz", Answer: &Answer{Pieces: 10, Destination: "orders.gameday.test"},
	}
}

func TestScore(t *testing.T) {
	for _, c := range []struct {
		name   string
		change func(m *Measurement)
		figure string // that loses points
		points int    // that it has
		why    string
		total  int
		grade  string
	}{
		{"perfect", func(*Measurement) {}, "", 0, "", 100, "A"},
		{"stated what was on its way", func(m *Measurement) { m.Answer.Pieces = 11 }, "", 0, "", 100, "A"},
		{"late refusal", func(m *Measurement) { m.Log.FirstRefusal = after(7500) }, "firstRefusal", 5, "7500 ms, and the target is at most 5000", 95, "A"},
		{"no refusal", func(m *Measurement) { m.Log.FirstRefusal = time.Time{} }, "firstRefusal", 0, "not measured: no refusal", 90, "A"},
		{"late revocation", func(m *Measurement) { m.Log.Revoked, m.LastByte = after(600_000), after(600_000) }, "revoke", 10, "600000 ms", 90, "A"},
		{"far too late", func(m *Measurement) { m.Log.Revoked, m.LastByte = after(900_000), after(900_000) }, "revoke", 0, "900000 ms", 80, "F"},
		{"slow cut", func(m *Measurement) { m.LastByte = after(2551) }, "cut", 5, "550 ms", 95, "A"},
		{"nothing leaked", func(m *Measurement) { m.LastByte = time.Time{} }, "cut", 0, "no byte leaked", 90, "A"},
		{"bypassed", func(m *Measurement) { m.Reached = new(1) }, "bypass", 0, "1 count", 85, "F"},
		{"metadata admitted", func(m *Measurement) { m.Log.Metadata = 2 }, "bypass", 0, "2 count", 85, "F"},
		{"listeners not proved", func(m *Measurement) { m.Reached = nil }, "bypass", 0, "not proved to count", 85, "F"},
		{"a way not tried", func(m *Measurement) { delete(m.Tried, "dns") }, "bypass", 0, "did not try dns", 85, "F"},
		{"much leaked", func(m *Measurement) { m.LeakedBefore = new(int64(4 * targetLeaked)) }, "leakedBefore", 0, "1048576 bytes", 95, "A"},
		{"leaked after", func(m *Measurement) { m.LeakedAfter = new(int64(1)) }, "leakedAfter", 0, "1 bytes", 85, "F"},
		{"admitted after", func(m *Measurement) { m.Log.AdmittedAfter = 1 }, "admittedAfter", 0, "1 count", 95, "F"},
		{"log edited", func(m *Measurement) { m.Chain, m.ChainFault = false, "record 3: hash" }, "chain", 0, "record 3: hash", 95, "F"},
		{"no evidence", func(m *Measurement) { m.Evidence, m.EvidenceFault = "", "the bundle is missing" }, "evidence", 0, "the bundle is missing", 95, "A"},
		{"wrong number", func(m *Measurement) { m.Answer.Pieces = 9 }, "answerPieces", 0, "9 pieces were stated, 10 arrived", 95, "A"},
		{"too many", func(m *Measurement) { m.Answer.Pieces = 12 }, "answerPieces", 0, "records 11 as sent", 95, "A"},
		{"wrong host", func(m *Measurement) { m.Answer.Destination = "evil.test" }, "answerDestination", 0, `"evil.test" was stated`, 95, "A"},
		{"no answer", func(m *Measurement) { m.Answer = nil }, "answerPieces", 0, "not measured: there was no answer", 90, "A"},
		{"no piece length", func(m *Measurement) { m.PieceBytes = 0 }, "answerPieces", 0, "not measured", 95, "A"},
		{"servers full", func(m *Measurement) { m.LeakedAfter = nil }, "leakedAfter", 0, "not measured: the servers did not count", 85, "F"},
		{"never revoked", func(m *Measurement) { m.Log.Revoked = time.Time{} }, "revoke", 0, "not measured: access was not revoked", 45, "F"},
		{"no log", func(m *Measurement) { m.Log, m.Chain = nil, false }, "firstRefusal", 0, "not measured: the audit log cannot be read", 5, "F"},
		{"no turn", func(m *Measurement) { m.Turned = time.Time{} }, "revoke", 0, "not measured: the plugin did not turn", 35, "F"},
		{"nothing measured", func(m *Measurement) { *m = Measurement{} }, "bypass", 0, "not measured", 0, "F"},
	} {
		t.Run(c.name, func(t *testing.T) {
			m := perfect()
			c.change(&m)
			card := Score(m)
			if card.Points != c.total || card.Grade != c.grade || card.Max != 100 || card.Passed != (c.grade != "F") {
				t.Errorf("%d of %d points, grade %s, passed %v; want %d, %s\n%s", card.Points, card.Max, card.Grade, card.Passed, c.total, c.grade, card.Markdown())
			}
			for _, f := range card.Figures {
				if f.ID == c.figure && (f.Points != c.points || !strings.Contains(f.Why, c.why)) {
					t.Errorf("%s has %d points: %s", f.ID, f.Points, f.Why)
				}
				if (f.Points < f.Max) != (f.Why != "") || f.Measured == nil && f.Points != 0 {
					t.Errorf("%s: %d of %d points, and why is %q", f.ID, f.Points, f.Max, f.Why)
				}
			}
		})
	}
}

// TestStable checks the JSON of a card: equal measurements have equal bytes, and every figure
// is there, measured or not.
func TestStable(t *testing.T) {
	one, err := json.Marshal(Score(perfect()))
	if err != nil {
		t.Fatal(err)
	}
	if two, _ := json.Marshal(Score(perfect())); string(one) != string(two) {
		t.Errorf("%s\n%s", one, two)
	}
	const want = `{"plugin":"gameday-7","seed":7,"auto":false,"started":"2026-11-30T11:59:59Z","turned":"2026-11-30T12:00:00Z","grade":"A","passed":true,"points":100,"max":100,"figures":[{"id":"firstRefusal","measured":10,"unit":"ms","target":5000,"points":10,"max":10,"required":false},`
	if !strings.HasPrefix(string(one), want) {
		t.Errorf("got %s", one)
	}
	empty := Score(Measurement{})
	if len(empty.Figures) != len(Score(perfect()).Figures) || empty.Turned != nil || empty.Figures[0].Measured != nil {
		t.Errorf("%+v", empty)
	}
}

func TestObserver(t *testing.T) {
	access := func(ms int, kind authz.Kind, allowed bool, reason, host string, sent int64) audit.Entry {
		return audit.Entry{Time: after(ms), Kind: string(kind), Allowed: &allowed, Reason: reason, Host: host, SentBytes: sent}
	}
	counted := access(30, authz.KindDecision, false, "guardrail", "169.254.169.254", 0)
	counted.Count = 4
	dialled := access(40, authz.KindEnd, true, "granted", "meta.test", 0)
	dialled.Address = "::ffff:169.254.169.254"
	o := NewObserver(after(0), after(1000))
	for _, e := range []audit.Entry{
		access(-1, authz.KindDecision, false, "before", "a.test", 0), // the turn
		access(10, authz.KindDecision, true, "granted", "a.test", 0),
		access(20, authz.KindDecision, false, "guardrail", "169.254.169.254", 0),
		counted, dialled,
		access(50, authz.KindEnd, true, "granted", "b.test", 5),
		{Time: after(100), Kind: string(authz.KindRevocation)},
		access(101, authz.KindEnd, false, "revoked", "a.test", 64),
		access(110, authz.KindDecision, true, "granted", "a.test", 0),
		{Time: after(200), Kind: string(authz.KindRevocation)},
		access(1001, authz.KindDecision, true, "granted", "a.test", 0),
	} {
		o.Add(&e)
	}
	got := o.Observed()
	if !got.FirstRefusal.Equal(after(20)) || !got.Revoked.Equal(after(100)) || got.Refusals["guardrail"] != 5 || len(got.Refusals) != 1 ||
		got.AdmittedAfter != 1 || got.Metadata != 1 || got.Destination != "a.test" || got.Sent != 64 {
		t.Errorf("%+v", got)
	}
	late := NewObserver(after(0), after(50))
	late.Add(&audit.Entry{Time: after(60), Kind: string(authz.KindRevocation)})
	if at := late.Observed().Revoked; !at.IsZero() {
		t.Errorf("the end of the exercise counts as the responder's revocation, at %s", at)
	}
}
