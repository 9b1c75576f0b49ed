package launcher

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"reflect"
	"runtime"
	"strings"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/chaperone-proxy/chaperone/internal/terminal"
)

// Name as argv[0] makes this binary the launcher. With a view of the
// plugin's own the launcher then executes this binary as initName.
const (
	Name     = "chaperone-launcher"
	initName = "chaperone-init"
)

// Descriptors that the launcher is given.
const (
	StatusFD  = 3 // one end of a socket pair to the sidecar
	SpecFD    = 4 // a memory file with the specification
	CgroupFD  = 5 // the plugin's cgroup.procs
	rulesetFD = 6 // a Landlock Ruleset, if the specification has Handled
)

// Spec is what the launcher is to do.
type Spec struct {
	Program ProgramSpec
	Limits  LimitSpec

	EnterCgroup bool          // by moving there, instead of having been started there
	SelfTest    uint          // seconds for the attempts of a self-test; 0: the program is started
	Rootless    *RootlessSpec // in a rootless sandbox, which has dropped most privileges already
	View        *View         // the files that the program sees; nil: the host's
	ViewFiles   *Files        // the Landlock rules of a view are made in it
}

// ProgramSpec is the program that the launcher becomes.
type ProgramSpec struct {
	Path         string
	Args, Env    []string
	Dir          string
	Digest       string // of the program's file, which is then executed by descriptor; "" is not compared
	DirInherited bool   // Dir is the sidecar's working directory, which was not asked for
	UID, GID     int
	Groups       []int
	Terminal     uint8             // the streams that are a pseudoterminal of the view, as bits
	Background   bool              // the program starts in the background of that terminal
	Settings     terminal.Settings // of that terminal
}

// LimitSpec is what the program may use.
type LimitSpec struct {
	UnixSockets   bool
	ReportListen  bool     // listen(2) is reported
	Handled       uint64   // the rights that the Landlock rules handle; 0: there are no rules
	Files         bool     // the rules limit files, and the program has to be added to them
	Private       []string // paths that no rule may open
	Unreadable    []string // paths that the plugin's user must not be able to use
	AllowAbstract bool     // abstract sockets outside the Landlock domain may be used
}

// RootlessSpec is what the init process receives, and within a request what the launcher does.
type RootlessSpec struct {
	Addresses []string // to listen on
	Serve     []uint16 // ports that the plugin serves
	Private   []string // to hide
	Files     *Files
}

// WriteSpec puts a value into a memory file: it may exceed what a pipe holds.
func WriteSpec(value any) (*os.File, error) {
	fd, err := unix.MemfdCreate("order", unix.MFD_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("write order: %w", err)
	}
	file := os.NewFile(uintptr(fd), "order")
	data, err := appendOrder(nil, reflect.Indirect(reflect.ValueOf(value)))
	if err == nil {
		_, err = file.Write(data)
	}
	if err == nil {
		_, err = file.Seek(0, io.SeekStart)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("write order: %w", err), file.Close())
	}
	return file, nil
}

// ReadSpec reads a value that [WriteSpec] wrote.
func ReadSpec(file *os.File, out any) error {
	data, err := io.ReadAll(file)
	if err == nil {
		err = DecodeOrder(data, out)
	}
	if err != nil {
		return fmt.Errorf("read order: %w", err)
	}
	return nil
}

// Replies of the launcher. If there is no reply, the program runs.
const (
	ReplyListener   = 'L' // with the seccomp listener's descriptor
	ReplyUnreported = 'D' // in a rootless sandbox: the filter refuses without telling anybody
	ReplyFailure    = 'F' // confinement failed; text follows
	ReplyExec       = 'X' // the program cannot be run; status byte and errno follow
	ReplyStarted    = 'P' // the program runs below the first process of its view; with its pidfd
	ReplyTerminal   = 'T' // with the master of the program's pseudoterminal
	ReplyStopped    = 'S' // the signal that stopped that program follows
	ReplyEnded      = 'E' // the wait status of that program follows
)

