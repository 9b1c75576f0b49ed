package structure

import (
	"go/ast"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// placesHeading begins the table of places in docs/architecture.md.
const placesHeading = "## Where is ...?\n"

var place = regexp.MustCompile("`([^`]+)`")

// symbols returns what every package declares: NAME, TYPE.NAME for methods and
// fields, by the package's folder.
func symbols(all []source) map[string][]string {
	found := map[string][]string{}
	for _, s := range all {
		add := func(name string) { found[s.folder] = append(found[s.folder], name) }
		for _, decl := range s.file.Decls {
			switch decl := decl.(type) {
			case *ast.FuncDecl:
				if decl.Recv == nil {
					add(decl.Name.Name)
				} else {
					add(receiver(decl.Recv.List[0].Type) + "." + decl.Name.Name)
				}
			case *ast.GenDecl:
				for _, spec := range decl.Specs {
					declareSpec(spec, add)
				}
			}
		}
	}
	return found
}

func declareSpec(spec ast.Spec, add func(string)) {
	switch spec := spec.(type) {
	case *ast.TypeSpec:
		add(spec.Name.Name)
		if fields, ok := spec.Type.(*ast.StructType); ok {
			for _, field := range fields.Fields.List {
				for _, name := range field.Names {
					add(spec.Name.Name + "." + name.Name)
				}
			}
		}
	case *ast.ValueSpec:
		for _, name := range spec.Names {
			add(name.Name)
		}
	}
}

func receiver(e ast.Expr) string {
	switch e := e.(type) {
	case *ast.StarExpr:
		return receiver(e.X)
	case *ast.IndexExpr:
		return receiver(e.X)
	case *ast.IndexListExpr:
		return receiver(e.X)
	case *ast.Ident:
		return e.Name
	}
	return ""
}

// TestPlaces finds each symbol of the table "Where is ...?": FOLDER.NAME or
// FOLDER.TYPE.NAME, or a file.
func TestPlaces(t *testing.T) {
	data, err := os.ReadFile(filepath.Join(*root, "docs/architecture.md"))
	if err != nil {
		t.Fatal(err)
	}
	_, table, found := strings.Cut(string(data), placesHeading)
	if !found {
		t.Fatalf("docs/architecture.md has no heading %q", placesHeading)
	}
	table, _, _ = strings.Cut(table, "\n## ")
	declared, rows := symbols(sources(t)), 0
	for line := range strings.Lines(table) {
		cells := strings.Split(line, "|")
		if len(cells) != 4 || strings.HasPrefix(cells[1], "--") || strings.TrimSpace(cells[1]) == "question" {
			continue
		}
		rows++
		places := place.FindAllStringSubmatch(cells[2], -1)
		if len(places) == 0 {
			t.Errorf("%q has no symbol", strings.TrimSpace(cells[1]))
		}
		for _, p := range places {
			if !exists(declared, p[1]) {
				t.Errorf("%q: %s is neither declared nor a file", strings.TrimSpace(cells[1]), p[1])
			}
		}
	}
	if rows < 20 {
		t.Errorf("got %d questions, want at least 20", rows)
	}
}

// exists reports whether a place is a file or a symbol.
func exists(declared map[string][]string, name string) bool {
	if _, err := os.Stat(filepath.Join(*root, name)); err == nil {
		return true
	}
	base := strings.LastIndexByte(name, '/') + 1
	folder, symbol, found := strings.Cut(name[base:], ".")
	return found && slices.Contains(declared[name[:base]+folder], symbol)
}
