package sandbox

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"go.uber.org/zap"
	"golang.org/x/sys/unix"

	"github.com/chaperone-proxy/chaperone/ebpf/sandbox/launcher"
	"github.com/chaperone-proxy/chaperone/internal/reaper"
)

// launchTimeout bounds the launcher's work, which takes some 20 ms.
const launchTimeout = 30 * time.Second

// ProcessConfig is the sandbox that a [Process] runs in, and its user.
type ProcessConfig struct {
	// Cgroup is the process's from its first instruction on. It is killed when the
	// program has ended.
	Cgroup *Cgroup
	// Network is its network namespace.
	Network *Network
	// User is the user that it runs as.
	User *User
	// View is what it sees of the host. Nil: the host's own files and processes.
	View *launcher.View
	// Private lists paths, without links, that no rule of [Command.Files] may
	// open.
	Private []string
	// Unreadable lists paths that the user must not be able to use; nothing starts
	// if it is.
	Unreadable []string
	// UnixSockets reports that hooks decide about Unix sockets. False: seccomp allows
	// pairs only.
	UnixSockets bool
	// Listens has listen(2) wait until ListenUnix or ListenTCP has returned.
	ReportListen bool
	// Abstract permits connects to abstract Unix sockets outside, as far as the
	// hooks do.
	AllowAbstract bool
	// SelfTest has the launcher make the attempts that its standard input names
	// instead of starting a program, for so many seconds at most. Zero: it starts
	// the program.
	SelfTest uint
	// Denied is called for each system call that was refused.
	Denied func(Denial)
	// ListenUnix is called before a Unix socket with a path is listened on. Nil:
	// that is not reported.
	ListenUnix func(process uint32, l Listener)
	// ListenTCP is called before a TCP port is listened on. Nil: that is not
	// reported.
	ListenTCP func(port uint16)
	// Viewed is called with the id of the view's first process before Start
	// returns, and Left when the view has gone, both if View is set.
	ViewStarted func(first int) error
	ViewEnded   func() error
	// Reaper is given the processes that are started and waited for. Nil: no other
	// part of the program waits for processes.
	Reaper *reaper.Reaper
	// Logger is for the operator.
	Logger *zap.Logger
}

// Process is a program that was started by [StartProcess].
type Process struct {
	config ProcessConfig
	proc   *os.Process // the program, or the first process of its view
	notify *notifyListener

	// In a view the program is a child of its first process.
	pid     int      // the program's
	pidfd   int      // the program's; -1 without a view
	results *os.File // where its end is reported; nil without a view

	terminal *os.File            // the master of its pseudoterminal
	stops    chan syscall.Signal // see Stops; nil without a view
	last     chan syscall.WaitStatus

	once   sync.Once
	status int
	err    error

	mu    sync.Mutex
	ended bool // its number may belong to another process now
}

// Complete fills in what may be left out, and refuses what may not be passed.
func (c *Command) Complete() error {
	if c.Path == "" && len(c.Args) > 0 {
		c.Path = c.Args[0]
	}
	if c.Path == "" {
		return errors.New("start: no program given")
	}
	if len(c.Args) == 0 {
		c.Args = []string{c.Path}
	}
	for _, text := range append(append([]string{c.Path, c.Dir}, c.Args...), c.Env...) {
		if strings.IndexByte(text, 0) >= 0 {
			return fmt.Errorf("start %q: an argument or variable holds a NUL byte", c.Path)
		}
	}
	for name, file := range map[string]*os.File{"stdin": c.Stdin, "stdout": c.Stdout, "stderr": c.Stderr} {
		if file == nil {
			continue
		}
		if err := checkStream(file); err != nil {
			return fmt.Errorf("start %s: pass %s: %w", c.Path, name, err)
		}
	}
	return nil
}

