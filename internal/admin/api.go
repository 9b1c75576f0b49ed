package admin

import (
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"

	"github.com/chaperone-proxy/chaperone/authz"
)

// Status is the answer of GET /v1/status: what is in force and what each door
// enforces of it.
type Status struct {
	Plugin       string             `json:"plugin"`
	PID          int                `json:"pid"` // of the sidecar
	Version      string             `json:"version"`
	Started      time.Time          `json:"started"`
	StateDir     string             `json:"stateDir"`
	Mode         string             `json:"mode"` // enforce or observe
	ObserveUntil time.Time          `json:"observeUntil,omitzero"`
	Generation   uint64             `json:"generation"` // of the effective policy
	Ready        bool               `json:"ready"`
	Checks       []Check            `json:"checks"` // the parts of readiness
	Kernel       Kernel             `json:"kernel"`
	Process      *Process           `json:"process,omitempty"`   // nil: no process was started or found
	Mediation    *Mediation         `json:"mediation,omitempty"` // nil: the kernel does not say
	Doors        []Door             `json:"doors"`
	Envoy        *Envoy             `json:"envoy,omitempty"` // nil: the sidecar configures none
	Grants       []Grant            `json:"grants"`
	Revocations  []authz.Revocation `json:"revocations"`
	Credentials  []Credential       `json:"credentials"`
	Sessions     []Session          `json:"sessions,omitempty"` // with databases, in the order in which they began
	Files        []File             `json:"files"`              // as last loaded
	Audit        Audit              `json:"audit"`
	Host         *HostRevocations   `json:"host,omitempty"`         // nil: not read
	Certificates string             `json:"certificates,omitempty"` // file with the authorities that the plugin's programs are to trust, PEM
	Warnings     []string           `json:"warnings,omitempty"`     // chosen settings that weaken the sidecar

	Trust *Trust `json:"trust,omitempty"` // nil without spec.trust

	RestartPending []string `json:"restartPending,omitempty"` // fields of the loaded Sidecar that take effect at a restart
}

// HostRevocations is where the sidecar reads the revocations of the whole host.
type HostRevocations struct {
	Files   []string `json:"files"`             // whether they exist or not
	InForce []string `json:"inForce,omitempty"` // ids of the revocations in force that are the host's
	Detail  string   `json:"detail,omitempty"`  // why the files are not in force, or whose they are
}

// Check is one condition of being ready.
type Check struct {
	Name   string `json:"name"` // policy, vault, kernel, audit, ...
	OK     bool   `json:"ok"`
	Detail string `json:"detail,omitempty"` // why not, in words
}

// Kernel says how far the kernel confines and meters the plugin.
type Kernel struct {
	Want     string `json:"want"` // required, preferred or off
	Attached bool   `json:"attached"`
	Detail   string `json:"detail,omitempty"` // why it is not attached, or what it lacks

	Syscalls *SyscallCounting `json:"syscalls,omitempty"` // nil: no limit on system calls
}

// SyscallCounting describes how system calls are metered under a limit.
type SyscallCounting struct {
	Counted   bool          `json:"counted"`                    // one by one, now; false: bounded by CPU time, since no limit is near
	TraceCost time.Duration `json:"traceNanoseconds,omitempty"` // added to each call of every process of the host while they are counted; 0: not measured
}

// Mediation compares the connections that the kernel redirected to the sidecar with what the
// sidecar handled, since the programs were first attached.
type Mediation struct {
	Admitted   uint64 `json:"admitted"`   // connections that the kernel redirected
	Handled    uint64 `json:"handled"`    // of them, those whose caller was identified
	Abandoned  uint64 `json:"abandoned"`  // that the plugin closed, or an earlier sidecar lost, before that
	Pending    uint64 `json:"pending"`    // that wait, for a second at most
	Unmediated uint64 `json:"unmediated"` // the remainder; investigate any value but 0
	Ended      uint64 `json:"ended"`      // processes and sockets that were ended for escaping the kernel's walls
	// UnmediatedConnections are those of Unmediated, by process.
	UnmediatedConnections []UnmediatedConnection `json:"unmediatedConnections"`
	// Strays is the same list under the name that it had before.
	//
	// Deprecated: read UnmediatedConnections. The next release does not have Strays.
	Strays []UnmediatedConnection `json:"strays"`
}

