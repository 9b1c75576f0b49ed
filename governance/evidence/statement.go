package evidence

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/chaperone-proxy/chaperone/governance/grantcheck"
	"github.com/chaperone-proxy/chaperone/internal/dsse"
)

// maxSubjects bounds the subjects of a statement.
const maxSubjects = 16

// maxAhead is how far ahead of the clock a time may be.
const maxAhead = 5 * time.Minute

// Item is a verified statement.
type Item struct {
	PredicateType string
	// Digest is that of the envelope's payload.
	Digest  string
	Subject []Subject
	// IssuedAt is when the predicate was made, and ObservedAt when the tool ran: the earlier of
	// the two if the source states no time.
	IssuedAt   time.Time
	ObservedAt time.Time
	// ExpiresAt is zero for evidence without an end.
	ExpiresAt time.Time
	// Replaces are digests of older statements that this one replaces.
	Replaces []string
	// Signed are the signers in the roles that sign this predicate type and reached their
	// threshold.
	Signed    []dsse.Signed
	Predicate json.RawMessage

	stated   time.Time      // by the source; zero if it states none
	need     map[string]int // the thresholds of all roles that sign this type, as [united] adds signers; 1 for one that is not there
	findings *FindingsPredicate
}

// Artifact is a subject with the digest sha256:HEX.
func Artifact(name, digest string) (Subject, error) {
	if !isDigest(digest) {
		return Subject{}, fmt.Errorf("digest %s is not sha256: and 64 hexadecimal digits in lower case", quote(digest))
	}
	return Subject{Name: name, Digest: map[string]string{"sha256": strings.TrimPrefix(digest, "sha256:")}}, nil
}

// New returns the in-toto Statement v1 to sign as a document of kind evidence.
func New(subject []Subject, predicateType string, predicate json.RawMessage) ([]byte, error) {
	out := inTotoStatement{typeStatement, subject, predicateType, predicate}
	payload, err := Canonical(out)
	if err != nil {
		return nil, err
	}
	if _, err := parse(payload); err != nil {
		return nil, fmt.Errorf("make evidence: %w", err)
	}
	return payload, nil
}

// Read verifies an envelope of kind evidence. A role that lists the predicate type has to
// reach its threshold: a signature of another role counts for nothing.
func Read(root *dsse.Root, env *dsse.Envelope) (Item, error) {
	doc, err := root.Verify(env, dsse.KindEvidence)
	if err != nil {
		return Item{}, fmt.Errorf("read evidence: %w", err)
	}
	item, err := parse(doc.Payload)
	if err != nil {
		return Item{}, fmt.Errorf("read evidence %s: %w", doc.Digest, err)
	}
	item.Digest, item.need = doc.Digest, map[string]int{}
	var roles []string
	for _, role := range root.Spec().Roles {
		if !slices.Contains(role.Kinds, dsse.KindEvidence) || !slices.Contains(role.PredicateTypes, item.PredicateType) {
			continue
		}
		roles = append(roles, role.Name)
		item.need[role.Name] = root.Threshold(role.Name)
		if len(doc.Identities(role.Name)) < root.Threshold(role.Name) {
			continue
		}
		for _, s := range doc.Signed {
			if s.Role == role.Name {
				item.Signed = append(item.Signed, s)
			}
		}
	}
	switch {
	case len(roles) == 0:
		return Item{}, fmt.Errorf("read evidence %s: no role of the trust root signs predicate type %s; list it in predicateTypes of a role", doc.Digest, quote(item.PredicateType))
	case len(item.Signed) == 0:
		return Item{}, fmt.Errorf("read evidence %s: predicate type %s is signed by role %s; the signers are not of it: sign with one of its keys",
			doc.Digest, quote(item.PredicateType), strings.Join(roles, " or "))
	}
	if item.PredicateType == TypeFindings { // the risk and the check for blocking findings both use them
		item.findings, _ = readFindings(&item) // an error is that of [Findings]
	}
	return item, nil
}

// parse reads a statement, strictly in the parts that this project relies on.
func parse(payload []byte) (Item, error) {
	var s inTotoStatement
	if err := decode(payload, &s); err != nil {
		return Item{}, err
	}
	if s.Type != typeStatement {
		return Item{}, fmt.Errorf("_type is %s; %s is required", quote(s.Type), typeStatement)
	}
	var r reader
	item := Item{PredicateType: r.required("predicateType", s.PredicateType), Subject: s.Subject, Predicate: s.Predicate}
	if len(s.Subject) == 0 || len(s.Subject) > maxSubjects {
		r.fail("it has %d subjects; 1 to %d are allowed", len(s.Subject), maxSubjects)
	}
	for i, subject := range s.Subject {
		r.name(fmt.Sprintf("subject[%d].name", i), subject.Name)
		if !isDigest("sha256:" + subject.Digest["sha256"]) {
			r.fail("subject[%d] has no sha256 digest of 64 hexadecimal digits in lower case", i)
		}
	}
	item.times(&r)
	return item, r.err
}

