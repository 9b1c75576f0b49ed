package admin

import (
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/chaperone-proxy/chaperone/internal/atomicfile"
	"github.com/chaperone-proxy/chaperone/internal/runtimedir"
	"github.com/chaperone-proxy/chaperone/internal/sortlarge"
)

// DefaultRegistry is where every sidecar of a host lists its admin socket.
const DefaultRegistry = runtimedir.Default

// entrySuffix ends the name of a registry entry.
const entrySuffix = ".sidecar"

// maxEntry bounds a registry entry, and maxEntries how many are read.
const (
	maxEntry   = 4 << 10
	maxEntries = 10_000
)

// Sidecar is an entry of the registry.
type Sidecar struct {
	Plugin   string `json:"plugin"`
	Socket   string `json:"socket"` // path of the admin socket
	PID      int    `json:"pid"`
	StateDir string `json:"stateDir,omitempty"`
	Config   string `json:"config,omitempty"` // the Sidecar's file
	Audit    string `json:"audit,omitempty"`  // the audit log

	Gone bool `json:"-"` // no process listens on its socket
}

// Register lists a sidecar in the folder dir, "" being DefaultRegistry, so that
// a command can reach every sidecar of the host. It is called once the sidecar
// listens: an entry that nobody answers for is taken to be a dead one's. The
// function it returns takes the sidecar off the list again.
func Register(dir string, s Sidecar) (unregister func() error, err error) {
	if s.Socket, err = socketPath(s.Socket); err != nil {
		return nil, fmt.Errorf("register sidecar: %w", err)
	}
	if dir == "" {
		dir, err = DefaultRegistry, runtimedir.Shared()
	} else {
		err = makePrivateDir(dir)
	}
	if err != nil {
		return nil, fmt.Errorf("register sidecar: %w", err)
	}
	body, err := json.Marshal(s)
	if err != nil {
		return nil, fmt.Errorf("register sidecar: %w", err)
	}
	path := entryPath(dir, s.Socket)
	if err := atomicfile.Write(path, append(body, '\n'), 0o600); err != nil {
		return nil, fmt.Errorf("register sidecar: %w", err)
	}
	return func() error {
		if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("unregister sidecar: %w", err)
		}
		return nil
	}, nil
}

// entryPath names an entry by its socket, so that a sidecar that is started
// again takes the place of its old entry.
func entryPath(dir, socket string) string {
	sum := sha256.Sum256([]byte(socket))
	return filepath.Join(dir, hex.EncodeToString(sum[:8])+entrySuffix)
}

// List returns the sidecars listed in dir, "" being DefaultRegistry, by plugin and
// socket. One that was killed is among them, marked as Gone, until it is started
// again, [Forget] is called or the folder of its socket is removed. A sidecar that
// cannot be reached and may be there is not Gone: its caller sees the error and not
// an omission. A folder that is missing lists none. With an error about some
// entries the others are returned.
func List(dir string) ([]Sidecar, error) {
	if dir == "" {
		dir = DefaultRegistry
	}
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list sidecars: %w", err)
	}
	if len(entries) > maxEntries {
		return nil, fmt.Errorf("list sidecars: %s has more than %d entries", dir, maxEntries)
	}
	var found []Sidecar
	var errs []error
	for _, entry := range entries {
		if !strings.HasSuffix(entry.Name(), entrySuffix) || !entry.Type().IsRegular() {
			continue
		}
		path := filepath.Join(dir, entry.Name())
		s, err := readEntry(path)
		if errors.Is(err, fs.ErrNotExist) {
			continue // it has ended since
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("list sidecars: %w", err))
			continue
		}
		s.Gone = gone(s.Socket)
		if s.Gone && missing(filepath.Dir(s.Socket)) {
			if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
				errs = append(errs, fmt.Errorf("remove stale sidecar: %w", err))
			}
			continue
		}
		found = append(found, s)
	}
	sortlarge.By(found, func(a, b *Sidecar) int {
		return cmp.Or(strings.Compare(a.Plugin, b.Plugin), strings.Compare(a.Socket, b.Socket))
	})
	return found, errors.Join(errs...)
}

func missing(path string) bool {
	_, err := os.Lstat(path)
	return errors.Is(err, fs.ErrNotExist)
}

// Forget takes a sidecar that is gone off the list in dir, "" being DefaultRegistry.
// A sidecar that still listens stays, and one that is not listed is no error.
func Forget(dir, socket string) error {
	if dir == "" {
		dir = DefaultRegistry
	}
	socket, err := socketPath(socket)
	if err != nil {
		return fmt.Errorf("forget sidecar: %w", err)
	}
	if !gone(socket) {
		return nil
	}
	if err := os.Remove(entryPath(dir, socket)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("forget sidecar: %w", err)
	}
	return nil
}

func readEntry(path string) (Sidecar, error) {
	file, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NOFOLLOW, 0)
	if err != nil {
		return Sidecar{}, err
	}
	defer file.Close()
	body, err := io.ReadAll(io.LimitReader(file, maxEntry))
	if err != nil {
		return Sidecar{}, err
	}
	var s Sidecar
	if err := json.Unmarshal(body, &s); err != nil {
		return Sidecar{}, fmt.Errorf("read %s: %w", path, err)
	}
	if _, err := socketPath(s.Socket); err != nil {
		return Sidecar{}, fmt.Errorf("read %s: %w", path, err)
	}
	return s, nil
}

// gone reports whether nothing can be behind a socket any more.
func gone(socket string) bool {
	err := probeSocket(socket)
	return errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ECONNREFUSED)
}
