package ebpf

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/cilium/ebpf"
	"go.uber.org/zap"
	"golang.org/x/sys/unix"

	"github.com/chaperone-proxy/chaperone/ebpf/sandbox"
	"github.com/chaperone-proxy/chaperone/ebpf/sandbox/launcher"
)

// socketLease is how long a name is allowed after it was last found good:
// long enough for one look at it to be late, and no longer.
const socketLease = 3 * checkInterval

// maxSocketPath is the longest path that every program can ask for: 108 bytes
// with the zero that ends it (unix(7)).
const maxSocketPath = 107

// MaxSockets is how many Unix sockets [Confinement.AllowSockets] may name.
const MaxSockets = 256

// allowlist is the last list that [Confinement.AllowSockets] was given.
type allowlist struct {
	wanted  []string
	refused map[string]error // those of them that are not allowed, and why
	removed []string         // those that were removed, for what is still connected to them
	unowned int              // looks in a row at which such a connection was in no process's table
}

// AllowSockets lets the plugin use the Unix sockets named, and no others; none takes
// them all away. Its connections to a socket that is no longer named are ended, if the
// server bound its socket under that very name.
//
// The kernel's hook sees the name that a program gives, byte for byte, and not
// the socket that it resolves to. A path is therefore allowed only as long as
// it resolves to itself: absolute, without links, dots and empty parts, and
// through directories that only root and the sidecar's user can change,
// which rules out /tmp. A name that starts with @ is abstract; those of the host
// can be reached with [Config.HostNetwork] only, and anybody there can take one
// whose owner is away. The sidecar's own sockets are never allowed.
//
// Each name that cannot be trusted is in the error, with the reason, and the
// others are allowed nevertheless. [Confinement.Run] looks at all of them again
// every few seconds: one that can be trusted by then is allowed, one that no
// longer can is removed and reported with [CauseUntrusted]. Without Run, and
// when the sidecar ends, all are refused after a quarter of a minute. Each use
// is reported with [CauseAllowed].
//
// On a cgroup that was given ([Config.CgroupPath]) nothing can be allowed: its
// processes may see other files under the same names. Nor can it be on a kernel
// without the hooks ([Info.UnixHooks]), nor with [Info.SameUser].
func (c *Confinement) AllowSockets(paths []string) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return fmt.Errorf("allow sockets: %w", os.ErrClosed)
	}
	if err := c.mayAllow(paths); err != nil {
		return errors.Join(fmt.Errorf("allow sockets: %w", err), c.allow(nil))
	}
	if err := c.allow(paths); err != nil {
		return fmt.Errorf("allow sockets: %w", err)
	}
	return nil
}

func (c *Confinement) mayAllow(paths []string) error {
	switch {
	case len(paths) == 0:
		return nil
	case len(paths) > MaxSockets:
		return fmt.Errorf("%d names, at most %d are possible", len(paths), MaxSockets)
	case c.programs.unix == nil:
		return errors.New("the kernel has no hooks for Unix sockets (Linux 6.7), so that they cannot be allowed one by one")
	case !c.group.Own:
		return errors.New("the plugin was not started by Chaperone, and may see other files under the same names")
	case c.user.Same:
		return errors.New("the plugin runs as root or as the sidecar's user, and could turn any name elsewhere")
	}
	return nil
}

// allow replaces the names. The caller holds c.mu.
func (c *Confinement) allow(paths []string) error {
	if c.programs.unix == nil {
		return nil
	}
	for _, path := range c.allowlist.wanted {
		if !slices.Contains(paths, path) {
			if err := c.setSocket(path, false); err != nil {
				return err
			}
			c.allowlist.removed = append(c.allowlist.removed, path)
		}
	}
	c.allowlist.removed = slices.DeleteFunc(c.allowlist.removed, func(name string) bool { return slices.Contains(paths, name) })
	c.allowlist.unowned = 0
	c.allowlist.wanted = slices.Clone(paths)
	doubts, err := c.checkAllowlist()
	c.allowlist.refused = doubts
	_, cut := c.endUnixConnections()
	err = errors.Join(err, cut)
	for _, path := range paths {
		err = errors.Join(err, doubts[path])
	}
	return err
}

// recheckAllowlist judges the names again.
func (c *Confinement) recheckAllowlist() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed || c.programs.unix == nil {
		return
	}
	c.recheckUnixConnections()
	before := c.allowlist.refused
	doubts, err := c.checkAllowlist()
	if err != nil {
		// Entries that are not renewed expire.
		c.config.Logger.Error("Unix socket allowlist check failed", zap.Error(err))
	}
	c.allowlist.refused = doubts
	for _, path := range c.allowlist.wanted {
		doubt := doubts[path]
		switch {
		case doubt != nil && before[path] == nil:
			c.config.Logger.Warn("Unix socket no longer allowed", zap.Error(doubt))
			select {
			case c.denials <- sandbox.Denial{Time: time.Now(), Hook: sandbox.HookConnectUnix, Cause: sandbox.CauseUntrusted, Family: "unix", Path: path, Count: 1}:
			default:
				c.droppedDenials.Add(1)
			}
		case doubt == nil && before[path] != nil:
			c.config.Logger.Info("Unix socket allowed", zap.String("socket", path))
		}
	}
}

