package audit

import (
	"cmp"
	"hash/maphash"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/chaperone-proxy/chaperone/authz"
)

// How refusals are folded. A plugin may have as much refused as it likes, and each
// refusal written would cost the operator's disk what it costs the plugin a
// request.
const (
	// foldFor is how long refusals are counted before the counts are written.
	foldFor = time.Minute
	// foldAfter is how many equal refusals are written in that time, before
	// further ones are counted.
	foldAfter = 100
	// maxFolds bounds the different refusals that are counted each for themselves.
	// Those beyond are counted together by their reason, and no count is dropped.
	maxFolds = 256
	// maxClasses bounds the doors and reasons that are counted together.
	maxClasses = 128
	// maxFoldPaths is up to how many different paths of equal refusals are counted.
	maxFoldPaths = 64
	// foldsAtOnce is how many counts are written with one system call.
	foldsAtOnce = 16
	// maxFoldText is how many bytes of a text are kept in a count.
	maxFoldText = 256

	// Refusals that are written at most, whatever they are: so many at once, and so
	// many a minute from then on.
	allBurst, allRate = 1000, 120
	// Each reason at a door has some of its own beyond these, so that no flood of
	// one hides the first of another.
	classBurst, classRate = 20, 5
)

// isRefusal reports whether r is of what was refused and had no effect.
func isRefusal(r *authz.Record) bool {
	return r.Kind == authz.KindDecision && !r.Allowed && !r.Incident || r.Kind == authz.KindProbe || r.Kind == authz.KindHandshake
}

// foldKey is what equal refusals have in common.
type foldKey struct {
	class
	plugin, grant, rule, host, method string
	what                              string // was refused by the kernel, where no host says it
}

// class is a reason at a door.
type class struct {
	kind   authz.Kind
	door   authz.Door
	reason string
}

func keyOf(r *authz.Record) foldKey {
	key := foldKey{
		class: class{r.Kind, r.Door, r.Reason}, plugin: r.Plugin, grant: r.Grant, rule: r.Rule, host: r.Host, method: methodClass(r.Method),
	}
	if r.Door == authz.DoorKernel && r.Host == "" {
		key.what = r.Detail
	}
	return key
}

// methodClass returns a method that RFC 9110 or RFC 5789 names, and "" for all
// others, which are the plugin's to invent.
func methodClass(method string) string {
	switch method {
	case "GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH":
		return method
	}
	return ""
}

// folder decides which refusals are written, and counts the others. It is safe
// for concurrent use.
type folder struct {
	mu      sync.Mutex
	seed    maphash.Seed
	began   time.Time // of the minute that is counted; zero while nothing is
	written map[foldKey]int
	folds   map[foldKey]*fold
	others  map[class]*fold
	pending []*authz.Record // counts that could not be written yet
	all     bucket
	classes map[class]*bucket
	total   uint64 // refusals counted since the log was opened
}

func newFolder() *folder {
	return &folder{
		seed: maphash.MakeSeed(), written: map[foldKey]int{}, folds: map[foldKey]*fold{}, others: map[class]*fold{},
		all: bucket{burst: allBurst, perMinute: allRate, left: allBurst}, classes: map[class]*bucket{},
	}
}

// bucket allows a burst and then a rate.
type bucket struct {
	burst, perMinute, left float64
	at                     time.Time
}

func (b *bucket) take(now time.Time) bool {
	if elapsed := now.Sub(b.at); elapsed > 0 && !b.at.IsZero() {
		b.left = min(b.burst, b.left+b.perMinute*elapsed.Minutes())
	}
	b.at = now
	if b.left < 1 {
		return false
	}
	b.left--
	return true
}

// fold counts refusals. Fields that differ are left out of record.
type fold struct {
	record      authz.Record
	count       int
	first, last time.Time
	paths       map[uint64]struct{} // hashes of different ones, up to maxFoldPaths
	path        string              // of the last
	pattern     string
	mixed       bool // they have the reason in common and little else
}

// take counts a refusal and reports true, or reports false: it is to be written.
func (f *folder) take(r *authz.Record) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.began.IsZero() {
		f.began = r.Time
	}
	key := keyOf(r)
	counted, known := f.folds[key]
	written, seen := f.written[key]
	room := seen || len(f.written) < maxFolds
	if !known && written < foldAfter && f.mayWrite(key.class, r.Time) {
		if room {
			f.written[key] = written + 1
		}
		return false
	}
	f.total++
	if !known && len(f.folds) < maxFolds {
		counted = newFold(r)
		f.folds[key], known = counted, true
	}
	if !known {
		counted = f.other(r)
	}
	counted.add(r, maphash.String(f.seed, r.Path))
	return true
}

// mayWrite takes one of the refusals that may be written.
func (f *folder) mayWrite(c class, now time.Time) bool {
	own := f.classes[c]
	if own == nil && len(f.classes) < maxClasses {
		own = &bucket{burst: classBurst, perMinute: classRate, left: classBurst}
		f.classes[c] = own
	}
	return own != nil && own.take(now) || f.all.take(now)
}

