package unixsock

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// maxLinks bounds the symbolic links of one path, as the kernel does
// (path_resolution(7)).
const maxLinks = 40

// writableByOthers are the mode bits that let another user than the owner write.
// An access control list is covered: its mask is the group class of the mode, so
// that a list which lets a user write sets the bit of the group (acl(5)).
const writableByOthers = 0o022

// ReplaceableError reports a directory, or a symbolic link, through which a user
// that is not trusted can replace a path.
type ReplaceableError struct {
	Path string // the path that was checked, absolute
	Dir  string // the directory or link at fault: Path itself, or above it
	// Owner is the uid that owns Dir and is not trusted; -1 if the mode is at fault.
	Owner   int
	Mode    fs.FileMode // permission bits of Dir
	Trusted []int       // uids that are trusted besides root
}

// Error names the directory, the fault and the fix.
func (e *ReplaceableError) Error() string {
	if e.Owner >= 0 {
		return fmt.Sprintf("%s can be replaced by uid %d, which owns %s and is not trusted (trusted: %s); choose a path below directories of a trusted user, or run chown on %s",
			e.Path, e.Owner, e.Dir, uidList(e.Trusted), e.Dir)
	}
	return fmt.Sprintf("%s can be replaced by other users, who may write to %s (mode %04o); run chmod go-w %s, or choose another path",
		e.Path, e.Dir, e.Mode.Perm(), e.Dir)
}

func uidList(uids []int) string {
	var text strings.Builder
	text.WriteString("root")
	for _, uid := range uids {
		if uid != 0 {
			fmt.Fprintf(&text, ", uid %d", uid)
		}
	}
	return text.String()
}

// CheckPath returns a [*ReplaceableError] if a user other than root and uids can
// replace path: each directory and each symbolic link on the way, and path itself,
// must belong to one of them, and each directory above path must not be writable by
// others, unless it is sticky. The mode of path itself may be any. Without uids the
// effective user of the process is trusted. A path that does not exist yet is
// checked as far as it exists.
func CheckPath(path string, uids ...int) error {
	return checkTrust(path, uids, false)
}

// CheckDir is [CheckPath] for a directory whose entries must not be replaced or
// preceded by those of another user either: the directory itself must not be
// writable by others, even if it is sticky.
func CheckDir(dir string, uids ...int) error {
	return checkTrust(dir, uids, true)
}

func checkTrust(path string, uids []int, contents bool) error {
	absolute, err := filepath.Abs(path)
	if err != nil {
		return fmt.Errorf("check %s: %w", path, err)
	}
	if len(uids) == 0 {
		uids = []int{os.Geteuid()}
	}
	w := walk{path: absolute, uids: uids, contents: contents, at: "/", rest: elements(absolute)}
	err = w.run()
	if _, is := errors.AsType[*ReplaceableError](err); err == nil || is {
		return err
	}
	return fmt.Errorf("check %s: %w", path, err)
}

func elements(path string) []string {
	return strings.FieldsFunc(path, func(r rune) bool { return r == '/' })
}

// walk resolves a path element by element, as the kernel does, and checks every
// directory and symbolic link that it passes.
type walk struct {
	path     string
	uids     []int
	contents bool     // the entries of the last directory matter too
	at       string   // resolved and checked so far; holds no symbolic link
	rest     []string // not resolved yet
	links    int
}

// run walks to the end of the path, or to the first element that does not exist.
func (w *walk) run() error {
	if err := w.check("/"); err != nil {
		return err
	}
	for len(w.rest) > 0 {
		name := w.rest[0]
		w.rest = w.rest[1:]
		switch name {
		case ".":
			continue
		case "..":
			w.at = filepath.Dir(w.at)
			continue
		}
		next := filepath.Join(w.at, name)
		target, err := os.Readlink(next)
		if err == nil {
			err = w.follow(next, target)
		} else { // not a symbolic link
			w.at = next
			err = w.check(next)
		}
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// follow checks the owner of a symbolic link and continues at its target. The mode
// of a link has no meaning (symlink(7)).
func (w *walk) follow(link, target string) error {
	if w.links++; w.links > maxLinks {
		return unix.ELOOP
	}
	var stat unix.Stat_t
	if err := unix.Lstat(link, &stat); err != nil {
		return fmt.Errorf("inspect %s: %w", link, err)
	}
	if err := w.checkOwner(link, &stat); err != nil {
		return err
	}
	if filepath.IsAbs(target) {
		w.at = "/"
	}
	w.rest = append(elements(target), w.rest...)
	return nil
}

// check checks one element that is not a symbolic link.
func (w *walk) check(at string) error {
	var stat unix.Stat_t
	if err := unix.Lstat(at, &stat); err != nil {
		return fmt.Errorf("inspect %s: %w", at, err)
	}
	if err := w.checkOwner(at, &stat); err != nil {
		return err
	}
	last := len(w.rest) == 0
	if last && !w.contents {
		return nil
	}
	if stat.Mode&unix.S_IFMT != unix.S_IFDIR {
		return fmt.Errorf("%s is not a directory", at)
	}
	if sticky := stat.Mode&unix.S_ISVTX != 0 && !last; stat.Mode&writableByOthers != 0 && !sticky {
		return w.fault(at, -1, &stat)
	}
	return nil
}

func (w *walk) checkOwner(at string, stat *unix.Stat_t) error {
	if owner := int(stat.Uid); owner != 0 && !slices.Contains(w.uids, owner) {
		return w.fault(at, owner, stat)
	}
	return nil
}

func (w *walk) fault(at string, owner int, stat *unix.Stat_t) error {
	return &ReplaceableError{Path: w.path, Dir: at, Owner: owner, Mode: fs.FileMode(stat.Mode & 0o777), Trusted: w.uids}
}
