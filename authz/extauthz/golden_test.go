package extauthz

import (
	"context"
	"encoding/json"
	"flag"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	"github.com/google/go-cmp/cmp"
	"golang.org/x/tools/txtar"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	"github.com/chaperone-proxy/chaperone/authz"
)

var update = flag.Bool("update", false, "rewrite the expected answers in testdata/checks")

var decisionID = regexp.MustCompile(`[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}`)

// wording matches the words of authz, which is its own to change.
var wording = regexp.MustCompile(`(\\"(?:detail|remedy)\\":\\").*?(\\"[,}])|("(?:message|value)": "[a-z_]+: )[^"]*`)

// TestGolden answers each check.json of testdata/checks and compares with its
// response.json. A first line "untrusted" in the comment asks over a transport
// that may not see credentials, "identities" configures SPIFFE ids.
func TestGolden(t *testing.T) {
	files, err := filepath.Glob("testdata/checks/*.txtar")
	if err != nil || len(files) == 0 {
		t.Fatalf("no golden files: %v", err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txtar"), func(t *testing.T) { golden(t, file) })
	}
}

func golden(t *testing.T, file string) {
	archive, err := txtar.ParseFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var got []byte
	in := new(authv3.CheckRequest)
	want := -1
	for i, f := range archive.Files {
		switch f.Name {
		case "check.json":
			if err := protojson.Unmarshal(f.Data, in); err != nil {
				t.Fatal(err)
			}
		case "response.json":
			want = i
		}
	}
	got = plainJSON(t, answerGolden(t, string(archive.Comment), in))
	if *update {
		if want < 0 {
			want = len(archive.Files)
			archive.Files = append(archive.Files, txtar.File{Name: "response.json"})
		}
		archive.Files[want].Data = got
		if err := os.WriteFile(file, txtar.Format(archive), 0o600); err != nil {
			t.Fatal(err)
		}
		return
	}
	if want < 0 {
		t.Fatal("no response.json; run with -update")
	}
	if diff := cmp.Diff(string(archive.Files[want].Data), string(got)); diff != "" {
		t.Errorf("answer (-want +got):\n%s", diff)
	}
}

func answerGolden(t *testing.T, comment string, in *authv3.CheckRequest) *authv3.CheckResponse {
	words := strings.Fields(strings.SplitN(comment, "\n", 2)[0])
	ctx, cfg := trustedContext(t.Context()), Config{}
	for _, word := range words {
		switch word {
		case "untrusted":
			ctx = context.WithoutCancel(t.Context())
		case "identities":
			cfg.SPIFFEIDs = map[string]authz.Principal{
				"spiffe://cluster/ns/a/sa/weather": "weather", "spiffe://cluster/ns/a/sa/mail": "mail",
			}
		}
	}
	s := newHouse(t).server(t, cfg)
	defer s.Close()
	out, err := s.Check(ctx, in)
	if err != nil {
		t.Fatalf("a gRPC error: %v", err)
	}
	checkAnswer(t, out)
	return out
}

// plainJSON returns a message as JSON that does not change from run to run.
func plainJSON(t *testing.T, m proto.Message) []byte {
	t.Helper()
	text, err := protojson.MarshalOptions{UseEnumNumbers: false}.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	var value any
	if err := json.Unmarshal(text, &value); err != nil {
		t.Fatal(err)
	}
	var out strings.Builder
	encoder := json.NewEncoder(&out)
	encoder.SetEscapeHTML(false)
	encoder.SetIndent("", "  ")
	if err := encoder.Encode(value); err != nil {
		t.Fatal(err)
	}
	masked := decisionID.ReplaceAllString(out.String(), "DECISION")
	return []byte(wording.ReplaceAllString(masked, "$1$3...$2"))
}
