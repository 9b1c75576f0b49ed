package proxy_test

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	grpctls "google.golang.org/grpc/credentials"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/chaperone-proxy/chaperone/authz"
	"github.com/chaperone-proxy/chaperone/internal/testenv"
)

// grpcEnds are what an upstream does with a call, by path. message is a complete
// empty message.
var grpcEnds = map[string]func(p *h2Peer, stream uint32) (open bool){
	"trailers alone": func(p *h2Peer, s uint32) bool {
		p.headers(s, true, ":status", "200", "content-type", "application/grpc", "grpc-status", "8", "grpc-message", "enough")
		return true
	},
	"trailers and a reset": func(p *h2Peer, s uint32) bool {
		p.headers(s, true, ":status", "200", "content-type", "application/grpc", "grpc-status", "5")
		return p.WriteRSTStream(s, http2.ErrCodeNo) == nil
	},
	"413 and a reset": func(p *h2Peer, s uint32) bool {
		p.headers(s, true, ":status", "413")
		return p.WriteRSTStream(s, http2.ErrCodeNo) == nil
	},
	"503 without gRPC": func(p *h2Peer, s uint32) bool {
		p.headers(s, false, ":status", "503", "content-type", "text/plain")
		return p.WriteData(s, true, []byte("no")) == nil
	},
	"lost at once":        func(*h2Peer, uint32) bool { return false },
	"goaway and lost":     func(p *h2Peer, s uint32) bool { return p.WriteGoAway(s, http2.ErrCodeEnhanceYourCalm, nil) != nil },
	"lost after messages": func(p *h2Peer, s uint32) bool { grpcMessages(p, s, "\x00\x00\x00\x00\x00"); return false },
	"trailers after messages": func(p *h2Peer, s uint32) bool {
		grpcMessages(p, s, "\x00\x00\x00\x00\x00")
		p.headers(s, true, "grpc-status", "9", "grpc-message", "later")
		return true
	},
	"end without a status": func(p *h2Peer, s uint32) bool {
		grpcMessages(p, s, "\x00\x00\x00\x00\x00")
		return p.WriteData(s, true, nil) == nil
	},
}

func grpcMessages(p *h2Peer, stream uint32, data string) {
	p.headers(stream, false, ":status", "200", "content-type", "application/grpc")
	_ = p.WriteData(stream, false, []byte(data))
	time.Sleep(20 * time.Millisecond) // so that the client has it
}

// newGRPCEnder serves grpcEnds, and resets with each code of HTTP/2 before and
// after messages.
func newGRPCEnder(t testing.TB) (up *h2Upstream, names []string) {
	for name := range grpcEnds {
		names = append(names, name)
	}
	resets := map[string]http2.ErrCode{}
	for code := http2.ErrCodeNo; code <= http2.ErrCodeHTTP11Required; code++ {
		for _, where := range []string{"before", "after"} {
			name := fmt.Sprintf("%s %s", code, where)
			names, resets[name] = append(names, name), code
		}
	}
	slices.Sort(names)
	return newH2Upstream(t, false, func(p *h2Peer) {
		_ = p.each(func(f http2.Frame) bool {
			h, ok := f.(*http2.MetaHeadersFrame)
			if !ok {
				return true
			}
			name := strings.ReplaceAll(strings.TrimPrefix(h.PseudoValue("path"), "/end/"), "-", " ")
			if end := grpcEnds[name]; end != nil {
				return end(p, h.StreamID)
			}
			if strings.HasSuffix(name, " after") {
				grpcMessages(p, h.StreamID, "\x00\x00\x00\x00\x00")
			}
			if name == "CANCEL before" {
				time.Sleep(60 * time.Millisecond) // as a server that ends at the deadline
			}
			return p.WriteRSTStream(h.StreamID, resets[name]) == nil
		})
	}), names
}

// TestGRPCEnds calls each end directly and through the proxy: the client must see the
// same status, which determines whether it retries.
func TestGRPCEnds(t *testing.T) {
	up, names := newGRPCEnder(t)
	w := newWorld(t, setup{input: granted(up.rule())})
	direct, err := grpc.NewClient("passthrough:///"+up.addr.String(),
		grpc.WithTransportCredentials(grpctls.NewTLS(&tls.Config{RootCAs: up.ca.Pool(), ServerName: "api.weather.example", MinVersion: tls.VersionTLS12})))
	testenv.Must(t, err)
	defer direct.Close()
	through := w.dialGRPC(up.authority())
	for _, name := range names {
		t.Run(name, func(t *testing.T) {
			_, want := callEnd(t, direct, name, 0)
			messages, got := callEnd(t, through, name, 0)
			if strings.HasPrefix(name, http2.ErrCodeFlowControl.String()) {
				want = status.Error(codes.Internal, "as gRPC and its C core have it; gRPC-Go makes it RESOURCE_EXHAUSTED")
			}
			if status.Code(got) != status.Code(want) {
				t.Errorf("the client sees %v, and directly %v", got, want)
			}
			if strings.HasSuffix(name, "after") && messages != 1 {
				t.Errorf("%d messages came before the end", messages)
			}
		})
	}
	w.settled()
	for _, r := range w.refused() {
		if strings.Contains(r.URL, "CANCEL") {
			t.Errorf("a stream that was cancelled is recorded as refused: %+v", r)
		}
	}
	details := map[string]bool{}
	for _, end := range w.records.of(authz.KindEnd) {
		details[end.Detail] = true
	}
	if !details["the upstream reset the stream: CANCEL"] || !details["the upstream reset the stream: ENHANCE_YOUR_CALM"] {
		t.Errorf("the ends are recorded as %v", details)
	}
}

// TestGRPCDeadline has the upstream end calls at their deadline.
func TestGRPCDeadline(t *testing.T) {
	up, _ := newGRPCEnder(t)
	w := newWorld(t, setup{input: granted(up.rule())})
	_, got := callEnd(t, w.dialGRPC(up.authority()), "CANCEL before", 50*time.Millisecond)
	if status.Code(got) != codes.DeadlineExceeded {
		t.Errorf("the client sees %v", got)
	}
}

// callEnd makes one call, and returns its end and how many messages came before.
func callEnd(t *testing.T, client *grpc.ClientConn, name string, timeout time.Duration) (messages int, end error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	if timeout > 0 {
		ctx, cancel = context.WithTimeout(t.Context(), timeout)
	}
	defer cancel()
	stream, err := client.NewStream(ctx, &grpc.StreamDesc{ServerStreams: true}, "/end/"+strings.ReplaceAll(name, " ", "-"), grpc.WaitForReady(true))
	testenv.Must(t, err)
	// A stream that has ended already gives io.EOF here; RecvMsg has its status.
	if err := stream.SendMsg(wrapperspb.String("x")); err != nil && !errors.Is(err, io.EOF) {
		return 0, err
	}
	_ = stream.CloseSend()
	for {
		if err := stream.RecvMsg(new(wrapperspb.StringValue)); err != nil {
			return messages, err
		}
		messages++
	}
}
