package audit

import (
	"bytes"
	"crypto/hkdf"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime/debug"
	"strconv"
	"strings"
	"syscall"

	"github.com/chaperone-proxy/chaperone/internal/atomicfile"
)

// Files in the state directory.
const (
	keyName        = "audit.key"
	headName       = "audit.head"
	secondHeadName = "audit.refused.head"
)

const keyLen = 32

// Key is the key of a chain. It does not print itself.
type Key struct{ chain, mask, head [keyLen]byte }

// Format prints a placeholder, whatever the verb.
func (Key) Format(f fmt.State, _ rune) {
	// A failed write to what is printed to is its owner's to see.
	_, _ = io.WriteString(f, "[redacted]")
}

// LoadKey reads audit.key from stateDir: 32 bytes in hexadecimal, in a file
// that only its owner may read.
func LoadKey(stateDir string) (Key, error) {
	path := filepath.Join(stateDir, keyName)
	file, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NOFOLLOW, 0)
	if err != nil {
		return Key{}, fmt.Errorf("open audit key: %w", err)
	}
	defer file.Close()
	info, err := file.Stat()
	if err != nil {
		return Key{}, fmt.Errorf("read audit key: %w", err)
	}
	if info.Mode().Perm()&0o077 != 0 {
		return Key{}, fmt.Errorf("read audit key: %s may be read by others than its owner (mode %v); make it 0600", path, info.Mode().Perm())
	}
	text, err := io.ReadAll(io.LimitReader(file, 4*keyLen))
	if err != nil {
		return Key{}, fmt.Errorf("read audit key: %w", err)
	}
	raw, err := hex.DecodeString(strings.TrimSpace(string(text)))
	if err != nil || len(raw) != keyLen {
		return Key{}, fmt.Errorf("read audit key: %s is not %d bytes in hexadecimal", path, keyLen)
	}
	return newKey([keyLen]byte(raw))
}

// createKey makes a new key in stateDir. It fails when there is one.
func createKey(stateDir string) (Key, error) {
	var raw [keyLen]byte
	if _, err := rand.Read(raw[:]); err != nil {
		return Key{}, fmt.Errorf("make audit key: %w", err)
	}
	text := hex.EncodeToString(raw[:]) + "\n"
	if err := atomicfile.Create(filepath.Join(stateDir, keyName), []byte(text), 0o600); err != nil {
		return Key{}, fmt.Errorf("make audit key: %w", err)
	}
	return newKey(raw)
}

// newKey derives the other keys. The chain uses the key of the file itself, so
// that one line can be checked with openssl alone; what HKDF (RFC 5869) hashes
// never begins like a line does.
func newKey(raw [keyLen]byte) (Key, error) {
	k := Key{chain: raw}
	for _, derived := range []struct {
		use string
		to  *[keyLen]byte
	}{{"chaperone audit mask", &k.mask}, {"chaperone audit head", &k.head}} {
		value, err := hkdf.Expand(sha256.New, raw[:], derived.use, keyLen)
		if err != nil {
			return Key{}, fmt.Errorf("derive key: %w", err)
		}
		*derived.to = [keyLen]byte(value)
	}
	return k, nil
}

// second returns the key of the second log: its chain and head are its own, so that
// neither log passes for the other, and equal values have equal masks in both.
func (k Key) second() Key {
	for _, derived := range []struct {
		use string
		to  *[keyLen]byte
	}{{"chaperone audit refused", &k.chain}, {"chaperone audit refused head", &k.head}} {
		mac := hmac.New(sha256.New, derived.to[:])
		mac.Write([]byte(derived.use))
		*derived.to = [keyLen]byte(mac.Sum(nil))
	}
	return k
}

func (k *Key) chainMAC() hash.Hash { return hmac.New(sha256.New, k.chain[:]) }
func (k *Key) headMAC() hash.Hash  { return hmac.New(sha256.New, k.head[:]) }
func (k *Key) masker() *masker     { return newMasker(hmac.New(sha256.New, k.mask[:])) }

// MaskPath returns how a path's segment stands in a masked log, so that a
// known value can be looked for.
func (k *Key) MaskPath(segment string) string { return string(k.masker().appendSegment(nil, segment)) }

// MaskPath is [Key.MaskPath] with the log's key.
func (l *Log) MaskPath(segment string) string { return l.key.MaskPath(segment) }

// MaskQuery returns how a query stands in a masked log.
func (k *Key) MaskQuery(query string) string { return string(k.masker().appendQuery(nil, query)) }

// MaskLease returns how a lease id stands in any log.
func (k *Key) MaskLease(lease string) string { return k.maskOf(maskLease, lease) }

func (k *Key) maskOf(domain byte, value string) string {
	m := k.masker()
	return string(m.append(nil, domain, value))
}