// checkAllowlist allows or refuses each wanted name, and returns why it refuses one.
func (c *Confinement) checkAllowlist() (doubts map[string]error, err error) {
	doubts = make(map[string]error)
	private := c.private()
	for _, path := range c.allowlist.wanted {
		doubt := c.trust(path, private)
		if doubt == nil {
			doubt = c.showSocket(path)
		}
		if doubt != nil {
			doubts[path] = fmt.Errorf("%s: %w", path, doubt)
		}
		err = errors.Join(err, c.setSocket(path, doubt == nil))
	}
	return doubts, err
}

// setSocket allows a name until the lease ends, or refuses it from now on.
func (c *Confinement) setSocket(path string, allowed bool) error {
	key := unixSocketName{Length: uint32(len(path))}
	if len(path) > len(key.Bytes) {
		return nil // never allowed
	}
	copy(key.Bytes[:], path)
	if path[:min(1, len(path))] == "@" {
		key.Bytes[0] = 0
	}
	m := c.programs.unix.Maps["sockets"]
	if !allowed {
		if err := m.Delete(key); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
			return fmt.Errorf("take away %s: %w", path, err)
		}
		return nil
	}
	var now unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &now); err != nil {
		return fmt.Errorf("read clock: %w", err)
	}
	if err := m.Put(key, uint64(now.Nano()+socketLease.Nanoseconds())); err != nil {
		return fmt.Errorf("let %s through: %w", path, err)
	}
	return nil
}

// trust returns why a name could resolve to another file; nil: it cannot.
func (c *Confinement) trust(path string, private []string) error {
	if name, ok := strings.CutPrefix(path, "@"); ok {
		switch {
		case c.own:
			return errors.New("the host's abstract sockets are not in the plugin's own network; process.network: host shares them")
		case name == "" || len(path) > maxSocketPath+1:
			return errors.New("an abstract name has 1 to 107 bytes")
		}
		return nil
	}
	switch {
	case !filepath.IsAbs(path):
		return errors.New("it is not an absolute path")
	case filepath.Clean(path) != path || path == "/" || strings.IndexByte(path, 0) >= 0:
		return errors.New("it holds an empty part, a dot or a zero byte")
	case len(path) > maxSocketPath:
		return fmt.Errorf("it is longer than %d bytes", maxSocketPath)
	}
	for at, b := range []byte(path) {
		if b != '/' {
			continue
		}
		if err := c.stablePath(path[:max(at, 1)]); err != nil {
			return err
		}
	}
	if secret, ok := launcher.Overlaps(path, private); ok {
		return fmt.Errorf("%s is the sidecar's own", secret)
	}
	return trustSocket(path, private)
}

// trustSocket judges what stands at the end of a path. A missing file is accepted as
// well: a server that starts again makes it again, and only who may change the
// directory can.
func trustSocket(path string, private []string) error {
	info, err := os.Lstat(path)
	switch {
	case errors.Is(err, os.ErrNotExist):
		return nil
	case err != nil:
		return fmt.Errorf("inspect: %w", err)
	case info.Mode()&os.ModeSymlink != 0:
		return fmt.Errorf("it is a link; name its target: %s", resolveTarget(path))
	case info.Mode()&os.ModeSocket == 0:
		return errors.New("it is not a socket")
	}
	for _, secret := range private {
		if other, err := os.Stat(secret); err == nil && os.SameFile(info, other) {
			return fmt.Errorf("it is %s, which is the sidecar's own", secret)
		}
	}
	return nil
}

// stablePath returns who else could change what is in a directory; nil: only root
// and the sidecar's user can.
func (c *Confinement) stablePath(dir string) error {
	var stat unix.Stat_t
	if err := unix.Lstat(dir, &stat); err != nil {
		return fmt.Errorf("inspect %s: %w", dir, err)
	}
	uid := int(stat.Uid)
	switch {
	case stat.Mode&unix.S_IFMT == unix.S_IFLNK:
		return fmt.Errorf("%s is a link; name its target: %s", dir, resolveTarget(dir))
	case stat.Mode&unix.S_IFMT != unix.S_IFDIR:
		return fmt.Errorf("%s is not a directory", dir)
	case uid != 0 && uid != os.Geteuid() || uid == c.user.UID:
		return fmt.Errorf("%s belongs to uid %d, which could put another socket in its place", dir, uid)
	case stat.Mode&0o022 != 0:
		return fmt.Errorf("%s can be changed by others than its owner (mode %04o)", dir, stat.Mode&0o7777)
	}
	// The mode does not say what a list permits.
	if _, err := unix.Lgetxattr(dir, "system.posix_acl_access", nil); err == nil {
		return fmt.Errorf("%s has an access control list", dir)
	} else if !errors.Is(err, unix.ENODATA) && !errors.Is(err, unix.ENOTSUP) {
		return fmt.Errorf("inspect the access control list of %s: %w", dir, err)
	}
	return nil
}

// resolveTarget is where a link leads in the end, for a message.
func resolveTarget(link string) string {
	path, err := filepath.EvalSymlinks(link)
	if err != nil {
		return "nothing"
	}
	return path
}
