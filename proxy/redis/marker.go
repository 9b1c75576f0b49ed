package redis

import (
	"bytes"
	"fmt"
	"strconv"
	"strings"
	"sync"

	"github.com/chaperone-proxy/chaperone/authz"
	"github.com/chaperone-proxy/chaperone/internal/printable"
)

const (
	// markerName begins the name of every marker.
	markerName = "chaperone:"
	// maxMarkers is how many texts are kept for answers that have not come yet. Further
	// refusals have a text without a detail, which is made from the marker alone.
	maxMarkers = 4096
	// maxDetail is how long the detail of an error is at most, in bytes.
	maxDetail = 600
)

// markers are the commands that stand in the place of others: the server answers each with
// an error that has its name.
type markers struct {
	secret string

	mu      sync.Mutex
	next    uint64
	pending map[uint64]marker
}

// marker is what becomes of the answer to a marker.
type marker struct {
	text   []byte        // in its place, nil for nothing
	last   bool          // the connection ends behind it
	answer chan<- answer // receives the answer before it
}

// answer is the answer of a command.
type answer struct {
	failed bool // an error
	ok     bool // +OK
}

// add appends a marker to b. name is the part that a text can be made from.
func (m *markers) add(b []byte, as marker, name string) []byte {
	m.mu.Lock()
	m.next++
	n := m.next
	if len(m.pending) < maxMarkers || as.text == nil || as.last {
		if m.pending == nil {
			m.pending = make(map[uint64]marker)
		}
		m.pending[n] = as
	}
	m.mu.Unlock()
	return appendRequest(b, markerName+m.secret+":"+strconv.FormatUint(n, 10)+":"+name)
}

// take returns what becomes of an error of the server, if it is the answer to a marker.
func (m *markers) take(line []byte) (marker, bool) {
	_, rest, found := bytes.Cut(line, []byte(markerName+m.secret+":"))
	if !found {
		return marker{}, false
	}
	text, _, _ := strings.Cut(string(rest), "'") // of Redis 7; earlier ones have a backtick
	text, _, _ = strings.Cut(text, "`")
	number, name, _ := strings.Cut(text, ":")
	n, err := strconv.ParseUint(number, 10, 64)
	if err != nil {
		return marker{}, false
	}
	m.mu.Lock()
	as, known := m.pending[n]
	delete(m.pending, n)
	m.mu.Unlock()
	if !known {
		as.text = shortError(name)
	}
	return as, true
}

// okName is the name of a marker that stands for a command answered by +OK.
const okName = "OK"

// refusalName is the name of a refusal's marker.
func refusalName(r *authz.Refusal) string { return r.Reason.String() + ":" + r.Decision }

// shortError returns the text of a marker whose text was not kept.
func shortError(name string) []byte {
	if name == okName {
		return []byte("+OK\r\n")
	}
	reason, decision, _ := strings.Cut(name, ":")
	return fmt.Appendf(nil, "-NOPERM chaperone: %s (decision %s)\r\n", reason, decision)
}

// errorOf returns a refusal as an error of Redis: one line with the reason, what was
// refused, the remedy and the decision.
func errorOf(r *authz.Refusal) []byte {
	code := "ERR"
	if r.Reason.Status() == 403 {
		code = "NOPERM" // as for the server's own access control lists
	}
	text := r.Reason.String() + ": " + r.Detail
	if r.Remedy != "" {
		text += "; " + r.Remedy
	}
	text = strings.NewReplacer("\r", " ", "\n", " ").Replace(printable.Clip(text, maxDetail))
	return fmt.Appendf(nil, "-%s chaperone: %s (decision %s)\r\n", code, text, r.Decision)
}

// replaceError returns what the plugin reads in the place of an error of the server. The
// answer before it was of a kind, and ok if it was +OK.
func (r *relay) replaceError(line []byte, kind byte, ok bool) (text []byte, replaced bool) {
	if as, found := r.markers.take(line); found {
		if as.answer != nil {
			as.answer <- answer{failed: kind == '-', ok: ok}
		}
		r.answers.last = as.last
		return as.text, true
	}
	if bytes.HasPrefix(line, []byte("-MOVED ")) || bytes.HasPrefix(line, []byte("-ASK ")) {
		return []byte("-ERR chaperone: the server is a node of a cluster and refers to another one; clusters are not supported yet\r\n"), true
	}
	return nil, false
}