// genesis is what the first record names as the hash before it.
func genesis() (h [hashLen]byte) {
	base64.RawURLEncoding.Encode(h[:], make([]byte, sha256.Size))
	return h
}

// position is where the chain ends.
type position struct {
	tail
	first uint64 // the first record in the file that holds it
	size  int64  // of that file, up to and with the record
	kept  uint64 // the lowest record that was not removed by the limit on files
	// refused is how many bytes of the file are refusals.
	refused int64
}

// The head is two slots, written in turn: what is written to one can be torn
// by a power cut, and then the other still holds.
const (
	headMagic = "chapaud2"
	oldMagic  = "chapaud1" // its slots lack refused
	slotRoom  = 256
	slotLen   = len(headMagic) + 5*8 + hashLen + sha256.Size
	headLen   = 2 * slotRoom
)

// headFile is the open audit.head. Its lock is held while the log is open.
type headFile struct {
	name   string
	file   *os.File
	mac    hash.Hash
	slot   []byte
	memory []byte // the file, shared with the kernel's cache; nil until the first write
	asked  bool   // for memory
}

// openHead opens or creates the head and locks it.
func openHead(stateDir, name string, key *Key) (*headFile, error) {
	file, err := os.OpenFile(filepath.Join(stateDir, name), os.O_RDWR|os.O_CREATE|syscall.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open audit head: %w", err)
	}
	if err := lock(file); err != nil {
		return nil, errors.Join(fmt.Errorf("open audit head: %w", err), file.Close())
	}
	return &headFile{name: name, file: file, mac: key.headMAC(), slot: make([]byte, 0, slotRoom)}, nil
}

// share maps the file into memory. A store there is in the kernel's
// cache at once, where a killed process leaves it, exactly as after a write; but
// it takes no system call for each record. The room is taken on the disk first,
// since a full one could not be reported when it is stored. Where there is no
// such memory, the head is written by system calls.
func (h *headFile) share() {
	h.asked = true
	fd := int(h.file.Fd())
	if syscall.Fallocate(fd, 0, 0, headLen) != nil {
		return
	}
	if memory, err := syscall.Mmap(fd, 0, headLen, syscall.PROT_READ|syscall.PROT_WRITE, syscall.MAP_SHARED); err == nil {
		h.memory = memory
	}
}

// lock takes the file for this process, or fails at once.
func lock(file *os.File) error {
	err := syscall.Flock(int(file.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
	if errors.Is(err, syscall.EWOULDBLOCK) {
		return fmt.Errorf("%s is in use by another process", file.Name())
	}
	if err != nil {
		return fmt.Errorf("lock %s: %w", file.Name(), err)
	}
	return nil
}

// write records where the chain ends: less than a sector, in a page that the
// file already has.
func (h *headFile) write(p position) error {
	b := append(h.slot[:0], headMagic...)
	b = binary.BigEndian.AppendUint64(b, p.seq)
	b = binary.BigEndian.AppendUint64(b, p.first)
	b = binary.BigEndian.AppendUint64(b, uint64(p.size))
	b = binary.BigEndian.AppendUint64(b, p.kept)
	b = binary.BigEndian.AppendUint64(b, uint64(p.refused))
	b = append(b, p.hash[:]...)
	h.mac.Reset()
	h.mac.Write(b)
	h.slot = h.mac.Sum(b)
	at := int(p.seq%2) * slotRoom
	if h.memory != nil {
		return h.store(at)
	}
	n, err := h.file.WriteAt(h.slot, int64(at))
	if err != nil {
		return err
	}
	if n != len(h.slot) {
		return io.ErrShortWrite
	}
	if !h.asked { // not before there is a head
		h.share()
	}
	return nil
}

// store writes the slot to the shared memory. The kernel cannot return an error
// there, as when a file system that copies on write is full or somebody cut the
// file short: it raises a fault, which is an error here and not the sidecar's end.
func (h *headFile) store(at int) (err error) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		if fault := recover(); fault != nil {
			err = errors.Join(fmt.Errorf("store: %v", fault), h.unshare())
		}
	}()
	copy(h.memory[at:], h.slot)
	return nil
}

// unshare goes back to system calls.
func (h *headFile) unshare() error {
	if h.memory == nil {
		return nil
	}
	err := syscall.Munmap(h.memory)
	h.memory = nil
	return err
}

func (h *headFile) close() error { return errors.Join(h.unshare(), h.file.Sync(), h.file.Close()) }

// errNoHead is for a missing head, errBadHead for one that the key did not make.
var (
	errNoHead  = errors.New(headName + " is missing")
	errBadHead = errors.New(headName + " was not written with this key, or is damaged")
)