// other returns the count of all that have no count of their own, by the reason.
func (f *folder) other(r *authz.Record) *fold {
	c := class{r.Kind, r.Door, r.Reason}
	if f.others[c] == nil && len(f.others) >= maxClasses {
		c = class{kind: authz.KindDecision}
	}
	if f.others[c] == nil {
		f.others[c] = &fold{
			record: authz.Record{
				Kind: c.kind, Door: c.door, Reason: c.reason, Plugin: keepText(r.Plugin), UID: -1,
				Detail: "refusals too different to count each",
			},
			mixed: true, first: r.Time, paths: map[uint64]struct{}{},
		}
	}
	return f.others[c]
}

func newFold(r *authz.Record) *fold {
	n := &fold{record: *r, first: r.Time, paths: map[uint64]struct{}{}}
	for _, text := range []*string{
		&n.record.Plugin, &n.record.Method, &n.record.Host, &n.record.Path, &n.record.Exe, &n.record.Detail, &n.record.Address, &n.record.Pattern,
	} {
		*text = keepText(*text)
	}
	n.record.Query, n.record.TraceID, n.record.SpanID, n.record.Latency, n.record.Count = "", "", "", 0, 0
	return n
}

// keepText returns a copy of text, cut, that holds on to no request's memory.
func keepText(text string) string {
	if len(text) > maxFoldText {
		return strings.ToValidUTF8(text[:maxFoldText-len(ellipsis)], "") + ellipsis
	}
	return strings.Clone(text)
}

// add counts r, whose path has the given hash.
func (n *fold) add(r *authz.Record, path uint64) {
	n.count += max(r.Count, 1)
	n.last = r.Time
	n.record.Decision, n.record.Generation = r.Decision, r.Generation
	if len(n.paths) < maxFoldPaths && r.Path != "" {
		n.paths[path] = struct{}{}
	}
	n.path, n.pattern = keepText(r.Path), r.Pattern
	if n.mixed {
		if n.record.Plugin != r.Plugin {
			n.record.Plugin = ""
		}
		return
	}
	for _, text := range [...]struct {
		kept *string
		now  string
	}{
		{&n.record.Method, r.Method},
		{&n.record.Scheme, r.Scheme},
		{&n.record.Address, r.Address},
		{&n.record.Region, r.Region},
		{&n.record.TLS, r.TLS},
		{&n.record.Exe, r.Exe},
		{&n.record.Credential, r.Credential},
		{&n.record.Lease, r.Lease},
		{&n.record.Session, r.Session},
		{&n.record.Protocol, r.Protocol},
		{&n.record.Detail, r.Detail},
	} {
		if *text.kept != text.now && *text.kept != keepText(text.now) {
			*text.kept = ""
		}
	}
	if !slices.Equal(n.record.Facts, r.Facts) {
		n.record.Facts, n.record.Patterns = nil, nil
	}
	if n.record.Port != r.Port {
		n.record.Port = 0
	}
	if n.record.PID != r.PID || n.record.UID != r.UID {
		n.record.PID, n.record.UID = 0, -1
	}
}

// result returns the record of the count.
func (n *fold) result() *authz.Record {
	r := n.record
	r.Time, r.Count = n.last, n.count
	r.Fold = &authz.Fold{First: n.first, Last: n.last, Paths: len(n.paths), LastPath: n.path, LastPattern: n.pattern}
	return &r
}

// due returns the counts that are to be written, when their minute is over or all
// is to be written, oldest first. They are due again until they are done.
func (f *folder) due(now time.Time, all bool) []*authz.Record {
	f.mu.Lock()
	defer f.mu.Unlock()
	if elapsed := now.Sub(f.began); len(f.pending) > 0 || f.began.IsZero() || !all && elapsed < foldFor && elapsed >= 0 {
		return f.pending
	}
	for _, n := range f.folds {
		f.pending = append(f.pending, n.result())
	}
	for _, n := range f.others {
		f.pending = append(f.pending, n.result())
	}
	slices.SortFunc(f.pending, func(a, b *authz.Record) int {
		return cmp.Or(a.Time.Compare(b.Time), cmp.Compare(a.Host, b.Host))
	})
	f.began = time.Time{}
	clear(f.written)
	clear(f.folds)
	clear(f.others)
	return f.pending
}

// done forgets the first n counts that were due, which are written, and returns
// the others.
func (f *folder) done(n int) []*authz.Record {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.pending = f.pending[n:]
	return f.pending
}

// folded returns how many refusals were counted instead of written since the log
// was opened.
func (l *Log) folded() uint64 {
	l.folds.mu.Lock()
	defer l.folds.mu.Unlock()
	return l.folds.total
}

// Flush writes the counts of folded refusals whose minute is over, or all. It is
// called from time to time, so that what was refused last does not wait for more.
func (l *Log) Flush(now time.Time, all bool) error {
	l.flushing.Lock()
	defer l.flushing.Unlock()
	// A few at a time, so that no file grows far beyond its size.
	for due := l.folds.due(now, all); len(due) > 0; {
		some := min(len(due), foldsAtOnce)
		if err := l.write(true, due[:some]...); err != nil {
			return err
		}
		due = l.folds.done(some)
	}
	return nil
}
