package launcher

import (
	"fmt"
	"testing"

	"golang.org/x/sys/unix"
)

// call is struct seccomp_data as far as the filter reads it.
type call struct {
	number, arch uint32
	args         [6]uint64
}

// highestNumber is above every call number of every architecture.
const highestNumber = 1024

// word returns the 32 bits at an offset of struct seccomp_data on a little-endian machine.
func (c *call) word(offset uint32) uint32 {
	switch offset {
	case offsetNumber:
		return c.number
	case offsetArch:
		return c.arch
	}
	n, high := (offset-offsetArgs)/8, (offset-offsetArgs)%8/4
	return uint32(c.args[n] >> (32 * high))
}

// evaluate runs a filter. constant reports that the verdict depends on the number
// and the architecture alone by the rules of seccomp_is_const_allow in
// kernel/seccomp.c, which follows only these instructions and gives up at any
// other load.
func evaluate(p []unix.SockFilter, c *call) (verdict uint32, constant bool, err error) {
	constant = true
	var a uint32
	for pc := 0; pc < len(p); pc++ {
		k := p[pc].K
		var jump bool
		switch p[pc].Code {
		case unix.BPF_LD | unix.BPF_W | unix.BPF_ABS:
			a = c.word(k)
			constant = constant && (k == offsetNumber || k == offsetArch)
			continue
		case unix.BPF_ALU | unix.BPF_AND | unix.BPF_K:
			a &= k
			continue
		case unix.BPF_RET | unix.BPF_K:
			return k, constant, nil
		case unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K:
			jump = a == k
		case unix.BPF_JMP | unix.BPF_JSET | unix.BPF_K:
			jump = a&k != 0
		default:
			return 0, false, fmt.Errorf("instruction %d has code %#x, which the kernel's look for constant verdicts does not follow", pc, p[pc].Code)
		}
		if jump {
			pc += int(p[pc].Jt)
		} else {
			pc += int(p[pc].Jf)
		}
	}
	return 0, false, fmt.Errorf("the filter ends without a verdict")
}

// eachFilter runs a test with every form of the filter.
func eachFilter(t *testing.T, test func(t *testing.T, p []unix.SockFilter, unixSockets, listens bool)) {
	for _, unixSockets := range []bool{false, true} {
		for _, listens := range []bool{false, true} {
			t.Run(fmt.Sprintf("unix sockets %t, listen reported %t", unixSockets, listens), func(t *testing.T) {
				test(t, filter(unixSockets, listens), unixSockets, listens)
			})
		}
	}
}

// TestConstantVerdicts has the kernel spare the filter for every call that is
// allowed whatever its arguments, and for no other.
func TestConstantVerdicts(t *testing.T) {
	eachFilter(t, func(t *testing.T, p []unix.SockFilter, _, listens bool) {
		refused, judged := RefusedCalls(), conditionalCalls()
		for number := range uint32(highestNumber) {
			_, isRefused := refused[number]
			want := !isRefused && number != unix.SYS_CLONE3 && (!listens || number != unix.SYS_LISTEN)
			verdict, constant, err := evaluate(p, &call{number: number, arch: NativeArch})
			if err != nil {
				t.Fatal(err)
			}
			if got := constant && verdict == verdictAllow; got != want {
				t.Errorf("call %d: constant %t with verdict %#x, want a constant allow: %t", number, constant, verdict, want)
			}
			if constant == judged[number] {
				t.Errorf("call %d: constant %t, want its arguments read: %t", number, constant, judged[number])
			}
		}
	})
}

// TestForeignCalls asks for calls that share no number with this architecture.
func TestForeignCalls(t *testing.T) {
	eachFilter(t, func(t *testing.T, p []unix.SockFilter, _, _ bool) {
		for number := range uint32(highestNumber) {
			for _, c := range []call{
				{number: number, arch: unix.AUDIT_ARCH_I386},
				{number: number, arch: unix.AUDIT_ARCH_ARM},
				{number: number, arch: 0},
				{number: number | ForeignNumber, arch: NativeArch},
			} {
				if verdict, _, err := evaluate(p, &c); err != nil || verdict != verdictNotify {
					t.Fatalf("call %#x of architecture %#x: got verdict %#x, error %v, want %#x", c.number, c.arch, verdict, err, uint32(verdictNotify))
				}
			}
		}
	})
}

