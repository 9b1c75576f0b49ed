package audit

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"

	"github.com/chaperone-proxy/chaperone/authz"
	"github.com/chaperone-proxy/chaperone/internal/atomicfile"
)

// Open opens a log and goes on where it ended, or begins a new one. It reads
// only what was written after the last head, so its cost does not grow with
// the log. A missing or damaged end is not repaired: the chain
// continues from the last record that audit.head names, and a record of kind lost
// describes the damage.
//
// The log belongs to one process at a time; Open fails while another has it.
func Open(cfg Config) (*Log, error) {
	cfg, err := cfg.withDefaults()
	if err != nil {
		return nil, fmt.Errorf("open audit log: %w", err)
	}
	l, err := open(cfg)
	if err != nil {
		return nil, err
	}
	had, err := hasSecond(cfg)
	if err == nil && had {
		l.second, err = open(cfg.secondOf())
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("open audit log: %w", err), l.Close())
	}
	return l, nil
}

// open opens one of the two logs.
func open(cfg Config) (*Log, error) {
	files, err := listFiles(cfg.File)
	if err != nil {
		return nil, fmt.Errorf("open audit log: %w", err)
	}
	key, fresh, err := openKey(cfg.StateDir, files)
	if err != nil {
		return nil, fmt.Errorf("open audit log: %w", err)
	}
	name := headName
	if cfg.second {
		// The first log has a record if there was one before.
		key, name, fresh = key.second(), secondHeadName, true
	}
	head, err := openHead(cfg.StateDir, name, &key)
	if err != nil {
		return nil, err
	}
	l := &Log{cfg: cfg, key: key, head: head, mac: key.chainMAC(), own: newLine(key.masker()), kept: 1, folds: newFolder()}
	l.tail.hash = genesis()
	// On a single CPU the caller that leads does not run until the others park.
	if runtime.GOMAXPROCS(0) > 1 {
		l.queue.looks = maxLooks
	}
	if err := l.resume(files, fresh); err != nil {
		if l.file != nil {
			err = errors.Join(err, l.file.Close())
		}
		return nil, errors.Join(fmt.Errorf("open audit log: %w", err), head.file.Close())
	}
	return l, nil
}

// openKey loads the key, or makes it for a log that has no records.
func openKey(stateDir string, files []logFile) (key Key, fresh bool, err error) {
	key, err = LoadKey(stateDir)
	if !errors.Is(err, fs.ErrNotExist) {
		return key, false, err
	}
	existing := []string{filepath.Join(stateDir, headName)}
	for _, file := range files {
		existing = append(existing, file.path)
	}
	for _, path := range existing {
		if info, err := os.Lstat(path); err == nil && info.Size() > 0 {
			return Key{}, false, fmt.Errorf("%s is missing from %s but %s is there: put the key back, or move the old log and %s away to begin a new one",
				keyName, stateDir, path, headName)
		}
	}
	key, err = createKey(stateDir)
	return key, true, err
}

// resume finds the end of the chain and opens the current file.
func (l *Log) resume(files []logFile, fresh bool) error {
	at, err := readHead(l.head.file, &l.key)
	switch {
	case err == nil:
		err = l.resumeAt(files, at)
	case !errors.Is(err, errNoHead) && !errors.Is(err, errBadHead):
		return err
	default:
		err = l.resumeWithoutHead(files, fresh, err)
	}
	if err != nil {
		return err
	}
	if err := l.openFile(); err != nil {
		return err
	}
	if l.first == at.first {
		l.refused = min(at.refused, l.size)
	}
	if l.tail.seq == 0 {
		if err := l.head.write(position{tail: l.tail, kept: l.kept}); err != nil {
			return fmt.Errorf("write %s: %w", l.head.name, err)
		}
		return atomicfile.SyncDir(l.cfg.StateDir)
	}
	// A full disk is no reason not to start: what cannot be written now is
	// written before the next record, which is refused until then.
	l.err = l.flushNotes()
	return nil
}

