package learn

import (
	"fmt"
	"math"
	"time"
)

// minEstimate is how many accesses an estimate needs.
const minEstimate = 300

// Estimate is the estimated share of accesses that the proposal would refuse although the
// plugin is as it was. See the package's documentation for its sources.
type Estimate struct {
	// Accesses is N, the number of accesses that were learned from.
	Accesses uint64 `json:"accesses"`
	// Once and Twice are how many patterns were used so often.
	Once  uint64 `json:"once"`
	Twice uint64 `json:"twice"`
	// Uncovered are recorded accesses that the proposal leaves to a person.
	Uncovered uint64 `json:"uncovered"`
	// Known reports whether there were enough accesses for what follows.
	Known bool `json:"known"`
	// Unseen is the estimated share that was not seen yet, from Low to High at 95 %.
	Unseen float64 `json:"unseen"`
	Low    float64 `json:"low"`
	High   float64 `json:"high"`
}

// estimate fills in the shares.
func (e Estimate) complete() Estimate {
	if e.Accesses < minEstimate {
		return e
	}
	n, once, twice := float64(e.Accesses), float64(e.Once), float64(e.Twice)
	const quantile = 1.959964 // of the normal distribution, 97.5 %
	width := quantile * math.Sqrt(max(0, once*(1-once/n)+2*twice)) / n
	e.Known, e.Unseen = true, once/n
	e.Low, e.High = max(0, e.Unseen-width), min(1, max(e.Unseen+width, 3/n))
	return e
}

// String returns the estimate as a sentence without a period.
func (e Estimate) String() string {
	if !e.Known {
		return fmt.Sprintf("%d accesses are too few to say how much is missing; %d are needed", e.Accesses, minEstimate)
	}
	text := fmt.Sprintf("%s of accesses are of kinds not seen yet (Good-Turing from %d accesses; 95 %% interval %s to %s, Esty 1983)",
		share(e.Unseen), e.Accesses, share(e.Low), share(e.High))
	if e.Uncovered > 0 {
		text += fmt.Sprintf("; a further %s were seen and are left to a person", share(float64(e.Uncovered)/float64(e.Accesses)))
	}
	return text
}

func share(x float64) string { return fmt.Sprintf("%.3g %%", 100*x) }

// Calendar is when the accesses were made, in UTC.
type Calendar struct {
	First time.Time `json:"first"`
	Last  time.Time `json:"last"`
	// Hours are the hours of the day, Days the days of the week from Sunday on.
	Hours [24]bool `json:"hours"`
	Days  [7]bool  `json:"days"`
	// MonthEnd reports whether an access was made on the last or the first day of a month.
	MonthEnd bool `json:"monthEnd"`
	// Start reports whether a start of the plugin was recorded.
	Start bool `json:"start"`

	hour int64 // the last one that was added
}

func (c *Calendar) add(at time.Time) {
	if c.First.IsZero() || at.Before(c.First) {
		c.First = at
	}
	if at.After(c.Last) {
		c.Last = at
	}
	const second = 3600
	if hour := at.Unix() / second; hour != c.hour {
		c.hour = hour
		at = at.UTC()
		c.Hours[at.Hour()], c.Days[at.Weekday()] = true, true
		c.MonthEnd = c.MonthEnd || at.Day() == 1 || at.AddDate(0, 0, 1).Day() == 1
	}
}

// Gaps returns what the calendar lacks, as phrases.
func (c *Calendar) Gaps() []string {
	var out []string
	if missing := unset(c.Hours[:], func(i int) string { return fmt.Sprintf("%02d", i) }); missing != "" {
		out = append(out, "the hours "+missing+" (UTC)")
	}
	if missing := unset(c.Days[:], func(i int) string { return time.Weekday(i).String() }); missing != "" {
		out = append(out, missing)
	}
	if !c.MonthEnd {
		out = append(out, "the end of a month")
	}
	if !c.Start {
		out = append(out, "a start of the plugin")
	}
	return out
}

// unset lists the names of what is false, neighbours as a range.
func unset(set []bool, name func(int) string) string {
	text := ""
	for i := 0; i < len(set); i++ {
		if set[i] {
			continue
		}
		end := i
		for end+1 < len(set) && !set[end+1] {
			end++
		}
		if text != "" {
			text += ", "
		}
		if text += name(i); end > i {
			text += " to " + name(end)
		}
		i = end
	}
	return text
}
