package plugintest

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"slices"

	"github.com/chaperone-proxy/chaperone/authz"
	"github.com/chaperone-proxy/chaperone/configs"
	"github.com/chaperone-proxy/chaperone/internal/atomicfile"
	"github.com/chaperone-proxy/chaperone/internal/phrase"
)

// Change is one expectation that [Update] has changed.
type Change struct {
	File string `json:"file"`
	Line int    `json:"line"` // before the change
	Old  string `json:"old"`  // the expectation as a flow mapping
	New  string `json:"new"`
}

// Update writes the present decisions into the files of the suites: each allow and deny
// that is not as expected is changed to state what is, and all else is kept as it is
// written, comments included. It never changes never and atMost. If a file has changed since
// it was read, or an expectation cannot be edited, no file is written. Each file is
// replaced as a whole.
func Update(suites []*Suite) ([]Change, error) {
	byFile := map[string][]*Suite{}
	var files []string
	for _, s := range suites {
		if byFile[s.File] == nil {
			files = append(files, s.File)
		}
		byFile[s.File] = append(byFile[s.File], s)
	}
	var changes []Change
	updates := map[string]*update{}
	for _, file := range files {
		u, err := prepare(file, byFile[file])
		if err != nil {
			return nil, fmt.Errorf("update %s: %w", file, err)
		}
		if len(u.changes) > 0 {
			updates[file], changes = u, append(changes, u.changes...)
		}
	}
	for _, file := range files {
		if u := updates[file]; u != nil {
			if err := u.write(); err != nil {
				return nil, fmt.Errorf("update %s: %w", file, err)
			}
		}
	}
	return changes, nil
}

// update is a file that is to be replaced.
type update struct {
	path    string // without symbolic links
	mode    os.FileMode
	digest  string // of the file as it was read
	data    []byte
	changes []Change
}

// prepare edits a file, and checks that the result is what was meant.
func prepare(file string, suites []*Suite) (*update, error) {
	path, err := filepath.EvalSymlinks(file)
	if err != nil {
		return nil, err
	}
	info, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	u := &update{path: path, mode: info.Mode().Perm(), digest: suites[0].test.SHA256}
	old, err := u.read()
	if err != nil {
		return nil, err
	}
	doc, err := parseDocument(old, filepath.Ext(file) == ".json")
	if err != nil {
		return nil, err
	}
	changed := map[*expectation]bool{}
	for _, s := range suites {
		for _, e := range s.expectations {
			o, wrong := e.wrong()
			if !wrong {
				continue
			}
			fields := e.corrected(o)
			if err := doc.set(e.line, e.column, e.form, fields); err != nil {
				return nil, fmt.Errorf("line %d: %w", e.line, err)
			}
			changed[e] = true
			u.changes = append(u.changes, Change{File: file, Line: e.line, Old: flow(e.fields()), New: flow(fields)})
		}
	}
	u.data = doc.apply()
	return u, check(file, u.data, suites, changed)
}

// wrong decides an allow or deny, and reports whether the decision is not as expected.
func (e *expectation) wrong() (outcome, bool) {
	if e.form != "allow" && e.form != "deny" {
		return outcome{}, false
	}
	o := e.decide(e.suite.subject.Snapshot)
	return o, !o.asExpected(e, e.suite.subject.Snapshot)
}

// fields returns the expectation as it is written, in the order of the documentation.
func (e *expectation) fields() []field {
	out := []field{{e.form, e.text}, {"rule", e.Rule}}
	if e.Credential != nil {
		out = append(out, field{"credential", *e.Credential})
	}
	return append(append(out, field{"reason", e.Reason}, field{"nearest", e.Nearest}), e.selectors()...)
}

// corrected returns the expectation as it holds: what it states is brought up to date,
// and what does not go with the decision is left out.
func (e *expectation) corrected(o outcome) []field {
	now := e.asIs(o)
	if e.form != now[0].name {
		return append(now, e.selectors()...)
	}
	if e.form == "deny" {
		out := slices.Clone(now[:1])
		if e.Reason != "" || e.Nearest == "" {
			out = append(out, now[1])
		}
		if e.Nearest != "" {
			o.explain(e, e.suite.subject.Snapshot)
			if o.nearest != nil {
				out = append(out, field{"nearest", phrase.Rule(o.nearest.Grant, o.nearest.Rule)})
			}
		}
		return append(out, e.selectors()...)
	}
	out := slices.Clone(now[:1])
	if e.Rule != "" {
		out = append(out, now[1])
	}
	if e.Credential != nil {
		out = append(out, now[2])
	}
	if e.Reason != "" || o.reason != authz.Granted {
		out = append(out, field{"reason", o.reason.String()})
	}
	return append(out, e.selectors()...)
}

// read returns the file's content if it is still the one that was tested.
func (u *update) read() ([]byte, error) {
	data, err := os.ReadFile(u.path)
	if err != nil {
		return nil, err
	}
	if sum := sha256.Sum256(data); hex.EncodeToString(sum[:]) != u.digest {
		return nil, errors.New("the file has changed since it was read; run the test again")
	}
	return data, nil
}

// write replaces the file, unless it has changed since it was tested.
func (u *update) write() error {
	if _, err := u.read(); err != nil {
		return err
	}
	return atomicfile.Write(u.path, u.data, u.mode)
}

// check reads an edited file again: only the changed expectations differ, and they hold.
func check(file string, data []byte, suites []*Suite, changed map[*expectation]bool) error {
	tests, err := configs.ParseTests(suites[0].at, file, data)
	if err != nil {
		return fmt.Errorf("the edited text is not valid, and was not written: %w", err)
	}
	for _, s := range suites {
		i := slices.IndexFunc(tests, func(t *configs.Test) bool { return t.Index == s.test.Index })
		if i < 0 || len(tests[i].Spec.Expect) != len(s.test.Spec.Expect) {
			return errors.New("the edited text has other tests, and was not written")
		}
		for _, e := range s.expectations {
			edited := tests[i].Spec.Expect[e.index]
			if !changed[e] && !reflect.DeepEqual(edited, e.Expectation) {
				return fmt.Errorf("the edit would change line %d too, and was not written", e.line)
			}
			if !changed[e] {
				continue
			}
			after := *e
			after.Expectation = edited
			after.form, after.text = after.Kind()
			after.readRequest()
			if _, wrong := after.wrong(); wrong || after.text != e.text || !slices.Equal(after.selectors(), e.selectors()) {
				return fmt.Errorf("the edited expectation of line %d does not hold, and was not written", e.line)
			}
		}
	}
	return nil
}
