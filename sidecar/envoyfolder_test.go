package sidecar

import (
	"os"
	"testing"

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
