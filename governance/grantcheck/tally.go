package grantcheck

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"time"

	"github.com/chaperone-proxy/chaperone/internal/dsse"
)

// decision is one verified decision and where it stands.
type decision struct {
	Approval
	index int
}

// tallier counts decisions.
type tallier struct {
	root  *dsse.Root
	r     Request
	now   time.Time
	late  bool            // approvals that have ended count as well
	there map[string]bool // digests of the decisions that are verified
	count Count

	approved  []decision
	rejected  []decision
	withdrawn []decision
}

func tally(root *dsse.Root, decisions []*dsse.Envelope, r Request, need []RoleMin, now time.Time, late bool) Count {
	t := &tallier{root: root, r: r, now: now, late: late, there: map[string]bool{}}
	var verified []decision
	for i, e := range decisions {
		a, err := t.read(e)
		if err != nil { // a rejection with another signature in its place is as good as deleted
			t.void(decision{index: i}, nil, err.Error())
			continue
		}
		t.there[e.Digest()] = true
		verified = append(verified, decision{*a, i})
	}
	for _, d := range verified {
		t.sort(d)
	}
	t.withdraw()
	t.assign(need)
	return t.count
}

// read verifies a decision and that its identity signed it in its role.
func (t *tallier) read(e *dsse.Envelope) (*Approval, error) {
	doc, err := t.root.Verify(e, dsse.KindApproval)
	if err != nil {
		return nil, err
	}
	var a Approval
	if err := dsse.Decode(doc.Payload, &a); err != nil {
		return nil, fmt.Errorf("read approval: %w", err)
	}
	signed := doc.Identities(a.Role)
	if a.Decision == DecisionApprove && !slices.Contains(t.r.Authors, a.Identity) { // an author does not help another to approve either
		signed = slices.DeleteFunc(signed, func(identity string) bool { return slices.Contains(t.r.Authors, identity) })
	}
	switch {
	case !slices.ContainsFunc(doc.Signed, func(s dsse.Signed) bool { return s.Role == a.Role && s.Identity == a.Identity }):
		return nil, fmt.Errorf("it states identity %s in role %s, and no key of these signed it", quote(a.Identity), quote(a.Role))
	case len(signed) < t.root.Threshold(a.Role):
		return nil, fmt.Errorf("it is signed by %d of %d of role %s who are no authors", len(signed), t.root.Threshold(a.Role), a.Role)
	case a.IssuedAt.IsZero():
		return nil, errors.New("it has no issuedAt")
	}
	return &a, nil
}

// sort puts a decision with its like. A rejection blocks whatever else is wrong with it.
func (t *tallier) sort(d decision) {
	switch {
	case d.Submission != t.r.Submission:
		t.void(d, &d.Approval, fmt.Sprintf("it is about submission %s, and this one is %s", quote(d.Submission), t.r.Submission))
	case d.Decision == DecisionReject:
		t.rejected = append(t.rejected, d)
	case d.IssuedAt.After(t.now.Add(MaxAhead)):
		t.void(d, &d.Approval, "its issuedAt "+stamp(d.IssuedAt)+" is in the future")
	case d.Decision == DecisionWithdraw:
		t.withdrawn = append(t.withdrawn, d)
	case d.Decision == DecisionAnnotate:
		t.count.Annotations = append(t.count.Annotations, d.Approval)
	case d.Decision != DecisionApprove:
		t.void(d, &d.Approval, fmt.Sprintf("its decision %s is not approve, reject, withdraw or annotate", quote(string(d.Decision))))
	default:
		if reason := t.doubt(&d.Approval); reason != "" {
			t.void(d, &d.Approval, reason)
			return
		}
		t.approved = append(t.approved, d)
	}
}

// doubt returns why an approval does not count; "" if it does.
func (t *tallier) doubt(a *Approval) string {
	switch {
	case slices.Contains(t.r.Authors, a.Identity):
		return "it is by an author of the submission, who never approves"
	case !t.late && !a.ExpiresAt.IsZero() && !t.now.Before(a.ExpiresAt):
		return "it expired at " + stamp(a.ExpiresAt)
	case a.IssuedAt.Before(t.r.After):
		return "its issuedAt " + stamp(a.IssuedAt) + " is before what it reviews, of " + stamp(t.r.After)
	case t.r.Grant == "":
		return "no grant is composed yet"
	}
	for _, digest := range a.Rejections {
		if !t.there[digest] {
			return "rejection " + quote(digest) + ", which was there when it was signed, is missing or no longer verified; put its file back"
		}
	}
	for _, d := range []struct{ name, got, want string }{
		{"grant", a.Grant, t.r.Grant},
		{"guardrail", a.Guardrail, t.r.Guardrail},
		{"rubric", a.Rubric, t.r.Rubric},
		{"score", strconv.Itoa(a.Score), strconv.Itoa(t.r.Score)},
		{"band", a.Band, t.r.Band},
	} {
		if d.got != d.want {
			return fmt.Sprintf("its %s is %s, and that of the grant is %s", d.name, quote(d.got), quote(d.want))
		}
	}
	for _, d := range []struct {
		name      string
		got, want []string
	}{{"exemptions", a.Exemptions, t.r.Exemptions}, {"evidence", a.Evidence, t.r.Evidence}} {
		if !sameSet(d.got, d.want) {
			return fmt.Sprintf("its %s are not those of the grant: %s", d.name, difference(d.got, d.want))
		}
	}
	return ""
}

