package tighten

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strconv"
	"time"

	"github.com/chaperone-proxy/chaperone/authz"
	"github.com/chaperone-proxy/chaperone/internal/printable"
	"github.com/chaperone-proxy/chaperone/policy"
	"github.com/chaperone-proxy/chaperone/policy/accesslog"
	"github.com/chaperone-proxy/chaperone/policy/prove"
	"github.com/chaperone-proxy/chaperone/policy/replay"
	"github.com/chaperone-proxy/chaperone/policy/usage"
)

// Grace is how long a rule that is to be removed stays in force, by default.
const Grace = 14 * 24 * time.Hour

// Options say what to tighten.
type Options struct {
	Paths  []string       // of the configuration
	Load   policy.Options // how they are loaded
	Report *usage.Report  // the use of their rules
	Log    accesslog.Options
	Now    time.Time
	Grace  time.Duration // 0 is the constant Grace
	Budget time.Duration // of all proofs together; 0 for as long as they take
}

// Change is one change of a rule.
type Change struct {
	Grant    string          `json:"grant"`
	Rule     string          `json:"rule"`
	Position policy.Position `json:"position"`
	// Field and Value are what is removed from the rule. Without a Field the rule is removed:
	// at Until, or at once if it has ended.
	Field usage.Field `json:"field,omitempty"`
	Value string      `json:"value,omitempty"`
	Until time.Time   `json:"until,omitzero"`

	index int
}

// String describes the change.
func (c *Change) String() string {
	rule := c.Grant + "/" + c.Rule
	switch {
	case c.Field != "":
		return fmt.Sprintf("%s: remove %s %s", rule, c.Field, printable.Text(c.Value))
	case !c.Until.IsZero():
		return fmt.Sprintf("%s: to be removed; it ends at %s", rule, c.Until.UTC().Format(time.RFC3339))
	}
	return rule + ": remove; it has ended"
}

// File is one edited file.
type File struct {
	Name   string // as the configuration names it
	Path   string // the real path
	Before []byte
	After  []byte
}

// Result is what was found.
type Result struct {
	Changes []Change
	Files   []File // in the order in which they may be written one by one
	// Left are changes that were not made, with the reason.
	Left []string
	// Replayed and NotReplayable are the accesses of the log that were decided again, and
	// those that cannot be.
	Replayed, NotReplayable int
}

// Plan proposes the edits. Its error is that of reading the files or the log.
func Plan(ctx context.Context, o Options) (*Result, error) {
	if o.Grace == 0 {
		o.Grace = Grace
	}
	before, err := policy.Load(o.Now, o.Load, o.Paths...)
	if err != nil {
		return nil, err
	}
	proofs := ctx
	if o.Budget > 0 {
		var cancel context.CancelFunc
		proofs, cancel = context.WithTimeout(ctx, o.Budget)
		defer cancel()
	}
	p := &planner{options: o, before: before, data: map[string][]byte{}, names: map[string]string{}}
	out := &Result{}
	all := p.candidates()
	if len(all) == 0 {
		return out, nil
	}
	after, files, err := p.check(proofs, all)
	if err == nil {
		out.Changes = all
	} else if after, files, err = p.oneByOne(proofs, all, out); err != nil {
		return nil, err
	}
	if len(out.Changes) == 0 {
		return out, nil
	}
	out.Files = files
	breaks, err := p.replay(ctx, after, out)
	if err == nil && breaks > 0 {
		err = fmt.Errorf("%d recorded accesses would be refused, although their use was counted", breaks)
	}
	return out, err
}

// planner is one run of Plan.
type planner struct {
	options Options
	before  []policy.Subject
	data    map[string][]byte // by real path
	names   map[string]string // by real path
}

// votes count in how many policies a rule or a value stands, and in how many it is proved
// unused and is used.
type votes struct{ all, unused, used int }

func key(at policy.Position, field usage.Field, index int) string {
	return at.String() + " " + string(field) + " " + strconv.Itoa(index)
}

