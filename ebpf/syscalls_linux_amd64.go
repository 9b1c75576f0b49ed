package ebpf

import "golang.org/x/sys/unix"

// nativeArch is what the kernel calls this architecture in seccomp and audit
// (include/uapi/linux/audit.h).
const nativeArch = unix.AUDIT_ARCH_X86_64

// foreignNumber is the bit that marks a call of the x32 ABI, which shares the
// architecture's name (arch/x86/include/uapi/asm/unistd.h).
const foreignNumber = 0x40000000

// fileCallsOfArch are the older calls that newer architectures lack.
func fileCallsOfArch() []int {
	return []int{
		unix.SYS_OPEN, unix.SYS_CREAT, unix.SYS_STAT, unix.SYS_LSTAT, unix.SYS_NEWFSTATAT, unix.SYS_ACCESS,
		unix.SYS_GETDENTS, unix.SYS_MKDIR, unix.SYS_RMDIR, unix.SYS_UNLINK, unix.SYS_SYMLINK, unix.SYS_LINK,
		unix.SYS_RENAME, unix.SYS_RENAMEAT, unix.SYS_READLINK, unix.SYS_CHMOD, unix.SYS_CHOWN, unix.SYS_LCHOWN,
		unix.SYS_UTIME, unix.SYS_UTIMES, unix.SYS_FUTIMESAT, unix.SYS_DUP2, unix.SYS_MKNOD,
		unix.SYS_INOTIFY_INIT,
	}
}

func processCallsOfArch() []int {
	return []int{unix.SYS_FORK, unix.SYS_VFORK, unix.SYS_GETPGRP, unix.SYS_GETRLIMIT, unix.SYS_SETRLIMIT, unix.SYS_ARCH_PRCTL}
}

func ipcCallsOfArch() []int {
	return []int{unix.SYS_PIPE, unix.SYS_EVENTFD, unix.SYS_SIGNALFD}
}

// refusedCallsOfArch add to [refusedCalls] what only this architecture has:
// segment descriptors of a process's own making, and the loader of a binary
// format that is gone.
func refusedCallsOfArch() map[uint32]string {
	return map[uint32]string{unix.SYS_MODIFY_LDT: "modify_ldt", unix.SYS_USELIB: "uselib"}
}

// forkCallsOfArch are the calls beside clone that return twice.
func forkCallsOfArch() []int { return []int{unix.SYS_FORK, unix.SYS_VFORK} }
