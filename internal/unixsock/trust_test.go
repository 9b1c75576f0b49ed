package unixsock

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

const alice, sidecar = 4242, 4343

// needRoot skips where directories of other users cannot be made. With
// CHAPERONE_REQUIRE=1 that is a failure.
func needRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() == 0 {
		return
	}
	if os.Getenv("CHAPERONE_REQUIRE") == "1" {
		t.Fatal("needs root")
	}
	t.Skip("needs root")
}

// TestCheck checks which user is found to be able to replace a path.
func TestCheck(t *testing.T) {
	needRoot(t)
	for name, test := range map[string]struct {
		prepare func(dir string) error // makes dir/state
		dir     string                 // at fault, below dir; "" is no fault
		owner   int
		pathOK  bool // CheckPath accepts it: the fault is the mode of the last directory
	}{
		"root's":                   {prepare: func(dir string) error { return os.MkdirAll(dir+"/state", 0o755) }},
		"missing":                  {prepare: func(string) error { return nil }},
		"missing, in alice's":      {prepare: func(dir string) error { return os.Chown(dir, alice, alice) }, dir: ".", owner: alice},
		"the sidecar's":            {prepare: owned("state", sidecar, 0o700)},
		"alice's":                  {prepare: owned("state", alice, 0o700), dir: "state", owner: alice},
		"open to a group":          {prepare: owned("state", 0, 0o770), dir: "state", owner: -1, pathOK: true},
		"sticky itself":            {prepare: owned("state", 0, 0o777|os.ModeSticky), dir: "state", owner: -1, pathOK: true},
		"open to one user by list": {prepare: withACL, dir: "state", owner: -1, pathOK: true},
		"in an open directory":     {prepare: below(0o777), dir: "open", owner: -1},
		"in a sticky directory":    {prepare: below(0o777 | os.ModeSticky)},
		"a link of root's":         {prepare: link(0)},
		"a link of alice's":        {prepare: link(alice), dir: "state", owner: alice},
		"by a link to alice's":     {prepare: linkBelow(alice), dir: "alice", owner: alice},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			if err := test.prepare(dir); err != nil {
				t.Fatal(err)
			}
			path := filepath.Join(dir, "state")
			checkFault(t, CheckDir(path, sidecar), dir, test.dir, test.owner)
			if test.pathOK {
				test.dir = ""
			}
			checkFault(t, CheckPath(path, sidecar), dir, test.dir, test.owner)
		})
	}
}

func checkFault(t *testing.T, err error, dir, want string, owner int) {
	t.Helper()
	found, is := errors.AsType[*ReplaceableError](err)
	switch {
	case want == "" && err != nil:
		t.Errorf("got %v, want no error", err)
	case want != "" && (!is || found.Dir != filepath.Join(dir, want) || found.Owner != owner):
		t.Errorf("got %+v, want %s of uid %d", err, want, owner)
	}
}

func owned(name string, uid int, mode os.FileMode) func(dir string) error {
	return func(dir string) error {
		path := filepath.Join(dir, name)
		return errors.Join(os.Mkdir(path, 0o700), os.Chown(path, uid, uid), os.Chmod(path, mode))
	}
}

// withACL makes a directory of root's into which a list lets alice write. Where the
// file system has no lists, the mode that one has is set.
func withACL(dir string) error {
	path := filepath.Join(dir, "state")
	if err := os.Mkdir(path, 0o755); err != nil {
		return err
	}
	list := []byte{
		2, 0, 0, 0,
		0x01, 0, 7, 0, 0xff, 0xff, 0xff, 0xff, // user::rwx
		0x02, 0, 7, 0, alice & 0xff, alice >> 8, 0, 0, // user:alice:rwx
		0x04, 0, 5, 0, 0xff, 0xff, 0xff, 0xff, // group::r-x
		0x10, 0, 7, 0, 0xff, 0xff, 0xff, 0xff, // mask::rwx
		0x20, 0, 5, 0, 0xff, 0xff, 0xff, 0xff, // other::r-x
	}
	err := unix.Setxattr(path, "system.posix_acl_access", list, 0)
	if errors.Is(err, unix.ENOTSUP) {
		return os.Chmod(path, 0o775)
	}
	return err
}

