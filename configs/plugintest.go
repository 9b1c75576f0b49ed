package configs

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/chaperone-proxy/chaperone/authz"
	"github.com/chaperone-proxy/chaperone/internal/phrase"
)

// PluginTest is the spec of a PluginTest: the decisions that are expected of a
// plugin's policy. No sidecar uses it; chaperone policy test decides each request of it
// by the files that it names.
type PluginTest struct {
	// Grants are files or folders of PluginGrants, relative to this file.
	Grants []string `json:"grants,omitempty"`
	// Guardrails are files or folders of PluginGuardrails, relative to this file; none by default.
	Guardrails []string `json:"guardrails,omitempty"`
	// Sidecar is the file of a Sidecar, in place of grants, guardrails and mode.
	Sidecar string `json:"sidecar,omitempty"`
	// Plugin is the plugin that makes the requests; needed only if the grants are for several.
	Plugin string `json:"plugin,omitempty"`
	// At is the time of the requests; by default that of the test.
	At time.Time `json:"at,omitzero"`
	// Mode is enforce (the default) or observe, as in a Sidecar.
	Mode authz.Mode `json:"mode,omitempty"`
	// ObserveUntil ends mode observe, and is required by it.
	ObserveUntil time.Time `json:"observeUntil,omitzero"`
	// Expect are the expectations, each of one decision or of all of them.
	Expect []Expectation `json:"expect"`
}

// Expectation is what a policy must decide: exactly one of allow, deny, never and atMost.
type Expectation struct {
	// Allow is a request that must be allowed, as in GET https://api.weather.example/v1 or tcp://db.example:5432.
	Allow string `json:"allow,omitempty"`
	// Deny is a request that must be denied.
	Deny string `json:"deny,omitempty"`
	// Never is METHODS URL-PATTERN, as in "* https://169.254.169.254/**": no request that matches may be allowed, which is proved for all of them.
	Never string `json:"never,omitempty"`
	// AtMost is a Sidecar, a file or a folder of grants, relative to this file: the policy may allow no more than it, which is proved.
	AtMost string `json:"atMost,omitempty"`
	// Rule is the rule that must win, as GRANT/ID; of allow.
	Rule string `json:"rule,omitempty"`
	// Credential is the credential that must be injected, "" for none; of allow.
	Credential *string `json:"credential,omitempty"`
	// Reason is granted (the default) or observed of allow, and the reason of the refusal of deny.
	Reason string `json:"reason,omitempty"`
	// Nearest is the rule, as GRANT/ID, that must be named as the nearest one; of deny.
	Nearest string `json:"nearest,omitempty"`
	// Address is an address to which the host resolves: the decision on it is part of what is expected.
	Address netip.Addr `json:"address,omitzero"`
	// Upgrade is the protocol that the request upgrades to, as in websocket.
	Upgrade string `json:"upgrade,omitempty"`
	// Door is where the request arrives: proxy (the default), envoy (which the sidecar configures), ext_authz (any other Envoy) or ext_authz_plain (the same over plain TCP).
	Door TestDoor `json:"door,omitempty"`
	// At is the time of this request, or the time from which never and atMost must hold; by default the test's.
	At time.Time `json:"at,omitzero"`
}

// TestDoor is the door at which a request of a test arrives.
type TestDoor string

// The doors of tests. The zero value is TestDoorProxy.
const (
	TestDoorProxy    TestDoor = "proxy"
	TestDoorEnvoy    TestDoor = "envoy"           // an Envoy that the sidecar configures
	TestDoorExtAuthz TestDoor = "ext_authz"       // another Envoy, on a transport that is trusted
	TestDoorPlain    TestDoor = "ext_authz_plain" // another Envoy, over plain TCP
)

// Kind returns the field that is set of allow, deny, never and atMost, and its value;
// "" unless exactly one is.
func (e *Expectation) Kind() (field, value string) {
	for _, f := range e.forms() {
		switch {
		case f.value == "":
		case field != "":
			return "", ""
		default:
			field, value = f.name, f.value
		}
	}
	return field, value
}

type namedText struct{ name, value string }

func (e *Expectation) forms() []namedText {
	return []namedText{{"allow", e.Allow}, {"deny", e.Deny}, {"never", e.Never}, {"atMost", e.AtMost}}
}

