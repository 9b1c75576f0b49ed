package resp

import (
	"bytes"
	"testing"
)

// FuzzRead splits requests in one piece, in parts, and skipped behind their first
// argument: all must agree.
func FuzzRead(f *testing.F) {
	for _, seed := range []string{
		"*2\r\n$3\r\nGET\r\n$1\r\na\r\n", "*1\r\n$4\r\nQUIT\r\n*0\r\n", "*-1\r\n", "GET a\r\n", "POST / HTTP/1.1\r\n",
		"*2\r\n$3\r\nGET\r\n$-1\r\n", "*1\r\n$3\r\nGETx\n", "*1048577\r\n", "*1\r\n$536870913\r\n", "*01\r\n", "*+1\r\n",
		"*3\r\n$4\r\nSORT\r\n$1\r\nk\r\n$2\r\nBY\r\n", "%1\r\n", "*5\r\n$5\r\nXREAD\r\n$7\r\nSTREAMS\r\n$1\r\na\r\n$1\r\n0\r\n$1\r\n0\r\n",
	} {
		f.Add([]byte(seed), 3)
	}
	f.Fuzz(func(t *testing.T, b []byte, step int) {
		step = max(1, min(step, 64))
		var whole Request
		n, err := whole.Scan(b)
		var parts Request
		for end := 0; end <= len(b); end += step {
			m, partErr := parts.Scan(b[:min(end, len(b))])
			if partErr != nil && err == nil || m != 0 && m != n {
				t.Fatalf("in parts: %d, %v; whole: %d, %v", m, partErr, n, err)
			}
			if m != 0 || partErr != nil {
				break
			}
		}
		if n == 0 || err != nil || whole.Argc() == 0 {
			return
		}
		r := Read(whole.Args(b))
		if len(r.Facts) == 0 && r.Unreadable == "" {
			t.Fatal("a readable command has no fact")
		}
		skipped(t, b[:n], step)
	})
}

func skipped(t *testing.T, b []byte, step int) {
	var q Request
	if _, err := q.Scan(b[:bytes.IndexByte(b, '\n')+1]); err != nil {
		t.Fatal(err)
	}
	at := q.Scanned()
	for end := at + step; ; end += step {
		n, done, err := q.Skip(b[at:min(end, len(b))])
		if at += n; err != nil {
			t.Fatal(err)
		}
		if done {
			break
		}
		if end > len(b) {
			t.Fatal("a complete request is not complete when it is skipped")
		}
	}
	if at != len(b) {
		t.Fatalf("skipped %d of %d bytes", at, len(b))
	}
}

// FuzzReplies reads answers in one piece and byte by byte: both must agree.
func FuzzReplies(f *testing.F) {
	for _, seed := range []string{
		"+OK\r\n", "-ERR x\r\n", "$3\r\nabc\r\n", "$-1\r\n", "*2\r\n:1\r\n-ERR y\r\n", "%1\r\n+a\r\n_\r\n", ">2\r\n+a\r\n+b\r\n+OK\r\n",
		"|1\r\n+k\r\n+v\r\n:1\r\n", "=5\r\ntxt:a\r\n", "!3\r\nERR\r\n", "#t\r\n,1.5\r\n(123\r\n", "~1\r\n*0\r\n", "*-1\r\n", "+QUEUED\r\n",
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		read := func(step int) (failures []string, s Replies, bad bool) {
			at := 0
			for end := step; ; end += step {
				for {
					n, failure, err := s.Scan(b[at:min(end, len(b))])
					if at += n; err != nil {
						return failures, s, true
					}
					if failure == 0 && n == 0 {
						break
					}
					if failure == 0 {
						continue
					}
					failures = append(failures, string(b[at:at+failure]))
					at += failure
					s.Skip()
				}
				if end >= len(b) {
					return failures, s, false
				}
			}
		}
		whole, a, badA := read(max(1, len(b)))
		bytewise, c, badC := read(1)
		if badA != badC || a.Answered != c.Answered || a.Top() != c.Top() || len(whole) != len(bytewise) {
			t.Fatalf("whole: %d answers, %q; byte by byte: %d answers, %q", a.Answered, whole, c.Answered, bytewise)
		}
	})
}
