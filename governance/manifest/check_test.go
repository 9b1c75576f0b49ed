package manifest

import (
	"context"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/fstest"
	"time"

	"golang.org/x/tools/txtar"

	"github.com/chaperone-proxy/chaperone/configs"
	"github.com/chaperone-proxy/chaperone/governance/grantcheck"
)

var update = flag.Bool("update", false, "write the golden findings")

var testNow = time.Date(2026, 12, 1, 12, 0, 0, 0, time.UTC)

// checkArchive checks the manifest of an archive under its guardrails and exemptions. The comment of
// the archive may hold lines as in band: high.
func checkArchive(t testing.TB, a *txtar.Archive) Result {
	t.Helper()
	in := Input{Now: testNow, Uses: map[string]int64{}, Dir: fstest.MapFS{}}
	for line := range strings.SplitSeq(string(a.Comment), "\n") {
		name, value, _ := strings.Cut(line, ": ")
		switch name {
		case "band":
			in.Band = configs.Band(value)
		case "plugin folder":
			in.PluginFolder = value
		case "version folder":
			in.VersionFolder = value
		case "uses":
			_, err := fmt.Sscan(value, new(int64))
			if err != nil {
				t.Fatal(err)
			}
			var n int64
			_, _ = fmt.Sscan(value, &n)
			in.Uses["sha256:exemption"] = n
		}
	}
	files := fstest.MapFS{}
	for _, f := range a.Files {
		switch base := f.Name; {
		case base == "manifest.yaml":
			file, err := Read(f.Name, f.Data)
			if err != nil {
				t.Fatalf("read manifest: %v", err)
			}
			in.File = file
		case strings.HasPrefix(base, "guardrail"):
			g, err := configs.ParseObject[configs.GuardrailSpec](f.Name, f.Data)
			if err != nil {
				t.Fatalf("read guardrail: %v", err)
			}
			in.Guardrails = append(in.Guardrails, Guardrail{Name: g.Metadata.Name, Path: f.Name, Spec: g.Spec, Data: f.Data})
		case strings.HasPrefix(base, "exemption"):
			e, err := configs.ParseObject[configs.GrantExemption](f.Name, f.Data)
			if err != nil {
				t.Fatalf("read exemption: %v", err)
			}
			var controls []grantcheck.Control
			for _, c := range e.Spec.CompensatingControls {
				controls = append(controls, grantcheck.Control(c))
			}
			in.Exemptions = append(in.Exemptions, grantcheck.Exemption{
				Controls: controls,
				Name:     e.Metadata.Name, Digest: "sha256:exemption", GuardrailRule: e.Spec.GuardrailRule, Plugin: e.Spec.Scope.Plugin,
				Permission: e.Spec.Scope.Permission, Allow: e.Spec.Allow, Owner: e.Spec.Owner, Ticket: e.Spec.Ticket, NotAfter: e.Spec.NotAfter, MaxUses: e.Spec.MaxUses,
			})
		case base != "findings":
			files[f.Name] = &fstest.MapFile{Data: f.Data}
		}
	}
	in.Dir = files
	return Check(t.Context(), in)
}

func TestCheck(t *testing.T) {
	paths, err := filepath.Glob("testdata/check/*.txtar")
	if err != nil || len(paths) == 0 {
		t.Fatalf("no archives: %v", err)
	}
	for _, path := range paths {
		t.Run(strings.TrimSuffix(filepath.Base(path), ".txtar"), func(t *testing.T) {
			a, err := txtar.ParseFile(path)
			if err != nil {
				t.Fatal(err)
			}
			result := checkArchive(t, a)
			var got strings.Builder
			for _, f := range result.Findings {
				fmt.Fprintln(&got, f.Text())
			}
			fmt.Fprintf(&got, "refused: %t, never: %t, exemptions: %v\n", result.Refused(), result.Never, result.Exemptions)
			i := slices.IndexFunc(a.Files, func(f txtar.File) bool { return f.Name == "findings" })
			if i < 0 {
				a.Files = append(a.Files, txtar.File{Name: "findings"})
				i = len(a.Files) - 1
			}
			if *update {
				a.Files[i].Data = []byte(got.String())
				if err := os.WriteFile(path, txtar.Format(a), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			if want := string(a.Files[i].Data); got.String() != want {
				t.Errorf("findings are\n%s\nwant\n%s", got.String(), want)
			}
			if again := checkArchive(t, a); len(again.Findings) != len(result.Findings) {
				t.Error("a second check finds something else")
			}
		})
	}
}

// A check that has no time left refuses.
func TestCheckOutOfTime(t *testing.T) {
	a, err := txtar.ParseFile("testdata/check/good.txtar")
	if err != nil {
		t.Fatal(err)
	}
	file, err := Read("manifest.yaml", a.Files[0].Data)
	if err != nil {
		t.Fatal(err)
	}
	g, err := configs.ParseObject[configs.GuardrailSpec]("guardrail.yaml", a.Files[1].Data)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	result := Check(ctx, Input{File: file, Now: testNow, Guardrails: []Guardrail{{Name: g.Metadata.Name, Path: "guardrail.yaml", Spec: g.Spec}}})
	if !result.Refused() {
		t.Errorf("a check without time passes: %+v", result)
	}
}
