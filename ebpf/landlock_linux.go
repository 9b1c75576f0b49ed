package ebpf

import (
	"fmt"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Landlock ABI versions (Documentation/userspace-api/landlock.rst).
const (
	landlockRefer = 2 // Linux 5.19: links and renames between directories can be allowed
	landlockScope = 6 // Linux 6.12: signals and abstract sockets can be kept inside
)

// landlockVersion is the kernel's ABI version; 0 when there is no Landlock.
func landlockVersion() int {
	version, _, errno := unix.Syscall(unix.SYS_LANDLOCK_CREATE_RULESET, 0, 0, unix.LANDLOCK_CREATE_RULESET_VERSION)
	if errno != 0 {
		return 0
	}
	return int(version)
}

// scoped reports whether [enterScope] has an effect here. The first version
// could not be told to allow renames between directories, which programs need.
func scoped() bool { return landlockVersion() >= landlockRefer }

// enterScope puts the calling thread into a Landlock domain, for good. The
// domain forbids no file; what matters is what a domain brings with it: whoever
// is in one cannot trace what is outside, and so cannot write its /proc/PID/mem
// or read its environment either, which seccomp does not see. Newer kernels also
// keep signals inside, and connections to abstract sockets. It counts where the
// plugin's user has other processes: under sudo, with a named user, as root.
func enterScope() error {
	version := landlockVersion()
	if version < landlockRefer {
		return nil
	}
	rules := unix.LandlockRulesetAttr{
		Handled_access_fs: unix.LANDLOCK_ACCESS_FS_MAKE_BLOCK | unix.LANDLOCK_ACCESS_FS_REFER,
	}
	size := unsafe.Offsetof(rules.Handled_access_net) // what the oldest version knows
	if version >= landlockScope {
		rules.Scoped = unix.LANDLOCK_SCOPE_ABSTRACT_UNIX_SOCKET | unix.LANDLOCK_SCOPE_SIGNAL
		size = unsafe.Offsetof(rules.Quiet_access_fs)
	}
	set, _, errno := unix.Syscall(unix.SYS_LANDLOCK_CREATE_RULESET, uintptr(unsafe.Pointer(&rules)), size, 0) //nolint:gosec // struct landlock_ruleset_attr
	if errno != 0 {
		return fmt.Errorf("make landlock rules: %w", errno)
	}
	defer func() { _ = unix.Close(int(set)) }()
	root, err := unix.Open("/", unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("make landlock rules: %w", err)
	}
	defer func() { _ = unix.Close(root) }()
	// A domain has to handle some access; both are allowed everywhere again.
	rule := unix.LandlockPathBeneathAttr{Allowed_access: rules.Handled_access_fs, Parent_fd: int32(root)}
	_, _, errno = unix.Syscall6(unix.SYS_LANDLOCK_ADD_RULE, set, unix.LANDLOCK_RULE_PATH_BENEATH,
		uintptr(unsafe.Pointer(&rule)), 0, 0, 0) //nolint:gosec // struct landlock_path_beneath_attr
	runtime.KeepAlive(&rule)
	if errno != 0 {
		return fmt.Errorf("make landlock rules: %w", errno)
	}
	if _, _, errno = unix.Syscall(unix.SYS_LANDLOCK_RESTRICT_SELF, set, 0, 0); errno != 0 {
		return fmt.Errorf("enter landlock domain: %w", errno)
	}
	return nil
}
