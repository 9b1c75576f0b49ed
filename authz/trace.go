package authz

import "strings"

// Trace takes in the trace context of a request, the value of its traceparent
// header (W3C Trace Context, section 3.2): version, trace id, parent span id and
// flags, in lower-case hexadecimal with dashes between. Versions after 00 may add
// to the end. A value of another form leaves the source without a trace.
func (s *Source) Trace(traceparent string) {
	const trace, span, end = 3, 36, 52 // where trace id, span id and what follows begin
	if len(traceparent) < end+3 || traceparent[trace-1] != '-' || traceparent[span-1] != '-' || traceparent[end] != '-' {
		return
	}
	t, p := traceparent[trace:span-1], traceparent[span:end]
	if isTraceID(t) && isTraceID(p) {
		s.TraceID, s.SpanID = t, p
	}
}

// isTraceID reports whether an id is hexadecimal and not zero throughout, which
// stands for none.
func isTraceID(id string) bool {
	return strings.Trim(id, "0123456789abcdef") == "" && strings.Trim(id, "0") != ""
}
