package main

import (
	"context"
	"encoding/json"
	"errors"
	"net"
	"os"
	"sync/atomic"

	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"
)

// emptyHandler is the least that a handler of grpc-go does: it decides nothing
// and returns, as often as Chaperone has to, one of the answers that Chaperone
// gave.
type emptyHandler struct {
	authv3.UnimplementedAuthorizationServer

	asked           atomic.Uint64
	allowed, denied *authv3.CheckResponse
}

// Check answers.
func (h *emptyHandler) Check(context.Context, *authv3.CheckRequest) (*authv3.CheckResponse, error) {
	if h.asked.Add(1)%5 == 0 {
		return h.denied, nil
	}
	return h.allowed, nil
}

// checkFloor serves the empty handler with the answers of a site.
func checkFloor(l net.Listener, file string) error {
	text, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	var s site
	if err := json.Unmarshal(text, &s); err != nil {
		return err
	}
	h := &emptyHandler{allowed: new(authv3.CheckResponse), denied: new(authv3.CheckResponse)}
	if err := errors.Join(proto.Unmarshal(s.Allowed, h.allowed), proto.Unmarshal(s.Denied, h.denied)); err != nil {
		return err
	}
	server := grpc.NewServer()
	authv3.RegisterAuthorizationServer(server, h)
	return server.Serve(l)
}
