package extauthz

import (
	"path/filepath"
	"strings"
	"testing"

	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	"github.com/google/go-cmp/cmp"
	"golang.org/x/tools/txtar"
	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	"github.com/chaperone-proxy/chaperone/authz"
	"github.com/chaperone-proxy/chaperone/internal/testenv"
)

// seeds are the checks of the golden files.
func seeds(f *testing.F) []*authv3.CheckRequest {
	f.Helper()
	files, err := filepath.Glob("testdata/checks/*.txtar")
	if err != nil {
		f.Fatal(err)
	}
	var all []*authv3.CheckRequest
	for _, file := range files {
		in := new(authv3.CheckRequest)
		testenv.Must(f, protojson.Unmarshal(testenv.MustGet(txtar.ParseFile(file))(f).Files[0].Data, in))
		all = append(all, in)
	}
	return all
}

// FuzzAnswer sends any bytes as a check, over any transport: the answer is
// never empty, never a gRPC error and keeps every other rule of checkAnswer.
func FuzzAnswer(f *testing.F) {
	for _, in := range seeds(f) {
		f.Add(testenv.MustGet(proto.Marshal(in))(f), true)
	}
	f.Add([]byte{0x0a, 0xff}, false)
	h := newHouse(f)
	h.quietly(f)
	s := h.server(f, Config{})
	f.Cleanup(s.Close)
	f.Fuzz(func(t *testing.T, wire []byte, trust bool) {
		ctx := t.Context()
		if trust {
			ctx = trustedContext(ctx)
		}
		decode := func(v any) error { return newCodec().Unmarshal(mem.BufferSlice{mem.SliceBuffer(wire)}, v) }
		out, err := handleCheck(s, ctx, decode, nil)
		if err != nil {
			t.Fatalf("a gRPC error: %v", err)
		}
		answer := new(authv3.CheckResponse)
		testenv.Must(t, proto.Unmarshal(testenv.MustGet(newCodec().Marshal(out))(t).Materialize(), answer))
		checkAnswer(t, answer)
		if !trust && strings.Contains(answer.String(), canary) {
			t.Errorf("an untrusted caller is handed the credential: %v", answer)
		}
		if fields := answer.GetDynamicMetadata().GetFields(); fields["decision"].GetStringValue() == "" {
			t.Errorf("something panicked: %v", answer)
		}
	})
}

// FuzzRequest sends one access in the dialects of every caller: all make the
// same Request of it, the one that its parts make by themselves, or none does.
func FuzzRequest(f *testing.F) {
	for _, seed := range [][5]string{
		{"GET", "https", "api.weather.example", "/v1/forecast/berlin?days=3", ""},
		{"GET", "https", "API.weather.example.:443", "/v1/f%6frecast/a?", "websocket"},
		{"POST", "http", "[::ffff:127.0.0.1]:80", "/a%2fb", ""},
		{"GET", "HTTPS", "127.1", "//a", "h2c"},
		{"CONNECT", "http", "git.weather.example:22", "", ""},
		{"get", "", "a,b", "*", "a, b"},
		{"GET", "https", "a", "/caf\xc3\xa9", ""},
	} {
		f.Add(seed[0], seed[1], seed[2], seed[3], seed[4])
	}
	s := newHouse(f).server(f, Config{})
	f.Cleanup(s.Close)
	f.Fuzz(func(t *testing.T, method, scheme, host, path, upgrade string) {
		if strings.ContainsAny(method+scheme+host+path+upgrade, "\x00\r\n") || method == "" {
			return
		}
		want, ok := plainly(method, scheme, host, path, upgrade)
		headers := []string{}
		if upgrade != "" {
			headers = []string{"upgrade", upgrade}
		}
		folded := envoyCheck(method, scheme, host, path, headers...)
		raw := rawCheck(method, scheme, host, path, headers...)
		bare := rawCheck(method, scheme, host, path, headers...) // pseudo headers alone
		bareHTTP := bare.Attributes.Request.Http
		bareHTTP.Method, bareHTTP.Scheme, bareHTTP.Host, bareHTTP.Path = "", "", "", ""
		grpc := rawCheck(method, scheme, host, path, headers...) // attributes alone
		grpcHTTP := grpc.Attributes.Request.Http
		grpcHTTP.HeaderMap.Headers = grpcHTTP.HeaderMap.Headers[4:]
		checks := map[string]*authv3.CheckRequest{"folded": folded, "raw": raw, "bare": bare}
		if scheme == "" || lower(scheme) == "https" { // gRPC states none
			grpcHTTP.Id, grpcHTTP.Scheme, grpcHTTP.Size = "", "", -1
			checks["grpc"] = grpc
		}
		for name, in := range checks {
			a, fault := s.read(reference(in), "weather")
			if (fault == nil) != ok {
				t.Fatalf("%s: %+v, want an access: %t", name, fault, ok)
			}
			if fault != nil {
				if fault.reason.Allowed() || fault.attempt.Detail == "" || fault.attempt.Principal != "weather" {
					t.Errorf("%s: fault %+v", name, fault)
				}
				continue
			}
			if a.request != want {
				t.Errorf("%s:\n%s", name, cmp.Diff(want, a.request, cmp.AllowUnexported(authz.Destination{})))
			}
		}
	})
}

// plainly makes the Request that the parts of an access make by themselves.
func plainly(method, scheme, host, path, upgrade string) (authz.Request, bool) {
	if scheme == "" {
		scheme = "https"
	}
	scheme = lower(scheme)
	if method == "CONNECT" {
		to, err := authz.NewDestination(authz.SchemeTCP, host, "")
		return authz.Request{Principal: "weather", Destination: to}, err == nil && (path == "" || path == "/")
	}
	action, err := authz.NewAction(method, upgrade)
	if err != nil || path == "" || scheme != "http" && scheme != "https" {
		return authz.Request{}, false
	}
	to, err := authz.NewDestination(authz.Scheme(scheme), host, path)
	return authz.Request{Principal: "weather", Action: action, Destination: to}, err == nil
}
