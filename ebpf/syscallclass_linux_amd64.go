package ebpf

import "golang.org/x/sys/unix"

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

// forkCallsOfArch are the calls beside clone that return twice.
func forkCallsOfArch() []int { return []int{unix.SYS_FORK, unix.SYS_VFORK} }
