package gameday

import (
	"fmt"
	"strings"
	"time"
)

// Ways are the ways out that the plugin tries beside its grant, sorted.
func Ways() []string { return []string{"bypass", "collector", "dns", "metadata", "name"} }

// Measurement is what one exercise measured. A nil pointer and a zero time were not measured.
type Measurement struct {
	Plugin  string
	Seed    uint64
	Auto    bool
	Started time.Time
	// Turned is when the plugin turned.
	Turned time.Time
	// Log is what the audit log records, nil if it cannot be read.
	Log *Observed
	// LastByte is when a server received the last byte of a leak.
	LastByte time.Time
	// LeakedBefore and LeakedAfter are the bytes that servers received before the revocation
	// was recorded, or at most [InFlight] after it, and later.
	LeakedBefore, LeakedAfter *int64
	// Pieces is how many whole pieces the servers received.
	Pieces int64
	// PieceBytes is the length of a piece.
	PieceBytes int64
	// Tried is how often the plugin tried a way out, by way, as it reported itself. Reached is
	// how often such an attempt arrived, as the listeners counted; nil if a listener was not
	// proved to count.
	Tried   map[string]int
	Reached *int
	// Chain is whether the audit log was verified with its key; ChainFault is the first fault.
	Chain      bool
	ChainFault string
	// Evidence is the support bundle that was written after the revocation, "" for none;
	// EvidenceFault is why one does not count.
	Evidence, EvidenceFault string
	// Answer is what the responder stated, nil for no answer.
	Answer *Answer
}

// Answer is what the responder states.
type Answer struct {
	Pieces      int64
	Destination string
}

// InFlight is the time after the record of a revocation in which a server may still read
// what was on its way when the access was cut.
const InFlight = 100 * time.Millisecond

// Figure is one line of the card.
type Figure struct {
	ID       string `json:"id"`
	Measured *int64 `json:"measured"` // null: it was not measured
	Unit     string `json:"unit"`
	Target   int64  `json:"target"` // at most, but for those of unit yes: 1
	Points   int    `json:"points"`
	Max      int    `json:"max"`
	// Required figures that are missed fail the exercise.
	Required bool   `json:"required"`
	Why      string `json:"why,omitempty"` // of lost points
}

// Card is the score card of an exercise.
type Card struct {
	Plugin   string         `json:"plugin"`
	Seed     uint64         `json:"seed"`
	Auto     bool           `json:"auto"`
	Started  time.Time      `json:"started"`
	Turned   *time.Time     `json:"turned"` // null: the plugin did not turn
	Grade    string         `json:"grade"`  // A to D, or F
	Passed   bool           `json:"passed"`
	Points   int            `json:"points"`
	Max      int            `json:"max"`
	Figures  []Figure       `json:"figures"`
	Refusals map[string]int `json:"refusals"` // by reason, from the turn on
	Tried    map[string]int `json:"tried"`    // by way
	Evidence string         `json:"evidence,omitempty"`
}

// The units of figures.
const (
	unitMS    = "ms"
	unitBytes = "bytes"
	unitCount = "count"
	unitYes   = "yes"
)

// The targets of the times and of the bytes before the revocation.
const (
	targetRefusal = 5 * time.Second
	targetRevoke  = 5 * time.Minute
	targetCut     = InFlight
	targetLeaked  = 256 << 10
)

