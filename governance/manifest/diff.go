package manifest

import (
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"
	"time"

	"github.com/chaperone-proxy/chaperone/authz"
	"github.com/chaperone-proxy/chaperone/configs"
	"github.com/chaperone-proxy/chaperone/policy"
	"github.com/chaperone-proxy/chaperone/policy/diff"
	"github.com/chaperone-proxy/chaperone/policy/prove"
)

// Class is how what a version asks for differs from what the one before did.
type Class string

// The classes, from the least to the most.
const (
	ClassNone     Class = "none"
	ClassNarrower Class = "narrower"
	// ClassWider is more of what was asked for: methods, paths, statements, limits, weaker terms, regions, retention.
	ClassWider         Class = "wider"
	ClassNewCredential Class = "new credential" // #nosec G101 -- the name of a class
	ClassNewData       Class = "new data class"
	ClassNewEgress     Class = "new egress" // a host, port, address, scheme or socket
)

func (c Class) rank() int {
	return slices.Index([]Class{ClassNone, ClassNarrower, ClassWider, ClassNewCredential, ClassNewData, ClassNewEgress}, c)
}

// Demands returns the step of the version that a difference of the class demands: growth of any kind is a
// major version, and is approved as a new plugin is.
func (c Class) Demands() Step {
	switch c {
	case ClassNone:
		return StepPatch
	case ClassNarrower:
		return StepMinor
	case ClassWider, ClassNewCredential, ClassNewData, ClassNewEgress:
	}
	return StepMajor
}

// Change is one difference.
type Change struct {
	Class Class `json:"class"`
	// About is the class of package policy/diff, or data, region, retention.
	About   string `json:"about"`
	Summary string `json:"summary"`
	// Request shows the difference, as chaperone explain takes it.
	Request string `json:"request,omitempty"`
	// Position is in the new manifest, or in the old one for what is removed.
	Position configs.Position `json:"position"`
}

// PermissionDelta is the difference of one permission.
type PermissionDelta struct {
	// Permission is its id; "" for the plugin as a whole.
	Permission string   `json:"permission"`
	Class      Class    `json:"class"` // the most of its changes
	Changes    []Change `json:"changes"`
}

// Delta is the difference between two versions of a manifest.
type Delta struct {
	Plugin      string            `json:"plugin"`
	Old         string            `json:"old"` // versions
	New         string            `json:"new"`
	Class       Class             `json:"class"`
	Permissions []PermissionDelta `json:"permissions"`
	// Demanded is the step that the difference demands, and Step the one that was made.
	Demanded Step `json:"demanded"`
	Step     Step `json:"step,omitempty"`
	// Next is the lowest version that would do.
	Next string `json:"next"`
	// Refused is why the version is refused; "" if it steps far enough.
	Refused string `json:"refused,omitempty"`
	// Complete is false if the time ended before every request was compared. The difference then counts as wider.
	Complete bool     `json:"complete"`
	Inexact  []string `json:"inexact,omitempty"`
}

// Diff proves what a new version of a manifest asks for that the old one does not, for every
// request, as of now. ctx bounds the time. Its error is a manifest that no grant can be made of.
func Diff(ctx context.Context, before, after *File, now time.Time) (Delta, error) {
	if before.Plugin != after.Plugin {
		return Delta{}, fmt.Errorf("compare manifests: they are of %s and %s; name two versions of one plugin", before.Plugin, after.Plugin)
	}
	d := Delta{Plugin: after.Plugin, Old: before.Spec.Version, New: after.Spec.Version, Permissions: []PermissionDelta{}}
	end := last(now, before, after)
	old, err := subject(before, now, end)
	if err != nil {
		return d, err
	}
	next, err := subject(after, now, end)
	if err != nil {
		return d, err
	}
	report, err := diff.Compare(ctx, []policy.Subject{old}, []policy.Subject{next}, prove.Question{At: now})
	if err != nil {
		return d, fmt.Errorf("compare manifests: %w", err)
	}
	b := &differ{before: before, after: after, deltas: map[string]*PermissionDelta{}}
	for _, p := range report.Plugins {
		d.Complete, d.Inexact = p.Complete, p.Inexact
		for i := range p.Wider {
			b.access(&p.Wider[i], true)
		}
		for i := range p.Narrower {
			b.access(&p.Narrower[i], false)
		}
	}
	b.data()
	d.finish(b)
	return d, d.judge()
}

// last returns an instant at which a grant of both manifests can end.
func last(now time.Time, files ...*File) time.Time {
	end := now.Add(time.Hour)
	for _, f := range files {
		for i := range f.Spec.Permissions {
			if t := f.Spec.Permissions[i].NotAfter; t.After(end) {
				end = t
			}
		}
	}
	return end
}

