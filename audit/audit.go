// Package audit records. It writes one JSON line for each record into a file,
// chained by a keyed hash, and refuses what it cannot write: a [Log] is the
// authz.Recorder of a sidecar. [Verify] proves a log, and [Reader] reads it.
//
// # The chain
//
// A line is a JSON object that begins with seq and prev and ends with hash:
//
//	{"seq":7,"prev":"<hash of 6>","time":"...","kind":"decision",...,"hash":"<hash of 7>"}
//
// hash is HMAC-SHA256 (RFC 2104) in base64url without padding (RFC 4648,
// section 5), keyed with audit.key, over every byte of the line before
// `,"hash":`. prev repeats the hash of the line before, also across files; in
// the first record it is 32 zero bytes. So the links can be followed without
// the key, and nothing can be edited, removed, put in or moved without it.
//
// The chain alone cannot show a truncated end. audit.head, in
// the state directory, names the last record and where it ends. It is written
// after the record and before Record returns, so it covers every record that
// anything was allowed by, also when the process is killed at any instant: a
// record that was written and is not in the head yet proves itself by its hash.
//
// # Refusals
//
// A plugin can cause any number of refusals, so refusals neither fill the log nor
// displace other records. Equal ones are counted after the first of a
// minute, and the counts are records of their own. Refusals take at most an eighth
// of each file; beyond that they go to a second log, FILE.refused, whose files are
// an eighth as large and rotate by themselves. Everything else rotates by its own
// size alone. The second log has a chain of its own, with a key derived from
// audit.key and a head in audit.refused.head; records of kind overflow in the first
// log name its last record, so that it cannot be removed without a trace.
//
// # Limits of the proof
//
// A user who can read audit.key can forge; one who can restore an older copy of
// both the log and audit.head can roll back to it. Against them, ship the log
// to another host as it is written. A record is handed to the kernel, not
// fsynced: a power cut can lose the last ones, and the next start records it
// instead of closing the gap.
package audit

import (
	"errors"
	"fmt"
	"hash"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/chaperone-proxy/chaperone/authz"
)

// Defaults of Config.
const (
	DefaultMaxSize = 256 << 20 // bytes
	DefaultKeep    = 20        // rotated files
	DefaultFile    = "audit.jsonl"
)

// Kinds of records that the log writes of itself, beside authz.KindLost.
const (
	// KindRotation is the first record of every file but the first. Its field
	// first is the lowest sequence number that is still kept: files before it
	// were removed by the limit on their number and are not missing.
	KindRotation authz.Kind = "rotation"
	// KindOverflow names the last record of the second log, which has the refusals
	// beyond those that the first has room for. Its fields refused_seq and
	// refused_hash are that record's.
	KindOverflow authz.Kind = "overflow"
)

// A file of the log is never larger than MaxSize: an eighth of it is for refusals,
// and an eighth for a file of the second log, which has as many.
const refusedShare = 8

// Config is where a log is and how much it keeps.
type Config struct {
	// File is the log. "" is DefaultFile in StateDir. Its folder must exist.
	File string
	// StateDir holds audit.key and audit.head. Required.
	StateDir string
	// MaxSize bounds a file in bytes, 0 is DefaultMaxSize. It is rotated when what is
	// not a refusal takes three quarters of it. All files together, those of the
	// second log included, take at most MaxSize times Keep+1.
	MaxSize int64
	// Keep is how many rotated files are kept beside the current one; 0 is
	// DefaultKeep, a negative number keeps all.
	Keep int
	// FullPaths is asked for each record; true writes paths and queries as they are,
	// false masks in paths what the rule's wildcards matched, and all of a query.
	// Lease ids are always masked. It must not block. nil always masks.
	FullPaths func() bool
	// Now is the wall clock, for records that the log writes of itself; nil is time.Now.
	Now func() time.Time
	// Observe is called with every record that was written, after it was and
	// without a lock, possibly at the same time from several goroutines. It must
	// not keep the record. nil: not called.
	Observe func(*authz.Record)

	second bool // the log is the second one
}