// below makes state a link to a directory in one of the mode.
func below(mode os.FileMode) func(string) error {
	return func(dir string) error {
		return errors.Join(owned("open", 0, mode)(dir), os.Mkdir(dir+"/open/state", 0o700), os.Symlink("open/state", dir+"/state"))
	}
}

// link makes state a link of a user's to a directory of root's.
func link(uid int) func(string) error {
	return func(dir string) error {
		return errors.Join(os.Mkdir(dir+"/real", 0o700), os.Symlink(dir+"/real", dir+"/state"), os.Lchown(dir+"/state", uid, uid))
	}
}

// linkBelow makes state a link of root's to a directory in one of a user's.
func linkBelow(uid int) func(string) error {
	return func(dir string) error {
		return errors.Join(owned("alice", uid, 0o755)(dir), os.Mkdir(dir+"/alice/state", 0o700), os.Symlink("x/../alice/./state", dir+"/state"), os.Mkdir(dir+"/x", 0o700))
	}
}

// TestCheckLoop checks that a loop of links ends the check.
func TestCheckLoop(t *testing.T) {
	dir := t.TempDir()
	if err := errors.Join(os.Symlink("b", dir+"/a"), os.Symlink("a", dir+"/b")); err != nil {
		t.Fatal(err)
	}
	if err := CheckPath(dir + "/a"); !errors.Is(err, unix.ELOOP) {
		t.Errorf("got %v, want %v", err, unix.ELOOP)
	}
}

// TestReplaceableErrorNamesTheFix checks the wording that operators act on.
func TestReplaceableErrorNamesTheFix(t *testing.T) {
	owner := &ReplaceableError{Path: "/home/a/s", Dir: "/home/a", Owner: alice, Trusted: []int{sidecar}}
	mode := &ReplaceableError{Path: "/srv/s", Dir: "/srv", Owner: -1, Mode: 0o775}
	for err, want := range map[error][]string{
		owner: {"/home/a/s can be replaced by uid 4242, which owns /home/a", "root, uid 4343", "chown on /home/a"},
		mode:  {"write to /srv (mode 0775)", "chmod go-w /srv"},
	} {
		for _, part := range want {
			if !strings.Contains(err.Error(), part) {
				t.Errorf("got %q, want %q in it", err, part)
			}
		}
	}
}

// TestMakePrivateDir checks which existing directories are accepted.
func TestMakePrivateDir(t *testing.T) {
	needRoot(t)
	file := func(dir string) error { return os.WriteFile(dir+"/state", nil, 0o600) }
	full := func(dir string) error {
		return errors.Join(owned("state", 0, 0o777)(dir), os.WriteFile(dir+"/state/file", nil, 0o600))
	}
	for name, test := range map[string]struct {
		prepare func(dir string) error
		want    string
		mode    os.FileMode
	}{
		"missing":              {func(string) error { return nil }, "", 0o700},
		"private":              {owned("state", 0, 0o700), "", 0o700},
		"open and empty":       {owned("state", 0, 0o777|os.ModeSticky), "", 0o700},
		"open and not empty":   {full, "is open to other users (mode 0777); run chmod 700", 0o777},
		"another user's":       {owned("state", alice, 0o700), "belongs to uid 4242 and not to uid 0", 0o700},
		"a file":               {file, "is not a directory", 0o600},
		"a link to a good one": {link(0), "is not a directory", 0o700},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			if err := test.prepare(dir); err != nil {
				t.Fatal(err)
			}
			err := MakePrivateDir(dir + "/state")
			if got := err == nil; got != (test.want == "") || err != nil && !strings.Contains(err.Error(), test.want) {
				t.Errorf("got error %v, want %q", err, test.want)
			}
			info, err := os.Stat(dir + "/state")
			if err != nil || info.Mode().Perm() != test.mode {
				t.Errorf("got mode %v, %v, want %04o", info.Mode(), err, test.mode)
			}
		})
	}
}
