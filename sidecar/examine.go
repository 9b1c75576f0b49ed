package sidecar

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
	"time"

	"github.com/chaperone-proxy/chaperone/ebpf/sandbox"

	"github.com/chaperone-proxy/chaperone/configs"
	"github.com/chaperone-proxy/chaperone/ebpf"
	"github.com/chaperone-proxy/chaperone/internal/admin"
	"github.com/chaperone-proxy/chaperone/internal/statehistory"
)

// Finding is one line of doctor.
type Finding struct {
	Name     string `json:"name"`
	Category string `json:"category"` // kernel, machine, state, grants, names, envoy or vault
	Code     string `json:"code"`     // stable, for programs: the category and what was checked, as in vault.login
	OK       bool   `json:"ok"`
	Required bool   `json:"required"`
	Problem  string `json:"problem,omitempty"`
	Lost     string `json:"lost,omitempty"`
	Remedy   string `json:"remedy,omitempty"`
	Measured string `json:"measured,omitempty"` // the result of a measurement
}

// checkRootless tries how run confines a plugin while the kernel half is off, and
// reports the limitations.
func checkRootless(spec *configs.Sidecar) Finding {
	out := Finding{Name: "kernel: off", Category: "kernel", Code: "kernel.off", Remedy: "say kernel: required"}
	if spec.Process.Network == configs.NetworkHost {
		out.Problem = "the plugin is not confined: process.network is host"
		out.Lost = "mediation, identity, and limits on connections, bytes, system calls and processes"
		return out
	}
	rootless, err := sandbox.NewRootless(sandbox.RootlessConfig{Plugin: spec.Plugin, StateDir: AbsPath(spec.StateDir), Proxy: []string{"127.0.0.1:0"}, User: string(spec.Process.User)})
	if err != nil {
		out.Problem = "the plugin is not confined: " + err.Error()
		out.Lost = "mediation, identity, and limits on connections, bytes, system calls and processes"
		return out
	}
	out.Problem, out.Lost = "the plugin is confined without the kernel half", strings.Join(rootless.Limits(), "; ")
	for _, l := range rootless.Listeners() {
		err = errors.Join(err, l.Close())
	}
	if err := errors.Join(err, rootless.Close()); err != nil {
		out.Problem += "; " + err.Error()
	}
	return out
}

func fromKernel(f ebpf.Finding, required bool) Finding {
	out := Finding{Name: plainName(f.Name), Category: "kernel", Code: "kernel." + codeOf(f.Name), OK: f.Err == nil, Required: f.Required && required, Lost: f.Lost, Remedy: f.Remedy}
	if out.Measured = f.Measured; f.Err != nil {
		out.Problem, out.Measured = f.Err.Error(), ""
	}
	return out
}

// codeOf returns a name as a part of a code: in lower case, with underscores.
func codeOf(name string) string {
	return strings.Join(strings.FieldsFunc(strings.ToLower(name), func(r rune) bool {
		return !('a' <= r && r <= 'z') && !('0' <= r && r <= '9')
	}), "_")
}

// plainName adds to the name of a check of the kernel what it is about.
func plainName(name string) string {
	switch name {
	case "process ids":
		return name + " (the sidecar and the kernel number processes alike)"
	case "cgroup v2":
		return name + " (where the plugin's processes are held and counted)"
	case "BPF file system":
		return name + " (keeps the plugin shut in after its sidecar was killed)"
	case "process scope":
		return name + " (the plugin cannot signal other processes of its user)"
	case "rootless sandbox":
		return name + " (a network of the plugin's own while the kernel half is off)"
	case "file rules":
		return name + " (process.files)"
	case "self-test":
		return name + " (a process is confined, and what must be refused is)"
	}
	return name
}