// UnmediatedConnection is one connection that the kernel allowed and the proxy has not
// accepted.
type UnmediatedConnection struct {
	PID         int     `json:"pid"`
	Comm        string  `json:"comm"`
	Destination string  `json:"destination,omitempty"`
	AgeSeconds  float64 `json:"ageSeconds"`
	Why         string  `json:"why"`
}

// Process is the plugin's process, under run.
type Process struct {
	PID     int    `json:"pid"`
	UID     int    `json:"uid"`
	Cgroup  string `json:"cgroup,omitempty"`
	State   string `json:"state"` // running, stopped (by a limit), ended, halted
	Network string `json:"network,omitempty"`
	Listen  []Port `json:"listen,omitempty"` // where it may serve

	StoppedBy    string    `json:"stoppedBy,omitempty"`   // the limit that stopped it
	StoppedUntil time.Time `json:"stoppedUntil,omitzero"` // when it is expected to go on; zero for never
}

// Port is where the plugin may serve: a TCP port, or Unix sockets.
type Port struct {
	Port      uint16   `json:"port"`                // 0: Unix sockets
	Path      string   `json:"path,omitempty"`      // of Unix sockets, perhaps with a *
	Addresses []string `json:"addresses,omitempty"` // of the host that reach it
	Forwarded bool     `json:"forwarded"`           // the sidecar listens there, and leads into the plugin's own network
	Open      int      `json:"open"`                // connections that are led through
}

// Door is one place where requests arrive.
type Door struct {
	Name        string   `json:"name"`                  // proxy, ext_authz, kernel
	Address     string   `json:"address,omitempty"`     // where it listens
	Enforces    []string `json:"enforces"`              // in contract terms: hosts, methods, paths, addresses, ...
	NotEnforced []string `json:"notEnforced,omitempty"` // fields of rules that this door cannot enforce
}

// Envoy says how the Envoys stand that the sidecar configures.
type Envoy struct {
	Dir        string           `json:"dir"`               // of the sockets between them
	Generation uint64           `json:"generation"`        // of the policy that they receive
	Problem    string           `json:"problem,omitempty"` // why nothing is routed
	Exits      int              `json:"exits"`             // places they may reach, each by a socket of its own
	Connected  []ConnectedEnvoy `json:"connected"`
}

// ConnectedEnvoy is one Envoy that asks for its configuration.
type ConnectedEnvoy struct {
	Version    string            `json:"version"`
	Since      time.Time         `json:"since"`
	Current    bool              `json:"current"`           // it has put in force all that it receives
	Generation uint64            `json:"generation"`        // the oldest of which it has something in force; 0 before it has anything
	Refused    map[string]string `json:"refused,omitempty"` // errors of what it did not put in force, by type of resource
}

// Grant is one grant in force.
type Grant struct {
	Name     string    `json:"name"`
	NotAfter time.Time `json:"notAfter"`
	Expired  bool      `json:"expired,omitempty"`
	Rules    []Rule    `json:"rules"`

	Signature *Signature `json:"signature,omitempty"` // nil for a grant that is not signed
}

// Trust is whose signatures count.
type Trust struct {
	Root      string `json:"root"`      // name of the trust root
	Version   int64  `json:"version"`   // of the trust root
	Digest    string `json:"digest"`    // of the trust root
	Guardrail string `json:"guardrail"` // digest that signed grants are bound to
}

// Signature is what a signed grant is bound to, and its dates.
type Signature struct {
	Digest      string      `json:"digest"` // of the grant
	Generation  int64       `json:"generation"`
	Band        string      `json:"band"`
	Score       int         `json:"score"`
	Artifact    string      `json:"artifact"`            // KIND DIGEST
	Approvals   []string    `json:"approvals,omitempty"` // IDENTITY as ROLE
	RenewBefore time.Time   `json:"renewBefore"`
	Stale       time.Time   `json:"stale,omitzero"` // when the first evidence becomes stale
	Exemptions  []Exemption `json:"exemptions,omitempty"`
}

