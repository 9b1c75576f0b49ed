package compliance

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"time"

	"github.com/chaperone-proxy/chaperone/configs"
	"github.com/chaperone-proxy/chaperone/governance/pilot"
	"github.com/chaperone-proxy/chaperone/internal/dsse"
	"github.com/chaperone-proxy/chaperone/internal/printable"
)

// Statement is the predicate of compliance-checklist: the results of some items of one
// checklist.
type Statement struct {
	IssuedAt  time.Time `json:"issuedAt"`
	ExpiresAt time.Time `json:"expiresAt,omitzero"`
	Plugin    string    `json:"plugin"`
	Version   string    `json:"version"` // of the plugin
	Checklist Checklist `json:"checklist"`
	// Log is that of the pilot that the results rest on; nil without one.
	Log   *pilot.Log `json:"log,omitempty"`
	Items []Result   `json:"items"`
}

// Checklist names a checklist.
type Checklist struct {
	Name   string `json:"name"`
	Digest string `json:"digest"` // sha256:HEX of its canonical form; see [DigestOf]
}

// DigestOf returns what a statement refers to a checklist by.
func DigestOf(c *configs.Object[configs.ComplianceChecklist]) (Checklist, error) {
	data, err := configs.RenderObject(c)
	if err != nil {
		return Checklist{}, fmt.Errorf("digest checklist: %w", err)
	}
	return Checklist{Name: c.Metadata.Name, Digest: dsse.Digest(data)}, nil
}

// Parse reads the predicate of a compliance-checklist statement whose signature was
// verified.
func Parse(predicate []byte) (*Statement, error) {
	var s Statement
	d := json.NewDecoder(bytes.NewReader(predicate))
	if err := d.Decode(&s); err != nil {
		return nil, fmt.Errorf("read compliance-checklist: it is not the expected JSON: %w", err)
	}
	if err := s.check(); err != nil {
		return nil, fmt.Errorf("read compliance-checklist: %w", err)
	}
	return &s, nil
}

func (s *Statement) check() error {
	switch {
	case s.IssuedAt.IsZero():
		return errors.New("issuedAt is missing")
	case s.Plugin == "" || s.Version == "" || s.Checklist.Name == "" || s.Checklist.Digest == "":
		return errors.New("it names no plugin, version or checklist")
	case len(s.Items) == 0:
		return errors.New("it has no items")
	}
	seen := map[string]bool{}
	for i := range s.Items {
		r := &s.Items[i]
		if seen[r.ID] {
			return fmt.Errorf("item %s is in it twice", quote(r.ID))
		}
		seen[r.ID] = true
		auto := r.Proof == configs.ProofAuto && slices.Contains([]Outcome{Proved, Failed, Missing}, r.Outcome) && r.Attestation == nil
		attested := r.Proof == configs.ProofAttested && r.Outcome == Attested && r.Attestation != nil
		if !auto && !attested {
			return fmt.Errorf("item %s of proof %s has result %s; auto items are proved or failed, and attested ones rest on a document", quote(r.ID), quote(string(r.Proof)), quote(string(r.Outcome)))
		}
	}
	return nil
}

func quote(s string) string { return strconv.QuoteToASCII(printable.Clip(s, maxText)) }

// Signed is a statement with who signed it.
type Signed struct {
	Statement
	Digest string // of the evidence
	By     []dsse.Signed
}

// Verdict is the state of one item over all statements.
type Verdict struct {
	Result
	Evidence string `json:"evidence,omitempty"` // digest of the statement that it rests on
}

// Merge returns the state of every item of a checklist: the newest statement about an item
// counts, so that a proof that fails later is not hidden behind an older one. Statements of
// another checklist, or of an older text of it, count for nothing, and neither does an
// attestation that names somebody else than the signer.
func Merge(list Checklist, items []configs.ChecklistItem, statements []Signed) []Verdict {
	ordered := slices.Clone(statements)
	slices.SortStableFunc(ordered, func(a, b Signed) int { return b.IssuedAt.Compare(a.IssuedAt) })
	out := make([]Verdict, 0, len(items))
	for _, one := range items {
		v := Verdict{Result: Result{ID: one.ID, Control: one.Control, Title: one.Title, Proof: one.Proof, Outcome: Missing, Detail: missing(one.Proof)}}
		for i := range ordered {
			s := &ordered[i]
			if r := s.item(list, one); r != nil {
				v.Result, v.Evidence = *r, s.Digest
				v.Control, v.Title = one.Control, one.Title
				break
			}
		}
		out = append(out, v)
	}
	return out
}

func missing(p configs.Proof) string {
	if p == configs.ProofAttested {
		return "it is not attested yet; run chaperonectl plugin compliance with --attest ITEM=FILE"
	}
	return "it was not checked; run chaperonectl plugin compliance"
}

// item returns a statement's result of an item, nil if it does not count.
func (s *Signed) item(list Checklist, one configs.ChecklistItem) *Result {
	if s.Checklist != list {
		return nil
	}
	i := slices.IndexFunc(s.Items, func(r Result) bool { return r.ID == one.ID && r.Proof == one.Proof })
	if i < 0 {
		return nil
	}
	r := &s.Items[i]
	if a := r.Attestation; a != nil && !slices.ContainsFunc(s.By, func(by dsse.Signed) bool { return by.Role == a.Role && by.Identity == a.Identity }) {
		return nil
	}
	return r
}

// Done reports whether every item is proved or attested.
func Done(all []Verdict) bool {
	return !slices.ContainsFunc(all, func(v Verdict) bool { return v.Outcome != Proved && v.Outcome != Attested })
}
