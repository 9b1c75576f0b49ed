package sidecar

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"go.uber.org/zap"

	"github.com/chaperone-proxy/chaperone/configs"
	"github.com/chaperone-proxy/chaperone/internal/testenv"
)

// TestEnvoyFolder is the sidecar's own, and a group's where one is named.
func TestEnvoyFolder(t *testing.T) {
	testenv.Require(t, testenv.Superuser())
	dir := t.TempDir() + "/a/b"
	testenv.Must(t, takeEnvoyFolder(dir, ""))
	if mode := testenv.MustGet(os.Stat(dir))(t).Mode(); mode != os.ModeDir|envoyFolderAlone {
		t.Errorf("%v for nobody else", mode)
	}
	testenv.Must(t, takeEnvoyFolder(dir, "61998"))
	if mode := testenv.MustGet(os.Stat(dir))(t).Mode(); mode != os.ModeDir|envoyFolderGroup {
		t.Errorf("%v for a group", mode)
	}
	testenv.Must(t, os.Chown(dir, 61999, -1))
	if err := takeEnvoyFolder(dir, ""); err == nil {
		t.Error("another user's folder was taken")
	}
	if err := takeEnvoyFolder(t.TempDir(), "no-such-group"); err == nil {
		t.Error("a group that is not there was taken")
	}
}

// TestEnvoyDirReplaceable checks that a directory which another user may rename is
// refused, unless the plugin is in another container.
func TestEnvoyDirReplaceable(t *testing.T) {
	above := filepath.Join(t.TempDir(), "shared")
	testenv.Must(t, os.MkdirAll(above+"/envoy", 0o700))
	testenv.Must(t, os.Chmod(above, 0o777))
	own := &managedEnvoy{spec: configs.Envoy{Dir: above + "/envoy"}, log: zap.NewNop()}
	if err := own.checkDir(); err == nil || !strings.Contains(err.Error(), above) {
		t.Errorf("checkDir() = %v, want an error that names %s", err, above)
	}
	own.elsewhere = true
	if err := own.checkDir(); err != nil {
		t.Errorf("checkDir() with the plugin elsewhere = %v, want nil", err)
	}
}
