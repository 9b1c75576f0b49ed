package learn

import (
	"slices"
	"strings"
	"time"

	"github.com/chaperone-proxy/chaperone/authz"
)

// Bounds of one learner, which keep it below about 200 MiB whatever a plugin sends.
const (
	maxNodes  = 300_000
	maxGroups = 20_000
)

// Access is one recorded access that was allowed.
type Access struct {
	Request authz.Request
	Time    time.Time
	// Credential is the name of the credential that was injected, "" without one.
	Credential string
}

// Learner collects accesses in bounded memory. It is not safe for concurrent use.
type Learner struct {
	groups map[groupKey]*group
	// statements are those of databases.
	statements map[databaseKey]*statements
	last       *group // of lastKey: accesses repeat
	lastKey    groupKey
	budget     budget
	most       int // groups
	calendar   Calendar
	peak       peak
	left       Left
}

// groupKey is what a template is never taken across.
type groupKey struct {
	scheme authz.Scheme
	host   string
	port   uint16
	action authz.Action
	slash  bool // the path holds %2F
}

// group are the accesses of one key.
type group struct {
	root        node
	count       uint64
	peak        peak
	credentials []string
}

// Left counts accesses that the proposal does not cover, by why.
type Left struct {
	// Ungrantable are accesses that no rule can grant: TRACE, paths with a literal *, and
	// statements that are forbidden.
	Ungrantable uint64 `json:"ungrantable,omitempty"`
	// Bounded are accesses to places beyond the bounds of what is kept.
	Bounded uint64 `json:"bounded,omitempty"`
}

// New returns a Learner.
func New() *Learner { return NewShare(1) }

// NewShare returns a Learner that is one of n, which share the bounds of one.
func NewShare(n int) *Learner {
	return &Learner{groups: map[groupKey]*group{}, statements: map[databaseKey]*statements{}, budget: budget{maxNodes / n}, most: max(1, maxGroups/n)}
}

// Add takes one access that was allowed or observed.
func (l *Learner) Add(a Access) {
	to := a.Request.Destination
	if to.Scheme().Database() {
		l.addStatement(a)
		return
	}
	if a.Request.Action.Method == "TRACE" || strings.Contains(to.Path(), "*") {
		l.left.Ungrantable++
		return
	}
	l.calendar.add(a.Time)
	l.peak.add(a.Time)
	key := groupKey{to.Scheme(), to.Host(), to.Port(), a.Request.Action, strings.Contains(to.Path(), "%2F")}
	g := l.last
	if g == nil || key != l.lastKey {
		if g = l.group(key); g == nil {
			l.left.Bounded++
			return
		}
		l.last, l.lastKey = g, key
	}
	g.count++
	g.peak.add(a.Time)
	if a.Credential != "" {
		g.inject(a.Credential)
	}
	if to.Scheme().HTTP() {
		g.root.add(to.Path(), &l.budget)
	}
}

func (l *Learner) group(key groupKey) *group {
	g := l.groups[key]
	if g == nil && len(l.groups) < l.most {
		g = &group{}
		key.host = strings.Clone(key.host)
		key.action = authz.Action{Method: strings.Clone(key.action.Method), Upgrade: strings.Clone(key.action.Upgrade)}
		l.groups[key] = g
	}
	return g
}

// inject notes the name of a credential that was injected.
func (g *group) inject(name string) {
	const most = 4
	if len(g.credentials) < most && !slices.Contains(g.credentials, name) {
		g.credentials = append(g.credentials, strings.Clone(name))
	}
}

// peak finds the most accesses in one minute of the clock.
type peak struct {
	minute  int64
	n, most uint64
}

func (p *peak) add(at time.Time) {
	const second = 60
	if minute := at.Unix() / second; minute != p.minute {
		p.minute, p.n = minute, 0
	}
	p.n++
	p.most = max(p.most, p.n)
}