// Exemption is the state of an exemption that a grant uses.
type Exemption struct {
	Name     string    `json:"name"`
	From     string    `json:"from"` // the ceiling or the rule, as in ceilings.tlsMin
	Owner    string    `json:"owner"`
	Ticket   string    `json:"ticket"`
	State    string    `json:"state"` // active, expired or used up
	NotAfter time.Time `json:"notAfter"`
	Uses     int64     `json:"uses"`
	MaxUses  int64     `json:"maxUses,omitempty"` // 0 for any number
}

// Rule is one rule of a grant.
type Rule struct {
	ID         string    `json:"id"`
	Reason     string    `json:"reason"`
	Mode       string    `json:"mode"` // enforce or observe
	NotAfter   time.Time `json:"notAfter,omitzero"`
	Credential string    `json:"credential,omitempty"`
	Revoked    bool      `json:"revoked,omitempty"`
}

// Credential is the state of one credential. It holds nothing secret.
type Credential struct {
	Grant    string    `json:"grant"`
	Name     string    `json:"name"`
	State    string    `json:"state"` // valid, pending, renewing, failed, revoked
	Leased   bool      `json:"leased,omitempty"`
	NotAfter time.Time `json:"notAfter,omitzero"` // it is not used past this
	Detail   string    `json:"detail,omitempty"`  // why it is not valid
}

// Session is an open session of the plugin with a database. It holds no statement.
type Session struct {
	Decision   string    `json:"decision"` // id of the decision on the connection
	Protocol   string    `json:"protocol"` // postgres, redis
	Host       string    `json:"host"`
	Port       uint16    `json:"port"`
	Database   string    `json:"database"`
	Rule       string    `json:"rule"` // GRANT/ID that granted the connection
	Credential string    `json:"credential,omitempty"`
	PID        int       `json:"pid,omitempty"` // of the plugin's process
	Since      time.Time `json:"since"`
	IdleMS     int64     `json:"idleMs"`              // milliseconds since a byte moved; 0 while a statement runs
	Running    int       `json:"running"`             // statements
	Statement  string    `json:"statement,omitempty"` // id of the decision on the one that has run longest
	SentBytes  int64     `json:"sentBytes"`           // towards the server
	Bytes      int64     `json:"bytes"`               // towards the plugin
}

// File is a loaded file.
type File struct {
	Path   string `json:"path"`
	SHA256 string `json:"sha256"` // in hexadecimal
}

// Audit is the state of the audit log.
type Audit struct {
	File    string `json:"file"`
	Seq     uint64 `json:"seq"`   // of the last record
	Bytes   int64  `json:"bytes"` // size of the current file
	Healthy bool   `json:"healthy"`
	Detail  string `json:"detail,omitempty"`
}

// Usage is the answer of GET /v1/usage.
type Usage struct {
	At       time.Time `json:"at"`
	Limits   []Limit   `json:"limits"`
	Counters *Counters `json:"counters,omitempty"` // nil: the kernel does not count
	Stale    bool      `json:"stale,omitempty"`    // the kernel's counters are too old to decide on
}

// Limit is one limit and what is used of it.
type Limit struct {
	Grant      string  `json:"grant"`
	Rule       string  `json:"rule,omitempty"`       // "" for a limit of the whole plugin
	Kind       string  `json:"kind"`                 // requests, connections, sentBytes, receivedBytes, syscalls
	Limit      string  `json:"limit"`                // as written: 100/1m
	Used       uint64  `json:"used"`                 // of a rate: in the last period; of a total: ever
	Remaining  uint64  `json:"remaining"`            // that may be used at once
	Ratio      float64 `json:"ratio"`                // of the limit that may not be used at once; 1 is all of it
	RetryAfter float64 `json:"retryAfter,omitempty"` // seconds until one more is allowed
	OnExceeded string  `json:"onExceeded,omitempty"`

	State string    `json:"state,omitempty"` // of a limit that is crossed: refusing, throttled, stopped or killed
	Until time.Time `json:"until,omitzero"`  // when it is expected to allow again; zero for never
}

