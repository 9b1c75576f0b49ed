package policy

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/chaperone-proxy/chaperone/authz"
)

// RevocationsFile is the name of the file of revocations in a stateDir.
const RevocationsFile = "revocations.json"

// lockFile is the name of the file that every sidecar makes in its stateDir.
const lockFile = "lock"

// maxRevocations bounds the size of a file of revocations in bytes.
const maxRevocations = 8 << 20

// Revocations reads the revocations in a file, or in a stateDir, as a sidecar writes them:
// a JSON list. A stateDir without the file has none; another folder is an error.
func Revocations(path string) ([]authz.Revocation, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, fmt.Errorf("read revocations: %w", err)
	}
	if info.IsDir() {
		dir := path
		path = filepath.Join(dir, RevocationsFile)
		if info, err = os.Stat(path); os.IsNotExist(err) {
			// A folder that was named by mistake would else be one in which nothing is revoked.
			if _, err := os.Stat(filepath.Join(dir, lockFile)); err != nil {
				return nil, fmt.Errorf("read revocations: %s is no stateDir of a sidecar; name one, or a file of revocations", dir)
			}
			return nil, nil
		} else if err != nil {
			return nil, fmt.Errorf("read revocations: %w", err)
		}
	}
	if !info.Mode().IsRegular() || info.Size() > maxRevocations {
		return nil, fmt.Errorf("read revocations: %s is not a file of at most 8MiB", path)
	}
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("read revocations: %w", err)
	}
	var out []authz.Revocation
	decoder := json.NewDecoder(bytes.NewReader(data))
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(&out); err != nil {
		return nil, fmt.Errorf("read revocations: %s is not a list of revocations: %w", path, err)
	}
	if _, err := decoder.Token(); err != io.EOF {
		return nil, fmt.Errorf("read revocations: %s has text after its list", path)
	}
	for i, r := range out {
		if r.ID == "" || r.Plugin == "" {
			return nil, fmt.Errorf("read revocations: %s: revocation %d has no id or no plugin", path, i+1)
		}
	}
	return out, nil
}
