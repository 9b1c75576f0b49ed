package structure

import (
	"flag"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"text/tabwriter"
)

var root = flag.String("root", "../..", "the checkout that is measured")

// source is a parsed Go file.
type source struct {
	folder, name string // relative to the root, with slashes
	file         *ast.File
	files        *token.FileSet
}

// line returns where a node begins, as path:line.
func (s source) line(node ast.Node) string {
	return fmt.Sprintf("%s/%s:%d", s.folder, s.name, s.files.Position(node.Pos()).Line)
}

// generated marks a file that no person wrote.
var generated = regexp.MustCompile(`(?m)^// Code generated .* DO NOT EDIT\.$`)

// sources returns every Go file below the root that a person wrote.
func sources(t *testing.T) []source {
	t.Helper()
	var all []source
	files := token.NewFileSet()
	err := filepath.WalkDir(*root, func(path string, entry fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case entry.IsDir() && slices.Contains([]string{".git", ".cache", "bin", "testdata"}, entry.Name()):
			return filepath.SkipDir
		case entry.IsDir() || filepath.Ext(path) != ".go":
			return nil
		}
		data, err := os.ReadFile(path)
		if err != nil || generated.Match(data) {
			return err
		}
		file, err := parser.ParseFile(files, path, data, parser.ParseComments|parser.SkipObjectResolution)
		if err != nil {
			return err
		}
		folder, err := filepath.Rel(*root, filepath.Dir(path))
		all = append(all, source{folder: filepath.ToSlash(folder), name: entry.Name(), file: file, files: files})
		return err
	})
	if err != nil {
		t.Fatalf("parse %s: %v", *root, err)
	}
	return all
}

// product leaves out tests and the programs and packages that are for tests only.
func product(all []source) []source {
	return slices.DeleteFunc(slices.Clone(all), func(s source) bool {
		return strings.HasSuffix(s.name, "_test.go") || strings.HasPrefix(s.folder+"/", "internal/testenv/") ||
			strings.HasPrefix(s.folder+"/", "bench/") || strings.HasPrefix(s.folder+"/", "tools/")
	})
}

// Limits of the whole product.
const (
	medianLines, p90Lines, maxLines = 11, 27, 70
	maxFields                       = 20
)

// wide are structs that may have more fields: the configuration, as its authors
// write it, and the record of an access, as the audit log has it. Others are in
// testdata/wide.txt with their reason.
var wide = regexp.MustCompile(`^configs\.\w+$|^authz\.Record$|^audit\.Entry$`)

// figures are the measures of a folder.
type figures struct {
	lines                []int // of each function
	exported, documented int
	wide                 []string
}

// measure adds a file's declarations.
func (f *figures) measure(t *testing.T, s source, enforce bool) {
	t.Helper()
	for _, decl := range s.file.Decls {
		switch decl := decl.(type) {
		case *ast.FuncDecl:
			length := s.files.Position(decl.End()).Line - s.files.Position(decl.Pos()).Line + 1
			f.lines = append(f.lines, length)
			if enforce && length > maxLines {
				t.Errorf("%s: %s has %d lines, want at most %d", s.line(decl), decl.Name.Name, length, maxLines)
			}
			if decl.Name.IsExported() && (decl.Recv == nil || exportedReceiver(decl.Recv)) {
				f.export(t, s, decl, decl.Name.Name, decl.Doc != nil, enforce)
			}
		case *ast.GenDecl:
			f.specs(t, s, decl, enforce)
		}
	}
}

func exportedReceiver(list *ast.FieldList) bool {
	e := list.List[0].Type
	if star, ok := e.(*ast.StarExpr); ok {
		e = star.X
	}
	switch indexed := e.(type) {
	case *ast.IndexExpr:
		e = indexed.X
	case *ast.IndexListExpr:
		e = indexed.X
	}
	name, ok := e.(*ast.Ident)
	return ok && name.IsExported()
}

func (f *figures) specs(t *testing.T, s source, decl *ast.GenDecl, enforce bool) {
	t.Helper()
	for _, spec := range decl.Specs {
		switch spec := spec.(type) {
		case *ast.TypeSpec:
			if spec.Name.IsExported() {
				f.export(t, s, spec, spec.Name.Name, spec.Doc != nil || decl.Doc != nil, enforce)
			}
			if fields, ok := spec.Type.(*ast.StructType); ok {
				f.width(t, s, spec, fields.Fields.NumFields(), enforce)
			}
		case *ast.ValueSpec:
			for _, name := range spec.Names {
				if name.IsExported() {
					f.export(t, s, spec, name.Name, spec.Doc != nil || decl.Doc != nil || spec.Comment != nil, enforce)
				}
			}
		}
	}
}

func (f *figures) export(t *testing.T, s source, node ast.Node, name string, documented, enforce bool) {
	t.Helper()
	f.exported++
	if documented {
		f.documented++
	} else if enforce && s.file.Name.Name != "main" {
		t.Errorf("%s: exported %s has no comment", s.line(node), name)
	}
}

func (f *figures) width(t *testing.T, s source, spec *ast.TypeSpec, fields int, enforce bool) {
	t.Helper()
	name := s.file.Name.Name + "." + spec.Name.Name
	if fields <= maxFields || wide.MatchString(name) {
		return
	}
	f.wide = append(f.wide, fmt.Sprintf("%s %d", name, fields))
	if enforce && !slices.Contains(readList(t, "wide.txt"), name) {
		t.Errorf("%s: %s has %d fields, want at most %d: group them by job", s.line(spec), name, fields, maxFields)
	}
}

// readList returns the first words of the lines of a file in testdata.
func readList(t *testing.T, name string) []string {
	t.Helper()
	data, err := os.ReadFile(filepath.Join("testdata", name))
	if err != nil && !os.IsNotExist(err) {
		t.Fatal(err)
	}
	var all []string
	for line := range strings.SplitSeq(string(data), "\n") {
		if fields := strings.Fields(line); len(fields) > 0 && fields[0] != "#" {
			all = append(all, fields[0])
		}
	}
	return all
}

// TestFigures bounds functions and structs, and wants each exported name documented.
func TestFigures(t *testing.T) {
	all := map[string]*figures{}
	total := &figures{}
	for _, s := range product(sources(t)) {
		if all[s.folder] == nil {
			all[s.folder] = &figures{}
		}
		all[s.folder].measure(t, s, true)
		total.measure(t, s, false)
	}
	if median, p90 := total.at(50), total.at(90); median > medianLines || p90 > p90Lines {
		t.Errorf("functions have %d lines in the median and %d at the 90th percentile, want at most %d and %d", median, p90, medianLines, p90Lines)
	}
	var b strings.Builder
	w := tabwriter.NewWriter(&b, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "functions\tmedian/p90/max\texported\tdocumented\tfolder\tstructs over 20")
	all["(all)"] = total
	for _, name := range slices.Sorted(maps.Keys(all)) {
		f := all[name]
		fmt.Fprintf(w, "%d\t%d/%d/%d\t%d\t%d\t%s\t%s\n", len(f.lines), f.at(50), f.at(90), f.at(100), f.exported, f.documented, name, strings.Join(f.wide, ", "))
	}
	if err := w.Flush(); err != nil {
		t.Fatal(err)
	}
	t.Log("\n" + b.String())
}

// at returns a percentile of the functions' lines.
func (f *figures) at(percent int) int {
	if len(f.lines) == 0 {
		return 0
	}
	sorted := slices.Sorted(slices.Values(f.lines))
	return sorted[min(len(sorted)-1, len(sorted)*percent/100)]
}
