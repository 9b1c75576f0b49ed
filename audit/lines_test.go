package audit

import (
	"errors"
	"io"
	"strings"
	"testing"
)

// growing is a file that has grown when it is read after its end.
type growing []string

func (g *growing) Read(p []byte) (int, error) {
	if len(*g) == 0 {
		return 0, io.EOF
	}
	n := copy(p, (*g)[0])
	*g = (*g)[1:]
	if n == 0 {
		return 0, io.EOF
	}
	return n, nil
}

// TestLinesEndAtTheEnd: bytes after an incomplete line are not a line.
func TestLinesEndAtTheEnd(t *testing.T) {
	l := newLines(&growing{"one\ntw", "", "o\nthree\n"})
	var got []string
	for {
		line, err := l.next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, string(line.data))
	}
	if strings.Join(got, " ") != "one tw" {
		t.Errorf("lines = %q", got)
	}
}

// A line that is too long comes in pieces, none of which is taken for a record.
func TestLongLineComesInPieces(t *testing.T) {
	l := newLines(strings.NewReader("a\n" + strings.Repeat("x", 2*maxLine+5) + "\nb\n"))
	var whole []string
	pieces, size := 0, int64(0)
	for {
		line, err := l.next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		if line.whole {
			whole = append(whole, string(line.data))
		} else if pieces++; line.number != 2 {
			t.Errorf("piece of line %d, want 2", line.number)
		}
		size = line.end
	}
	if strings.Join(whole, " ") != "a b" || pieces != 3 || size != int64(2*maxLine+10) {
		t.Errorf("whole %q, %d pieces, %d bytes", whole, pieces, size)
	}
}
