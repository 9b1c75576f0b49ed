package configs

import (
	"fmt"
	"time"

	"github.com/chaperone-proxy/chaperone/authz"
)

// ExpiryNotice is how long before its end a grant or a rule is warned of.
const ExpiryNotice = 14 * 24 * time.Hour

// expiry notes a grant and its rules that have ended or end soon. A grant that
// has ended is no error at load: the sidecar starts, and refuses what it states.
func (l *loader) expiry(s *source) {
	expired, warn := s.reporter(&l.expired), s.reporter(&l.warnings)
	end := s.grant.Spec.NotAfter
	switch {
	case l.now.IsZero() || end.IsZero():
		return
	case s.signed != nil: // its end is that of its approvals, too
	case !l.now.Before(end):
		expired("spec.notAfter", "%s has passed; nothing that this grant states is allowed: write a later time, or remove the grant", end.UTC().Format(time.RFC3339))
		return
	case end.Sub(l.now) <= ExpiryNotice:
		warn("spec.notAfter", "%s is %s ahead; write a later time if the grant is still needed", end.UTC().Format(time.RFC3339), Until(l.now, end))
	}
	for i, r := range s.grant.Spec.Rules {
		path := at("spec.rules", i) + ".notAfter"
		switch {
		case r.NotAfter.IsZero() || !r.NotAfter.Before(end):
		case !l.now.Before(r.NotAfter):
			warn(path, "%s has passed; the rule grants nothing: write a later time, or remove the rule", r.NotAfter.UTC().Format(time.RFC3339))
		case r.NotAfter.Sub(l.now) <= ExpiryNotice:
			warn(path, "%s is %s ahead; write a later time if the rule is still needed", r.NotAfter.UTC().Format(time.RFC3339), Until(l.now, r.NotAfter))
		}
	}
}

// socketDoubt returns a warning for a socket that leads past what the sidecar
// decides; "" for any other.
func socketDoubt(socket string) string {
	switch authz.SocketProbe(socket) {
	case authz.ProbeResolve, authz.ProbeNSCD:
		return "resolves names past the sidecar, on any network; libraries do without it, remove it"
	case authz.ProbeNSS:
		return "resolves names or logs in past the sidecar; libraries do without it, remove it unless it is what the plugin is for"
	case authz.ProbeDBus:
		return "is a message bus, by which programs are started and systems changed outside the plugin's confinement; remove it unless it is what the plugin is for"
	case authz.ProbeUserDB, authz.ProbeSyslog, authz.ProbeSearch, authz.ProbeService:
	}
	return ""
}

// Until returns in words how long it is from one time to a later one, as in
// 9 days or 3 hours.
func Until(from, to time.Time) string {
	left := to.Sub(from)
	switch {
	case left >= 48*time.Hour:
		return plural(int(left/(24*time.Hour)), "day")
	case left >= 2*time.Hour:
		return plural(int(left/time.Hour), "hour")
	case left >= 2*time.Minute:
		return plural(int(left/time.Minute), "minute")
	}
	return "less than two minutes"
}

func plural(n int, noun string) string {
	if n == 1 {
		return fmt.Sprintf("%d %s", n, noun)
	}
	return fmt.Sprintf("%d %ss", n, noun)
}
