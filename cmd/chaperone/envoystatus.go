package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/chaperone-proxy/chaperone/authz/extauthz"
	"github.com/chaperone-proxy/chaperone/authz/xds"
	"github.com/chaperone-proxy/chaperone/configs"
	"github.com/chaperone-proxy/chaperone/internal/admin"
	"github.com/chaperone-proxy/chaperone/internal/phrase"
)

// envoyStatus says how the Envoys stand that the sidecar configures; nil when it
// configures none.
func (s *sidecar) envoyStatus() *admin.Envoy {
	if s.own == nil {
		return nil
	}
	served := s.own.xds.Status()
	out := &admin.Envoy{
		Dir: s.own.spec.Dir, Generation: served.Generation, Problem: served.Problem, Exits: int(s.own.exits.Load()),
		Connected: []admin.ConnectedEnvoy{},
	}
	for _, e := range served.Envoys {
		out.Connected = append(out.Connected, admin.ConnectedEnvoy{
			Version: e.Version, Since: e.Connected, Current: served.Current(e), Generation: oldest(e), Refused: e.Refused,
		})
	}
	return out
}

// oldest returns the oldest generation of which an Envoy has something in force.
func oldest(e xds.Envoy) uint64 {
	if len(e.Acknowledged) == 0 {
		return 0
	}
	return slices.Min(slices.Collect(maps.Values(e.Acknowledged)))
}

func envoyRows(w io.Writer, e *admin.Envoy, now time.Time) {
	if len(e.Connected) == 0 {
		row(w, "envoy", "NONE IS CONNECTED to "+e.Dir+": what is asked for is refused")
	}
	for _, one := range e.Connected {
		text := fmt.Sprintf("%s, connected for %s, generation %d", one.Version, now.Sub(one.Since).Round(time.Second), one.Generation)
		if !one.Current {
			text += fmt.Sprintf(", NOT YET %d", e.Generation)
		}
		row(w, "envoy", text)
		for _, kind := range slices.Sorted(maps.Keys(one.Refused)) {
			row(w, "", "REFUSED "+kind+": "+phrase.OneLine(one.Refused[kind]))
		}
	}
	row(w, "", fmt.Sprintf("%d exits in %s", e.Exits, e.Dir))
	if e.Problem != "" {
		row(w, "", "NOTHING IS ROUTED: "+phrase.OneLine(e.Problem))
	}
}

// remarkOnEnvoy says for readyz?verbose how Envoy stands. A sidecar without one
// is ready: it refuses, as it should.
func (s *sidecar) remarkOnEnvoy() string {
	e := s.envoyStatus()
	switch {
	case e == nil:
		return ""
	case len(e.Connected) == 0:
		return "[?]envoy none is connected, so everything is refused (readiness does not depend on it)\n"
	case slices.ContainsFunc(e.Connected, func(c admin.ConnectedEnvoy) bool { return len(c.Refused) > 0 }):
		return "[?]envoy has refused a part of its configuration (readiness does not depend on it)\n"
	}
	return "[+]envoy connected\n"
}

// registerEnvoyMetrics registers how the Envoys stand that the sidecar configures.
func (s *sidecar) registerEnvoyMetrics() {
	figure := func(name, help string, of func(e *admin.Envoy) int) {
		s.metrics.gauge(name, help, func() float64 { return float64(of(s.envoyStatus())) })
	}
	count := func(e *admin.Envoy, counts func(admin.ConnectedEnvoy) bool) (n int) {
		for _, one := range e.Connected {
			if counts(one) {
				n++
			}
		}
		return n
	}
	figure("chaperone_envoy_connected", "Envoys that ask the sidecar for their configuration.",
		func(e *admin.Envoy) int { return len(e.Connected) })
	figure("chaperone_envoy_current", "Envoys that have put in force all that they are told.",
		func(e *admin.Envoy) int { return count(e, func(c admin.ConnectedEnvoy) bool { return c.Current }) })
	figure("chaperone_envoy_refusing", "Envoys that have refused a part of their configuration.",
		func(e *admin.Envoy) int {
			return count(e, func(c admin.ConnectedEnvoy) bool { return len(c.Refused) > 0 })
		})
	figure("chaperone_envoy_exits", "Places that Envoy may reach, each by a socket of its own.",
		func(e *admin.Envoy) int { return e.Exits })
	s.metrics.gauge("chaperone_envoy_generation", "Oldest generation of the policy of which an Envoy has something in force; 0 without one.", func() float64 {
		e := s.envoyStatus()
		if len(e.Connected) == 0 {
			return 0
		}
		least := e.Connected[0].Generation
		for _, one := range e.Connected {
			least = min(least, one.Generation)
		}
		return float64(least)
	})
}

// checkEnvoy examines what the Envoy of a sidecar needs.
func checkEnvoy(ctx context.Context, spec *configs.Envoy) []finding {
	return []finding{checkEnvoyFolder(spec), checkEnvoyProgram(ctx)}
}

func checkEnvoyFolder(spec *configs.Envoy) finding {
	out := finding{Name: "spec.envoy.dir " + spec.Dir, Category: "envoy", Code: "envoy.dir", OK: true, Required: true}
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
	gid, err := extauthz.GroupID(spec.Group)
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
func checkEnvoyProgram(ctx context.Context) finding {
	out := finding{Name: "envoy in PATH", Category: "envoy", Code: "envoy.program", OK: true}
	program, err := exec.LookPath("envoy")
	if err != nil {
		out.OK, out.Problem = false, "there is none here; in another container there may be"
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
