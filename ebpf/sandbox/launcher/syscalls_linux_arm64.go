package launcher

import "golang.org/x/sys/unix"

// NativeArch is what the kernel calls this architecture in seccomp and audit
// (include/uapi/linux/audit.h).
const NativeArch = unix.AUDIT_ARCH_AARCH64

// ForeignNumber is a bit that no call of this architecture has.
const ForeignNumber = 0x40000000

func refusedCallsOfArch() map[uint32]string { return map[uint32]string{} }