// decidable returns the reasons of refusals that follow from files alone.
func decidable() []string {
	var out []string
	for _, r := range []authz.Reason{
		authz.MalformedRequest, authz.GuardrailDenied, authz.NoGrant, authz.DestinationNotGranted, authz.MethodNotGranted,
		authz.PathNotGranted, authz.StatementUnreadable, authz.StatementNotGranted, authz.GrantExpired, authz.NotEnforceableHere, authz.AddressNotAllowed,
	} {
		out = append(out, r.String())
	}
	return out
}

// validate reports what is wrong in a PluginTest by itself.
func (t *PluginTest) validate(report reporter) {
	if t.Plugin != "" && !authz.IsName(t.Plugin) {
		report("spec.plugin", notAName, clip(t.Plugin))
	}
	oneOf(report, "spec.mode", t.Mode, authz.ModeEnforce, authz.ModeObserve)
	switch observes := t.Mode == authz.ModeObserve; {
	case observes && t.ObserveUntil.IsZero():
		report("spec.observeUntil", "is missing; observing ends, write when")
	case !observes && !t.ObserveUntil.IsZero():
		report("spec.observeUntil", "goes with mode: observe")
	}
	switch {
	case t.Sidecar == "" && len(t.Grants) == 0:
		report("spec.grants", "is missing; name the files or folders of grants, or a Sidecar's file under sidecar")
	case t.Sidecar != "":
		for _, f := range []struct {
			name string
			set  bool
		}{{"grants", len(t.Grants) > 0}, {"guardrails", len(t.Guardrails) > 0}, {"mode", t.Mode != ""}} {
			if f.set {
				report("spec."+f.name, "is beside sidecar, which states it; remove one of the two")
			}
		}
	}
	if len(t.Expect) == 0 {
		report("spec.expect", "is empty; write what is expected, as in {allow: GET https://api.weather.example/v1}")
	}
	for i := range t.Expect {
		t.Expect[i].validate(at("spec.expect", i), report)
	}
}

func (e *Expectation) validate(path string, report reporter) {
	field, value := e.Kind()
	if field == "" {
		report(path, "must state exactly one of allow, deny, never and atMost")
		return
	}
	oneOf(report, path+".door", e.Door, TestDoorProxy, TestDoorEnvoy, TestDoorExtAuthz, TestDoorPlain)
	for _, f := range []struct {
		name  string
		set   bool
		goes  []string // the forms that the field goes with
		other string   // the fix
	}{
		{"rule", e.Rule != "", []string{"allow"}, "write nearest for the rule that is nearest to a denied request"},
		{"credential", e.Credential != nil, []string{"allow"}, "remove it"},
		{"nearest", e.Nearest != "", []string{"deny"}, "write rule for the rule that allows a request"},
		{"reason", e.Reason != "", []string{"allow", "deny"}, "remove it"},
		{"address", e.Address.IsValid(), []string{"allow", "deny"}, "remove it"},
		{"upgrade", e.Upgrade != "", []string{"allow", "deny"}, "remove it"},
		{"door", e.Door != "", []string{"allow", "deny"}, "remove it: every door is proved"},
	} {
		if f.set && !slices.Contains(f.goes, field) {
			report(path+"."+f.name, "does not go with %s; %s", field, f.other)
		}
	}
	for _, f := range []namedText{{"rule", e.Rule}, {"nearest", e.Nearest}} {
		if grant, id, ok := strings.Cut(f.value, "/"); f.value != "" && (!ok || grant == "" || id == "") {
			report(path+"."+f.name, "%q is not a rule; write GRANT/ID, as in weather/read-forecast", clip(f.value))
		}
	}
	e.validateReason(field, path, report)
	switch field {
	case "allow", "deny":
		requestForm(path+"."+field, value, report)
	case "never":
		first, pattern, ok := strings.Cut(value, " ")
		if !strings.Contains(first, "://") && (!ok || !strings.Contains(pattern, "://")) {
			report(path+".never", `%q is not METHODS URL-PATTERN, as in "* https://169.254.169.254/**", or a database and a statement`, clip(value))
		}
	}
}

// validateReason reports a reason that the expectation cannot have.
func (e *Expectation) validateReason(field, path string, report reporter) {
	granted, observed := authz.Granted.String(), authz.Observed.String()
	switch {
	case e.Reason == "":
	case field == "allow" && e.Reason != granted && e.Reason != observed:
		report(path+".reason", "%q does not allow; write %s or %s", clip(e.Reason), granted, observed)
	case field == "deny" && !slices.Contains(decidable(), e.Reason):
		report(path+".reason", "%q is not a reason for which files deny; write one of %s", clip(e.Reason), strings.Join(decidable(), ", "))
	}
}

