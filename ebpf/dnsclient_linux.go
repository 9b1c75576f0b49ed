package ebpf

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/chaperone-proxy/chaperone/ebpf/sandbox"
	"github.com/chaperone-proxy/chaperone/internal/ratelimit"
)

// Bounds of a search for the process behind a datagram: what a plugin opens and how
// often it asks is its to choose.
const (
	lookupsPerSecond = 50
	maxLookedAt      = 512     // processes looked at
	maxDescriptors   = 16384   // of them together
	maxSocketsTable  = 1 << 20 // bytes read of /proc/PID/net/udp
)

// lookupLimit bounds how often processes are looked up.
type lookupLimit struct {
	mu     sync.Mutex
	bucket ratelimit.Bucket
}

// allow reports whether another look-up may be made.
func (l *lookupLimit) allow() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.bucket.Every, l.bucket.Burst = time.Second/lookupsPerSecond, time.Second
	return l.bucket.Take(time.Duration(clock())) == 0
}

// DNSClient returns the process of the plugin that holds the socket from which a
// datagram or a connection came to the resolver. It is for the record and proves
// nothing: the socket may have been passed on since. False: no process was found,
// or too many were searched for in this second.
func (c *Confinement) DNSClient(from net.Addr) (Peer, bool) {
	network, local := from.Network(), netip.AddrPort{}
	switch a := from.(type) {
	case *net.UDPAddr:
		local = a.AddrPort()
	case *net.TCPAddr:
		local = a.AddrPort()
	}
	if !local.IsValid() || !c.lookups.allow() {
		return Peer{}, false
	}
	pids, err := c.scan.pids()
	if err != nil {
		return Peer{}, false
	}
	pids = pids[:min(len(pids), maxLookedAt)]
	inode, uid, ok := socketAt(pids, network, local)
	if !ok {
		return Peer{}, false
	}
	pid, ok := holderOf(pids, "socket:["+inode+"]")
	if !ok {
		return Peer{}, false
	}
	return Peer{PID: pid, UID: uid, Exe: sandbox.Executable(pid)}, true
}

// socketAt returns the inode and the user of the socket at a local address, as the
// first of the processes that can be looked at sees its network (proc_pid_net(5)).
func socketAt(pids []int, network string, local netip.AddrPort) (inode string, uid uint32, ok bool) {
	for _, pid := range pids {
		found := false
		for _, table := range []string{network, network + "6"} {
			inode, uid, state := socketIn(fmt.Sprintf("/proc/%d/net/%s", pid, table), local)
			switch state {
			case socketFound:
				return inode, uid, true
			case tableRead:
				found = true
			case tableMissing:
			}
		}
		if found {
			return "", 0, false // the other processes see the same network
		}
	}
	return "", 0, false
}

// socketState is the result of looking for a socket in a table of /proc/net.
type socketState int

const (
	tableMissing socketState = iota
	tableRead
	socketFound
)

// socketIn looks for a local address in a table. A socket without an address of its
// own has the port alone.
func socketIn(path string, local netip.AddrPort) (inode string, uid uint32, state socketState) {
	f, err := os.Open(path)
	if err != nil {
		return "", 0, tableMissing
	}
	defer func() { _ = f.Close() }()
	const localField, uidField, inodeField = 1, 7, 9
	port := fmt.Sprintf(":%04X", local.Port())
	for scan := bufio.NewScanner(io.LimitReader(f, maxSocketsTable)); scan.Scan(); {
		fields := strings.Fields(scan.Text())
		if len(fields) <= inodeField || !strings.HasSuffix(fields[localField], port) || fields[inodeField] == "0" {
			continue
		}
		if n, err := strconv.ParseUint(fields[uidField], 10, 32); err == nil {
			return fields[inodeField], uint32(n), socketFound
		}
	}
	return "", 0, tableRead
}

// holderOf returns the first of the processes that holds a descriptor.
func holderOf(pids []int, link string) (uint32, bool) {
	seen := 0
	for _, pid := range pids {
		dir := fmt.Sprintf("/proc/%d/fd", pid)
		f, err := os.Open(dir)
		if err != nil {
			continue // it has ended, or may not be looked at
		}
		names, _ := f.Readdirnames(maxDescriptors) // the names that were read count
		_ = f.Close()
		for _, name := range names {
			if seen++; seen > maxDescriptors {
				return 0, false
			}
			if target, err := os.Readlink(filepath.Join(dir, name)); err == nil && target == link {
				return uint32(pid), true
			}
		}
	}
	return 0, false
}
