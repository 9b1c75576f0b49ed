package structure

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/chaperone-proxy/chaperone/internal/testenv"
)

// mostBytes bounds the program as it is shipped, so that a package which comes with much
// else is noticed. The goal is 30 MB (bench/README.md); databases took 2 MB. An idle
// sidecar has the pages of it in memory that its start has read.
const mostBytes = 31_000_000

// TestBinarySize builds the program as it is shipped. One call of
// reflect.Value.Method or MethodByName with a name that is not constant, in any
// linked package, makes the linker keep every exported method: some 10 MB.
func TestBinarySize(t *testing.T) {
	path := filepath.Join(t.TempDir(), "chaperone")
	testenv.Must(t, testenv.BuildChaperone(t.Context(), path))
	info := testenv.MustGet(os.Stat(path))(t)
	t.Logf("the program has %.1f MB", float64(info.Size())/1e6)
	if info.Size() > mostBytes {
		t.Errorf("got a program of %d bytes, want at most %d; this prints the calls that keep every method:\n"+
			"\tgo build -tags %s -ldflags=-dumpdep -o /dev/null ./cmd/chaperone 2>&1 | grep -- '-> .*<ReflectMethod>$'",
			info.Size(), mostBytes, testenv.BuildTags)
	}
}

// TestBuildTags compares the tags of the builds outside Go with those of the tests.
func TestBuildTags(t *testing.T) {
	for file, want := range map[string]string{
		"Makefile":    "TAGS := " + testenv.BuildTags + "\n",
		"Dockerfile":  "-tags " + testenv.BuildTags + " ",
		"tools/setup": "-tags " + testenv.BuildTags + " ",
	} {
		if text := string(testenv.MustGet(os.ReadFile(filepath.Join(*root, file)))(t)); !strings.Contains(text, want) {
			t.Errorf("%s lacks %q", file, want)
		}
	}
}