// checkClock finds a clock that was never set: every notAfter depends on it.
func checkClock(now time.Time) Finding {
	out := Finding{Name: "clock", Category: "machine", Code: "machine.clock", OK: true, Required: true}
	if now.Year() < 2026 {
		out.OK, out.Problem = false, fmt.Sprintf("says %s", now.Format(time.RFC3339))
		out.Lost, out.Remedy = "grants would end at the wrong time", "set the clock"
	}
	return out
}

// checkStateDir opens the stateDir as a sidecar would. One that is missing is not
// made: where it would be is looked at.
func checkStateDir(spec *configs.Sidecar) Finding {
	dir := spec.StateDir
	out := Finding{Name: "stateDir " + dir, Category: "state", Code: "state.dir", OK: true, Required: true}
	if watched, err := CheckStatePlace(spec); err != nil {
		out.OK, out.Problem = false, err.Error()
		out.Lost, out.Remedy = "run does not start", "write stateDir: /var/lib/chaperone/"+spec.Plugin
		if watched {
			out.Required, out.Lost = false, "a plugin that replaces it stops the next start"
		}
		return out
	}
	if _, err := os.Lstat(dir); errors.Is(err, fs.ErrNotExist) {
		return checkHistory(spec, out)
	}
	kept, err := openState(dir)
	switch {
	case errors.Is(err, ErrLocked):
		out.Name += " (a sidecar is running on it)"
	case err != nil:
		out.OK, out.Problem, out.Remedy = false, err.Error(), "make it a folder of the sidecar's user with mode 0700, on a disk with room"
	default:
		out = checkHistory(spec, out)
		_ = kept.Close()
	}
	return out
}

// checkHistory adds that a stateDir has lost its history.
func checkHistory(spec *configs.Sidecar, out Finding) Finding {
	_, err := statehistory.Open(spec.StateDir, spec.Plugin, historyRoots()...)
	if lost, is := errors.AsType[*statehistory.LostError](err); is && mayReinitialize(spec, lost) {
		out.OK, out.Required, out.Problem, out.Lost = false, false, err.Error(), "run begins it again"
		out.Remedy = "put it back if that is not meant"
	} else if err != nil {
		out.OK, out.Problem, out.Lost = false, err.Error(), "run does not start"
		out.Remedy = "put it back, or begin with what is there: chaperone statedir accept"
	}
	return out
}

func checkSameUser(spec *configs.Sidecar) Finding {
	out := Finding{Name: "the plugin's user is its own", Category: "state", Code: "state.user", OK: !spec.Process.UnsafeSameUser}
	if !out.OK {
		out.Problem, out.Lost = "unsafeSameUser is set", "the plugin can end its own confinement"
		out.Remedy = "leave user: dynamic and remove unsafeSameUser"
	}
	return out
}

// Examination is what is examined.
type Examination struct {
	Config  *configs.Config                            // nil: the machine only
	LogIn   bool                                       // log in to Vault even if that may use something up
	Running func(context.Context) (admin.Status, bool) // asks the sidecar that runs on config; false: none answers
}

// Examine checks the machine, and what a configuration needs of it.
func Examine(ctx context.Context, e Examination) []Finding {
	cfg := e.Config
	var out []Finding
	if cfg == nil || cfg.Sidecar.Kernel != configs.KernelOff {
		required := cfg == nil || cfg.Sidecar.Kernel == configs.KernelRequired
		for _, f := range ebpf.Probe() {
			out = append(out, fromKernel(f, required))
		}
	} else {
		out = append(out, checkRootless(&cfg.Sidecar))
	}
	out = append(out, checkClock(time.Now()))
	if cfg == nil {
		return out
	}
	out = append(out, checkStateDir(&cfg.Sidecar), checkSameUser(&cfg.Sidecar))
	out = append(out, checkExpiry(cfg, time.Now())...)
	out = append(out, checkNames(ctx, cfg)...)
	if cfg.Sidecar.Envoy != nil {
		out = append(out, checkEnvoy(ctx, cfg.Sidecar.Envoy)...)
	}
	if cfg.Sidecar.Vault != nil {
		out = append(out, checkVault(ctx, e)...)
	}
	return out
}
