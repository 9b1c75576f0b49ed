package command

import (
	"fmt"
	"os"
	"path/filepath"
	"syscall"

	"github.com/chaperone-proxy/chaperone/internal/unixsock"
)

// Beside returns the path of the program of a name in the folder of the executable, with
// links resolved. A program that another user could have replaced is refused, as is one of
// another owner: it is executed with the rights of this one.
func Beside(name string) (string, error) {
	self, err := os.Executable()
	if err == nil {
		self, err = filepath.EvalSymlinks(self)
	}
	if err != nil {
		return "", fmt.Errorf("find the folder of this program: %w", err)
	}
	path := filepath.Join(filepath.Dir(self), name)
	return path, CheckBeside(self, path)
}

// CheckBeside checks the program at path, which is beside self.
func CheckBeside(self, path string) error {
	own, err := os.Stat(self)
	if err != nil {
		return fmt.Errorf("find the owner of this program: %w", err)
	}
	info, err := os.Lstat(path)
	if err != nil {
		return fmt.Errorf("find %s beside this program: %w; install both into one folder", filepath.Base(path), err)
	}
	mine, _ := own.Sys().(*syscall.Stat_t)
	its, _ := info.Sys().(*syscall.Stat_t)
	switch {
	case !info.Mode().IsRegular():
		return fmt.Errorf("%s is not a regular file, and is not executed; install it beside this program", path)
	case mine == nil || its == nil || its.Uid != mine.Uid:
		return fmt.Errorf("%s does not belong to the owner of this program, and is not executed; install both as one user", path)
	}
	if mode := info.Mode().Perm(); mode&0o022 != 0 {
		return fmt.Errorf("%s has mode %#o, so that others may change it, and is not executed; run chmod go-w %[1]s", path, mode)
	}
	if err := unixsock.CheckPath(path, int(mine.Uid)); err != nil {
		return fmt.Errorf("%s is not executed: %w", path, err)
	}
	return nil
}
