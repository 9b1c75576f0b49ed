package audit

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/chaperone-proxy/chaperone/authz"
	"github.com/chaperone-proxy/chaperone/internal/decompress"
)

// VerifyConfig is the log to verify.
type VerifyConfig struct {
	// File is the log; its rotated files are found beside it.
	File string
	// StateDir holds audit.key and audit.head. "" verifies the links alone:
	// neither the contents nor the end of the log are proved then.
	StateDir string
}

// Report is what Verify found.
type Report struct {
	Files   []string // in order
	Records uint64   // how many there are
	First   uint64   // number of the first record; 0 for none
	Last    uint64   // number of the last record; 0 for none
	Removed uint64   // records removed by the limit on rotated files, according to the log
	// Since is the time of the first record. When there is no Problem, the log is
	// whole from there on.
	Since time.Time
	// Refused is the report of the second log, which has the refusals that the first
	// has no room for; nil without one.
	Refused *Report
	Keyed   bool     // hashes were checked with the key, and the end with audit.head
	Notes   []string // explained irregularities
	Problem *Problem // the first fault; nil if the log is proved
}

// Problem is the first bad record of a log.
type Problem struct {
	File string // path
	Line int    // from 1; 0 for the file as a whole
	Seq  uint64 // of the record, as written or as expected
	What string // the fault
}

// String returns the problem on one line.
func (p Problem) String() string {
	where := p.File
	if p.Line > 0 {
		where = fmt.Sprintf("%s:%d", p.File, p.Line)
	}
	if p.Seq > 0 {
		where = fmt.Sprintf("%s: record %d", where, p.Seq)
	}
	return where + ": " + p.What
}

// WholeSince describes from where on the log is complete, and the reason for the
// missing part before.
func (r Report) WholeSince() string {
	if r.Records == 0 {
		return "empty"
	}
	text := fmt.Sprintf("whole since %s (record %d)", r.Since.UTC().Format(time.RFC3339), r.First)
	if r.First == 1 {
		return text + ", its beginning"
	}
	return fmt.Sprintf("%s: %d older ones were removed by audit.maxSize and audit.keep, as the log records", text, r.First-1)
}

// Proves describes the result of the report.
func (r Report) Proves() string {
	if r.Problem != nil {
		return "no record from " + strconv.FormatUint(r.Problem.Seq, 10) + " on; the log is not what was written"
	}
	if !r.Keyed {
		return "the links hold; without the key neither the contents of the records nor the end of the log are proved"
	}
	return "no record was edited, removed, added or moved, and none is missing at the end"
}

// Verify walks a log from its oldest file to its end, then the second log, and
// reports the first fault. Rotated files may have been compressed by gzip or zstd. The log may be in use. An error means that it could not
// be read, not that its contents are wrong.
func Verify(cfg VerifyConfig) (Report, error) {
	first, err := newVerifier(cfg.File, cfg.StateDir, false)
	if err == nil {
		err = first.run()
	}
	if err != nil {
		return Report{}, fmt.Errorf("verify audit log: %w", err)
	}
	had, err := hasSecond(Config{File: cfg.File, StateDir: cfg.StateDir})
	if err != nil {
		return Report{}, fmt.Errorf("verify audit log: %w", err)
	}
	if !had && first.linked.seq == 0 {
		return first.report, nil
	}
	second, err := newVerifier(SecondFile(cfg.File), cfg.StateDir, true)
	if err == nil {
		second.linked = first.linked
		err = second.run()
	}
	if err != nil {
		return Report{}, fmt.Errorf("verify audit log: %w", err)
	}
	first.report.Refused = &second.report
	if first.report.Problem == nil {
		first.report.Problem = second.report.Problem
	}
	return first.report, nil
}

// newVerifier returns a verifier of one of the two logs.
func newVerifier(file, stateDir string, second bool) (*verifier, error) {
	v := &verifier{
		file: file, second: second, expectedHead: expectedHead{headName: headName}, done: map[uint64]bool{}, lines: newLines(nil), scratch: make([]byte, sha256.Size),
	}
	v.tail.hash = genesis()
	if stateDir == "" {
		return v, nil
	}
	key, err := LoadKey(stateDir)
	if err != nil {
		return nil, err
	}
	if second {
		key, v.headName = key.second(), secondHeadName
	}
	// Before the records: those written from here on prove themselves.
	v.head, v.headErr = loadHead(stateDir, v.headName, &key)
	if v.headErr != nil && !errors.Is(v.headErr, errNoHead) && !errors.Is(v.headErr, errBadHead) {
		return nil, v.headErr
	}
	v.mac, v.report.Keyed = key.chainMAC(), true
	return v, nil
}

