package audit

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"math"
	"net/netip"
	"os"
	"slices"
	"time"

	"github.com/chaperone-proxy/chaperone/authz"
)

// Entry is one record as it is read back. Its JSON names are those of the log.
type Entry struct {
	Seq        uint64            `json:"seq"`
	Time       time.Time         `json:"time"`
	Prev       string            `json:"prev"`
	Hash       string            `json:"hash"`
	Kind       string            `json:"kind"`
	Plugin     string            `json:"plugin,omitempty"`
	Door       string            `json:"door,omitempty"`
	Decision   string            `json:"decision,omitempty"`
	Allowed    *bool             `json:"allowed,omitempty"` // nil but for accesses
	Reason     string            `json:"reason,omitempty"`
	Grant      string            `json:"grant,omitempty"`
	Rule       string            `json:"rule,omitempty"`
	Generation uint64            `json:"generation,omitempty"`
	Method     string            `json:"method,omitempty"`
	Scheme     string            `json:"scheme,omitempty"`
	Host       string            `json:"host,omitempty"`
	Port       uint16            `json:"port,omitempty"`
	Path       string            `json:"path,omitempty"`
	Query      string            `json:"query,omitempty"`
	Address    string            `json:"address,omitempty"`
	Credential string            `json:"credential,omitempty"`
	Lease      string            `json:"lease,omitempty"`
	SentBytes  int64             `json:"sent_bytes,omitempty"`
	Bytes      int64             `json:"bytes,omitempty"`
	LatencyUS  int64             `json:"latency_us,omitempty"`
	PID        int               `json:"pid,omitempty"`
	Exe        string            `json:"exe,omitempty"`
	UID        *int              `json:"uid,omitempty"` // nil when unknown
	Actor      string            `json:"actor,omitempty"`
	TraceID    string            `json:"trace_id,omitempty"`
	SpanID     string            `json:"span_id,omitempty"` // the caller's
	Detail     string            `json:"detail,omitempty"`
	Count      int               `json:"count,omitempty"`
	Lost       uint64            `json:"lost,omitempty"`
	Files      map[string]string `json:"files,omitempty"`
	First      uint64            `json:"first,omitempty"`       // of a rotation: the lowest record kept
	TornBytes  int64             `json:"torn_bytes,omitempty"`  // of kind lost: bytes before it that are no record
	TornSHA256 string            `json:"torn_sha256,omitempty"` // of those bytes, in hexadecimal
	Unproved   bool              `json:"unproved,omitempty"`    // of kind lost: records may be missing before it

	// Of refusals that were counted; see authz.Fold.
	FirstTime time.Time `json:"first_time,omitzero"`
	LastTime  time.Time `json:"last_time,omitzero"`
	Paths     int       `json:"paths,omitempty"`
	LastPath  string    `json:"last_path,omitempty"`

	// Of accesses: what their decision depends on; see authz.Record.
	Format        int          `json:"format,omitempty"`  // of a decision: FormatReplayable, or 0 in older logs
	Attempt       bool         `json:"attempt,omitempty"` // the access did not become a request
	Masked        string       `json:"masked,omitempty"`  // the ID of the key with which path and query are masked
	AskedScheme   string       `json:"asked_scheme,omitempty"`
	AskedPort     uint16       `json:"asked_port,omitempty"`
	Upgrade       string       `json:"upgrade,omitempty"`
	Unenforceable []string     `json:"unenforceable,omitempty"`
	DecidedBy     string       `json:"decided_by,omitempty"`
	Protocol      string       `json:"protocol,omitempty"`
	Facts         []string     `json:"facts,omitempty"`
	Resolved      []netip.Addr `json:"resolved,omitempty"`
	Region        string       `json:"region,omitempty"`
	TLS           string       `json:"tls,omitempty"`

	// Of statements of a database's session; see authz.Record.
	Session   string `json:"session,omitempty"`
	Rows      int64  `json:"rows,omitempty"`
	Statement string `json:"statement,omitempty"` // in full logs

	RemovedHash string `json:"removed_hash,omitempty"` // of a rotation: the hash of the last record that was removed
	RefusedSeq  uint64 `json:"refused_seq,omitempty"`  // of an overflow: the number of a record of the second log
	RefusedHash string `json:"refused_hash,omitempty"` // and its hash

	// Raw is the line as it stands in the log, without its newline. Bytes that
	// are no record have nothing but Raw.
	Raw []byte `json:"-"`
}

