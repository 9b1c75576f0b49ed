package prose

import (
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

var (
	markdownLink = regexp.MustCompile(`\]\(([^)\s]+)\)`)
	// namedPage is a page that a text of any file names, with its anchor.
	namedPage = regexp.MustCompile(`(?:blob/main/|\b)((?:docs/[\w./-]+|README|CONTRIBUTING|SECURITY|CHANGELOG)\.md)(#[\w-]+)?`)
	heading   = regexp.MustCompile(`(?m)^#+ +(.*?)\s*$`)
	fence     = regexp.MustCompile("(?ms)^```.*?^```$")
	notSlug   = regexp.MustCompile(`[^\p{L}\p{N}_\- ]`)
)

// anchors returns the fragments of a page's headings, as GitHub makes them.
func anchors(data []byte) []string {
	var all []string
	for _, found := range heading.FindAllSubmatch(fence.ReplaceAll(data, nil), -1) {
		plain := notSlug.ReplaceAllString(strings.ToLower(string(found[1])), "")
		all = append(all, strings.ReplaceAll(plain, " ", "-"))
	}
	return all
}

// checkTarget reports a page, or a fragment of it, that does not exist.
func checkTarget(t *testing.T, from, target, fragment string) {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(*root, target))
	if err != nil {
		if info, err := os.Stat(filepath.Join(*root, target)); err != nil || !info.IsDir() {
			t.Errorf("%s: link to %s, which does not exist", from, target)
		}
		return
	}
	fragment = strings.TrimPrefix(fragment, "#")
	if fragment != "" && !slices.Contains(anchors(data), fragment) {
		t.Errorf("%s: link to %s#%s, and no heading has this anchor", from, target, fragment)
	}
}

// readable are the files whose texts may name a page.
var readable = regexp.MustCompile(`\.(go|md|c|h|ya?ml|json|service|sh|txt)$|/(Makefile|Dockerfile|setup|fuzz|prepare|run)$`)

// TestLinks follows the links of Markdown pages, and finds the pages that other
// files name: comments, messages of the program, annotations of alerts.
func TestLinks(t *testing.T) {
	err := filepath.WalkDir(*root, func(file string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if entry.IsDir() {
			if skipped[entry.Name()] && entry.Name() != "testdata" {
				return filepath.SkipDir
			}
			return nil
		}
		name, err := filepath.Rel(*root, file)
		if err != nil || !readable.MatchString("/"+filepath.ToSlash(name)) || entry.Name() == "links_test.go" {
			return err
		}
		data, err := os.ReadFile(file)
		if err != nil {
			return err
		}
		followLinks(t, filepath.ToSlash(name), data)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

func followLinks(t *testing.T, name string, data []byte) {
	t.Helper()
	inMarkdown := strings.HasSuffix(name, ".md")
	for _, found := range namedPage.FindAllSubmatch(data, -1) {
		if page := string(found[1]); !inMarkdown || strings.HasPrefix(page, "docs/") {
			checkTarget(t, name, page, string(found[2]))
		}
	}
	if !inMarkdown {
		return
	}
	for _, found := range markdownLink.FindAllSubmatch(fence.ReplaceAll(data, nil), -1) {
		target, fragment, _ := strings.Cut(string(found[1]), "#")
		switch {
		case strings.Contains(target, "://"):
		case target == "":
			checkTarget(t, name, name, fragment)
		default:
			checkTarget(t, name, path.Join(path.Dir(name), target), fragment)
		}
	}
}

// TestPagesAreIndexed wants each page of docs in its index.
func TestPagesAreIndexed(t *testing.T) {
	index, err := os.ReadFile(filepath.Join(*root, "docs/README.md"))
	if err != nil {
		t.Fatal(err)
	}
	err = filepath.WalkDir(filepath.Join(*root, "docs"), func(file string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() || filepath.Ext(file) != ".md" {
			return err
		}
		page, err := filepath.Rel(filepath.Join(*root, "docs"), file)
		if page != "README.md" && !strings.Contains(string(index), "]("+filepath.ToSlash(page)+")") {
			t.Errorf("docs/README.md has no link to %s", page)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

func TestAnchors(t *testing.T) {
	got := anchors([]byte("# What the plugin sees\n```\n# not one\n```\n## `run`: exit, 2 kinds\n"))
	want := []string{"what-the-plugin-sees", "run-exit-2-kinds"}
	if !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}
