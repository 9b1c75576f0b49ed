package audit

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"syscall"

	"github.com/chaperone-proxy/chaperone/internal/atomicfile"
)

// MaskKey is the part of a log's key that masks. It shows whether a known value stands in
// a masked log, and can neither verify nor forge a record. It does not print itself, and
// is not safe for concurrent use.
type MaskKey struct {
	key   [keyLen]byte
	masks *masker
}

// Format prints a placeholder, whatever the verb.
func (*MaskKey) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, "[redacted]") }

// MaskKey returns the part of the key that masks.
func (k *Key) MaskKey() *MaskKey { return newMaskKey(k.mask) }

func newMaskKey(key [keyLen]byte) *MaskKey {
	return &MaskKey{key, newMasker(hmac.New(sha256.New, key[:]))}
}

// ID identifies the key in records that are masked with it.
func (k *MaskKey) ID() string { return k.masks.id }

// MaskPath is [Key.MaskPath].
func (k *MaskKey) MaskPath(segment string) string {
	return string(k.masks.appendSegment(nil, segment))
}

// maskKeyVersion begins the only line of a file that holds a MaskKey. The key's ID and the
// key in hexadecimal follow.
const maskKeyVersion = "chaperone-audit-mask-key-v1"

// Create writes the key to a new file, which only its owner may read. It fails if the
// file exists.
func (k *MaskKey) Create(path string) error {
	line := fmt.Sprintf("%s %s %s\n", maskKeyVersion, k.ID(), hex.EncodeToString(k.key[:]))
	if err := atomicfile.Create(path, []byte(line), 0o600); err != nil {
		return fmt.Errorf("write mask key: %w", err)
	}
	return nil
}

// LoadMaskKey reads a file that Create wrote and that only its owner may read.
func LoadMaskKey(path string) (*MaskKey, error) {
	file, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0) // a FIFO would wait for a writer
	if err != nil {
		return nil, fmt.Errorf("open mask key: %w", err)
	}
	defer file.Close()
	key, err := readMaskKey(file)
	if err != nil {
		return nil, fmt.Errorf("read mask key %s: %w", path, err)
	}
	return key, nil
}

func readMaskKey(file *os.File) (*MaskKey, error) {
	info, err := file.Stat()
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, errors.New("it is not a regular file")
	}
	if info.Mode().Perm()&0o077 != 0 {
		return nil, fmt.Errorf("it may be read by others than its owner (mode %v); make it 0600", info.Mode().Perm())
	}
	text, err := io.ReadAll(io.LimitReader(file, 4<<10))
	if err != nil {
		return nil, err
	}
	words := strings.Fields(string(text))
	if len(words) != 3 || words[0] != maskKeyVersion {
		return nil, fmt.Errorf("it does not hold %s, an ID and a key; write it with chaperone audit export-mask-key", maskKeyVersion)
	}
	raw, err := hex.DecodeString(words[2])
	if err != nil || len(raw) != keyLen {
		return nil, fmt.Errorf("its key is not %d bytes in hexadecimal", keyLen)
	}
	key := newMaskKey([keyLen]byte(raw))
	if key.ID() != words[1] {
		return nil, errors.New("its ID is not that of its key; write it again")
	}
	return key, nil
}