// decode reads a line. The entry does not share memory with it.
func decode(line []byte) (Entry, error) {
	var entry Entry
	if err := json.Unmarshal(line, &entry); err != nil {
		return Entry{}, fmt.Errorf("decode record: %w", err)
	}
	return entry, nil
}

// Kinds returns every kind of record that a log may hold.
func Kinds() []string {
	var kinds []string
	for _, k := range authz.Kinds() {
		kinds = append(kinds, string(k))
	}
	return append(kinds, string(KindRotation), string(KindOverflow))
}

// Filter chooses records. Every field that is not its zero value must fit; the
// zero Filter chooses every line, also those that are no record.
type Filter struct {
	Decision string // the decision's id
	Plugin   string
	Kind     string
	Door     string
	Reason   string
	Grant    string
	Rule     string
	Method   string
	Scheme   string
	Host     string
	Exe      string
	Port     uint16
	PID      int
	Since    time.Time // not before
	Until    time.Time // before
	Allowed  *bool
}

// Match reports whether the entry is chosen.
func (f Filter) Match(e Entry) bool {
	for _, field := range [...]struct{ want, is string }{
		{f.Decision, e.Decision},
		{f.Plugin, e.Plugin},
		{f.Kind, e.Kind},
		{f.Door, e.Door},
		{f.Reason, e.Reason},
		{f.Grant, e.Grant},
		{f.Rule, e.Rule},
		{f.Method, e.Method},
		{f.Scheme, e.Scheme},
		{f.Host, e.Host},
		{f.Exe, e.Exe},
	} {
		if field.want != "" && field.want != field.is {
			return false
		}
	}
	if f.Port != 0 && f.Port != e.Port || f.PID != 0 && f.PID != e.PID {
		return false
	}
	if !f.Since.IsZero() && e.Time.Before(f.Since) || !f.Until.IsZero() && !e.Time.Before(f.Until) {
		return false
	}
	return f.Allowed == nil || e.Allowed != nil && *f.Allowed == *e.Allowed
}

// could reports whether a line may be chosen, without decoding it: the ids and
// kinds that it looks for are never escaped.
func (f Filter) could(line []byte) bool {
	return bytes.Contains(line, []byte(f.Decision)) && bytes.Contains(line, []byte(f.Kind)) && bytes.Contains(line, []byte(f.Reason))
}

// DefaultPoll is how often a log that is followed is looked at.
const DefaultPoll = 200 * time.Millisecond

// Query selects records of a log.
type Query struct {
	File   string // the log; its rotated files are found beside it
	Filter Filter
	// Last is how many of the chosen records are read at most, from the end; 0
	// is all of them.
	Last int
	// Follow goes on with what is written afterwards, until the context ends.
	Follow bool
	// Poll is how often the log is looked at while it is followed; 0 is DefaultPoll.
	Poll time.Duration
}

// Read returns the chosen records of the log and of the second one, oldest first;
// those that are written while it follows in the order in which it sees them. An
// error ends the sequence; the end of the context does too, without one when
// following. The log may be in use and may be rotated while it is read; nothing is
// verified.
func Read(ctx context.Context, q Query) iter.Seq2[Entry, error] {
	return func(yield func(Entry, error) bool) {
		second := q
		second.File = SecondFile(q.File)
		files, err := listFiles(second.File)
		switch {
		case err == nil && q.Follow:
			followBoth(ctx, q, second, yield)
		case err == nil && len(files) > 0:
			mergeBoth(ctx, q, second, yield)
		default: // a fault of the folder is found again
			readOne(ctx, q)(yield)
		}
	}
}

// mergeBoth yields the records of two logs in the order of their times.
func mergeBoth(ctx context.Context, first, second Query, yield func(Entry, error) bool) {
	if first.Last > 0 {
		mergeLast(ctx, first, second, yield)
		return
	}
	a, stopA := iter.Pull2(readOne(ctx, first))
	defer stopA()
	b, stopB := iter.Pull2(readOne(ctx, second))
	defer stopB()
	one, errOne, okOne := a()
	two, errTwo, okTwo := b()
	for okOne || okTwo {
		if !okTwo || okOne && (errOne != nil || !two.Time.Before(one.Time)) {
			if !yield(one, errOne) || errOne != nil {
				return
			}
			one, errOne, okOne = a()
			continue
		}
		if !yield(two, errTwo) || errTwo != nil {
			return
		}
		two, errTwo, okTwo = b()
	}
}

