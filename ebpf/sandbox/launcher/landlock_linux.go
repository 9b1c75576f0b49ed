package launcher

import (
	"debug/elf"
	"errors"
	"fmt"
	"io"
	"os"
	slash "path"
	"runtime"
	"slices"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Landlock ABI versions (Documentation/userspace-api/landlock.rst).
const (
	LandlockRefer    = 2 // Linux 5.19: links and renames between directories can be allowed
	landlockTruncate = 3 // Linux 6.2: truncation can be forbidden
	landlockDevices  = 5 // Linux 6.10: ioctl on devices can be forbidden
	landlockScope    = 6 // Linux 6.12: signals and abstract sockets can be kept inside
)

// Rights below a path.
const (
	rightsOfFile = unix.LANDLOCK_ACCESS_FS_EXECUTE | unix.LANDLOCK_ACCESS_FS_READ_FILE | unix.LANDLOCK_ACCESS_FS_WRITE_FILE |
		unix.LANDLOCK_ACCESS_FS_TRUNCATE | unix.LANDLOCK_ACCESS_FS_IOCTL_DEV

	rightsToRead = unix.LANDLOCK_ACCESS_FS_EXECUTE | unix.LANDLOCK_ACCESS_FS_READ_FILE | unix.LANDLOCK_ACCESS_FS_READ_DIR

	rightsToWrite = rightsToRead | unix.LANDLOCK_ACCESS_FS_WRITE_FILE | unix.LANDLOCK_ACCESS_FS_TRUNCATE |
		unix.LANDLOCK_ACCESS_FS_REMOVE_DIR | unix.LANDLOCK_ACCESS_FS_REMOVE_FILE | unix.LANDLOCK_ACCESS_FS_REFER |
		unix.LANDLOCK_ACCESS_FS_MAKE_DIR | unix.LANDLOCK_ACCESS_FS_MAKE_REG | unix.LANDLOCK_ACCESS_FS_MAKE_SYM |
		unix.LANDLOCK_ACCESS_FS_MAKE_SOCK | unix.LANDLOCK_ACCESS_FS_MAKE_FIFO

	rightsToUse = unix.LANDLOCK_ACCESS_FS_READ_FILE | unix.LANDLOCK_ACCESS_FS_WRITE_FILE | unix.LANDLOCK_ACCESS_FS_IOCTL_DEV

	// The rights of version 3, without those that every rule needs.
	rightsHandled = rightsToWrite | unix.LANDLOCK_ACCESS_FS_MAKE_CHAR | unix.LANDLOCK_ACCESS_FS_MAKE_BLOCK
)

// LandlockVersion is the kernel's ABI version; 0 when there is no Landlock.
func LandlockVersion() int {
	version, _, errno := unix.Syscall(unix.SYS_LANDLOCK_CREATE_RULESET, 0, 0, unix.LANDLOCK_CREATE_RULESET_VERSION)
	if errno != 0 {
		return 0
	}
	return int(version)
}

// SupportsScope reports whether a Landlock domain keeps the plugin from other
// processes here. The first version cannot allow renames between
// directories, which programs need.
func SupportsScope() bool { return LandlockVersion() >= LandlockRefer }

// FilesSupported reports why [Command.Files] cannot be enforced here; nil: it can.
func FilesSupported() error {
	if version := LandlockVersion(); version < landlockTruncate {
		return fmt.Errorf("the kernel has version %d of Landlock, and version %d is needed", version, landlockTruncate)
	}
	return nil
}

// Ruleset is a Landlock Ruleset in the making.
type Ruleset struct {
	File    *os.File
	Handled uint64 // the rights that the rules handle
}

// NewRuleset makes the rules for a plugin, in the sidecar, so that what cannot be
// granted is known before anything starts. Without files they forbid none; what
// matters then is what a domain brings with it: a process in one cannot trace
// those outside, and so cannot write its /proc/PID/mem or read its environment
// either, which seccomp does not see. Newer kernels also keep signals inside, and
// connections to abstract sockets unless configured otherwise. It counts where the
// plugin's user has other processes: under sudo, with a named user, as root.
//
// Without files, and on a kernel without such domains, there are no rules: nil.
func NewRuleset(files *Files, abstract bool, private []string) (*Ruleset, error) {
	version := LandlockVersion()
	switch {
	case files != nil && version < landlockTruncate:
		return nil, fmt.Errorf("limit files: the kernel has version %d of Landlock, and version %d is needed (Linux 6.2, with landlock among the active security modules: boot parameter lsm=)",
			version, landlockTruncate)
	case version < LandlockRefer:
		return nil, nil //nolint:nilnil // no rules, as described
	}
	attr := unix.LandlockRulesetAttr{Handled_access_fs: unix.LANDLOCK_ACCESS_FS_MAKE_BLOCK | unix.LANDLOCK_ACCESS_FS_REFER}
	if files != nil {
		attr.Handled_access_fs = rightsHandled
		if version >= landlockDevices {
			attr.Handled_access_fs |= unix.LANDLOCK_ACCESS_FS_IOCTL_DEV
		}
	}
	size := unsafe.Offsetof(attr.Handled_access_net) // the size in the oldest version
	if version >= landlockScope {
		attr.Scoped = unix.LANDLOCK_SCOPE_SIGNAL
		if !abstract {
			attr.Scoped |= unix.LANDLOCK_SCOPE_ABSTRACT_UNIX_SOCKET
		}
		size = unsafe.Offsetof(attr.Quiet_access_fs)
	}
	fd, _, errno := unix.Syscall(unix.SYS_LANDLOCK_CREATE_RULESET, uintptr(unsafe.Pointer(&attr)), size, 0) //nolint:gosec // struct landlock_ruleset_attr
	if errno != 0 {
		return nil, fmt.Errorf("make landlock rules: %w", errno)
	}
	r := &Ruleset{File: os.NewFile(fd, "landlock rules"), Handled: attr.Handled_access_fs}
	var err error
	if files == nil {
		err = r.allow("/", r.Handled, nil) // a domain has to handle some access
	} else {
		err = r.allowFiles(files, private)
	}
	if err != nil {
		return nil, errors.Join(err, r.Close())
	}
	return r, nil
}

func (r *Ruleset) allowFiles(files *Files, private []string) error {
	for _, path := range basePaths() {
		if err := r.allow(path, rightsToRead, private); err != nil && !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("limit files: what every program needs: %w", err)
		}
	}
	for _, path := range baseDevices() {
		if err := r.allow(path, rightsToUse, private); err != nil && !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("limit files: what every program needs: %w", err)
		}
	}
	writable := ResolveLinks(files.Write)
	for _, path := range files.Read {
		if err := errors.Join(crossesWritableLink(path, writable), r.allow(path, rightsToRead, private)); err != nil {
			return fmt.Errorf("limit files: read: %w", err)
		}
	}
	for _, path := range files.Write {
		if err := errors.Join(crossesWritableLink(path, writable), r.allow(path, rightsToWrite|rightsToUse, private)); err != nil {
			return fmt.Errorf("limit files: write: %w", err)
		}
	}
	return nil
}