// checkStream refuses sockets that can reach other destinations. A socket belongs to the cgroup
// that made it: what the plugin did with one of the sidecar's would pass no
// hook. A connected Unix stream, as parents and journals give, reaches one
// peer only.
func checkStream(file *os.File) error {
	var stat unix.Stat_t
	fd := int(file.Fd())
	if err := unix.Fstat(fd, &stat); err != nil {
		return fmt.Errorf("inspect: %w", err)
	}
	if stat.Mode&unix.S_IFMT != unix.S_IFSOCK {
		return nil
	}
	domain, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_DOMAIN)
	if err != nil {
		return fmt.Errorf("inspect socket: %w", err)
	}
	kind, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_TYPE)
	if err != nil {
		return fmt.Errorf("inspect socket: %w", err)
	}
	if _, err := unix.Getpeername(fd); domain == unix.AF_UNIX && kind == unix.SOCK_STREAM && err == nil {
		return nil
	}
	return errors.New("it is a socket made outside the plugin's cgroup; use a pipe, a file or a terminal")
}

// StartProcess starts a program. It returns when the program runs, or an
// [*ExecError] when there is no such program or it cannot be run, or another error
// when it could not be confined, in which case nothing of it ran. The command has
// been completed by [Command.Complete]. [Process.Wait] has to be called.
func StartProcess(config ProcessConfig, command Command) (*Process, error) {
	p := &Process{config: config, pidfd: -1}
	if err := p.launch(command); err != nil {
		return nil, err
	}
	return p, nil
}

// errLauncherDied reports that the launcher was killed before it did anything.
var errLauncherDied = errors.New("the launcher ended before it had confined itself")

// launch starts the launcher and returns what became of it. Normally it is born
// into the cgroup (clone3, CLONE_INTO_CGROUP). Where it cannot be, it walks in,
// before it reads what to start:
//   - Linux (seen on 6.18) kills what is born into a cgroup that was killed
//     before, because it compares the count of kills with that of the parent's
//     cgroup.
//   - A seccomp filter cannot see the flags of clone3. systemd's answers ENOSYS
//     under RestrictNamespaces=, as do container runtimes to a process without
//     CAP_SYS_ADMIN; older ones answer EPERM.
func (p *Process) launch(command Command) error {
	err := p.launchOnce(command, false)
	if errors.Is(err, errLauncherDied) || noClone3(err) {
		err = p.launchOnce(command, true)
	}
	return err
}

// noClone3 reports whether the launcher was not started in a way that a seccomp
// filter, or a kernel without CLONE_INTO_CGROUP, has clone3 refused.
func noClone3(err error) bool {
	refused, ok := errors.AsType[*os.PathError](err)
	if !ok || refused.Op != "fork/exec" {
		return false
	}
	return slices.ContainsFunc([]error{unix.ENOSYS, unix.EPERM, unix.EINVAL, unix.E2BIG}, func(errno error) bool { return errors.Is(refused.Err, errno) })
}

func (p *Process) launchOnce(command Command, walk bool) error {
	ours, theirs, err := newStatusPair()
	if err != nil {
		return err
	}
	defer func() {
		if p.results != ours {
			_ = ours.Close()
		}
	}()
	o, r, err := p.config.prepare(command, walk)
	if err != nil {
		return errors.Join(err, theirs.Close())
	}
	file, err := launcher.WriteSpec(o)
	if err != nil {
		return errors.Join(err, r.Close(), theirs.Close())
	}
	err = p.spawn(command, theirs, file, r, walk, o)
	// Our copy of its end has to go, or the end of the launcher is never seen.
	err = errors.Join(err, theirs.Close(), file.Close(), r.Close())
	if err != nil {
		return err
	}
	p.pid = p.proc.Pid
	p.notify, p.pidfd, err = awaitLauncher(ours, command.Path, func(listener int) (*notifyListener, error) {
		e, err := newNotifyListener(listener, p.config.User.UID, p.config.Denied, p.config.ListenUnix, p.config.Logger)
		if err != nil {
			return nil, err
		}
		e.listenTCP = p.config.ListenTCP
		return e.start(), nil
	}, func(master int) { p.terminal = newMaster(master) })
	switch {
	case err == nil && p.pidfd >= 0:
		p.results = ours
		if p.pid, err = pidOf(p.pidfd); err == nil {
			err = p.config.ViewStarted(p.proc.Pid)
		}
	case err == nil && o.View != nil:
		err = fmt.Errorf("start %s: the first process of the view ended", command.Path)
	}
	if err != nil {
		_ = p.proc.Kill()
		_, _ = p.proc.Wait()
		p.config.Reaper.Done(p.proc.Pid)
		return errors.Join(err, p.notify.close(), p.closeView(), p.closeTerminal())
	}
	if p.results != nil {
		p.stops, p.last = make(chan syscall.Signal, 1), make(chan syscall.WaitStatus, 1)
		go p.receiveResults()
	}
	return nil
}