// init is the launcher. In any process but the launcher and the first process of a view
// it does nothing.
//
// The sidecar starts its own binary under another name, directly in the
// plugin's cgroup and network namespace. This function then removes from the
// process what the plugin is not to have and replaces it by the plugin. It has
// to run before anything else does: until then the process is privileged.
//
// The Go runtime initialises packages by import path once their imports are, so that this
// package is early as long as it imports little. The later ones (messages of Envoy,
// clients, metrics) take 5 ms in each of the two processes, and neither needs them.
func init() { //nolint:gochecknoinits // main would come after the initialisation of every package
	if len(os.Args) == 0 || os.Args[0] != Name && os.Args[0] != initName {
		return
	}
	runtime.LockOSThread() // credentials and filters are a thread's; exec keeps this one's
	err := launch()
	if exec, ok := errors.AsType[*ExecError](err); ok {
		var errno unix.Errno
		errors.As(exec.Err, &errno)
		reply(binary.NativeEndian.AppendUint32([]byte{ReplyExec, byte(exec.Status)}, uint32(errno)), -1)
	} else if err != nil {
		reply(append([]byte{ReplyFailure}, err.Error()...), -1)
	} else {
		os.Exit(0) //nolint:forbidigo // only a self-test comes back
	}
	os.Exit(125) //nolint:forbidigo // the end of this process, whatever main does
}

// reply is sent on a sequenced socket, so that one call is one message.
func reply(text []byte, fd int) {
	var rights []byte
	if fd >= 0 {
		rights = unix.UnixRights(fd)
	}
	// An error cannot be reported here; the sidecar sees the end of the process.
	_ = unix.Sendmsg(StatusFD, text, rights, nil, unix.MSG_NOSIGNAL)
}

func launch() error {
	file := os.NewFile(SpecFD, "order")
	var o Spec
	if err := ReadSpec(file, &o); err != nil {
		return err
	}
	if os.Args[0] == initName {
		return runViewInit(&o)
	}
	if o.EnterCgroup {
		if _, err := unix.Write(CgroupFD, []byte("0")); err != nil {
			return fmt.Errorf("enter cgroup: %w", err)
		}
	}
	if o.View != nil {
		return buildView(&o, file)
	}
	if err := confine(&o); err != nil {
		return err
	}
	if err := filterCalls(&o); err != nil {
		return err
	}
	if o.SelfTest != 0 {
		// As exec would: the sidecar takes the program for running.
		if err := unix.Close(StatusFD); err != nil {
			return fmt.Errorf("close status socket: %w", err)
		}
		return runSelfTest(o.SelfTest)
	}
	return execute(&o)
}

// filterCalls installs the filter and hands its listener to the sidecar. In a
// rootless sandbox the kernel may refuse a listener (EBUSY): a container that reports
// its own processes' calls already has one, and a process has at most one.
func filterCalls(o *Spec) error {
	p := filter(o.Limits.UnixSockets, o.Limits.ReportListen)
	listener, err := installFilter(p)
	if o.Rootless != nil && errors.Is(err, unix.EBUSY) {
		if err := installFilterUnreported(p); err != nil {
			return err
		}
		reply([]byte{ReplyUnreported}, -1)
		return nil
	}
	if err != nil {
		return err
	}
	reply([]byte{ReplyListener}, listener)
	return nil
}

// dropInherited gives up what the sidecar was given and no plugin is to have.
func dropInherited() error {
	if err := limitCoreDumps(); err != nil {
		return fmt.Errorf("forbid core dumps: %w", err)
	}
	if err := resetOOMScore(); err != nil {
		return err
	}
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("forbid new privileges: %w", err)
	}
	return nil
}

// confine removes what the plugin is not to have. The order matters: what
// needs a capability comes before the capabilities go.
func confine(o *Spec) error {
	if err := dropInherited(); err != nil {
		return err
	}
	if o.Rootless == nil {
		if err := DropBoundingSet(); err != nil {
			return err
		}
		if err := setCredentials(o.Program.UID, o.Program.GID, o.Program.Groups); err != nil {
			return err
		}
	}
	if err := DropCapabilities(); err != nil {
		return err
	}
	if !o.Limits.Files {
		if err := checkUnreadable(o.Limits.Unreadable); err != nil {
			return err
		}
	}
	if o.Program.Dir != "" {
		// A home of root's that is closed to the plugin's user is no reason not to
		// start: the plugin is then in the root directory.
		if err := os.Chdir(o.Program.Dir); err != nil && !(o.Program.DirInherited && errors.Is(err, unix.EACCES)) {
			return fmt.Errorf("enter directory: %w", err)
		}
	}
	if err := enterLandlock(o); err != nil {
		return err
	}
	return closeOnExec()
}

