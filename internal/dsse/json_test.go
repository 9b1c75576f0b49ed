package dsse

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"
	"unicode"
	"unicode/utf8"
)

// checkTokens is [CheckJSON] by the tokens of encoding/json.
func checkTokens(data []byte) error {
	if !utf8.Valid(data) {
		return errors.New("it is not UTF-8")
	}
	d := json.NewDecoder(bytes.NewReader(data))
	d.UseNumber()
	if err := checkToken(d, 0); err != nil {
		return err
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return errors.New("it goes on after the first JSON value")
	}
	return nil
}

func checkToken(d *json.Decoder, depth int) error {
	token, err := d.Token()
	if err != nil {
		return err
	}
	delim, ok := token.(json.Delim)
	if !ok {
		return nil
	}
	if depth == maxDepth {
		return errors.New("it nests deeper")
	}
	seen := map[string]bool{}
	for d.More() {
		if delim == '{' {
			token, err := d.Token()
			if err != nil {
				return err
			}
			key := strings.Map(fold, fmt.Sprint(token))
			if seen[key] {
				return errors.New("it has a key twice")
			}
			seen[key] = true
		}
		if err := checkToken(d, depth+1); err != nil {
			return err
		}
	}
	_, err = d.Token()
	return err
}

// Two runes fold to the same rune if and only if encoding/json takes them for equal.
func TestFold(t *testing.T) {
	for r := range rune(unicode.MaxRune + 1) {
		smallest := r
		for next := unicode.SimpleFold(r); next != r; next = unicode.SimpleFold(next) {
			smallest = min(smallest, next)
			if fold(next) != fold(r) {
				t.Fatalf("%U and %U fold to %U and %U", r, next, fold(r), fold(next))
			}
		}
		if got := fold(r); got != smallest && !(unicode.IsUpper(smallest) && got == smallest+'a'-'A' && got <= 'z') {
			t.Fatalf("%U folds to %U, which is not a rune that it equals", r, got)
		}
	}
}

// FuzzCheckJSON compares the check with one by the tokens of encoding/json.
func FuzzCheckJSON(f *testing.F) {
	deep := func(n int) string { return strings.Repeat(`{"a":[`, n/2) + strings.Repeat("]}", n/2) }
	for _, text := range []string{
		``, ` `, `x`, `1`, `"`, `"a"`, `"\"`, `"\\"`, `{`, `[1,]`, `{"a":1,}`, `{} {}`, `{}x`, `1e999`, `nul`, deep(maxDepth), deep(maxDepth + 2),
		`{"a":1,"a":2}`, `{"a":1,"A":2}`, `{"a":1,"\u0061":2}`, `{"s":1,"ſ":2}`, `{"K":1,"k":2}`, `{"a\\":1,"a\"":2,"a\\\"":3}`, `{"\\":"\\","\\":1}`,
		`{"a":{"a":{"a":1}},"b":[{"a":1},{"a":1}],"c":"a"}`, `{"a":{"b":1,"b":2}}`, `[{"a":1},{"a":1,"a":2}]`, `{"a":["b","b",{"a":1}],"b":"a","c":",\"a\":1"}`,
		`{"a":[],"a":1}`, `{"a":{},"a":1}`, `["a","a"]`, `{"a":",","b":"{","c":"["}`, "{\"a\xff\":1}", `{"\ud800":1,"\udfff":2}`, `{"":1,"":2}`,
	} {
		f.Add([]byte(text))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		got, want := CheckJSON(data), checkTokens(data)
		if (got == nil) != (want == nil) {
			t.Errorf("%q: %v, by its tokens %v", data, got, want)
		}
	})
}

// An object with many keys, or keys with many escapes, takes no more than its size in time.
func BenchmarkCheckJSON(b *testing.B) {
	many := strings.Builder{}
	for i := range 10_000 {
		fmt.Fprintf(&many, `"key-%d":{"a":1},`, i)
	}
	for name, text := range map[string]string{
		"objects": "[" + strings.Repeat(`{"id":"r","level":"warning","message":{"text":"m"}},`, 1000) + "1]",
		"keys":    "{" + many.String() + `"end":1}`,
		"escapes": `{"` + strings.Repeat(`\\`, 50_000) + `":"` + strings.Repeat(`\"`, 50_000) + `"}`,
	} {
		b.Run(name, func(b *testing.B) {
			b.SetBytes(int64(len(text)))
			for b.Loop() {
				if err := CheckJSON([]byte(text)); err != nil {
					b.Fatal(err)
				}
			}
		})
		b.Run(name+"/tokens", func(b *testing.B) {
			b.SetBytes(int64(len(text)))
			for b.Loop() {
				if err := checkTokens([]byte(text)); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