// crossesWritableLink reports a path through a symbolic link in a directory which the
// plugin may write: an earlier run could have put it there, to be given its
// target.
func crossesWritableLink(path string, writable []string) error {
	at, links := "/", 0
	split := func(path string) []string {
		return strings.FieldsFunc(path, func(r rune) bool { return r == '/' })
	}
	for rest := split(slash.Clean(path)); len(rest) > 0; {
		name := rest[0]
		rest = rest[1:]
		if name == ".." {
			at = slash.Dir(at)
			continue
		}
		next := slash.Join(at, name)
		target, err := os.Readlink(next)
		if err != nil { // no link, or nothing: the caller opens it
			at = next
			continue
		}
		for _, dir := range writable {
			if dir != "/" && beneath(at, dir) {
				return fmt.Errorf("%s passes the link %s, which the plugin may change; name the link's target", path, next)
			}
		}
		if links++; links > maxLinks {
			return fmt.Errorf("%s: %w", path, unix.ELOOP)
		}
		if slash.IsAbs(target) {
			at = "/"
		}
		rest = append(slices.DeleteFunc(split(target), func(name string) bool { return name == "." }), rest...)
	}
	return nil
}

// maxLinks bounds the symbolic links of one path, as the kernel does (path_resolution(7)).
const maxLinks = 40

