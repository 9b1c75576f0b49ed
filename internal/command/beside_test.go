package command

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/chaperone-proxy/chaperone/internal/testenv"
)

// TestCheckBeside checks which programs are executed.
func TestCheckBeside(t *testing.T) {
	tests := map[string]struct {
		put  func(path string) error
		want string // of the error; "" for none
	}{
		"same owner":         {func(path string) error { return os.WriteFile(path, nil, 0o755) }, ""},
		"missing":            {func(string) error { return nil }, "install both into one folder"},
		"link":               {func(path string) error { return os.Symlink("/bin/true", path) }, "not a regular file"},
		"writable by others": {func(path string) error { return errors.Join(os.WriteFile(path, nil, 0o755), os.Chmod(path, 0o775)) }, "chmod go-w"},
		"in a folder that others may write": {func(path string) error {
			return errors.Join(os.WriteFile(path, nil, 0o755), os.Chmod(filepath.Dir(path), 0o777))
		}, "can be replaced by other users"},
	}
	if os.Geteuid() == 0 {
		tests["another owner"] = struct {
			put  func(path string) error
			want string
		}{func(path string) error {
			return errors.Join(os.WriteFile(path, nil, 0o755), os.Chown(path, 65534, 65534))
		}, "does not belong to the owner"}
	}
	for name, test := range tests {
		dir := t.TempDir()
		self, path := filepath.Join(dir, "chaperone"), filepath.Join(dir, "chaperonectl")
		testenv.Must(t, os.WriteFile(self, nil, 0o755))
		testenv.Must(t, test.put(path))
		err := CheckBeside(self, path)
		if test.want == "" && err != nil || test.want != "" && (err == nil || !strings.Contains(err.Error(), test.want)) {
			t.Errorf("%s: error is %v, want %q", name, err, test.want)
		}
	}
}
