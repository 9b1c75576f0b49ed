// Command rivals decides the same accesses as Chaperone with engines that are
// embedded in Go programs for that: OPA, Cedar and CEL. bench starts it, as
// what answers Envoy's ext_authz checks, or to measure decisions alone.
//
//	rivals serve ENGINE SCENE NETWORK:ADDRESS    # prints where it listens
//	rivals decide SCENE...                       # prints what a decision costs, as JSON
//
// SCENE is a JSON file with rules, requests and answers; see [Scene].
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"
)

// Scene is what is decided: bench writes it.
type Scene struct {
	Principal string
	Rules     []Rule
	Requests  []Request
	// Allowed and Denied are the CheckResponses to answer with.
	Allowed, Denied []byte
}

// Rule allows some methods at the hosts that are one label below a name, and
// below a path.
type Rule struct {
	Below   string
	Methods []string
	Prefix  string
}

// Request is one access, and what has to be decided about it.
type Request struct {
	Principal, Method, Host, Path string
	Allowed                       bool
}

func main() {
	err := errors.New("say serve ENGINE SCENE NETWORK:ADDRESS, or decide SCENE")
	switch args := os.Args[1:]; {
	case len(args) == 4 && args[0] == "serve":
		err = serve(args[1], args[2], args[3])
	case len(args) > 1 && args[0] == "decide":
		err = decide(args[1:])
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "rivals:", err)
		os.Exit(1)
	}
}

func readScene(path string) (*Scene, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	scene := new(Scene)
	return scene, json.Unmarshal(text, scene)
}

// engine decides one access.
type engine interface {
	allows(ctx context.Context, r Request) (bool, error)
}

// engines returns how each is made, by name.
func engines() map[string]func(*Scene) (engine, error) {
	return map[string]func(*Scene) (engine, error){"opa": newOPA, "cedar-go": newCedar, "cel-go": newCEL}
}

// server is a plain grpc-go server with an engine behind it.
type server struct {
	authv3.UnimplementedAuthorizationServer

	engine          engine
	allowed, denied *authv3.CheckResponse
}

// Check decides and returns one of two answers that were made beforehand.
func (s *server) Check(ctx context.Context, in *authv3.CheckRequest) (*authv3.CheckResponse, error) {
	http := in.GetAttributes().GetRequest().GetHttp()
	path, _, _ := strings.Cut(http.GetPath(), "?")
	ok, err := s.engine.allows(ctx, Request{
		Principal: in.GetAttributes().GetSource().GetPrincipal(), Method: http.GetMethod(), Host: http.GetHost(), Path: path,
	})
	if err != nil {
		return nil, err
	}
	if ok {
		return s.allowed, nil
	}
	return s.denied, nil
}

func serve(name, file, address string) error {
	scene, err := readScene(file)
	if err != nil {
		return err
	}
	made := engines()[name]
	if made == nil {
		return fmt.Errorf("no engine is called %q", name)
	}
	s := &server{allowed: new(authv3.CheckResponse), denied: new(authv3.CheckResponse)}
	if s.engine, err = made(scene); err != nil {
		return err
	}
	if err := errors.Join(proto.Unmarshal(scene.Allowed, s.allowed), proto.Unmarshal(scene.Denied, s.denied)); err != nil {
		return err
	}
	network, address, _ := strings.Cut(address, ":")
	l, err := new(net.ListenConfig).Listen(context.Background(), network, address)
	if err != nil {
		return err
	}
	g := grpc.NewServer()
	authv3.RegisterAuthorizationServer(g, s)
	fmt.Printf("%s:%s\n", network, l.Addr())
	return g.Serve(l)
}

// Cost is what one decision costs.
type Cost struct {
	Engine      string
	Rules       int
	Nanoseconds int64
	Allocations int64
}

// decide measures every engine on every scene.
func decide(files []string) error {
	var costs []Cost
	for _, file := range files {
		scene, err := readScene(file)
		if err != nil {
			return err
		}
		for name, made := range engines() {
			e, err := made(scene)
			if err != nil {
				return err
			}
			cost, err := measure(e, scene.Requests)
			if err != nil {
				return fmt.Errorf("%s: %w", name, err)
			}
			cost.Engine, cost.Rules = name, len(scene.Rules)
			costs = append(costs, cost)
		}
	}
	return json.NewEncoder(os.Stdout).Encode(costs)
}

// measure verifies every decision once, and then times them.
func measure(e engine, requests []Request) (Cost, error) {
	ctx := context.Background()
	for _, r := range requests {
		if ok, err := e.allows(ctx, r); err != nil || ok != r.Allowed {
			return Cost{}, errors.Join(fmt.Errorf("%s %s%s: allowed is %t", r.Method, r.Host, r.Path, ok), err)
		}
	}
	turn := 0
	var failed error
	once := func() {
		if _, err := e.allows(ctx, requests[turn%len(requests)]); err != nil {
			failed = err
		}
		turn++
	}
	return Cost{Nanoseconds: fastest(once), Allocations: int64(testing.AllocsPerRun(len(requests), once))}, failed
}

// fastest returns what once takes in the fastest of many batches of some
// milliseconds: whatever else the machine does only slows.
func fastest(once func()) int64 {
	const batches, length = 40, 25 * time.Millisecond
	n := 1
	for begun := time.Now(); time.Since(begun) < length; n++ {
		once()
	}
	best := int64(math.MaxInt64)
	for range batches {
		begun := time.Now()
		for range n {
			once()
		}
		best = min(best, int64(time.Since(begun))/int64(n))
	}
	return best
}