// basePaths are what programs and their libraries read to start, to resolve
// names and to check certificates. Those that a system lacks are left out.
func basePaths() []string {
	paths := []string{
		"/usr", "/lib", "/lib32", "/lib64", "/libx32", "/bin", "/sbin",
		"/etc/ld.so.cache", "/etc/ld.so.conf", "/etc/ld.so.conf.d", "/etc/ld.so.preload",
		"/etc/ld-musl-x86_64.path", "/etc/ld-musl-aarch64.path",
		"/etc/ssl", "/etc/pki", "/etc/ca-certificates", "/etc/crypto-policies",
		"/etc/resolv.conf", "/etc/nsswitch.conf", "/etc/hosts", "/etc/host.conf", "/etc/gai.conf",
		"/etc/protocols", "/etc/services", "/etc/mime.types",
		"/etc/passwd", "/etc/group", "/etc/localtime", "/etc/timezone", "/etc/locale.alias",
		"/proc/cpuinfo", "/proc/meminfo", "/proc/stat", "/proc/uptime", "/proc/loadavg", "/proc/version",
		"/proc/filesystems", "/proc/sys", "/sys/devices/system/cpu", "/sys/kernel/mm/transparent_hugepage",
	}
	// Debian keeps the configuration of its Java below /etc.
	entries, err := os.ReadDir("/etc")
	if err != nil {
		return paths
	}
	for _, entry := range entries {
		if strings.HasPrefix(entry.Name(), "java-") {
			paths = append(paths, "/etc/"+entry.Name())
		}
	}
	return paths
}

// viewPaths are what a program may read of its view beside the base paths: all
// of it is its own.
func viewPaths() []string {
	return existing("/proc", "/run", "/etc/gitconfig", "/etc/gai.conf")
}

// viewWritable are the directories and terminals that are the program's own.
func viewWritable(env []string) []string {
	paths := existing("/tmp", "/var/tmp", "/dev/shm", "/dev/mqueue", "/dev/pts", "/dev/ptmx")
	for _, entry := range env {
		name, value, _ := strings.Cut(entry, "=")
		home := name == "HOME" && strings.HasPrefix(value, HomeRoot+"/")
		if home || name == "XDG_RUNTIME_DIR" && strings.HasPrefix(value, RuntimeRoot+"/") {
			paths = append(paths, existing(value)...)
		}
	}
	return paths
}

func existing(paths ...string) []string {
	return slices.DeleteFunc(paths, func(path string) bool { return !exists(path) })
}

// baseDevices may be read and written. /dev/tty is the terminal that the plugin
// was started on, if any.
func baseDevices() []string {
	return []string{"/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom", "/dev/tty"}
}