// times reads the times of a predicate: those of this project's, or those of SLSA.
func (i *Item) times(r *reader) {
	var head struct {
		IssuedAt  string   `json:"issuedAt"`
		ExpiresAt string   `json:"expiresAt"`
		Replaces  []string `json:"replaces"`
		Source    struct {
			ObservedAt string `json:"observedAt"`
		} `json:"source"`
		// EndedAt is that of a pilot.
		EndedAt string `json:"endedAt"`
		Run     struct {
			Metadata struct {
				Finished string `json:"finishedOn"`
			} `json:"metadata"`
		} `json:"runDetails"`
	}
	if err := json.Unmarshal(i.Predicate, &head); err != nil {
		r.fail("predicate is not an object with times: issuedAt, expiresAt")
		return
	}
	issued := head.IssuedAt
	if i.PredicateType == TypeSLSA {
		issued = head.Run.Metadata.Finished
	}
	at := r.instant("issuedAt", issued)
	if at.IsZero() {
		r.fail("predicate has no time: issuedAt is required (runDetails.metadata.finishedOn for SLSA)")
	}
	i.IssuedAt, i.ObservedAt = at, at
	if i.stated = r.instant("source.observedAt", cmp.Or(head.Source.ObservedAt, head.EndedAt)); !i.stated.IsZero() && i.stated.Before(at) {
		i.ObservedAt = i.stated
	}
	i.ExpiresAt, i.Replaces = r.instant("expiresAt", head.ExpiresAt), head.Replaces
	if len(i.Replaces) > maxSubjects || slices.ContainsFunc(i.Replaces, func(d string) bool { return !isDigest(d) }) {
		r.fail("replaces has more than %d entries, or one that is not sha256: and 64 hexadecimal digits", maxSubjects)
	}
	if !i.ExpiresAt.IsZero() && !i.ExpiresAt.After(at) {
		r.fail("expiresAt %s is not after issuedAt %s", i.ExpiresAt.Format(time.RFC3339), at.Format(time.RFC3339))
	}
}

// instant reads a time with its zone (RFC 3339). An empty one is zero.
func (r *reader) instant(field, s string) time.Time {
	if s == "" {
		return time.Time{}
	}
	at, err := time.Parse(time.RFC3339Nano, s)
	if err != nil {
		r.fail("%s %s is not a time with a zone (RFC 3339)", field, quote(s))
		return time.Time{}
	}
	return at.UTC()
}

// Target is what evidence has to be about.
type Target struct {
	// Artifact and Manifest are digests, sha256:HEX. Manifest may be empty.
	Artifact, Manifest string
	// PURL is the artifact's package URL, if it has one.
	PURL string
	// Authors are the identities that signed the submission.
	Authors []string
}

// Requirement is a guardrail's demand on evidence of one type.
type Requirement struct {
	PredicateType string
	// Role has to have signed, by an identity that is not an author. An empty role stands for
	// any role that signs this type.
	Role string
	// MaxAge counts from when the tool ran; no bound if 0.
	MaxAge time.Duration
}

// StaleError is the error of evidence that was good and is too old now.
type StaleError struct {
	Since time.Time
	text  string
}

// Error states since when the evidence is too old.
func (e *StaleError) Error() string { return e.text }

// Check returns why an item does not count for a requirement at a time, or nil. An error of
// type [*StaleError] is about its age alone.
func (i *Item) Check(t Target, req Requirement, now time.Time) error {
	if i.PredicateType != req.PredicateType {
		return fmt.Errorf("evidence %s is of type %s; %s is required", i.Digest, quote(i.PredicateType), req.PredicateType)
	}
	if err := i.About(t); err != nil {
		return err
	}
	if i.PredicateType == TypeTestResult {
		var p TestPredicate
		if err := strict(i, &p); err != nil {
			return err
		}
		if p.Result != Passed && p.Result != Warned || p.Failed > 0 {
			return fmt.Errorf("evidence %s: %d tests failed (%s); fix them, and replace it: evidence add --replaces", i.Digest, p.Failed, quote(p.Result))
		}
	}
	if i.IssuedAt.After(now.Add(maxAhead)) {
		return fmt.Errorf("evidence %s: issuedAt %s is in the future; the time is %s", i.Digest, i.IssuedAt.Format(time.RFC3339), now.UTC().Format(time.RFC3339))
	}
	if req.Role != "" && !i.SignedAs(req.Role, t.Authors) {
		return fmt.Errorf("evidence %s is not signed by role %s, or by authors alone: somebody else of role %s has to sign it", i.Digest, req.Role, req.Role)
	}
	return i.fresh(req.MaxAge, now)
}

// manifestName is the subject of a request's manifest.
const manifestName = "manifest.yaml"