func (c Config) withDefaults() (Config, error) {
	if c.StateDir == "" {
		return c, errors.New("a state directory is required")
	}
	if c.File == "" {
		c.File = filepath.Join(c.StateDir, DefaultFile)
	}
	if c.MaxSize == 0 {
		c.MaxSize = DefaultMaxSize
	}
	if c.MaxSize < 0 {
		return c, fmt.Errorf("maximum size %d is below 0", c.MaxSize)
	}
	if c.Keep == 0 {
		c.Keep = DefaultKeep
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	if c.FullPaths == nil {
		c.FullPaths = func() bool { return false }
	}
	return c, nil
}

// ErrClosed is the error of recording to a closed log.
var ErrClosed = errors.New("audit log is closed")

// checkEvery is how often Record looks whether the file is still in its place.
const checkEvery = time.Second

// Log is an open audit log, and an authz.BatchRecorder. It is safe for concurrent use.
//
// Locks are taken in this order: flushing, folds' own, mu of the log, queue's own or
// mu of the second log, its queue's own.
type Log struct {
	cfg Config
	key Key
	groupCommit

	folds    *folder    // of refusals; unused in the second log
	flushing sync.Mutex // held while folds are written

	mu sync.Mutex // guards what follows
	currentFile
	secondLog
	unreported
	tail      tail           // the last record
	kept      uint64         // the lowest record that was not removed by Keep
	err       error          // of the last attempt to write; nil when it succeeded
	warning   error          // of rotation: the log is written, but not as configured
	head      *headFile      // names the last record
	mac       hash.Hash      // HMAC-SHA256 with the chain's key
	own       *line          // for records of the log's own kinds
	written   uint64         // records written by this Log
	rotations uint64         // files begun by this Log because one was full
	closed    bool           // no record is written any more
	syncing   sync.WaitGroup // fsyncs of rotated files
}

// currentFile is the file that records are appended to.
type currentFile struct {
	file     *os.File  // nil until the first record, and after a failed reopening
	size     int64     // in bytes
	refused  int64     // bytes of it that are refusals
	first    uint64    // the first record in it; 0 when it is empty
	newline  bool      // it lacks the newline of its last record
	rotated  bool      // it is new and needs its rotation record
	rotateAt int64     // size at which rotation is tried; grows when it fails
	checked  time.Time // when it was last seen in its place
}

// secondLog is the log of the refusals that the first has no room for.
type secondLog struct {
	second   *Log   // nil until there is one
	linked   uint64 // its last record that a record of the first names
	linkedIn uint64 // the file of the first in which that is
}

// unreported is the content of the next record of kind lost.
type unreported struct {
	truncated *truncatedTail // bytes at the end that are not a record; nil without any
	notes     []string
	unproved  bool   // records may be missing before it
	failed    uint64 // records refused since the last that was written
}

// tail is the end of the chain.
type tail struct {
	seq  uint64
	hash [hashLen]byte // as text
}

// Record writes r. A nil error means that the record, and the head that names
// it, were handed to the operating system. After an error nothing may be
// allowed on the strength of the record. A refusal may be counted instead, and is
// written within minutes or by Close.
func (l *Log) Record(r *authz.Record) error {
	if !isRefusal(r) {
		return l.write(false, r)
	}
	err := l.Flush(r.Time, false)
	if l.folds.take(r) {
		return err
	}
	return errors.Join(err, l.write(true, r))
}

// RecordAll writes several records, one behind the other and with one system
// call, as Record does one. After an error the first of them may have been
// written.
func (l *Log) RecordAll(records []*authz.Record) error {
	switch {
	case len(records) == 0:
		return nil
	case !slices.ContainsFunc(records, isRefusal):
		return l.write(false, records...)
	}
	for _, r := range records {
		if err := l.Record(r); err != nil {
			return err
		}
	}
	return nil
}

// write writes records, which are refusals or none of them is.
func (l *Log) write(refused bool, records ...*authz.Record) error {
	e := l.entry()
	defer l.pool.Put(e)
	e.encode(records, refused, l.cfg.FullPaths())
	if err := l.append(e); err != nil {
		return fmt.Errorf("record %s: %w", records[0].Kind, err)
	}
	for _, r := range records {
		l.observe(r)
	}
	return nil
}

func (l *Log) entry() *entry {
	if e, ok := l.pool.Get().(*entry); ok {
		return e
	}
	return &entry{masks: l.key.masker(), wake: make(chan struct{}, 1)}
}

func (l *Log) observe(r *authz.Record) {
	if l.cfg.Observe != nil {
		l.cfg.Observe(r)
	}
}

// put writes an entry that the second log does not take, or several of which none
// is a refusal, with one system call. The caller holds mu.
func (l *Log) put(entries ...*entry) error {
	if l.closed {
		return ErrClosed
	}
	size, refused := int64(0), entries[0].refused
	l.group.lines = l.group.lines[:0]
	for _, e := range entries {
		size += e.size
		l.group.lines = append(l.group.lines, e.lines...)
	}
	now := entries[len(entries)-1].now
	if refused && l.refused+size > l.cfg.MaxSize/refusedShare {
		return l.putSecond(entries[0])
	}
	own := size
	if refused {
		own = 0 // it has its share, and rotates nothing
	}
	written, err := 0, l.prepare(now, own)
	if err == nil {
		before := l.size
		written, err = l.commit(l.group.lines...)
		if refused {
			l.refused += l.size - before
		}
	}
	if err != nil {
		l.failed += uint64(len(l.group.lines) - written)
	}
	l.err = err
	return err
}

// prepare makes the file ready for a line of the given size: in its place, not
// too large, and with nothing left unsaid.
func (l *Log) prepare(now time.Time, size int64) error {
	if elapsed := now.Sub(l.checked); elapsed >= checkEvery || elapsed < 0 {
		l.checked = now
		l.checkPlace()
	}
	if l.file == nil {
		if err := l.openFile(); err != nil {
			return err
		}
	}
	// Torn bytes are explained in the file they are in, so this comes first.
	if err := l.flushNotes(); err != nil {
		return err
	}
	if own := l.size - l.refused; own > 0 && size > 0 && own+size > l.rotateAt {
		l.rotate()
	}
	if l.rotated {
		return l.noteRotation()
	}
	return nil
}

// commit chains the lines, writes them with one system call and then the head.
// It returns how many of them are recorded, which without an error is all. A
// line that reached the file only in part is left there: the chain goes on
// after it, and a record of kind lost explains it.
func (l *Log) commit(lines ...*line) (recorded int, err error) {
	end, newline := l.tail, l.newline
	for _, line := range lines {
		end = l.seal(line, end, newline)
		newline = false
	}
	data := l.group.join(lines)
	n, err := l.file.Write(data)
	l.size += int64(n)
	begin := 0
	for _, line := range lines {
		// Without its newline, which the next write supplies, a record is whole.
		if n < line.end-1 {
			break
		}
		recorded, begin = recorded+1, min(n, line.end)
		l.newline = n < line.end
		l.tail, l.truncated = line.place, nil
		l.written++
		if l.first == 0 {
			l.first = line.place.seq
		}
	}
	if recorded < len(lines) {
		l.keepTorn(data[begin:n])
		if err == nil {
			err = fmt.Errorf("wrote %d of %d bytes", n, len(data))
		}
		if recorded == 0 {
			return 0, err
		}
	} else {
		err = nil
	}
	if failure := l.head.write(position{tail: l.tail, first: l.first, size: l.size - int64(n-begin), kept: l.kept, refused: l.refused}); failure != nil {
		return 0, errors.Join(err, fmt.Errorf("write %s: %w", l.head.name, failure))
	}
	return recorded, err
}

// seal gives the line its place in the chain, behind the tail.
func (l *Log) seal(line *line, behind tail, newline bool) tail {
	line.place.seq = behind.seq + 1
	l.mac.Reset()
	l.mac.Write(line.link(line.place.seq, behind.hash, newline))
	line.place.hash = line.finish(l.mac)
	return line.place
}

// keepTorn notes the bytes that a failed write left at the end of the file.
func (l *Log) keepTorn(data []byte) {
	if len(data) > 0 && l.newline && l.truncated == nil {
		// The first byte is the newline of the record before.
		l.newline, data = false, data[1:]
	}
	if len(data) == 0 {
		return
	}
	if l.truncated == nil {
		l.truncated = newTruncatedTail()
	}
	l.truncated.add(data)
	l.newline = true // the next record begins on a line of its own
}

// flushNotes writes what the log has to say about itself, as one record of
// kind lost in front of the next.
func (l *Log) flushNotes() error {
	if l.truncated == nil && l.failed == 0 && len(l.notes) == 0 {
		return nil
	}
	note := authz.Record{Time: l.cfg.Now(), Kind: authz.KindLost, Lost: l.failed, UID: -1}
	details := l.notes
	if l.failed > 0 {
		details = append(slices.Clip(details), fmt.Sprintf("%d records were refused: %v", l.failed, l.err))
	}
	if l.truncated != nil {
		details = append(slices.Clip(details),
			fmt.Sprintf("%d bytes before this record are one that was not written to its end", l.truncated.size))
	}
	note.Detail = joinNotes(details)
	l.own.encode(&note, true)
	if l.truncated != nil {
		l.own.truncatedTail(l.truncated)
	}
	if l.unproved {
		l.own.unproved()
	}
	if _, err := l.commit(l.own); err != nil {
		return err
	}
	l.notes, l.unproved, l.failed = nil, false, 0
	return nil
}

// Records returns how many records this Log has written since it was opened,
// those of its own and of the second log included.
func (l *Log) Records() uint64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.second != nil {
		return l.written + l.second.Records()
	}
	return l.written
}

