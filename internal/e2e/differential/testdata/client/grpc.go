package main

import (
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

const service = "/chaperone.differential.Echo/"

// grpcClient: ADDRESS METHOD MESSAGE [DEADLINE]: METHOD is unary, many, chat, wait,
// cancel or stream.
func grpcClient(r *report, args []string) {
	secure := credentials.NewTLS(&tls.Config{})
	address := args[0]
	if plain, found := strings.CutPrefix(address, "plain:"); found {
		address, secure = plain, insecure.NewCredentials()
	}
	conn, err := grpc.NewClient(address, grpc.WithTransportCredentials(secure))
	if err != nil {
		r.fail(err)
		return
	}
	defer conn.Close()
	ctx, cancel := context.WithTimeout(context.Background(), deadline(args))
	defer cancel()
	ctx = metadata.AppendToOutgoingContext(ctx, "x-asked", "yes", "x-blob-bin", "\x00\xff")
	switch args[1] {
	case "unary":
		unary(ctx, r, conn, args[2])
	case "many":
		many(ctx, r, conn, args[2])
	case "cancel":
		chat(ctx, r, conn, "Chat", args[2], cancel)
	default:
		chat(ctx, r, conn, args[1], args[2], nil)
	}
}

func deadline(args []string) time.Duration {
	limit := 30 * time.Second
	if len(args) > 3 {
		limit, _ = time.ParseDuration(args[3])
	}
	return limit
}

func unary(ctx context.Context, r *report, conn *grpc.ClientConn, message string) {
	var header, trailer metadata.MD
	answer := new(wrapperspb.StringValue)
	err := conn.Invoke(ctx, service+"Unary", wrapperspb.String(message), answer, grpc.Header(&header), grpc.Trailer(&trailer))
	r.set("body", digest([]byte(answer.GetValue())))
	ended(r, err, header, trailer)
}

// ended notes the status and what came beside it.
func ended(r *report, err error, header, trailer metadata.MD) {
	r.set("grpc-status", status.Code(err))
	r.set("_grpc-message", status.Convert(err).Message())
	for name, values := range header {
		r.set("header "+name, fmt.Sprintf("%q", values))
	}
	for name, values := range trailer {
		r.set("trailer "+name, fmt.Sprintf("%q", values))
	}
}

// many calls for three seconds, each tenth of one: connections come to their age
// while it does.
func many(ctx context.Context, r *report, conn *grpc.ClientConn, message string) {
	counts := map[string]int{}
	for range 60 {
		err := conn.Invoke(ctx, service+"Unary", wrapperspb.String(message), new(wrapperspb.StringValue))
		counts[status.Code(err).String()]++
		if err != nil {
			r.set("_grpc-message", err)
		}
		time.Sleep(50 * time.Millisecond)
	}
	for code, n := range counts {
		r.set("of "+code, n)
	}
}

// chat sends a message, reads what comes, and ends in order, or by cancel after the
// first answer.
func chat(ctx context.Context, r *report, conn *grpc.ClientConn, method, message string, cancel func()) {
	stream, err := conn.NewStream(ctx, &grpc.StreamDesc{ServerStreams: true, ClientStreams: true}, service+method)
	if err != nil {
		ended(r, err, nil, nil)
		return
	}
	for range 3 {
		if err := stream.SendMsg(wrapperspb.String(message)); err != nil {
			break // RecvMsg says why
		}
	}
	if cancel == nil {
		_ = stream.CloseSend() // RecvMsg says why
	}
	received := 0
	for {
		err = stream.RecvMsg(new(wrapperspb.StringValue))
		if err != nil {
			break
		}
		r.time("first ")
		received++
		if cancel != nil {
			cancel()
		}
	}
	r.set("messages", min(received, received*boolInt(cancel == nil)+1))
	if err == io.EOF {
		err = nil
	}
	var header metadata.MD
	if err == nil {
		header, _ = stream.Header() // of a stream that ended well
	}
	ended(r, err, header, stream.Trailer())
}

func boolInt(b bool) int {
	if b {
		return 1
	}
	return 0
}
