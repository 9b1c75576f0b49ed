package admin

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"mime"
	"net/http"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"
)

// maxBody bounds the body of a request.
const maxBody = 64 << 10

// decodeBody reads a JSON object into the fields: their names exactly, each
// once, nothing else. Without fields the body must be empty or {}.
func decodeBody(r *http.Request, fields map[string]any) error {
	if err := onlyQuery(r); err != nil {
		return err
	}
	body, err := io.ReadAll(http.MaxBytesReader(nil, r.Body, maxBody))
	if _, ok := errors.AsType[*http.MaxBytesError](err); ok {
		return NewError(CodeTooLarge, fmt.Sprintf("the body has more than %d bytes", maxBody))
	}
	if err != nil {
		return NewError(CodeBadRequest, "the body could not be read to its end")
	}
	if len(fields) == 0 && len(bytes.TrimSpace(body)) == 0 {
		return nil
	}
	if media, _, err := mime.ParseMediaType(r.Header.Get("Content-Type")); err != nil || media != "application/json" {
		return NewError(CodeBadRequest, "the body must be of Content-Type application/json")
	}
	if !utf8.Valid(body) {
		return NewError(CodeBadRequest, "the body is not UTF-8")
	}
	if err := decodeObject(body, fields); err != nil {
		return NewError(CodeBadRequest, err.Error())
	}
	return nil
}

// decodeObject is stricter than encoding/json, which takes names in any case
// and a field twice.
func decodeObject(body []byte, fields map[string]any) error {
	decoder := json.NewDecoder(bytes.NewReader(body))
	if token, err := decoder.Token(); err != nil || token != json.Delim('{') {
		return errors.New("the body is not a JSON object")
	}
	seen := map[string]bool{}
	for decoder.More() {
		token, err := decoder.Token()
		name, ok := token.(string)
		if err != nil || !ok {
			return malformed(err)
		}
		field, known := fields[name]
		if !known {
			return fmt.Errorf("%.40q: unknown field%s", name, choices(slices.Sorted(maps.Keys(fields))))
		}
		if seen[name] {
			return fmt.Errorf("%s: it is given twice", name)
		}
		seen[name] = true
		var value json.RawMessage
		if err := decoder.Decode(&value); err != nil {
			return malformed(err)
		}
		if string(value) == "null" {
			return fmt.Errorf("%s: null is no value; leave it out", name)
		}
		if err := json.Unmarshal(value, field); err != nil {
			return fmt.Errorf("%s: %.80s is not what it takes", name, value)
		}
	}
	if _, err := decoder.Token(); err != nil {
		return malformed(err)
	}
	if _, err := decoder.Token(); !errors.Is(err, io.EOF) {
		return errors.New("something follows the JSON object")
	}
	return nil
}

func malformed(err error) error {
	if err == nil {
		return errors.New("the body is not JSON")
	}
	return fmt.Errorf("the body is not JSON: %w", err)
}

// printable reports whether s is one line of text that a terminal shows as it is.
func printable(s string) bool {
	return utf8.ValidString(s) && strings.IndexFunc(s, func(r rune) bool { return !unicode.IsPrint(r) }) < 0
}
