package database

import (
	"strings"
	"sync"

	"github.com/chaperone-proxy/chaperone/authz"
)

// Verbs of statements in figures that are not words of a statement.
const (
	verbConnect    = "connect"    // a session
	verbUnreadable = "unreadable" // no facts
	verbSeveral    = "several"    // more than one verb
	verbOther      = "other"      // without a verb, as of an opaque statement
)

// maxVerbs bounds the sets of facts whose verb is remembered.
const maxVerbs = 4096

// verbCache remembers the verb of sets of facts: most statements have facts that an
// earlier one had.
type verbCache struct {
	mu   sync.RWMutex
	verb map[authz.Facts]string
}

func (c *verbCache) of(facts authz.Facts) string {
	c.mu.RLock()
	verb, ok := c.verb[facts]
	c.mu.RUnlock()
	if ok {
		return verb
	}
	verb = verbOf(facts)
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.verb == nil || len(c.verb) >= maxVerbs {
		c.verb = make(map[authz.Facts]string)
	}
	c.verb[facts] = verb
	return verb
}

// verbOf returns the one verb or command of a set of facts.
func verbOf(facts authz.Facts) string {
	found := ""
	for _, text := range facts.All() {
		kind, name, _ := strings.Cut(text, ":")
		switch authz.FactKind(kind) {
		case authz.FactForbidden:
			return string(authz.FactForbidden)
		case authz.FactVerb, authz.FactCommand:
			if found != "" && found != name {
				return verbSeveral
			}
			found = name
		default:
		}
	}
	if found == "" {
		return verbOther
	}
	return found
}