// requestForm reports a text that is not of the form of a request. A URL that is
// malformed is left to the test: a request may be expected to be malformed.
func requestForm(path, text string, report reporter) {
	words := strings.Split(text, " ")
	if database, _, ok := strings.Cut(words[0], "://"); ok {
		switch scheme := strings.ToLower(database); {
		case authz.Scheme(scheme).Database(), scheme == "postgresql":
			return // a statement is what is behind the URL
		case slices.Contains(laterSchemes(), scheme):
			report(path, notYet, scheme, "write a request of https, http, tls, tcp, postgres or redis")
			return
		}
	}
	url := words[len(words)-1]
	scheme, _, ok := strings.Cut(url, "://")
	switch scheme = strings.ToLower(scheme); {
	case !ok || len(words) > 2 || slices.Contains(words, ""):
		report(path, "%q is not a request; write METHOD URL, as in GET https://api.weather.example/v1, or tcp://HOST:PORT", clip(text))
	case (scheme == "https" || scheme == "http") && len(words) != 2:
		report(path, "%q has no method; write METHOD URL, as in GET %[1]s", clip(text))
	}
}

// Test is a PluginTest as it was read.
type Test struct {
	File   string // as it was named
	SHA256 string // of the file's content, in hexadecimal
	Index  int    // among the tests of the file, from 0
	Name   string // metadata.name
	Spec   PluginTest

	source *source
}

// Position returns the line and the column of an expectation, from 1.
func (t *Test) Position(expectation int) (line, column int) {
	n := t.source.root.find(at("spec.expect", expectation))
	return n.line, n.column
}

// Beside returns the path of a file that the test names.
func (t *Test) Beside(path string) string { return t.source.beside(path) }

// Error returns an error at a field of the test, as in spec.grants[0].
func (t *Test) Error(field, format string, args ...any) Error {
	n := t.source.root.find(field)
	return Error{t.File, n.line, n.column, field, fmt.Sprintf(format, args...)}
}

// LoadTests reads the PluginTests of files and folders, and of the folders below them.
// Documents of other kinds are not read: a folder may hold anything else. It returns the
// tests in which nothing is wrong, in the order of the paths and the files' names, and as
// [Errors] everything that is wrong. A path that holds no PluginTest is an error.
func LoadTests(now time.Time, paths ...string) ([]*Test, error) {
	l := newLoader(now)
	l.wants = wantsTest
	for _, path := range paths {
		files, err := l.folders(path, true)
		if err != nil {
			l.errs = append(l.errs, Error{File: path, Message: err.Error()})
			continue
		}
		found := len(l.errs) > 0 // an error may hide a test
		for _, file := range files {
			l.named(file)
			if identity, err := l.identity(file); err == nil && len(l.read[identity]) > 0 {
				found = true
			}
		}
		if !found && len(l.errs) == 0 {
			l.errs = append(l.errs, Error{File: path, Message: "holds no PluginTest in " + phrase.Count(len(files), "file") + "; write a document of kind: PluginTest"})
		}
	}
	return l.tests(), l.failure()
}

// ParseTests is [LoadTests] of one file, with data in place of its content.
func ParseTests(now time.Time, path string, data []byte) ([]*Test, error) {
	l := newLoader(now)
	l.wants = wantsTest
	l.decode(path, data)
	return l.tests(), l.failure()
}

// tests returns the tests that were read and in which nothing is wrong.
func (l *loader) tests() (out []*Test) {
	count := map[string]int{}
	for _, s := range l.order {
		index := count[s.file]
		if count[s.file]++; len(s.bad) > 0 {
			continue
		}
		t := &Test{File: s.file, Index: index, Name: s.test.Metadata.Name, Spec: s.test.Spec, source: s}
		for _, f := range l.files {
			if f.Path == s.file {
				t.SHA256 = f.SHA256
			}
		}
		out = append(out, t)
	}
	return out
}

// wantsTest reports whether a document is a PluginTest, or one whose kind is misspelt.
func wantsTest(root *node) bool {
	version, kind := root.child("apiVersion"), root.child("kind")
	if kind == nil || kind.kind != textKind {
		return false
	}
	ours := version != nil && strings.HasPrefix(version.text, "chaperone.dev/")
	return Kind(kind.text) == KindTest || ours && !slices.Contains(Kinds(), Kind(kind.text))
}
