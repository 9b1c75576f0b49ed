package launcher

import "fmt"

// Files are the files that a program may use, everything below a directory included, by
// absolute path. All other files are closed to it, except those that every program
// needs: see the package's documentation. The kernel needs Landlock's third version
// (Linux 6.2); without it nothing starts.
//
// A path stands for the file that it resolves to when the program starts, not for
// one that is put in its place later: name the directory of a file that is
// replaced. The user's permissions hold nevertheless.
type Files struct {
	// Read may be read and executed.
	Read []string
	// Write may be read, executed, written and truncated, and in directories
	// everything but devices may be made, removed and renamed.
	Write []string
}

// ExecError reports that the program itself could not be started.
type ExecError struct {
	// Path is the program as it was named.
	Path string
	// Status is what a shell would exit with: 127 when there is no such
	// program, 126 when it cannot be run.
	Status int
	// Err is the system's reason.
	Err error
}

// Error implements error.
func (e *ExecError) Error() string { return fmt.Sprintf("start %s: %v", e.Path, e.Err) }

// Unwrap gives the system's reason.
func (e *ExecError) Unwrap() error { return e.Err }