// mergeLast yields the last records of two logs.
func mergeLast(ctx context.Context, first, second Query, yield func(Entry, error) bool) {
	var all []Entry
	for _, q := range []Query{first, second} {
		for entry, err := range readOne(ctx, q) {
			if err != nil {
				yield(Entry{}, err)
				return
			}
			all = append(all, entry)
		}
	}
	slices.SortStableFunc(all, func(a, b Entry) int { return a.Time.Compare(b.Time) })
	for _, entry := range all[max(0, len(all)-first.Last):] {
		if !yield(entry, nil) {
			return
		}
	}
}

// maxBatch is how many records are put in order at a time while two logs are followed.
const maxBatch = 4096

// followBoth yields what is written to two logs, of which the second may not be
// there yet, until ctx ends. Records of one pass are in the order of their times.
func followBoth(ctx context.Context, first, second Query, yield func(Entry, error) bool) {
	var batch []Entry
	var readers []*reader
	stopped, last := false, math.MaxInt
	if first.Last > 0 {
		last = first.Last // of both, at the first look
	}
	defer func() {
		for _, r := range readers {
			_ = r.close() // it was only read
		}
	}()
	flush := func() {
		slices.SortStableFunc(batch, func(a, b Entry) int { return a.Time.Compare(b.Time) })
		for _, entry := range batch[max(0, len(batch)-last):] {
			stopped = stopped || !yield(entry, nil)
		}
		batch = batch[:0]
	}
	for _, q := range []Query{first, second} {
		r := newReader(q, nil)
		r.yield = func(entry Entry, _ error) bool {
			if batch = append(batch, entry); len(batch) >= maxBatch && last == math.MaxInt {
				flush()
			}
			return !stopped
		}
		readers = append(readers, r)
	}
	for {
		for i, r := range readers {
			if err := r.look(ctx, i > 0); err != nil {
				if !errors.Is(err, errStopped) {
					yield(Entry{}, fmt.Errorf("read audit log: %w", err))
				}
				return
			}
		}
		flush()
		last = math.MaxInt
		if stopped {
			return
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(readers[0].query.Poll):
		}
	}
}

// look reads what is new, from the beginning if it is the first time. A log that
// is optional may be missing.
func (r *reader) look(ctx context.Context, optional bool) error {
	if r.file == nil {
		if files, err := listFiles(r.query.File); optional && (err != nil || len(files) == 0) {
			r.query.Last = 0 // all of it is new once it is there
			return err
		}
		if err := r.begin(ctx); err != nil {
			return err
		}
	}
	for {
		if err := r.drain(ctx); err != nil {
			return err
		}
		if moved, err := r.advance(ctx); err != nil || !moved {
			return err
		}
	}
}

func newReader(q Query, yield func(Entry, error) bool) *reader {
	r := &reader{query: q, yield: yield, lines: newLines(nil)}
	if r.query.Poll <= 0 {
		r.query.Poll = DefaultPoll
	}
	return r
}

func (r *reader) close() error {
	if r.file == nil {
		return nil
	}
	return r.file.Close()
}

// readOne returns the chosen records of one log, oldest first.
func readOne(ctx context.Context, q Query) iter.Seq2[Entry, error] {
	return func(yield func(Entry, error) bool) {
		r := newReader(q, yield)
		if err := r.run(ctx); err != nil && !errors.Is(err, errStopped) {
			yield(Entry{}, fmt.Errorf("read audit log: %w", err))
		}
	}
}

// Oldest returns the time of the oldest record in the files of a log, or the zero
// Time when it has none. It does not verify.
func Oldest(file string) (time.Time, error) {
	files, err := listFiles(file)
	if err != nil || len(files) == 0 {
		return time.Time{}, err
	}
	oldest, err := openRegular(files[0].path)
	if errors.Is(err, fs.ErrNotExist) {
		return time.Time{}, nil // rotated away since it was listed
	}
	if err != nil {
		return time.Time{}, err
	}
	defer oldest.Close()
	for lines := newLines(oldest); ; {
		line, err := lines.next()
		if errors.Is(err, io.EOF) {
			return time.Time{}, nil
		}
		if err != nil {
			return time.Time{}, err
		}
		if entry, err := decode(line.data); err == nil {
			return entry.Time, nil
		}
	}
}

