package http1head

import (
	"bytes"
	"io"
	"net/http"
	"strconv"
	"strings"
)

// Scanner watches the heads of the HTTP/1.1 requests on a connection as
// net/http reads them. Beside an absolute URI net/http ignores and drops Host,
// as RFC 9112, section 3.2.2, demands of a server; here what disagrees is
// refused, so that Host must be seen. It changes no byte. Where framing is not
// beyond doubt it goes blind, and what it has not seen is refused.
type Scanner struct {
	source  io.Reader
	maxLine int // bytes of a head or a line of a chunk that are looked at

	state headState
	line  []byte     // of a head or a chunk, until it is complete
	skip  int64      // bytes of body still to come
	seen  []wireHead // heads that no request was made of yet
}

type headState uint8

const (
	inHead headState = iota
	inBody
	inChunkSize
	inChunk
	inChunkEnd
	inTrailer
	untracked
)

// wireHead is the head as it was sent.
type wireHead struct {
	method, target, host string
}

// maxSeen bounds how many pipelined requests are remembered.
const maxSeen = 64

// NewScanner returns a reader of source for a server that takes heads of so many bytes.
func NewScanner(source io.Reader, maxHeaderBytes int) *Scanner {
	return &Scanner{source: source, maxLine: maxHeaderBytes + 4096} // as net/http counts
}

// Read implements io.Reader.
func (h *Scanner) Read(b []byte) (int, error) {
	n, err := h.source.Read(b)
	h.observe(b[:n])
	return n, err
}

// Take returns the Host of the request that net/http has just read. It is
// unclear when that is not the request that was seen.
func (h *Scanner) Take(r *http.Request) (host string, unclear bool) {
	if len(h.seen) == 0 {
		return "", true
	}
	head := h.seen[0]
	h.seen = h.seen[1:]
	if head.method != r.Method || head.target != r.RequestURI {
		h.untrack()
		return "", true
	}
	return head.host, false
}

func (h *Scanner) untrack() { h.state, h.line, h.seen = untracked, nil, nil }

// observe takes in what was read.
func (h *Scanner) observe(b []byte) {
	for len(b) > 0 && h.state != untracked {
		switch h.state {
		case inBody, inChunk:
			n := min(int64(len(b)), h.skip)
			b = b[n:]
			if h.skip -= n; h.skip == 0 {
				h.state = h.after()
			}
		default:
			b = h.observeLine(b)
		}
	}
}

// after returns what follows a body or a chunk that is complete.
func (h *Scanner) after() headState {
	if h.state == inBody {
		return inHead
	}
	return inChunkEnd
}

// observeLine takes in a part of a line, or of a head up to its empty line.
func (h *Scanner) observeLine(b []byte) []byte {
	end := bytes.IndexByte(b, '\n')
	if end < 0 {
		end = len(b) - 1
	}
	h.line = append(h.line, b[:end+1]...)
	b = b[end+1:]
	if len(h.line) > h.maxLine { // net/http refuses it too
		h.untrack()
		return nil
	}
	if h.line[len(h.line)-1] != '\n' {
		return b
	}
	switch h.state {
	case inHead:
		h.headLine()
	case inChunkSize:
		h.chunkSize()
	case inChunkEnd:
		if string(h.line) != "\r\n" {
			h.untrack()
			return nil
		}
		h.state, h.line = inChunkSize, h.line[:0]
	case inTrailer:
		if len(bytes.TrimRight(h.line, "\r\n")) == 0 {
			h.state = inHead
		}
		h.line = h.line[:0]
	default:
		h.untrack()
	}
	return b
}

// headLine parses the head once its empty line is there. Empty lines before it do
// not belong to it (RFC 9112, section 2.2: some clients send one after the body of a POST,
// and net/http takes it there).
func (h *Scanner) headLine() {
	if len(bytes.TrimRight(h.line, "\r\n")) == 0 {
		h.line = h.line[:0]
		return
	}
	if !bytes.HasSuffix(h.line, []byte("\n\r\n")) && !bytes.HasSuffix(h.line, []byte("\n\n")) {
		return
	}
	head := string(h.line)
	h.line = h.line[:0]
	first, rest, _ := strings.Cut(head, "\n")
	method, after, _ := strings.Cut(first, " ")
	target, _, _ := strings.Cut(after, " ")
	seen := wireHead{method: method, target: target}
	length, chunked, certain := framing(rest, &seen)
	switch {
	case !certain || len(h.seen) == maxSeen || method == "PRI":
		h.state = untracked // after this one
	case chunked:
		h.state = inChunkSize
	case length > 0:
		h.state, h.skip = inBody, length
	}
	if len(h.seen) < maxSeen {
		h.seen = append(h.seen, seen)
	}
}

// framing reads the fields that say how long the body is, and Host. A line that
// begins with a space continues the one before (RFC 9112, section 5.2).
func framing(fields string, head *wireHead) (length int64, chunked, certain bool) {
	certain = true
	lengths, last := 0, ""
	for line := range strings.SplitSeq(fields, "\n") {
		line = strings.TrimSuffix(line, "\r")
		if line == "" {
			continue
		}
		name, value, ok := strings.Cut(line, ":")
		if folded := line[0] == ' ' || line[0] == '\t'; folded {
			name, value, ok = last, line, last == "Host" || last == ""
		} else {
			last = ""
		}
		value = strings.Trim(value, " \t")
		switch {
		case strings.EqualFold(name, "Host"):
			last, head.host = "Host", strings.Trim(head.host+" "+value, " \t")
		case strings.EqualFold(name, "Transfer-Encoding"):
			last, chunked = "Transfer-Encoding", true
			certain = certain && strings.EqualFold(value, "chunked")
		case strings.EqualFold(name, "Content-Length"):
			n, err := strconv.ParseUint(value, 10, 62)
			last, length = "Content-Length", int64(n)
			lengths++
			certain = certain && err == nil
		}
		certain = certain && ok
	}
	if lengths > 1 || lengths == 1 && chunked {
		certain = false
	}
	return length, chunked, certain
}

// chunkSize reads the line before a chunk (RFC 9112, section 7.1).
func (h *Scanner) chunkSize() {
	text, _, _ := strings.Cut(strings.TrimRight(string(h.line), "\r\n"), ";")
	h.line = h.line[:0]
	size, err := strconv.ParseUint(strings.TrimSpace(text), 16, 62)
	switch {
	case err != nil:
		h.untrack()
	case size == 0:
		h.state = inTrailer
	default:
		h.state, h.skip = inChunk, int64(size)
	}
}