// closeTerminal closes the master of a program that did not start.
func (p *Process) closeTerminal() error {
	if p.terminal == nil {
		return nil
	}
	err := p.terminal.Close()
	p.terminal = nil
	return err
}

// receiveResults takes in what the first process of the view reports until it ends: that
// the program was stopped, and how it ended.
func (p *Process) receiveResults() {
	defer close(p.last)
	for {
		var text [8]byte
		n, _, err := unix.Recvfrom(int(p.results.Fd()), text[:], 0)
		switch {
		case errors.Is(err, unix.EINTR), errors.Is(err, unix.EAGAIN): // the timeout of the start
		case err != nil || n != 5:
			return
		case text[0] == launcher.ReplyEnded:
			p.last <- syscall.WaitStatus(binary.NativeEndian.Uint32(text[1:5]))
			return
		case text[0] == launcher.ReplyStopped:
			select {
			case p.stops <- syscall.Signal(binary.NativeEndian.Uint32(text[1:5])):
			default: // a second wake-up that is not received yet has the same meaning
			}
		}
	}
}

// closeView closes what a view's program was known by.
func (p *Process) closeView() error {
	if p.pidfd < 0 {
		return nil
	}
	err := unix.Close(p.pidfd)
	p.pidfd = -1
	return errors.Join(err, p.results.Close(), p.config.ViewEnded())
}

// socketPair makes a pair of sequenced sockets: one call is one message, and the
// end of one side is seen by the other.
func socketPair(name string) (ours, theirs *os.File, err error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("make %s socket: %w", name, err)
	}
	return os.NewFile(uintptr(fds[0]), name), os.NewFile(uintptr(fds[1]), name), nil
}

// newStatusPair is what a launcher reports on.
func newStatusPair() (ours, theirs *os.File, err error) {
	if ours, theirs, err = socketPair("status"); err != nil {
		return nil, nil, err
	}
	timeout := unix.NsecToTimeval(launchTimeout.Nanoseconds())
	if err := unix.SetsockoptTimeval(int(ours.Fd()), unix.SOL_SOCKET, unix.SO_RCVTIMEO, &timeout); err != nil {
		return nil, nil, errors.Join(fmt.Errorf("make status socket: %w", err), ours.Close(), theirs.Close())
	}
	return ours, theirs, nil
}

// prepare makes the specification, and the Landlock rules, if there are any and they are
// not to be made in a view.
func (c *ProcessConfig) prepare(command Command, walk bool) (*launcher.Spec, *launcher.Ruleset, error) {
	o := &launcher.Spec{
		Program: launcher.ProgramSpec{
			Path: command.Path, Args: command.Args, Env: command.Env, Dir: command.Dir, Digest: command.Digest,
			UID: c.User.UID, GID: c.User.GID, Groups: c.User.groups,
		},
		Limits: launcher.LimitSpec{
			UnixSockets: c.UnixSockets, ReportListen: c.ReportListen, Files: command.Files != nil,
			Private: slices.Clone(c.Private), Unreadable: c.Unreadable, AllowAbstract: c.AllowAbstract,
		},
		SelfTest: c.SelfTest, EnterCgroup: walk,
	}
	if c.View != nil {
		var err error
		o.View, o.ViewFiles, o.Program.Terminal, o.Program.Background = c.View, command.Files, command.terminalStreams(), command.Background
		if o.Program.Settings, err = command.terminalSettings(o.Program.Terminal); err != nil {
			return nil, nil, fmt.Errorf("start %s: %w", command.Path, err)
		}
		o.Limits.Private = slices.DeleteFunc(o.Limits.Private, func(path string) bool { return !o.View.Shows(path) })
		return o, nil, nil
	}
	r, err := launcher.NewRuleset(command.Files, o.Limits.AllowAbstract, o.Limits.Private)
	if err != nil {
		return nil, nil, fmt.Errorf("start %s: %w", command.Path, err)
	}
	if r != nil {
		o.Limits.Handled = r.Handled
	}
	return o, r, nil
}

