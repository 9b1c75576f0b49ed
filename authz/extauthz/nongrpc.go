package extauthz

import (
	"context"
	"fmt"
	"net"
	"slices"
	"time"

	"go.uber.org/zap"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/tap"

	"github.com/chaperone-proxy/chaperone/authz"
)

// An ext_authz filter with this socket as its http_service sends the plugin's own
// request here, with the plugin's path and headers, and treats every 2xx status as
// "allowed". gRPC answers with status 200 even for errors: unknown methods, a call
// without a message. A plugin could therefore pass a request without a decision, by
// giving it the form of a gRPC call.
//
// Two measures prevent it. A call that is not gRPC is refused before it is handled:
// gRPC sends no Content-Length (gRPC over HTTP/2, "Requests"), and Envoy's
// http_service always does (RawHttpClientImpl::check). And no answer without a message
// has a 2xx status.

// servedMethods are the methods that this server serves.
func servedMethods() []string {
	return []string{
		"/" + ServiceName + "/Check",
		"/grpc.health.v1.Health/Check", "/grpc.health.v1.Health/Watch", "/grpc.health.v1.Health/List",
		methodAccessLogs,
	}
}

// intercept refuses calls that are not gRPC or name an unknown method
// (tap.ServerInHandle).
func (s *Server) intercept(ctx context.Context, call *tap.Info) (context.Context, error) {
	known := slices.Contains(s.methods, call.FullMethodName)
	if known && len(call.Header["content-length"]) == 0 {
		return ctx, nil
	}
	s.recordMisuse(call)
	if known {
		return nil, status.Error(codes.InvalidArgument, "not a call of gRPC")
	}
	return nil, status.Error(codes.Unimplemented, "no such method")
}

// recordMisuse records a call that is not for this server, at most once a second: the
// plugin may be the caller.
func (s *Server) recordMisuse(call *tap.Info) {
	n := s.misuse.Take(time.Now())
	if n == 0 {
		return
	}
	detail := "ext_authz socket called by a client that is not the gRPC filter: the filter's configuration may name it as an http_service"
	if n > 1 {
		detail += fmt.Sprintf("; %d more calls before", n-1)
	}
	attempt := authz.Attempt{
		Principal: s.cfg.Plugin, Method: "POST", Detail: detail,
		URL: string(authz.SchemeHTTPS) + "://" + firstHeader(call.Header, ":authority") + call.FullMethodName,
	}
	refusal, err := s.cfg.Gate.Refuse(authz.MalformedRequest, attempt, authz.Source{Door: authz.DoorExtAuthz, UID: -1})
	s.logUnrecorded(refusal, err)
	s.log.Error("ext_authz socket misused", zap.String("method", quote(call.FullMethodName)), zap.String("decision", refusal.Decision), zap.String("detail", detail))
	if s.cfg.Refused != nil {
		s.cfg.Refused(refusal)
	}
}

func firstHeader(md metadata.MD, name string) string {
	if values := md.Get(name); len(values) > 0 {
		return values[0]
	}
	return ""
}

// Parts of HTTP/2's framing (RFC 9113, section 4.1; RFC 7541, appendix A).
const (
	frameHead      = 9
	frameTypeAt    = 3
	frameFlagsAt   = 4
	frameHeaders   = 0x1
	flagEndStream  = 0x1
	indexed200     = 0x88 // ":status: 200", an indexed field of HPACK's static table
	indexed400     = 0x8c // ":status: 400"
	bitsOfOneOctet = 8
)

// trailersOnlyConn is a server-side gRPC connection that sends no answer without a
// message with HTTP status 200. Such an answer is one HEADERS frame that ends its
// stream and begins with the status; it gets status 400 instead. gRPC clients still
// read its grpc-status (gRPC over HTTP/2, "Responses": Trailers-Only).
type trailersOnlyConn struct {
	net.Conn

	head    [frameHead]byte
	headLen int  // bytes in head
	left    int  // bytes left of the frame's payload
	first   bool // the next payload byte is the first of such an answer
}

// Write writes frames, which may be partial.
func (c *trailersOnlyConn) Write(frames []byte) (int, error) {
	out := frames
	for i := 0; i < len(frames); {
		if c.left > 0 {
			if c.first && frames[i] == indexed200 {
				out = slices.Clone(out)
				out[i] = indexed400
			}
			c.first = false
			n := min(c.left, len(frames)-i)
			c.left, i = c.left-n, i+n
			continue
		}
		n := copy(c.head[c.headLen:], frames[i:])
		if c.headLen, i = c.headLen+n, i+n; c.headLen == frameHead {
			c.headLen = 0
			c.left = int(c.head[0])<<(2*bitsOfOneOctet) | int(c.head[1])<<bitsOfOneOctet | int(c.head[2])
			c.first = c.head[frameTypeAt] == frameHeaders && c.head[frameFlagsAt]&flagEndStream != 0
		}
	}
	return c.Conn.Write(out)
}
