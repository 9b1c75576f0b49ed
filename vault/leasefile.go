package vault

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"go.uber.org/zap"
)

// leaseFile keeps on disk the ids of the leases that are not yet confirmed to be
// gone, and the hash of the wrapping token that was unwrapped last, so that the
// next sidecar revokes what this one leaves behind.
type leaseFile struct {
	path   string // "" keeps nothing
	outbox *outbox

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

func newLeaseFile(path string, outbox *outbox) *leaseFile {
	return &leaseFile{path: path, outbox: outbox, held: make(map[string]storedLease)}
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
	err := writeState(f.path, f.state())
	f.mu.Lock()
	defer f.mu.Unlock()
	if err != nil && f.err == nil {
		f.outbox.warn("write state file: leases left by a killed sidecar will end by themselves only", zap.Error(err))
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
	slices.SortFunc(kept.Leases, func(x, y storedLease) int { return strings.Compare(x.ID, y.ID) })
	return kept
}

func writeState(path string, kept storedState) error {
	text, err := json.Marshal(kept)
	if err != nil {
		return err
	}
	file, err := os.CreateTemp(filepath.Dir(path), filepath.Base(path)+".*") // mode 0600
	if err != nil {
		return err
	}
	_, err = file.Write(append(text, '\n'))
	if err = errors.Join(err, file.Close()); err == nil {
		err = os.Rename(file.Name(), path)
	}
	if err != nil {
		return errors.Join(err, os.Remove(file.Name()))
	}
	return nil
}

// load reads the file and returns the leases that an earlier sidecar left.
func (f *leaseFile) load() ([]storedLease, error) {
	if f.path == "" {
		return nil, nil
	}
	text, err := os.ReadFile(f.path)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read state file: %w", err)
	}
	var kept storedState
	if err := json.Unmarshal(text, &kept); err != nil {
		return nil, fmt.Errorf("read state file: %s is damaged; remove it to give up revoking the leases it names", f.path)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.spent = kept.Spent
	for _, l := range kept.Leases {
		f.held[l.ID] = l
	}
	return kept.Leases, nil
}
