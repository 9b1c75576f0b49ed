package sandbox

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"go.uber.org/zap"
	"golang.org/x/sys/unix"

	"github.com/chaperone-proxy/chaperone/ebpf/sandbox/launcher"
	"github.com/chaperone-proxy/chaperone/internal/runtimedir"
)

// Rootless confines a plugin without any privilege: for a machine or a user that cannot
// have a [Confinement]. It is a user namespace of the plugin's own and in it a network
// without a way out, in which the sidecar listens; processes, mounts and IPC of its
// own; and the system call filter of a confinement. [Rootless.Limits] lists its
// limitations.
//
// A small process, the init process, is the first in these namespaces. With it
// everything in them ends, and it ends with the sidecar, however that ends: what
// a plugin leaves in the background, too, whatever it did to leave it there.
type Rootless struct {
	config    RootlessConfig
	account   User
	listeners []net.Listener
	init      *os.Process
	control   *os.File // orders go, news come

	mu         sync.Mutex // held while a program starts
	running    bool
	unreported bool // the last program's filter has no listener
	killed     bool
	closed     bool

	dialing sync.Mutex
	dial    *os.File
}

// NewRootless makes the namespaces and the listeners; nothing of the plugin's runs
// yet. [ErrNoUserNamespace] says that the system does not permit it, with the reason.
func NewRootless(config RootlessConfig) (*Rootless, error) {
	for _, address := range config.Proxy {
		if err := literal(address); err != nil {
			return nil, fmt.Errorf("make rootless sandbox: %w", err)
		}
		if host, _, err := net.SplitHostPort(address); err != nil || !net.ParseIP(host).IsLoopback() {
			return nil, fmt.Errorf("make rootless sandbox: %s is not on the loopback", address)
		}
	}
	for _, path := range config.Private {
		if !filepath.IsAbs(path) { // it would hide something else, or nothing
			return nil, fmt.Errorf("make rootless sandbox: private path %q is not absolute", path)
		}
	}
	if config.Logger == nil {
		config.Logger = zap.NewNop()
	}
	if config.Denied == nil {
		config.Denied = func(Denial) {}
	}
	f := &Rootless{config: config, account: User{UID: os.Geteuid(), GID: os.Getegid(), Same: true}}
	if err := f.build(); err != nil {
		return nil, errors.Join(fmt.Errorf("make rootless sandbox: %w", err), f.Close())
	}
	return f, nil
}

func (f *Rootless) build() error {
	var err error
	if f.account.UID == 0 {
		dir, err := runtimedir.Find(f.config.StateDir)
		if err != nil {
			return err
		}
		at := Paths{Dir: dir.Path, ID: "fence of " + f.config.Plugin}
		if f.account, err = at.ChooseUser(f.config.User, false); err != nil {
			return err
		}
	}
	file, err := launcher.WriteSpec(launcher.RootlessSpec{Addresses: f.config.Proxy, Serve: f.config.Serve, Private: launcher.ResolveLinks(f.config.Private)})
	if err != nil {
		return err
	}
	defer func() { _ = file.Close() }()
	var theirs, theirDial *os.File
	if f.control, theirs, err = socketPair("init"); err != nil {
		return err
	}
	defer func() { _ = theirs.Close() }()
	if f.dial, theirDial, err = socketPair("init"); err != nil {
		return err
	}
	defer func() { _ = theirDial.Close() }()
	if err := f.spawn(theirs, file, theirDial); err != nil {
		return fmt.Errorf("%w: %w%s", ErrNoUserNamespace, err, userNamespaceHint(err))
	}
	// Our copy has to go, or the init process's end is never seen.
	if err := theirs.Close(); err != nil {
		return fmt.Errorf("start init process: %w", err)
	}
	fds, err := f.awaitListeners()
	if err != nil {
		return fmt.Errorf("%w: %w", ErrNoUserNamespace, err)
	}
	for _, fd := range fds {
		err = errors.Join(err, f.takeListener(fd))
	}
	return err
}

