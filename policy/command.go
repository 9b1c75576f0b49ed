package policy

import (
	"errors"
	"fmt"
	"iter"
	"slices"
	"strconv"
	"strings"

	"github.com/chaperone-proxy/chaperone/authz"
	"github.com/chaperone-proxy/chaperone/facts/resp"
)

// readCommand returns the facts of a command of Redis, written as redis-cli takes it, in a
// session of a database, as the door for Redis adds it: SELECT names another one itself.
func readCommand(text string, database authz.Fact) ([]authz.Fact, error) {
	words, err := splitCommand(text)
	if err != nil {
		return nil, &UnreadableError{err.Error()}
	}
	args := make([][]byte, len(words))
	for i, w := range words {
		args[i] = []byte(w)
	}
	reading := resp.Read(args)
	if reading.Unreadable != "" {
		return nil, &UnreadableError{reading.Unreadable}
	}
	if reading.Kind == resp.Select && slices.ContainsFunc(reading.Facts, IsDatabase) {
		return reading.Facts, nil
	}
	return append(reading.Facts, database), nil
}

// splitCommand splits a command into its words. Words in double quotes have the escapes
// \n \r \t \b \a \\ \" and \xHH, words in single quotes \' alone, as in redis-cli.
func splitCommand(text string) ([]string, error) {
	var out []string
	for {
		text = strings.TrimLeft(text, " \t\r\n")
		if text == "" {
			break
		}
		word, rest, err := cutWord(text)
		if err != nil {
			return nil, err
		}
		out, text = append(out, word), rest
	}
	if len(out) == 0 {
		return nil, errors.New("it has no command")
	}
	return out, nil
}

// cutWord cuts the first word off, which a space ends.
func cutWord(text string) (word, rest string, err error) {
	var out []byte
	quote := byte(0)
	for i := 0; i < len(text); i++ {
		c := text[i]
		switch {
		case quote == 0 && strings.IndexByte(" \t\r\n", c) >= 0:
			return string(out), text[i:], nil
		case quote == 0 && (c == '"' || c == '\''):
			if len(out) > 0 {
				return "", "", errors.New("a quote stands within a word")
			}
			quote = c
		case quote != 0 && c == quote:
			if i+1 < len(text) && strings.IndexByte(" \t\r\n", text[i+1]) < 0 {
				return "", "", errors.New("a word continues behind its closing quote")
			}
			return string(out), text[i+1:], nil
		case quote != 0 && c == '\\' && i+1 < len(text):
			b, n := unescape(text[i+1:], quote)
			out, i = append(out, b...), i+n
		default:
			out = append(out, c)
		}
	}
	if quote != 0 {
		return "", "", errors.New("a quote is not closed")
	}
	return string(out), "", nil
}

// unescape returns what stands for the text behind a backslash, and how long that text is.
func unescape(text string, quote byte) (out string, n int) {
	if quote == '\'' {
		if text[0] == '\'' {
			return "'", 1
		}
		return `\`, 0
	}
	const hexLen = len("xHH")
	if text[0] == 'x' && len(text) >= hexLen {
		if b, err := strconv.ParseUint(text[1:hexLen], 16, 8); err == nil {
			return string([]byte{byte(b)}), hexLen
		}
	}
	if i := strings.IndexByte("nrtba", text[0]); i >= 0 {
		return "\n\r\t\b\a"[i : i+1], 1
	}
	return text[:1], 1
}

// joinCommand writes words as splitCommand reads them, in ASCII.
func joinCommand(words []string) string {
	out := make([]string, len(words))
	for i, w := range words {
		out[i] = commandWord(w)
	}
	return strings.Join(out, " ")
}

func commandWord(w string) string {
	plain := w != ""
	var out strings.Builder
	for i := range len(w) {
		switch c := w[i]; {
		case c == '"' || c == '\\':
			out.WriteString(`\` + w[i:i+1])
			plain = false
		case c == ' ':
			out.WriteByte(c)
			plain = false
		case c < ' ' || c >= 0x7f:
			fmt.Fprintf(&out, `\x%02x`, c)
			plain = false
		default:
			out.WriteByte(c)
			plain = plain && c != '\''
		}
	}
	if plain && w[0] != '[' { // facts begin with it
		return w
	}
	return `"` + out.String() + `"`
}

// commandTexts yields commands that may have the facts, the simplest first. Arguments that
// are no keys are 1 and a.
func commandTexts(facts []authz.Fact) iter.Seq[string] {
	commands, keys, channels, databases := namesOf(facts, authz.FactCommand), namesOf(facts, authz.FactKey), namesOf(facts, authz.FactChannel), namesOf(facts, authz.FactDatabase)
	if len(commands) == 0 {
		commands = append(namesOf(facts, authz.FactOpaque), namesOf(facts, authz.FactForbidden)...)
	}
	return func(yield func(string) bool) {
		if len(commands) != 1 {
			return
		}
		name := strings.Fields(commands[0])
		count := strconv.Itoa(len(keys))
		doubled := make([]string, 0, 2*len(keys)) // as of MSET
		for _, k := range keys {
			doubled = append(doubled, k, "1")
		}
		for _, args := range [][]string{
			append(keys, channels...), databases, doubled, append([]string{count}, keys...), append([]string{"a", count}, keys...), append([]string{"a"}, keys...),
			append([]string{"1"}, channels...), append([]string{"0", "MATCH"}, keys...), append([]string{"STREAMS"}, keys...), append(keys, databases...), append(append(keys, "a", "DB"), databases...),
		} {
			for filler := range 4 {
				words := append(append([]string{}, name...), args...)
				for range filler {
					words = append(words, "1")
				}
				if !yield(joinCommand(words)) {
					return
				}
			}
		}
	}
}
