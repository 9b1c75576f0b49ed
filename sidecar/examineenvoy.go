package sidecar

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"syscall"
	"time"

	"github.com/chaperone-proxy/chaperone/configs"
	"github.com/chaperone-proxy/chaperone/internal/phrase"
	"github.com/chaperone-proxy/chaperone/internal/unixsock"
)

// checkEnvoy examines what the Envoy of a sidecar needs.
func checkEnvoy(ctx context.Context, spec *configs.Envoy) []Finding {
	return []Finding{checkEnvoyFolder(spec), checkEnvoyProgram(ctx)}
}

func checkEnvoyFolder(spec *configs.Envoy) Finding {
	out := Finding{Name: "spec.envoy.dir " + spec.Dir, Category: "envoy", Code: "envoy.dir", OK: true, Required: true}
	if err := envoyFolder(spec); err != nil {
		out.OK, out.Problem = false, err.Error()
		out.Lost = "Envoy cannot reach the sidecar, and everything is refused; or others can"
		out.Remedy = "remove the folder, which the sidecar makes itself, and check spec.envoy.group"
	}
	return out
}

// envoyFolder returns what is wrong with the folder and the sidecar's sockets in
// it. One that is not there is made at the start.
func envoyFolder(spec *configs.Envoy) error {
	gid, err := unixsock.GroupID(spec.Group)
	if err != nil {
		return err
	}
	for _, one := range []struct {
		path         string
		alone, group fs.FileMode
	}{
		{spec.Dir, envoyFolderAlone, envoyFolderGroup},
		{spec.XDS(), 0o600, 0o660},
		{spec.Check(), 0o600, 0o660},
	} {
		info, err := os.Lstat(one.path)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return err
		}
		want := one.alone
		if gid >= 0 {
			want = one.group
		}
		owner, ok := info.Sys().(*syscall.Stat_t)
		switch got := info.Mode() &^ fs.ModeType; {
		case !ok || int64(owner.Uid) != int64(os.Geteuid()):
			return fmt.Errorf("%s is another user's than the one who runs this", one.path)
		case gid >= 0 && int64(owner.Gid) != int64(gid):
			return fmt.Errorf("%s is not of group %s", one.path, spec.Group)
		case got != want:
			return fmt.Errorf("%s has mode %v, not %v", one.path, got, want)
		}
	}
	return nil
}

// checkEnvoyProgram looks for an Envoy. It may as well run in another container.
func checkEnvoyProgram(ctx context.Context) Finding {
	out := Finding{Name: "envoy in PATH", Category: "envoy", Code: "envoy.program", OK: true}
	program, err := exec.LookPath("envoy")
	if err != nil {
		out.OK, out.Problem = false, "not found here; it may be in another container"
		out.Lost, out.Remedy = "without an Envoy everything is refused", "install Envoy 1.40 or later, and start it with what chaperone envoy bootstrap prints"
		return out
	}
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	said, err := exec.CommandContext(ctx, program, "--version").Output()
	if err != nil {
		out.OK, out.Problem = false, fmt.Sprintf("%s --version: %v", program, err)
		return out
	}
	if version := regexp.MustCompile(`[0-9]+\.[0-9]+\.[0-9]+`).FindString(string(said)); version != "" {
		out.Name = program + " " + version
	} else {
		out.Name = program + " " + strings.TrimSpace(phrase.FirstLine(string(said)))
	}
	return out
}
