package authz

import "time"

// Kind is the kind of an audit record.
type Kind string

// The kinds of audit records.
const (
	KindDecision   Kind = "decision"   // an access, before its effect
	KindEnd        Kind = "end"        // the same access, after it
	KindCredential Kind = "credential" // a lease taken, renewed, lost or revoked
	KindRevocation Kind = "revocation" // access taken away or given back
	KindReload     Kind = "reload"     // a policy loaded or refused
	KindLimit      Kind = "limit"      // a limit crossed
	KindProcess    Kind = "process"    // a plugin started or ended
	KindProbe      Kind = "probe"      // look-ups of a library's own that were refused; see [Probe]
	KindLost       Kind = "lost"       // kernel events that could not be kept
	KindEcho       Kind = "echo"       // an upstream answered with the credential
	KindHandshake  Kind = "handshake"  // the plugin's program gave up a TLS handshake with the sidecar, mostly for want of trust
	KindStray      Kind = "stray"      // a connection of the plugin that the kernel let through and nobody handled
	KindInbound    Kind = "inbound"    // a connection from the host led to the plugin: its beginning and its end
)

// Kinds returns every kind of audit record that is made outside the log itself.
func Kinds() []Kind {
	return []Kind{
		KindDecision, KindEnd, KindCredential, KindRevocation, KindReload, KindLimit, KindProcess, KindProbe, KindLost, KindEcho,
		KindHandshake, KindStray, KindInbound,
	}
}

// Record is one line of the audit log. It never holds a secret or a body. The
// recorder adds sequence, previous hash and hash, and masks what is to be masked.
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
	Query      string // as it was sent, without "?"
	Pattern    string // the rule's path pattern; the segments its wildcards matched are masked
	Address    string // the address dialled, or that the name leads to and that is not allowed
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
	Detail     string            // one line in words
	Count      int               // equal events folded into this one; 0 and 1 mean one
	Lost       uint64            // events that could not be kept
	Files      map[string]string // for KindReload: file and SHA-256 digest
	Incident   bool              // of a refusal: the plugin was outside its confinement; it is never counted with others
	Fold       *Fold             // of refusals that were counted instead of written each; else nil
}

// Fold is what is kept of refusals of which Record.Count are one record. Its fields
// that they do not have in common are empty; Path is the first's, Decision the last's.
type Fold struct {
	First, Last time.Time // of the refusals
	Paths       int       // different paths, counted up to 64
	LastPath    string    // of the last refusal
	LastPattern string    // as Record.Pattern, for LastPath
}

// Recorder writes audit records. Record MUST NOT return nil before the record
// has been handed to the operating system: what cannot be recorded is refused. A
// refusal alone, which has no effect, MAY be counted with its equals and written
// later. It MUST be safe for concurrent use and MUST NOT keep the record.
type Recorder interface {
	Record(r *Record) error
}

// BatchRecorder is a Recorder that writes several records at less than the cost
// of writing each. RecordAll MUST write them in their order and keep to what is
// said of Record; when it returns an error, the first of them may have been
// written.
type BatchRecorder interface {
	Recorder
	RecordAll(records []*Record) error
}