// candidates returns what is proved unused in every policy that holds it.
func (p *planner) candidates() []Change {
	ballot := map[string]*votes{}
	vote := func(k string, verdict usage.Verdict) {
		v := ballot[k]
		if v == nil {
			v = &votes{}
			ballot[k] = v
		}
		v.all++
		switch verdict {
		case usage.Unused:
			v.unused++
		case usage.Used:
			v.used++
		case usage.NotProved:
		}
	}
	p.rules(func(r *usage.Rule, _ *authz.Rule, _ time.Time) {
		vote(key(r.Position, "", 0), r.Verdict)
		for _, v := range r.Values {
			vote(key(r.Position, v.Field, v.Index), v.Verdict)
		}
	})
	unused := func(k string) bool { return ballot[k].all == ballot[k].unused }
	var out []Change
	done := map[string]bool{}
	p.rules(func(r *usage.Rule, spec *authz.Rule, end time.Time) {
		if done[r.Position.String()] {
			return
		}
		done[r.Position.String()] = true
		c := Change{Grant: r.Grant, Rule: r.ID, Position: r.Position}
		rule := key(r.Position, "", 0)
		if !spec.NotAfter.IsZero() && !p.options.Now.Before(spec.NotAfter) {
			if ballot[rule].used == 0 { // it grants nothing any more, which needs no proof
				out = append(out, c)
			}
			return
		}
		if unused(rule) {
			until := p.options.Now.Add(p.options.Grace).UTC().Truncate(24 * time.Hour).Add(24 * time.Hour)
			if end.After(until) {
				c.Until = until
				out = append(out, c)
			}
			return
		}
		out = append(out, valueChanges(c, r, func(v usage.Value) bool { return unused(key(r.Position, v.Field, v.Index)) })...)
	})
	return out
}

// valueChanges returns the removals of a used rule's values, which leave one of each field that
// a rule must have.
func valueChanges(c Change, r *usage.Rule, unused func(usage.Value) bool) (out []Change) {
	for _, field := range []usage.Field{
		usage.Hosts, usage.Ports, usage.Methods, usage.Paths, usage.Upgrades,
		usage.Databases, usage.Verbs, usage.Tables, usage.Functions, usage.Commands, usage.Keys, usage.Channels,
	} {
		left, fields := 0, []Change{}
		for _, v := range r.Values {
			switch {
			case v.Field != field:
			case unused(v):
				c.Field, c.Value, c.index = v.Field, v.Value, v.Index
				fields = append(fields, c)
			default:
				left++
			}
		}
		if left > 0 || mayBeEmpty(field) {
			out = append(out, fields...)
		}
	}
	return out
}

// mayBeEmpty reports whether a rule needs no value of a field.
func mayBeEmpty(field usage.Field) bool {
	switch field {
	case usage.Upgrades, usage.Tables, usage.Functions, usage.Keys, usage.Channels:
		return true
	default:
		return false
	}
}

// rules calls each with every rule whose place is known, its text, and when it ends.
func (p *planner) rules(each func(r *usage.Rule, spec *authz.Rule, end time.Time)) {
	for i := range p.options.Report.Plugins {
		plugin := &p.options.Report.Plugins[i]
		for j := range plugin.Rules {
			r := &plugin.Rules[j]
			if g, spec := find(plugin.Subject(), r.Grant, r.ID); spec != nil && r.Position.File != "" {
				end := g.NotAfter
				if !spec.NotAfter.IsZero() {
					end = spec.NotAfter
				}
				each(r, spec, end)
			}
		}
	}
}

func find(s *policy.Subject, grant, rule string) (*authz.Grant, *authz.Rule) {
	for i := range s.Input.Grants {
		for j := range s.Input.Grants[i].Rules {
			if g := &s.Input.Grants[i]; g.Name == grant && g.Rules[j].ID == rule {
				return g, &g.Rules[j]
			}
		}
	}
	return nil, nil
}

// oneByOne makes the changes that can be made, and reports the others.
func (p *planner) oneByOne(ctx context.Context, all []Change, out *Result) (after []policy.Subject, files []File, err error) {
	for _, c := range all {
		next, edited, err := p.check(ctx, append(slices.Clone(out.Changes), c))
		switch {
		case ctx.Err() != nil:
			return nil, nil, fmt.Errorf("undecided: the edits were not proved narrower in the time given: %w", ctx.Err())
		case err != nil:
			out.Left = append(out.Left, c.String()+": "+err.Error())
		default:
			out.Changes, after, files = append(out.Changes, c), next, edited
		}
	}
	return after, files, nil
}

// check makes changes in memory. It returns the policies and the files after them, or why
// the changes cannot be made.
func (p *planner) check(ctx context.Context, changes []Change) ([]policy.Subject, []File, error) {
	files, err := p.edit(changes)
	if err != nil {
		return nil, nil, err
	}
	load := p.options.Load
	load.Contents = map[string][]byte{}
	var after []policy.Subject
	for i, f := range files { // each prefix of the files is a state that a crash may leave
		load.Contents[f.Path] = f.After
		if after, err = policy.Load(p.options.Now, load, p.options.Paths...); err != nil {
			return nil, nil, fmt.Errorf("the edited files would not load: %w", err)
		}
		if i == len(files)-1 {
			if err := p.intended(after, changes); err != nil {
				return nil, nil, err
			}
		}
		if err := p.narrower(ctx, after); err != nil {
			return nil, nil, err
		}
	}
	return after, files, nil
}