// withdraw applies the withdrawals: of an identity's decisions up to each of them. A
// rejection of the same time stays.
func (t *tallier) withdraw() {
	for _, d := range t.rejected {
		if !slices.ContainsFunc(t.withdrawn, func(w decision) bool { return w.Identity == d.Identity && w.IssuedAt.After(d.IssuedAt) }) {
			t.count.Rejected = append(t.count.Rejected, d.Approval)
		}
	}
	for _, d := range t.approved {
		if slices.ContainsFunc(t.withdrawn, func(w decision) bool { return w.Identity == d.Identity && !w.IssuedAt.Before(d.IssuedAt) }) {
			t.void(d, &d.Approval, "it was withdrawn at the same time or later; decide again")
			continue
		}
		t.count.Valid = append(t.count.Valid, d.Approval)
	}
}

func (t *tallier) void(d decision, a *Approval, reason string) {
	t.count.Void = append(t.count.Void, VoidDecision{d.index, a, reason})
}

// assign gives each identity one of the roles that it approved in, so that as many
// approvals as possible are there, and of these the ones that last longest.
func (t *tallier) assign(need []RoleMin) {
	slots := slots(need)
	identities := t.byIdentity()
	holder := make([]string, len(slots)) // the identity of each slot
	var place func(identity string, tried []bool) bool
	place = func(identity string, tried []bool) bool {
		for i, role := range slots {
			if tried[i] || t.approval(identity, role) == nil {
				continue
			}
			tried[i] = true
			if holder[i] == "" || place(holder[i], tried) {
				holder[i] = identity
				return true
			}
		}
		return false
	}
	for _, identity := range identities {
		place(identity, make([]bool, len(slots)))
	}
	for i, role := range slots {
		if holder[i] == "" {
			t.miss(role)
			continue
		}
		if a := t.approval(holder[i], role); !a.ExpiresAt.IsZero() {
			t.count.Until = earliest(t.count.Until, a.ExpiresAt)
		}
	}
}

// slots returns a role for each approval that is needed.
func slots(need []RoleMin) (out []string) {
	for _, n := range need {
		for range min(max(n.Min, 1), maxEnvelopes+1) { // more can never be there
			out = append(out, n.Role)
		}
	}
	return out
}

// byIdentity returns the identities that approve, those whose approval lasts longest first.
func (t *tallier) byIdentity() []string {
	ends := map[string]time.Time{}
	var out []string
	for _, a := range t.count.Valid {
		end := a.ExpiresAt
		if end.IsZero() {
			end = farFuture()
		}
		if ends[a.Identity].IsZero() {
			out = append(out, a.Identity)
		}
		if end.After(ends[a.Identity]) {
			ends[a.Identity] = end
		}
	}
	slices.SortFunc(out, func(a, b string) int { return cmp.Or(ends[b].Compare(ends[a]), cmp.Compare(a, b)) })
	return out
}

// approval returns the identity's approval in the role that lasts longest, or nil.
func (t *tallier) approval(identity, role string) *Approval {
	var best *Approval
	for i := range t.count.Valid {
		a := &t.count.Valid[i]
		if a.Identity != identity || a.Role != role {
			continue
		}
		if best == nil || a.ExpiresAt.IsZero() || !best.ExpiresAt.IsZero() && a.ExpiresAt.After(best.ExpiresAt) {
			best = a
		}
	}
	return best
}

func (t *tallier) miss(role string) {
	for i := range t.count.Missing {
		if t.count.Missing[i].Role == role {
			t.count.Missing[i].Min++
			return
		}
	}
	t.count.Missing = append(t.count.Missing, RoleMin{role, 1})
}

// farFuture is later than every time that RFC 3339 can state.
func farFuture() time.Time { return time.Date(10000, 1, 1, 0, 0, 0, 0, time.UTC) }

// earliest returns the earlier of two times; a zero time does not count.
func earliest(a, b time.Time) time.Time {
	if a.IsZero() || !b.IsZero() && b.Before(a) {
		return b
	}
	return a
}

func sameSet(a, b []string) bool {
	return slices.Equal(slices.Sorted(slices.Values(a)), slices.Sorted(slices.Values(b)))
}

// difference names the first element that only one of two sets has.
func difference(got, want []string) string {
	for _, w := range want {
		if !slices.Contains(got, w) {
			return "it lacks " + quote(w)
		}
	}
	for _, g := range got {
		if !slices.Contains(want, g) {
			return "it has " + quote(g) + " more"
		}
	}
	return "one of them is given twice"
}

func stamp(t time.Time) string { return t.UTC().Format(time.RFC3339) }

// quote returns text of a document as it may be printed.
func quote(s string) string {
	const longest = 100
	if len(s) > longest {
		s = s[:longest] + "..."
	}
	return strconv.QuoteToASCII(s)
}
