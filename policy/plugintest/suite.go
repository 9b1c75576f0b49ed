package plugintest

import (
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/chaperone-proxy/chaperone/authz"
	"github.com/chaperone-proxy/chaperone/configs"
	"github.com/chaperone-proxy/chaperone/policy"
	"github.com/chaperone-proxy/chaperone/policy/prove"
)

// Options say which tests [Load] returns.
type Options struct {
	// Now is the time of tests that state none.
	Now time.Time
	// Plugin is the only plugin whose tests are returned; "" for all.
	Plugin string
	// Run matches the names of the expectations that are returned; nil for all.
	Run *regexp.Regexp
}

// Suite is one PluginTest with the policy that it tests.
type Suite struct {
	Name   string // metadata.name
	File   string // as it was named
	Plugin string // that makes the requests
	// Notes are what is assumed of the policy, as sentences without a period.
	Notes []string

	test         *configs.Test
	subject      policy.Subject
	at           time.Time
	expectations []*expectation
}

// expectation is one expectation of a suite, ready to be tested.
type expectation struct {
	configs.Expectation
	suite        *Suite
	index        int // in spec.expect
	line, column int
	form, text   string // allow, deny, never or atMost, and what is under it
	name         string // unique in the suite
	at           time.Time
	door         policy.Door
	pattern      prove.Pattern // of never
	request      authz.Request
	malformed    error           // the request cannot be one
	approved     *policy.Subject // of atMost
}

// Load reads the PluginTests at paths and the policies that they name. It returns only
// tests and expectations that the options select, and an error if they select none. The
// error for files that are wrong is [configs.Errors].
func Load(o Options, paths ...string) ([]*Suite, error) {
	tests, err := configs.LoadTests(o.Now, paths...)
	wrong, ok := errors.AsType[configs.Errors](err)
	if err != nil && !ok {
		return nil, err
	}
	var suites []*Suite
	for _, t := range tests {
		s, err := newSuite(t, o)
		if errs, ok := errors.AsType[configs.Errors](err); ok {
			wrong = append(wrong, errs...)
		} else if err != nil {
			return nil, err
		}
		if s != nil && (o.Plugin == "" || s.Plugin == o.Plugin) && len(s.expectations) > 0 {
			suites = append(suites, s)
		}
	}
	switch {
	case len(wrong) > 0:
		return nil, wrong
	case len(suites) == 0 && o.Run != nil:
		return nil, fmt.Errorf("no expectation in %s matches %q; without --run all are tested", strings.Join(paths, ", "), o.Run)
	case len(suites) == 0:
		return nil, fmt.Errorf("no test in %s is for plugin %q", strings.Join(paths, ", "), o.Plugin)
	}
	return suites, nil
}

// newSuite loads the policy of a test. The suite is nil if the policy is wrong.
func newSuite(t *configs.Test, o Options) (*Suite, error) {
	s := &Suite{Name: t.Name, File: t.File, test: t, at: t.Spec.At}
	if s.at.IsZero() {
		s.at = o.Now
	}
	if err := s.loadPolicy(); err != nil {
		return nil, err
	}
	var wrong configs.Errors
	names := map[string]bool{}
	for i := range t.Spec.Expect {
		e, err := s.expectation(i)
		if errs, ok := errors.AsType[configs.Errors](err); ok {
			wrong = append(wrong, errs...)
		} else if err != nil {
			return nil, err
		}
		if names[e.name] { // readers of JUnit drop a second test of a name
			e.name += fmt.Sprintf(" (line %d)", e.line)
		}
		names[e.name] = true
		if o.Run == nil || o.Run.MatchString(s.Name+": "+e.name) {
			s.expectations = append(s.expectations, e)
		}
	}
	if len(wrong) > 0 {
		return nil, wrong
	}
	return s, nil
}

// reference is a file or folder that a field of a test names.
type reference struct{ field, path string }

// references returns what the test names for its policy.
func (s *Suite) references() (out []reference) {
	spec := &s.test.Spec
	if spec.Sidecar != "" {
		return []reference{{"spec.sidecar", s.test.Beside(spec.Sidecar)}}
	}
	for i, p := range spec.Grants {
		out = append(out, reference{fmt.Sprintf("spec.grants[%d]", i), s.test.Beside(p)})
	}
	for i, p := range spec.Guardrails {
		out = append(out, reference{fmt.Sprintf("spec.guardrails[%d]", i), s.test.Beside(p)})
	}
	return out
}