// narrower returns an error with a request if the policies allow one that they did not.
func (p *planner) narrower(ctx context.Context, after []policy.Subject) error {
	if len(after) != len(p.before) {
		return errors.New("the edited files would hold other policies")
	}
	for i := range after {
		result, err := prove.Compare(ctx, p.before[i].Snapshot, after[i].Snapshot, prove.Options{Plugin: authz.Principal(after[i].Plugin), At: p.options.Now, Most: 1})
		switch {
		case err != nil:
			return err
		case len(result.Findings) > 0:
			f := &result.Findings[0]
			return fmt.Errorf("it would widen (%s): %s by %s", f.Kind, printable.Text(policy.Format(f.Request)), f.New.RuleName())
		case !result.Complete:
			return errors.New("it was not proved narrower in the time given")
		}
	}
	return nil
}

// intended returns an error unless the policies after the edit are those before it with the
// changes, and nothing else.
func (p *planner) intended(after []policy.Subject, changes []Change) error {
	if len(after) != len(p.before) {
		return errors.New("the edited files would hold other policies")
	}
	for i := range after {
		if !reflect.DeepEqual(normal(p.expected(&p.before[i], changes)), normal(after[i].Input)) {
			return errShape
		}
	}
	return nil
}

// expected returns the input of a policy with changes.
func (p *planner) expected(s *policy.Subject, changes []Change) authz.Input {
	in := s.Input
	in.Grants = slices.Clone(in.Grants)
	for i := range in.Grants {
		g := &in.Grants[i]
		var rules []authz.Rule
		for _, r := range g.Rules {
			at, _ := s.Position(g.Name, r.ID)
			kept := true
			for _, c := range slices.Backward(changes) { // the last value first, so that indices stay
				if c.Position == at {
					kept = c.apply(&r) && kept
				}
			}
			if kept {
				rules = append(rules, r)
			}
		}
		g.Rules = rules
	}
	return in
}

// apply changes the rule, and reports whether it stays.
func (c *Change) apply(r *authz.Rule) bool {
	without := func(list []string) []string { return slices.Delete(slices.Clone(list), c.index, c.index+1) }
	switch c.Field {
	case usage.Hosts:
		r.To.Hosts = without(r.To.Hosts)
	case usage.Ports:
		r.To.Ports = slices.Delete(slices.Clone(r.To.Ports), c.index, c.index+1)
	case usage.Methods:
		r.Methods = without(r.Methods)
	case usage.Paths:
		r.Paths = without(r.Paths)
	case usage.Upgrades:
		r.Upgrades = without(r.Upgrades)
	case usage.Credential, usage.Opaque:
	case usage.Databases, usage.Verbs, usage.Tables, usage.Functions, usage.Commands, usage.Keys, usage.Channels:
		for _, p := range policy.Parts(r.Content) {
			if p.Field == string(c.Field) {
				policy.SetPart(r, p.Field, without(p.Values))
			}
		}
	default:
		r.NotAfter = c.Until
		return !c.Until.IsZero()
	}
	return true
}

// normal returns an input without what may differ between equal policies: the places of
// documents, and lists that hold nothing.
func normal(in authz.Input) authz.Input {
	in.Grants, in.Guardrails = slices.Clone(in.Grants), slices.Clone(in.Guardrails)
	for i := range in.Grants {
		g := &in.Grants[i]
		g.Origin, g.Rules = "", slices.Clone(g.Rules)
		for j := range g.Rules {
			if r := &g.Rules[j]; len(r.Upgrades) == 0 {
				r.Upgrades = nil
			}
			for _, field := range []usage.Field{usage.Tables, usage.Functions, usage.Keys, usage.Channels} {
				if !slices.ContainsFunc(policy.Parts(g.Rules[j].Content), func(p policy.Part) bool { return p.Field == string(field) }) {
					policy.SetPart(&g.Rules[j], string(field), nil)
				}
			}
		}
	}
	for i := range in.Guardrails {
		in.Guardrails[i].Origin = ""
	}
	return in
}

// edit returns the files with the changes.
func (p *planner) edit(changes []Change) ([]File, error) {
	operations := map[string][]operation{}
	var order []string
	for i := range changes {
		path, o, err := p.operation(&changes[i])
		if err != nil {
			return nil, err
		}
		if !slices.Contains(order, path) {
			order = append(order, path)
		}
		operations[path] = append(operations[path], o)
	}
	var out []File
	for _, path := range order {
		after, err := edit(p.data[path], operations[path])
		if err != nil {
			return nil, err
		}
		out = append(out, File{Name: p.names[path], Path: path, Before: p.data[path], After: after})
	}
	return out, nil
}

