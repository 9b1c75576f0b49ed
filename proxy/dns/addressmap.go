package dns

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"

	"github.com/chaperone-proxy/chaperone/internal/atomicfile"
)

// maxNamesPerPattern bounds the names that one wildcard pattern, or observing,
// gives addresses to. Beyond it the answer is NXDOMAIN.
const maxNamesPerPattern = 4096

// maxWildcardNames bounds the names of all patterns together. They are kept in
// memory for as long as the stateDir lives: some 400 bytes each, 7 MiB in all.
const maxWildcardNames = 4 * maxNamesPerPattern

// maxNamesFile bounds what is read at the start: some 500,000 names.
const maxNamesFile = 64 << 20

// Virtual addresses are those of 240.0.0.0/4, from 240.0.0.1 on, and for each
// its form in virtualPrefix6.
const (
	firstVirtual = 0xf0000001
	lastVirtual  = 0xfffffffe
)

// virtualPrefix6 is 2001:20::/96, and the IPv4 address of a name is its last 32
// bits.
//
// Both blocks hold addresses that no host has and no plugin can mean: 240.0.0.0/4
// is reserved (RFC 1112, section 4); 2001:20::/28 holds identifiers that stand
// for something else where a program expects an address (ORCHIDv2, RFC 7343), and
// those of 2001:20::/32 are of a kind that is reserved (RFC 7401, section 5.2.10).
// A block that filters of "private" and "special" addresses all pass would have
// to be one that somebody's hosts are in. Unlike unique local addresses these are
// not private to Go's net/netip and to Java, and they are globally reachable to
// the registry that the IANA keeps.
var virtualPrefix6 = [12]byte{0x20, 0x01, 0x00, 0x20} //nolint:gochecknoglobals // an array of constants

// ToIPv4 returns the IPv4 address of a virtual address in any form, and any
// other address as it is, an IPv4-mapped one as IPv4.
func ToIPv4(addr netip.Addr) netip.Addr {
	addr = addr.Unmap()
	if !addr.Is6() || addr.Zone() != "" {
		return addr
	}
	b := addr.As16()
	if [12]byte(b[:12]) != virtualPrefix6 {
		return addr
	}
	if v4 := netip.AddrFrom4([4]byte(b[12:])); IsVirtual(v4) {
		return v4
	}
	return addr
}

// toIPv6 returns the IPv6 form of a virtual address.
func toIPv6(v4 netip.Addr) netip.Addr {
	var b [16]byte
	copy(b[:], virtualPrefix6[:])
	copy(b[12:], v4.AsSlice())
	return netip.AddrFrom16(b)
}

// IsVirtual reports whether an IPv4 address is one that the resolver gives out.
func IsVirtual(addr netip.Addr) bool {
	return addr.Is4() && addr.As4()[0] >= 0xf0
}

// addressMap pairs names with virtual addresses, for ever: an address that was
// given out is never another name's, also after a restart, or a plugin that
// kept it would reach another host.
//
// A pair survives a power cut before its address is given out.
type addressMap struct {
	// writing serialises new pairs and is taken before mu, so that known names do not
	// wait for the disk.
	writing sync.Mutex
	file    atomicfile.File // nil: not kept

	mu        sync.Mutex
	byName    map[string]netip.Addr
	byAddr    map[netip.Addr]string
	counts    map[string]int // names by pattern
	wildcards int            // names of patterns, in all
	next      uint32
	closed    bool // by one of the listeners that share it
	broken    bool // the file could not be written: nothing new is given out
}

// openAddressMap reads the pairs in a file of fsys, which is made if it is missing; ""
// keeps none.
func openAddressMap(fsys atomicfile.FS, path string) (*addressMap, error) {
	n := &addressMap{
		byName: make(map[string]netip.Addr), byAddr: make(map[netip.Addr]string),
		counts: make(map[string]int), next: firstVirtual,
	}
	if path == "" {
		return n, nil
	}
	if err := n.open(fsys, path); err != nil {
		return nil, fmt.Errorf("open names: %w", err)
	}
	whole, err := n.readAll(path)
	if err == nil {
		err = n.file.Truncate(whole)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("read names: %w", err), n.file.Close())
	}
	return n, nil
}

