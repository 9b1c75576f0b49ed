package audit

import (
	"bufio"
	"cmp"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"github.com/chaperone-proxy/chaperone/authz"
	"github.com/chaperone-proxy/chaperone/internal/decompress"
)

// nextSuffix names the file that becomes the log at a rotation.
const nextSuffix = ".next"

// logFile is one file of a log.
type logFile struct {
	path  string
	first uint64 // the first record's number, from the name; 0 for the current file
}

// rotatedName returns what a file is called once it is rotated: the log's name
// and the number of its first record, which sorts.
func rotatedName(file string, first uint64) string {
	return fmt.Sprintf("%s.%012d", file, first)
}

// listFiles returns the rotated files of a log in order, and last the current
// one, if it is there.
func listFiles(file string) ([]logFile, error) {
	return listFilesAs(file, func(name string) string { return name })
}

// listAll is listFiles with rotated files that somebody has compressed.
func listAll(file string) ([]logFile, error) { return listFilesAs(file, decompress.TrimName) }

// listFilesAs lists the files whose names are those of a log's files for named.
func listFilesAs(file string, named func(name string) string) ([]logFile, error) {
	entries, err := os.ReadDir(filepath.Dir(file))
	if err != nil {
		return nil, fmt.Errorf("list audit files: %w", err)
	}
	var files []logFile
	current := false
	for _, entry := range entries {
		if entry.Name() == filepath.Base(file) && !entry.IsDir() {
			current = true
			continue
		}
		suffix, ok := strings.CutPrefix(named(entry.Name()), filepath.Base(file))
		if !ok || entry.IsDir() {
			continue
		}
		first, err := strconv.ParseUint(strings.TrimPrefix(suffix, "."), 10, 64)
		if err == nil && first > 0 && file+suffix == rotatedName(file, first) {
			files = append(files, logFile{path: filepath.Join(filepath.Dir(file), entry.Name()), first: first})
		}
	}
	slices.SortFunc(files, func(a, b logFile) int { return cmp.Compare(a.first, b.first) })
	if current {
		files = append(files, logFile{path: file})
	}
	return files, nil
}

// openRegular opens a file of a log to read it. Another kind of file may
// have no end.
func openRegular(path string) (*os.File, error) {
	file, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	info, err := file.Stat()
	if err == nil && !info.Mode().IsRegular() {
		err = notRegular(path)
	}
	if err != nil {
		return nil, errors.Join(err, file.Close())
	}
	return file, nil
}

func notRegular(path string) error {
	return fmt.Errorf("%s is not a regular file: only one can be rotated and verified", path)
}

// openLog opens or creates the file at path to append to it, and locks it.
func openLog(path string) (*os.File, error) {
	file, err := os.OpenFile(path, os.O_RDWR|os.O_APPEND|os.O_CREATE|syscall.O_NOFOLLOW|syscall.O_NONBLOCK, 0o600)
	if errors.Is(err, syscall.ELOOP) {
		return nil, fmt.Errorf("open audit log: %s is a symbolic link; name the file itself", path)
	}
	if err != nil {
		return nil, fmt.Errorf("open audit log: %w", err)
	}
	info, err := file.Stat()
	if err == nil && !info.Mode().IsRegular() {
		err = notRegular(path)
	}
	if err == nil {
		err = lock(file)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("open audit log: %w", err), file.Close())
	}
	return file, nil
}

// openFile opens the log's current file and takes it as it is.
func (l *Log) openFile() error {
	file, err := openLog(l.cfg.File)
	if err != nil {
		return err
	}
	l.refused = 0
	if err := l.resumeFrom(file); err != nil {
		return errors.Join(fmt.Errorf("open audit log: %w", err), file.Close())
	}
	return nil
}

// resumeFrom makes file the one that is written, going on behind what it holds.
func (l *Log) resumeFrom(file *os.File) error {
	info, err := file.Stat()
	if err != nil {
		return err
	}
	first, newline := uint64(0), false
	if info.Size() > 0 {
		var last [1]byte
		if _, err := file.ReadAt(last[:], info.Size()-1); err != nil {
			return err
		}
		newline = last[0] != '\n'
		if first, err = firstRecord(file); err != nil {
			return err
		}
	}
	l.file, l.size, l.first, l.newline = file, info.Size(), first, newline || l.truncated != nil && info.Size() > 0
	l.rotated = info.Size() == 0 && l.tail.seq > 0
	l.rotateAt, l.refused = l.mostOwn(), min(l.refused, info.Size())
	return nil
}

