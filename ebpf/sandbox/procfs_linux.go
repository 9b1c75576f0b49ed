package sandbox

import (
	"os"
	"strconv"
	"strings"
)

// Executable returns the path of a process's program, "" when it has none any more or
// when it may not be read. The id is one of the sidecar's PID namespace; 0 is
// nobody's.
func Executable(pid uint32) string {
	if pid == 0 {
		return ""
	}
	path, err := os.Readlink("/proc/" + strconv.FormatUint(uint64(pid), 10) + "/exe")
	if err != nil {
		return ""
	}
	return path
}

// processOf returns the process of a thread, by their ids; the thread itself
// when it is gone.
func processOf(thread uint32) uint32 {
	status, err := os.ReadFile("/proc/" + strconv.FormatUint(uint64(thread), 10) + "/status")
	if err != nil {
		return thread
	}
	for line := range strings.Lines(string(status)) {
		if id, ok := strings.CutPrefix(line, "Tgid:"); ok {
			if n, err := strconv.ParseUint(strings.TrimSpace(id), 10, 32); err == nil {
				return uint32(n)
			}
		}
	}
	return thread
}
