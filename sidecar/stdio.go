package sidecar

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"github.com/chaperone-proxy/chaperone/ebpf/sandbox"

	"golang.org/x/sys/unix"
)

// chownedStreams are standard streams that the plugin may open by name while it
// runs: /dev/stdout, /dev/stderr and /proc/self/fd/N, to which servers write
// their logs. Opening a pipe or a file by such a name takes its permissions (proc(5)),
// and those of the sidecar's streams are its caller's.
//
// The plugin's group gets what the descriptor gives already: to write to standard
// output and error, to read standard input. The owner stays who it was, since an
// owner could also read from the pipe what others write to it.
type chownedStreams []chownedStream

// chownedStream is a stream as it was before.
type chownedStream struct {
	file *os.File
	gid  int
	mode uint32
	to   int // the group it was lent to
}

// chownedFile is a regular file as it was before it was lent, as the stateDir keeps
// it while it is lent: a sidecar that is killed cannot give it back.
type chownedFile struct {
	Path   string `json:"path"`
	Device uint64 `json:"device"`
	Inode  uint64 `json:"inode"`
	GID    int    `json:"gid"`
	Mode   uint32 `json:"mode"`
	To     int    `json:"to"`
}

// chownedFilesName is the file of a stateDir with what is lent.
const chownedFilesName = "lent.json"

// chown opens the three standard streams to the plugin's group. Of regular files
// only a group without other members gets them, since they have a path, and none
// of the private ones, which are the sidecar's. Another kind of stream, or one that
// is open to the plugin already, stays as it is.
//
// keep writes down which files are lent, before they are.
func (l *chownedStreams) chown(account sandbox.Account, private []string, keep func([]chownedFile) error, stdin, stdout, stderr *os.File) error {
	if os.Geteuid() != 0 || account.UID == 0 {
		return nil
	}
	if err := keep(describeFiles(account.GID, stdin, stdout, stderr)); err != nil {
		return err
	}
	var errs []error
	for _, stream := range []struct {
		file *os.File
		bit  uint32
	}{{stdin, unix.S_IRGRP}, {stdout, unix.S_IWGRP}, {stderr, unix.S_IWGRP}} {
		if isPrivate(stream.file, private) {
			continue
		}
		if err := l.chownOne(account, stream.file, stream.bit); err != nil {
			errs = append(errs, fmt.Errorf("open %s to the plugin: %w", stream.file.Name(), err))
		}
	}
	return errors.Join(errs...)
}

// describeFiles returns the regular files among streams as they are now, each
// once.
func describeFiles(to int, streams ...*os.File) []chownedFile {
	var out []chownedFile
	for _, file := range streams {
		var stat unix.Stat_t
		if unix.Fstat(int(file.Fd()), &stat) != nil || stat.Mode&unix.S_IFMT != unix.S_IFREG {
			continue
		}
		path, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", file.Fd()))
		known := slices.ContainsFunc(out, func(f chownedFile) bool { return f.Device == stat.Dev && f.Inode == stat.Ino })
		if err == nil && !known {
			out = append(out, chownedFile{path, stat.Dev, stat.Ino, int(stat.Gid), stat.Mode &^ unix.S_IFMT, to})
		}
	}
	return out
}

// saveChowned writes down what is about to be lent.
func (p *Plugin) saveChowned(files []chownedFile) error {
	if len(files) == 0 {
		return nil
	}
	return p.cfg.State().save(chownedFilesName, files)
}

// forgetChowned removes the note of what was lent, once it is given back.
func (p *Plugin) forgetChowned() error {
	if p.cfg.State() == nil {
		return nil
	}
	if err := os.Remove(p.cfg.State().path(chownedFilesName)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("forget lent files: %w", err)
	}
	return nil
}

// restoreLeftStreams gives back the files that a killed sidecar had lent. A file that is
// another one by now, or whose group somebody has changed, stays as it is.
func restoreLeftStreams(kept *state) error {
	var files []chownedFile
	if err := kept.load(chownedFilesName, &files); err != nil {
		return err
	}
	var errs []error
	for _, f := range files {
		if err := f.restore(); err != nil {
			errs = append(errs, fmt.Errorf("restore the permissions of %s: %w", f.Path, err))
		}
	}
	if len(files) > 0 {
		errs = append(errs, os.Remove(kept.path(chownedFilesName)))
	}
	return errors.Join(errs...)
}

func (f chownedFile) restore() error {
	fd, err := unix.Open(f.Path, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ELOOP) {
		return nil
	}
	if err != nil {
		return err
	}
	var stat unix.Stat_t
	if err = unix.Fstat(fd, &stat); err == nil && stat.Dev == f.Device && stat.Ino == f.Inode && int(stat.Gid) == f.To {
		err = errors.Join(unix.Fchmod(fd, f.Mode), unix.Fchown(fd, -1, f.GID))
	}
	return errors.Join(err, unix.Close(fd))
}

// isPrivate reports whether a file is one of the private paths, or below one.
func isPrivate(file *os.File, private []string) bool {
	name, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", file.Fd()))
	return err == nil && slices.ContainsFunc(private, func(path string) bool {
		if target, err := filepath.EvalSymlinks(path); err == nil {
			path = target
		}
		return within(path, name)
	})
}

func (l *chownedStreams) chownOne(account sandbox.Account, file *os.File, bit uint32) error {
	var stat unix.Stat_t
	if err := unix.Fstat(int(file.Fd()), &stat); err != nil {
		return nil //nolint:nilerr // a stream that is closed needs nothing
	}
	kind := stat.Mode & unix.S_IFMT
	alone := account.GID == account.UID
	switch {
	case kind != unix.S_IFIFO && (kind != unix.S_IFREG || !alone):
		return nil
	case int(stat.Uid) == account.UID, stat.Mode&(bit>>3) != 0, int(stat.Gid) == account.GID && stat.Mode&bit != 0:
		return nil
	}
	mode := stat.Mode &^ (unix.S_IFMT | unix.S_IRWXG)
	if int(stat.Gid) == account.GID {
		mode = stat.Mode &^ unix.S_IFMT // lent already, as another stream
	}
	if err := unix.Fchown(int(file.Fd()), -1, account.GID); err != nil {
		return err
	}
	*l = append(*l, chownedStream{file, int(stat.Gid), stat.Mode &^ unix.S_IFMT, account.GID})
	return unix.Fchmod(int(file.Fd()), mode|bit)
}

// restore restores group and mode of the streams that are still lent.
func (l *chownedStreams) restore() error {
	var errs []error
	for _, stream := range slices.Backward(*l) {
		fd := int(stream.file.Fd())
		var stat unix.Stat_t
		if err := unix.Fstat(fd, &stat); err != nil || int(stat.Gid) != stream.to {
			continue // it is closed, or somebody has changed it since
		}
		if err := errors.Join(unix.Fchmod(fd, stream.mode), unix.Fchown(fd, -1, stream.gid)); err != nil {
			errs = append(errs, fmt.Errorf("restore the permissions of %s: %w", stream.file.Name(), err))
		}
	}
	*l = nil
	return errors.Join(errs...)
}
