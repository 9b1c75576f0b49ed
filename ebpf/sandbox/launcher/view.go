// Package launcher is what this binary does when a sandbox executes it again: the steps
// that a process takes before it becomes the program (capabilities, user, Landlock,
// seccomp), the view of the host's files and processes that it may get, and the first
// process of that view. Package sandbox starts it.
//
// It takes over in its init, before packages are initialised that neither process
// needs, and so imports only what is initialised early: no package but the standard
// library's, x/sys and internal/terminal.
package launcher

// View describes what a program sees in the place of the host's files.
type View struct {
	// UID and GID own the directories that belong to the program's user.
	UID, GID int

	// Trees are the directories that the program does not share, in the
	// order in which they are mounted: a tree below another comes after it. A
	// tree whose path does not exist on the host and is not below an earlier tree
	// is left out.
	Trees []Tree

	// Kept are paths of the host that stay visible although a tree covers them.
	Kept []Kept

	// Files are files whose content the program sees replaced.
	Files []File

	// Trust is the trust store that takes the place of the system's.
	Trust Trust

	// Directory is the working directory, by absolute path. It is entered with
	// the privileges of the caller of Build, as a process that inherits its
	// directory would have it.
	Directory string
}

// Tree is one private directory.
type Tree struct {
	// Path is where the program sees it.
	Path string
	// Source is a directory of the host's that only the sidecar can enter. Empty:
	// a new tmpfs, which ends with the view.
	Source string
	// Mode holds the permission bits of a new tmpfs, such as 0o1777.
	Mode uint32
	// Twin is a path below [Own] at which the tree is mounted a second time
	// without following symbolic links and without the mounts below it (Linux
	// 5.12). A path below the twin can only be something that was made in the
	// tree. Empty: there is no twin.
	Twin string
}

// Kept is a path of the host's that stays visible below a tree.
type Kept struct {
	Path     string
	ReadOnly bool
}

// File is a file whose content is replaced. One that the host does not have, and
// that no private directory can hold, is left out.
type File struct {
	Path    string
	Content []byte
}

// Trust names the folder with the certificates that the program is to trust. It
// has to be among the kept paths if a tree covers it, and may be rewritten while
// the program runs.
type Trust struct {
	// Bundle is the path of all of them, in PEM. Empty: the system's stay.
	Bundle string
}

// Places inside every view.
const (
	// Own is the directory of the view's own files.
	Own = "/run/.own"
	// RuntimeRoot holds each user's runtime directory (XDG_RUNTIME_DIR).
	RuntimeRoot = "/run/user"
	// HomeRoot holds the home of a user that has none on the host.
	HomeRoot = "/run/home"
)