// operation returns the file and the operation of a change.
func (p *planner) operation(c *Change) (path string, o operation, err error) {
	s, origin, rule := p.rule(c)
	if s == nil {
		return "", o, errShape
	}
	if path, err = p.read(c.Position.File); err != nil {
		return "", o, err
	}
	data := p.data[path]
	place := func(field string) (int, policy.Position, error) {
		at, ok := s.FieldPosition(origin, rule+field)
		if !ok {
			return 0, at, errShape
		}
		offset, err := offsetOf(data, at.Line, at.Column)
		return offset, at, err
	}
	start, at, err := place("")
	if err != nil {
		return "", o, err
	}
	switch {
	case c.Field == "" && c.Until.IsZero():
		return path, operation{start, removeRule}, nil
	case c.Field == "":
		_, spec := find(s, c.Grant, c.Rule)
		if !spec.NotAfter.IsZero() {
			o.offset, _, err = place(".notAfter")
			o.apply = replaceScalar(c.Until.UTC().Format(time.RFC3339), inFlow(data, start))
			return path, o, err
		}
		indent := at.Column - 1
		if inFlow(data, start) {
			indent = -1
		}
		o.offset, _, err = place(".id")
		o.apply = insertNotAfter(c.Until, indent, "to be removed: unused; delete this line to keep the rule")
		return path, o, err
	}
	field := "." + string(c.Field)
	if c.Field == usage.Hosts || c.Field == usage.Ports {
		field = ".to" + field
	}
	list, _, err := place(field)
	if err != nil {
		return "", o, err
	}
	o.apply = removeBlockItem
	if data[list] == '[' {
		o.apply = removeFlowItem
	}
	o.offset, _, err = place(fmt.Sprintf("%s[%d]", field, c.index))
	if list == o.offset && data[list] == '[' {
		return "", o, errShape
	}
	return path, o, err
}

// rule returns the policy, the document and the field of the rule of a change.
func (p *planner) rule(c *Change) (*policy.Subject, authz.Origin, string) {
	for i := range p.before {
		s := &p.before[i]
		for j := range s.Input.Grants {
			g := &s.Input.Grants[j]
			for k := range g.Rules {
				if at, ok := s.Position(g.Name, g.Rules[k].ID); ok && at == c.Position {
					return s, g.Origin, fmt.Sprintf("spec.rules[%d]", k)
				}
			}
		}
	}
	return nil, "", ""
}

// read reads a file once, and returns its real path.
func (p *planner) read(name string) (string, error) {
	path, err := filepath.EvalSymlinks(name)
	if err == nil {
		path, err = filepath.Abs(path)
	}
	if err != nil {
		return "", fmt.Errorf("read %s: %w", name, err)
	}
	if p.data[path] != nil {
		return path, nil
	}
	data, err := os.ReadFile(path)
	if err != nil {
		return "", fmt.Errorf("read file to tighten: %w", err)
	}
	p.data[path], p.names[path] = data, name
	return path, nil
}

// replay decides the log again, and returns how many accesses the old policies allow and
// the new ones refuse.
func (p *planner) replay(ctx context.Context, after []policy.Subject, out *Result) (breaks int, err error) {
	r := &replaying{}
	for i := range after {
		pair := replayPair{plugin: after[i].Plugin}
		if pair.before, err = replay.New(p.before[i:i+1], replay.Options{}); err != nil {
			return 0, err
		}
		if pair.after, err = replay.New(after[i:i+1], replay.Options{}); err != nil {
			return 0, err
		}
		r.pairs = append(r.pairs, pair)
	}
	o := p.options.Log
	o.Event = nil
	log, err := accesslog.Open(o)
	if err != nil {
		return 0, err
	}
	for a, err := range log.Accesses(ctx) {
		if err != nil {
			return 0, err
		}
		if err := r.take(a); err != nil {
			return 0, err
		}
	}
	return r.result(out), nil
}

// replaying decides accesses under the policies before and after.
type replaying struct{ pairs []replayPair }

type replayPair struct {
	plugin        string
	before, after *replay.Replayer
}

func (r *replaying) take(a *accesslog.Access) error {
	for _, p := range r.pairs {
		if p.plugin != a.Plugin {
			continue
		}
		if err := errors.Join(p.before.Take(a), p.after.Take(a)); err != nil {
			return err
		}
	}
	return nil
}

// result counts the accesses that only the policies after refuse.
func (r *replaying) result(out *Result) (breaks int) {
	for _, p := range r.pairs {
		before, after := p.before.Result(), p.after.Result()
		for _, c := range after.Breaks {
			breaks += c.Count
		}
		for _, c := range before.Breaks {
			breaks -= c.Count
		}
		out.Replayed += after.Accesses
		for _, n := range after.NotReplayable {
			out.Replayed -= n
			out.NotReplayable += n
		}
	}
	return breaks
}
