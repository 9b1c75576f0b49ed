package extauthz

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"sync"
	"testing"
	"time"

	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	"go.uber.org/goleak"
	"google.golang.org/grpc/peer"
	"google.golang.org/protobuf/proto"

	"github.com/chaperone-proxy/chaperone/authz"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// canary is the credential; it must be nowhere but in the one slot.
const canary = "wk-canary-0193f6c2"

// leases is a source of credentials that never change.
type leases map[string]authz.Secret

func (l leases) Credential(ctx context.Context, _ authz.CredentialRef) (authz.Credential, error) {
	if err := ctx.Err(); err != nil {
		return authz.Credential{}, err
	}
	if l == nil {
		return authz.Credential{}, errors.New("nothing is leased")
	}
	return authz.Credential{Fields: l, Generation: 1, Lease: "lease-1"}, nil
}

// book keeps the audit records.
type book struct {
	mu      sync.Mutex
	records []authz.Record
	fail    error
	panics  bool
}

func (b *book) Record(r *authz.Record) error {
	if b.panics {
		panic("the recorder is broken")
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.fail != nil {
		return b.fail
	}
	b.records = append(b.records, *r)
	return nil
}

func (b *book) all() []authz.Record {
	b.mu.Lock()
	defer b.mu.Unlock()
	return append([]authz.Record(nil), b.records...)
}

// house is a gate and what is behind it.
type house struct {
	engine *authz.Engine
	gate   *authz.Gate
	book   *book
	leases leases
}

var testTime = time.Date(2030, 6, 1, 12, 0, 0, 0, time.UTC)

func newHouse(t testing.TB) *house {
	t.Helper()
	text, err := os.ReadFile("testdata/grant.json")
	if err != nil {
		t.Fatal(err)
	}
	grant := authz.Grant{Name: "weather"}
	if err := json.Unmarshal(text, &grant); err != nil {
		t.Fatal(err)
	}
	return newHouseOf(t, grant)
}

func newHouseOf(t testing.TB, grants ...authz.Grant) *house {
	t.Helper()
	h := &house{engine: new(authz.Engine), book: new(book), leases: leases{
		"api_key": authz.NewSecret(canary), "odd": authz.NewSecret(canary + "&a=b +%"), "latin1": authz.NewSecret(canary + "\xe9"),
	}}
	h.engine.Install(compile(t, grants...))
	var err error
	h.gate, err = authz.NewGate(authz.GateConfig{
		Engine: h.engine, Ledger: authz.NewLedger(), Recorder: h.book, Credentials: h.leases,
		Now: h.now,
	})
	if err != nil {
		t.Fatal(err)
	}
	return h
}

func (*house) now() time.Time { return testTime }

func compile(t testing.TB, grants ...authz.Grant) *authz.Policy {
	t.Helper()
	policy, problems := authz.Compile(authz.Input{Plugin: "weather", Grants: grants}, testTime)
	if len(problems) > 0 {
		t.Fatalf("compile: %+v", problems)
	}
	return policy
}

func (h *house) server(t testing.TB, cfg Config) *Server {
	t.Helper()
	cfg.Plugin, cfg.Gate = "weather", h.gate
	if cfg.Ready == nil {
		cfg.Ready = func() bool { return h.engine.Current().Ready() }
	}
	s, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// trustedContext is the context of a call on a connection that may see credentials.
func trustedContext(ctx context.Context) context.Context {
	return peer.NewContext(ctx, &peer.Peer{AuthInfo: caller{Trusted: true}})
}

// ask checks in, as a trusted caller.
func ask(t testing.TB, s *Server, in *authv3.CheckRequest) *authv3.CheckResponse {
	t.Helper()
	out, err := s.Check(trustedContext(t.Context()), in)
	if err != nil {
		t.Fatalf("check answered a gRPC error: %v", err)
	}
	return out
}

// reasonOf returns the reason of an answer, from its metadata.
func reasonOf(out *authv3.CheckResponse) string {
	return out.GetDynamicMetadata().GetFields()["reason"].GetStringValue()
}

func unmarshal(wire []byte, v any) error {
	m, ok := v.(proto.Message)
	if !ok {
		return errors.New("not a message")
	}
	return proto.Unmarshal(wire, m)
}