// loadPolicy loads the policy that the test names.
func (s *Suite) loadPolicy() error {
	spec := &s.test.Spec
	subjects, err := s.load(s.references()...)
	if err != nil {
		return err
	}
	field := "spec.grants"
	if spec.Sidecar != "" {
		field = "spec.sidecar"
	}
	switch first := subjects[0]; {
	case len(subjects) > 1:
		var plugins []string
		for _, one := range subjects {
			plugins = append(plugins, one.Plugin)
		}
		return configs.Errors{s.test.Error(field, "are for the plugins %s; state one of them under spec.plugin", strings.Join(plugins, ", "))}
	case spec.Sidecar == "" && first.Sidecar != nil:
		return configs.Errors{s.test.Error(field, "hold the Sidecar %s; name it under spec.sidecar instead", first.Path)}
	case spec.Sidecar != "" && first.Sidecar == nil:
		return configs.Errors{s.test.Error(field, "%s holds no Sidecar; name files of grants under spec.grants", first.Path)}
	}
	s.subject, s.Plugin = subjects[0], subjects[0].Plugin
	switch {
	case spec.Mode == authz.ModeObserve:
		return s.observe()
	case spec.Sidecar == "" && len(spec.Guardrails) == 0:
		s.Notes = append(s.Notes, s.Name+": no guardrail and mode enforce are assumed, as the test names grants alone")
	}
	return nil
}

// load loads the policies that fields of the test name.
func (s *Suite) load(from ...reference) ([]policy.Subject, error) {
	var paths []string
	for _, r := range from {
		paths = append(paths, r.path)
	}
	subjects, err := policy.Load(s.at, policy.Options{Plugin: s.test.Spec.Plugin}, paths...)
	if errs, ok := errors.AsType[configs.Errors](err); ok {
		for i := range errs {
			if errs[i].Line == 0 { // a file that cannot be read
				field := from[max(slices.Index(paths, errs[i].File), 0)].field
				errs[i] = s.test.Error(field, "%v", errs[i])
			}
		}
		return nil, errs
	}
	if err != nil {
		return nil, configs.Errors{s.test.Error(from[0].field, "%v", err)}
	}
	return subjects, nil
}

// observe has the policy observe as the test states.
func (s *Suite) observe() error {
	in := s.subject.Input
	in.Plugin, in.Observe, in.ObserveUntil = s.Plugin, true, s.test.Spec.ObserveUntil
	compiled, problems := authz.Compile(in, s.at)
	if len(problems) > 0 {
		return configs.Errors{s.test.Error("spec.mode", "%s: %s", problems[0].Path, problems[0].Message)}
	}
	s.subject.Input, s.subject.Policy = in, compiled
	s.subject.Snapshot = s.subject.With(nil)
	return nil
}

// expectation prepares the expectation at index.
func (s *Suite) expectation(index int) (*expectation, error) {
	e := &expectation{Expectation: s.test.Spec.Expect[index], suite: s, index: index}
	e.line, e.column = s.test.Position(index)
	e.form, e.text = e.Kind()
	e.name = e.describe()
	if e.at = e.At; e.at.IsZero() {
		e.at = s.at
	}
	e.door, _ = policy.DoorNamed(string(e.Door)) // the loader takes no other
	field := fmt.Sprintf("spec.expect[%d].%s", index, e.form)
	switch e.form {
	case "allow", "deny":
		e.readRequest()
		if e.Reason == authz.AddressNotAllowed.String() && e.malformed == nil && !e.address().IsValid() {
			return e, configs.Errors{s.test.Error(field, "%s needs an address; write under address what the host resolves to", e.Reason)}
		}
	case "never":
		pattern, err := prove.ParsePattern(e.Never)
		if err != nil {
			return e, configs.Errors{s.test.Error(field, "%v", err)}
		}
		e.pattern = pattern
	case "atMost":
		approved, err := s.load(reference{field, s.test.Beside(e.AtMost)})
		if err != nil {
			return e, err
		}
		for i := range approved {
			if approved[i].Plugin == s.Plugin {
				e.approved = &approved[i]
			}
		}
		if e.approved == nil {
			return e, configs.Errors{s.test.Error(field, "%s grants nothing to plugin %s", e.AtMost, s.Plugin)}
		}
	}
	return e, nil
}

// describe returns the expectation on one line.
func (e *expectation) describe() string {
	out := []string{e.form + " " + e.text}
	for _, f := range e.selectors() {
		if f.value != "" {
			out = append(out, f.name+" "+f.value)
		}
	}
	return strings.Join(out, ", ")
}

func (e *expectation) readRequest() {
	w := policy.ParseWords(e.text)
	w.Upgrade = e.Upgrade
	e.request, e.malformed = policy.Request(authz.Principal(e.suite.Plugin), w)
	e.request.Unenforceable = e.door.Unenforceable
}
