package dns

import (
	"os"
	"strings"
	"sync"
	"time"

	"github.com/miekg/dns"

	"github.com/chaperone-proxy/chaperone/authz"
)

// searchListAge is how long the search list is used before it is read again.
const searchListAge = 10 * time.Second

// searchList holds the search domains of a host, which a resolver library puts
// behind the names it is asked for (resolv.conf(5)).
type searchList struct {
	file string // resolv.conf

	mu      sync.Mutex
	read    time.Time
	domains []string // lower-case, without a dot at either end
}

// domainsAt returns the search domains.
func (l *searchList) domainsAt(now time.Time) []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.read.IsZero() || now.Sub(l.read) >= searchListAge {
		l.read, l.domains = now, searchDomains(l.file)
	}
	return l.domains
}

// searchDomains returns the domains of a resolv.conf, of LOCALDOMAIN, and that of
// the host's name, which is searched when a resolv.conf states none.
func searchDomains(file string) []string {
	var found []string
	if config, err := dns.ClientConfigFromFile(file); err == nil {
		found = config.Search
	}
	found = append(found, strings.Fields(os.Getenv("LOCALDOMAIN"))...)
	if name, err := os.Hostname(); err == nil {
		if _, domain, ok := strings.Cut(name, "."); ok {
			found = append(found, domain)
		}
	}
	var out []string
	for _, domain := range found {
		if domain = strings.ToLower(strings.Trim(domain, ".")); domain != "" {
			out = append(out, domain)
		}
	}
	return out
}

// probe returns what a question is when no program means it: an underscored name
// of a host that is granted, or such a host with a search domain behind it. The
// same of a name that was just refused counts too, as that refusal was reported.
// "" is a question like any other. name is in lower case.
func (r *Resolver) probe(name string) authz.Probe {
	now := r.cfg.Now()
	if r.cfg.Probe == nil {
		return ""
	}
	base := name
	for strings.HasPrefix(base, "_") {
		_, rest, ok := strings.Cut(base, ".")
		if !ok {
			return ""
		}
		base = rest
	}
	if base != name && r.isKnownHost(base, now) {
		return authz.ProbeService
	}
	for _, domain := range r.search.domainsAt(now) {
		host, ok := strings.CutSuffix(base, "."+domain)
		if !ok || host == "" || !r.isKnownHost(host, now) {
			continue
		}
		if base != name {
			return authz.ProbeService
		}
		return authz.ProbeSearch
	}
	return ""
}

// isKnownHost reports whether a host is granted by a rule, or was refused by its own
// name in the last minute.
func (r *Resolver) isKnownHost(host string, now time.Time) bool {
	if pattern, ok := r.cfg.Engine.Current().Name(r.cfg.Plugin, host, now); ok && pattern != "" {
		return true
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	until, ok := r.suppressed[host]
	return ok && now.Before(until)
}
