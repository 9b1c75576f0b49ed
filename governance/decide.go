package governance

import (
	"cmp"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/chaperone-proxy/chaperone/governance/grantcheck"
	"github.com/chaperone-proxy/chaperone/internal/dsse"
)

// Ruling is what a reviewer decides about a request.
type Ruling struct {
	Role     string
	Identity string
	Decision grantcheck.Decision
	Comment  string
	// Digest is the digest of the grant that the reviewer read, or its first [ShortDigest]
	// hexadecimal digits or more, with or without sha256:. An approval needs it.
	Digest  string
	Expires time.Time // zero for no end
}

// Decide returns the payload that a reviewer signs. An approval states every digest of what
// was reviewed. It is refused where it could not count, so that a reviewer notices.
func (r *Repository) Decide(e *Evaluation, d Ruling, now time.Time) ([]byte, error) {
	q := e.Request
	if err := r.mayDecide(q, d); err != nil {
		return nil, err
	}
	a := grantcheck.Approval{
		Role: d.Role, Identity: d.Identity, Decision: d.Decision, Submission: q.SubmissionDigest,
		Comment: d.Comment, IssuedAt: now.UTC(), ExpiresAt: d.Expires.UTC(),
	}
	if d.Expires.IsZero() {
		a.ExpiresAt = time.Time{}
	}
	if d.Decision != grantcheck.DecisionApprove {
		if strings.TrimSpace(d.Comment) == "" {
			return nil, fmt.Errorf("%s %s: a comment is required, as in --comment 'Reads more than it needs'", d.Decision, q.Dir)
		}
		return json.Marshal(a)
	}
	if err := e.approvable(d); err != nil {
		return nil, fmt.Errorf("approve %s: %w", q.Dir, err)
	}
	asked := e.asked()
	a.Policy, a.Rejections = e.policy, r.rejections(q)
	a.Grant, a.Guardrail, a.Rubric, a.Exemptions, a.Evidence, a.Score, a.Band =
		asked.Grant, asked.Guardrail, asked.Rubric, asked.Exemptions, asked.Evidence, asked.Score, asked.Band
	return json.Marshal(a)
}

// rejections returns the digests of the verified rejections of a request, sorted.
func (r *Repository) rejections(q *Request) []string {
	var out []string
	for _, d := range q.Decisions {
		doc, err := r.Root.Verify(d.Envelope, dsse.KindApproval)
		if err != nil {
			continue
		}
		var a grantcheck.Approval
		if dsse.Decode(doc.Payload, &a) == nil && a.Decision == grantcheck.DecisionReject && a.Submission == q.SubmissionDigest {
			out = append(out, doc.Digest)
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// mayDecide refuses decisions that are nobody's in this role.
func (r *Repository) mayDecide(q *Request, d Ruling) error {
	switch {
	case q.Submission == nil:
		return fmt.Errorf("%s %s: it is not submitted yet", d.Decision, q.Dir)
	case !r.signs(d.Role, dsse.KindApproval):
		return fmt.Errorf("%s %s: role %q of the trust root signs no approvals", d.Decision, q.Dir, d.Role)
	case !slices.Contains(r.people(d.Role, nil), d.Identity):
		return fmt.Errorf("%s %s: no key of %s is in role %s; one of these has to sign: %s", d.Decision, q.Dir, d.Identity, d.Role, cmp.Or(strings.Join(r.people(d.Role, q.Authors), ", "), "nobody"))
	case d.Decision == grantcheck.DecisionApprove && slices.Contains(q.Authors, d.Identity):
		return fmt.Errorf("approve %s: %s submitted it, and an author never approves", q.Dir, d.Identity)
	}
	return nil
}

// approvable refuses an approval of what could not be issued, or was not read.
func (e *Evaluation) approvable(d Ruling) error {
	if problems := e.before(stageApprovals); len(problems) > 0 {
		return errors.New(problems[0].Message)
	}
	if len(e.Moved) > 0 {
		return errors.New(e.Moved[0].Text())
	}
	switch {
	case e.Draft == "" && len(e.stage(stageApprovals).Problems) > 0:
		return errors.New(e.stage(stageApprovals).Problems[0].Message)
	case e.Draft == "":
		return errors.New("no grant is composed yet")
	case d.Digest == "":
		return errors.New("state the grant that you reviewed, by the digest in the packet: --grant DIGEST")
	case !IsShortOf(e.Draft, d.Digest):
		return fmt.Errorf("the grant in the folder is %s, and %q was reviewed; review the one in the folder, and state at least %d digits", e.Draft, d.Digest, ShortDigest)
	}
	return nil
}

// ShortDigest is how many hexadecimal digits of a digest a person states at least. An author
// who makes both can look for a harmless and a harmful grant with the same digits, as by the
// nanoseconds of their times: for 12 digits that takes 2^24 attempts of each, for 32 digits 2^64.
const ShortDigest = 32

// IsShortOf reports whether short is a digest, or begins it.
func IsShortOf(digest, short string) bool {
	digits := strings.TrimPrefix(strings.ToLower(short), "sha256:")
	return len(digits) >= ShortDigest && strings.HasPrefix(strings.TrimPrefix(digest, "sha256:"), digits)
}

// signs reports whether a role signs a kind.
func (r *Repository) signs(role string, kind dsse.Kind) bool {
	return slices.ContainsFunc(r.Root.Spec().Roles, func(one dsse.RoleSpec) bool {
		return one.Name == role && slices.Contains(one.Kinds, kind)
	})
}

// Roles returns the roles that a key signs in, and its owner; "" if no role lists the key.
func (r *Repository) Roles(key dsse.PublicKey) (identity string, roles []string) {
	return RolesOf(r.Root, key)
}

// RolesOf is [Repository.Roles] of a trust root.
func RolesOf(root *dsse.Root, key dsse.PublicKey) (identity string, roles []string) {
	spec := root.Spec()
	if slices.Contains(spec.Revoked, key.KeyID()) {
		return "", nil
	}
	for _, role := range spec.Roles {
		for _, k := range role.Keys {
			if keyID(k) == key.KeyID() {
				identity, roles = k.Identity, append(roles, role.Name)
			}
		}
	}
	return identity, roles
}

// keyID returns the id of a key of a verified trust root.
func keyID(k dsse.KeySpec) string {
	public, err := base64.StdEncoding.DecodeString(k.Ed25519)
	if err != nil {
		return "" // a root with such a key is not verified
	}
	return dsse.PublicKey(public).KeyID()
}