// errStopped ends reading when the caller wants no more.
var errStopped = errors.New("stopped")

// reader reads one file after the other.
type reader struct {
	query Query
	yield func(Entry, error) bool

	file   *os.File
	path   string
	first  uint64 // the number of the file's first record; 0 while it has none
	offset int64  // behind the last whole line
	lines  *lines // of the file from there on
}

// run reads what there is.
func (r *reader) run(ctx context.Context) (err error) {
	defer func() { err = errors.Join(err, r.close()) }()
	if err := r.look(ctx, false); err != nil {
		return err
	}
	return r.rest()
}

// begin opens the first file, or yields the last records and opens the last.
func (r *reader) begin(ctx context.Context) error {
	if r.query.Last > 0 {
		return r.last(ctx)
	}
	for range maxMoves {
		files, err := r.list()
		if err != nil {
			return err
		}
		err = r.open(files[0])
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil || files[0].first != 0 {
			return err
		}
		// Was it rotated before it was opened? Then this is one too far.
		again, err := r.list()
		if err != nil || slices.Equal(files, again) {
			return err
		}
	}
	return r.moved()
}

// list returns the log's files, of which there is at least one.
func (r *reader) list() ([]logFile, error) {
	files, err := listFiles(r.query.File)
	if err == nil && len(files) == 0 {
		err = &fs.PathError{Op: "open", Path: r.query.File, Err: fs.ErrNotExist}
	}
	return files, err
}

func (r *reader) moved() error {
	return fmt.Errorf("open %s: it is moved away again and again", r.query.File)
}

func (r *reader) open(f logFile) error {
	file, err := openRegular(f.path)
	if err != nil {
		return err
	}
	if r.file != nil {
		if err := r.file.Close(); err != nil {
			return errors.Join(err, file.Close())
		}
	}
	r.file, r.path, r.first, r.offset = file, f.path, f.first, 0
	return nil
}

// drain yields the whole lines behind the offset.
func (r *reader) drain(ctx context.Context) error {
	if r.first == 0 {
		first, err := firstRecord(r.file)
		if err != nil {
			return err
		}
		r.first = first
	}
	r.lines.reset(io.NewSectionReader(r.file, r.offset, 1<<62))
	begin := r.offset
	for {
		line, err := r.lines.next()
		if errors.Is(err, io.EOF) || err == nil && line.whole && !line.ended {
			return nil // the rest of the line is still to come
		}
		if err != nil {
			return err
		}
		if ctx.Err() != nil && !r.query.Follow {
			return ctx.Err()
		}
		if ctx.Err() != nil {
			return errStopped
		}
		r.offset = begin + line.end
		if err := r.emit(line.data); err != nil {
			return err
		}
	}
}

// rest yields a last line without a newline.
func (r *reader) rest() error {
	r.lines.reset(io.NewSectionReader(r.file, r.offset, maxLine))
	line, err := r.lines.next()
	if errors.Is(err, io.EOF) {
		return nil
	}
	if err != nil {
		return err
	}
	r.offset += line.end
	return r.emit(line.data)
}

func (r *reader) emit(line []byte) error {
	if len(line) == 0 {
		return nil
	}
	entry, ok := r.choose(line)
	if ok && !r.yield(entry, nil) {
		return errStopped
	}
	return nil
}

func (r *reader) choose(line []byte) (Entry, bool) {
	if !r.query.Filter.could(line) {
		return Entry{}, false
	}
	entry, err := decode(line)
	if err != nil {
		entry = Entry{}
	}
	entry.Raw = bytes.Clone(line)
	return entry, r.query.Filter.Match(entry)
}

