package authz

import "strings"

// Trace sets the trace and span ids from a request's traceparent header (W3C Trace
// Context, section 3.2): version, trace id, parent span id and flags, in lower-case
// hexadecimal, separated by dashes. Versions after 00 may append more. A malformed
// value leaves the source without a trace.
func (s *Source) Trace(traceparent string) {
	const trace, span, end = 3, 36, 52 // offsets of the trace id, the span id and the rest
	if len(traceparent) < end+3 || traceparent[trace-1] != '-' || traceparent[span-1] != '-' || traceparent[end] != '-' {
		return
	}
	t, p := traceparent[trace:span-1], traceparent[span:end]
	if isTraceID(t) && isTraceID(p) {
		s.TraceID, s.SpanID = t, p
	}
}

// isTraceID reports whether an id is hexadecimal and not all zeros, which is the
// invalid id.
func isTraceID(id string) bool {
	return strings.Trim(id, "0123456789abcdef") == "" && strings.Trim(id, "0") != ""
}