// userNamespaceHint returns how a system that refuses user namespaces can be set to allow
// them.
func userNamespaceHint(err error) string {
	switch {
	case errors.Is(err, unix.ENOSPC):
		return " (sysctl user.max_user_namespaces is used up or 0)"
	case errors.Is(err, unix.EPERM), errors.Is(err, unix.EACCES):
		return " (user namespaces are refused: see sysctl kernel.unprivileged_userns_clone and kernel.apparmor_restrict_unprivileged_userns; in a container, its seccomp profile)"
	}
	return ""
}

// spawn starts the init process in namespaces of its own, with what it needs to set
// them up. Inside, users have the numbers that they have outside.
func (f *Rootless) spawn(control, order, dial *os.File) error {
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return fmt.Errorf("start init process: %w", err)
	}
	defer func() { _ = null.Close() }()
	attributes := &syscall.SysProcAttr{
		Cloneflags:  unix.CLONE_NEWUSER | unix.CLONE_NEWNET | unix.CLONE_NEWPID | unix.CLONE_NEWNS | unix.CLONE_NEWIPC,
		UidMappings: []syscall.SysProcIDMap{{ContainerID: f.account.UID, HostID: f.account.UID, Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{ContainerID: f.account.GID, HostID: f.account.GID, Size: 1}},
		AmbientCaps: []uintptr{unix.CAP_NET_ADMIN, unix.CAP_SYS_ADMIN, unix.CAP_SETPCAP},
		Setsid:      true,
	}
	if !f.account.Same {
		attributes.GidMappingsEnableSetgroups = true
		attributes.Credential = &syscall.Credential{Uid: uint32(f.account.UID), Gid: uint32(f.account.GID)}
	}
	f.init, err = f.config.Reaper.Start(func() (*os.Process, error) {
		return os.StartProcess("/proc/self/exe", []string{rootlessSetupName}, &os.ProcAttr{
			Env: []string{}, Dir: "/", Sys: attributes,
			Files: []*os.File{null, null, null, control, order, dial},
		})
	})
	if err != nil {
		return fmt.Errorf("start init process: %w", err)
	}
	return nil
}

// awaitListeners waits for the init process's listeners.
func (f *Rootless) awaitListeners() ([]int, error) {
	text, fds, err := f.receiveResult(launchTimeout)
	switch {
	case err != nil:
		return nil, err
	case text[0] == resultListening && len(fds) == len(f.config.Proxy):
		return fds, nil
	}
	return nil, errors.New(strings.TrimSpace(string(text[1:])))
}

// takeListener takes a listener over.
func (f *Rootless) takeListener(fd int) error {
	file := os.NewFile(uintptr(fd), "listener")
	listener, err := net.FileListener(file)
	if err := errors.Join(err, file.Close()); err != nil {
		return fmt.Errorf("take listener over: %w", err)
	}
	f.listeners = append(f.listeners, listener)
	return nil
}

// receiveResult reads one piece of news. No timeout: it waits for ever.
func (f *Rootless) receiveResult(timeout time.Duration) (text []byte, fds []int, err error) {
	wait := -1
	if timeout > 0 {
		wait = int(timeout.Milliseconds())
	}
	for {
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(f.control.Fd()), Events: unix.POLLIN}}, wait)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil || n == 0 {
			return nil, nil, errors.Join(errors.New("wait for init process: no reply"), err)
		}
		return receive(int(f.control.Fd()))
	}
}

