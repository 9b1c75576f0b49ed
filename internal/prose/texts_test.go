package prose

import (
	"bytes"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
)

// kind is where a text was found.
type kind int

const (
	comment  kind = iota // of Go, C, YAML, shell and make
	document             // Markdown
	message              // an error, a refusal, help: a string with several words
	failure              // a message of a test
	logLine              // the message of a logger's call
)

// text is one text of a file: a group of comments, a paragraph or a string.
type text struct {
	folder, file string // relative to the root, with slashes
	line         int
	kind         kind
	words        string
}

// skipped are folders that hold no text of ours.
var skipped = map[string]bool{".git": true, ".cache": true, "bin": true, "testdata": true, "node_modules": true}

// collect returns the texts of every file below root.
func collect(t *testing.T, root string) []text {
	t.Helper()
	var all []text
	err := filepath.WalkDir(root, func(path string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if entry.IsDir() {
			if skipped[entry.Name()] {
				return filepath.SkipDir
			}
			return nil
		}
		name, err := filepath.Rel(root, path)
		if err != nil {
			return err
		}
		found, err := read(path, filepath.ToSlash(name))
		all = append(all, found...)
		return err
	})
	if err != nil {
		t.Fatalf("collect texts of %s: %v", root, err)
	}
	return all
}

// read returns the texts of one file, and none for a kind of file that it does
// not read.
func read(path, name string) ([]text, error) {
	var extract func(data []byte) ([]text, error)
	base := filepath.Base(path)
	switch extension := filepath.Ext(base); {
	case extension == ".go":
		extract = func(data []byte) ([]text, error) { return goTexts(data, strings.HasSuffix(base, "_test.go")) }
	case (extension == ".c" || extension == ".h") && base != "vmlinux.h":
		extract = cTexts
	case extension == ".md":
		extract = markdownTexts
	case extension == ".yaml" || extension == ".yml" || extension == ".service" || extension == ".sh" || extension == ".py" ||
		base == "Makefile" || base == "Dockerfile" || strings.HasPrefix(name, "tools/") && extension == "" || strings.HasPrefix(name, ".ci/"):
		extract = hashTexts
	default:
		return nil, nil
	}
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	found, err := extract(data)
	folder := filepath.ToSlash(filepath.Dir(name))
	for i := range found {
		found[i].folder, found[i].file = folder, name
	}
	return found, err
}

// generated marks a file that no person wrote.
var generated = regexp.MustCompile(`(?m)^// Code generated .* DO NOT EDIT\.$`)

// goTexts returns the comments and strings of a Go file.
func goTexts(data []byte, test bool) ([]text, error) {
	if generated.Match(data) {
		return nil, nil
	}
	files := token.NewFileSet()
	file, err := parser.ParseFile(files, "", data, parser.ParseComments|parser.SkipObjectResolution)
	if err != nil {
		return nil, err
	}
	var all []text
	for _, group := range file.Comments {
		for _, paragraph := range paragraphs(group.Text()) {
			all = append(all, text{line: files.Position(group.Pos()).Line + paragraph.line, kind: comment, words: paragraph.words})
		}
	}
	walk := goStrings{files: files, test: test, seen: map[ast.Node]bool{}}
	ast.Inspect(file, walk.visit)
	return append(all, walk.found...), nil
}

// goStrings collects the strings of a Go file that hold a message.
type goStrings struct {
	files *token.FileSet
	test  bool
	seen  map[ast.Node]bool // literals that belong to a longer expression
	found []text
}

func (g *goStrings) visit(node ast.Node) bool {
	switch node := node.(type) {
	case *ast.ImportSpec:
		return false
	case *ast.Field: // with its tag
		if node.Tag != nil {
			g.seen[node.Tag] = true
		}
	case *ast.CallExpr:
		g.call(node)
	case *ast.BinaryExpr:
		if !g.seen[node] {
			g.add(node, message)
		}
	case *ast.BasicLit:
		if !g.seen[node] {
			g.add(node, message)
		}
	}
	return true
}

var (
	logMethods  = map[string]bool{"Debug": true, "Info": true, "Warn": true, "Error": true, "Fatal": true, "DPanic": true, "Panic": true, "Log": true, "Check": true}
	failMethods = map[string]bool{"Error": true, "Errorf": true, "Fatal": true, "Fatalf": true, "Log": true, "Logf": true, "Skip": true, "Skipf": true}
	logReceiver = regexp.MustCompile(`(?i)(^|\.)(log|logger|zap)$`)
)

// call classifies the strings of a call to a logger or a test.
func (g *goStrings) call(call *ast.CallExpr) {
	method, ok := call.Fun.(*ast.SelectorExpr)
	if !ok || len(call.Args) == 0 {
		return
	}
	receiver := expression(method.X)
	if failMethods[method.Sel.Name] && (receiver == "t" || receiver == "b" || receiver == "tb" || receiver == "f") {
		g.add(call.Args[0], failure)
		return
	}
	if !logMethods[method.Sel.Name] || !logReceiver.MatchString(receiver) {
		return
	}
	for _, argument := range call.Args[:min(2, len(call.Args))] { // Log and Check take the level first
		g.add(argument, logLine)
	}
}

// expression prints names and selectors, and the end of everything else.
func expression(e ast.Expr) string {
	switch e := e.(type) {
	case *ast.Ident:
		return e.Name
	case *ast.SelectorExpr:
		return expression(e.X) + "." + e.Sel.Name
	case *ast.CallExpr:
		return expression(e.Fun)
	}
	return ""
}

