package launcher

import (
	"fmt"
	"maps"
	"runtime"
	"slices"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Offsets in struct seccomp_data (include/uapi/linux/seccomp.h), which a filter
// reads 32 bits at a time. Of an argument the low half is read: the kernel takes
// these arguments as ints and ignores the rest, so a filter that compared all 64
// bits would be passed by one with a high bit set.
const (
	offsetNumber = 0
	offsetArch   = 4
	offsetArgs   = 16
)

func argumentOffset(n int) uint32 { return uint32(offsetArgs + 8*n) }

// Verdicts. Notify stops the caller, notifies the sidecar, and returns EPERM; with
// the sidecar gone the kernel answers ENOSYS itself.
const (
	verdictAllow  = unix.SECCOMP_RET_ALLOW
	verdictNotify = unix.SECCOMP_RET_USER_NOTIF
	verdictNoCall = unix.SECCOMP_RET_ERRNO | uint32(unix.ENOSYS)

	verdictNoProtocol = unix.SECCOMP_RET_ERRNO | uint32(unix.EPROTONOSUPPORT)
)

// parentFlag makes a child of the sidecar instead of the plugin: one that the
// sidecar never waits for, so that its number stays taken when it has ended. A
// plugin could use up the host's.
const parentFlag = unix.CLONE_PARENT

// namespaceFlags are the clone flags that make a namespace. (CLONE_NEWTIME
// cannot be given to clone, where its bit is part of the exit signal.)
const namespaceFlags = unix.CLONE_NEWNS | unix.CLONE_NEWCGROUP | unix.CLONE_NEWUTS | unix.CLONE_NEWIPC |
	unix.CLONE_NEWUSER | unix.CLONE_NEWPID | unix.CLONE_NEWNET

// Commands of ioctl that type into a terminal: one that the plugin shares with
// the operator's shell would run what it types.
const (
	ioctlTIOCSTI   = 0x5412
	ioctlTIOCLINUX = 0x541c
)

// The requests of the vhost drivers share their second byte
// (include/uapi/linux/vhost.h). Their devices are everybody's on many systems,
// and the one for vsock is a network that no socket call opens.
const (
	ioctlGroup = 0xff00
	ioctlVhost = 0xaf00
)

// RefusedCalls are never needed by a plugin and reach past its hooks, or offer
// attack surface that its work does not need.
func RefusedCalls() map[uint32]string {
	calls := refusedCallsOfArch()
	maps.Copy(calls, map[uint32]string{
		unix.SYS_BPF:               "bpf",
		unix.SYS_PERF_EVENT_OPEN:   "perf_event_open",
		unix.SYS_USERFAULTFD:       "userfaultfd",
		unix.SYS_IO_URING_SETUP:    "io_uring_setup",
		unix.SYS_IO_URING_ENTER:    "io_uring_enter",
		unix.SYS_IO_URING_REGISTER: "io_uring_register",
		unix.SYS_PTRACE:            "ptrace",
		unix.SYS_PROCESS_VM_READV:  "process_vm_readv",
		unix.SYS_PROCESS_VM_WRITEV: "process_vm_writev",
		unix.SYS_PIDFD_GETFD:       "pidfd_getfd",
		unix.SYS_KCMP:              "kcmp",
		unix.SYS_SETNS:             "setns",
		unix.SYS_MOUNT:             "mount",
		unix.SYS_UMOUNT2:           "umount2",
		unix.SYS_PIVOT_ROOT:        "pivot_root",
		unix.SYS_CHROOT:            "chroot",
		unix.SYS_OPEN_TREE:         "open_tree",
		unix.SYS_MOVE_MOUNT:        "move_mount",
		unix.SYS_FSOPEN:            "fsopen",
		unix.SYS_FSCONFIG:          "fsconfig",
		unix.SYS_FSMOUNT:           "fsmount",
		unix.SYS_FSPICK:            "fspick",
		unix.SYS_MOUNT_SETATTR:     "mount_setattr",
		unix.SYS_OPEN_BY_HANDLE_AT: "open_by_handle_at",
		unix.SYS_KEXEC_LOAD:        "kexec_load",
		unix.SYS_KEXEC_FILE_LOAD:   "kexec_file_load",
		unix.SYS_INIT_MODULE:       "init_module",
		unix.SYS_FINIT_MODULE:      "finit_module",
		unix.SYS_DELETE_MODULE:     "delete_module",
		unix.SYS_ADD_KEY:           "add_key",
		unix.SYS_REQUEST_KEY:       "request_key",
		unix.SYS_KEYCTL:            "keyctl",
		unix.SYS_ACCT:              "acct",
		unix.SYS_SWAPON:            "swapon",
		unix.SYS_SWAPOFF:           "swapoff",
		unix.SYS_REBOOT:            "reboot",
		unix.SYS_QUOTACTL:          "quotactl",
		unix.SYS_QUOTACTL_FD:       "quotactl_fd",
		unix.SYS_FANOTIFY_INIT:     "fanotify_init",
		unix.SYS_LOOKUP_DCOOKIE:    "lookup_dcookie",
		unix.SYS_SYSLOG:            "syslog",
		openTreeAttr:               "open_tree_attr",
		// Judged by their arguments; listed for their names.
		unix.SYS_CLONE:      "clone",
		unix.SYS_UNSHARE:    "unshare",
		unix.SYS_SOCKET:     "socket",
		unix.SYS_SOCKETPAIR: "socketpair",
		unix.SYS_IOCTL:      "ioctl",
	})
	return calls
}

// openTreeAttr is newer than the syscall list of the library; its number is the
// same on every architecture (include/uapi/asm-generic/unistd.h, Linux 6.15).
const openTreeAttr = 467

// conditionalCalls are refused for some arguments only.
func conditionalCalls() map[uint32]bool {
	return map[uint32]bool{
		unix.SYS_CLONE: true, unix.SYS_UNSHARE: true, unix.SYS_SOCKET: true,
		unix.SYS_SOCKETPAIR: true, unix.SYS_IOCTL: true,
	}
}

// bpfProgram assembles a classic BPF filter.
type bpfProgram []unix.SockFilter

func (p *bpfProgram) load(offset uint32) {
	*p = append(*p, unix.SockFilter{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: offset})
}

func (p *bpfProgram) mask(bits uint32) {
	*p = append(*p, unix.SockFilter{Code: unix.BPF_ALU | unix.BPF_AND | unix.BPF_K, K: bits})
}

func (p *bpfProgram) ret(verdict uint32) {
	*p = append(*p, unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K, K: verdict})
}