// resumeWithoutHead takes all records on the word of their hashes.
func (l *Log) resumeWithoutHead(files []logFile, fresh bool, cause error) error {
	if len(files) == 0 {
		if !fresh {
			l.markUnverified("the log begins again with the key of an earlier one: %v", cause)
		}
		return nil
	}
	l.markUnverified("the end of the log could not be proved when it was opened: %v", cause)
	return l.scanAll(files, 0)
}

// resumeAt goes on from the head: what lies behind it was written just before
// the process was killed.
func (l *Log) resumeAt(files []logFile, at position) error {
	l.tail, l.kept = at.tail, max(at.kept, 1)
	if at.seq == 0 {
		return l.scanAll(files, 0)
	}
	for i, file := range files {
		if file.first != 0 && file.first != at.first {
			continue
		}
		first, size, ending, err := inspect(file, at.size)
		if err != nil {
			return err
		}
		switch {
		case first != at.first:
			continue
		case size < at.size:
			l.markUnverified("%s has %d bytes, and record %d, the last, ended at %d", filepath.Base(file.path), size, at.seq, at.size)
		case ending != string(at.hash[:]):
			l.markUnverified("the last record of %s is not record %d as it was written", filepath.Base(file.path), at.seq)
		}
		return l.scanAll(files[i:], min(at.size, size))
	}
	l.markUnverified("the file that held record %d, the last, is gone", at.seq)
	return nil
}

// scanAll scans files in order, the first from offset on.
func (l *Log) scanAll(files []logFile, offset int64) error {
	for _, file := range files {
		if err := l.scan(file, offset); err != nil {
			return err
		}
		offset = 0
	}
	return nil
}

// markUnverified has the next record say that records may be missing before it.
func (l *Log) markUnverified(format string, args ...any) {
	l.notes, l.unproved = append(l.notes, fmt.Sprintf(format, args...)), true
}

// inspect returns the number of a file's first record, its size, and the hash
// of the record that ends at offset end.
func inspect(f logFile, end int64) (first uint64, size int64, ending string, err error) {
	file, err := openRegular(f.path)
	if err != nil {
		return 0, 0, "", err
	}
	defer file.Close()
	info, err := file.Stat()
	if err != nil {
		return 0, 0, "", err
	}
	if first, err = firstRecord(file); err != nil {
		return 0, 0, "", err
	}
	// The newline that ends a record may have come with the next.
	room := int64(hashRoom + 1)
	if end < room || info.Size() < end {
		return first, info.Size(), "", nil
	}
	data := make([]byte, room)
	if _, err := file.ReadAt(data, end-room); err != nil {
		return 0, 0, "", err
	}
	if data[room-1] != '\n' {
		data = data[1:]
	}
	return first, info.Size(), string(data[len(openHash) : len(openHash)+hashLen]), nil
}

// scan reads a file from offset on. A record with a genuine hash becomes the
// end of the chain; bytes behind the last one are torn.
func (l *Log) scan(f logFile, offset int64) error {
	file, err := openRegular(f.path)
	if err != nil {
		return err
	}
	defer file.Close()
	if _, err := file.Seek(offset, io.SeekStart); err != nil {
		return err
	}
	lines := newLines(file)
	for {
		line, err := lines.next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		link, ok := parseLink(line.data)
		if ok && line.whole && link.genuine(l.mac, make([]byte, sha256.Size)) && link.seq > l.tail.seq {
			l.tail, l.truncated = link.tail(), nil
			if entry, err := decode(line.data); err == nil && entry.Kind == string(KindRotation) {
				l.kept = max(l.kept, entry.First)
			}
			continue
		}
		if l.truncated == nil && len(line.data) == 0 {
			continue // the newline of the record before
		}
		if l.truncated == nil {
			l.truncated = newTruncatedTail()
		}
		l.truncated.add(line.data)
		if line.ended {
			l.truncated.add([]byte("\n"))
		}
	}
}

var _ authz.BatchRecorder = (*Log)(nil)
