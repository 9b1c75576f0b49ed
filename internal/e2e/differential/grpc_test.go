package differential

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

// addGRPC serves the service Echo by grpc-go: with its defaults, in plain text,
// and with connections that get old.
func addGRPC(l *lab) {
	secure := grpc.Creds(credentials.NewTLS(&tls.Config{Certificates: []tls.Certificate{l.pair}}))
	l.grpc(l.address("grpc", "https", 443), secure)
	l.grpc(l.address("grpc", "http", 80))
	l.grpc(l.address("grpc-recycle", "https", 443), secure, grpc.KeepaliveParams(keepalive.ServerParameters{
		MaxConnectionAge: 500 * time.Millisecond, MaxConnectionAgeGrace: time.Second,
	}))
}

type echoService interface{ isEcho() }

type grpcEcho struct{}

func (grpcEcho) isEcho() {}

// grpc serves Echo, registered by hand, which spares the build a code generator.
func (l *lab) grpc(address string, options ...grpc.ServerOption) {
	server := grpc.NewServer(options...)
	stream := func(name string, handler grpc.StreamHandler) grpc.StreamDesc {
		return grpc.StreamDesc{StreamName: name, Handler: handler, ServerStreams: true, ClientStreams: true}
	}
	server.RegisterService(&grpc.ServiceDesc{
		ServiceName: "chaperone.differential.Echo", HandlerType: (*echoService)(nil),
		Methods: []grpc.MethodDesc{{MethodName: "Unary", Handler: grpcUnary}},
		Streams: []grpc.StreamDesc{
			stream("Chat", grpcChat), stream("Ticks", grpcTicks(3*time.Second)), stream("Quiet", grpcTicks(150*time.Second)), stream("Wait", grpcWait), stream("Large", grpcLarge),
		},
	}, grpcEcho{})
	listener := l.listen(address)
	go func() { _ = server.Serve(listener) }() // until it is stopped
	l.t.Cleanup(server.Stop)
}

//nolint:revive // the order of the arguments is grpc's
func grpcUnary(_ any, ctx context.Context, decode func(any) error, _ grpc.UnaryServerInterceptor) (any, error) {
	message := new(wrapperspb.StringValue)
	if err := decode(message); err != nil {
		return nil, err
	}
	if message.GetValue() == "wait" { // until the client or the server ends it
		<-ctx.Done()
		return nil, ctx.Err()
	}
	in, _ := metadata.FromIncomingContext(ctx)
	_ = grpc.SetHeader(ctx, metadata.Pairs("x-asked", strings.Join(in.Get("x-asked"), ",")))                       // the client sees that it is missing
	_ = grpc.SetTrailer(ctx, metadata.Pairs("x-blob-bin", strings.Join(in.Get("x-blob-bin"), ","), "x-done", "1")) // as above
	if name, found := strings.CutPrefix(message.GetValue(), "fail "); found {
		return nil, status.Error(map[string]codes.Code{"denied": codes.PermissionDenied, "missing": codes.NotFound, "unavailable": codes.Unavailable}[name], "as asked: 100 % \u00fc\n")
	}
	return message, nil
}

func grpcChat(_ any, stream grpc.ServerStream) error {
	for {
		message := new(wrapperspb.StringValue)
		err := stream.RecvMsg(message)
		if errors.Is(err, io.EOF) {
			stream.SetTrailer(metadata.Pairs("x-done", "1"))
			return nil
		}
		if err == nil {
			err = stream.SendMsg(message)
		}
		if err != nil {
			return err
		}
	}
}

// grpcTicks sends one message at once and one after a pause.
func grpcTicks(pause time.Duration) grpc.StreamHandler {
	return func(_ any, stream grpc.ServerStream) error {
		if err := stream.SendMsg(wrapperspb.String("at once")); err != nil {
			return err
		}
		select {
		case <-time.After(pause):
		case <-stream.Context().Done():
			return stream.Context().Err()
		}
		return stream.SendMsg(wrapperspb.String("later"))
	}
}

// grpcWait answers when the deadline has passed, as a server that works on does.
func grpcWait(_ any, stream grpc.ServerStream) error {
	<-stream.Context().Done()
	return stream.Context().Err()
}

func grpcLarge(_ any, stream grpc.ServerStream) error {
	for range 20 {
		if err := stream.SendMsg(wrapperspb.String(string(pattern(1 << 20)))); err != nil {
			return err
		}
	}
	return nil
}
