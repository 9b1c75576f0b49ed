package sidecar

import (
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/chaperone-proxy/chaperone/ebpf/sandbox"

	"github.com/chaperone-proxy/chaperone/configs"
)

// accountEnvironment returns the environment of the sidecar with what describes
// the sidecar's own account replaced by what describes the plugin's. A plugin
// that runs as the sidecar's own user keeps all of it.
func (p *Plugin) accountEnvironment(env []string) []string {
	account, ok := p.cfg.Confinement().Account()
	if !ok || account.SameUser {
		return env
	}
	out := slices.DeleteFunc(slices.Clone(env), func(entry string) bool {
		name, _, _ := strings.Cut(entry, "=")
		return describesAccount(name)
	})
	return append(out, accountVariables(account)...)
}

// describesAccount reports whether a variable belongs to a user's account or
// login session: its name, its folders, and the sockets of its session.
func describesAccount(name string) bool {
	switch name {
	case "HOME", "USER", "LOGNAME", "SHELL", "MAIL", "TMPDIR", "TMP", "TEMP",
		"DBUS_SESSION_BUS_ADDRESS", "SSH_AUTH_SOCK", "SSH_AGENT_PID", "GPG_AGENT_INFO", "XAUTHORITY":
		return true
	}
	return strings.HasPrefix(name, "XDG_") || strings.HasPrefix(name, "SUDO_")
}

func accountVariables(a sandbox.Account) []string {
	out := []string{"HOME=" + a.Home, "USER=" + a.Name, "LOGNAME=" + a.Name, "SHELL=" + a.Shell, "TMPDIR=/tmp"}
	if a.RuntimeDir != "" {
		out = append(out, "XDG_RUNTIME_DIR="+a.RuntimeDir)
	}
	return out
}

// keptPaths are the paths that the operator named: they stay visible in a view
// of the plugin's own also where it covers the host's directories. They are the
// folder of the Sidecar's file, the program, its arguments and the values of
// process.env, as far as they name something that exists.
func keptPaths(cfg *configs.Config, args []string) []string {
	named := append([]string{filepath.Dir(cfg.Path)}, args...)
	for _, arg := range args {
		if _, value, ok := strings.Cut(arg, "="); ok {
			named = append(named, value)
		}
	}
	for _, value := range cfg.Sidecar.Process.Env {
		if filepath.IsAbs(value) {
			named = append(named, value)
		}
	}
	here, err := os.Getwd()
	if err == nil {
		named = append(named, here)
	}
	var out []string
	for _, path := range named {
		if full, err := filepath.Abs(path); err == nil && path != "" {
			if _, err := os.Lstat(full); err == nil {
				out = append(out, topmost(full))
			}
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// topmost is the folder directly below a folder for temporary files that holds a
// path, or the path itself: what belongs together, such as a virtual environment
// and the program in it, usually lies in one such folder.
func topmost(path string) string {
	for _, temp := range []string{"/tmp", "/var/tmp"} {
		if inside, err := filepath.Rel(temp, path); err == nil && inside != "." && !strings.HasPrefix(inside, "..") {
			first, _, _ := strings.Cut(inside, "/")
			return filepath.Join(temp, first)
		}
	}
	return path
}