// advance reads what is left of a file that was rotated, and opens the one that
// follows it.
func (r *reader) advance(ctx context.Context) (bool, error) {
	here, err := os.Stat(r.query.File)
	if err == nil {
		open, err := r.file.Stat()
		if err != nil {
			return false, err
		}
		if os.SameFile(here, open) {
			return false, nil
		}
	}
	// The old file is complete: no more records are written to it.
	if err := errors.Join(r.drain(ctx), r.rest()); err != nil {
		return false, err
	}
	done := r.first
	following := func(f logFile) bool { return f.first == 0 || f.first > done }
	for range maxMoves {
		files, err := listFiles(r.query.File)
		if err != nil {
			return false, err
		}
		next := slices.IndexFunc(files, following)
		if next < 0 {
			return false, nil // not there yet: look again later
		}
		if err := r.open(files[next]); errors.Is(err, fs.ErrNotExist) {
			continue
		} else if err != nil {
			return false, err
		}
		if files[next].first != 0 {
			return true, nil
		}
		// Was it rotated before it was opened? Then this is one too far.
		again, err := listFiles(r.query.File)
		if err != nil || slices.Equal(files, again) {
			return true, err
		}
	}
	return false, r.moved()
}

// last yields the last records that are chosen and stands behind them. It
// reads backwards, so that its cost is that of what it finds.
func (r *reader) last(ctx context.Context) error {
	files, err := r.openLast()
	if err != nil {
		return err
	}
	var found []Entry
	take := func(line []byte) bool {
		if entry, ok := r.choose(line); ok {
			found = append(found, entry)
		}
		return len(found) < r.query.Last && ctx.Err() == nil
	}
	end, err := wholeLines(r.file)
	if err != nil {
		return err
	}
	r.offset = end
	more, err := backwards(r.file, end, take)
	for _, file := range slices.Backward(files[:len(files)-1]) {
		if err != nil || !more {
			break
		}
		more, err = backwardsFile(file.path, take)
	}
	if err != nil {
		return err
	}
	for _, entry := range slices.Backward(found) {
		if !r.yield(entry, nil) {
			return errStopped
		}
	}
	if !r.query.Follow {
		return errStopped
	}
	return nil
}

// openLast opens the current file and returns all that there were at that time.
func (r *reader) openLast() ([]logFile, error) {
	for range maxMoves {
		files, err := r.list()
		if err != nil {
			return nil, err
		}
		if err := r.open(files[len(files)-1]); errors.Is(err, fs.ErrNotExist) {
			continue
		} else if err != nil {
			return nil, err
		}
		again, err := r.list()
		if err != nil || slices.Equal(files, again) {
			return files, err
		}
	}
	return nil, r.moved()
}

// wholeLines returns where the last line that has its end ends. A last line
// without a newline counts when it is a whole record.
func wholeLines(file *os.File) (int64, error) {
	info, err := file.Stat()
	if err != nil {
		return 0, err
	}
	end := info.Size()
	whole := end
	_, err = backwards(file, end, func(line []byte) bool {
		if _, ok := parseLink(line); !ok {
			whole = end - int64(len(line))
		}
		return false
	})
	if err != nil || whole == end {
		return end, err
	}
	var last [1]byte
	if _, err := file.ReadAt(last[:], end-1); err != nil {
		return 0, err
	}
	if last[0] == '\n' {
		return end, nil
	}
	return whole, nil
}

func backwardsFile(path string, take func([]byte) bool) (bool, error) {
	file, err := openRegular(path)
	if errors.Is(err, fs.ErrNotExist) {
		return true, nil // removed by the limit on files since it was listed
	}
	if err != nil {
		return false, err
	}
	defer file.Close()
	info, err := file.Stat()
	if err != nil {
		return false, err
	}
	return backwards(file, info.Size(), take)
}

// backwards calls take with the lines before end, the last first, until it
// returns false. Empty lines are left out.
func backwards(r io.ReaderAt, end int64, take func([]byte) bool) (more bool, err error) {
	var rest []byte // the end of a line whose beginning is still to be read
	for end > 0 {
		n := min(end, 64<<10)
		end -= n
		data := make([]byte, int(n)+len(rest))
		if _, err := r.ReadAt(data[:n], end); err != nil {
			return false, err
		}
		copy(data[n:], rest)
		for {
			i := bytes.LastIndexByte(data, '\n')
			if i < 0 && len(data) <= maxLine && end > 0 {
				break
			}
			if line := data[i+1:]; len(line) > 0 && !take(line) {
				return false, nil
			}
			if data = data[:max(i, 0)]; i <= 0 {
				break
			}
		}
		rest = data
	}
	return true, nil
}