// open opens the file, which must be one of its owner's alone.
func (n *addressMap) open(fsys atomicfile.FS, path string) error {
	file, err := fsys.OpenFile(path, os.O_CREATE|os.O_RDWR|os.O_APPEND|syscall.O_NOFOLLOW|syscall.O_NONBLOCK, 0o600)
	if err != nil {
		return err
	}
	info, err := file.Stat()
	switch {
	case err != nil:
	case !info.Mode().IsRegular():
		err = fmt.Errorf("%s is not a regular file", path)
	case info.Size() > maxNamesFile:
		err = fmt.Errorf("%s is larger than %d bytes", path, maxNamesFile)
	default:
		err = errors.Join(file.Chmod(0o600), fsys.SyncDir(filepath.Dir(path)))
	}
	if err != nil {
		return errors.Join(err, file.Close())
	}
	n.file = file
	return nil
}

// readAll takes in the file and returns how many of its bytes are whole lines:
// a line cut short was never answered.
func (n *addressMap) readAll(path string) (whole int64, err error) {
	content, err := io.ReadAll(io.LimitReader(n.file, maxNamesFile))
	if err != nil {
		return 0, err
	}
	end := bytes.LastIndexByte(content, '\n') + 1
	for i, line := range strings.Split(string(content[:end]), "\n") {
		if line == "" {
			continue
		}
		if err := n.load(line); err != nil {
			return 0, fmt.Errorf("%s:%d: %w", path, i+1, err)
		}
	}
	return int64(end), nil
}

// load takes in one line: address, name, and the pattern unless it is exact.
func (n *addressMap) load(line string) error {
	fields := strings.Split(line, " ")
	if len(fields) != 3 {
		return errors.New("want an address, a name and a pattern")
	}
	addr, err := netip.ParseAddr(fields[0])
	name := fields[1]
	if err != nil || !IsVirtual(addr) {
		return fmt.Errorf("%q is not an address in 240.0.0.0/4", fields[0])
	}
	if n.byAddr[addr] != "" || n.byName[name].IsValid() {
		return fmt.Errorf("%s or %s is listed twice", addr, name)
	}
	n.add(addr, name, strings.TrimPrefix(fields[2], "="))
	if at := binary.BigEndian.Uint32(addr.AsSlice()); at >= n.next {
		n.next = at + 1
	}
	return nil
}

func (n *addressMap) add(addr netip.Addr, name, pattern string) {
	n.byName[name], n.byAddr[addr] = addr, name
	if pattern != name {
		n.counts[pattern]++
		n.wildcards++
	}
}

var errMapFull = errors.New("the limit of names with an address is reached for this pattern")

// assign returns the address of a name that pattern grants, the same one always.
func (n *addressMap) assign(name, pattern string) (netip.Addr, error) {
	if addr, ok := n.known(name); ok {
		return addr, nil
	}
	n.writing.Lock()
	defer n.writing.Unlock()
	addr, err := n.free(name, pattern)
	if err != nil {
		return netip.Addr{}, err
	}
	if addr, ok := n.known(name); ok { // paired since
		return addr, nil
	}
	if err := n.write(addr, name, pattern); err != nil {
		return netip.Addr{}, fmt.Errorf("write names: %w", err)
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.next++
	n.add(addr, name, pattern)
	return addr, nil
}

func (n *addressMap) known(name string) (addr netip.Addr, ok bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	addr, ok = n.byName[name]
	return addr, ok
}

// free returns the address that a new name would have. The caller holds writing.
func (n *addressMap) free(name, pattern string) (netip.Addr, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	_, known := n.byName[name]
	switch {
	case known:
	case n.broken:
		return netip.Addr{}, errors.New("write names: an earlier write failed")
	case pattern != name && (n.counts[pattern] >= maxNamesPerPattern || n.wildcards >= maxWildcardNames), n.next > lastVirtual:
		return netip.Addr{}, errMapFull
	}
	var b [4]byte
	binary.BigEndian.PutUint32(b[:], n.next)
	return netip.AddrFrom4(b), nil
}

// write appends a pair to the file and syncs it. The caller holds writing.
func (n *addressMap) write(addr netip.Addr, name, pattern string) error {
	if n.file == nil {
		return nil
	}
	// "=" keeps the field from being empty while observing.
	_, err := fmt.Fprintf(n.file, "%s %s =%s\n", addr, name, pattern)
	if err == nil {
		err = n.file.Sync()
	}
	if err != nil {
		n.mu.Lock()
		defer n.mu.Unlock()
		n.broken = true // half a line may be there: no line may follow it
	}
	return err
}

// host returns the name that an address was given out for.
func (n *addressMap) host(addr netip.Addr) (string, bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	name, ok := n.byAddr[ToIPv4(addr)]
	return name, ok
}

func (n *addressMap) close() error {
	n.writing.Lock()
	defer n.writing.Unlock()
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.file == nil || n.closed {
		return nil
	}
	n.broken, n.closed = true, true
	return n.file.Close()
}
