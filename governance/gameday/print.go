package gameday

import (
	"fmt"
	"strconv"
	"strings"
)

// Value returns what was measured, for people.
func (f Figure) Value() string {
	switch {
	case f.Measured == nil:
		return "none"
	case f.Unit == unitYes && *f.Measured == 1:
		return "yes"
	case f.Unit == unitYes:
		return "no"
	}
	return quantity(*f.Measured, f.Unit)
}

// Goal returns the target, for people.
func (f Figure) Goal() string {
	switch {
	case f.Unit == unitYes:
		return "yes"
	case f.Target == 0:
		return "0"
	}
	return "at most " + quantity(f.Target, f.Unit)
}

func quantity(n int64, unit string) string {
	if unit == unitCount {
		return strconv.FormatInt(n, 10)
	}
	return fmt.Sprintf("%d %s", n, unit)
}

// Markdown returns the card as a document.
func (c Card) Markdown() string {
	var b strings.Builder
	cell := strings.NewReplacer("|", `\|`, "\n", " ")
	result := "not passed"
	if c.Passed {
		result = "passed"
	}
	fmt.Fprintf(&b, "# Exercise of an incident: %s, grade %s, %d of %d points\n\n", result, c.Grade, c.Points, c.Max)
	fmt.Fprintf(&b, "Plugin %s, seed %d, started %s.\n\n", c.Plugin, c.Seed, c.Started.Format("2006-01-02 15:04:05Z"))
	b.WriteString("| figure | measured | target | points | |\n|---|---|---|---|---|\n")
	for _, f := range c.Figures {
		fmt.Fprintf(&b, "| %s | %s | %s | %d of %d | %s |\n", f.ID, f.Value(), f.Goal(), f.Points, f.Max, cell.Replace(f.Why))
	}
	return b.String()
}
