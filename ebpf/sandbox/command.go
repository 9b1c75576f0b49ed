package sandbox

import (
	"errors"
	"os"

	"github.com/chaperone-proxy/chaperone/ebpf/sandbox/launcher"
)

// DynamicUser as [Config.User] asks for a user of the plugin's own.
const DynamicUser = "dynamic"

// Listener is a Unix socket with a path that a process of the plugin is about to
// listen on.
type Listener struct {
	// Path is where the file lies, absolute and without links, in the plugin's view.
	Path string
	// Name is the path as the process gave it to bind(2).
	Name string
	// File is the file that the socket is bound to, open with O_PATH. The receiver of
	// the Listener closes it.
	File *os.File
	// Socket is the inode number of the socket, which [Confinement.Bound] takes.
	Socket uint64
}

// Command is a program to start in a [Confinement].
type Command struct {
	// Path is the program; without a slash it is looked up in the PATH of Env,
	// as a shell does. Empty: Args[0].
	Path string
	// Digest is the SHA-256 of the program's file, sha256: and hexadecimal digits: that
	// very file is executed, or nothing. A script is one with a #! line then; its
	// interpreter is not compared. Empty: it is not compared.
	Digest string
	// Args are its arguments, its own name first. Empty: Path alone.
	Args []string
	// Env is its whole environment. The sidecar's own variables are not added.
	Env []string
	// Dir is its working directory, entered as the plugin's user. Empty: the
	// sidecar's.
	Dir string
	// Stdin, Stdout and Stderr are passed as they are; nil is /dev/null. An
	// Internet socket is refused: data on it would pass no hook.
	Stdin, Stdout, Stderr *os.File
	// Terminal gives the program a pseudoterminal of its own, as its controlling
	// terminal, in the place of those streams that are terminals and the same one as
	// the first of them. Without such a stream it means nothing. The master is
	// [Process.Terminal].
	Terminal bool
	// Background starts the program in the background of its terminal, where a
	// first process can see that it stops for its use: in a view. It is put in the
	// foreground then, and [Process.Stops] reports it.
	Background bool
	// Files lists the files that it may use. Nil: those that its user may.
	Files *Files
	// Kept lists what has to stay visible of the host's temporary and runtime
	// directories, which [Config.View] covers, by absolute path. With Files, their
	// paths are kept instead.
	Kept []string
	// TrustBundle is the file with the certificates that take the place of the
	// system's in a view. Empty: the system's stay.
	TrustBundle string
}

// Account is the user that a plugin runs as, as its environment describes it.
type Account struct {
	UID int
	// GID is the primary group. That of a dynamic user has its number, and no
	// other member.
	GID int
	// Groups are the supplementary groups.
	Groups []int
	// Name is the login name: that of the user database, or one made from the
	// plugin's name.
	Name string
	// Home exists and can be written by the plugin, unless it is "/".
	Home string
	// Shell is the login shell.
	Shell string
	// RuntimeDir is the directory for XDG_RUNTIME_DIR. Empty: there does not exist.
	RuntimeDir string
	// SameUser reports that it is root or the sidecar's own user.
	SameUser bool
}

// Files lists the files that a program may use.
type Files = launcher.Files

// ExecError reports that the program itself could not be started.
type ExecError = launcher.ExecError

// Errors that callers distinguish.
var (
	// ErrUnsupported reports that this platform cannot confine anything.
	ErrUnsupported = errors.New("confinement needs Linux")
	// ErrNoUserNamespace reports that a [Rootless] cannot be made here: the system refuses
	// user namespaces, or what belongs to them.
	ErrNoUserNamespace = errors.New("unprivileged user namespaces are not available")
	// ErrBusy reports that another sidecar holds the same state directory.
	ErrBusy = errors.New("another sidecar holds this state directory")
)
