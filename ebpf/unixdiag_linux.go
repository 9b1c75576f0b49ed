package ebpf

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// unixDiagInodeOffset is where struct unix_diag_msg has the socket's inode number.
const unixDiagInodeOffset = 4

// Bound returns which of some Unix sockets of the plugin's network still exist,
// by inode number.
func (c *Confinement) Bound(sockets []uint64) (map[uint64]bool, error) {
	var all map[uint64]bool
	err := c.network.Do(func() (err error) {
		if all, err = unixSockets(); err != nil { // CONFIG_UNIX_DIAG is not set
			all, err = unixSocketsByText()
		}
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("list Unix sockets: %w", err)
	}
	bound := make(map[uint64]bool, len(sockets))
	for _, socket := range sockets {
		bound[socket] = all[socket]
	}
	return bound, nil
}

// unixSockets lists the Unix sockets of the thread's network namespace.
func unixSockets() (map[uint64]bool, error) {
	fd, err := openDiag()
	if err != nil {
		return nil, err
	}
	query := make([]byte, unixDiagRequest)
	query[0] = unix.AF_UNIX
	binary.NativeEndian.PutUint32(query[4:], unixConnected|unixUnconnected)
	all := make(map[uint64]bool)
	err = dumpDiag(fd, make([]byte, 32<<10), query, func(body []byte) {
		if len(body) >= unixDiagAnswer {
			all[uint64(binary.NativeEndian.Uint32(body[unixDiagInodeOffset:]))] = true
		}
	})
	return all, errors.Join(err, unix.Close(fd))
}

// unixSocketsByText is unixSockets by a file that holds names as they are: a plugin
// can write lines of its own in one, and so have a socket of its own taken for there.
func unixSocketsByText() (map[uint64]bool, error) {
	file, err := os.Open("/proc/thread-self/net/unix")
	if err != nil {
		return nil, err
	}
	defer func() { _ = file.Close() }()
	all := make(map[uint64]bool)
	lines := bufio.NewScanner(file)
	for lines.Scan() {
		// Num RefCount Protocol Flags Type St Inode Path
		if fields := strings.Fields(lines.Text()); len(fields) > 6 {
			if inode, err := strconv.ParseUint(fields[6], 10, 64); err == nil {
				all[inode] = true
			}
		}
	}
	return all, lines.Err()
}
