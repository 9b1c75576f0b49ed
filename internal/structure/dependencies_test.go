package structure

import (
	"flag"
	"maps"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"

	"github.com/chaperone-proxy/chaperone/internal/testenv"
)

var update = flag.Bool("update", false, "rewrite testdata/dependencies.txt")

const (
	module           = "github.com/chaperone-proxy/chaperone"
	dependenciesFile = "testdata/dependencies.txt"
	dependenciesHead = `# The packages that cmd/chaperone links (linux/amd64), by module. The sidecar runs
# beside every plugin: a new package needs its reason in the commit. Rewrite with
#	go test ./internal/structure -run TestDependencies -update
`
)

// listDependencies returns the packages of cmd/chaperone by module: "this module",
// "standard library" without its internal packages, and others by path.
func listDependencies(t *testing.T) map[string][]string {
	t.Helper()
	const format = `{{if .Standard}}standard library{{else}}{{.Module.Path}}{{end}} {{.ImportPath}}`
	cmd := exec.CommandContext(t.Context(), "go", "list", "-deps", "-tags", testenv.BuildTags, "-f", format, "./cmd/chaperone")
	cmd.Dir = *root
	cmd.Env = append(os.Environ(), "GOOS=linux", "GOARCH=amd64", "CGO_ENABLED=0")
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list: %v\n%s", err, stderr.String())
	}
	all := map[string][]string{}
	for line := range strings.Lines(string(out)) {
		line = strings.TrimSpace(line)
		path := line[strings.LastIndexByte(line, ' ')+1:]
		group := strings.TrimSuffix(line, " "+path)
		switch {
		case group == module:
			group, path = "this module", strings.TrimPrefix(path, module+"/")
		case group == "standard library":
			if slices.Contains(strings.Split(path, "/"), "internal") || strings.HasPrefix(path, "vendor/") {
				continue
			}
		}
		all[group] = append(all[group], path)
	}
	for _, paths := range all {
		slices.Sort(paths)
	}
	return all
}

// printDependencies prints groups as dependencies.txt has them: a group, and its
// packages in indented lines.
func printDependencies(all map[string][]string) string {
	var b strings.Builder
	b.WriteString(dependenciesHead)
	for _, group := range slices.Sorted(maps.Keys(all)) {
		b.WriteString("\n" + group + "\n")
		for _, path := range all[group] {
			b.WriteString("\t" + path + "\n")
		}
	}
	return b.String()
}

// TestDependencies compares the packages that cmd/chaperone links with the committed list.
func TestDependencies(t *testing.T) {
	got := printDependencies(listDependencies(t))
	if *update {
		if err := os.WriteFile(dependenciesFile, []byte(got), 0o600); err != nil {
			t.Fatal(err)
		}
		return
	}
	data, err := os.ReadFile(dependenciesFile)
	if err != nil {
		t.Fatal(err)
	}
	want := strings.Split(string(data), "\n")
	listed := strings.Split(got, "\n")
	for _, path := range listed {
		if !slices.Contains(want, path) {
			t.Errorf("cmd/chaperone links %s, which is not in %s", strings.TrimSpace(path), dependenciesFile)
		}
	}
	for _, path := range want {
		if !slices.Contains(listed, path) {
			t.Errorf("%s has %s, which cmd/chaperone no longer links", dependenciesFile, strings.TrimSpace(path))
		}
	}
	if t.Failed() {
		t.Log("if this is intended, say why in the commit, and run: go test ./internal/structure -run TestDependencies -update")
	}
}