// ifEqual gives the verdict when the loaded value is k, and goes on otherwise.
func (p *bpfProgram) ifEqual(k, verdict uint32) {
	*p = append(*p, unix.SockFilter{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, Jf: 1, K: k})
	p.ret(verdict)
}

// ifAnyBit gives the verdict when the loaded value has one of the bits.
func (p *bpfProgram) ifAnyBit(bits, verdict uint32) {
	*p = append(*p, unix.SockFilter{Code: unix.BPF_JMP | unix.BPF_JSET | unix.BPF_K, Jf: 1, K: bits})
	p.ret(verdict)
}

// when runs body, which ends in a verdict, if the loaded value is k.
func (p *bpfProgram) when(k uint32, body bpfProgram) {
	*p = append(*p, unix.SockFilter{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, Jf: uint8(len(body)), K: k})
	*p = append(*p, body...)
}

// filter is the plugin's system call filter. unixSockets reports that the kernel
// can judge Unix sockets by hooks; where it cannot, only pairs exist. listens has
// listen(2) wait until the sidecar has seen it: without a sidecar it ends in
// ENOSYS.
//
// A call that is allowed whatever its arguments must reach that verdict without a
// load of an argument: the kernel then finds the verdict when the filter is
// installed and does not run the filter for that call (seccomp_cache_prepare in
// kernel/seccomp.c, Linux 5.11). The calls for which it does run the filter come
// first, by how often programs make them.
func filter(unixSockets, listens bool) []unix.SockFilter {
	var p bpfProgram
	p.load(offsetArch)
	p = append(p, unix.SockFilter{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, Jt: 1, K: NativeArch})
	p.ret(verdictNotify)
	p.load(offsetNumber)
	p.when(unix.SYS_IOCTL, ioctlFilter())
	p.when(unix.SYS_SOCKET, socketFilter(unixSockets))
	p.when(unix.SYS_CLONE, flagsFilter(namespaceFlags|parentFlag))
	p.when(unix.SYS_SOCKETPAIR, pairFilter(unixSockets))
	p.when(unix.SYS_UNSHARE, flagsFilter(namespaceFlags|unix.CLONE_NEWTIME))
	// C libraries fall back to clone, whose flags a filter can read.
	p.ifEqual(unix.SYS_CLONE3, verdictNoCall)
	if listens {
		p.ifEqual(unix.SYS_LISTEN, verdictNotify)
	}
	p.ifAnyBit(ForeignNumber, verdictNotify)
	judged := conditionalCalls()
	for _, number := range slices.Sorted(maps.Keys(RefusedCalls())) {
		if !judged[number] {
			p.ifEqual(number, verdictNotify)
		}
	}
	p.ret(verdictAllow)
	return p
}

