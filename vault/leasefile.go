package vault

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"go.uber.org/zap"

	"github.com/chaperone-proxy/chaperone/authz"
	"github.com/chaperone-proxy/chaperone/internal/atomicfile"
	"github.com/chaperone-proxy/chaperone/internal/sortlarge"
)

// leaseFile keeps on disk the ids of the leases that are not yet confirmed to be
// gone, and the hash of the wrapping token that was unwrapped last, so that the
// next sidecar revokes what this one leaves behind.
type leaseFile struct {
	path   string // "" keeps nothing
	fsys   atomicfile.FS
	outbox *outbox
	log    *zap.Logger

	// writing serialises writes of the file. It is taken before mu.
	writing sync.Mutex

	mu    sync.Mutex
	held  map[string]storedLease // by lease id
	spent string                 // the hash of the wrapping token that was unwrapped last
	err   error                  // why the last write failed
}

// storedState is the content of the file.
type storedState struct {
	Leases []storedLease `json:"leases"`
	Spent  string        `json:"spent,omitempty"`
}

type storedLease struct {
	ID    string    `json:"id"`
	Mount string    `json:"mount,omitempty"` // of the engine, for a certificate
	Ends  time.Time `json:"ends"`            // by itself
}

func newLeaseFile(path string, outbox *outbox, log *zap.Logger) *leaseFile {
	return &leaseFile{path: path, fsys: atomicfile.OS{}, outbox: outbox, log: log, held: make(map[string]storedLease)}
}

// add records that Vault holds a lease. A disk that cannot take it is no reason to
// refuse the credential: the lease ends by itself.
func (f *leaseFile) add(l *lease) {
	f.mu.Lock()
	f.held[l.id] = storedLease{ID: l.id, Mount: l.mount, Ends: l.ends.time()}
	f.mu.Unlock()
	f.save()
}

// remove records that a lease is gone.
func (f *leaseFile) remove(id string) {
	f.mu.Lock()
	delete(f.held, id)
	f.mu.Unlock()
	f.save()
}

func (f *leaseFile) usedWrap() string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.spent
}

// setUsedWrap records which wrapping token is used up, so that the next sidecar
// does not take that for a theft.
func (f *leaseFile) setUsedWrap(hash string) {
	f.mu.Lock()
	f.spent = hash
	f.mu.Unlock()
	f.save()
}

// failure returns why the last write failed, nil if it did not.
func (f *leaseFile) failure() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.err
}

// save replaces the file. The caller holds no lock.
func (f *leaseFile) save() {
	if f.path == "" {
		return
	}
	f.writing.Lock()
	defer f.outbox.flush()
	defer f.writing.Unlock()
	err := f.write(f.state())
	f.mu.Lock()
	defer f.mu.Unlock()
	if err != nil && f.err == nil {
		f.outbox.warn("leases file not written", zap.String("effect", "leases of a killed sidecar are not revoked and end by themselves"), zap.Error(err))
	}
	f.err = err
}

func (f *leaseFile) state() storedState {
	f.mu.Lock()
	defer f.mu.Unlock()
	kept := storedState{Leases: make([]storedLease, 0, len(f.held)), Spent: f.spent}
	for _, l := range f.held {
		kept.Leases = append(kept.Leases, l)
	}
	sortlarge.By(kept.Leases, func(x, y *storedLease) int { return strings.Compare(x.ID, y.ID) })
	return kept
}

// write replaces the file so that a power cut leaves the old or the new content.
func (f *leaseFile) write(kept storedState) error {
	text, err := json.Marshal(kept)
	if err != nil {
		return err
	}
	return atomicfile.WriteFS(f.fsys, f.path, append(text, '\n'), 0o600)
}

// load reads the file and returns the leases that an earlier sidecar left. A damaged
// file is set aside: the leases that it names end by themselves, and everything else
// works without it.
func (f *leaseFile) load() ([]storedLease, error) {
	if f.path == "" {
		return nil, nil
	}
	if err := atomicfile.RemoveTemporary(f.path); err != nil {
		return nil, err
	}
	text, err := atomicfile.Read(f.path, maxLeaseFile)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	kept, err := parseState(text)
	if err != nil {
		return nil, f.setAside(err)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.spent = kept.Spent
	for _, l := range kept.Leases {
		f.held[l.ID] = l
	}
	return kept.Leases, nil
}

func parseState(text []byte) (storedState, error) {
	var kept storedState
	err := json.Unmarshal(text, &kept)
	if err == nil && slices.ContainsFunc(kept.Leases, func(l storedLease) bool { return l.ID == "" }) {
		err = errors.New("a lease has no id")
	}
	return kept, err
}

// setAside renames a damaged file and reports it in the log and the audit log.
func (f *leaseFile) setAside(damage error) error {
	aside := f.path + damagedSuffix + time.Now().UTC().Format("20060102T150405Z")
	err := f.fsys.Rename(f.path, aside)
	if err == nil {
		err = f.fsys.SyncDir(filepath.Dir(f.path))
	}
	if err != nil {
		return fmt.Errorf("set aside damaged leases file %s: %w", f.path, err)
	}
	f.log.Error("leases file damaged and set aside", zap.String("file", f.path), zap.String("renamed_to", aside), zap.Error(damage))
	f.outbox.record("incident", authz.CredentialRef{}, "",
		fmt.Sprintf("leases file damaged (%v), renamed to %s: leases of earlier runs are not revoked and end by themselves", damage, aside))
	return nil
}

const (
	maxLeaseFile  = 64 << 20    // bytes
	damagedSuffix = ".damaged-" // before the time at which a damaged file was set aside
)
