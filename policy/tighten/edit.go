package tighten

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
	"unicode/utf8"
)

// operation is one change of a file's bytes at a place.
type operation struct {
	offset int
	apply  func(data []byte, offset int) ([]byte, error)
}

// errShape reports a text that is not edited, because its shape is not one of those known.
var errShape = errors.New("its text has a form that is not edited; edit it by hand")

// edit applies operations to a file, the last in the file first, so that the offsets of the
// others stay.
func edit(data []byte, operations []operation) ([]byte, error) {
	slices.SortStableFunc(operations, func(a, b operation) int { return cmp.Compare(b.offset, a.offset) })
	data = slices.Clone(data)
	for _, o := range operations {
		var err error
		if data, err = o.apply(data, o.offset); err != nil {
			return nil, err
		}
	}
	return data, nil
}

// offsetOf returns the offset of a line and a column, both from 1; columns are characters.
func offsetOf(data []byte, line, column int) (int, error) {
	at := 0
	for range line - 1 {
		end := bytes.IndexByte(data[at:], '\n')
		if end < 0 {
			return 0, errShape
		}
		at += end + 1
	}
	for range column - 1 {
		_, size := utf8.DecodeRune(data[at:])
		if at += size; at >= len(data) || size == 0 {
			return 0, errShape
		}
	}
	return at, nil
}

// lineStart and lineEnd return where the line of an offset begins, and where the next does.
func lineStart(data []byte, at int) int { return bytes.LastIndexByte(data[:at], '\n') + 1 }

func lineEnd(data []byte, at int) int {
	if end := bytes.IndexByte(data[at:], '\n'); end >= 0 {
		return at + end + 1
	}
	return len(data)
}

// scalarEnd returns where the scalar at an offset ends.
func scalarEnd(data []byte, at int, flow bool) (int, error) {
	switch data[at] {
	case '"':
		for i := at + 1; i < len(data) && data[i] != '\n'; i++ {
			switch data[i] {
			case '\\':
				i++
			case '"':
				return i + 1, nil
			}
		}
		return 0, errShape
	case '\'':
		for i := at + 1; i < len(data) && data[i] != '\n'; i++ {
			if data[i] != '\'' {
				continue
			}
			if i+1 < len(data) && data[i+1] == '\'' {
				i++
				continue
			}
			return i + 1, nil
		}
		return 0, errShape
	case '|', '>', '[', '{', '&', '*', '!':
		return 0, errShape
	}
	end := at
	for end < len(data) && data[end] != '\n' && data[end] != '\r' &&
		!(flow && strings.IndexByte(",]}", data[end]) >= 0) &&
		!(data[end] == '#' && end > at && (data[end-1] == ' ' || data[end-1] == '\t')) {
		end++
	}
	return at + len(bytes.TrimRight(data[at:end], " \t")), nil
}

// inFlow reports whether a list or a mapping at an offset is written between brackets.
func inFlow(data []byte, at int) bool {
	before := bytes.TrimRight(data[:at], " \t")
	return data[at] == '[' || data[at] == '{' || bytes.HasSuffix(before, []byte("{")) || bytes.HasSuffix(before, []byte("["))
}

// removeFlowItem removes a scalar from a list in brackets, with one comma.
func removeFlowItem(data []byte, at int) ([]byte, error) {
	end, err := scalarEnd(data, at, true)
	if err != nil {
		return nil, err
	}
	next := end + len(data[end:]) - len(bytes.TrimLeft(data[end:], " \t\r\n"))
	switch {
	case next < len(data) && data[next] == ',':
		next++
		end = next + len(data[next:]) - len(bytes.TrimLeft(data[next:], " \t"))
	case next < len(data) && data[next] == ']':
		before := bytes.TrimRight(data[:at], " \t\r\n")
		switch {
		case bytes.HasSuffix(before, []byte(",")):
			at = len(before) - 1
		case !bytes.HasSuffix(before, []byte("[")):
			return nil, errShape
		}
	default:
		return nil, errShape
	}
	return slices.Delete(data, at, end), nil
}

// removeBlockItem removes the line of an item of a list of dashes.
func removeBlockItem(data []byte, at int) ([]byte, error) {
	start := lineStart(data, at)
	end, err := scalarEnd(data, at, false)
	if err != nil {
		return nil, err
	}
	rest := strings.TrimSpace(string(data[end:lineEnd(data, end)]))
	if strings.TrimSpace(string(data[start:at])) != "-" || rest != "" && rest[0] != '#' {
		return nil, errShape
	}
	return slices.Delete(data, start, lineEnd(data, at)), nil
}

// replaceScalar replaces a scalar.
func replaceScalar(text string, flow bool) func([]byte, int) ([]byte, error) {
	return func(data []byte, at int) ([]byte, error) {
		end, err := scalarEnd(data, at, flow)
		if err != nil {
			return nil, err
		}
		if data[at] == '"' {
			text = `"` + text + `"`
		}
		return slices.Replace(data, at, end, []byte(text)...), nil
	}
}

// insertNotAfter adds notAfter to a rule, behind its id, which is at the offset. indent is the
// indentation of the rule's fields, -1 for a rule in braces.
func insertNotAfter(until time.Time, indent int, comment string) func([]byte, int) ([]byte, error) {
	value := until.UTC().Format(time.RFC3339)
	return func(data []byte, at int) ([]byte, error) {
		if indent < 0 {
			end, err := scalarEnd(data, at, true)
			if err != nil {
				return nil, err
			}
			key := "notAfter: " + value
			if bytes.HasSuffix(bytes.TrimRight(data[:at], " :\t"), []byte(`"`)) { // JSON
				key = fmt.Sprintf(`"notAfter": %q`, value)
			}
			return slices.Insert(data, end, []byte(", "+key)...), nil
		}
		end := lineEnd(data, at)
		line := strings.Repeat(" ", indent) + "notAfter: " + value + " # " + comment + "\n"
		if end == len(data) && !bytes.HasSuffix(data, []byte("\n")) {
			line = "\n" + strings.TrimSuffix(line, "\n")
		}
		return slices.Insert(data, end, []byte(line)...), nil
	}
}

// removeRule removes the lines of a rule, which is an item of a list of dashes. Comments
// above it stay.
func removeRule(data []byte, at int) ([]byte, error) {
	start := lineStart(data, at)
	dash := bytes.IndexByte(data[start:at+1], '-')
	if dash < 0 || strings.Trim(string(data[start:start+dash]), " ") != "" {
		return nil, errShape
	}
	end := lineEnd(data, at)
	for end < len(data) {
		line := data[end:lineEnd(data, end)]
		text := bytes.TrimLeft(line, " ")
		blank := len(bytes.TrimSpace(line)) == 0
		if !blank && len(line)-len(text) <= dash {
			break
		}
		if blank && !continues(data, lineEnd(data, end), dash) {
			break
		}
		end = lineEnd(data, end)
	}
	return slices.Delete(data, start, end), nil
}

// continues reports whether the next line that is not blank is within the item whose dash
// is at a column.
func continues(data []byte, at, dash int) bool {
	for at < len(data) {
		line := data[at:lineEnd(data, at)]
		if len(bytes.TrimSpace(line)) > 0 {
			return len(line)-len(bytes.TrimLeft(line, " ")) > dash
		}
		at = lineEnd(data, at)
	}
	return false
}
