package prose

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// requirements is the page whose table has a requirement, the command that makes it true,
// and the tests that prove it.
const requirements = "docs/governance-requirements.md"

// leastRequirements is a bound that a lost row crosses.
const leastRequirements = 99

var (
	inCode        = regexp.MustCompile("`([^`]+)`")
	option        = regexp.MustCompile(`^--([a-z-]+)$`)
	nameOfCommand = regexp.MustCompile(`^[a-z-]+$`)
)

// TestRequirements looks for each command, flag and test of the table.
func TestRequirements(t *testing.T) {
	data, err := os.ReadFile(filepath.Join(*root, requirements))
	if err != nil {
		t.Fatal(err)
	}
	sources := map[string]string{"chaperone": goSources(t, "cmd/chaperone"), "chaperonectl": goSources(t, "cmd/chaperonectl")}
	rows := 0
	for line := range strings.Lines(string(data)) {
		cells := strings.Split(strings.Trim(strings.TrimSpace(line), "|"), "|")
		if !strings.HasPrefix(line, "| ") || strings.HasPrefix(line, "| requirement") {
			continue
		}
		rows++
		name := strings.TrimSpace(cells[0])
		if len(cells) != 3 {
			t.Errorf("%s: has %d cells, want 3", name, len(cells))
			continue
		}
		for _, found := range inCode.FindAllStringSubmatch(cells[1], -1) {
			if fault := checkCommand(found[1], sources); fault != "" {
				t.Errorf("%s: %s: %s", name, found[1], fault)
			}
		}
		tests := inCode.FindAllStringSubmatch(cells[2], -1)
		if len(tests) == 0 {
			t.Errorf("%s: no test proves it", name)
		}
		for _, found := range tests {
			checkProof(t, name, found[1])
		}
	}
	if rows < leastRequirements {
		t.Errorf("the table has %d rows, want at least %d", rows, leastRequirements)
	}
}

// goSources returns the text of the programs of a folder, without its tests.
func goSources(t *testing.T, dir string) string {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(*root, dir, "*.go"))
	if err != nil || len(files) == 0 {
		t.Fatalf("%s has no sources: %v", dir, err)
	}
	var all strings.Builder
	for _, file := range files {
		if strings.HasSuffix(file, "_test.go") {
			continue
		}
		data, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		all.Write(data)
	}
	return all.String()
}

// checkCommand returns the fault of a text that begins with a program's name: a command or a
// flag that the program does not have.
func checkCommand(text string, sources map[string]string) string {
	words := strings.Fields(text)
	source, ok := sources[words[0]]
	if !ok {
		return ""
	}
	for i, w := range words[1:] {
		found := option.FindStringSubmatch(w)
		switch {
		case found != nil:
			if !strings.Contains(source, `"`+found[1]+`"`) {
				return "the program has no flag " + w
			}
		case !nameOfCommand.MatchString(w):
			return w + " is neither a command nor a flag"
		case i > 0 && strings.HasPrefix(words[i], "--"): // the flag's value
		case !strings.Contains(source, w+"Command(") && !regexp.MustCompile(`"`+w+`["\s]`).MatchString(source):
			return "the program has no command " + w
		}
	}
	return ""
}

// checkProof reports a test that does not exist: a script, or FILE#TEST.
func checkProof(t *testing.T, row, proof string) {
	t.Helper()
	file, test, ok := strings.Cut(proof, "#")
	data, err := os.ReadFile(filepath.Join(*root, file))
	switch {
	case err != nil:
		t.Errorf("%s: %v", row, err)
	case ok && !strings.Contains(string(data), "func "+test+"("):
		t.Errorf("%s: %s has no %s", row, file, test)
	case !ok && filepath.Ext(file) != ".txtar":
		t.Errorf("%s: %s is no script; name its test as in FILE#TEST", row, file)
	}
}
