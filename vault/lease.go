package vault

import (
	"encoding/json"
	"maps"
	"math/rand/v2"
	"strconv"
	"strings"
	"time"

	"github.com/chaperone-proxy/chaperone/authz"
)

// safety is the unused rest at the end of a lease of length d: the local clock and Vault's
// differ, and the request still has to arrive.
func safety(d time.Duration) time.Duration {
	return min(max(2*time.Second, d/20), d/2)
}

// window is how long an answer of Vault's may be used, and when it is due for renewal.
type window struct {
	notAfter  dualTime
	refreshAt dualTime
	ends      dualTime // when Vault ends it, however long it may be used
	capped    bool     // by the ceiling, so that renewing would not lengthen it
}

// newWindow returns the window of what was granted for ttl by an answer to a
// request sent at issued, and may not be used past ceiling. spread is from
// -1 to 1 and moves the refresh by up to a tenth, so that not all come at once.
func newWindow(issued dualTime, ttl time.Duration, ceiling dualTime, spread float64) window {
	ends := issued.add(ttl)
	end := earliest(ends, ceiling)
	length := max(issued.until(end), 0)
	usable := length - safety(length)
	if end == never() {
		return window{notAfter: end, refreshAt: end, ends: end}
	}
	refresh := time.Duration(float64(usable) * (2.0 / 3) * (1 + spread/10))
	return window{
		notAfter:  end.add(-safety(length)),
		refreshAt: issued.add(refresh),
		ends:      ends,
		capped:    !ends.before(ceiling),
	}
}

// lease is one answer of Vault's that is in use. It does not change.
type lease struct {
	window
	id             string // "" for a value without a lease; for a certificate MOUNT/cert/SERIAL
	mount          string // of the engine that a certificate is revoked at; "" for other leases
	session        *session
	fields         fieldSet
	generation     uint64
	renewable      bool
	exhausted      bool // Vault granted less than was asked: the next one is a new one
	minted         dualTime
	granted        time.Duration      // at first
	uses           *authz.Uses        // the accesses that carry it
	term           *authz.TermControl // the life of its value, for accesses that last; set when it is installed
	propagatesLate bool               // the service accepts it only some seconds after it was made
	rejected       bool               // the upstream did not accept it
	onDemand       bool               // it is fetched again when it is asked for, and not before it ends

	// Of a password that Vault replaces.

	rotated  string   // when it was replaced last, as Vault writes it
	rotateBy dualTime // when it is to be replaced
	lateBy   dualTime // until when Vault is asked for one that is late; zero while it is not
}

// usableUntil is when the lease or the token that holds it ends. A certificate
// ends by itself, and a value without a lease does not end with the token that it
// was read with: while Vault is away it is served for as long as it may be stale.
func (l *lease) usableUntil() dualTime {
	if l.mount != "" || l.id == "" {
		return l.notAfter
	}
	return earliest(l.notAfter, l.session.end())
}

// heldBy reports whether the lease ends with a token, or is lost with one that Vault
// refuses.
func (l *lease) heldBy(s *session) bool { return l.session == s && l.mount == "" }

// usable reports whether the lease may be used at now.
func (l *lease) usable(now dualTime) bool {
	return l != nil && (l.mount != "" || !l.session.dead.Load()) && now.before(l.usableUntil())
}

// credential returns what is served.
func (l *lease) credential() authz.Credential {
	return authz.Credential{
		Fields: l.fields.text, PEM: l.fields.pem, Unusable: l.fields.unusable, Generation: l.generation, Lease: l.id,
		NotAfter: l.usableUntil().time(), Uses: l.uses, Term: l.term.Term(),
	}
}

// renews reports whether renewing the lease is worth trying.
func (l *lease) renews() bool {
	return l.id != "" && l.renewable && !l.exhausted && !l.capped && !l.rejected
}

// increment is how much to ask for at now, in whole seconds.
func (l *lease) increment(now dualTime, lifetime time.Duration) time.Duration {
	ask := l.granted
	if lifetime > 0 {
		ask = min(ask, now.until(l.minted.add(lifetime)))
	}
	return max(ask.Truncate(time.Second), time.Second)
}

// renewed returns the lease as it is after a renewal that was asked for at
// issued and granted ttl.
func (l *lease) renewed(issued dualTime, asked, ttl, lifetime time.Duration, spread float64) *lease {
	next := *l
	next.window = newWindow(issued, ttl, ceiling(l.minted, lifetime), spread)
	next.exhausted = ttl+time.Second < asked
	return &next
}

// ceiling is when a lease that was minted at minted must be revoked at the latest.
func ceiling(minted dualTime, lifetime time.Duration) dualTime {
	if lifetime <= 0 {
		return never()
	}
	return minted.add(lifetime)
}

// seconds returns a duration of Vault's. Ten years stand for anything longer.
func seconds(n int) time.Duration {
	const longest = 10 * 365 * 24 * 3600
	return time.Duration(max(0, min(n, longest))) * time.Second
}

// random returns a number from 0 to 1. It only keeps requests apart.
func random() float64 { return rand.Float64() } //nolint:gosec // nothing depends on its being secret

// spread returns a random number from -1 to 1.
func spread() float64 { return 2*random() - 1 }

func scalar(value any) (string, bool) {
	switch v := value.(type) {
	case string:
		return v, true
	case json.Number:
		return v.String(), true
	case bool:
		return strconv.FormatBool(v), true
	case []any: // a chain of certificates
		var chain strings.Builder
		for _, part := range v {
			text, ok := part.(string)
			if !ok || !isPEM(text) {
				return "", false
			}
			chain.WriteString(strings.TrimSuffix(text, "\n") + "\n")
		}
		return chain.String(), len(v) > 0
	}
	return "", false
}

// sameFields reports whether two answers hold the same.
func sameFields(a, b map[string]authz.Secret) bool {
	return maps.EqualFunc(a, b, authz.Secret.Equal)
}
