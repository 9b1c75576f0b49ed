package sandbox

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"os"
	"runtime"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/chaperone-proxy/chaperone/ebpf/sandbox/launcher"
)

// The init process of a [Rootless] is this binary under two other names: the first sets
// the namespaces up, with capabilities that count only inside; it then becomes
// the second, by exec, since only that takes them from every thread.
const (
	rootlessSetupName = "chaperone-rootless"
	rootlessInitName  = "chaperone-rootless-init"
)

// Descriptors that the init process is given, besides orderFD.
const (
	controlFD = launcher.StatusFD
	dialFD    = launcher.CgroupFD
)

// Messages on the control and dial sockets.
const (
	requestStart    = 'S' // the stream that is a terminal follows; with stdin, stdout, stderr, the launcher's status socket and its order
	resultListening = 'L' // with the listeners
	resultStarted   = 'P' // with a descriptor of the process
	resultEnded     = 'E' // the wait status follows
	resultConnected = 'C' // with the connection
	resultFailed    = 'F' // text follows
)

// maxRights is how many descriptors one message carries at most.
const maxRights = 16

// dialTimeout bounds a connection inside a rootless sandbox.
const dialTimeout = 5 * time.Second

// Launch is the init process of a [Rootless]: main calls it first, as does TestMain of
// every package that starts one. In any other process it returns at once. The launcher
// itself takes over before main: see package launcher.
func Launch() {
	if len(os.Args) > 0 && (os.Args[0] == rootlessSetupName || os.Args[0] == rootlessInitName) {
		runRootlessInit(os.Args[0])
	}
}

// runRootlessInit is the init process. It never returns.
func runRootlessInit(name string) {
	runtime.LockOSThread()
	if name == rootlessSetupName {
		err := setUpNamespaces()
		send(controlFD, append([]byte{resultFailed}, fmt.Sprint(err)...))
		os.Exit(125) //nolint:forbidigo // the end of this process
	}
	serveRequests()
	// The kernel ends everything in a process namespace with its first process.
	os.Exit(0) //nolint:forbidigo // as above
}

// send sends one message. An error cannot be reported.
func send(socket int, text []byte, fds ...int) {
	var rights []byte
	if len(fds) > 0 {
		rights = unix.UnixRights(fds...)
	}
	_ = unix.Sendmsg(socket, text, rights, nil, unix.MSG_NOSIGNAL)
}

// setUpNamespaces prepares the namespaces and gives up what that took.
func setUpNamespaces() error {
	var o launcher.RootlessSpec
	file := os.NewFile(launcher.SpecFD, "order")
	if err := launcher.ReadSpec(file, &o); err != nil {
		return err
	}
	if len(o.Addresses) > maxRights {
		return fmt.Errorf("listen: %d addresses, at most %d are possible", len(o.Addresses), maxRights)
	}
	if err := hidePaths(o.Private); err != nil {
		return err
	}
	if err := prepareLoopback(); err != nil {
		return err
	}
	if err := openLowPorts(); err != nil && hasLowPort(o.Serve) {
		return err
	}
	var fds []int
	for _, address := range o.Addresses {
		fd, err := listenFor(address)
		if err != nil {
			return err
		}
		fds = append(fds, fd)
	}
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("forbid new privileges: %w", err)
	}
	if err := launcher.DropBoundingSet(); err != nil {
		return err
	}
	if err := launcher.DropCapabilities(); err != nil {
		return err
	}
	send(controlFD, []byte{resultListening}, fds...)
	unix.CloseOnExec(launcher.SpecFD)
	return fmt.Errorf("keep: %w", syscall.Exec("/proc/self/exe", []string{rootlessInitName}, nil))
}

// hidePaths gives the sandbox a /proc of its own, where that is permitted, and covers the
// sidecar's paths with empty files and directories. Paths that are out of reach are
// left as they are.
func hidePaths(private []string) error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make mounts private: %w", err)
	}
	// Refused where parts of the container's own are masked; processes outside
	// are seen then, and still cannot be touched.
	_ = unix.Mount("proc", "/proc", "proc", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "")
	for _, path := range private {
		var stat unix.Stat_t
		err := unix.Stat(path, &stat)
		if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.EACCES) {
			continue
		}
		if err != nil {
			return fmt.Errorf("hide %s: %w", path, err)
		}
		if stat.Mode&unix.S_IFMT == unix.S_IFDIR {
			err = unix.Mount("none", path, "tmpfs", unix.MS_RDONLY|unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "mode=0,size=4k")
		} else {
			err = unix.Mount(os.DevNull, path, "", unix.MS_BIND, "")
		}
		if err != nil {
			return fmt.Errorf("hide %s: %w", path, err)
		}
	}
	return nil
}

