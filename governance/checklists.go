package governance

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/chaperone-proxy/chaperone/configs"
	"github.com/chaperone-proxy/chaperone/governance/compliance"
	"github.com/chaperone-proxy/chaperone/governance/evidence"
	"github.com/chaperone-proxy/chaperone/governance/pilot"
	"github.com/chaperone-proxy/chaperone/internal/dsse"
)

const dirChecklists = "checklists"

// Checklist is a checklist of the repository.
type Checklist struct {
	configs.ComplianceChecklist
	compliance.Checklist
	File   string
	Signed bool // by the role that signs checklists
}

// readChecklists reads the checklists of the repository. A signed one replaces the unsigned
// one of its name.
func (r *Repository) readChecklists() error {
	add := func(file string, object *configs.Object[configs.ComplianceChecklist], signed bool) error {
		name, err := compliance.DigestOf(object)
		if err != nil {
			return err
		}
		if i := slices.IndexFunc(r.Checklists, func(c Checklist) bool { return c.Name == name.Name }); i >= 0 {
			if signed || !r.Checklists[i].Signed {
				return fmt.Errorf("%s and %s are both checklist %s; rename one", r.Checklists[i].File, file, name.Name)
			}
			return nil
		}
		r.Checklists = append(r.Checklists, Checklist{object.Spec, name, file, signed})
		return nil
	}
	var faults []error
	err := signed(r, dirChecklists, dsse.KindChecklist, func(file string, _ *dsse.Envelope, _ *dsse.Document, object *configs.Object[configs.ComplianceChecklist]) {
		faults = append(faults, add(file, object, true))
	})
	if err := errors.Join(append(faults, err)...); err != nil {
		return err
	}
	files, err := list(r.fsys, dirChecklists, ".yaml")
	if err != nil {
		return err
	}
	for _, file := range files {
		data, err := file.read(r.fsys)
		if err != nil {
			return err
		}
		object, err := configs.ParseObject[configs.ComplianceChecklist](file.path, data)
		if err != nil {
			return err
		}
		if err := add(file.path, object, false); err != nil {
			return err
		}
	}
	return nil
}

// ChecklistStatements returns the statements about checklists that count for a
// request: of its plugin and version, in force, and signed by somebody else than an author.
func ChecklistStatements(e *Evaluation) ([]compliance.Signed, error) {
	var out []compliance.Signed
	for i := range e.items {
		item := &e.items[i]
		if item.PredicateType != compliance.Type || item.Check(e.target(), evidence.Requirement{PredicateType: compliance.Type}, e.now) != nil {
			continue
		}
		s, err := compliance.Parse(item.Predicate)
		switch {
		case err != nil:
			return nil, fmt.Errorf("evidence %s: %w", item.Digest, err)
		case s.Plugin != e.Request.Plugin || s.Version != e.Request.Version:
			return nil, fmt.Errorf("evidence %s is of %s %s; check this version", item.Digest, s.Plugin, s.Version)
		}
		by := slices.DeleteFunc(slices.Clone(item.Signed), func(s dsse.Signed) bool { return slices.Contains(e.Request.Authors, s.Identity) })
		if item.Independent(e.Request.Authors) {
			out = append(out, compliance.Signed{Statement: *s, Digest: item.Digest, By: by})
		}
	}
	return out, nil
}

// observed reports what the newest trace of a pilot, signed by role measurer, saw: undeclared
// access blocks stage 2.
func (r *Repository) observed(e *Evaluation) {
	var last *evidence.Item
	for i := range e.items {
		item := &e.items[i]
		if item.PredicateType == pilot.TraceType && item.SignedAs("measurer", e.Request.Authors) && (last == nil || item.IssuedAt.After(last.IssuedAt)) {
			last = item
		}
	}
	if last == nil {
		return
	}
	trace, err := pilot.ParseTrace(last.Predicate)
	if err == nil && (trace.Plugin != e.Request.Plugin || trace.Version != e.Request.Version) {
		err = fmt.Errorf("it is of %s %s; pilot this version", trace.Plugin, trace.Version)
	}
	if err != nil {
		e.problem(stagePerformance, Problem{Message: fmt.Sprintf("evidence %s: %v", last.Digest, err)})
		return
	}
	for _, f := range trace.Findings() {
		if f.Level == pilot.LevelError {
			e.problem(stagePerformance, Problem{Message: f.Text, Role: "author"})
		} else {
			e.Observed = append(e.Observed, f.Level+": "+f.Text)
		}
	}
}

// checklists is stage 3: an item that has failed blocks, and so does one that is missing
// where a guardrail demands checklists in the band. A statement about a checklist that is
// not there blocks too: whoever removes a checklist would otherwise remove what failed.
func (r *Repository) checklists(e *Evaluation) {
	statements, err := ChecklistStatements(e)
	if err != nil {
		e.problem(stageCompliance, Problem{Message: err.Error()})
	}
	for i := range statements {
		of := statements[i].Checklist.Name
		if !slices.ContainsFunc(r.Checklists, func(c Checklist) bool { return c.Name == of }) {
			e.problem(stageCompliance, Problem{Message: fmt.Sprintf("evidence %s is about checklist %s, which is not in %s/, so that its items are not judged; put the checklist back, or if it is withdrawn remove the evidence",
				statements[i].Digest, cell(of), dirChecklists), Role: "policy", People: r.people("policy", nil)})
		}
	}
	demanded := slices.ContainsFunc(e.terms.evidence, func(need configs.EvidenceRequirement) bool {
		return need.PredicateType == compliance.Type && (need.From == "" || bandRank(e.Band) >= bandRank(string(need.From)))
	})
	for i := range r.Checklists {
		list := &r.Checklists[i]
		for _, v := range compliance.Merge(list.Checklist, list.Items, statements) {
			if v.Outcome == compliance.Failed || v.Outcome == compliance.Missing && demanded {
				e.problem(stageCompliance, Problem{Message: fmt.Sprintf("%s/%s (%s): %s: %s", list.Name, v.ID, strings.TrimSpace(v.Control), v.Outcome, v.Detail), Role: r.roleOf(compliance.Type)})
			}
		}
	}
}
