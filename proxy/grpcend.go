package proxy

import (
	"errors"
	"math"
	"net/http"
	"strconv"
	"strings"
	"time"

	"golang.org/x/net/http2"

	"github.com/chaperone-proxy/chaperone/internal/httpclean"
)

// Status codes of gRPC (https://github.com/grpc/grpc/blob/master/doc/statuscodes.md).
const (
	grpcCancelled         = 1
	grpcDeadlineExceeded  = 4
	grpcPermissionDenied  = 7
	grpcResourceExhausted = 8
	grpcInternal          = 13
	grpcUnavailable       = 14
)

// endStream answers a gRPC call whose stream the upstream reset before its answer with
// the status that a client derives from the reset, and reports whether it did. The
// upstream ended the call, so this is not a refusal.
func (x *exchange) endStream(err error) bool {
	code, ok := resetCode(err)
	if !ok || x.r.ProtoMajor != 2 || !isGRPC(x.r.Header) {
		return false
	}
	x.settleAnswer()
	x.outcome.Detail = "the upstream reset the stream: " + code.String()
	h := x.w.Header()
	clear(h)
	h["Content-Type"] = []string{"application/grpc"}
	h["Grpc-Status"] = []string{strconv.Itoa(x.grpcStatus(code))}
	h["Grpc-Message"] = []string{httpclean.GRPCMessage(x.outcome.Detail)}
	x.w.WriteHeader(http.StatusOK)
	return true
}

// endMessages ends a gRPC answer that the upstream ended early with the status that a
// client derives from that, in trailers. A client would take a reset by the server for
// INTERNAL and not try again. endMessages returns false for every other answer.
func (x *exchange) endMessages(h http.Header, response *http.Response, err error) bool {
	var broken *writeError
	if x.r.ProtoMajor != 2 || !isGRPC(response.Header) || x.session.CutCause() != nil || errors.As(err, &broken) || x.r.Context().Err() != nil {
		return false
	}
	status := grpcUnavailable // the connection was lost
	if code, ok := resetCode(err); ok {
		status = x.grpcStatus(code)
	}
	h[http.TrailerPrefix+"Grpc-Status"] = []string{strconv.Itoa(status)}
	h[http.TrailerPrefix+"Grpc-Message"] = []string{httpclean.GRPCMessage(x.outcome.Detail)}
	return true
}

// resetCode returns the code with which a stream to the upstream was reset
// (RFC 9113, section 6.4), by either side.
func resetCode(err error) (http2.ErrCode, bool) {
	if reset, ok := errors.AsType[http2.StreamError](err); ok { // net/http's own error converts to it
		return reset.Code, true
	}
	// net/http only quotes the error if it could not repeat the request; see
	// notProcessed.
	if text := err.Error(); strings.HasPrefix(text, "http2: Transport: cannot retry err [stream error: ") {
		if strings.Contains(text, "; REFUSED_STREAM; ") {
			return http2.ErrCodeRefusedStream, true
		}
		return http2.ErrCodeProtocol, true
	}
	return 0, false
}

// grpcStatus returns the status of a stream that was reset (gRPC over HTTP/2,
// "HTTP2 Transport Mapping, Errors"). A server resets a call with CANCEL when its
// deadline is over.
func (x *exchange) grpcStatus(code http2.ErrCode) int {
	switch code {
	case http2.ErrCodeCancel:
		if timeout, ok := grpcTimeout(x.r.Header); ok && time.Since(x.began) >= timeout {
			return grpcDeadlineExceeded
		}
		return grpcCancelled
	case http2.ErrCodeEnhanceYourCalm:
		return grpcResourceExhausted
	case http2.ErrCodeInadequateSecurity:
		return grpcPermissionDenied
	case http2.ErrCodeRefusedStream:
		return grpcUnavailable
	default:
		return grpcInternal
	}
}

// grpcTimeout returns how long a call may take (gRPC over HTTP/2, "Timeout": at
// most 8 digits and a unit).
func grpcTimeout(h http.Header) (time.Duration, bool) {
	if len(h["Grpc-Timeout"]) != 1 {
		return 0, false
	}
	text := h["Grpc-Timeout"][0]
	if len(text) < 2 || len(text) > 9 {
		return 0, false
	}
	n, err := strconv.ParseUint(text[:len(text)-1], 10, 32)
	unit, ok := map[byte]time.Duration{
		'H': time.Hour, 'M': time.Minute, 'S': time.Second, 'm': time.Millisecond, 'u': time.Microsecond, 'n': time.Nanosecond,
	}[text[len(text)-1]]
	if err != nil || !ok {
		return 0, false
	}
	return time.Duration(min(int64(n), math.MaxInt64/int64(unit)) * int64(unit)), true
}
