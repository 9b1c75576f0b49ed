package manifest

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/tools/txtar"
)

// FuzzImport imports bytes as each format: no panic, and each draft loads as a manifest with nothing unescaped.
func FuzzImport(f *testing.F) {
	paths, err := filepath.Glob("testdata/import/*.txtar")
	if err != nil {
		f.Fatal(err)
	}
	for _, path := range paths {
		a, err := txtar.ParseFile(path)
		if err != nil {
			f.Fatal(err)
		}
		format, _, _ := strings.Cut(strings.TrimSuffix(filepath.Base(path), ".txtar"), "-")
		f.Add(uint8(slices.Index(Formats(), Format(format))), a.Files[0].Data)
	}
	f.Fuzz(func(t *testing.T, format uint8, data []byte) {
		const most = 1 << 14
		if len(data) > most {
			return
		}
		d, err := Import(Formats()[int(format)%len(Formats())], "file", data)
		if err != nil {
			if strings.ContainsAny(err.Error(), "\x1b\n\r") {
				t.Errorf("error is %q", err)
			}
			return
		}
		var text strings.Builder
		if err := d.YAML(&text); err != nil {
			t.Fatal(err)
		}
		if strings.ContainsAny(text.String(), "\x1b\r\u2028") || len(secrets([]byte(text.String()))) > 0 {
			t.Errorf("the draft has a control character or a secret:\n%q", text.String())
		}
		if _, err := Read("manifest.yaml", []byte(text.String())); err != nil && len(text.String()) < 1<<20 {
			t.Errorf("the draft does not load: %v\n%s", err, text.String())
		}
	})
}

// FuzzCheck reads and checks bytes: no panic, and what passes makes a grant.
func FuzzCheck(f *testing.F) {
	f.Add([]byte(goodManifest))
	paths, err := filepath.Glob("testdata/check/*.txtar")
	if err != nil {
		f.Fatal(err)
	}
	for _, path := range paths {
		data, err := os.ReadFile(path)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(txtar.Parse(data).Files[0].Data)
	}
	g := guardrailOf(f)
	f.Fuzz(func(t *testing.T, data []byte) {
		file, err := Read("manifest.yaml", data)
		if err != nil || len(file.Spec.Permissions) > 4 {
			return
		}
		result := Check(t.Context(), Input{File: file, Now: testNow, Guardrails: []Guardrail{g}})
		for _, finding := range result.Findings {
			if strings.ContainsAny(finding.Text(), "\x1b\n\r") {
				t.Errorf("finding is %q", finding.Text())
			}
		}
		if result.Refused() {
			return
		}
		if _, err := Grant(file.Plugin, &file.Spec, assumed(&file.Spec)); err != nil {
			t.Errorf("a manifest that passes makes no grant: %v", err)
		}
		if _, err := subject(file, testNow, last(testNow, file)); err != nil {
			t.Errorf("a manifest that passes cannot be compiled: %v", err)
		}
	})
}

// FuzzCompileRules compiles and evaluates conditions: no panic, and one that compiles ends within its bounds.
func FuzzCompileRules(f *testing.F) {
	for _, text := range []string{"p.methods.all(m, m in ['GET'])", "plugin.permissions.exists(q, q.id == p.id)", "p.data.retention <= duration('720h')", "has(p.to)", "p.id.matches('a+')", "true", "plugin.requires['a'] == 'b'"} {
		f.Add(text)
	}
	plugin := view(f)
	f.Fuzz(func(t *testing.T, text string) {
		compiled, errs := CompileRules(ruleOf(text))
		for _, e := range errs {
			if strings.ContainsAny(e.Message, "\x1b\n\r") {
				t.Errorf("error is %q", e.Message)
			}
		}
		if compiled == nil {
			return
		}
		for _, v := range compiled.evaluate(t.Context(), plugin) {
			if strings.ContainsAny(v.failure, "\x1b\n\r") {
				t.Errorf("failure is %q", v.failure)
			}
		}
	})
}
