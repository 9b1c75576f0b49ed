package atomicfile

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"syscall"
)

// Read returns the content of a regular file of at most limit bytes that belongs to
// root or to the effective user of the process, and that no other user may write.
// Symbolic links are not followed and a pipe is not waited for. The error is
// [fs.ErrNotExist] if there is no file.
//
// Read does not check the directories above the file; unixsock.CheckPath does.
func Read(path string, limit int) ([]byte, error) {
	data, err := read(path, limit)
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", path, err)
	}
	return data, nil
}

func read(path string, limit int) ([]byte, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NOFOLLOW|syscall.O_NONBLOCK, 0)
	if pathErr, is := errors.AsType[*fs.PathError](err); is {
		err = pathErr.Err // the caller names the path
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if err := checkOwned(info); err != nil {
		return nil, err
	}
	data, err := io.ReadAll(io.LimitReader(f, int64(limit)+1))
	if err == nil && len(data) > limit {
		return nil, fmt.Errorf("it has more than %d bytes", limit)
	}
	return data, err
}

// checkOwned reports a file that another user may have written.
func checkOwned(info fs.FileInfo) error {
	stat, ok := info.Sys().(*syscall.Stat_t)
	switch {
	case !info.Mode().IsRegular():
		return errors.New("it is not a regular file")
	case !ok:
		return errors.New("its owner is unknown")
	case stat.Uid != 0 && int(stat.Uid) != os.Geteuid():
		return fmt.Errorf("it belongs to uid %d, which is neither root nor uid %d", stat.Uid, os.Geteuid())
	case info.Mode().Perm()&0o022 != 0:
		return fmt.Errorf("other users may write it (mode %04o); run chmod go-w on it", info.Mode().Perm())
	}
	return nil
}