// Healthy returns nil when records can be written, and otherwise why not. After
// a failure it tries again, by writing the note about the refused records.
func (l *Log) Healthy() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return ErrClosed
	}
	if l.err != nil {
		l.err = l.prepare(l.cfg.Now(), 0)
	}
	if l.err != nil {
		return fmt.Errorf("write audit log: %w", l.err)
	}
	if l.second != nil {
		return l.second.Healthy()
	}
	return nil
}

// Status describes a log, for people.
type Status struct {
	File      string // its path
	Size      int64  // of the current file, in bytes
	Seq       uint64 // of the last record
	Written   uint64 // records written since the log was opened
	Refused   uint64 // records that could not be written since the last one that was
	Rotations uint64 // files that were full since the log was opened
	Folded    uint64 // refusals counted instead of written each, since then
	Error     error  // why the last record could not be written; nil when it was
	Warning   error  // of rotation: records are written, but not as configured
	// Second is the log of the refusals that this one has no room for; nil until
	// there are such.
	Second *Status
}

// Status returns the log's state.
func (l *Log) Status() Status {
	folded := l.folded()
	l.mu.Lock()
	defer l.mu.Unlock()
	s := Status{
		File: l.cfg.File, Size: l.size, Seq: l.tail.seq, Written: l.written, Rotations: l.rotations, Folded: folded,
		Refused: l.failed, Error: l.err, Warning: l.warning,
	}
	if l.second != nil {
		second := l.second.Status()
		s.Second = &second
	}
	return s
}

// Close writes what is left to say, syncs the log to the disk and closes it.
// Closing again does nothing.
func (l *Log) Close() error {
	err := errors.Join(l.Flush(l.cfg.Now(), true), l.close())
	l.syncing.Wait()
	if err != nil {
		return fmt.Errorf("close audit log: %w", err)
	}
	return nil
}

func (l *Log) close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return nil
	}
	l.closed = true
	second := l.closeSecond()
	if l.file == nil {
		return errors.Join(second, l.head.close())
	}
	return errors.Join(second, l.flushNotes(), l.file.Sync(), l.file.Close(), l.head.close())
}
