package sql

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	judge "github.com/wasilibs/go-pgquery/parser"
	"google.golang.org/protobuf/encoding/protowire"
)

// span is where a token is, in bytes.
type span struct{ start, end int }

// The numbers of comments in libpg_query's list of tokens.
const lineComment, blockComment = 275, 276

// fields returns the fields of a protobuf message by their numbers: the last number of each,
// and the messages of field 2.
func fields(message []byte) (numbers map[protowire.Number]int, messages [][]byte) {
	numbers = map[protowire.Number]int{}
	for len(message) > 0 {
		number, kind, n := protowire.ConsumeTag(message)
		message = message[n:]
		if kind == protowire.BytesType {
			value, n := protowire.ConsumeBytes(message)
			messages, message = append(messages, value), message[n:]
			continue
		}
		value, n := protowire.ConsumeVarint(message)
		numbers[number], message = int(value), message[n:]
	}
	return numbers, messages
}

// scan returns the tokens that PostgreSQL's own lexer finds, without comments.
func scan(text string) ([]span, error) {
	result, err := judge.ScanToProtobuf(text)
	if err != nil {
		return nil, err
	}
	var all []span
	_, tokens := fields(result)
	for _, message := range tokens {
		t, _ := fields(message)
		if kind := t[4]; kind != lineComment && kind != blockComment {
			all = append(all, span{t[1], t[2]})
		}
	}
	return all, nil
}

// lexemes are what random texts for the lexer are made of.
var lexemes = []string{
	"'", "''", "\"", "\"\"", "$$", "$a$", "$1", "$", "--", "/*", "*/", "\n", "\r", " ", "\t", "\f", "E'", "e'", "U&'", "u&\"", "U&", "B'", "x'", "N'", "\\", "\\'",
	"a", "E", "e", "_", "ä", "1", "0", "0x", "0b1", "0o7", "1_0", "_", ".", "..", "+", "-", "*", "/", "<", ">", "=", "!", "@", "#", "%", "^", "&", "|", "`", "?", "~",
	":", "::", ":=", "=>", ",", "(", ")", "[", "]", ";", "select", "from", "a.b", "'a'\n'b'", "'a' /* c */ 'b'", "1e5", "1.5", "1.", ".5e-1", "a$b$", "1a",
}

func randomText(rng *rand.Rand) string {
	var b strings.Builder
	for range 1 + rng.IntN(9) {
		b.WriteString(lexemes[rng.IntN(len(lexemes))])
	}
	return b.String()
}

// readsAlike reports whether the judge reads the text as servers do: it has comments as
// tokens, so that a string does not go on behind one.
func readsAlike(text string) bool {
	return !strings.Contains(text, "--") || !strings.ContainsAny(text, "\r\n")
}

// TestLexer compares the tokens of random texts with those of PostgreSQL's lexer, where
// both read the text.
func TestLexer(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	compared := 0
	for range 10_000 {
		text := randomText(rng)
		tokens, reason := lex(text, nil)
		if reason != "" || !readsAlike(text) {
			continue
		}
		want, err := scan(text)
		if err != nil {
			continue
		}
		compared++
		var got []span
		for _, token := range tokens {
			got = append(got, span{int(token.start), int(token.end)})
		}
		if !slices.Equal(got, want) {
			t.Errorf("%q: got tokens %v, want %v", text, shown(text, got), shown(text, want))
		}
	}
	t.Logf("%d texts compared", compared)
	if compared < 2_000 {
		t.Errorf("%d texts compared, want more", compared)
	}
}

func shown(text string, spans []span) (out []string) {
	for _, s := range spans {
		out = append(out, fmt.Sprintf("%q", text[s.start:min(s.end, len(text))]))
	}
	return out
}