// subject returns the policy of the grant that a manifest asks for, without guardrails.
func subject(f *File, now, end time.Time) (policy.Subject, error) {
	grant, err := Grant(f.Plugin, &f.Spec, assumed(&f.Spec))
	if err != nil {
		return policy.Subject{}, fmt.Errorf("%s: %w", f.Path, err)
	}
	grant.NotAfter = end
	for i := range grant.Rules {
		r := &grant.Rules[i]
		if strings.TrimSpace(r.Reason) == "" || isTodo(r.Reason) {
			r.Reason = "not stated yet"
		}
		if r.To.TLS.CAFile != "" && r.To.TLS.CA == "" {
			r.To.TLS.CA = "of " + r.To.TLS.CAFile
		}
	}
	in := authz.Input{Plugin: f.Plugin, Grants: []authz.Grant{grant}, Guardrails: []authz.Guardrail{allRegions(f)}}
	compiled, problems := authz.Compile(in, now)
	if len(problems) > 0 {
		var errs []error
		for _, p := range problems {
			field := strings.Replace(p.Path, "spec.rules", "spec.permissions", 1)
			errs = append(errs, fmt.Errorf("%s: %s: %s", f.Position(field), field, p.Message))
		}
		return policy.Subject{}, errors.Join(errs...)
	}
	s := policy.Subject{Plugin: f.Plugin, Input: in, Policy: compiled}
	s.Snapshot = s.With(nil)
	return s, nil
}

// allRegions returns a guardrail that defines every region that a manifest names as every
// address, so that regions are compared by their names.
func allRegions(f *File) authz.Guardrail {
	g := authz.Guardrail{Name: "regions", Plugins: []string{"**"}, Regions: map[string][]authz.Place{}}
	for i := range f.Spec.Permissions {
		for _, r := range f.Spec.Permissions[i].Data.Regions {
			g.Regions[r] = []authz.Place{"0.0.0.0/0", "::/0"}
		}
	}
	return g
}

// differ gathers changes by permission.
type differ struct {
	before, after *File
	deltas        map[string]*PermissionDelta
	order         []string
}

func (b *differ) add(permission string, c Change) {
	d := b.deltas[permission]
	if d == nil {
		d = &PermissionDelta{Permission: permission, Class: ClassNone}
		b.deltas[permission] = d
		b.order = append(b.order, permission)
	}
	if c.Class.rank() > d.Class.rank() {
		d.Class = c.Class
	}
	d.Changes = append(d.Changes, c)
}

// access adds a change of package policy/diff.
func (b *differ) access(c *diff.Change, wider bool) {
	_, permission, _ := strings.Cut(c.Rule, "/")
	if c.Shown != nil && c.Shown.Finding.Kind == prove.KindLimit {
		permission = c.Shown.Finding.Limit.Rule() // "" for a limit of the plugin
	}
	out := Change{Class: ClassNarrower, About: string(c.Class), Summary: c.Summary}
	file := b.before
	if wider {
		out.Class, file = classOf(c.Class), b.after
	}
	field := "spec.permissions"
	if i := indexOf(file, permission); i >= 0 {
		field = fmt.Sprintf("spec.permissions[%d]", i)
	} else if c.Class == diff.ClassSocket {
		field = "spec.sockets"
	} else if c.Class == diff.ClassLimit {
		field = "spec.limits"
	}
	out.Position = file.Position(field)
	if c.Shown != nil && c.Shown.URL != "" {
		out.Request = c.Shown.Request()
	}
	b.add(permission, out)
}

func classOf(c diff.Class) Class {
	switch c {
	case diff.ClassHost, diff.ClassPort, diff.ClassAddress, diff.ClassSocket:
		return ClassNewEgress
	case diff.ClassCredential:
		return ClassNewCredential
	default:
		return ClassWider
	}
}

func indexOf(f *File, permission string) int {
	return slices.IndexFunc(f.Spec.Permissions, func(p configs.Permission) bool { return p.ID == permission })
}

// data compares the data that permissions state: with the permission of the same name, and
// for each host with all that the old version stated for it, since names and hosts can both
// be moved.
func (b *differ) data() {
	for i := range b.after.Spec.Permissions {
		now := &b.after.Spec.Permissions[i]
		field := fmt.Sprintf("spec.permissions[%d].data", i)
		if j := indexOf(b.before, now.ID); j >= 0 {
			b.compareData(field, now, dataOf(&b.before.Spec.Permissions[j]), true)
		}
		for _, host := range now.To.Hosts {
			if was, ok := b.dataAt(host); ok {
				b.compareData(field, now, was, false)
			}
		}
	}
}

// stated is what permissions state of data, together.
type stated struct {
	classes   []authz.DataClass
	regions   []string // nil for every region
	retention time.Duration
}

func dataOf(p *configs.Permission) stated {
	return stated{p.Data.Classes, p.Data.Regions, viewRetention(p.Data.Retention)}
}