// add takes the string e. A sum of strings stays one text, with V in place of a value.
func (g *goStrings) add(e ast.Expr, k kind) {
	words, literal := g.flatten(e)
	if !literal || k == message && !isMessage(words) {
		return
	}
	if g.test && k == message {
		k = failure // a fixture or a helper's message: not for an operator
	}
	g.found = append(g.found, text{line: g.files.Position(e.Pos()).Line, kind: k, words: words})
}

// flatten joins the literals of a sum, and reports whether e has any.
func (g *goStrings) flatten(e ast.Expr) (string, bool) {
	switch e := e.(type) {
	case *ast.BasicLit:
		if e.Kind != token.STRING {
			return "", false
		}
		g.seen[e] = true
		value, err := strconv.Unquote(e.Value)
		return value, err == nil
	case *ast.BinaryExpr:
		if e.Op != token.ADD {
			return "", false
		}
		left, a := g.flatten(e.X)
		right, b := g.flatten(e.Y)
		if !a && !b {
			return "", false
		}
		g.seen[e] = true
		if !a {
			left = "V"
		}
		if !b {
			right = "V"
		}
		return left + right, true
	case *ast.ParenExpr:
		return g.flatten(e.X)
	}
	return "", false
}

// isMessage reports whether a string is written for a reader: three words with
// lower-case letters between single spaces, and no program, HTML or YAML.
func isMessage(s string) bool {
	return len(plainWord.FindAllString(s, 3)) == 3 && !strings.ContainsAny(s, "{}<>\t") && !strings.Contains(s, "  ") && !strings.Contains(s, ";\n")
}

var plainWord = regexp.MustCompile(`(^| )[A-Za-z]?[a-z]+(,|\.|:|;|\?|!|)( |$|\n)?`)

var cComment = regexp.MustCompile(`(?s)/\*.*?\*/|//[^\n]*`)

// cTexts returns the comments of a C file; those of lines that follow each other are one text.
func cTexts(data []byte) ([]text, error) {
	var all []text
	last := -2
	for _, at := range cComment.FindAllIndex(data, -1) {
		line := 1 + bytes.Count(data[:at[0]], []byte("\n"))
		words := strings.TrimSuffix(strings.TrimPrefix(string(data[at[0]:at[1]]), "/*"), "*/")
		words = regexp.MustCompile(`(?m)^\s*(\*|//) ?`).ReplaceAllString(words, "")
		if line == last+1 && len(all) > 0 && bytes.HasPrefix(data[at[0]:], []byte("//")) {
			all[len(all)-1].words += "\n" + words
		} else {
			all = append(all, text{line: line, kind: comment, words: words})
		}
		last = line + strings.Count(words, "\n")
	}
	return split(all), nil
}

var hashComment = regexp.MustCompile(`^(?:.*[\s"'\])]|)#+(?: |$)(.*)$`)

// hashTexts returns the comments that begin with a number sign.
func hashTexts(data []byte) ([]text, error) {
	var all []text
	last := -2
	for i, line := range strings.Split(string(data), "\n") {
		found := hashComment.FindStringSubmatch(line)
		if found == nil {
			continue
		}
		if whole := strings.HasPrefix(strings.TrimSpace(line), "#"); whole && i == last+1 {
			all[len(all)-1].words += "\n" + found[1]
		} else {
			all = append(all, text{line: i + 1, kind: comment, words: found[1]})
		}
		last = i
	}
	return split(all), nil
}

// split replaces texts by their paragraphs.
func split(texts []text) []text {
	var all []text
	for _, t := range texts {
		for _, p := range paragraphs(t.words) {
			all = append(all, text{line: t.line + p.line, kind: t.kind, words: p.words})
		}
	}
	return all
}

// markdownTexts returns the paragraphs, headings, list items and table cells of a
// page, without code.
func markdownTexts(data []byte) ([]text, error) {
	var plain []string
	fenced := false
	for line := range strings.SplitSeq(string(data), "\n") {
		switch trimmed := strings.TrimSpace(line); {
		case strings.HasPrefix(trimmed, "```"):
			fenced, line = !fenced, ""
		case fenced, strings.HasPrefix(trimmed, "<!--"), strings.HasPrefix(trimmed, "|--"):
			line = ""
		case strings.HasPrefix(trimmed, "|"):
			line = strings.ReplaceAll(trimmed, "|", "\x00")
		case strings.HasPrefix(trimmed, "#"):
			line += "\x00"
		}
		plain = append(plain, line)
	}
	all := split([]text{{line: 1, kind: document, words: strings.Join(plain, "\n")}})
	return all, nil
}

// paragraph is a piece of a text: sentences do not go on from one to the next.
type paragraph struct {
	line  int // from the beginning of the text
	words string
}

var item = regexp.MustCompile(`^\s*(?:[-*+]|\d+\.|#+)\s+`)

// paragraphs splits at empty lines, items and table cells (NUL), and leaves out
// indented code.
func paragraphs(words string) []paragraph {
	var all []paragraph
	var current paragraph
	end := func(next int) {
		if strings.TrimSpace(current.words) != "" {
			all = append(all, current)
		}
		current = paragraph{line: next}
	}
	listed := false
	for i, line := range strings.Split(words, "\n") {
		marker := item.FindString(line)
		switch {
		case marker != "":
			end(i)
			listed = true
		case strings.TrimSpace(line) == "":
			end(i + 1)
			continue
		case strings.HasPrefix(line, "\t"), strings.HasPrefix(line, "    ") && !listed:
			end(i + 1)
			continue
		case !strings.HasPrefix(line, " "):
			listed = false
		}
		for n, cell := range strings.Split(line[len(marker):], "\x00") {
			if n > 0 {
				end(i)
			}
			current.words += " " + cell
		}
	}
	end(0)
	return all
}
