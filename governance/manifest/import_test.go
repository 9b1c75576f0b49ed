package manifest

import (
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/tools/txtar"
)

// TestImport compares drafts with golden ones, and loads each as the file that it is.
func TestImport(t *testing.T) {
	paths, err := filepath.Glob("testdata/import/*.txtar")
	if err != nil || len(paths) == 0 {
		t.Fatalf("no archives: %v", err)
	}
	for _, path := range paths {
		base := strings.TrimSuffix(filepath.Base(path), ".txtar")
		t.Run(base, func(t *testing.T) {
			a, err := txtar.ParseFile(path)
			if err != nil {
				t.Fatal(err)
			}
			format, _, _ := strings.Cut(base, "-")
			d, err := Import(Format(format), a.Files[0].Name, a.Files[0].Data)
			if err != nil {
				t.Fatal(err)
			}
			var got strings.Builder
			if err := d.YAML(&got); err != nil {
				t.Fatal(err)
			}
			loadDraft(t, got.String())
			i := slices.IndexFunc(a.Files, func(f txtar.File) bool { return f.Name == "draft" })
			if i < 0 {
				a.Files = append(a.Files, txtar.File{Name: "draft"})
				i = len(a.Files) - 1
			}
			if *update {
				a.Files[i].Data = []byte(got.String())
				if err := os.WriteFile(path, txtar.Format(a), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			if want := string(a.Files[i].Data); got.String() != want {
				t.Errorf("draft is\n%s\nwant\n%s", got.String(), want)
			}
		})
	}
}

// loadDraft reads a draft as a manifest. A check refuses it, since something is always left to
// write, and finds no secret in it.
func loadDraft(t testing.TB, text string) *File {
	t.Helper()
	f, err := Read("manifest.yaml", []byte(text))
	if err != nil {
		t.Fatalf("the draft does not load: %v\n%s", err, text)
	}
	result := Check(t.Context(), Input{File: f, Now: testNow})
	if !result.Refused() {
		t.Errorf("the draft passes a check:\n%s", text)
	}
	for _, finding := range result.Findings {
		if finding.Check == checkSecret || finding.Check == checkSchema {
			t.Errorf("%s", finding.Text())
		}
	}
	return f
}

func TestEmpty(t *testing.T) {
	var text strings.Builder
	if err := Empty("weather").YAML(&text); err != nil {
		t.Fatal(err)
	}
	f := loadDraft(t, text.String())
	if f.Plugin != "weather" || len(f.Spec.Permissions) != 0 {
		t.Errorf("manifest is %+v", f.Spec)
	}
	// The example in the comments is right, too.
	full := strings.NewReplacer("  permissions: []", "  permissions:", "\n  # - ", "\n  - ", "\n  #   ", "\n    ", "\n  # ", "\n  ").Replace(text.String())
	if f = loadDraft(t, full); len(f.Spec.Permissions) != 1 || f.Spec.Docs.Runbook == "" || f.Spec.Limits.Requests.Count != 100 {
		t.Errorf("manifest is %+v", f.Spec)
	}
}

// Files that repeat themselves make drafts of bounded size, in bounded time.
func TestImportBounds(t *testing.T) {
	hosts := "app: {name: a}\npermissions: {external: {fetch: {backend: [" + strings.Repeat("a.example,", 3*maxPermissions) + "]}}}"
	d, err := Import(FormatForge, "manifest.yml", []byte(hosts))
	if err != nil || len(d.Spec.Permissions) != maxPermissions || d.Spec.Permissions[1].ID != "a-example-2" {
		t.Errorf("%d permissions, %v", len(d.Spec.Permissions), err)
	}
	if !slices.ContainsFunc(d.Remarks, func(s string) bool { return strings.Contains(s, "more than 1000 permissions") }) {
		t.Error("the bound is not reported")
	}
	servers := "openapi: 3.0.0\nservers: [" + strings.Repeat("{url: https://a.example},", 500) + "]\npaths: {/a: {get: {}}}"
	d, err = Import(FormatOpenAPI, "openapi.yaml", []byte(servers))
	if err != nil || len(d.Spec.Permissions) != 1 || len(d.Todos) == 0 {
		t.Errorf("%+v, %v", d, err)
	}
}

// TestImportBombs: small files do not become large, nor take long.
func TestImportBombs(t *testing.T) {
	many := func(n int, format string) string {
		var b strings.Builder
		for i := range n {
			fmt.Fprintf(&b, format, i)
		}
		return b.String()
	}
	doubling := func(n int) string {
		var b strings.Builder
		for i := range n {
			fmt.Fprintf(&b, `"v%d":{"default":"{v%d}{v%[2]d}"},`, i, i+1)
		}
		return strings.TrimSuffix(b.String(), ",")
	}
	open := func(paths string) string {
		return `{"openapi":"3.0.0","servers":[{"url":"https://a.example"}],"paths":{` + strings.TrimSuffix(paths, ",") + "}}"
	}
	const often = 20_000
	for name, test := range map[string]struct {
		format Format
		text   string
	}{
		"variables of a server": {FormatOpenAPI, `{"openapi":"3.0.0","servers":[{"url":"https://{v0}","variables":{` + doubling(28) + `}}],"paths":{"/a":{"get":{}}}}`},
		"deep":                  {FormatMCP, `{"remotes":` + strings.Repeat("[", maxImport-100)},
		"deep after comments":   {FormatDeno, "//\n{/*[*/\"\\\"\":" + strings.Repeat(`{"a":`, maxImport/8)},
		"long name":             {FormatGrafana, `{"id":"a","type":"b","` + strings.Repeat("n", 1<<20) + `":[` + strings.Repeat("1,", often) + "1]}"},
		"one line":              {FormatGrafana, `{"id":"a","type":"b","n":[` + strings.Repeat("1,", 10*often) + "1]}"},
		"values":                {FormatGrafana, `{"id":"a","type":"b","n":[` + strings.Repeat("1,", maxNodes) + "1]}"},
		"values of YAML":        {FormatForge, "app:\n" + strings.Repeat("- \n", 2*maxNodes)},
		"references":            {FormatOpenAPI, `{"x":{` + strings.TrimSuffix(many(often, `"f%d":1,`), ",") + `},` + open(many(often, `"/%d":{"$ref":"#/x/f19999"},`))[1:]},
		"denied hosts":          {FormatDeno, `{"permissions":{"default":{"net":{"allow":[` + strings.TrimSuffix(many(often, `"a%d.example",`), ",") + `],"deny":[` + strings.TrimSuffix(many(often, `"b%d.example",`), ",") + `]}}}}`},
	} {
		t.Run(name, func(t *testing.T) {
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			start := time.Now()
			_, err := Import(test.format, "file", []byte(test.text))
			runtime.ReadMemStats(&after)
			if took, used := time.Since(start), after.TotalAlloc-before.TotalAlloc; took > 20*time.Second || used > 2<<30 {
				t.Errorf("took %v and %d MiB (%v)", took, used>>20, err)
			}
			if err != nil && len(err.Error()) > 1000 {
				t.Errorf("the error has %d bytes", len(err.Error()))
			}
		})
	}
}
