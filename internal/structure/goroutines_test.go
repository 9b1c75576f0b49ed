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

var withoutGoroutines = regexp.MustCompile(`(?m)^WITHOUT_GOROUTINES := (.+)$`)

// begins returns where a file starts a goroutine: by go, or by a method or function that
// does it for its caller.
func begins(s source) []string {
	starters := []string{"Go", "AfterFunc", "Parallel", "RunParallel"}
	var all []string
	ast.Inspect(s.file, func(node ast.Node) bool {
		switch node := node.(type) {
		case *ast.GoStmt:
			all = append(all, s.line(node))
		case *ast.SelectorExpr:
			if slices.Contains(starters, node.Sel.Name) {
				all = append(all, s.line(node))
			}
		}
		return true
	})
	return all
}

// TestGoroutines holds the packages that make test runs without the race detector to their
// one goroutine.
func TestGoroutines(t *testing.T) {
	data, err := os.ReadFile(filepath.Join(*root, "Makefile"))
	if err != nil {
		t.Fatal(err)
	}
	found := withoutGoroutines.FindSubmatch(data)
	if found == nil {
		t.Fatal("the Makefile has no WITHOUT_GOROUTINES")
	}
	seen := map[string]bool{}
	packages := strings.Fields(string(found[1]))
	for _, s := range sources(t) {
		if !slices.Contains(packages, "./"+s.folder) {
			continue
		}
		seen["./"+s.folder] = true
		for _, place := range begins(s) {
			t.Errorf("%s starts a goroutine, and make test runs the package without the race detector: remove it from WITHOUT_GOROUTINES", place)
		}
	}
	for _, p := range packages {
		if !seen[p] {
			t.Errorf("the Makefile names %s, which is no package", p)
		}
	}
}