// mostOwn is how many bytes of a file are for what is no refusal.
func (l *Log) mostOwn() int64 {
	if l.cfg.second {
		return l.cfg.MaxSize
	}
	return l.cfg.MaxSize - 2*(l.cfg.MaxSize/refusedShare)
}

// firstRecord returns the number of the first record in a file, or 0. Only
// bytes that are not a record can come before it.
func firstRecord(r io.ReaderAt) (uint64, error) {
	lines := newLines(io.NewSectionReader(r, 0, 1<<62))
	for {
		line, err := lines.next()
		if errors.Is(err, io.EOF) {
			return 0, nil
		}
		if err != nil {
			return 0, err
		}
		if link, ok := parseLink(line.data); ok && line.whole {
			return link.seq, nil
		}
	}
}

// checkPlace notices that the file was moved, removed or cut by somebody else,
// and goes on in its place. The chain is not mended: verify shows what is gone.
func (l *Log) checkPlace() {
	if l.file == nil {
		return
	}
	here, err := os.Lstat(l.cfg.File)
	open, openErr := l.file.Stat()
	switch {
	case openErr != nil:
	case err != nil || !os.SameFile(here, open):
		l.notes = append(l.notes, "the log file was moved or removed while it was written")
		l.retire(l.file)
		l.file = nil
	case here.Size() != l.size:
		l.notes = append(l.notes, fmt.Sprintf("the log file has %d bytes where %d were written", here.Size(), l.size))
		l.warning = l.resumeFrom(l.file)
	}
}

// rotate moves the current file aside and begins a new one. If that fails, the log
// continues in the file and records the failure: a file that is too large loses no
// record.
func (l *Log) rotate() {
	next, err := l.startNext()
	if err != nil {
		l.warning = fmt.Errorf("rotate audit log: %w", err)
		l.rotateAt = l.size - l.refused + max(l.cfg.MaxSize/16, 1)
		return
	}
	l.retire(l.file)
	l.file, l.size, l.refused, l.first, l.newline = next, 0, 0, 0, false
	l.rotated, l.rotateAt, l.warning = true, l.mostOwn(), nil
	l.rotations++
}

// retire syncs and closes a file that is not written any more, while the next
// one is. Close waits for it.
func (l *Log) retire(file *os.File) {
	l.syncing.Go(func() {
		if err := errors.Join(file.Sync(), file.Close()); err != nil {
			l.mu.Lock()
			defer l.mu.Unlock()
			l.warning = fmt.Errorf("sync audit log: %w", err)
		}
	})
}

// startNext puts an empty file in the place of the current one. Killed at any
// point it leaves what Open can go on from.
func (l *Log) startNext() (*os.File, error) {
	path, aside := l.cfg.File, rotatedName(l.cfg.File, l.first)
	if _, err := os.Lstat(aside); !errors.Is(err, fs.ErrNotExist) {
		return nil, errors.Join(fmt.Errorf("%s is there already", aside), err)
	}
	next, err := openLog(path + nextSuffix)
	if err != nil {
		return nil, err
	}
	info, err := next.Stat()
	if err == nil && info.Size() > 0 {
		err = fmt.Errorf("%s is not empty", next.Name())
	}
	if err == nil {
		err = os.Rename(path, aside)
	}
	if err != nil {
		return nil, errors.Join(err, next.Close())
	}
	if err := os.Rename(path+nextSuffix, path); err != nil {
		return nil, errors.Join(err, os.Rename(aside, path), next.Close())
	}
	return next, nil
}