// allow lets a path and what is below it be used, unless something private is
// there.
func (r *Ruleset) allow(path string, rights uint64, private []string) error {
	if !slash.IsAbs(path) {
		return fmt.Errorf("%q is not an absolute path", path)
	}
	fd, err := unix.Open(path, unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	defer func() { _ = unix.Close(fd) }()
	// The name of what was opened, links and all resolved: what the rule is for.
	name, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", fd))
	if err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	if secret, ok := Overlaps(name, private); ok {
		return fmt.Errorf("%s would open %s, which no plugin may read", path, secret)
	}
	return r.add(fd, rights)
}

func (r *Ruleset) add(fd int, rights uint64) error {
	var stat unix.Stat_t
	if err := unix.Fstat(fd, &stat); err != nil {
		return fmt.Errorf("add landlock rule: %w", err)
	}
	if stat.Mode&unix.S_IFMT != unix.S_IFDIR {
		rights &= rightsOfFile
	}
	rule := unix.LandlockPathBeneathAttr{Allowed_access: rights & r.Handled, Parent_fd: int32(fd)}
	_, _, errno := unix.Syscall6(unix.SYS_LANDLOCK_ADD_RULE, r.File.Fd(), unix.LANDLOCK_RULE_PATH_BENEATH,
		uintptr(unsafe.Pointer(&rule)), 0, 0, 0) //nolint:gosec // struct landlock_path_beneath_attr
	runtime.KeepAlive(&rule)
	if errno != 0 {
		return fmt.Errorf("add landlock rule: %w", errno)
	}
	return nil
}

// enter puts the calling thread under the rules, permanently.
func (r *Ruleset) enter() error {
	if _, _, errno := unix.Syscall(unix.SYS_LANDLOCK_RESTRICT_SELF, r.File.Fd(), 0, 0); errno != 0 {
		return fmt.Errorf("enter landlock domain: %w", errno)
	}
	return nil
}

// Close closes the file of the rules. A nil Ruleset has none.
func (r *Ruleset) Close() error {
	if r == nil {
		return nil
	}
	if err := r.File.Close(); err != nil {
		return fmt.Errorf("close landlock rules: %w", err)
	}
	return nil
}

// Overlaps reports whether a path is, holds or lies in one of the private ones.
func Overlaps(path string, private []string) (secret string, ok bool) {
	for _, secret := range private {
		if beneath(path, secret) || beneath(secret, path) {
			return secret, true
		}
	}
	return "", false
}

// beneath reports whether a path is a directory or lies in it.
func beneath(path, dir string) bool {
	return path == dir || dir == "/" || strings.HasPrefix(path, dir+"/")
}

// ResolveLinks follows the links in paths. A path that does not exist yet is resolved as
// far as it exists.
func ResolveLinks(paths []string) []string {
	var targets []string
	for _, path := range paths {
		rest := ""
		for dir := slash.Clean(path); ; dir = slash.Dir(dir) {
			if target, err := resolve(dir); err == nil {
				targets = append(targets, slash.Join(target, rest))
				break
			}
			if dir == "/" || dir == "." {
				targets = append(targets, slash.Clean(path))
				break
			}
			rest = slash.Join(slash.Base(dir), rest)
		}
	}
	slices.Sort(targets)
	return slices.Compact(targets)
}

// maxInterpreters is how many interpreters the kernel follows from one program
// to the next (fs/exec.c, exec_binprm).
const maxInterpreters = 5

// allowProgram lets the process use what it is about to become: the program, the
// interpreter that its first line names, the loader that it asks for. It runs in the
// launcher, when that has no privileges left: the file is the plugin's, and reading it
// may fail in any way. A file that cannot be run is refused by exec.
func (r *Ruleset) allowProgram(path string, private []string, depth int) error {
	if executable := unix.Access(path, unix.X_OK) == nil; !executable || depth > maxInterpreters {
		return nil
	}
	absolute := path
	if !slash.IsAbs(path) {
		dir, err := os.Getwd()
		if err != nil {
			return fmt.Errorf("limit files: %w", err)
		}
		absolute = slash.Join(dir, path)
	}
	if err := r.allow(absolute, unix.LANDLOCK_ACCESS_FS_EXECUTE|unix.LANDLOCK_ACCESS_FS_READ_FILE, private); err != nil {
		return fmt.Errorf("limit files: the program: %w", err)
	}
	if next := interpreter(path); next != "" {
		return r.allowProgram(next, private, depth+1)
	}
	return nil
}

// interpreter is what the kernel loads to run a program: what stands behind #!
// in a script, the loader of a dynamic one. Empty: nothing, or not to be read.
func interpreter(path string) string {
	file, err := os.Open(path)
	if err != nil {
		return ""
	}
	defer func() { _ = file.Close() }()
	if info, err := file.Stat(); err != nil || !info.Mode().IsRegular() {
		return ""
	}
	head := make([]byte, 256) // BINPRM_BUF_SIZE, include/uapi/linux/binfmts.h
	n, err := io.ReadFull(file, head)
	if err != nil && !errors.Is(err, io.ErrUnexpectedEOF) {
		return ""
	}
	if line, ok := strings.CutPrefix(string(head[:n]), "#!"); ok {
		line, _, _ = strings.Cut(line, "\n")
		if fields := strings.Fields(line); len(fields) > 0 {
			return fields[0]
		}
		return ""
	}
	program, err := elf.NewFile(file)
	if err != nil {
		return ""
	}
	for _, part := range program.Progs {
		if part.Type == elf.PT_INTERP && part.Filesz < unix.PathMax {
			text := make([]byte, part.Filesz)
			if _, err := io.ReadFull(part.Open(), text); err != nil {
				return ""
			}
			return unix.ByteSliceToString(text)
		}
	}
	return ""
}

// checkUnreadable asks the kernel whether the calling thread, which is the
// plugin's user by now, may use one of the private paths. No reading of modes
// would know about access control lists.
func checkUnreadable(private []string) error {
	for _, path := range private {
		var stat unix.Stat_t
		if unix.Stat(path, &stat) != nil {
			continue // absent, or out of reach
		}
		modes, mend := []uint32{unix.R_OK, unix.W_OK}, "0600"
		if stat.Mode&unix.S_IFMT == unix.S_IFDIR {
			modes, mend = []uint32{unix.R_OK, unix.W_OK, unix.X_OK}, "0700"
		}
		for _, mode := range modes {
			if unix.Faccessat(unix.AT_FDCWD, path, mode, 0) == nil {
				return fmt.Errorf("the plugin's user may use %s, which is the sidecar's alone; mend it with: chmod %s %s", path, mend, path)
			}
		}
	}
	return nil
}
