package gameday

import (
	"maps"
	"net/netip"
	"slices"
	"time"

	"github.com/chaperone-proxy/chaperone/audit"
	"github.com/chaperone-proxy/chaperone/authz"
)

// maxDestinations bounds the destinations that are kept of a log.
const maxDestinations = 1024

// MetadataService is the address of the metadata service of clouds.
const MetadataService = "169.254.169.254"

// Observer reads the audit log of an exercise, record by record in order.
type Observer struct {
	turned, ended time.Time

	first    time.Time // refusal after the turn
	revoked  time.Time
	refusals map[string]int
	admitted int              // accesses after the revocation
	metadata int              // accesses to the metadata service
	sent     map[string]int64 // by host; a host beyond the bound is not counted
}

// NewObserver returns an observer of the log of an exercise whose plugin turned at a time,
// and that ended at another; zero: it has not yet.
func NewObserver(turned, ended time.Time) *Observer {
	return &Observer{turned: turned, ended: ended, refusals: map[string]int{}, sent: map[string]int64{}}
}

// Add takes one record.
func (o *Observer) Add(e *audit.Entry) {
	if o.turned.IsZero() || e.Time.Before(o.turned) {
		return
	}
	switch authz.Kind(e.Kind) { //nolint:exhaustive // the others are no accesses and no revocations
	case authz.KindDecision:
		o.decision(e)
	case authz.KindEnd:
		o.end(e)
	case authz.KindRevocation:
		if o.revoked.IsZero() && o.within(e.Time) {
			o.revoked = e.Time
		}
	}
}

// within reports whether a time is before the exercise ended the plugin itself.
func (o *Observer) within(at time.Time) bool { return o.ended.IsZero() || at.Before(o.ended) }

func (o *Observer) decision(e *audit.Entry) {
	if e.Allowed == nil {
		return
	}
	if !*e.Allowed {
		if o.first.IsZero() {
			o.first = e.Time
		}
		o.refusals[e.Reason] += max(e.Count, 1)
		return
	}
	if !o.revoked.IsZero() && o.within(e.Time) {
		o.admitted++
	}
}

// end counts what an access sent. An address that was dialled is one that was reached.
func (o *Observer) end(e *audit.Entry) {
	if e.Allowed != nil && *e.Allowed {
		if addr, err := netip.ParseAddr(e.Address); err == nil && addr.Unmap().String() == MetadataService || e.Host == MetadataService {
			o.metadata++
		}
	}
	if e.SentBytes == 0 {
		return
	}
	if _, known := o.sent[e.Host]; !known && len(o.sent) >= maxDestinations {
		return
	}
	o.sent[e.Host] += e.SentBytes
}

// Observed is what a log records of an exercise from the turn on.
type Observed struct {
	FirstRefusal time.Time // zero: none
	Revoked      time.Time // zero: never
	// Refusals is how many there were for each reason.
	Refusals map[string]int
	// AdmittedAfter is how many accesses were admitted after the revocation.
	AdmittedAfter int
	// Metadata is how many accesses to the metadata service were admitted.
	Metadata int
	// Destination is the host that most body bytes were sent to, "" for none, and Sent is how
	// many.
	Destination string
	Sent        int64
}

// Observed returns what the log records.
func (o *Observer) Observed() Observed {
	out := Observed{
		FirstRefusal: o.first, Revoked: o.revoked, Refusals: maps.Clone(o.refusals), AdmittedAfter: o.admitted, Metadata: o.metadata,
	}
	for _, host := range slices.Sorted(maps.Keys(o.sent)) {
		if sent := o.sent[host]; sent > out.Sent {
			out.Destination, out.Sent = host, sent
		}
	}
	return out
}