// Counters are the kernel's counts since the plugin started.
type Counters struct {
	SentBytes          uint64            `json:"sentBytes"`
	ReceivedBytes      uint64            `json:"receivedBytes"`
	Connections        uint64            `json:"connections"`
	RefusedConnections uint64            `json:"refusedConnections"`
	Probes             uint64            `json:"probes"`             // refused look-ups of libraries; none of RefusedConnections
	LimitedConnections uint64            `json:"limitedConnections"` // turned away by a limit
	SentPackets        uint64            `json:"sentPackets"`
	ReceivedPackets    uint64            `json:"receivedPackets"`
	DNSQueries         uint64            `json:"dnsQueries"`                  // over UDP
	Syscalls           uint64            `json:"syscalls"`                    // UncountedSyscalls included
	UncountedSyscalls  uint64            `json:"uncountedSyscalls,omitempty"` // an upper bound: as many as the plugin's CPU time had room for while calls were not counted
	SyscallClasses     map[string]uint64 `json:"syscallClasses,omitempty"`
	Processes          uint64            `json:"processes"`
	Lost               uint64            `json:"lost,omitempty"` // events that could not be kept
}

// DecisionQuery selects the records that GET /v1/decisions answers with. The zero
// value is the last DefaultDecisions decisions.
type DecisionQuery struct {
	Limit    int    // how many, from the end; 0 is DefaultDecisions
	Follow   bool   // go on with what is decided from now on
	Kind     string // of record; "" is decision, "all" is every kind
	Decision string // only the records of this decision
}

// Bounds of DecisionQuery.Limit.
const (
	DefaultDecisions = 100
	MaxDecisions     = 10_000
)

// Revocations is the answer of GET /v1/revocations.
type Revocations struct {
	Revocations []authz.Revocation `json:"revocations"`
}

// RevokeRequest is the body of POST /v1/revocations.
type RevokeRequest struct {
	ID       string      `json:"id,omitempty"`       // "" has the sidecar make one; one that is in force already is not made again
	Rule     string      `json:"rule,omitempty"`     // GRANT/ID; "" is the whole plugin
	Level    authz.Level `json:"level,omitempty"`    // "" is quarantine
	Reason   string      `json:"reason"`             // required, for people
	Incident string      `json:"incident,omitempty"` // the case that it belongs to, by which it can be restored with others
	Until    time.Time   `json:"until,omitzero"`     // zero: until it is restored
	All      bool        `json:"all,omitempty"`      // it is sent to every sidecar of the host
}

const (
	maxReason   = 1000
	maxIncident = 200
	maxRule     = 300
)

// Validate completes the request's defaults and returns what is wrong with it.
func (r *RevokeRequest) Validate(now time.Time) error {
	if r.Level == "" {
		r.Level = authz.LevelQuarantine
	}
	switch r.Level {
	case authz.LevelPause, authz.LevelQuarantine:
	case authz.LevelHalt:
		if r.Rule != "" {
			return errors.New("level: halt kills the plugin and takes no rule; use pause or quarantine")
		}
	default:
		return fmt.Errorf("level: %q is not pause, quarantine or halt", r.Level)
	}
	if r.Rule != "" {
		grant, id, ok := strings.Cut(r.Rule, "/")
		if !ok || grant == "" || id == "" || strings.Contains(id, "/") || len(r.Rule) > maxRule || !printable(r.Rule) {
			return fmt.Errorf("rule: %.80q is not GRANT/ID", r.Rule)
		}
		if r.All {
			return errors.New("rule: all takes no rule")
		}
	}
	if !r.Until.IsZero() && !r.Until.After(now) {
		return fmt.Errorf("until: %s is past", r.Until.Format(time.RFC3339))
	}
	if len(r.Incident) > maxIncident || !printable(r.Incident) {
		return fmt.Errorf("incident: %.80q is not one line of printable text of at most %d bytes", r.Incident, maxIncident)
	}
	if len(r.ID) > maxRule || !printable(r.ID) {
		return fmt.Errorf("id: %.80q is not an id", r.ID)
	}
	return ValidateReason(r.Reason)
}

