package postgres

import (
	"bytes"
	"fmt"
	"strconv"

	"github.com/chaperone-proxy/chaperone/authz"
)

const (
	// maxTag is the size of a CommandComplete that is read, maxError that of an
	// ErrorResponse. A longer one passes unread; the server's answer to the text in
	// place of a refused statement is shorter.
	maxTag   = headerSize + 128
	maxError = headerSize + 4096
	// maxParameter is the size of a ParameterStatus at most.
	maxParameter = headerSize + 16<<10
)

// unexpectedError ends a session for a message that no server sends then.
type unexpectedError struct{ detail string }

func (e *unexpectedError) Error() string { return e.detail }

// pinChangedError ends a session in which a setting changed that decides how statements are read.
type pinChangedError struct{ name string }

func (e *pinChangedError) Error() string {
	return "the setting " + e.name + " changed, on which the reading of statements depends"
}

// toPlugin looks at the server's messages. It rewrites the answers to refused statements,
// and follows which statements have ended.
type toPlugin struct {
	pipe     *pipeline
	marker   marker
	pins     map[string]string // settings that must stay as they are
	received int64             // bytes of frames so far
	ended    []running         // statements, recorded once the plugin has the answer
}

// need implements inspector.
func (s *toPlugin) need(kind byte, total int) (int, error) {
	s.received += int64(total)
	switch kind {
	case msgDataRow, msgCopyData, msgNotice, msgNotification, msgCopyDone, msgParameterDescription,
		msgCopyOutResponse, msgFunctionCallResponse:
		return 0, nil
	case msgCommandComplete:
		return min(total, maxTag), nil
	case msgErrorResponse:
		return min(total, maxError), nil
	case msgParameterStatus:
		if total > maxParameter {
			return 0, &unexpectedError{"the database reported a setting that is too long"}
		}
		return total, nil
	case msgReadyForQuery:
		if total != headerSize+1 {
			return 0, &unexpectedError{"the database sent a ReadyForQuery that is not one"}
		}
		return total, nil
	case msgParseComplete, msgBindComplete, msgCloseComplete, msgNoData, msgRowDescription, msgEmptyQuery,
		msgPortalSuspended, msgCopyInResponse:
		return headerSize, nil
	}
	return 0, &unexpectedError{fmt.Sprintf("the database sent a message of type 0x%02x, which does not belong in a session", kind)}
}

// inspect implements inspector.
func (s *toPlugin) inspect(frame []byte, total int) ([]byte, error) {
	switch frame[0] {
	case msgParseComplete, msgBindComplete, msgCloseComplete, msgNoData, msgRowDescription:
		s.pipe.answered()
	case msgCommandComplete:
		s.finish(s.pipe.completed(rows(frame[headerSize:]), s.received))
	case msgEmptyQuery, msgPortalSuspended:
		s.finish(s.pipe.completed(0, s.received))
	case msgCopyInResponse:
		if !s.pipe.copyBegins() {
			return nil, &unexpectedError{"the database reads the data of a COPY that was not sent"}
		}
	case msgReadyForQuery:
		s.ended = s.pipe.ready(frame[headerSize], s.received, s.ended)
	case msgParameterStatus:
		return nil, s.parameter(frame[headerSize:])
	case msgErrorResponse:
		if total > len(frame) {
			s.pipe.error("")
			return nil, nil
		}
		return s.error(frame), nil
	}
	return nil, nil
}

// finish takes a statement that has ended; without a statement it does nothing.
func (s *toPlugin) finish(r running) {
	if r.statement != nil {
		s.ended = append(s.ended, r)
	}
}

// recordEnds records the ends of statements.
func (s *toPlugin) recordEnds() {
	for _, r := range s.ended {
		r.statement.End(r.outcome)
	}
	clear(s.ended)
	s.ended = s.ended[:0]
}

// error returns the refusal in place of the server's answer to its text, nil for any other error.
func (s *toPlugin) error(frame []byte) []byte {
	state := errorField(frame, 'C')
	if len(state) == 5 {
		s.pipe.error("SQLSTATE " + state)
	} else {
		s.pipe.error("")
	}
	id := s.marker.decision(frame)
	if id == "" {
		return nil
	}
	r, ok := s.pipe.refusal(id)
	if !ok { // of which there were too many to keep
		r = authz.Refusal{Reason: authz.StatementNotGranted, Decision: id}
	}
	return errorMessage(severityError, stateOf(r.Reason), &r)
}

// parameter refuses a change of a pinned setting.
func (s *toPlugin) parameter(body []byte) error {
	name, rest, _ := bytes.Cut(body, []byte{0})
	value, _, ok := bytes.Cut(rest, []byte{0})
	if pinned, is := s.pins[string(name)]; is && (!ok || pinned != string(value)) {
		for known := range s.pins {
			if known == string(name) {
				return &pinChangedError{known}
			}
		}
	}
	return nil
}

// rows returns the number of rows of a command tag: its last word, if that is a number.
func rows(body []byte) int64 {
	tag, _, _ := bytes.Cut(body, []byte{0})
	n, err := strconv.ParseInt(string(tag[bytes.LastIndexByte(tag, ' ')+1:]), 10, 64)
	if err != nil {
		return 0
	}
	return n
}
