package launcher

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

// DigestError reports that a program is not the one that was verified.
type DigestError struct{ Path, Got, Want string }

// Error returns both digests.
func (e *DigestError) Error() string {
	return fmt.Sprintf("start %s: its digest is %s, and the grant is for %s; start the program that was approved", e.Path, e.Got, e.Want)
}

// OpenVerified opens a program and returns it with the path of its descriptor, by which
// this process, or a child that has the descriptor, executes the very file that was
// read, whatever is put in its place. The descriptor of a script stays open in the
// program, for its interpreter.
func OpenVerified(path, digest string) (f *os.File, descriptor string, err error) {
	// A file that is no regular one may block when it is opened.
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, "", err
	}
	var stat unix.Stat_t
	if err := unix.Fstat(fd, &stat); err != nil || stat.Mode&unix.S_IFMT != unix.S_IFREG {
		_ = unix.Close(fd)
		return nil, "", unix.EACCES // as execve(2)
	}
	f = os.NewFile(uintptr(fd), path)
	sum := sha256.New()
	if _, err := io.Copy(sum, f); err != nil {
		_ = f.Close()
		return nil, "", err
	}
	if got := "sha256:" + hex.EncodeToString(sum.Sum(nil)); got != digest {
		_ = f.Close()
		return nil, "", &DigestError{path, got, digest}
	}
	head := make([]byte, 2)
	if _, err := f.ReadAt(head, 0); err == nil && string(head) == "#!" {
		if _, err := unix.FcntlInt(uintptr(fd), unix.F_SETFD, 0); err != nil {
			_ = f.Close()
			return nil, "", err
		}
	}
	return f, "/proc/self/fd/" + strconv.Itoa(fd), nil
}

// runVerified runs the program by the descriptor that was verified.
func runVerified(o *Spec, path string, run func(path string, args []string) error) error {
	f, descriptor, err := OpenVerified(path, o.Program.Digest)
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }() // an error, or run in a child
	return run(descriptor, o.Program.Args)
}
