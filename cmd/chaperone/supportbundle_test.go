package main

import (
	"archive/tar"
	"compress/gzip"
	"encoding/json"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/chaperone-proxy/chaperone/internal/testenv"
)

// unpack reads a support bundle.
func unpack(t *testing.T, file string) map[string]string {
	t.Helper()
	in := testenv.MustGet(os.Open(file))(t)
	defer in.Close()
	archive := tar.NewReader(testenv.MustGet(gzip.NewReader(in))(t))
	out := map[string]string{}
	for {
		header, err := archive.Next()
		if errors.Is(err, io.EOF) {
			return out
		}
		testenv.Must(t, err)
		out[header.Name] = string(testenv.MustGet(io.ReadAll(archive))(t))
	}
}

// TestSupportBundle takes bundles of a sidecar that runs and of one that does not,
// and looks for a secret of the plugin's environment in them.
func TestSupportBundle(t *testing.T) {
	const secret = "canary-of-the-environment"
	h := newHost(t, "weather")
	config := strings.Replace(string(testenv.MustGet(os.ReadFile(h.config("weather")))(t)), "  kernel:", "  process: {env: {API_KEY: "+secret+"}}\n  kernel:", 1)
	h.Write("weather/sidecar.yaml", config)
	names := []string{"audit.json", "configuration.json", "doctor.json", "kernel.json", "metrics.txt", "status.json", "usage.json", "version.json"}
	for _, test := range []struct {
		name   string
		runs   bool
		status string // in status.json
	}{
		{"down", false, `"missing"`},
		{"up", true, `"plugin": "weather"`},
	} {
		t.Run(test.name, func(t *testing.T) {
			if test.runs {
				h.start("weather")
			}
			file := filepath.Join(t.TempDir(), "bundle.tar.gz")
			got := h.Chaperone("support-bundle", "--config", h.config("weather"), "--file", file)
			if got.Status != 0 || got.Stdout != file+"\n" {
				t.Fatalf("status %d: %s%s", got.Status, got.Stdout, got.Stderr)
			}
			parts := unpack(t, file)
			for name, text := range parts {
				if strings.Contains(text, secret) {
					t.Errorf("%s holds the secret", name)
				}
				if strings.HasSuffix(name, ".json") && !json.Valid([]byte(text)) {
					t.Errorf("%s is no JSON", name)
				}
			}
			if !strings.Contains(parts["status.json"], test.status) {
				t.Errorf("status.json lacks %s:\n%s", test.status, parts["status.json"])
			}
			if !strings.Contains(parts["configuration.json"], redacted) {
				t.Error("the name of the variable is missing")
			}
			var found []string
			for name := range parts {
				found = append(found, name)
			}
			if slices.Sort(found); !slices.Equal(found, names) {
				t.Errorf("files %q", found)
			}
			if again := h.Chaperone("support-bundle", "--config", h.config("weather"), "--file", file); again.Status != 1 {
				t.Errorf("a file that exists was replaced: status %d", again.Status)
			}
		})
	}
}

// TestManPages writes the pages as `make release` does.
func TestManPages(t *testing.T) {
	dir := t.TempDir()
	if output, err := exec.CommandContext(t.Context(), "go", "run", "-tags", "man", ".", "man", dir).CombinedOutput(); err != nil {
		t.Fatalf("got %v: %s", err, output)
	}
	for _, page := range []string{"chaperone.1", "chaperone-revoke.1", "chaperone-support-bundle.1"} {
		text := string(testenv.MustGet(os.ReadFile(filepath.Join(dir, page)))(t))
		if !strings.HasPrefix(text, ".") || !strings.Contains(text, ".SH SYNOPSIS") {
			t.Errorf("%s is no man page:\n%.200s", page, text)
		}
	}
}