// receive reads one message and the descriptors that came with it. The end of
// the other side is [io.EOF].
func receive(socket int) (text []byte, fds []int, err error) {
	text = make([]byte, 4096)
	rights := make([]byte, unix.CmsgSpace(4*maxRights))
	for {
		n, m, _, _, err := unix.Recvmsg(socket, text, rights, unix.MSG_CMSG_CLOEXEC)
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case err != nil:
			return nil, nil, fmt.Errorf("receive: %w", err)
		case n == 0:
			return nil, nil, io.EOF
		}
		messages, err := unix.ParseSocketControlMessage(rights[:m])
		if err != nil {
			return nil, nil, fmt.Errorf("receive: %w", err)
		}
		for i := range messages {
			got, err := unix.ParseUnixRights(&messages[i])
			if err != nil {
				return nil, nil, fmt.Errorf("receive: %w", err)
			}
			fds = append(fds, got...)
		}
		return text[:n], fds, nil
	}
}

// Listeners are the sidecar's, inside the sandbox, in the specification of
// [RootlessConfig.Proxy]. They are the caller's to close.
func (f *Rootless) Listeners() []net.Listener { return f.listeners }

// Limits describes what a rootless sandbox cannot do and a [Confinement] can.
func (f *Rootless) Limits() []string {
	limits := []string{
		"usage is not metered: limits on connections, bytes, system calls and processes are not enforced",
		"only programs that use the proxy variables reach anything; the network refuses the others without a record",
		"names are resolved by the proxy alone: a program that asks a name server by itself finds none",
		"Unix sockets other than pairs are refused, and none can be granted",
		"a caller is known by the proxy token, which every process in the sandbox can read",
		"the plugin can be ended at any time, and not be frozen",
		"/tmp, /run and /dev/shm are the host's: a view of the plugin's own (process.view) needs the kernel half",
	}
	if f.account.Same {
		limits = append(limits, "the plugin runs as the sidecar's own user and may use that user's files and groups; only the sidecar's own files are hidden from it, unless its files are limited (process.files)")
	}
	if launcher.LandlockVersion() < launcher.LandlockRefer {
		limits = append(limits, "the kernel has no Landlock, or its first version: files cannot be limited")
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.unreported {
		limits = append(limits, "refused system calls are not recorded: something else hears this container's already")
	}
	return limits
}

// Start starts a program in the rootless sandbox, as [Confinement.Start] does in a confinement. One
// runs at a time.
func (f *Rootless) Start(command Command) (*RootlessProcess, error) {
	if err := command.Complete(); err != nil {
		return nil, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	switch {
	case f.closed || f.killed:
		return nil, fmt.Errorf("start %s: %w", command.Path, os.ErrClosed)
	case f.running:
		return nil, fmt.Errorf("start %s: a program is running already", command.Path)
	}
	p := &RootlessProcess{sandbox: f}
	if err := p.launch(command); err != nil {
		return nil, err
	}
	f.running = true
	return p, nil
}

// RootlessProcess is a program that runs behind a [Rootless].
type RootlessProcess struct {
	sandbox *Rootless
	pidfd   int
	pid     int
	notify  *notifyListener

	terminal *os.File // the master of its pseudoterminal

	once   sync.Once
	status int
	err    error

	mu    sync.Mutex
	ended bool
}

func (p *RootlessProcess) launch(command Command) error {
	f := p.sandbox
	here := command.Dir == ""
	if here {
		var err error
		if command.Dir, err = os.Getwd(); err != nil {
			return fmt.Errorf("start %s: %w", command.Path, err)
		}
	}
	file, err := launcher.WriteSpec(launcher.Spec{
		Program: launcher.ProgramSpec{
			Path: command.Path, Args: command.Args, Env: command.Env, Dir: command.Dir, Digest: command.Digest, DirInherited: here,
		},
		Limits:   launcher.LimitSpec{Files: command.Files != nil, Private: launcher.ResolveLinks(f.config.Private)},
		Rootless: &launcher.RootlessSpec{Files: command.Files},
	})
	if err != nil {
		return err
	}
	defer func() { _ = file.Close() }()
	ours, theirs, err := newStatusPair()
	if err != nil {
		return err
	}
	defer func() { _ = ours.Close() }()
	stream := launcher.StreamOf(command.terminalStreams())
	command, master, slave, err := command.withTerminal(f.account.UID)
	if err == nil {
		err = f.sendLaunch(command, stream, file, theirs)
	}
	if slave != nil {
		err = errors.Join(err, slave.Close())
	}
	if err := errors.Join(err, theirs.Close()); err != nil {
		return fmt.Errorf("start %s: %w", command.Path, err)
	}
	p.terminal = master
	text, fds, err := f.receiveResult(launchTimeout)
	if err != nil || text[0] != resultStarted || len(fds) != 1 {
		return errors.Join(fmt.Errorf("start %s: init process: %s", command.Path, strings.TrimLeft(string(text), string(resultFailed))), err)
	}
	p.pidfd = fds[0]
	p.notify, _, err = awaitLauncher(ours, command.Path, func(listener int) (*notifyListener, error) {
		e, err := newNotifyListener(listener, f.account.UID, f.config.Denied, nil, nil)
		if err != nil {
			return nil, err
		}
		return e.start(), nil
	}, func(int) {})
	f.unreported = err == nil && p.notify == nil
	if err == nil {
		p.pid, err = pidOf(p.pidfd)
	}
	if err != nil {
		// The program is killed, and the init process reports its end.
		_ = unix.PidfdSendSignal(p.pidfd, unix.SIGKILL, nil, 0)
		_, _, _ = f.receiveResult(launchTimeout)
		return errors.Join(err, p.notify.close(), unix.Close(p.pidfd))
	}
	return nil
}

// sendLaunch hands the init process a program to start, with the number of a stream that is
// to be its controlling terminal, or -1.
func (f *Rootless) sendLaunch(command Command, stream int, file, status *os.File) error {
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return fmt.Errorf("give order: %w", err)
	}
	defer func() { _ = null.Close() }()
	var fds []int
	for _, file := range []*os.File{command.Stdin, command.Stdout, command.Stderr, status, file} {
		if file == nil {
			file = null
		}
		fds = append(fds, int(file.Fd()))
	}
	if err := unix.Sendmsg(int(f.control.Fd()), []byte{requestStart, byte(stream + 1)}, unix.UnixRights(fds...), nil, unix.MSG_NOSIGNAL); err != nil {
		return fmt.Errorf("give order: %w", err)
	}
	return nil
}

// pidOf is the number, out here, of the process that a descriptor stands for.
func pidOf(pidfd int) (int, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/self/fdinfo/%d", pidfd))
	if err != nil {
		return 0, fmt.Errorf("number the process: %w", err)
	}
	for line := range strings.Lines(string(text)) {
		if value, ok := strings.CutPrefix(line, "Pid:"); ok {
			return strconv.Atoi(strings.TrimSpace(value))
		}
	}
	return 0, errors.New("number the process: the kernel does not say")
}

// PID is the program's process id outside the sandbox.
func (p *RootlessProcess) PID() int { return p.pid }

// Signal passes a signal on, as [Process.Signal] does.
func (p *RootlessProcess) Signal(signal os.Signal) error {
	number, ok := signal.(syscall.Signal)
	if !ok {
		return fmt.Errorf("signal the plugin: %v is not a system signal", signal)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.ended {
		return nil
	}
	err := unix.PidfdSendSignal(p.pidfd, 0, nil, 0)
	if err == nil {
		switch number {
		case unix.SIGINT, unix.SIGQUIT, unix.SIGTSTP, unix.SIGSTOP, unix.SIGCONT, unix.SIGWINCH:
			err = unix.Kill(-p.pid, number) // the program leads its group
		default:
			err = unix.PidfdSendSignal(p.pidfd, number, nil, 0)
		}
	}
	if err != nil && !errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("signal the plugin: %w", err)
	}
	return nil
}

// Wait waits until the program and everything that it left behind has ended. The
// status is as [Process.Wait]'s. It may be called more than once.
func (p *RootlessProcess) Wait() (int, error) {
	p.once.Do(func() { p.status, p.err = p.wait() })
	return p.status, p.err
}

func (p *RootlessProcess) wait() (int, error) {
	text, _, err := p.sandbox.receiveResult(0)
	p.mu.Lock()
	p.ended = true
	p.mu.Unlock()
	p.sandbox.mu.Lock()
	p.sandbox.running = false
	killed := p.sandbox.killed
	closed := errors.Join(p.notify.close(), unix.Close(p.pidfd))
	if p.sandbox.closed {
		closed = errors.Join(closed, p.sandbox.control.Close())
	}
	p.sandbox.mu.Unlock()
	switch {
	case err != nil && killed:
		return 128 + int(unix.SIGKILL), closed
	case err != nil:
		return 125, errors.Join(fmt.Errorf("wait for the plugin: init process ended: %w", err), closed)
	case text[0] != resultEnded || len(text) != 5:
		return 125, errors.Join(fmt.Errorf("wait for the plugin: unexpected reply %q of the init process", text), closed)
	}
	status := syscall.WaitStatus(binary.NativeEndian.Uint32(text[1:]))
	if status.Signaled() {
		return 128 + int(status.Signal()), closed
	}
	return status.ExitStatus(), closed
}

// DialContext connects to the plugin inside the sandbox, as [Confinement.DialContext]
// does inside a confinement. The init process makes the connection and hands it out.
func (f *Rootless) DialContext(ctx context.Context, Network, address string) (net.Conn, error) {
	if err := literal(address); err != nil {
		return nil, err
	}
	if host, _, err := net.SplitHostPort(address); err != nil || !onLoopback(host) {
		return nil, fmt.Errorf("dial the plugin: %s is not on its loopback", address)
	}
	f.dialing.Lock() // one at a time: on a loopback none takes long
	defer f.dialing.Unlock()
	if err := ctx.Err(); err != nil {
		return nil, fmt.Errorf("dial the plugin: %w", err)
	}
	if err := unix.Sendmsg(int(f.dial.Fd()), []byte(Network+" "+address), nil, nil, unix.MSG_NOSIGNAL); err != nil {
		return nil, fmt.Errorf("dial the plugin: %w", err)
	}
	text, fds, err := receive(int(f.dial.Fd()))
	if err != nil {
		return nil, fmt.Errorf("dial the plugin: %w", err)
	}
	if text[0] != resultConnected || len(fds) != 1 {
		return nil, fmt.Errorf("dial the plugin: %s", text[1:])
	}
	file := os.NewFile(uintptr(fds[0]), "plugin")
	conn, err := net.FileConn(file)
	if err := errors.Join(err, file.Close()); err != nil {
		return nil, fmt.Errorf("dial the plugin: %w", err)
	}
	return conn, nil
}

// Kill ends everything in the rootless sandbox, permanently: nothing can be started there
// again.
func (f *Rootless) Kill() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.killed = true
	if f.init == nil || f.closed {
		return nil
	}
	if err := f.init.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("kill the plugin: %w", err)
	}
	return nil
}

// Close ends everything in the rootless sandbox and takes it down. A program that was
// started has to have been waited for, or to be waited for at the same time.
func (f *Rootless) Close() error {
	killed := f.Kill()
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.closed {
		return nil
	}
	f.closed = true
	errs := []error{killed}
	if f.init != nil {
		_, err := f.init.Wait() // when it has ended, nothing of the sandbox lives
		f.config.Reaper.Done(f.init.Pid)
		errs = append(errs, err)
	}
	if f.control != nil && !f.running { // else Wait reads from it, and closes it
		errs = append(errs, f.control.Close())
	}
	if f.dial != nil {
		errs = append(errs, f.dial.Close())
	}
	errs = append(errs, f.account.Release())
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("close rootless sandbox: %w", err)
	}
	return nil
}

// Account describes the user of the plugin, for its environment.
func (f *Rootless) Account() Account { return f.account.Account(f.config.Plugin, false) }
