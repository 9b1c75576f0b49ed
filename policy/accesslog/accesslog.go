// Package accesslog reads the accesses of audit logs, for commands that predict what a
// policy does to them. It reads the logs of several sidecars, each with its rotated files
// and its second log, compressed files (gzip, zstd) included, and a log on standard input.
//
// The reader guesses nothing. A line that is no record, a record that is missing between two
// others, or a chain that its key does not prove is an error with its file and line.
// [Access.NotReplayable] states why the decision of an access cannot be taken again from
// its record.
//
// The memory that reading takes is bounded and does not grow with the log.
package accesslog

import (
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"net/netip"
	"slices"
	"time"

	"github.com/chaperone-proxy/chaperone/audit"
	"github.com/chaperone-proxy/chaperone/authz"
)

// Options choose the accesses to read.
type Options struct {
	// Paths are files and folders. A file stands for its log: its rotated files and its
	// second log beside it are read too. A rotated file stands for itself. A folder stands
	// for every log in it and below, whose name ends in .jsonl. "-" is Stdin.
	Paths []string
	Stdin io.Reader
	// StateDir holds audit.key and audit.head of the log; "" looks for them beside each log.
	// With the key, Open verifies the log.
	StateDir string
	// MaskKeys are keys of masked paths, beside those that are in StateDir or beside a log.
	// Without its key a decision about a masked path cannot be taken again.
	MaskKeys []*audit.MaskKey
	// Unverified reads a log also if its chain is broken. [Reader.Notes] then states it.
	Unverified bool
	// Since and Until bound the times at which accesses were decided: not before Since,
	// and before Until. Zero does not bound.
	Since, Until time.Time
	// Plugin is the plugin whose accesses are read; "" for all.
	Plugin string
	// Event is called with each record that is no access, in the order of the log, of all
	// plugins and times. It must not keep the event. Nil: not called.
	Event func(*Event) error
}

// Event is a record that is no access: a reload, a revocation, an echo.
type Event struct {
	audit.Entry

	Place
}

// Place is where a record stands.
type Place struct {
	Log  string // the path of the log's current file; "-" for standard input
	File string // the path of the file
	Line int    // from 1
}

// String returns file:line.
func (p Place) String() string { return fmt.Sprintf("%s:%d", p.File, p.Line) }

// The reasons for which a decision cannot be taken again from its record. They are
// stable: scripts may compare them.
const (
	OlderFormat     = "older_format"            // the record lacks fields that the decision depends on
	NewerFormat     = "newer_format"            // the record has what this version cannot read
	MaskedPath      = "masked_path_without_key" // the path, or a key of Redis, is masked, and there is no key
	TruncatedField  = "truncated_field"         // a field was too long for the record
	FoldedRefusal   = "folded_refusal"          // the record counts several refusals
	NoRequest       = "no_request"              // the access was refused before it was a request: a name, a tunnel, malformed input
	KernelDecision  = "kernel"                  // the kernel's hooks refused it
	UsageDecision   = "usage"                   // limits decided
	RevokedDecision = "revoked"                 // a revocation decided
	InternalReason  = "internal"                // a cause outside the policy refused it: a credential, the upstream, a start
)

// Access is one access that a plugin made or tried to make, or several refusals that
// the log counts in one record. It is used again for the next one that is read; its texts
// and addresses may be kept.
type Access struct {
	// Request is the request as it was asked. It is the zero Request if the record has
	// none, or if it cannot be read; NotReplayable is then not "".
	Request authz.Request
	// Time is when the access was decided, with a precision of 1 µs. Of counted refusals
	// it is the time of the last.
	Time time.Time
	// Recorded is when the decision was recorded, which is later by the time that limits
	// delayed it and that its credential took.
	Recorded time.Time
	Door     authz.Door
	Decision string // the decision's id; of counted refusals, the last's
	Plugin   string

	// Allowed reports whether the access was made: the decision allowed it and nothing
	// refused it afterwards.
	Allowed bool
	// Reason is the name of the last reason: that of the end if it refuses, otherwise that
	// of the decision.
	Reason  string
	Decided string // the name of the decision's reason
	Winner
	Target
	Outcome

	// Masked reports that segments of the path, or pieces of names in MaskedFacts, are masks.
	Masked bool
	// MaskKey is the key of the masks; nil if Masked is not set or the key is not there.
	// Each segment of the request's path is then a mask, also those that the record has
	// readable.
	MaskKey *audit.MaskKey
	// MaskedFacts are those of the request's content if the name of one is masked, or if they
	// are those of several statements and more than one can have: the request's are then
	// empty. [policy.Names] returns requests that are decided alike.
	MaskedFacts []authz.Fact
	// NotReplayable is why the decision cannot be taken again from the record, one of the
	// constants of this package; "" if it can.
	NotReplayable string

	Count int       // accesses; more than 1 for counted refusals, and for statements that were admitted together
	First time.Time // of counted refusals, the time of the first; otherwise Time

	Place
	Seq uint64 // of the decision's record
}

// Winner is the rule that decided an access, as it is recorded.
type Winner struct {
	Grant      string // "" without a winner
	Rule       string // its id
	Credential string // its credential's name
	Generation uint64 // of the policy that decided
}