// dataAt returns what the old permissions for a host state; false for a host without one,
// which is a difference by itself.
func (b *differ) dataAt(host string) (out stated, ok bool) {
	for i := range b.before.Spec.Permissions {
		p := &b.before.Spec.Permissions[i]
		if !slices.ContainsFunc(p.To.Hosts, func(h string) bool { return coversHost(h, host) }) {
			continue
		}
		one := dataOf(p)
		if !ok {
			out, ok = one, true
			continue
		}
		out.classes = slices.Concat(out.classes, one.classes)
		if len(out.regions) == 0 || len(one.regions) == 0 {
			out.regions = nil
		} else {
			out.regions = slices.Concat(out.regions, one.regions)
		}
		out.retention = max(out.retention, one.retention)
	}
	return out, ok
}

// coversHost reports whether the hosts of one pattern are all of the other's.
func coversHost(wide, narrow string) bool {
	if wide == narrow {
		return true
	}
	name, deep := strings.CutPrefix(wide, "**.")
	if !deep {
		var single bool
		if name, single = strings.CutPrefix(wide, "*."); !single {
			return false
		}
	}
	label, ok := strings.CutSuffix(narrow, "."+name)
	return ok && label != "" && (deep || !strings.Contains(label, ".") && label != "**")
}

// compareData compares what a permission states with what was stated. Less is reported once, of the
// permission of the same name.
func (b *differ) compareData(field string, now *configs.Permission, was stated, less bool) {
	is := dataOf(now)
	add := func(class Class, about, format string, args ...any) {
		if class == ClassNarrower && !less {
			return
		}
		c := Change{Class: class, About: about, Summary: fmt.Sprintf(format, args...), Position: b.after.Position(field)}
		if d := b.deltas[now.ID]; d == nil || !slices.Contains(d.Changes, c) {
			b.add(now.ID, c)
		}
	}
	for _, class := range is.classes {
		if !slices.Contains(was.classes, class) {
			add(ClassNewData, "data", "data of class %s are new", class)
		}
	}
	for _, class := range was.classes {
		if !slices.Contains(is.classes, class) {
			add(ClassNarrower, "data", "data of class %s are no longer asked for", class)
		}
	}
	switch {
	case len(was.regions) > 0 && len(is.regions) == 0:
		add(ClassWider, "region", "is no longer kept to the regions %v", was.regions)
	case len(was.regions) > 0 && slices.ContainsFunc(is.regions, func(r string) bool { return !slices.Contains(was.regions, r) }):
		add(ClassWider, "region", "regions are %v, were %v", is.regions, was.regions)
	case len(is.regions) > 0 && (len(was.regions) == 0 || len(is.regions) < len(was.regions)):
		add(ClassNarrower, "region", "is kept to the regions %v", is.regions)
	}
	switch {
	case is.retention > was.retention:
		add(ClassWider, "retention", "retention is %s, was %s", retentionText(is.retention), retentionText(was.retention))
	case is.retention < was.retention:
		add(ClassNarrower, "retention", "retention is %s, was %s", retentionText(is.retention), retentionText(was.retention))
	}
}

func retentionText(d time.Duration) string {
	if d == 0 {
		return string(authz.RetentionNone)
	}
	if d == math.MaxInt64 {
		return "not stated"
	}
	return authz.Duration(d).String()
}

// finish puts the changes into the order of the new manifest, and the permissions without one beside
// them.
func (d *Delta) finish(b *differ) {
	for i := range b.after.Spec.Permissions {
		id := b.after.Spec.Permissions[i].ID
		if delta := b.deltas[id]; delta != nil {
			d.Permissions = append(d.Permissions, *delta)
			delete(b.deltas, id)
		} else {
			d.Permissions = append(d.Permissions, PermissionDelta{Permission: id, Class: ClassNone, Changes: []Change{}})
		}
	}
	for _, id := range b.order {
		if delta := b.deltas[id]; delta != nil {
			d.Permissions = append(d.Permissions, *delta)
		}
	}
	d.Class = ClassNone
	for _, p := range d.Permissions {
		if p.Class.rank() > d.Class.rank() {
			d.Class = p.Class
		}
	}
	if !d.Complete && d.Class.rank() < ClassWider.rank() {
		d.Class = ClassWider
	}
	d.Demanded = d.Class.Demands()
}

// judge compares the step of the version with the one that is demanded.
func (d *Delta) judge() error {
	old, err := parseVersion(d.Old)
	if err != nil {
		return fmt.Errorf("compare manifests: the old version: %w", err)
	}
	next, err := parseVersion(d.New)
	if err != nil {
		return fmt.Errorf("compare manifests: the new version: %w", err)
	}
	d.Next = d.Demanded.next(old)
	step, err := stepBetween(old, next)
	switch {
	case err != nil:
		d.Refused = err.Error()
	case step.rank() < d.Demanded.rank():
		d.Refused = fmt.Sprintf("%s to %s is a %s version; what it asks for is %s, which demands a %s version: write %s or later", d.Old, d.New, step, d.Class, d.Demanded, d.Next)
	}
	d.Step = step
	return nil
}