// listenFor opens a listener and returns its descriptor.
func listenFor(address string) (int, error) {
	var config net.ListenConfig
	config.SetMultipathTCP(false)
	listener, err := config.Listen(context.Background(), "tcp", address) //nolint:forbidigo // binding an IP address does not wait
	if err != nil {
		return -1, fmt.Errorf("listen beside the plugin: %w", err)
	}
	defer func() { _ = listener.Close() }()
	fd, err := descriptor(listener)
	if err != nil {
		return -1, fmt.Errorf("listen beside the plugin: %w", err)
	}
	return fd, nil
}

// descriptor is a descriptor of a socket's, for the caller to close.
func descriptor(socket any) (int, error) {
	filed, ok := socket.(interface{ File() (*os.File, error) })
	if !ok {
		return -1, fmt.Errorf("%T is not a socket", socket)
	}
	file, err := filed.File()
	if err != nil {
		return -1, err
	}
	defer func() { _ = file.Close() }()
	return unix.FcntlInt(file.Fd(), unix.F_DUPFD_CLOEXEC, 0)
}

// serveRequests starts the programs of requests, reaps processes that end, and returns when the
// sidecar is gone.
func serveRequests() {
	// The plugin is the same user: it is not to look into this process.
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
		return
	}
	unix.CloseOnExec(controlFD)
	unix.CloseOnExec(dialFD)
	go serveDials()
	for {
		text, fds, err := receive(controlFD)
		if err != nil || text[0] != requestStart || len(text) != 2 || len(fds) != 5 {
			return
		}
		startLauncher(fds, int(text[1])-1)
		for _, fd := range fds {
			_ = unix.Close(fd)
		}
	}
}

// startLauncher starts the launcher and sees to it that everything ends with it.
func startLauncher(fds []int, stream int) {
	files := make([]uintptr, len(fds))
	for i, fd := range fds {
		files[i] = uintptr(fd)
	}
	attributes := &syscall.SysProcAttr{Setsid: true}
	if stream >= 0 {
		attributes.Setctty, attributes.Ctty = true, stream
	}
	pid, err := syscall.ForkExec("/proc/self/exe", []string{launcher.Name}, &syscall.ProcAttr{Files: files, Sys: attributes})
	if err != nil {
		send(controlFD, append([]byte{resultFailed}, err.Error()...))
		return
	}
	pidfd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		_ = unix.Kill(pid, unix.SIGKILL)
		_, _ = unix.Wait4(pid, nil, 0, nil)
		send(controlFD, append([]byte{resultFailed}, err.Error()...))
		return
	}
	send(controlFD, []byte{resultStarted}, pidfd)
	_ = unix.Close(pidfd)
	go reapUntilEmpty(pid)
}

// reapUntilEmpty waits for the program, ends what it left behind, and reports how it
// ended. Until then it also reaps the orphans that the first process inherits.
func reapUntilEmpty(program int) {
	var last unix.WaitStatus
	for {
		var status unix.WaitStatus
		pid, err := unix.Wait4(-1, &status, 0, nil)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			break // no child is left
		}
		if pid == program {
			last = status
			// Everything inside but this process. A process that is just being made
			// receives the signal before it runs.
			_ = unix.Kill(-1, unix.SIGKILL)
		}
	}
	send(controlFD, binary.NativeEndian.AppendUint32([]byte{resultEnded}, uint32(last)))
}

// serveDials makes the connections that [Rootless.DialContext] asks for.
func serveDials() {
	for {
		text, _, err := receive(dialFD)
		if err != nil {
			return
		}
		fd, err := dialFor(string(text))
		if err != nil {
			send(dialFD, append([]byte{resultFailed}, err.Error()...))
			continue
		}
		send(dialFD, []byte{resultConnected}, fd)
		_ = unix.Close(fd)
	}
}

func dialFor(request string) (int, error) {
	Network, address, _ := strings.Cut(request, " ")
	ctx, cancel := context.WithTimeout(context.Background(), dialTimeout) //nolint:forbidigo // bounded here
	defer cancel()
	var dialer net.Dialer
	dialer.SetMultipathTCP(false)
	conn, err := dialer.DialContext(ctx, Network, address)
	if err != nil {
		return -1, err
	}
	defer func() { _ = conn.Close() }()
	return descriptor(conn)
}
