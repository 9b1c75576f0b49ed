package configs

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/goccy/go-yaml/lexer"
	"github.com/goccy/go-yaml/token"
	"golang.org/x/tools/txtar"
)

// FuzzYAML decodes anything as any kind. It must not panic, must say where
// each error is, and must not accept what lets a reader see something else
// than what is loaded.
func FuzzYAML(f *testing.F) {
	for _, path := range seeds(f) {
		f.Add(path)
	}
	f.Fuzz(func(t *testing.T, text string) {
		roots, errs := parseYAML("f.yaml", []byte(text))
		checkDecoding(t, roots, errs)
		if len(errs) > 0 {
			return
		}
		for _, tk := range lexer.Tokenize(strings.TrimPrefix(text, "\ufeff")) {
			switch tk.Type {
			case token.AliasType, token.AnchorType, token.MergeKeyType, token.TagType, token.DirectiveType:
				t.Fatalf("accepted %s", tk.Type)
			}
		}
	})
}

// FuzzJSON does the same for JSON, which encoding/json must accept too.
func FuzzJSON(f *testing.F) {
	for _, text := range seeds(f) {
		f.Add(text)
	}
	f.Add(`{"kind": "PluginGrant", "a": [1, 2.5, true, null, "x"]}`)
	f.Fuzz(func(t *testing.T, text string) {
		roots, errs := parseJSON("f.json", []byte(text))
		checkDecoding(t, roots, errs)
		if len(errs) == 0 && len(roots) == 1 && !json.Valid([]byte(strings.TrimPrefix(text, "\ufeff"))) {
			t.Fatal("accepted what encoding/json does not")
		}
	})
}

// checkDecoding decodes each document into its kind and into every other.
func checkDecoding(t *testing.T, roots []*node, errs Errors) {
	t.Helper()
	for _, root := range roots {
		l := newLoader(now)
		if root.kind == mappingKind {
			for _, k := range Kinds() {
				copied := &node{kind: mappingKind, line: root.line, column: root.column}
				copied.fields = append(copied.fields, field{"kind", 1, 1, &node{kind: textKind, text: string(k), line: 1, column: 1}})
				for _, f := range root.fields {
					if f.key != "kind" {
						copied.fields = append(copied.fields, f)
					}
				}
				l.document("f.yaml", copied)
			}
		}
		l.document("f.yaml", root)
		errs = append(errs, l.errs...)
	}
	for _, e := range errs {
		if e.Message == "" || (e.Line <= 0 || e.Column < 0) && !strings.HasPrefix(e.Message, "holds") && !strings.HasPrefix(e.Message, "not YAML") {
			t.Fatalf("an error without a place: %#v", e)
		}
	}
}

// seeds returns the text of the good files and of those in the archives of bad ones.
func seeds(f *testing.F) []string {
	f.Helper()
	var texts []string
	for _, pattern := range []string{"example.yaml", "testdata/good/*.yaml", "testdata/good/grants/*"} {
		paths, err := filepath.Glob(pattern)
		if err != nil {
			f.Fatal(err)
		}
		for _, path := range paths {
			data, err := os.ReadFile(path)
			if err != nil {
				f.Fatal(err)
			}
			texts = append(texts, string(data))
		}
	}
	archives, err := filepath.Glob("testdata/bad/*.txtar")
	if err != nil {
		f.Fatal(err)
	}
	for _, path := range archives {
		archive, err := txtar.ParseFile(path)
		if err != nil {
			f.Fatal(err)
		}
		for _, file := range archive.Files {
			if file.Name != "want" {
				texts = append(texts, string(file.Data))
			}
		}
	}
	return texts
}
