package testenv

import (
	"context"
	"errors"
	"io"
	"strconv"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

// The methods of the gRPC service that every [Upstream] serves. Messages are
// google.protobuf.StringValue. Each call answers with the header
// "x-seen-authorization-count" and ends with the trailer "x-echoed", the
// number of messages, so that a client sees whether both came through.
const (
	// EchoUnary answers with the message it was sent; "fail" is answered with
	// FAILED_PRECONDITION.
	EchoUnary = "/chaperone.testenv.Echo/Unary"
	// EchoChat answers every message with the same one, until the client
	// closes its side or cancels.
	EchoChat = "/chaperone.testenv.Echo/Chat"
	// EchoTicks takes one message and answers with it again and again, without
	// end.
	EchoTicks = "/chaperone.testenv.Echo/Ticks"
)

// EchoStream describes EchoChat and EchoTicks to [grpc.ClientConn.NewStream].
func EchoStream() *grpc.StreamDesc {
	return &grpc.StreamDesc{StreamName: "Chat", ServerStreams: true, ClientStreams: true}
}

// echoService is registered by hand, which spares the build a code generator.
type echoService interface{ isEcho() }

type echo struct{}

func (echo) isEcho() {}

func newEchoServer() *grpc.Server {
	server := grpc.NewServer()
	server.RegisterService(&grpc.ServiceDesc{
		ServiceName: "chaperone.testenv.Echo",
		HandlerType: (*echoService)(nil),
		Methods:     []grpc.MethodDesc{{MethodName: "Unary", Handler: echoUnary}},
		Streams: []grpc.StreamDesc{
			{StreamName: "Chat", Handler: echoChat, ServerStreams: true, ClientStreams: true},
			{StreamName: "Ticks", Handler: echoTicks, ServerStreams: true},
		},
	}, echo{})
	return server
}

func seen(ctx context.Context) metadata.MD {
	in, _ := metadata.FromIncomingContext(ctx)
	count := string(rune('0' + min(len(in.Get("authorization")), 9)))
	return metadata.Pairs("x-seen-authorization-count", count)
}

//nolint:revive // the order of the arguments is grpc's
func echoUnary(_ any, ctx context.Context, decode func(any) error, _ grpc.UnaryServerInterceptor) (any, error) {
	message := new(wrapperspb.StringValue)
	if err := decode(message); err != nil {
		return nil, err
	}
	if err := grpc.SetHeader(ctx, seen(ctx)); err != nil {
		return nil, err
	}
	if err := grpc.SetTrailer(ctx, metadata.Pairs("x-echoed", "1")); err != nil {
		return nil, err
	}
	if message.GetValue() == "fail" {
		return nil, status.Error(codes.FailedPrecondition, "asked to fail")
	}
	return message, nil
}

func echoChat(_ any, stream grpc.ServerStream) error {
	if err := stream.SendHeader(seen(stream.Context())); err != nil {
		return err
	}
	echoed := 0
	for {
		message := new(wrapperspb.StringValue)
		err := stream.RecvMsg(message)
		if errors.Is(err, io.EOF) {
			stream.SetTrailer(metadata.Pairs("x-echoed", strconv.Itoa(echoed)))
			return nil
		}
		if err != nil {
			return err
		}
		if err := stream.SendMsg(message); err != nil {
			return err
		}
		echoed++
	}
}

func echoTicks(_ any, stream grpc.ServerStream) error {
	message := new(wrapperspb.StringValue)
	if err := stream.RecvMsg(message); err != nil {
		return err
	}
	for stream.Context().Err() == nil {
		if err := stream.SendMsg(message); err != nil {
			return err
		}
	}
	return stream.Context().Err()
}
