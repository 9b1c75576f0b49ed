package structure

import (
	"go/ast"
	"maps"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// maxKept is how many replaced names may stay, each with its reason.
const maxKept = 10

// replaced is a name that was replaced by the field's term.
type replaced struct{ folder, old, use string }

// readNames returns the lines of a file in testdata.
func readNames(t *testing.T, name string) []replaced {
	t.Helper()
	data, err := os.ReadFile("testdata/" + name)
	if err != nil {
		t.Fatal(err)
	}
	var all []replaced
	for line := range strings.SplitSeq(string(data), "\n") {
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		fields := strings.SplitN(line, " ", 3)
		if len(fields) != 3 {
			t.Fatalf("%s: %q: want a folder, a name and its replacement or reason", name, line)
		}
		all = append(all, replaced{fields[0], fields[1], fields[2]})
	}
	return all
}

// covers reports whether r is for a folder, as a pattern of packages is.
func (r replaced) covers(folder string) bool {
	below, pattern := strings.CutSuffix(r.folder, "/...")
	return folder == below || pattern && strings.HasPrefix(folder, below+"/")
}

var system = regexp.MustCompile(`(_(linux|other|amd64|arm64|test))*\.go$`)

// declared returns the names that a file declares outside functions, with the
// fields of its structs and with its own as file:NAME, each with its place.
func declared(s source) map[string]string {
	names := map[string]string{"file:" + system.ReplaceAllString(s.name, ""): s.folder + "/" + s.name}
	ast.Inspect(s.file, func(node ast.Node) bool {
		switch node := node.(type) {
		case *ast.FuncDecl:
			names[node.Name.Name] = s.line(node)
			return false
		case *ast.TypeSpec:
			names[node.Name.Name] = s.line(node)
		case *ast.ValueSpec:
			for _, name := range node.Names {
				names[name.Name] = s.line(node)
			}
		case *ast.Field:
			for _, name := range node.Names {
				names[name.Name] = s.line(node)
			}
		}
		return true
	})
	return names
}

// TestNames finds names that were replaced and are declared again.
func TestNames(t *testing.T) {
	list, kept, pending := readNames(t, "names.txt"), readNames(t, "kept.txt"), readList(t, "pending.txt")
	if len(kept) > maxKept {
		t.Errorf("kept.txt has %d names, want at most %d", len(kept), maxKept)
	}
	used, left := map[replaced]bool{}, map[string]string{}
	for _, s := range sources(t) {
		names := declared(s)
		for _, r := range list {
			at, found := names[r.old]
			if !found || !r.covers(s.folder) {
				continue
			}
			reason := slices.IndexFunc(kept, func(k replaced) bool { return k.old == r.old && k.covers(s.folder) })
			if reason >= 0 {
				used[kept[reason]] = true
				continue
			}
			left[r.folder+" "+r.old] = at + ": " + r.old + ": use " + r.use
		}
	}
	for _, name := range slices.Sorted(maps.Keys(left)) {
		if !slices.Contains(pending, strings.ReplaceAll(name, " ", ":")) {
			t.Error(left[name])
		}
	}
	t.Logf("replaced names that are declared: %d, and %d with a reason", len(left), len(used))
	for _, k := range kept {
		if !used[k] {
			t.Errorf("kept.txt: %s %s is no longer declared; take it out", k.folder, k.old)
		}
	}
}