// Target is where an access went, as it is recorded, also if the record has no request.
type Target struct {
	Method string // CONNECT for a refused tunnel
	Scheme string
	Host   string
	Port   uint16 // 0 for a refused name
	Path   string
	Query  bool // the request has a query
}

// Outcome is the outcome of an access.
type Outcome struct {
	Ended bool // the log has the end of the access
	// RefusedAddress reports that the policy refused, after the decision, the addresses that
	// the host resolved to.
	RefusedAddress bool
	Resolved       []netip.Addr // the addresses that the host resolved to, if they are recorded
	Address        netip.Addr   // the address that was dialled, or that is not allowed; invalid if none is known
	Region         string       // of the destination, "" if no guardrail defined one
	SentBytes      int64        // body bytes towards the upstream
	Bytes          int64        // body bytes towards the plugin
}

// Reader reads accesses. It is not safe for concurrent use.
type Reader struct {
	options Options
	logs    []*logFiles
	notes   []string
	records uint64
	keys    map[string]*audit.MaskKey // by ID

	origin origin                       // of the last request
	root   authz.Destination            // of its path /
	roots  map[origin]authz.Destination // of the path / of requests

	states map[string]string // the state beside the policy that decided, by reason; "" for none

	address string // the last
	addr    netip.Addr
	dialled bool

	masksOf *audit.MaskKey    // the key of masks
	masks   map[string]string // of readable segments
	path    []byte            // scratch
}

// Open finds the logs and verifies those whose key is there. A chain that is broken is an
// error of type [*BrokenError], unless Unverified.
func Open(o Options) (*Reader, error) {
	logs, err := find(o.Paths)
	if err != nil {
		return nil, fmt.Errorf("open audit logs: %w", err)
	}
	if slices.Contains(o.Paths, stdin) && o.Stdin == nil {
		return nil, errors.New("open audit logs: - is standard input, which this command does not read; name the log's file")
	}
	if o.StateDir != "" && len(logs) > 1 {
		return nil, fmt.Errorf("open audit logs: the state directory %s is that of one log, and these are %d; read them one by one", o.StateDir, len(logs))
	}
	r := &Reader{options: o, logs: logs, keys: map[string]*audit.MaskKey{}, roots: map[origin]authz.Destination{}, states: states()}
	for _, key := range o.MaskKeys {
		r.keys[key.ID()] = key
	}
	for _, l := range logs {
		if err := r.verify(l); err != nil {
			return nil, err
		}
	}
	return r, nil
}

// Notes returns what limits the meaning of what was read: a log without its key, a chain
// that is broken. It is complete once Accesses has ended.
func (r *Reader) Notes() []string { return r.notes }

// Records returns how many records were read so far, those that are no accesses included.
func (r *Reader) Records() uint64 { return r.records }

// Accesses returns the accesses of each log in turn, in the order of its decisions as far
// as they end in that order. An access is returned when its end was read, or when the log
// ends. An error, also that of ctx, ends the sequence.
func (r *Reader) Accesses(ctx context.Context) iter.Seq2[*Access, error] {
	return func(yield func(*Access, error) bool) {
		for _, l := range r.logs {
			err := r.readLog(ctx, l, yield)
			if errors.Is(err, errStopped) {
				return
			}
			if err != nil {
				yield(nil, fmt.Errorf("read audit log: %w", err))
				return
			}
		}
	}
}

// maxNotes bounds the notes about one log that is broken in many places.
const maxNotes = 20

// broken returns an error for a chain that is broken, or notes it and returns nil if such
// logs are read.
func (r *Reader) broken(err error) error {
	if !r.options.Unverified {
		return err
	}
	if len(r.notes) < maxNotes {
		r.notes = append(r.notes, "the chain is broken: "+err.Error())
	}
	return nil
}

// errStopped ends reading when the caller wants no more.
var errStopped = errors.New("stopped")

// BrokenError reports that a log is not what was written.
type BrokenError struct{ Problem audit.Problem }

// Error implements error.
func (e *BrokenError) Error() string {
	return e.Problem.String() + ": the log is not what was written; --unverified reads it nevertheless"
}

// verify verifies a log if its key is there.
func (r *Reader) verify(l *logFiles) error {
	dir := r.options.StateDir
	if dir == "" && l.name != stdin {
		dir = audit.DefaultStateDir(l.name)
	}
	if dir != "" {
		if key, err := audit.LoadKey(dir); err == nil {
			mask := key.MaskKey()
			r.keys[mask.ID()] = mask
		}
	}
	switch {
	case r.options.Unverified:
		r.notes = append(r.notes, l.name+": not verified")
		return nil
	case dir == "" || l.name == stdin || !l.whole:
		r.notes = append(r.notes, l.name+": its key is not there; the links between its records are checked, and their contents are not proved")
		return nil
	}
	report, err := audit.Verify(audit.VerifyConfig{File: l.name, StateDir: dir})
	if err != nil {
		return err
	}
	if report.Problem != nil {
		return &BrokenError{*report.Problem}
	}
	return nil
}
