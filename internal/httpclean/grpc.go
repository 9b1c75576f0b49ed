package httpclean

import "strings"

// Status codes of gRPC that a refusal has
// (https://github.com/grpc/grpc/blob/master/doc/statuscodes.md).
const (
	grpcInvalidArgument   = 3
	grpcDeadlineExceeded  = 4
	grpcPermissionDenied  = 7
	grpcResourceExhausted = 8
	grpcUnavailable       = 14
)

// IsGRPC reports whether a media type is gRPC's. gRPC-Web is not: its clients read
// HTTP statuses.
func IsGRPC(contentType string) bool {
	const grpc = "application/grpc"
	if len(contentType) < len(grpc) || !strings.EqualFold(contentType[:len(grpc)], grpc) {
		return false
	}
	rest := contentType[len(grpc):]
	return rest == "" || rest[0] == '+' || rest[0] == ';'
}

// GRPCStatus returns the status code of gRPC for a refusal with an HTTP status. It is
// never OK.
func GRPCStatus(httpStatus int) int {
	switch httpStatus {
	case 400, 421:
		return grpcInvalidArgument
	case 429:
		return grpcResourceExhausted
	case 502, 503:
		return grpcUnavailable
	case 504:
		return grpcDeadlineExceeded
	}
	return grpcPermissionDenied
}

// GRPCMessage percent-encodes a grpc-message (gRPC over HTTP/2, "Responses":
// Percent-Encoded).
func GRPCMessage(s string) string {
	const digits = "0123456789ABCDEF"
	out := make([]byte, 0, len(s))
	for i := range len(s) {
		if c := s[i]; c < ' ' || c > '~' || c == '%' {
			out = append(out, '%', digits[c>>4], digits[c&0xf])
		} else {
			out = append(out, c)
		}
	}
	return string(out)
}