// spawn starts the launcher, born into the cgroup, the network namespace and a
// session of its own: there is no moment at which it is elsewhere.
func (p *Process) spawn(command Command, status, file *os.File, r *launcher.Ruleset, walk bool, o *launcher.Spec) (err error) {
	set, slave := command.terminalStreams(), (*os.File)(nil)
	if o.View != nil {
		command = command.withoutStreams(set)
	} else if command, p.terminal, slave, err = command.withTerminal(o.Program.UID); err != nil {
		return err
	}
	if slave != nil {
		defer func() { _ = slave.Close() }()
	}
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return fmt.Errorf("start launcher: %w", err)
	}
	defer func() { _ = null.Close() }()
	// The launcher gets the file that moves it in any case, and closes it.
	gate, err := os.OpenFile(filepath.Join(p.config.Cgroup.Path, "cgroup.procs"), os.O_WRONLY, 0)
	if err != nil {
		return fmt.Errorf("start launcher: %w", err)
	}
	defer func() { _ = gate.Close() }()
	files := []*os.File{command.Stdin, command.Stdout, command.Stderr, status, file, gate}
	if r != nil {
		files = append(files, r.File)
	}
	for i := range files {
		if files[i] == nil {
			files[i] = null
		}
	}
	attributes := &os.ProcAttr{
		Env:   []string{},
		Files: files,
		Sys: &syscall.SysProcAttr{
			Setsid: true, UseCgroupFD: !walk, CgroupFD: int(p.config.Cgroup.Dir.Fd()),
		},
	}
	if slave != nil {
		attributes.Sys.Setctty, attributes.Sys.Ctty = true, launcher.StreamOf(set)
	}
	if o.View != nil {
		attributes.Sys.Cloneflags = unix.CLONE_NEWNS | unix.CLONE_NEWPID | unix.CLONE_NEWIPC
	}
	return p.config.Network.Do(func() error {
		proc, err := p.config.Reaper.Start(func() (*os.Process, error) {
			return os.StartProcess("/proc/self/exe", []string{launcher.Name}, attributes)
		})
		if err != nil {
			return fmt.Errorf("start launcher: %w", err)
		}
		p.proc = proc
		return nil
	})
}

// awaitLauncher reads the launcher's replies until it has become the program, which
// closes the socket, or has started it in a view, and then returns its pidfd, else
// -1. The ears are nil if the launcher could get no listener, which only a rootless sandbox
// puts up with, and may be there beside an error.
func awaitLauncher(status *os.File, path string, listen func(fd int) (*notifyListener, error), adopt func(master int)) (e *notifyListener, pidfd int, err error) {
	text := make([]byte, 4096)
	rights := make([]byte, unix.CmsgSpace(4))
	for confined := false; ; {
		n, m, _, _, err := unix.Recvmsg(int(status.Fd()), text, rights, unix.MSG_CMSG_CLOEXEC)
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case err != nil:
			return e, -1, fmt.Errorf("start %s: hear launcher: %w", path, err)
		case n == 0 && !confined:
			return e, -1, fmt.Errorf("start %s: %w", path, errLauncherDied)
		case n == 0:
			return e, -1, nil
		}
		switch {
		case text[0] == launcher.ReplyTerminal && !confined:
			master, err := receivedFD(rights[:m])
			if err != nil {
				return e, -1, fmt.Errorf("start %s: %w", path, err)
			}
			adopt(master)
		case text[0] == launcher.ReplyListener && !confined:
			listener, err := receivedFD(rights[:m])
			if err != nil {
				return e, -1, fmt.Errorf("start %s: %w", path, err)
			}
			if e, err = listen(listener); err != nil {
				return nil, -1, err
			}
			confined = true
		case text[0] == launcher.ReplyUnreported && !confined:
			confined = true
		case text[0] == launcher.ReplyStarted && confined:
			pidfd, err := receivedFD(rights[:m])
			if err != nil {
				return e, -1, fmt.Errorf("start %s: %w", path, err)
			}
			return e, pidfd, nil
		case text[0] == launcher.ReplyExec && n == 6:
			errno := unix.Errno(binary.NativeEndian.Uint32(text[2:6]))
			return e, -1, &ExecError{Path: path, Status: int(text[1]), Err: errno}
		default:
			return e, -1, fmt.Errorf("start %s: %s", path, text[1:n])
		}
	}
}

