package dsse

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"
)

// CheckJSON refuses JSON that readers could understand differently: a key that is given
// twice in an object, also in another case, since encoding/json ignores the case of keys;
// text that is not UTF-8; a second value; and nesting beyond maxDepth.
func CheckJSON(data []byte) error {
	switch {
	case !utf8.Valid(data):
		return errors.New("it is not UTF-8")
	case !json.Valid(data):
		return invalid(data)
	}
	return checkKeys(data)
}

// invalid returns why data are not one JSON value.
func invalid(data []byte) error {
	var first json.RawMessage
	if err := json.NewDecoder(bytes.NewReader(data)).Decode(&first); err != nil {
		return fmt.Errorf("it is not JSON: %w", err)
	}
	return errors.New("it goes on after the first JSON value")
}

// checkKeys compares the keys of each object of valid JSON. It looks for strings, brackets
// and commas alone: reading the tokens of encoding/json takes several times as long.
func checkKeys(data []byte) error {
	var open []map[string]struct{} // the keys of each object that is open; nil for a list
	key := false                   // a string is a key here
	for i := 0; i < len(data); i++ {
		switch data[i] {
		case '{', '[':
			if len(open) == maxDepth {
				return fmt.Errorf("it nests deeper than %d levels", maxDepth)
			}
			var seen map[string]struct{}
			if key = data[i] == '{'; key {
				seen = map[string]struct{}{}
			}
			open = append(open, seen)
		case '}', ']':
			open = open[:len(open)-1]
		case ',':
			key = open[len(open)-1] != nil
		case '"':
			quoted := data[i : i+stringLen(data[i:])]
			if key {
				if err := addKey(open[len(open)-1], quoted); err != nil {
					return err
				}
			}
			i, key = i+len(quoted)-1, false
		}
	}
	return nil
}

// stringLen returns the length of the JSON string that data begins with, with its quotes.
func stringLen(data []byte) int {
	for end := 1; ; end++ {
		end += bytes.IndexByte(data[end:], '"')
		escapes := end - 1
		for data[escapes] == '\\' {
			escapes--
		}
		if (end-escapes)%2 == 1 {
			return end + 1
		}
	}
}

// addKey adds a key, with its quotes, to those of its object.
func addKey(seen map[string]struct{}, quoted []byte) error {
	key := string(quoted[1 : len(quoted)-1])
	if strings.Contains(key, `\`) {
		if err := json.Unmarshal(quoted, &key); err != nil {
			return fmt.Errorf("it is not JSON: %w", err)
		}
	}
	folded := strings.Map(fold, key)
	if _, again := seen[folded]; again {
		return fmt.Errorf("key %s is given twice in one object", strconv.QuoteToASCII(clip(key)))
	}
	seen[folded] = struct{}{}
	return nil
}

// fold returns the rune that stands for all those that encoding/json takes for the same when
// it compares the names of fields: the lower-case letter of those in ASCII, so that most names
// stay as they are, and the smallest one of the others.
func fold(r rune) rune {
	for {
		next := unicode.SimpleFold(r)
		switch {
		case 'a' <= r && r <= 'z':
			return r
		case 'A' <= next && next <= 'Z':
			return next + 'a' - 'A'
		case next <= r:
			return next
		}
		r = next
	}
}

// clip shortens text for an error.
func clip(s string) string {
	if len(s) > 64 {
		return s[:64] + "..."
	}
	return s
}
