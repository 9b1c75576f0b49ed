package audit

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/chaperone-proxy/chaperone/authz"
)

// secondSuffix names the log of the refusals that the first has no room for.
const secondSuffix = ".refused"

// SecondFile returns where the refusals are that the log in file has no room for.
// It is rotated as file is.
func SecondFile(file string) string { return file + secondSuffix }

// second returns the configuration of the second log.
func (c Config) secondOf() Config {
	c.File, c.MaxSize, c.second = SecondFile(c.File), max(c.MaxSize/refusedShare, 1), true
	return c
}

// hasSecond reports whether there is a second log, or was one.
func hasSecond(cfg Config) (bool, error) {
	files, err := listFiles(SecondFile(cfg.File))
	if err != nil || len(files) > 0 {
		return len(files) > 0, err
	}
	_, err = os.Lstat(filepath.Join(cfg.StateDir, secondHeadName))
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return err == nil, err
}

// putSecond puts refusals at the end of the second log, and names its last record
// here whenever a file of it begins. The caller holds mu.
func (l *Log) putSecond(e *entry) error {
	if l.second == nil {
		second, err := open(l.cfg.secondOf())
		if err != nil {
			return err
		}
		l.second = second
	}
	e.refused = false // there it is like any record
	if err := l.second.putNow(e); err != nil {
		return err
	}
	if end, first := l.second.end(); l.linked == 0 || first != l.linkedIn {
		return l.link(e.now, end, first)
	}
	return nil
}

// putNow puts an entry at the end of a second log, whose only writer holds the first's mu.
func (l *Log) putNow(e *entry) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.put(e)
}

// end returns the last record, and the first of its file.
func (l *Log) end() (end tail, first uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.tail, l.first
}

// link writes the record that names the end of the second log. It is for the
// refusals, and counts as one.
func (l *Log) link(now time.Time, end tail, first uint64) error {
	if err := l.prepare(now, 0); err != nil {
		return err
	}
	record := authz.Record{Time: now, Kind: KindOverflow, UID: -1, Detail: "refusals are in " + filepath.Base(l.second.cfg.File)}
	l.own.encode(&record, true)
	l.own.uint(`,"refused_seq":`, end.seq)
	l.own.text(`,"refused_hash":"`, string(end.hash[:]))
	before := l.size
	_, err := l.commit(l.own)
	l.refused += l.size - before
	if err == nil {
		l.linked, l.linkedIn = end.seq, first
	}
	return err
}

// closeSecond names the end of the second log and closes it. The caller holds mu.
func (l *Log) closeSecond() error {
	if l.second == nil {
		return nil
	}
	err := l.second.Close()
	if end, first := l.second.tail, l.second.first; l.file != nil && end.seq > 0 && end.seq != l.linked {
		err = errors.Join(err, l.link(l.cfg.Now(), end, first))
	}
	return err
}