// limitCoreDumps sets the limit on core dumps to one byte, not to none: a
// core_pattern that starts a handler, which runs as root and outside the hooks,
// ignores every limit but this (core(5)). A hard limit of 0 can be raised to 1
// with CAP_SYS_RESOURCE only; it is as good where the kernel starts no handler.
func limitCoreDumps() error {
	core := unix.Rlimit{Cur: 1, Max: 1}
	err := unix.Setrlimit(unix.RLIMIT_CORE, &core)
	if !errors.Is(err, unix.EPERM) {
		return err
	}
	pattern, err := os.ReadFile("/proc/sys/kernel/core_pattern")
	if err != nil {
		return err
	}
	if startsHandler(string(pattern)) {
		return fmt.Errorf("the hard limit is 0, and kernel.core_pattern is %q, which starts a handler in spite of it; set the hard limit to 1 (LimitCORE=1, --ulimit core=1), or grant CAP_SYS_RESOURCE", strings.TrimSpace(string(pattern)))
	}
	core = unix.Rlimit{}
	return unix.Setrlimit(unix.RLIMIT_CORE, &core)
}

// startsHandler reports whether a core_pattern passes dumps to a program (|) or,
// from Linux 6.16 on, to a socket (@).
func startsHandler(pattern string) bool {
	return strings.HasPrefix(pattern, "|") || strings.HasPrefix(pattern, "@")
}

// enterLandlock puts the thread under the Landlock rules that the sidecar made,
// after adding what only this process knows.
func enterLandlock(o *Spec) error {
	r := &Ruleset{File: os.NewFile(rulesetFD, "landlock rules"), Handled: o.Limits.Handled}
	if o.Rootless != nil {
		// Made here: /proc is another one than the sidecar's.
		var err error
		if r, err = NewRuleset(o.Rootless.Files, false, o.Limits.Private); err != nil {
			return err
		}
	}
	if r == nil || r.Handled == 0 {
		return nil
	}
	if o.Limits.Files {
		// Its own part of /proc. That of a child is the child's, which no rule
		// can name beforehand.
		if err := r.allow("/proc/self", rightsToRead|rightsToUse, nil); err != nil {
			return fmt.Errorf("limit files: %w", err)
		}
		for _, path := range Candidates(o.Program.Path, o.Program.Env) {
			if err := r.allowProgram(path, o.Limits.Private, 1); err != nil {
				return err
			}
		}
	}
	return r.enter()
}

// resetOOMScore gives up what a service manager gave the sidecar against the end of
// memory (OOMScoreAdjust=): a plugin that inherited it could have everything else on
// the host killed in its stead. A value that makes it an earlier victim stays.
func resetOOMScore() error {
	const file = "/proc/self/oom_score_adj"
	text, err := os.ReadFile(file)
	if err != nil {
		return fmt.Errorf("leave shelter from memory pressure: %w", err)
	}
	if !strings.HasPrefix(string(text), "-") {
		return nil
	}
	if err := os.WriteFile(file, []byte("0"), 0); err != nil {
		return fmt.Errorf("leave shelter from memory pressure: %w", err)
	}
	return nil
}

// DropBoundingSet empties the bounding set, and sets the bits that keep root from
// being special, locked: they matter when the plugin runs as root.
func DropBoundingSet() error {
	for capability := uintptr(0); capability <= unix.CAP_LAST_CAP+16; capability++ {
		err := unix.Prctl(unix.PR_CAPBSET_DROP, capability, 0, 0, 0)
		if errors.Is(err, unix.EINVAL) {
			break // beyond the last this kernel knows
		}
		if err != nil {
			return fmt.Errorf("drop bounding capability %d: %w", capability, err)
		}
	}
	// include/uapi/linux/securebits.h: NOROOT, NO_SETUID_FIXUP off, KEEP_CAPS
	// off, NO_CAP_AMBIENT_RAISE, each with its lock.
	const bits = 1<<0 | 1<<1 | 1<<3 | 1<<5 | 1<<6 | 1<<7
	if err := unix.Prctl(unix.PR_SET_SECUREBITS, bits, 0, 0, 0); err != nil {
		return fmt.Errorf("lock securebits: %w", err)
	}
	return nil
}

// setCredentials changes the thread's user and groups. The calls are made directly: the
// library's would change every thread of a process that is about to end anyway.
func setCredentials(uid, gid int, groups []int) error {
	list := make([]uint32, len(groups)+1) // never empty, for its address
	for i, group := range groups {
		list[i] = uint32(group)
	}
	if _, _, errno := unix.RawSyscall(unix.SYS_SETGROUPS, uintptr(len(groups)), uintptr(unsafe.Pointer(&list[0])), 0); errno != 0 { //nolint:gosec // gid_t list
		return fmt.Errorf("set groups: %w", errno)
	}
	u, g := uintptr(uid), uintptr(gid)
	if _, _, errno := unix.RawSyscall(unix.SYS_SETRESGID, g, g, g); errno != 0 {
		return fmt.Errorf("become group %d: %w", gid, errno)
	}
	if _, _, errno := unix.RawSyscall(unix.SYS_SETRESUID, u, u, u); errno != 0 {
		return fmt.Errorf("become user %d: %w", uid, errno)
	}
	return nil
}

