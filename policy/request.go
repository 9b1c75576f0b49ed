package policy

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strings"
	"unicode/utf16"
	"unicode/utf8"

	"github.com/chaperone-proxy/chaperone/authz"
)

// Words are an access of a plugin in the words of a command line.
type Words struct {
	// Method is that of HTTP; CONNECT or - for a tunnel and for a connection to a database,
	// and "" for a statement.
	Method string
	// URL of a database ends in its name, or its number for redis, as in
	// postgres://db.internal/shop. It has no user, password and parameters.
	URL string
	// Statement is one of the database's language, or its facts as a JSON list of KIND:NAME;
	// "" connects.
	Statement string
	// Upgrade is the protocol that the access upgrades to, or "".
	Upgrade string
}

// ParseWords reads an access on one line: METHOD URL, the URL of a tunnel, or the URL of a
// database with or without a statement.
func ParseWords(line string) Words {
	first, rest, _ := strings.Cut(line, " ")
	switch {
	case !strings.Contains(first, "://"):
		return Words{Method: first, URL: rest}
	case DatabaseScheme(first) == "":
		return Words{Method: "CONNECT", URL: line} // of a tunnel
	case strings.TrimSpace(rest) == "":
		return Words{Method: "CONNECT", URL: first}
	}
	return Words{URL: first, Statement: strings.TrimSpace(rest)}
}

// Args returns the access as the arguments of explain, without those of flags.
func (w Words) Args() []string {
	if w.Statement != "" {
		return []string{w.URL, w.Statement}
	}
	return []string{w.Method, w.URL}
}

// String returns the access on one line, as [ParseWords] reads it, without its upgrade.
func (w Words) String() string { return strings.Join(w.Args(), " ") }

// DatabaseScheme returns the scheme of a database's URL, "" for another.
func DatabaseScheme(text string) authz.Scheme {
	scheme, _, _ := strings.Cut(text, "://")
	scheme = strings.ToLower(scheme)
	if scheme == "postgresql" { // as libpq accepts too
		scheme = string(authz.SchemePostgres)
	}
	if s := authz.Scheme(scheme); s.Database() {
		return s
	}
	return ""
}

// Request reads an access of a plugin. Its error states what is malformed, or why the
// statement is unreadable.
func Request(plugin authz.Principal, w Words) (authz.Request, error) {
	req := authz.Request{Principal: plugin}
	scheme, rest, ok := strings.Cut(w.URL, "://")
	if !ok {
		return req, fmt.Errorf("%q is not a URL, as in https://api.weather.example/v1", w.URL)
	}
	if s := DatabaseScheme(w.URL); s != "" {
		return databaseRequest(req, s, rest, w)
	}
	target := ""
	if i := strings.IndexAny(rest, "/?"); i >= 0 {
		rest, target = rest[:i], rest[i:]
	}
	s := authz.Scheme(strings.ToLower(scheme))
	var err error
	switch {
	case w.Statement != "":
		return req, fmt.Errorf("%s has a statement, which only databases have", w.URL)
	case s.HTTP():
		if req.Action, err = authz.NewAction(w.Method, w.Upgrade); err != nil {
			return req, err
		}
	case w.Method != "CONNECT" && w.Method != "-":
		return req, errors.New("a tunnel's method is CONNECT")
	case w.Upgrade != "":
		return req, errors.New("a tunnel has no upgrade")
	}
	req.Destination, err = authz.NewDestination(s, rest, target)
	return req, err
}

// databaseRequest reads a connection to a database, or a statement. rest is the URL behind
// its scheme.
func databaseRequest(req authz.Request, scheme authz.Scheme, rest string, w Words) (authz.Request, error) {
	authority, path, _ := strings.Cut(rest, "/")
	var err error
	if req.Destination, err = authz.NewDestination(scheme, authority, ""); err != nil {
		return req, err
	}
	name, err := url.PathUnescape(path)
	switch {
	case err != nil || strings.ContainsAny(path, "/?#"):
		return req, fmt.Errorf("%q is not the name of a database; write it behind the host, with %%2F for a slash", path)
	case w.Statement == "" && w.Method != "CONNECT" && w.Method != "-":
		return req, errors.New("a connection's method is CONNECT; write a statement behind the URL")
	case w.Upgrade != "":
		return req, errors.New("a database has no upgrade")
	case name == "" && scheme == authz.SchemeRedis:
		name = "0"
	case name == "" && !strings.HasPrefix(w.Statement, "["):
		return req, errors.New("the name of the database is missing, as in postgres://db.internal/shop")
	}
	database := authz.Fact{Kind: authz.FactDatabase, Name: name}
	var facts []authz.Fact
	switch {
	case w.Statement == "":
		facts = []authz.Fact{database}
	case w.Statement[0] != '[': // no statement begins with it
		facts, err = readText(scheme.Protocol(), w.Statement, database)
	default:
		if facts, err = parseFacts(w.Statement); path != "" {
			facts = append(facts, database)
		}
	}
	if err != nil {
		return req, err
	}
	if req.Facts, err = authz.NewFacts(scheme.Protocol(), facts...); err != nil {
		return req, &UnreadableError{err.Error()}
	}
	return req, nil
}

