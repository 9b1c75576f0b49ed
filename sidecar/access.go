package sidecar

import (
	"cmp"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// fileUser is who asks for a file: a user and a group, and no others.
type fileUser struct{ uid, gid int }

// accessNotices returns which of what the plugin needs first its user may not use: the
// program, a script among the arguments, the working directory. The program itself
// would only say that permission is denied.
func (p *Plugin) accessNotices(args []string) []string {
	account, ok := p.cfg.Confinement().Account()
	if !ok || account.UID == 0 || account.SameUser {
		return nil
	}
	who := fileUser{account.UID, account.UID}
	if p.cfg.Confinement().Kernel() {
		who.gid = p.cfg.Confinement().Info().GID
	}
	var out []string
	note := func(path, what string, bits fs.FileMode) {
		if why := who.refusal(path, bits); why != "" {
			out = append(out, fmt.Sprintf("the plugin runs as uid %d, which may not %s %s: %s", who.uid, what, path, why))
		}
	}
	if dir, err := os.Getwd(); err == nil {
		note(dir, "enter the working directory", 1)
	}
	if program := who.program(args[0]); program != "" {
		note(program, "execute", 1)
	}
	for _, arg := range args[1:] {
		path := absolutePath(arg)
		if info, err := os.Stat(path); err == nil && info.Mode().IsRegular() && !strings.HasPrefix(arg, "-") {
			note(path, "read", 4)
			break // arguments after the script belong to it
		}
	}
	return out
}

// program returns the file that a command runs for the user: the first in PATH that
// it may execute, and otherwise the first that is there; "" for none.
func (c fileUser) program(name string) string {
	if strings.Contains(name, "/") {
		return absolutePath(name)
	}
	found := ""
	for _, dir := range filepath.SplitList(os.Getenv("PATH")) {
		path := filepath.Join(dir, name)
		//nolint:gosec // PATH is the caller's, and nothing of the file is read
		if info, err := os.Stat(path); err != nil || !info.Mode().IsRegular() || info.Mode()&0o111 == 0 {
			continue
		}
		if c.refusal(path, 1) == "" {
			return path
		}
		found = cmp.Or(found, path)
	}
	return found
}

func absolutePath(path string) string {
	if full, err := filepath.Abs(path); err == nil {
		return full
	}
	return path
}

// refusal returns why the caller may not use a path, with bits as in a mode's last
// digit; "" when it may, as far as owners and modes say. An access control list
// decides otherwise, and is not looked into.
func (c fileUser) refusal(path string, bits fs.FileMode) string {
	full, err := filepath.EvalSymlinks(path)
	if err != nil {
		return ""
	}
	for at := "/"; ; {
		wanted := fs.FileMode(1)
		if at == full {
			wanted = bits
		}
		var stat unix.Stat_t
		if unix.Stat(at, &stat) != nil || hasAccessList(at) {
			return ""
		}
		if !c.may(&stat, wanted) {
			what := "it"
			if at != full {
				what = "folder " + at
			}
			return fmt.Sprintf("%s belongs to uid %d and has mode %04o; open it to the plugin's user, or move what the plugin needs", what, stat.Uid, stat.Mode&0o7777)
		}
		if at == full {
			return ""
		}
		rest := strings.TrimPrefix(strings.TrimPrefix(full, at), "/")
		next, _, _ := strings.Cut(rest, "/")
		at = filepath.Join(at, next)
	}
}

func (c fileUser) may(stat *unix.Stat_t, wanted fs.FileMode) bool {
	mode := fs.FileMode(stat.Mode)
	switch {
	case int(stat.Uid) == c.uid:
		return mode>>6&wanted == wanted
	case int(stat.Gid) == c.gid:
		return mode>>3&wanted == wanted
	}
	return mode&wanted == wanted
}

// hasAccessList reports whether a file has an access control list (acl(5)).
func hasAccessList(path string) bool {
	n, err := unix.Getxattr(path, "system.posix_acl_access", nil)
	return err == nil && n > 0
}