// noteRotation writes the record that begins a file, and only then removes the
// files that are too many: what is missing without such a record was removed
// by somebody else. The record names them, and the hash of the last record that
// is removed, which the first that is kept repeats.
func (l *Log) noteRotation() error {
	expired, last := l.expiredFiles()
	record := authz.Record{Time: l.cfg.Now(), Kind: KindRotation, UID: -1}
	if len(expired) > 0 {
		var names []string
		for _, path := range expired[:min(len(expired), maxFiles)] {
			names = append(names, filepath.Base(path))
		}
		record.Detail = fmt.Sprintf("%d files are kept beside the current one; removed: %s", l.cfg.Keep, strings.Join(names, ", "))
	}
	l.own.encode(&record, true)
	l.own.uint(`,"first":`, l.kept)
	if last.seq > 0 {
		l.own.text(`,"removed_hash":"`, string(last.hash[:]))
	}
	if _, err := l.commit(l.own); err != nil {
		return err
	}
	l.rotated = false
	for _, path := range expired {
		if err := os.Remove(path); err != nil {
			l.warning = fmt.Errorf("remove expired audit log: %w", err)
		}
	}
	return nil
}

// expiredFiles returns the rotated files that are too many and the last record in
// them, and raises kept above their records and no further. A file whose end is
// no record stays: it is evidence.
func (l *Log) expiredFiles() (remove []string, end tail) {
	if l.cfg.Keep < 0 {
		return nil, tail{}
	}
	files, err := listFiles(l.cfg.File)
	if err != nil {
		l.warning = err
		return nil, tail{}
	}
	files = slices.DeleteFunc(files, func(f logFile) bool { return f.first == 0 })
	for _, file := range files[:max(0, len(files)-l.cfg.Keep)] {
		last, err := lastRecord(file.path)
		if err != nil || last.seq == 0 {
			l.warning = errors.Join(fmt.Errorf("remove expired audit log: %s does not end in a record", file.path), err)
			continue
		}
		if last.seq+1 > l.kept {
			l.kept, end = last.seq+1, last
		}
		remove = append(remove, file.path)
	}
	return remove, end
}

// lastRecord returns the last record in a file; seq is 0 without one.
func lastRecord(path string) (last tail, err error) {
	file, err := openRegular(path)
	if err != nil {
		return tail{}, err
	}
	defer file.Close()
	info, err := file.Stat()
	if err != nil {
		return tail{}, err
	}
	from := max(0, info.Size()-2*maxLine)
	lines := newLines(io.NewSectionReader(file, from, info.Size()-from))
	for {
		line, err := lines.next()
		if errors.Is(err, io.EOF) {
			return last, nil
		}
		if err != nil {
			return tail{}, err
		}
		if link, ok := parseLink(line.data); ok {
			last = link.tail()
		}
	}
}

// lines splits a file. It holds one line at a time, and of one that is too
// long to be a record one piece at a time.
type lines struct {
	reader *bufio.Reader
	number int
	offset int64 // behind what was returned
	inside bool  // the last piece did not end its line
	ended  bool  // the end was met; what is appended later is not a new line
}

// piece is a line, or a part of one that is too long.
type piece struct {
	data   []byte // without the newline; valid until the next call
	ended  bool   // by a newline
	whole  bool   // a line from its beginning to its end, newline or not
	number int    // of the line, from 1
	end    int64  // offset behind it
}

func newLines(r io.Reader) *lines {
	return &lines{reader: bufio.NewReaderSize(r, maxLine)}
}

// reset begins with another file.
func (l *lines) reset(r io.Reader) {
	l.reader.Reset(r)
	*l = lines{reader: l.reader}
}

// next returns the next line, and io.EOF after the last.
func (l *lines) next() (piece, error) {
	if l.ended {
		return piece{}, io.EOF
	}
	data, err := l.reader.ReadSlice('\n')
	l.ended = errors.Is(err, io.EOF)
	if len(data) == 0 && err != nil {
		return piece{}, err
	}
	if err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, bufio.ErrBufferFull) {
		return piece{}, err
	}
	if !l.inside {
		l.number++
	}
	p := piece{data: data, number: l.number, whole: !l.inside && !errors.Is(err, bufio.ErrBufferFull)}
	l.offset += int64(len(data))
	p.end = l.offset
	if err == nil {
		p.data, p.ended = data[:len(data)-1], true
	}
	l.inside = errors.Is(err, bufio.ErrBufferFull)
	return p, nil
}
