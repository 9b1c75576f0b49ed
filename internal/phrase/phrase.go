// Package phrase writes the small parts of messages that commands and the sidecar
// share: counts, lists, names of rules, words for a shell, and text on one line.
package phrase

import (
	"fmt"
	"os/user"
	"strconv"
	"strings"

	"github.com/chaperone-proxy/chaperone/internal/printable"
)

// Count returns a number and its noun, which takes an s in the plural.
func Count(n int, noun string) string { return Counted(n, noun, noun+"s") }

// Counted returns a number and its noun, which has a plural of its own.
func Counted(n int, one, many string) string {
	if n != 1 {
		one = many
	}
	return fmt.Sprintf("%d %s", n, one)
}

// List joins words with commas, or returns "none" for an empty list.
func List(words []string) string {
	if len(words) == 0 {
		return "none"
	}
	return strings.Join(words, ", ")
}

// OneLine returns a text, such as that of joined errors, as one line that is safe to
// print.
func OneLine(s string) string { return printable.Text(strings.ReplaceAll(s, "\n", "; ")) }

// FirstLine returns the first line of a text.
func FirstLine(s string) string {
	line, _, _ := strings.Cut(s, "\n")
	return line
}

// Rule returns the name of a rule, GRANT/RULE; "" without a grant.
func Rule(grant, rule string) string {
	if grant == "" {
		return ""
	}
	return grant + "/" + rule
}

// ShellWord returns a word as a shell reads it back, and as a terminal shows it
// safely.
func ShellWord(word string) string {
	plain := func(r rune) bool {
		return r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune("._-/@:", r)
	}
	if word != "" && strings.IndexFunc(word, func(r rune) bool { return !plain(r) }) < 0 {
		return word
	}
	if printable.Text(word) != word {
		return strconv.Quote(word) // a terminal is not shown what the word holds
	}
	return "'" + strings.ReplaceAll(word, "'", `'\''`) + "'" // within "", a shell would expand $ and `
}

// User returns a user's number, with its name if the host has one.
func User(uid int) string {
	number := strconv.Itoa(uid)
	if u, err := user.LookupId(number); err == nil {
		return fmt.Sprintf("uid %s (%s)", number, u.Username)
	}
	return "uid " + number
}
