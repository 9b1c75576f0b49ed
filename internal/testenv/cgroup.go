package testenv

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// Cgroup is an empty cgroup (v2) of one test.
type Cgroup struct {
	// Path is its folder.
	Path string

	dir *os.File
}

// MustCgroup makes a cgroup for the length of a test; everything in it is
// killed when the test ends.
func MustCgroup(t testing.TB) *Cgroup {
	t.Helper()
	return mustStart(t, NewCgroup)
}

// NewCgroup makes a cgroup below the root of the hierarchy.
func NewCgroup(context.Context) (*Cgroup, error) {
	root, err := CgroupRoot()
	if err != nil {
		return nil, err
	}
	path := filepath.Join(root, "chaperone-test-"+strings.ToLower(rand.Text()[:10]))
	if err := os.Mkdir(path, 0o755); err != nil {
		return nil, fmt.Errorf("make cgroup: %w", err)
	}
	dir, err := os.Open(path)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("open cgroup: %w", err), os.Remove(path))
	}
	return &Cgroup{Path: path, dir: dir}, nil
}

// SysProcAttr starts a child in the cgroup (clone3 with CLONE_INTO_CGROUP), so
// that not one instruction of it runs outside.
func (c *Cgroup) SysProcAttr() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: int(c.dir.Fd())}
}

// ID returns the id that the kernel gives the cgroup: the inode of its folder.
func (c *Cgroup) ID() (uint64, error) {
	var stat syscall.Stat_t
	if err := syscall.Fstat(int(c.dir.Fd()), &stat); err != nil {
		return 0, fmt.Errorf("stat cgroup: %w", err)
	}
	return stat.Ino, nil
}

// Add moves a process into the cgroup.
func (c *Cgroup) Add(pid int) error {
	return os.WriteFile(filepath.Join(c.Path, "cgroup.procs"), []byte(strconv.Itoa(pid)), 0o644)
}

// PIDs returns the processes in the cgroup, those of its descendants not.
func (c *Cgroup) PIDs() ([]int, error) {
	text, err := os.ReadFile(filepath.Join(c.Path, "cgroup.procs"))
	if err != nil {
		return nil, err
	}
	var pids []int
	for field := range strings.FieldsSeq(string(text)) {
		pid, err := strconv.Atoi(field)
		if err != nil {
			return nil, fmt.Errorf("read cgroup.procs: %w", err)
		}
		pids = append(pids, pid)
	}
	return pids, nil
}

// Close kills everything in the cgroup and its descendants and removes them.
func (c *Cgroup) Close() error {
	err := os.WriteFile(filepath.Join(c.Path, "cgroup.kill"), []byte("1"), 0o644)
	if errors.Is(err, fs.ErrNotExist) { // Linux before 5.14, or it is gone
		err = c.killEach()
	}
	// A killed process leaves its cgroup when it has been reaped or has become
	// a zombie, a moment after the signal.
	deadline := time.Now().Add(10 * time.Second)
	for {
		removeErr := removeTree(c.Path)
		if removeErr == nil || time.Now().After(deadline) {
			return errors.Join(err, removeErr, c.dir.Close())
		}
		time.Sleep(5 * time.Millisecond)
	}
}

func (c *Cgroup) killEach() error {
	pids, err := c.PIDs()
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	for _, pid := range pids {
		err = errors.Join(err, syscall.Kill(pid, syscall.SIGKILL))
	}
	return err
}

// removeTree removes a cgroup after its descendants; the files in it are the
// kernel's and go with it.
func removeTree(path string) error {
	entries, err := os.ReadDir(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	for _, entry := range entries {
		if entry.IsDir() {
			err = errors.Join(err, removeTree(filepath.Join(path, entry.Name())))
		}
	}
	if err != nil {
		return err
	}
	return os.Remove(path)
}
