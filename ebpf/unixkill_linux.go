package ebpf

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/cilium/ebpf/link"
	"go.uber.org/zap"
	"golang.org/x/sys/unix"

	"github.com/chaperone-proxy/chaperone/ebpf/sandbox"
)

// freezeTimeout bounds how long the plugin may take to stand still. One that
// waits for a disk is looked at as it moves.
const freezeTimeout = time.Second

// maxUnowned is at how many looks in a row, a second apart, a connection to a
// name that was removed may have no holder.
const maxUnowned = 2

// endUnixConnections ends what the plugin has connected to names that were removed,
// and returns those names to which something is connected nevertheless. The
// plugin stands still in between, so that nothing passes from a process not yet
// looked at to one that was. The caller holds c.mu.
func (c *Confinement) endUnixConnections() (left []string, err error) {
	if left, err = c.connected(); err != nil || len(left) == 0 {
		return nil, err
	}
	err = c.group.Freeze(true)
	if err == nil {
		err = errors.Join(c.group.AwaitFrozen(freezeTimeout), c.shutdownInEach())
		held := c.frozenByLimit || atomic.LoadUint32(&c.programs.limits.enforcement.Frozen) != 0
		err = errors.Join(err, c.group.Freeze(held))
	}
	if err == nil {
		left, err = c.connected()
	}
	if err != nil {
		return nil, fmt.Errorf("cut connections to %s: %w", c.allowlist.removed, err)
	}
	return left, nil
}

// recheckUnixConnections looks again for connections to names that were removed. The caller
// holds c.mu.
func (c *Confinement) recheckUnixConnections() {
	left, err := c.endUnixConnections()
	if err != nil {
		c.config.Logger.Error("Unix connection revocation failed", zap.Error(err))
		return
	}
	if len(left) == 0 {
		c.allowlist.unowned = 0
		return
	}
	if c.allowlist.unowned++; c.allowlist.unowned < maxUnowned {
		return
	}
	if err := c.group.BeginKill(); err != nil {
		c.config.Logger.Error("plugin kill after failed Unix connection revocation failed", zap.Error(err))
	}
	atomic.AddUint64(&c.programs.shared.tally.Ended, 1)
	select {
	case c.denials <- sandbox.Denial{Time: time.Now(), Hook: sandbox.HookDescriptor, Cause: sandbox.CausePolicy, Family: "unix", Path: left[0], Count: 1}:
	default:
		c.droppedDenials.Add(1)
	}
}

// connected are the names removed to which a socket of the plugin's is
// connected, wherever it is.
func (c *Confinement) connected() (names []string, err error) {
	if len(c.allowlist.removed) == 0 {
		return nil, nil
	}
	list := func() error {
		l, err := link.AttachIter(link.IterOptions{Program: c.programs.scan.Programs["list_unix"]})
		if err != nil {
			return err
		}
		defer func() { _ = l.Close() }()
		walk, err := l.Open()
		if err != nil {
			return err
		}
		defer func() { _ = walk.Close() }()
		for lines := bufio.NewReader(walk); ; {
			var one socketscanConnected
			err := binary.Read(lines, binary.NativeEndian, &one)
			if errors.Is(err, io.EOF) {
				return nil
			}
			if err != nil {
				return err
			}
			name := unixPath(one.Name[:min(int(one.Length), len(one.Name))])
			if slices.Contains(c.allowlist.removed, name) && !slices.Contains(names, name) {
				names = append(names, name)
			}
		}
	}
	if err := c.network.Do(list); err != nil {
		return nil, fmt.Errorf("list connections to Unix sockets: %w", err)
	}
	return names, nil
}

// shutdownInEach looks at every thread: one can have a table of its own, or outlive the
// first of its process.
func (c *Confinement) shutdownInEach() error {
	pids, err := appendPIDs(nil, filepath.Join(c.group.Path, "cgroup.procs"))
	if err != nil {
		return err
	}
	for _, pid := range pids {
		threads, err := os.ReadDir(fmt.Sprintf("/proc/%d/task", pid))
		if err != nil && !isGone(err) {
			return err
		}
		for _, thread := range threads {
			tid, err := strconv.Atoi(thread.Name())
			if err == nil {
				err = shutdownUnixSockets(pid, tid, c.allowlist.removed)
			}
			if err != nil && !isGone(err) {
				return err
			}
		}
	}
	return nil
}

// isGone reports whether an error means that a process or a descriptor is gone, and
// thus holds no connection.
func isGone(err error) bool { return errors.Is(err, unix.ESRCH) || errors.Is(err, unix.ENOENT) }

func shutdownUnixSockets(pid, tid int, names []string) error {
	handle, err := unix.PidfdOpen(tid, unix.O_EXCL) // PIDFD_THREAD, since Linux 6.9
	if errors.Is(err, unix.EINVAL) && tid == pid {
		handle, err = unix.PidfdOpen(pid, 0)
	}
	if errors.Is(err, unix.EINVAL) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("open process %d: %w", pid, err)
	}
	defer func() { _ = unix.Close(handle) }()
	dir := fmt.Sprintf("/proc/%d/task/%d/fd", pid, tid)
	entries, err := os.ReadDir(dir)
	if err != nil {
		return fmt.Errorf("list descriptors: %w", err)
	}
	for _, entry := range entries {
		number, err := strconv.Atoi(entry.Name())
		if to, gone := os.Readlink(filepath.Join(dir, entry.Name())); err != nil || gone != nil || !strings.HasPrefix(to, "socket:") {
			continue
		}
		fd, err := unix.PidfdGetfd(handle, number, 0)
		if errors.Is(err, unix.EBADF) {
			continue // closed since
		}
		if err != nil {
			return fmt.Errorf("look at a socket of process %d: %w", pid, err)
		}
		if peer, err := unix.Getpeername(fd); err == nil {
			if name, ok := peer.(*unix.SockaddrUnix); ok && slices.Contains(names, name.Name) {
				_ = unix.Shutdown(fd, unix.SHUT_RDWR) // an error: it has ended already
			}
		}
		_ = unix.Close(fd)
	}
	return nil
}
