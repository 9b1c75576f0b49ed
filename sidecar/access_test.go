package sidecar

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/chaperone-proxy/chaperone/internal/testenv"
)

// TestAccess returns what a user may not use, and where on the way.
func TestAccess(t *testing.T) {
	dir := t.TempDir()
	for _, above := range []string{dir, filepath.Dir(dir)} {
		testenv.Must(t, os.Chmod(above, 0o755))
	}
	closed := filepath.Join(dir, "closed")
	testenv.Must(t, os.Mkdir(closed, 0o700))
	for name, mode := range map[string]os.FileMode{"open": 0o755, "secret": 0o600, "closed/open": 0o755, "unreadable": 0o711} {
		testenv.Must(t, os.WriteFile(filepath.Join(dir, name), nil, 0o600))
		testenv.Must(t, os.Chmod(filepath.Join(dir, name), mode))
	}
	testenv.Must(t, os.Symlink("closed/open", filepath.Join(dir, "link")))
	other, self := fileUser{64_000, 64_000}, fileUser{os.Geteuid(), os.Getegid()}
	for _, c := range []struct {
		who  fileUser
		name string
		bits os.FileMode
		want string
	}{
		{other, "open", 5, ""},
		{other, "secret", 4, "it belongs to uid"},
		{other, "unreadable", 4, "has mode 0711"},
		{other, "unreadable", 1, ""},
		{other, "closed/open", 4, "folder " + closed + " belongs to uid"},
		{other, "link", 4, "folder " + closed + " belongs to uid"},
		{other, "closed", 1, "it belongs to uid"},
		{other, "missing", 4, ""}, // the program reports it itself
		{self, "secret", 4, ""},
		{self, "closed/open", 4, ""},
	} {
		got := c.who.refusal(filepath.Join(dir, c.name), c.bits)
		if c.want == "" && got != "" || !strings.Contains(got, c.want) {
			t.Errorf("uid %d, %s: %q, want %q", c.who.uid, c.name, got, c.want)
		}
	}
}