// DropCapabilities drops the rest and proves it.
func DropCapabilities() error {
	if err := unix.Prctl(unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0); err != nil {
		return fmt.Errorf("clear ambient capabilities: %w", err)
	}
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var sets [2]unix.CapUserData
	if err := unix.Capset(&header, &sets[0]); err != nil {
		return fmt.Errorf("drop capabilities: %w", err)
	}
	if err := unix.Capget(&header, &sets[0]); err != nil {
		return fmt.Errorf("read capabilities: %w", err)
	}
	if sets != [2]unix.CapUserData{} {
		return errors.New("drop capabilities: some are left")
	}
	return nil
}

// closeOnExec keeps every descriptor but the standard three from the plugin,
// those included that the sidecar's own parent left open.
func closeOnExec() error {
	err := unix.CloseRange(3, ^uint(0)>>33, unix.CLOSE_RANGE_CLOEXEC)
	if err == nil {
		return nil
	}
	if !errors.Is(err, unix.ENOSYS) && !errors.Is(err, unix.EINVAL) {
		return fmt.Errorf("close descriptors: %w", err)
	}
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		return fmt.Errorf("close descriptors: %w", err)
	}
	for fd := 3; fd < int(limit.Max); fd++ {
		unix.CloseOnExec(fd)
	}
	return nil
}

// execute replaces the process by the program.
func execute(o *Spec) error {
	return searchProgram(o, func(path string, args []string) error { return syscall.Exec(path, args, o.Program.Env) })
}

// searchProgram looks for the program as execvp(3) does, and runs the first that
// can be run. A file that is no program the kernel knows is a script for /bin/sh.
func searchProgram(o *Spec, run func(path string, args []string) error) error {
	const shell = "/bin/sh"
	last := &ExecError{Path: o.Program.Path, Status: 127, Err: unix.ENOENT}
	for _, path := range Candidates(o.Program.Path, o.Program.Env) {
		var err error
		if o.Program.Digest != "" {
			err = runVerified(o, path, run)
		} else if err = run(path, o.Program.Args); errors.Is(err, unix.ENOEXEC) && !isBinary(path) {
			err = run(shell, append([]string{shell, path}, o.Program.Args[1:]...))
		}
		if _, other := errors.AsType[*DigestError](err); other {
			return err
		}
		switch {
		case err == nil:
			return nil
		case errors.Is(err, unix.ENOENT), errors.Is(err, unix.ENOTDIR):
			continue
		case errors.Is(err, unix.EACCES):
			if _, hidden := os.Stat(path); hidden != nil && path != o.Program.Path {
				continue // a directory of the search path that the plugin cannot enter
			}
			last = &ExecError{Path: o.Program.Path, Status: 126, Err: err}
		default:
			return &ExecError{Path: o.Program.Path, Status: 126, Err: err}
		}
	}
	return last
}

// isBinary reports whether a file is no script: its first line holds a zero byte.
// A file that cannot be read is left to the shell.
func isBinary(path string) bool {
	file, err := os.Open(path)
	if err != nil {
		return false
	}
	defer func() { _ = file.Close() }()
	head := make([]byte, 256)
	n, err := io.ReadFull(file, head)
	if err != nil && !errors.Is(err, io.ErrUnexpectedEOF) {
		return false
	}
	line, _, _ := bytes.Cut(head[:n], []byte("\n"))
	return bytes.IndexByte(line, 0) >= 0
}

// Candidates returns the paths where a program is looked for, in order: the name itself if
// it holds a slash, else one in each directory of PATH.
func Candidates(name string, env []string) []string {
	if name == "" {
		return nil
	}
	if strings.Contains(name, "/") {
		return []string{name}
	}
	search := "/usr/local/bin:/usr/bin:/bin"
	for _, entry := range env {
		if value, ok := strings.CutPrefix(entry, "PATH="); ok {
			search = value
		}
	}
	var paths []string
	if search == "" {
		return nil
	}
	for dir := range strings.SplitSeq(search, ":") {
		if dir == "" {
			dir = "."
		}
		// path.Join would drop the "./" that keeps exec from a look-up.
		paths = append(paths, dir+"/"+name)
	}
	return paths
}