// About returns an error unless the artifact is a subject. Every other subject has to be the
// manifest: a statement about more than the request could have been made for another one.
func (i *Item) About(t Target) error {
	if !isDigest(t.Artifact) {
		return errors.New("the artifact's digest is not known: state it in the manifest")
	}
	var found bool
	for _, s := range i.Subject {
		switch digest := "sha256:" + s.Digest["sha256"]; digest {
		case t.Artifact:
			found = true
		case t.Manifest:
		default:
			if s.Name == manifestName {
				return fmt.Errorf("evidence %s is about the manifest %s, which has changed since; remove the file and add the report again", i.Digest, digest)
			}
			return fmt.Errorf("evidence %s is about %s; the artifact is %s: scan that one", i.Digest, digest, t.Artifact)
		}
	}
	if !found {
		return fmt.Errorf("evidence %s is not about the artifact %s", i.Digest, t.Artifact)
	}
	return nil
}

// SignedAs reports whether identities that are not authors signed in a role, as many as the role
// needs.
func (i *Item) SignedAs(role string, authors []string) bool {
	var others []string
	for _, s := range i.Signed {
		if s.Role == role && !slices.Contains(authors, s.Identity) && !slices.Contains(others, s.Identity) {
			others = append(others, s.Identity)
		}
	}
	return len(others) >= max(i.need[role], 1)
}

// Independent reports whether identities that are not authors signed in some role, as many as it
// needs.
func (i *Item) Independent(authors []string) bool {
	return slices.ContainsFunc(i.Signed, func(s dsse.Signed) bool { return i.SignedAs(s.Role, authors) })
}

// fresh returns a [*StaleError] for evidence past its end or its maximal age.
func (i *Item) fresh(maxAge time.Duration, now time.Time) error {
	end, why := i.ExpiresAt, "its own expiresAt"
	if maxAge > 0 {
		if aged := i.ObservedAt.Add(maxAge); end.IsZero() || aged.Before(end) {
			end, why = aged, fmt.Sprintf("the guardrail's maxAge %s", maxAge)
		}
	}
	if end.IsZero() || now.Before(end) {
		return nil
	}
	return &StaleError{Since: end, text: fmt.Sprintf("evidence %s of %s is too old since %s (%s): add a new one",
		i.Digest, i.ObservedAt.Format(time.RFC3339), end.UTC().Format(time.RFC3339), why)}
}

// Ref returns what a grant and an approval refer to. Its IssuedAt is when the tool ran, from
// which ages count.
func (i *Item) Ref() grantcheck.EvidenceRef {
	return grantcheck.EvidenceRef{PredicateType: i.PredicateType, Digest: i.Digest, IssuedAt: i.ObservedAt, ExpiresAt: i.ExpiresAt}
}

// Current returns the items without those that another one replaces, sorted by digest; one
// statement in two files has the signers of both. A newer scan alone replaces nothing: it may
// be of another part of the artifact.
func Current(items []Item) []Item {
	all := united(items)
	gone := map[string]bool{}
	for i := range all {
		for j := range all {
			if len(all[i].Replaces) > 0 && all[i].replaces(&all[j]) {
				gone[all[j].Digest] = true
			}
		}
	}
	return slices.DeleteFunc(all, func(i Item) bool { return gone[i.Digest] })
}

// replaces reports whether an item replaces an older one of its type. A signer of the
// older one has to have signed the new one in the same role, so that an author cannot replace
// the scan of somebody else.
func (i *Item) replaces(old *Item) bool {
	return i.Digest != old.Digest && i.PredicateType == old.PredicateType && slices.Contains(i.Replaces, old.Digest) &&
		!i.ObservedAt.Before(old.ObservedAt) && slices.ContainsFunc(i.Signed, func(s dsse.Signed) bool {
		return slices.ContainsFunc(old.Signed, func(o dsse.Signed) bool { return o.Role == s.Role && o.Identity == s.Identity })
	})
}

// united returns items sorted by digest, each once: a statement that two people signed in a
// file each has the signers of both.
func united(items []Item) []Item {
	slices.SortStableFunc(items, func(a, b Item) int { return strings.Compare(a.Digest, b.Digest) })
	var out []Item
	for _, item := range items {
		item.Signed = slices.Clone(item.Signed)
		if n := len(out); n > 0 && out[n-1].Digest == item.Digest {
			out[n-1].Signed = append(out[n-1].Signed, item.Signed...)
			continue
		}
		out = append(out, item)
	}
	for i := range out {
		slices.SortFunc(out[i].Signed, func(a, b dsse.Signed) int {
			return cmp.Or(cmp.Compare(a.Role, b.Role), cmp.Compare(a.Identity, b.Identity), cmp.Compare(a.KeyID, b.KeyID))
		})
		out[i].Signed = slices.Compact(out[i].Signed)
	}
	return out
}

// BuildLevel returns the level of SLSA's Build track that a provenance shows: 1 for one that
// authors alone signed, 2 for SLSA's own predicate signed by somebody else, and otherwise the
// level that the signer verified. It is 0 for an item that is no provenance.
func (i *Item) BuildLevel(authors []string) int {
	switch {
	case i.PredicateType != TypeProvenance && i.PredicateType != TypeSLSA:
		return 0
	case !i.Independent(authors):
		return 1
	case i.PredicateType == TypeSLSA:
		return 2
	}
	var p ProvenancePredicate
	if err := strict(i, &p); err != nil || p.Level < 1 || p.Level > 3 {
		return 1
	}
	return p.Level
}
