package accesslog

import (
	"bufio"
	"errors"
	"fmt"
	"io"

	"github.com/chaperone-proxy/chaperone/audit"
	"github.com/chaperone-proxy/chaperone/authz"
)

// maxLine is longer than any line of a log.
const maxLine = 128 << 10

// maxBlank is how many empty lines in a row are read. A small compressed file can hold
// any number of them.
const maxBlank = 64

// maxTorn is how much text that is no record is read to find the record that explains it.
const maxTorn = 16 << 20

// cursor reads the records of one chain, in order, and checks that each names the one
// before it.
type cursor struct {
	log   string
	files []logFile
	stdin io.Reader

	open  io.Closer // nil between files
	lines *bufio.Reader
	place Place

	began bool
	blank int // empty lines since the last that was not
	seq   uint64
	hash  []byte
	torn  *torn
	gaps  []gap
	kept  uint64 // records below were removed by the log itself

	broken func(error) error // judges a chain that is broken: an error to return, or nil to go on
	scan   *scanner
	entry  *audit.Entry // the last record, which is the scanner's
}

// torn is what a failed write left: bytes that the next record has to explain.
type torn struct {
	place Place
	bytes int64
	text  []byte // its beginning
}

// maxGaps bounds the gaps of a chain that are kept until it is known which of them the log
// explains.
const maxGaps = 10_000

// gap is a run of records that are not there.
type gap struct {
	place    Place
	from, to uint64
}

// errAt returns an error with the file and line at which it is.
func errAt(p Place, format string, args ...any) error {
	return fmt.Errorf("%s: %w", p, fmt.Errorf(format, args...))
}

// next reads the next record into entry, and returns io.EOF after the last.
func (c *cursor) next() error {
	for {
		line, err := c.line()
		if errors.Is(err, io.EOF) {
			return c.end()
		}
		if err != nil {
			return err
		}
		if len(line) == 0 { // the newline that was missing at the end of a record
			if c.blank++; c.blank > maxBlank {
				return errAt(c.place, "more than %d lines in a row are empty, which no log has", maxBlank)
			}
			continue
		}
		c.blank = 0
		if c.entry, err = c.scan.decode(line); err != nil {
			if c.torn == nil {
				c.torn = &torn{place: c.place, text: append([]byte(nil), line[:min(len(line), 256)]...)}
			}
			if c.torn.bytes += int64(len(line)) + 1; c.torn.bytes > maxTorn {
				return c.torn.err()
			}
			continue
		}
		if c.entry.Hash != "" {
			return c.follow([]byte(c.entry.Prev), []byte(c.entry.Hash))
		}
		return c.follow(prevAndHash(line))
	}
}

// line returns the next line without its newline.
func (c *cursor) line() ([]byte, error) {
	for {
		if c.open == nil {
			if len(c.files) == 0 {
				return nil, io.EOF
			}
			if err := c.openNext(); err != nil {
				return nil, err
			}
		}
		line, err := c.lines.ReadSlice('\n')
		c.place.Line++
		switch {
		case err == nil:
			return line[:len(line)-1], nil
		case errors.Is(err, io.EOF):
			if err := c.open.Close(); err != nil {
				return nil, err
			}
			if c.open = nil; len(line) > 0 {
				return line, nil
			}
		case errors.Is(err, bufio.ErrBufferFull):
			return nil, errAt(c.place, "the line is longer than a record can be")
		default:
			return nil, errAt(c.place, "%w", err)
		}
	}
}

func (c *cursor) openNext() error {
	path := c.files[0].path
	in, err := openLog(path, c.stdin)
	if err != nil {
		return err
	}
	c.files, c.open, c.place = c.files[1:], in, Place{Log: c.log, File: path}
	if c.lines == nil {
		c.lines = bufio.NewReaderSize(in, maxLine)
	}
	c.lines.Reset(in)
	return nil
}

// follow checks that the entry is the record behind the one before.
func (c *cursor) follow(prev, hash []byte) error {
	e := c.entry
	if t := c.torn; t != nil {
		if c.torn = nil; e.Kind != string(authz.KindLost) || e.TornBytes == 0 {
			return t.err()
		}
	}
	switch {
	case !c.began:
	case e.Seq <= c.seq:
		return errAt(c.place, "record %d stands behind record %d", e.Seq, c.seq)
	case e.Seq > c.seq+1 && len(c.gaps) >= maxGaps:
		return errAt(c.place, "records are missing in more than %d places", maxGaps)
	case e.Seq > c.seq+1:
		c.gaps = append(c.gaps, gap{c.place, c.seq + 1, e.Seq - 1})
	case string(prev) != string(c.hash):
		if err := c.broken(errAt(c.place, "record %d does not name the record before it", e.Seq)); err != nil {
			return err
		}
	}
	if e.Kind == string(audit.KindRotation) {
		c.kept = max(c.kept, e.First)
	}
	c.began, c.seq, c.hash = true, e.Seq, append(c.hash[:0], hash...)
	return nil
}

func (t *torn) err() error { return errAt(t.place, "the line is not a record of an audit log") }

// end checks what is left at the end of the chain.
func (c *cursor) end() error {
	for _, g := range c.gaps {
		if g.to < c.kept {
			continue
		}
		if err := c.broken(errAt(g.place, "records %d to %d are missing before it", g.from, g.to)); err != nil {
			return err
		}
	}
	c.gaps = nil
	if t := c.torn; t != nil && !c.mayBeNext(t.text) {
		return t.err()
	}
	return io.EOF
}

// mayBeNext reports whether a last line may be the beginning of the next record: one that
// is being written, or that a crash cut.
func (c *cursor) mayBeNext(text []byte) bool {
	want := fmt.Sprintf(`{"seq":%d,"prev":"%s","time":"`, c.seq+1, c.hash)
	n := min(len(want), len(text))
	return c.began && string(text[:n]) == want[:n]
}

func (c *cursor) close() error {
	if c.open == nil {
		return nil
	}
	err := c.open.Close()
	c.open = nil
	return err
}