// run verifies the log.
func (v *verifier) run() error {
	if err := v.walk(); err != nil {
		return err
	}
	v.conclude()
	return nil
}

type verifier struct {
	file    string
	second  bool
	report  Report
	mac     hash.Hash // nil without the key
	scratch []byte    // for its sums
	lines   *lines    // of the file
	expectedHead

	path    string
	line    int
	done    map[uint64]bool // rotated files, by their first record
	tail    tail
	began   bool    // a record was seen
	region  *region // bytes since the last record that are not a record
	gaps    []gap   // and other problems, in the order of the log
	kept    uint64  // records below were removed by the log itself
	before  string  // the hash that the first record names as the one before it
	removed string  // the hash of the last removed record, according to the log
	linked  tail    // of the second log, as the first names it; seq 0 for none
}

// expectedHead is the record that the head names as the last one.
type expectedHead struct {
	headName string // file of the head
	head     position
	headErr  error // why there is no position
	ended    int64 // offset behind the record; 0 until it was read
}

// gap is a jump in the numbers, legitimate when it lies below what was kept.
type gap struct {
	problem  Problem
	from, to uint64 // the numbers that are missing; 0 for any other problem
}

// region is a run of bytes that are no record.
type region struct {
	truncatedTail
	problem   Problem
	plausible bool   // all of it may be beginnings of the next record
	newline   bool   // it ends in one, which is not added yet
	path      string // of its end
}

// maxMoves bounds how often a file may have been moved away between its listing
// and its opening.
const maxMoves = 100

// walk reads the files in order. The list is read again after each,
// because the log may be rotated during the walk.
func (v *verifier) walk() error {
	for moves := 0; moves < maxMoves; {
		files, err := listAll(v.file)
		if err != nil {
			return err
		}
		files = slices.DeleteFunc(files, func(f logFile) bool { return v.done[f.first] })
		if len(files) == 0 {
			if len(v.done) == 0 && v.mac == nil && !v.second {
				return fmt.Errorf("open %s: %w", v.file, fs.ErrNotExist)
			}
			return nil
		}
		again, err := v.walkFile(files[0])
		switch {
		case again || errors.Is(err, fs.ErrNotExist):
			moves++
		case err != nil || files[0].first == 0:
			return err
		default:
			v.done[files[0].first] = true
		}
	}
	return fmt.Errorf("open %s: it is moved away again and again", v.file)
}

// walkFile verifies one file. It reports true when the current file turns out
// to be a newer one than was due, after a rotation.
func (v *verifier) walkFile(f logFile) (again bool, err error) {
	file, err := openRegular(f.path)
	if err != nil {
		return false, err
	}
	defer file.Close()
	if f.first == 0 && v.superseded(file) {
		return true, nil
	}
	v.path = f.path
	v.report.Files = append(v.report.Files, f.path)
	content, err := decompress.Reader(io.NewSectionReader(file, 0, 1<<62))
	if err != nil {
		return false, fmt.Errorf("decompress %s: %w", f.path, err)
	}
	v.lines.reset(content)
	for {
		line, err := v.lines.next()
		if errors.Is(err, io.EOF) {
			return false, nil
		}
		if err != nil {
			return false, err
		}
		v.line = line.number
		v.check(line)
	}
}

// superseded reports whether file is the current one and a rotated file that
// was not verified yet has come before it.
func (v *verifier) superseded(file *os.File) bool {
	first, err := firstRecord(file)
	if err != nil || first <= v.tail.seq+1 {
		return false
	}
	files, err := listFiles(v.file)
	if err != nil {
		return false
	}
	return slices.ContainsFunc(files, func(f logFile) bool { return f.first > v.tail.seq && !v.done[f.first] })
}