func flagsFilter(flags uint32) bpfProgram {
	var p bpfProgram
	p.load(argumentOffset(0))
	p.ifAnyBit(flags, verdictNotify)
	p.ret(verdictAllow)
	return p
}

// socketFilter allows what a hook judges, and the routing socket, by which
// programs list interfaces and which can change nothing without a capability.
// The socket hook refuses the same and more, but comes after the kernel's own
// check for privileges, which would refuse a raw socket unreported.
func socketFilter(unixSockets bool) bpfProgram {
	var p bpfProgram
	p.load(argumentOffset(0))
	p.when(unix.AF_INET, internetFilter())
	p.when(unix.AF_INET6, internetFilter())
	if unixSockets {
		p.ifEqual(unix.AF_UNIX, verdictAllow)
	}
	var netlink bpfProgram
	netlink.load(argumentOffset(2))
	netlink.ifEqual(unix.NETLINK_ROUTE, verdictAllow)
	netlink.ret(verdictNotify)
	p.when(unix.AF_NETLINK, netlink)
	p.ret(verdictNotify)
	return p
}

// typeMask separates a socket's type from its flags (include/linux/net.h).
const typeMask = 0xf

// internetFilter allows TCP and UDP. Multipath TCP, which Go's listeners ask for
// before they fall back, is answered as by a kernel without it.
func internetFilter() bpfProgram {
	var stream, datagram bpfProgram
	stream.load(argumentOffset(2))
	stream.ifEqual(0, verdictAllow)
	stream.ifEqual(unix.IPPROTO_TCP, verdictAllow)
	stream.ifEqual(unix.IPPROTO_MPTCP, verdictNoProtocol)
	stream.ret(verdictNotify)
	datagram.load(argumentOffset(2))
	datagram.ifEqual(0, verdictAllow)
	datagram.ifEqual(unix.IPPROTO_UDP, verdictAllow)
	datagram.ret(verdictNotify)
	var p bpfProgram
	p.load(argumentOffset(1))
	p.mask(typeMask)
	p.when(unix.SOCK_STREAM, stream)
	p.when(unix.SOCK_DGRAM, datagram)
	p.ret(verdictNotify)
	return p
}

// pairFilter allows Unix pairs. A datagram pair can still send to any name, so
// it is only for kernels whose hooks judge that.
func pairFilter(unixSockets bool) bpfProgram {
	var pair bpfProgram
	if unixSockets {
		pair.ret(verdictAllow)
	} else {
		pair.load(argumentOffset(1))
		pair.mask(typeMask)
		pair.ifEqual(unix.SOCK_STREAM, verdictAllow)
		pair.ifEqual(unix.SOCK_SEQPACKET, verdictAllow)
		pair.ret(verdictNotify)
	}
	var p bpfProgram
	p.load(argumentOffset(0))
	p.when(unix.AF_UNIX, pair)
	p.ret(verdictNotify)
	return p
}

func ioctlFilter() bpfProgram {
	var p bpfProgram
	p.load(argumentOffset(1))
	p.ifEqual(ioctlTIOCSTI, verdictNotify)
	p.ifEqual(ioctlTIOCLINUX, verdictNotify)
	p.mask(ioctlGroup)
	p.ifEqual(ioctlVhost, verdictNotify)
	p.ret(verdictAllow)
	return p
}

// installFilter puts the filter on the calling thread, permanently, and returns the
// descriptor on which refusals are received.
func installFilter(p []unix.SockFilter) (int, error) {
	chain := unix.SockFprog{Len: uint16(len(p)), Filter: &p[0]}
	fd, _, errno := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER,
		unix.SECCOMP_FILTER_FLAG_NEW_LISTENER, uintptr(unsafe.Pointer(&chain))) //nolint:gosec // struct sock_fprog
	runtime.KeepAlive(p)
	if errno != 0 {
		return -1, fmt.Errorf("install seccomp filter: %w", errno)
	}
	return int(fd), nil
}

// installFilterUnreported installs the filter without a listener: a call that it would report is
// refused with EPERM nevertheless.
func installFilterUnreported(p []unix.SockFilter) error {
	deaf := slices.Clone(p)
	for i := range deaf {
		if deaf[i].Code == unix.BPF_RET|unix.BPF_K && deaf[i].K == verdictNotify {
			deaf[i].K = unix.SECCOMP_RET_ERRNO | uint32(unix.EPERM)
		}
	}
	chain := unix.SockFprog{Len: uint16(len(deaf)), Filter: &deaf[0]}
	_, _, errno := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, 0, uintptr(unsafe.Pointer(&chain))) //nolint:gosec // struct sock_fprog
	runtime.KeepAlive(deaf)
	if errno != 0 {
		return fmt.Errorf("install seccomp filter: %w", errno)
	}
	return nil
}