// Score returns the card of an exercise.
func Score(m Measurement) Card {
	c := Card{
		Plugin: m.Plugin, Seed: m.Seed, Auto: m.Auto, Started: m.Started.UTC(), Evidence: m.Evidence, Tried: map[string]int{}, Refusals: map[string]int{},
		Figures: []Figure{
			refusal(m), revoke(m), cut(m), bypass(m), leakedBefore(m), leakedAfter(m), admitted(m), chain(m), evidence(m), pieces(m), destination(m),
		},
	}
	if !m.Turned.IsZero() {
		at := m.Turned.UTC()
		c.Turned = &at
	}
	for _, way := range Ways() {
		c.Tried[way] = m.Tried[way]
	}
	if m.Log != nil && m.Log.Refusals != nil {
		c.Refusals = m.Log.Refusals
	}
	c.Passed = true
	for i := range c.Figures {
		f := &c.Figures[i]
		c.Points += f.Points
		c.Max += f.Max
		c.Passed = c.Passed && (!f.Required || f.Points > 0)
	}
	c.Grade = grade(c.Points, c.Passed)
	c.Passed = c.Grade != failed
	return c
}

// failed is the grade of an exercise that was not passed.
const failed = "F"

func grade(points int, passed bool) string {
	if !passed {
		return failed
	}
	const best, step = 90, 10
	for i, letter := range "ABCD" {
		if points >= best-i*step {
			return string(letter)
		}
	}
	return failed
}

// missing is a figure that was not measured.
func (f Figure) missing(format string, args ...any) Figure {
	f.Why = "not measured: " + fmt.Sprintf(format, args...)
	return f
}

// judge gives all points to a figure that is at most its target, and none to one that is
// graded times higher; between these they fall in proportion. graded 1 is all or none.
func (f Figure) judge(measured int64, graded int64) Figure {
	f.Measured = &measured
	zero := f.Target * graded
	switch {
	case measured <= f.Target:
		f.Points = f.Max
	case measured < zero:
		f.Points = int(int64(f.Max) * (zero - measured) / (zero - f.Target))
	}
	if f.Points < f.Max {
		f.Why = fmt.Sprintf("%d %s, and the target is at most %d", measured, f.Unit, f.Target)
	}
	return f
}

// yes judges a figure that is right or wrong.
func (f Figure) yes(right bool, why string) Figure {
	f.Unit, f.Target = unitYes, 1
	measured := int64(0)
	if right {
		measured, f.Points = 1, f.Max
	} else {
		f.Why = why
	}
	f.Measured = &measured
	return f
}

// The texts of figures that are not measured.
const (
	noLog        = "the audit log cannot be read"
	noTurn       = "the plugin did not turn"
	noRevocation = "access was not revoked"
	noAnswer     = "there was no answer"
)

// unread returns why nothing can be measured from the turn on, "" if it can.
func (m *Measurement) unread() string {
	switch {
	case m.Turned.IsZero():
		return noTurn
	case m.Log == nil:
		return noLog
	}
	return ""
}

// unrevoked is unread, or that there was no revocation.
func (m *Measurement) unrevoked() string {
	if why := m.unread(); why != "" {
		return why
	}
	if m.Log.Revoked.IsZero() {
		return noRevocation
	}
	return ""
}

func refusal(m Measurement) Figure {
	f := Figure{ID: "firstRefusal", Unit: unitMS, Target: targetRefusal.Milliseconds(), Max: 10}
	if why := m.unread(); why != "" {
		return f.missing("%s", why)
	}
	if m.Log.FirstRefusal.IsZero() {
		return f.missing("no refusal was recorded")
	}
	return f.judge(m.Log.FirstRefusal.Sub(m.Turned).Milliseconds(), 2)
}

func revoke(m Measurement) Figure {
	f := Figure{ID: "revoke", Unit: unitMS, Target: targetRevoke.Milliseconds(), Max: 20, Required: true}
	if why := m.unrevoked(); why != "" {
		return f.missing("%s", why)
	}
	return f.judge(m.Log.Revoked.Sub(m.Turned).Milliseconds(), 3)
}

func cut(m Measurement) Figure {
	f := Figure{ID: "cut", Unit: unitMS, Target: targetCut.Milliseconds(), Max: 10}
	switch why := m.unrevoked(); {
	case why != "":
		return f.missing("%s", why)
	case m.LastByte.IsZero():
		return f.missing("no byte leaked, so that there was no stream to cut")
	}
	return f.judge(max(m.LastByte.Sub(m.Log.Revoked), 0).Milliseconds(), 10)
}

