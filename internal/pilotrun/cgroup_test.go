package pilotrun

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/chaperone-proxy/chaperone/internal/testenv"
)

// TestCgroup: a pilot takes a cgroup without processes alone, and kills what came afterwards.
func TestCgroup(t *testing.T) {
	testenv.Require(t, testenv.Superuser(), testenv.CgroupV2())
	root := testenv.MustGet(testenv.CgroupRoot())(t)
	group := testenv.MustCgroup(t)
	inner := filepath.Join(group.Path, "inner")
	testenv.Must(t, os.Mkdir(inner, 0o755))
	start := func(folder string) *exec.Cmd {
		t.Helper()
		dir := testenv.MustGet(os.Open(folder))(t)
		defer dir.Close()
		cmd := exec.CommandContext(t.Context(), "sleep", "60")
		cmd.SysProcAttr = group.SysProcAttr()
		cmd.SysProcAttr.CgroupFD = int(dir.Fd())
		testenv.Must(t, cmd.Start())
		return cmd
	}
	there := start(inner)
	link := filepath.Join(t.TempDir(), "link")
	testenv.Must(t, os.Symlink(group.Path, link))
	plain := t.TempDir()
	testenv.Must(t, os.WriteFile(filepath.Join(plain, "cgroup.events"), []byte("populated 0\n"), 0o600))
	for name, test := range map[string]struct{ dir, want string }{
		"process":       {inner, "has processes already"},
		"process below": {group.Path, "has processes already"},
		"link":          {link, "has processes already"},
		"root":          {root, "is the root of the hierarchy"},
		"other folder":  {plain, "is not a folder of cgroup v2"},
		"none":          {filepath.Join(group.Path, "none"), "no such file"},
	} {
		if _, err := openCgroup(test.dir); err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: got %v, want %q", name, err, test.want)
		}
	}
	// A sidecar that does not start kills nothing that was there before.
	if _, err := Start(ChildConfig{Chaperone: "/bin/false", Cgroup: group.Path, Exercise: "pilot"}); err == nil {
		t.Error("a pilot started in a cgroup with processes")
	}
	testenv.Must(t, there.Process.Kill())
	_ = there.Wait() // it was killed
	g, err := openCgroup(link)
	testenv.Must(t, err)
	defer g.folder.Close()
	plugin := start(inner)
	testenv.Must(t, g.kill())
	if err := plugin.Wait(); err == nil || !strings.Contains(err.Error(), "killed") {
		t.Errorf("the plugin ended with %v", err)
	}
}
