package accesslog

import (
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

	"github.com/chaperone-proxy/chaperone/internal/decompress"
)

// stdin is the name of the log on standard input.
const stdin = "-"

// logFiles are the files of one log.
type logFiles struct {
	name          string // path of the current file
	first, second []logFile
	whole         bool // all files that are there were found
}

// logFile is one file of a log.
type logFile struct {
	path  string
	first uint64 // the number of its first record, from its name; 0 for the current file
}

// fileName is what the name of a file states.
type fileName struct {
	log    string // the name of the log's current file
	second bool   // it is of the log of the refusals that the first has no room for
	first  uint64 // 0 for the current file
}

// rotatedDigits is the least number of digits of a rotated file's number.
const rotatedDigits = 12

func parseName(base string) fileName {
	base = decompress.TrimName(base)
	var name fileName
	if rest, number, ok := cutLast(base, "."); ok && len(number) >= rotatedDigits {
		if first, err := strconv.ParseUint(number, 10, 64); err == nil && first > 0 {
			base, name.first = rest, first
		}
	}
	name.log, name.second = strings.CutSuffix(base, ".refused")
	return name
}

func cutLast(s, sep string) (before, after string, found bool) {
	if i := strings.LastIndex(s, sep); i >= 0 {
		return s[:i], s[i+len(sep):], true
	}
	return s, "", false
}

// finder groups files by their logs.
type finder struct {
	logs  []*logFiles
	byLog map[string]*logFiles
	seen  map[string]bool
}

// find returns the logs of files and folders, in the order in which they are named.
func find(paths []string) ([]*logFiles, error) {
	f := finder{byLog: map[string]*logFiles{}, seen: map[string]bool{}}
	for _, path := range paths {
		if err := f.path(path); err != nil {
			return nil, err
		}
	}
	for _, l := range f.logs {
		for _, files := range [][]logFile{l.first, l.second} {
			if err := order(files); err != nil {
				return nil, err
			}
		}
	}
	return f.logs, nil
}

// order sorts the files of a chain: the current one is the last.
func order(files []logFile) error {
	slices.SortFunc(files, func(a, b logFile) int { return cmp.Compare(a.first-1, b.first-1) })
	for i := 1; i < len(files); i++ {
		if files[i].first == files[i-1].first {
			return fmt.Errorf("%s and %s are the same part of the log; remove one", files[i-1].path, files[i].path)
		}
	}
	return nil
}

func (f *finder) path(path string) error {
	if path == stdin {
		f.log(stdin).first = []logFile{{path: stdin}}
		return nil
	}
	info, err := os.Stat(path)
	if err != nil {
		return err
	}
	if info.IsDir() {
		return f.folder(path)
	}
	path, err = filepath.EvalSymlinks(path)
	if err != nil {
		return err
	}
	name := parseName(filepath.Base(path))
	f.add(path, name)
	if name.first == 0 && !name.second {
		return f.beside(path, name.log)
	}
	return nil
}

// folder adds the logs in a folder and below. Symbolic links in it are not followed.
func (f *finder) folder(path string) error {
	found := false
	err := filepath.WalkDir(path, func(path string, entry fs.DirEntry, err error) error {
		if err != nil || !entry.Type().IsRegular() {
			return err
		}
		if name := parseName(entry.Name()); strings.HasSuffix(name.log, ".jsonl") {
			found = true
			f.add(path, name)
			f.log(filepath.Join(filepath.Dir(path), name.log)).whole = true
		}
		return nil
	})
	if err == nil && !found {
		err = fmt.Errorf("%s holds no audit log, whose name ends in .jsonl; name the file", path)
	}
	return err
}

// beside adds the files of a log that are beside its current file.
func (f *finder) beside(path, log string) error {
	dir := filepath.Dir(path)
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, entry := range entries {
		if name := parseName(entry.Name()); name.log == log && entry.Type().IsRegular() {
			f.add(filepath.Join(dir, entry.Name()), name)
		}
	}
	f.log(filepath.Join(dir, log)).whole = true
	return nil
}

func (f *finder) add(path string, name fileName) {
	if f.seen[path] {
		return
	}
	f.seen[path] = true
	l := f.log(filepath.Join(filepath.Dir(path), name.log))
	if name.second {
		l.second = append(l.second, logFile{path, name.first})
	} else {
		l.first = append(l.first, logFile{path, name.first})
	}
}

func (f *finder) log(name string) *logFiles {
	l := f.byLog[name]
	if l == nil {
		l = &logFiles{name: name}
		f.byLog[name], f.logs = l, append(f.logs, l)
	}
	return l
}

// openLog opens a file of a log and decompresses it if its content is compressed.
func openLog(path string, in io.Reader) (io.ReadCloser, error) {
	closer := io.NopCloser(nil)
	if path != stdin {
		file, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0)
		if err != nil {
			return nil, err
		}
		info, err := file.Stat()
		if err == nil && !info.Mode().IsRegular() {
			err = fmt.Errorf("%s is not a regular file", path)
		}
		if err != nil {
			return nil, errors.Join(err, file.Close())
		}
		in, closer = file, file
	}
	out, err := decompress.Reader(in)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("%s: %w", path, err), closer.Close())
	}
	return struct {
		io.Reader
		io.Closer
	}{out, closer}, nil
}
