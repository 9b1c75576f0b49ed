package extauthz

import (
	"context"
	"testing"

	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/proto"

	"github.com/chaperone-proxy/chaperone/authz"
	"github.com/chaperone-proxy/chaperone/internal/testenv"
	"github.com/chaperone-proxy/chaperone/internal/unixsock"
)

// benchCheck is a request of some 780 bytes, as a browser-like client causes.
func benchCheck() *authv3.CheckRequest {
	return envoyCheck("GET", "https", "api.weather.example", "/v1/forecast/berlin?days=3&units=metric&lang=de",
		"accept", "application/json, text/plain, */*", "accept-encoding", "gzip, deflate, br", "accept-language", "de-DE,de;q=0.9,en;q=0.8",
		"cache-control", "no-cache", "x-request-id", "5d0a3c2e-6a1b-4f6e-9a33-7d5a7b2f8c11", "x-forwarded-proto", "https",
		"x-envoy-expected-rq-timeout-ms", "15000", "traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
		"cookie", "theme=dark; session=0123456789abcdef0123456789abcdef", "referer", "https://weather.example/cards/forecast")
}

// discardRecorder is a recorder that costs nothing.
type discardRecorder struct{}

func (discardRecorder) Record(*authz.Record) error { return nil }

// fixed answers every check with the same message: what grpc-go itself costs.
type fixed struct {
	authv3.UnimplementedAuthorizationServer

	answer *authv3.CheckResponse
}

func (f fixed) Check(context.Context, *authv3.CheckRequest) (*authv3.CheckResponse, error) {
	return f.answer, nil
}

// quietly makes the house keep no records.
func (h *house) quietly(t testing.TB) {
	t.Helper()
	h.gate = testenv.MustGet(authz.NewGate(authz.GateConfig{
		Engine: h.engine, Ledger: authz.NewLedger(), Recorder: discardRecorder{}, Credentials: h.leases, Now: h.now,
	}))(t)
}

func benchHouse(b *testing.B) *house {
	b.Helper()
	h := newHouse(b)
	h.quietly(b)
	return h
}

// BenchmarkParts is a check without its transport, part by part.
func BenchmarkParts(b *testing.B) {
	s := benchHouse(b).server(b, Config{})
	defer s.Close()
	ctx := trustedContext(b.Context())
	wire := mem.BufferSlice{mem.SliceBuffer(testenv.MustGet(proto.Marshal(benchCheck()))(b))}
	in, out := new(checkMessage), answer{}
	b.Run("read", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			in = new(checkMessage)
			testenv.Must(b, newCodec().Unmarshal(wire, in))
		}
	})
	b.Run("respond", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			if out = s.respond(ctx, in); out.verdict != allowed {
				b.Fatal(out)
			}
		}
	})
	b.Run("encode", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			out.encode()
		}
	})
}

// BenchmarkCheck asks over a unix socket; BenchmarkFloor asks an empty handler
// that answers the same message.
func BenchmarkCheck(b *testing.B) {
	benchOver(b, benchHouse(b).serve(b, Config{}, "unix:"+socketIn(b)).String())
}

func BenchmarkFloor(b *testing.B) {
	s := benchHouse(b).server(b, Config{})
	defer s.Close()
	answer, err := s.Check(trustedContext(b.Context()), benchCheck())
	if err != nil || answer.GetOkResponse() == nil {
		b.Fatal(answer, err)
	}
	path := socketIn(b)
	listener := testenv.MustGet(unixsock.Listen(b.Context(), path, unixsock.Config{}))(b)
	server := grpc.NewServer()
	authv3.RegisterAuthorizationServer(server, fixed{answer: answer})
	done := make(chan error, 1)
	go func() { done <- server.Serve(listener) }()
	b.Cleanup(func() {
		server.Stop()
		if err := <-done; err != nil {
			b.Error(err)
		}
	})
	benchOver(b, path)
}

func benchOver(b *testing.B, path string) {
	conn := testenv.MustGet(grpc.NewClient("unix:"+path, grpc.WithTransportCredentials(insecure.NewCredentials())))(b)
	defer conn.Close()
	client, in := authv3.NewAuthorizationClient(conn), benchCheck()
	b.ReportAllocs()
	b.SetParallelism(4)
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			out, err := client.Check(b.Context(), in)
			if err != nil || out.GetOkResponse() == nil {
				b.Error(out, err)
				return
			}
		}
	})
}