// UnreadableError reports a statement whose facts cannot be read.
type UnreadableError struct{ Why string }

// Error implements error.
func (e *UnreadableError) Error() string { return "statement is unreadable: " + e.Why }

// ReasonOf returns the reason for which an access is denied that [Request] does not read.
func ReasonOf(err error) authz.Reason {
	if _, ok := errors.AsType[*UnreadableError](err); ok {
		return authz.StatementUnreadable
	}
	return authz.MalformedRequest
}

// parseFacts reads a JSON list of facts.
func parseFacts(text string) (out []authz.Fact, err error) {
	var names []string
	if err := json.Unmarshal([]byte(text), &names); err != nil {
		return nil, fmt.Errorf(`%s is not a JSON list of facts, as in ["verb:select", "table:public.orders"]`, text)
	}
	for _, name := range names {
		f, err := authz.ParseFact(name)
		if err != nil {
			return nil, err
		}
		out = append(out, f)
	}
	return out, nil
}

// Text returns an access as [Request] reads it. A statement is one of those that have its
// facts, and the list of them if no such statement was found.
func Text(req authz.Request) Words {
	to := req.Destination
	w := Words{Method: req.Action.Method, URL: string(to.Scheme()) + "://" + to.Authority() + to.Target(), Upgrade: req.Action.Upgrade}
	if !to.Scheme().HTTP() {
		w.Method = "CONNECT"
	}
	if !to.Scheme().Database() || req.Facts.IsZero() {
		return w
	}
	facts := ParseFacts(req.Facts)
	if len(facts) == 1 && IsDatabase(facts[0]) {
		w.URL += "/" + url.PathEscape(facts[0].Name)
		return w
	}
	w.Method = ""
	databases := slices.DeleteFunc(slices.Clone(facts), func(f authz.Fact) bool { return !IsDatabase(f) })
	for _, d := range append(databases, authz.Fact{Kind: authz.FactDatabase, Name: "0"}) {
		if w.Statement = writeStatement(req.Facts, d); w.Statement != "" {
			w.URL += "/" + url.PathEscape(d.Name)
			return w
		}
	}
	if len(databases) == 1 {
		w.URL += "/" + url.PathEscape(databases[0].Name)
		facts = slices.DeleteFunc(facts, IsDatabase)
	}
	w.Statement = listFacts(facts)
	return w
}

// Connection returns the request to connect of a statement's session; false if its facts name
// no database.
func Connection(statement authz.Request) (authz.Request, bool) {
	for _, f := range ParseFacts(statement.Facts) {
		if IsDatabase(f) {
			facts, err := authz.NewFacts(statement.Facts.Protocol(), f)
			statement.Facts = facts
			return statement, err == nil
		}
	}
	return statement, false
}

// IsDatabase reports whether a fact is that of a session's database.
func IsDatabase(f authz.Fact) bool { return f.Kind == authz.FactDatabase }

// ParseFacts returns the facts of a request.
func ParseFacts(facts authz.Facts) (out []authz.Fact) {
	for _, text := range facts.All() {
		if f, err := authz.ParseFact(text); err == nil {
			out = append(out, f)
		}
	}
	return out
}

// listFacts returns facts as [Request] reads them, in ASCII.
func listFacts(facts []authz.Fact) string {
	texts := make([]string, len(facts))
	for i, f := range facts {
		texts[i] = f.String()
	}
	list, err := json.Marshal(texts)
	if err != nil { // a list of texts always has a form
		return "[]"
	}
	var out strings.Builder
	for _, unit := range utf16.Encode([]rune(string(list))) {
		if unit < utf8.RuneSelf {
			out.WriteByte(byte(unit))
		} else {
			fmt.Fprintf(&out, `\u%04x`, unit)
		}
	}
	return out.String()
}

// Format returns an access on one line, METHOD URL, and the upgrade if there is one.
func Format(req authz.Request) string {
	w := Text(req)
	if w.Upgrade != "" {
		return w.String() + " (upgrade " + w.Upgrade + ")"
	}
	return w.String()
}
