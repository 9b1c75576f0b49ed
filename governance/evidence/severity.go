package evidence

import (
	"slices"
	"strings"
)

// Severity is a finding's severity on the scale of CVSS v3.1, section 5.
type Severity string

// The severities. Unknown is that of a finding whose source states no severity; it blocks
// and scores like high, because it may be.
const (
	None     Severity = "none"
	Low      Severity = "low"
	Medium   Severity = "medium"
	Unknown  Severity = "unknown"
	High     Severity = "high"
	Critical Severity = "critical"
)

func (s Severity) rank() int {
	switch s {
	case None:
		return 0
	case Low:
		return 1
	case Medium:
		return 2
	case Critical:
		return 4
	case Unknown, High:
		return 3
	}
	return 3 // of a value that is no severity
}

// AtLeast reports whether s is as severe as other, or more.
func (s Severity) AtLeast(other Severity) bool { return s.rank() >= other.rank() }

// ParseSeverity reads a severity of a guardrail.
func ParseSeverity(s string) (Severity, bool) {
	known := []Severity{None, Low, Medium, High, Critical}
	return Severity(s), slices.Contains(known, Severity(s))
}

// ofScore returns the severity of a CVSS score in tenths (CVSS v3.1, section 5).
func ofScore(tenths int) Severity {
	switch {
	case tenths <= 0:
		return None
	case tenths < 40:
		return Low
	case tenths < 70:
		return Medium
	case tenths < 90:
		return High
	}
	return Critical
}

// ofWord returns the severity of a scanner's word.
func ofWord(s string) Severity {
	switch strings.ToLower(strings.TrimSpace(s)) {
	case "none":
		return None
	case "info", "informational", "negligible", "low", "minor":
		return Low
	case "medium", "moderate":
		return Medium
	case "high", "important", "major":
		return High
	case "critical", "blocker":
		return Critical
	}
	return Unknown
}

// worse returns the more severe of two. A stated severity wins over an unknown one, and the
// empty one over nothing.
func worse(a, b Severity) Severity {
	switch {
	case a == "" || a == Unknown && b != "":
		return b
	case b == "" || b == Unknown:
		return a
	case b.rank() > a.rank():
		return b
	}
	return a
}
