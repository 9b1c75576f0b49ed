package sidecar

import (
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"syscall"

	"github.com/chaperone-proxy/chaperone/ebpf/sandbox"

	"github.com/chaperone-proxy/chaperone/audit"
	"github.com/chaperone-proxy/chaperone/configs"
)

// privateFiles are the files that are the sidecar's alone: what it logs in to
// Vault with, its keys, its log and its sockets. A plugin that may
// use one is not started.
func privateFiles(spec *configs.Sidecar) []string {
	out := []string{spec.Audit.File}
	if spec.Audit.File != "" {
		out = append(out, audit.SecondFile(spec.Audit.File))
	}
	for _, a := range []configs.Address{spec.Listen.Admin, spec.Listen.ExtAuthz} {
		if a.IsUnix() {
			out = append(out, a.Addr)
		}
	}
	if spec.Envoy != nil {
		out = append(out, spec.Envoy.Dir) // its sockets give access to the keys of Envoy's certificates
	}
	if spec.Listen.ExtAuthzTLS != nil {
		out = append(out, spec.Listen.ExtAuthzTLS.KeyFile)
	}
	if spec.Vault != nil {
		out = append(out, loginFiles(spec.Vault.Auth)...)
	}
	out = slices.DeleteFunc(out, func(path string) bool { return path == "" })
	for i := range out {
		out[i] = AbsPath(out[i])
	}
	return out
}

// AbsPath is a path as it is from any directory: what hides and judges
// files stands elsewhere than who named them.
func AbsPath(path string) string {
	if full, err := filepath.Abs(path); err == nil {
		return full
	}
	return path
}

// loginFiles are the files of a login, whatever its method: all that its
// configuration calls a file but the certificate, which is no secret.
func loginFiles(auth configs.VaultAuth) []string {
	var out []string
	value := reflect.ValueOf(auth)
	for _, field := range reflect.VisibleFields(value.Type()) {
		if path, ok := reflect.TypeAssert[string](value.FieldByIndex(field.Index)); ok && strings.HasSuffix(field.Name, "File") && field.Name != "CertFile" {
			out = append(out, path)
		}
	}
	return out
}

// pluginFiles are the files that the plugin may use: those of the configuration
// and the trust bundle. Nil: those that its
// user may.
func (p *Plugin) pluginFiles(spec *configs.Sidecar) *sandbox.Files {
	stated := spec.Process.Files
	if stated == nil {
		return nil
	}
	out := &sandbox.Files{Read: slices.Clone(stated.Read), Write: slices.Clone(stated.Write)}
	for _, paths := range [][]string{out.Read, out.Write} {
		for i := range paths {
			paths[i] = AbsPath(paths[i])
		}
	}
	if p.trust == nil {
		return out
	}
	out.Read = append(out.Read, p.trust.dir)
	return out
}

// canEditOwnGrant returns a warning when the plugin may change a file with its
// grants: the file would be read again, and put in force.
func canEditOwnGrant(cfg *configs.Config, uid int, gids ...int) string {
	cfg = absolute(cfg)
	for _, f := range cfg.Files {
		for _, path := range []string{f.Path, filepath.Dir(f.Path)} {
			if writable(path, uid, gids...) && reachable(path, cfg.Sidecar.Process.Files) {
				return fmt.Sprintf("the plugin may change %s, and so grant itself anything: give it to another user, or state process.files", path)
			}
		}
	}
	return ""
}

// groupsOf returns all groups of a plugin's user.
func groupsOf(a sandbox.Account) []int { return append([]int{a.GID}, a.Groups...) }

// writable reports whether the mode of a file, or its access control list, lets a user of some
// groups write it. The sticky bit restricts who may rename and remove in a folder; on a file it
// means nothing.
func writable(path string, uid int, gids ...int) bool {
	info, err := os.Stat(path)
	if err != nil {
		return false
	}
	owner, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return false
	}
	mode, member := info.Mode().Perm(), slices.Contains(gids, int(owner.Gid))
	switch {
	case int(owner.Uid) == uid:
		return true // an owner can change the mode
	case mode&0o020 != 0 && (member || hasAccessList(path)): // with a list the bits are the most that any entry of it allows (acl(5))
		return true
	case member:
		return false
	}
	return mode&0o002 != 0 && (!info.IsDir() || info.Mode()&os.ModeSticky == 0)
}

// reachable reports whether the files that a plugin may write hold a path; nil
// are all.
func reachable(path string, files *configs.Files) bool {
	return files == nil || slices.ContainsFunc(files.Write, func(root string) bool { return within(AbsPath(root), path) })
}