// check judges one line.
func (v *verifier) check(line piece) {
	link, ok := parseLink(line.data)
	if !ok || !line.whole {
		v.unexpected(line)
		return
	}
	entry, err := v.special(line.data)
	v.closeRegion(entry, link.seq)
	switch {
	case v.mac != nil && !link.genuine(v.mac, v.scratch):
		v.problem(link.seq, "its contents are not what its hash was made of")
	case v.mac == nil && !json.Valid(line.data):
		v.problem(link.seq, "it is not JSON")
	case err != nil:
		v.problem(link.seq, "it cannot be read: "+err.Error())
	case entry.Kind == string(KindRotation):
		if entry.First > v.kept {
			v.kept, v.removed = entry.First, entry.RemovedHash
		}
	case entry.Kind == string(KindOverflow) && entry.RefusedSeq < v.linked.seq:
		v.problem(link.seq, fmt.Sprintf("it names record %d as the last of the second log, and an earlier one names record %d", entry.RefusedSeq, v.linked.seq))
	case entry.Kind == string(KindOverflow) && len(entry.RefusedHash) == hashLen:
		v.linked = tail{seq: entry.RefusedSeq, hash: [hashLen]byte([]byte(entry.RefusedHash))}
	}
	if !v.began {
		v.begin(link, line.data)
	}
	if v.second && link.seq == v.linked.seq {
		if string(link.hash) != string(v.linked.hash[:]) {
			v.problem(link.seq, "it is not the record that "+strings.TrimSuffix(filepath.Base(v.file), secondSuffix)+" names")
		}
	}
	v.follow(link)
	if entry.Unproved {
		v.problem(link.seq, "records may be missing before it: "+entry.Detail)
	}
	if v.mac != nil && v.headErr == nil && link.seq == v.head.seq {
		v.checkHead(link, line)
	}
	v.tail = link.tail()
	v.report.Records++
}

// special decodes the records about the log itself. A plugin's text cannot look like a
// kind: its quotes are escaped.
func (v *verifier) special(data []byte) (Entry, error) {
	_, kind, _ := bytes.Cut(data, []byte(`,"kind":"`))
	kind, _, _ = bytes.Cut(kind, []byte(`"`))
	switch authz.Kind(kind) {
	case KindRotation, KindOverflow, authz.KindLost:
		return decode(data)
	default:
		return Entry{}, nil
	}
}

// begin takes in the first record.
func (v *verifier) begin(l link, data []byte) {
	v.before = string(l.prev)
	if entry, err := decode(data); err == nil {
		v.report.Since = entry.Time
	}
}

// checkHead compares the record that audit.head names with audit.head.
func (v *verifier) checkHead(l link, line piece) {
	if string(l.hash) != string(v.head.hash[:]) {
		v.problem(l.seq, "it is not the record that "+v.headName+" names")
	}
	v.ended = line.end
	if line.ended && line.end == v.head.size+1 {
		// The disk was full: its newline came later.
		v.ended = v.head.size
	}
}

// follow checks that a record is the next one.
func (v *verifier) follow(l link) {
	switch {
	case !v.began:
		v.report.First, v.began = l.seq, true
		if l.seq == 1 && string(l.prev) != string(v.tail.hash[:]) {
			v.problem(l.seq, "it names a record before it, and is the first")
		}
		if l.seq > 1 {
			v.gap(1, l.seq)
		}
	case l.seq > v.tail.seq+1:
		v.gap(v.tail.seq+1, l.seq)
	case l.seq <= v.tail.seq:
		v.problem(l.seq, fmt.Sprintf("it stands behind record %d", v.tail.seq))
	case string(l.prev) != string(v.tail.hash[:]):
		v.problem(l.seq, "it does not name the record before it")
	}
}

func (v *verifier) gap(from, next uint64) {
	v.gaps = append(v.gaps, gap{problem: Problem{File: v.path, Line: v.line, Seq: next}, from: from, to: next - 1})
}

func missing(from, to uint64) string {
	if from == to {
		return fmt.Sprintf("record %d is missing", from)
	}
	return fmt.Sprintf("records %d to %d are missing", from, to)
}

// unexpected keeps account of bytes that are no record until one explains them.
func (v *verifier) unexpected(line piece) {
	r := v.region
	if r == nil {
		r = &region{truncatedTail: *newTruncatedTail(), plausible: true}
		r.problem = Problem{File: v.path, Line: v.line, Seq: v.tail.seq + 1, What: "it is not a record"}
		v.region = r
	}
	r.plausible = r.plausible && v.beginsNext(line)
	if r.newline {
		r.add([]byte("\n"))
	}
	r.add(line.data)
	r.newline, r.path = line.ended, v.path
}