func receivedFD(rights []byte) (int, error) {
	messages, err := unix.ParseSocketControlMessage(rights)
	if err != nil || len(messages) != 1 {
		return -1, errors.Join(errors.New("hear launcher: no descriptor came with the reply"), err)
	}
	fds, err := unix.ParseUnixRights(&messages[0])
	if err != nil || len(fds) != 1 {
		return -1, errors.Join(errors.New("hear launcher: no descriptor came with the reply"), err)
	}
	return fds[0], nil
}

// PID is the program's process id.
func (p *Process) PID() int { return p.pid }

// Signal passes a signal on. A signal that a terminal sends to its foreground goes to
// the program's process group; any other signal goes to the program alone, as a service
// manager would send it.
func (p *Process) Signal(signal os.Signal) error {
	number, ok := signal.(syscall.Signal)
	if !ok {
		return fmt.Errorf("signal the plugin: %v is not a system signal", signal)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.ended {
		return nil
	}
	switch number {
	case unix.SIGINT, unix.SIGQUIT, unix.SIGTSTP, unix.SIGSTOP, unix.SIGCONT, unix.SIGWINCH:
		// The program leads its session, so it leads its group under its own
		// number for as long as it has not been waited for.
		if err := p.signalGroup(number); err != nil && !errors.Is(err, unix.ESRCH) {
			return fmt.Errorf("signal the plugin: %w", err)
		}
	default:
		if err := p.signalProgram(number); err != nil && !errors.Is(err, os.ErrProcessDone) && !errors.Is(err, unix.ESRCH) {
			return fmt.Errorf("signal the plugin: %w", err)
		}
	}
	return nil
}

func (p *Process) signalGroup(number syscall.Signal) error {
	if p.pidfd >= 0 {
		// Its first process collects the program, and the number could be another's
		// by now. The group's keeps it for as long as the program lives.
		if err := unix.PidfdSendSignal(p.pidfd, 0, nil, 0); err != nil {
			return err
		}
	}
	return unix.Kill(-p.pid, number)
}

func (p *Process) signalProgram(number syscall.Signal) error {
	if p.pidfd >= 0 {
		return unix.PidfdSendSignal(p.pidfd, number, nil, 0)
	}
	return p.proc.Signal(number)
}

// Wait waits until the program ends, then ends everything else in the cgroup:
// what it left in the background does not outlive it. The status is the
// program's, or 128+N when signal N ended it. An error reports that the program's
// end could not be seen or that something of it still lives; the hooks then
// stay up. It may be called more than once.
func (p *Process) Wait() (int, error) {
	p.once.Do(func() {
		p.status, p.err = p.wait()
	})
	return p.status, p.err
}

func (p *Process) wait() (int, error) {
	// Waiting without reaping first: while the number is still taken, Signal
	// cannot hit a stranger.
	for {
		err := unix.Waitid(unix.P_PID, p.proc.Pid, nil, unix.WEXITED|unix.WNOWAIT, nil)
		if !errors.Is(err, unix.EINTR) {
			break
		}
	}
	p.mu.Lock()
	p.ended = true
	p.mu.Unlock()
	state, err := p.proc.Wait()
	p.config.Reaper.Done(p.proc.Pid)
	killed := p.config.Cgroup.Kill()
	heard := p.notify.close()
	if err != nil {
		return 125, errors.Join(fmt.Errorf("wait for the plugin: %w", err), killed, heard, p.closeView())
	}
	status, ok := state.Sys().(syscall.WaitStatus)
	if p.results != nil && ok {
		status = p.programStatus(status)
	}
	forgotten := p.closeView()
	switch {
	case !ok:
		return 125, errors.Join(errors.New("wait for the plugin: unknown status"), killed, heard, forgotten)
	case status.Signaled():
		return 128 + int(status.Signal()), errors.Join(killed, heard, forgotten)
	}
	return status.ExitStatus(), errors.Join(killed, heard, forgotten)
}

// programStatus is the status of the program as the first process of its view
// reported it, or that of the first process itself, if it was killed before.
func (p *Process) programStatus(first syscall.WaitStatus) syscall.WaitStatus {
	if last, ok := <-p.last; ok {
		return last
	}
	return first
}