// TestVerdictsByArguments reads the verdicts that depend on arguments. The upper
// half of an argument that the kernel takes as an int makes no difference.
func TestVerdictsByArguments(t *testing.T) {
	const notify, high = uint32(verdictNotify), 1 << 32
	ifUnix := func(unixSockets bool) uint32 {
		if unixSockets {
			return verdictAllow
		}
		return notify
	}
	eachFilter(t, func(t *testing.T, p []unix.SockFilter, unixSockets, _ bool) {
		for _, want := range []struct {
			number  uint32
			args    [6]uint64
			verdict uint32
		}{
			{unix.SYS_IOCTL, [6]uint64{0, unix.TIOCINQ}, verdictAllow},
			{unix.SYS_IOCTL, [6]uint64{0, high | ioctlTIOCSTI}, notify},
			{unix.SYS_IOCTL, [6]uint64{0, ioctlTIOCLINUX}, notify},
			{unix.SYS_IOCTL, [6]uint64{0, ioctlVhost | 1<<30 | 7}, notify},
			{unix.SYS_CLONE, [6]uint64{unix.CLONE_VM | unix.CLONE_THREAD}, verdictAllow},
			{unix.SYS_CLONE, [6]uint64{unix.CLONE_NEWUSER}, notify},
			{unix.SYS_CLONE, [6]uint64{unix.CLONE_PARENT}, notify},
			{unix.SYS_UNSHARE, [6]uint64{unix.CLONE_FILES}, verdictAllow},
			{unix.SYS_UNSHARE, [6]uint64{unix.CLONE_NEWTIME}, notify},
			{unix.SYS_SOCKET, [6]uint64{unix.AF_INET, unix.SOCK_STREAM | unix.SOCK_CLOEXEC}, verdictAllow},
			{unix.SYS_SOCKET, [6]uint64{high | unix.AF_INET6, unix.SOCK_DGRAM, unix.IPPROTO_UDP}, verdictAllow},
			{unix.SYS_SOCKET, [6]uint64{unix.AF_INET, unix.SOCK_STREAM, unix.IPPROTO_MPTCP}, verdictNoProtocol},
			{unix.SYS_SOCKET, [6]uint64{unix.AF_INET, unix.SOCK_STREAM, unix.IPPROTO_SCTP}, notify},
			{unix.SYS_SOCKET, [6]uint64{unix.AF_INET, unix.SOCK_RAW, unix.IPPROTO_ICMP}, notify},
			{unix.SYS_SOCKET, [6]uint64{unix.AF_NETLINK, unix.SOCK_RAW, unix.NETLINK_ROUTE}, verdictAllow},
			{unix.SYS_SOCKET, [6]uint64{unix.AF_NETLINK, unix.SOCK_RAW, unix.NETLINK_SOCK_DIAG}, notify},
			{unix.SYS_SOCKET, [6]uint64{unix.AF_VSOCK, unix.SOCK_STREAM}, notify},
			{unix.SYS_SOCKET, [6]uint64{unix.AF_UNIX, unix.SOCK_STREAM}, ifUnix(unixSockets)},
			{unix.SYS_SOCKETPAIR, [6]uint64{unix.AF_UNIX, unix.SOCK_STREAM}, verdictAllow},
			{unix.SYS_SOCKETPAIR, [6]uint64{unix.AF_UNIX, unix.SOCK_DGRAM}, ifUnix(unixSockets)},
			{unix.SYS_SOCKETPAIR, [6]uint64{unix.AF_INET, unix.SOCK_STREAM}, notify},
		} {
			verdict, _, err := evaluate(p, &call{number: want.number, arch: NativeArch, args: want.args})
			if err != nil || verdict != want.verdict {
				t.Errorf("call %d with %x: got verdict %#x, error %v, want %#x", want.number, want.args, verdict, err, want.verdict)
			}
		}
	})
}

// BenchmarkFilter times a system call without a filter, with one that allows
// everything, which is the kernel's own part, and with the plugin's: getppid is
// allowed constantly, an ioctl by its arguments.
func BenchmarkFilter(b *testing.B) {
	filters := []struct {
		name   string
		filter []unix.SockFilter
	}{
		{"none", nil},
		{"allow everything", []unix.SockFilter{{Code: unix.BPF_RET | unix.BPF_K, K: verdictAllow}}},
		{"allow everything by an argument", []unix.SockFilter{
			{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: offsetArgs}, {Code: unix.BPF_RET | unix.BPF_K, K: verdictAllow},
		}},
		{"plugin", filter(true, true)},
	}
	calls := map[string][4]uintptr{
		"getppid": {unix.SYS_GETPPID}, "ioctl": {unix.SYS_IOCTL, ^uintptr(0), unix.TIOCINQ},
	}
	for name, c := range calls {
		for _, f := range filters {
			b.Run(name+"/"+f.name, func(b *testing.B) { benchmarkFilter(b, f.filter, c) })
		}
	}
}

// benchmarkFilter makes a call under a filter, on a thread that ends with it.
func benchmarkFilter(b *testing.B, p []unix.SockFilter, c [4]uintptr) {
	err := onThread(func() error {
		if p != nil {
			if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
				return err
			}
			if err := installFilterUnreported(p); err != nil {
				return err
			}
		}
		for b.Loop() {
			_, _, _ = unix.RawSyscall(c[0], c[1], c[2], c[3])
		}
		return nil
	})
	if err != nil {
		b.Error(err)
	}
}