// readHead reads where the chain ends, from the newer of the two slots.
func readHead(r io.ReaderAt, key *Key) (position, error) {
	var data [headLen]byte
	n, err := r.ReadAt(data[:], 0)
	if err != nil && !errors.Is(err, io.EOF) {
		return position{}, fmt.Errorf("read %s: %w", headName, err)
	}
	if n == 0 {
		return position{}, errNoHead
	}
	var best position
	found := false
	mac := key.headMAC()
	for at := 0; at < headLen; at += slotRoom {
		p, ok := readSlot(data[at:at+slotRoom], mac)
		if !ok {
			continue
		}
		if !found || p.seq > best.seq {
			best, found = p, true
		}
	}
	if !found {
		return position{}, errBadHead
	}
	return best, nil
}

// readSlot reads one of the head's slots, and reports false for what the key did
// not make.
func readSlot(slot []byte, mac hash.Hash) (position, bool) {
	length := slotLen
	switch string(slot[:len(headMagic)]) {
	case headMagic:
	case oldMagic:
		length -= 8
	default:
		return position{}, false
	}
	signed := slot[:length-sha256.Size]
	mac.Reset()
	mac.Write(signed)
	if !hmac.Equal(mac.Sum(nil), slot[len(signed):length]) {
		return position{}, false
	}
	numbers, text := signed[len(headMagic):len(signed)-hashLen], signed[len(signed)-hashLen:]
	p := position{
		tail:  tail{seq: binary.BigEndian.Uint64(numbers), hash: [hashLen]byte(text)},
		first: binary.BigEndian.Uint64(numbers[8:]),
		size:  int64(binary.BigEndian.Uint64(numbers[16:])),
		kept:  binary.BigEndian.Uint64(numbers[24:]),
	}
	if length == slotLen {
		p.refused = int64(binary.BigEndian.Uint64(numbers[32:]))
	}
	return p, true
}

// loadHead reads the head of a state directory that may be in use.
func loadHead(stateDir, name string, key *Key) (position, error) {
	file, err := os.Open(filepath.Join(stateDir, name))
	if errors.Is(err, fs.ErrNotExist) {
		return position{}, errNoHead
	}
	if err != nil {
		return position{}, fmt.Errorf("open audit head: %w", err)
	}
	defer file.Close()
	return readHead(file, key)
}

// truncatedTail is what a failed write or a crash left of a record.
type truncatedTail struct {
	size int64
	sum  hash.Hash // SHA-256 of the bytes
}

func newTruncatedTail() *truncatedTail { return &truncatedTail{sum: sha256.New()} }

func (t *truncatedTail) add(data []byte) {
	t.size += int64(len(data))
	t.sum.Write(data)
}

// link is what the chain needs of a line. Its slices are parts of the line.
type link struct {
	seq        uint64
	prev, hash []byte
	body       []byte // the hashed bytes
}

// parseLink takes a line, without its newline, apart. It reports false for
// what cannot have been written by a Log.
func parseLink(line []byte) (link, bool) {
	rest, ok := bytes.CutPrefix(line, []byte(openSeq))
	end := bytes.IndexByte(rest, ',')
	if !ok || end < 1 || end > 20 || rest[0] < '1' || rest[0] > '9' {
		return link{}, false
	}
	seq, err := strconv.ParseUint(string(rest[:end]), 10, 64)
	if err != nil {
		return link{}, false
	}
	rest, ok = bytes.CutPrefix(rest[end:], []byte(openPrev))
	if !ok || len(rest) < hashLen+1+hashRoom || rest[hashLen] != '"' {
		return link{}, false
	}
	body, ending := line[:len(line)-hashRoom], line[len(line)-hashRoom:]
	l := link{seq: seq, prev: rest[:hashLen], body: body, hash: ending[len(openHash) : len(openHash)+hashLen]}
	if string(ending[:len(openHash)]) != openHash || string(ending[len(openHash)+hashLen:]) != closeHash {
		return link{}, false
	}
	if !isHash(l.prev) || !isHash(l.hash) {
		return link{}, false
	}
	return l, true
}

func isHash(text []byte) bool {
	var raw [sha256.Size]byte
	n, err := base64.RawURLEncoding.Strict().Decode(raw[:], text)
	return err == nil && n == len(raw)
}

// genuine reports whether the key made the line's hash. scratch holds a sum.
func (l link) genuine(mac hash.Hash, scratch []byte) bool {
	mac.Reset()
	mac.Write(l.body)
	var text [hashLen]byte
	base64.RawURLEncoding.Encode(text[:], mac.Sum(scratch[:0]))
	return hmac.Equal(text[:], l.hash)
}

func (l link) tail() tail { return tail{seq: l.seq, hash: [hashLen]byte(l.hash)} }