// ValidateReason returns what is wrong with the reason of a revocation or a
// restoration: it is required, one line, and at most 1,000 bytes.
func ValidateReason(reason string) error {
	switch {
	case strings.TrimSpace(reason) == "":
		return errors.New("reason: it is required; say why, for the audit log")
	case len(reason) > maxReason:
		return fmt.Errorf("reason: it is longer than %d bytes", maxReason)
	case !printable(reason):
		return errors.New("reason: it is not one line of printable text")
	}
	return nil
}

// The states of a sidecar that has not answered, in a RevokeResult of the command.
const (
	StateNotRunning  = "not_running" // it reads the revocation when it starts
	StateNoAnswer    = "no_answer"   // it hangs, and reads the revocation when it goes on
	StateKilled      = "killed"      // it did not answer and was killed
	StateUnreachable = "unreachable" // it refused, or the caller may not talk to it
)

// RevokeResult reports what a revocation did. Without a State, access is revoked: what
// is in Failed came after it and is to be seen to.
type RevokeResult struct {
	ID     string      `json:"id"`
	Plugin string      `json:"plugin"`
	State  string      `json:"state,omitempty"`  // of the sidecar, when it has not answered
	PID    int         `json:"pid,omitempty"`    // of the sidecar, likewise
	Kernel string      `json:"kernel,omitempty"` // how the kernel holds the plugin without it
	Rule   string      `json:"rule,omitempty"`
	Level  authz.Level `json:"level"`
	Cut    int         `json:"cut"` // live connections and exchanges that were ended
	Vault  VaultResult `json:"vault"`
	MS     float64     `json:"ms"` // until the last was cut, in milliseconds
	Failed []string    `json:"failed"`
}

// VaultResult reports what became of the leases.
type VaultResult struct {
	Leases      int `json:"leases"`
	Confirmed   int `json:"confirmed"`   // Vault says that they are revoked
	Unconfirmed int `json:"unconfirmed"` // Vault did not answer; it is asked again
}

// RestoreResult is the answer of DELETE /v1/revocations/{id}.
type RestoreResult struct {
	ID         string `json:"id"`
	Plugin     string `json:"plugin"`
	Generation uint64 `json:"generation"`
}

// ReloadResult is the answer of POST /v1/reload when the new policy is in force.
type ReloadResult struct {
	Generation uint64   `json:"generation"`
	Changed    []string `json:"changed"` // in words; empty: nothing changed
	Files      []File   `json:"files"`
}

// Error is the body of every answer that is not a success, and what the
// functions of a Config return to choose it. Any other error is answered as
// an internal one.
type Error struct {
	Status  int      `json:"status"`            // of HTTP
	Code    string   `json:"code"`              // stable, one of the Code constants
	Message string   `json:"message"`           // for people
	Details []string `json:"details,omitempty"` // for example each error of a file
}

// The codes of errors.
const (
	CodeBadRequest       = "bad_request"        // 400
	CodeNotFound         = "not_found"          // 404
	CodeMethodNotAllowed = "method_not_allowed" // 405
	CodeConflict         = "conflict"           // 409
	CodeTooLarge         = "too_large"          // 413
	CodeInvalid          = "invalid"            // 422: files that were refused
	CodeBusy             = "busy"               // 503: too many streams
	CodeInternal         = "internal"           // 500
)

// Error returns the message and the details.
func (e *Error) Error() string {
	if len(e.Details) == 0 {
		return e.Message
	}
	return e.Message + ": " + strings.Join(e.Details, "; ")
}

// NewError returns the error of a code, with the code's HTTP status.
func NewError(code, message string, details ...string) *Error {
	status := http.StatusInternalServerError
	switch code {
	case CodeBadRequest:
		status = http.StatusBadRequest
	case CodeNotFound:
		status = http.StatusNotFound
	case CodeMethodNotAllowed:
		status = http.StatusMethodNotAllowed
	case CodeConflict:
		status = http.StatusConflict
	case CodeTooLarge:
		status = http.StatusRequestEntityTooLarge
	case CodeInvalid:
		status = http.StatusUnprocessableEntity
	case CodeBusy:
		status = http.StatusServiceUnavailable
	}
	return &Error{Status: status, Code: code, Message: message, Details: details}
}
