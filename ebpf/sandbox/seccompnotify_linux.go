package sandbox

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"strconv"
	"time"
	"unsafe"

	"go.uber.org/zap"
	"golang.org/x/sys/unix"

	"github.com/chaperone-proxy/chaperone/ebpf/sandbox/launcher"
)

// notifyListener receives what the seccomp filter refuses, and answers EPERM. The caller
// stands still until then.
type notifyListener struct {
	listener int
	stop     int // an event descriptor
	uid      int // the plugin's
	denied   func(Denial)
	done     chan struct{}

	listenUnix func(process uint32, l Listener) // of a Unix socket; nil: that is not reported
	listenTCP  func(port uint16)                // of a TCP socket; nil: that is not reported
	log        *zap.Logger
}

// notification is struct seccomp_notif (include/uapi/linux/seccomp.h).
type notification struct {
	ID    uint64
	PID   uint32
	Flags uint32
	Data  struct {
		Number  int32
		Arch    uint32
		Pointer uint64
		Args    [6]uint64
	}
}

// response is struct seccomp_notif_resp.
type response struct {
	ID    uint64
	Value int64
	Error int32
	Flags uint32
}

// newNotifyListener returns a listener that reports notifications. It takes over the descriptor.
// Without a function for it listen(2) is allowed unseen.
func newNotifyListener(listener, uid int, tell func(Denial), listening func(process uint32, l Listener), log *zap.Logger) (*notifyListener, error) {
	stop, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("hear seccomp: %w", err), unix.Close(listener))
	}
	e := &notifyListener{listener: listener, stop: stop, uid: uid, denied: tell, done: make(chan struct{}), log: log}
	e.listenUnix = listening
	return e, nil
}

// start begins to hear.
func (e *notifyListener) start() *notifyListener {
	go e.run()
	return e
}

// run ends when the last process under the filter does, or by close.
func (e *notifyListener) run() {
	defer close(e.done)
	for {
		poll := []unix.PollFd{
			{Fd: int32(e.listener), Events: unix.POLLIN},
			{Fd: int32(e.stop), Events: unix.POLLIN},
		}
		if _, err := unix.Poll(poll, -1); errors.Is(err, unix.EINTR) {
			continue
		} else if err != nil || poll[1].Revents != 0 {
			return
		}
		if poll[0].Revents&unix.POLLIN != 0 {
			e.handle()
		} else if poll[0].Revents != 0 {
			return
		}
	}
}

func (e *notifyListener) handle() {
	var n notification                                                                 // the kernel writes the thread's id as this process sees it
	if err := e.ioctl(unix.SECCOMP_IOCTL_NOTIF_RECV, unsafe.Pointer(&n)); err != nil { //nolint:gosec // struct seccomp_notif
		return // the caller was killed before it was answered
	}
	process := processOf(n.PID)
	if n.Data.Arch == launcher.NativeArch && n.Data.Number == unix.SYS_LISTEN {
		e.reportListen(&n, process)
		_ = e.ioctl(unix.SECCOMP_IOCTL_NOTIF_SEND, unsafe.Pointer(&response{ID: n.ID, Flags: unix.SECCOMP_USER_NOTIF_FLAG_CONTINUE})) //nolint:gosec // struct seccomp_notif_resp
		return                                                                                                                        // an error means that the caller is gone
	}
	e.report(&n, process)
	if n.Data.Arch != launcher.NativeArch || uint32(n.Data.Number)&launcher.ForeignNumber != 0 {
		// A program of another architecture would only go on failing, its exit
		// included. The number cannot have passed to another process while this
		// one stands still, which is what the check before the signal proves.
		if fd, err := unix.PidfdOpen(int(process), 0); err == nil {
			if e.ioctl(unix.SECCOMP_IOCTL_NOTIF_ID_VALID, unsafe.Pointer(&n.ID)) == nil { //nolint:gosec // its id
				_ = unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0)
			}
			_ = unix.Close(fd)
		}
	}
	// An error means that the caller is gone.
	_ = e.ioctl(unix.SECCOMP_IOCTL_NOTIF_SEND, unsafe.Pointer(&response{ID: n.ID, Error: -int32(unix.EPERM)})) //nolint:gosec // struct seccomp_notif_resp
}

func (e *notifyListener) ioctl(request uint, value unsafe.Pointer) error {
	for {
		_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(e.listener), uintptr(request), uintptr(value))
		if errno == 0 {
			return nil
		}
		if errno != unix.EINTR {
			return errno
		}
	}
}

// report describes a refusal.
func (e *notifyListener) report(n *notification, process uint32) {
	d := Denial{
		Time: time.Now(), Hook: HookSeccomp, Cause: CausePolicy, Count: 1,
		PID: process, Exe: Executable(process), UID: uint32(e.uid), Syscall: e.callName(n),
	}
	if comm, err := os.ReadFile("/proc/" + strconv.Itoa(int(n.PID)) + "/comm"); err == nil {
		d.Comm = string(bytes.TrimRight(comm, "\n"))
	}
	if n.Data.Arch == launcher.NativeArch && (n.Data.Number == unix.SYS_SOCKET || n.Data.Number == unix.SYS_SOCKETPAIR) {
		d.Family = FamilyName(uint32(n.Data.Args[0]))
		if d.Family == "netlink" {
			d.Protocol = strconv.Itoa(int(int32(n.Data.Args[2])))
		}
	}
	e.denied(d)
}

func (*notifyListener) callName(n *notification) string {
	number := uint32(n.Data.Number)
	switch {
	case n.Data.Arch != launcher.NativeArch:
		return fmt.Sprintf("call %d of architecture %#x", number, n.Data.Arch)
	case number&launcher.ForeignNumber != 0:
		return fmt.Sprintf("call %#x of a foreign ABI", number)
	}
	if name, ok := launcher.RefusedCalls()[number]; ok {
		return name
	}
	return strconv.Itoa(int(number))
}

// close stops the listener and waits until it has stopped. A nil listener is not running.
func (e *notifyListener) close() error {
	if e == nil {
		return nil
	}
	var one [8]byte
	binary.NativeEndian.PutUint64(one[:], 1)
	_, err := unix.Write(e.stop, one[:])
	if err != nil {
		return fmt.Errorf("stop hearing seccomp: %w", err)
	}
	<-e.done
	if err := errors.Join(unix.Close(e.listener), unix.Close(e.stop)); err != nil {
		return fmt.Errorf("stop hearing seccomp: %w", err)
	}
	return nil
}

// FamilyName names a socket family (include/linux/socket.h).
func FamilyName(family uint32) string {
	switch family {
	case unix.AF_UNSPEC:
		return ""
	case unix.AF_UNIX:
		return "unix"
	case unix.AF_INET:
		return "ipv4"
	case unix.AF_INET6:
		return "ipv6"
	case unix.AF_NETLINK:
		return "netlink"
	case unix.AF_PACKET:
		return "packet"
	case unix.AF_ALG:
		return "alg"
	case unix.AF_VSOCK:
		return "vsock"
	case unix.AF_XDP:
		return "xdp"
	}
	return strconv.FormatUint(uint64(family), 10)
}
