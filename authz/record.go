package authz

import (
	"net/netip"
	"time"
)

// Kind is the kind of an audit record.
type Kind string

// The kinds of audit records.
const (
	KindDecision   Kind = "decision"   // an access, before its effect
	KindEnd        Kind = "end"        // the same access, after it
	KindCredential Kind = "credential" // a lease taken, renewed, lost or revoked
	KindRevocation Kind = "revocation" // access revoked or restored
	KindReload     Kind = "reload"     // a policy loaded or refused
	KindLimit      Kind = "limit"      // a limit crossed
	KindProcess    Kind = "process"    // a plugin started or ended
	KindProbe      Kind = "probe"      // lookups by a library that were refused; see [Probe]
	KindLost       Kind = "lost"       // kernel events that could not be kept
	KindEcho       Kind = "echo"       // an upstream answered with the credential
	KindHandshake  Kind = "handshake"  // the plugin's program aborted a TLS handshake with the sidecar, usually for lack of trust
	KindStray      Kind = "stray"      // an unmediated connection: the kernel allowed it and no door handled it
	KindInbound    Kind = "inbound"    // a connection from the host to the plugin: its beginning and its end
)

// Kinds returns every kind of audit record except the log's own.
func Kinds() []Kind {
	return []Kind{
		KindDecision, KindEnd, KindCredential, KindRevocation, KindReload, KindLimit, KindProcess, KindProbe, KindLost, KindEcho,
		KindHandshake, KindStray, KindInbound,
	}
}

// Record is one line of the audit log. It never holds a secret or a body. The
// recorder adds sequence, previous hash and hash, and masks sensitive values.
type Record struct {
	Time       time.Time
	Kind       Kind
	Plugin     string
	Door       Door
	Decision   string // the decision's id; links decision and end
	Allowed    bool   // for KindDecision and KindEnd
	Reason     string
	Grant      string
	Rule       string
	Generation uint64
	Method     string
	Scheme     string
	Host       string
	Port       uint16
	Path       string // canonical
	Query      string // as sent, without "?"
	Pattern    string // the rule's path pattern; the segments that its wildcards match are masked
	Address    string // the address dialled, or the resolved address that is not allowed
	Credential string // its name
	Lease      string // Vault's lease id, masked
	SentBytes  int64  // body bytes towards the upstream
	Bytes      int64  // body bytes towards the plugin
	Latency    time.Duration
	PID        int
	Exe        string
	UID        int // -1 when unknown
	Actor      string
	TraceID    string
	SpanID     string
	Detail     string            // one line of text
	Count      int               // equal events in this record; 0 and 1 mean one
	Lost       uint64            // events that could not be kept
	Files      map[string]string // for KindReload: file and SHA-256 digest
	Incident   bool              // of a refusal: the plugin was outside its confinement; never counted with others
	Fold       *Fold             // of refusals that were counted in one record; otherwise nil

	// The decision depends on the fields below, and can be taken again from them.
	Attempt       bool         // the access did not become a Request; see [Attempt]
	AskedScheme   string       // as asked, if tls.originate changed Scheme and Port; otherwise ""
	AskedPort     uint16       // likewise; otherwise 0
	Upgrade       string       // as in [Action]
	Unenforceable Conditions   // as in [Request]
	Resolved      []netip.Addr // the addresses that Host resolved to for this access, in order
	Region        string       // for KindEnd: of the destination; see [Decision.Region]
	TLS           string       // for KindEnd: the version of the TLS session with the upstream, as in [Connection]
	DecidedBy     StateKind    // the state that decided an access whose Reason does not show it; otherwise ""
	Protocol      string       // of Facts
	// Facts are of the request's content: names that a reader of the protocol found. They are
	// sorted, but keys and channels of statements that were admitted together are in the order
	// of these. The record of an end has none.
	Facts []string

	// Of statements.
	Patterns  []string // of Facts, in their order: the rule's patterns that grant keys and channels, as KIND:NAME; nil for other facts
	Session   string   // the decision's id of the session's connection
	Rows      int64    // for KindEnd: that the server reported
	Statement string   // for KindEnd: its text with constants replaced; recorded only if paths are
}

// StateKind is a kind of state that decides accesses beside the policy.
type StateKind string

// The kinds of state.
const (
	StateLimits     StateKind = "limits"     // a limit was exceeded, and the access was only observed
	StateRevocation StateKind = "revocation" // a rule that would have observed the access was revoked
)

// Fold describes the refusals that one record counts. Record fields in which
// the refusals differ are empty; Path is the first's, Decision the last's.
type Fold struct {
	First, Last time.Time // of the refusals
	Paths       int       // different paths, counted up to 64
	LastPath    string    // of the last refusal
	LastPattern string    // as Record.Pattern, for LastPath
}

// Recorder writes audit records. Record MUST NOT return nil before the record
// has been handed to the operating system: an access that cannot be recorded is
// refused. A refusal, which has no effect, MAY be counted with equal ones and
// written later. It MUST be safe for concurrent use and MUST NOT keep the record.
type Recorder interface {
	Record(r *Record) error
}

// BatchRecorder is a Recorder that writes several records at a lower cost than
// one by one. RecordAll MUST write them in order and MUST follow the rules of
// Record; when it returns an error, the first records may have been written.
type BatchRecorder interface {
	Recorder
	RecordAll(records []*Record) error
}
