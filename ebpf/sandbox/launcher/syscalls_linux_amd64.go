package launcher

import "golang.org/x/sys/unix"

// NativeArch is what the kernel calls this architecture in seccomp and audit
// (include/uapi/linux/audit.h).
const NativeArch = unix.AUDIT_ARCH_X86_64

// ForeignNumber is the bit that marks a call of the x32 ABI, which shares the
// architecture's name (arch/x86/include/uapi/asm/unistd.h).
const ForeignNumber = 0x40000000

// refusedCallsOfArch add to [RefusedCalls] what only this architecture has:
// segment descriptors of a process's own making, and the loader of a binary
// format that is gone.
func refusedCallsOfArch() map[uint32]string {
	return map[uint32]string{unix.SYS_MODIFY_LDT: "modify_ldt", unix.SYS_USELIB: "uselib"}
}