// beginsNext reports whether a line may be what a failed write left of the
// record that comes next.
func (v *verifier) beginsNext(line piece) bool {
	if !line.whole {
		return false
	}
	want := fmt.Sprintf("%s%d%s%s\",\"time\":\"", openSeq, v.tail.seq+1, openPrev, v.tail.hash[:])
	n := min(len(want), len(line.data))
	return string(line.data[:n]) == want[:n]
}

// closeRegion checks that a record explains the unexpected bytes before it.
func (v *verifier) closeRegion(entry Entry, seq uint64) {
	r := v.region
	v.region = nil
	if r == nil {
		if entry.TornBytes != 0 {
			v.problem(seq, "the torn bytes that it explains are gone")
		}
		return
	}
	if r.newline && r.path != v.path {
		r.add([]byte("\n")) // in the same file it came with the record
	}
	if entry.TornBytes != r.size || entry.TornSHA256 != hex.EncodeToString(r.sum.Sum(nil)) {
		v.problemAt(r.problem)
		return
	}
	v.report.Notes = append(v.report.Notes, fmt.Sprintf("%s:%d: %d bytes are a record that was not written to its end; record %d explains it",
		r.problem.File, r.problem.Line, r.size, seq))
}

func (v *verifier) problem(seq uint64, what string) {
	v.problemAt(Problem{File: v.path, Line: v.line, Seq: seq, What: what})
}

// problemAt keeps the first problem. Gaps before it are kept apart until it is
// known which of them are legitimate.
func (v *verifier) problemAt(p Problem) {
	v.gaps = append(v.gaps, gap{problem: p})
}

// conclude judges the gaps, the bytes at the end and the head.
func (v *verifier) conclude() {
	v.report.Last = v.tail.seq
	v.line = 0
	if r := v.region; r != nil {
		if r.plausible {
			v.report.Notes = append(v.report.Notes, fmt.Sprintf("%s:%d: %d bytes at the end are a record that was not written to its end; nothing was allowed by it",
				r.problem.File, r.problem.Line, r.size))
		} else {
			v.problemAt(r.problem)
		}
	}
	if v.report.Keyed {
		v.path = v.file
		v.concludeHead()
	}
	v.concludeLink()
	for _, g := range v.gaps {
		if g.to != 0 && g.to < v.kept {
			v.report.Removed += g.to - g.from + 1
			if g.from != 1 || g.to+1 != v.kept || v.removed == "" || v.removed == v.before {
				continue
			}
			g.to, g.problem.What = 0, "it does not name the record before it that was removed last"
		}
		problem := g.problem
		if g.to != 0 {
			problem.What = missing(max(g.from, v.kept), g.to) + " before it"
		}
		v.report.Problem = &problem
		return
	}
}

func (v *verifier) concludeHead() {
	last := v.tail.seq
	switch {
	case v.headErr != nil:
		v.problem(last, "the end of the log cannot be proved: "+v.headErr.Error())
	case v.head.seq > last:
		v.problem(last+1, fmt.Sprintf("%s at the end: %s names record %d as the last", missing(last+1, v.head.seq), v.headName, v.head.seq))
	case v.head.seq > 0 && v.ended != v.head.size:
		v.problem(v.head.seq, fmt.Sprintf("it does not end at byte %d of its file, which is the end in %s", v.head.size, v.headName))
	}
}

// concludeLink checks that the second log reaches the record that the first names,
// with or without a head.
func (v *verifier) concludeLink() {
	if last := v.tail.seq; v.second && v.linked.seq > last {
		v.problem(last+1, fmt.Sprintf("%s at the end: %s names record %d", missing(last+1, v.linked.seq),
			strings.TrimSuffix(filepath.Base(v.file), secondSuffix), v.linked.seq))
	}
}

// DefaultStateDir returns the state directory that a log in its default place
// belongs to, or "" when there is no audit.key beside the file.
func DefaultStateDir(file string) string {
	dir := filepath.Dir(file)
	if _, err := os.Lstat(filepath.Join(dir, keyName)); err != nil {
		return ""
	}
	return dir
}
