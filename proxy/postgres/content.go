package postgres

import (
	"slices"
	"sync/atomic"

	"github.com/chaperone-proxy/chaperone/authz"
	"github.com/chaperone-proxy/chaperone/facts/sql"
)

// content is what the text of a Query or Parse does. It is not changed once it is read.
type content struct {
	facts      []authz.Fact // of all its statements, without the database
	set        atomic.Pointer[databaseFacts]
	unreadable string    // why there are no facts, "" if there are
	empty      bool      // no statement is in it
	several    bool      // it is a union of contents, of which one is executed
	copyIn     bool      // a COPY FROM STDIN is in it
	listens    bool      // a LISTEN is in it, which goes on after its end
	masked     string    // the text without constants, if texts are recorded
	names      []nameUse // of SQL-level prepared statements, in order
}

// listen is the fact of a LISTEN.
func listen() authz.Fact { return authz.Fact{Kind: authz.FactVerb, Name: "listen"} }

// nameUse is what a statement does with the name of a prepared statement, or of a cursor.
type nameUse struct {
	kind    nameKind
	name    string
	content *content // that a PREPARE or DECLARE gives the name
}

type nameKind uint8

const (
	executes nameKind = iota
	prepares
	deallocates
	deallocatesAll
	declares
	fetches
)

// add adds the facts of another content, of which either may be meant. Names that only one
// of them sets are not known then.
func (c *content) add(other *content) {
	c.addFacts(other.facts...)
	if slices.ContainsFunc(other.names, func(use nameUse) bool { return use.kind != declares && use.kind != fetches }) {
		c.addFacts(sql.UnknownName())
	}
	for _, use := range other.names {
		if len(c.names) < maxUses && !slices.Contains(c.names, use) {
			c.names = append(c.names, use)
		}
	}
	c.copyIn, c.listens = c.copyIn || other.copyIn, c.listens || other.listens
}

// maxUses is how many names the content of several has at most: its facts have an unknown name.
const maxUses = 64

// addFacts adds facts that are not there, and more than a request may have only once.
func (c *content) addFacts(facts ...authz.Fact) {
	for _, fact := range facts {
		if len(c.facts) <= authz.MaxFacts && !slices.Contains(c.facts, fact) {
			c.facts = append(c.facts, fact)
		}
	}
}

// setOf returns the facts with the database, or why they are too many.
func setOf(database string, facts []authz.Fact) (authz.Facts, error) {
	all := append(slices.Clip(facts), authz.Fact{Kind: authz.FactDatabase, Name: database})
	return authz.NewFacts(authz.ProtocolPostgres, all...)
}

// newContent returns the content of a reading.
func newContent(reading sql.Reading) *content {
	c := &content{unreadable: reading.Unreadable, empty: reading.Unreadable == "" && len(reading.Statements) == 0}
	for i := range reading.Statements {
		s := &reading.Statements[i]
		c.facts = append(c.facts, s.Facts...)
		c.copyIn, c.listens = c.copyIn || s.CopiesIn, c.listens || slices.Contains(s.Facts, listen())
		if s.Executes != "" {
			c.names = append(c.names, nameUse{kind: executes, name: s.Executes})
		}
		if s.Prepares != "" {
			prepared := &content{facts: s.Facts}
			c.names = append(c.names, nameUse{kind: prepares, name: s.Prepares, content: prepared})
		}
		if s.Declares != "" {
			c.names = append(c.names, nameUse{kind: declares, name: s.Declares, content: &content{facts: s.Facts}})
		}
		if s.Fetches != "" {
			c.names = append(c.names, nameUse{kind: fetches, name: s.Fetches})
		}
		if s.Deallocates != "" {
			c.names = append(c.names, nameUse{kind: deallocates, name: s.Deallocates})
		}
		if s.DeallocatesAll {
			c.names = append(c.names, nameUse{kind: deallocatesAll})
		}
	}
	return c
}

// setFor returns the facts with a database. Those for one database are kept.
func (c *content) setFor(database string) (authz.Facts, error) {
	if kept := c.set.Load(); kept != nil && kept.database == database {
		return kept.facts, nil
	}
	facts, err := setOf(database, c.facts)
	if err == nil {
		c.set.Store(&databaseFacts{database, facts})
	}
	return facts, err
}

// databaseFacts are the facts of a content for a database.
type databaseFacts struct {
	database string
	facts    authz.Facts
}

// reader reads texts, and keeps what they do for all connections of a plugin.
type reader struct {
	texts bool // are recorded
	cache *sql.Cache[*content]
}

func newReader(texts bool) *reader {
	r := &reader{texts: texts}
	r.cache = sql.NewCache(r.read)
	return r
}

func (r *reader) read(text string) *content {
	c := newContent(sql.Read(text))
	if r.texts {
		c.masked = sql.Mask(text)
	}
	return c
}
