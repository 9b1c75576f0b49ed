package governance

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"
	"slices"
	"strings"

	"github.com/chaperone-proxy/chaperone/internal/dsse"
)

// Bounds of what is read. A repository may be hostile: it holds files of many people.
const (
	maxFile    = dsse.MaxEnvelope // bytes of a file
	maxEntries = 10_000           // files in a folder
	maxFolder  = 256 << 20        // bytes of the signed documents of a folder
)

// signedEnding is the ending of the names of signed documents.
const signedEnding = ".dsse.json"

// entry is what a folder of a repository has.
type entry struct {
	path string
	kind fs.FileMode // its type
}

func find(fsys fs.FS, name string) (entry, error) {
	info, err := fs.Lstat(fsys, name)
	if err != nil {
		return entry{}, err
	}
	return entry{name, info.Mode().Type()}, nil
}

// readFile returns the content of a regular file. A link is refused: it may point anywhere,
// and what was reviewed is the file.
func readFile(fsys fs.FS, name string) ([]byte, error) {
	e, err := find(fsys, name)
	if err != nil {
		return nil, err
	}
	return e.read(fsys)
}

func (e entry) read(fsys fs.FS) ([]byte, error) {
	if !e.kind.IsRegular() { // before it is opened: a named pipe would wait for a writer
		return nil, fmt.Errorf("read %s: it is not a regular file (%s); put the file itself there", e.path, e.kind)
	}
	f, err := fsys.Open(e.path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	switch {
	case err != nil:
		return nil, fmt.Errorf("read %s: %w", e.path, err)
	case !info.Mode().IsRegular():
		return nil, fmt.Errorf("read %s: it is no longer a regular file (%s); put the file itself there", e.path, info.Mode().Type())
	case info.Size() > maxFile:
		return nil, fmt.Errorf("read %s: it has %d bytes; at most %d are read", e.path, info.Size(), maxFile)
	}
	var data bytes.Buffer
	data.Grow(int(info.Size()) + bytes.MinRead)
	switch _, err := data.ReadFrom(io.LimitReader(f, maxFile+1)); {
	case err != nil:
		return nil, fmt.Errorf("read %s: %w", e.path, err)
	case data.Len() > maxFile:
		return nil, fmt.Errorf("read %s: it has more than %d bytes", e.path, maxFile)
	}
	return data.Bytes(), nil
}

// ReadFile returns the content of a regular file of a repository, bounded; a link is refused.
func ReadFile(fsys fs.FS, name string) ([]byte, error) { return readFile(fsys, name) }

// list returns the entries of a folder with an ending, sorted by their paths. A folder that is
// not there is empty. The folder itself must not be a link.
func list(fsys fs.FS, dir, ending string) ([]entry, error) {
	info, err := fs.Lstat(fsys, dir)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, nil
	case err != nil:
		return nil, err
	case !info.IsDir():
		return nil, fmt.Errorf("read %s: it is not a folder (%s)", dir, info.Mode().Type())
	}
	f, err := fsys.Open(dir)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	folder, ok := f.(fs.ReadDirFile)
	if !ok {
		return nil, fmt.Errorf("read %s: it is not a folder", dir)
	}
	entries, err := folder.ReadDir(maxEntries + 1)
	switch {
	case err != nil && !errors.Is(err, io.EOF):
		return nil, fmt.Errorf("read %s: %w", dir, err)
	case len(entries) > maxEntries:
		return nil, fmt.Errorf("read %s: it has more than %d entries", dir, maxEntries)
	}
	var out []entry
	for _, e := range entries {
		if strings.HasSuffix(e.Name(), ending) && !strings.HasPrefix(e.Name(), ".") {
			out = append(out, entry{path.Join(dir, e.Name()), e.Type()})
		}
	}
	slices.SortFunc(out, func(a, b entry) int { return strings.Compare(a.path, b.path) })
	return out, nil
}

// ReadEnvelope reads a signed document of a repository, and verifies nothing of it.
func ReadEnvelope(fsys fs.FS, name string) (*dsse.Envelope, error) { return envelope(fsys, name) }

// folderBudget bounds what is kept of the files of one folder.
type folderBudget struct{ used int }

// take counts a document, and refuses one too many.
func (b *folderBudget) take(file entry, e *dsse.Envelope) error {
	if b.used += len(e.Unverified); b.used > maxFolder {
		return fmt.Errorf("read %s: the files of its folder have more than %d bytes; remove those that are not of this request", file.path, maxFolder)
	}
	return nil
}

// envelope reads a signed document, and verifies nothing of it.
func envelope(fsys fs.FS, name string) (*dsse.Envelope, error) {
	e, err := find(fsys, name)
	if err != nil {
		return nil, err
	}
	return e.envelope(fsys)
}

func (e entry) envelope(fsys fs.FS) (*dsse.Envelope, error) {
	data, err := e.read(fsys)
	if err != nil {
		return nil, err
	}
	out, err := dsse.Parse(data)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", e.path, err)
	}
	return out, nil
}
