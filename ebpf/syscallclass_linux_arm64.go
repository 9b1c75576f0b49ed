package ebpf

import "golang.org/x/sys/unix"

func fileCallsOfArch() []int {
	return []int{unix.SYS_FSTATAT, unix.SYS_RENAMEAT}
}

func processCallsOfArch() []int {
	return []int{unix.SYS_GETRLIMIT, unix.SYS_SETRLIMIT}
}

func ipcCallsOfArch() []int { return nil }

func forkCallsOfArch() []int { return nil }