func bypass(m Measurement) Figure {
	f := Figure{ID: "bypass", Unit: unitCount, Max: 15, Required: true}
	if m.Reached == nil {
		return f.missing("the listeners were not proved to count")
	}
	if m.Log == nil {
		return f.missing(noLog)
	}
	reached := int64(*m.Reached + m.Log.Metadata)
	if reached > 0 {
		return f.judge(reached, 1)
	}
	var untried []string
	for _, way := range Ways() {
		if m.Tried[way] == 0 {
			untried = append(untried, way)
		}
	}
	if len(untried) > 0 {
		return f.missing("the plugin did not try %s", strings.Join(untried, ", "))
	}
	return f.judge(0, 1)
}

func leakedBefore(m Measurement) Figure {
	f := Figure{ID: "leakedBefore", Unit: unitBytes, Target: targetLeaked, Max: 5}
	switch why := m.unrevoked(); {
	case why != "":
		return f.missing("%s", why)
	case m.LeakedBefore == nil:
		return f.missing("the servers did not count")
	}
	return f.judge(*m.LeakedBefore, 4)
}

func leakedAfter(m Measurement) Figure {
	f := Figure{ID: "leakedAfter", Unit: unitBytes, Max: 15, Required: true}
	switch why := m.unrevoked(); {
	case why != "":
		return f.missing("%s", why)
	case m.LeakedAfter == nil:
		return f.missing("the servers did not count")
	}
	return f.judge(*m.LeakedAfter, 1)
}

func admitted(m Measurement) Figure {
	f := Figure{ID: "admittedAfter", Unit: unitCount, Max: 5, Required: true}
	if why := m.unrevoked(); why != "" {
		return f.missing("%s", why)
	}
	return f.judge(int64(m.Log.AdmittedAfter), 1)
}

func chain(m Measurement) Figure {
	f := Figure{ID: "chain", Unit: unitYes, Max: 5, Required: true}
	return f.yes(m.Chain, "the audit log is not proved: "+m.ChainFault)
}

func evidence(m Measurement) Figure {
	f := Figure{ID: "evidence", Unit: unitYes, Max: 5}
	return f.yes(m.Evidence != "", "no support bundle counts as evidence: "+m.EvidenceFault)
}

// pieces judges the stated number of pieces: at least those that arrived, and at most those
// that the log records as sent. The two differ by what was on its way when access was cut.
func pieces(m Measurement) Figure {
	f := Figure{ID: "answerPieces", Unit: unitYes, Target: 1, Max: 5}
	switch {
	case m.Log == nil:
		return f.missing(noLog)
	case m.Answer == nil:
		return f.missing(noAnswer)
	case m.PieceBytes <= 0:
		return f.missing("a piece has no length")
	}
	most := max(m.Pieces, m.Log.Sent/m.PieceBytes)
	right := m.Answer.Pieces >= m.Pieces && m.Answer.Pieces <= most
	return f.yes(right, fmt.Sprintf("%d pieces were stated, %d arrived, and the log records %d as sent", m.Answer.Pieces, m.Pieces, m.Log.Sent/m.PieceBytes))
}

func destination(m Measurement) Figure {
	f := Figure{ID: "answerDestination", Unit: unitYes, Target: 1, Max: 5}
	switch {
	case m.Log == nil:
		return f.missing(noLog)
	case m.Answer == nil:
		return f.missing(noAnswer)
	}
	stated := strings.TrimSuffix(strings.ToLower(m.Answer.Destination), ".")
	right := m.Log.Destination != "" && stated == m.Log.Destination
	return f.yes(right, fmt.Sprintf("%q was stated, and the log records that most was sent to %q", m.Answer.Destination, m.Log.Destination))
}
