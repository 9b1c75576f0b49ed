package grantcheck

import (
	"time"

	"github.com/chaperone-proxy/chaperone/internal/dsse"
)

// Decision is what a reviewer decided.
type Decision string

// The decisions.
const (
	DecisionApprove Decision = "approve"
	// DecisionReject blocks the submission until the same identity withdraws it.
	DecisionReject Decision = "reject"
	// DecisionWithdraw takes back what the same identity decided of the submission before.
	DecisionWithdraw Decision = "withdraw"
	// DecisionAnnotate is a comment.
	DecisionAnnotate Decision = "annotate"
)

// Approval is what a reviewer signs, in kind approval. An approval has every digest of
// what was reviewed; the other decisions need the submission alone.
type Approval struct {
	Role     string   `json:"role"`
	Identity string   `json:"identity"` // as in the trust root
	Decision Decision `json:"decision"`
	// Submission is the digest of the author's submission.
	Submission string `json:"submission"`
	// Grant is the digest of the exact payload of the grant.
	Grant     string `json:"grant,omitempty"`
	Guardrail string `json:"guardrail,omitempty"` // see [GuardrailDigest]
	Rubric    string `json:"rubric,omitempty"`
	// Policy are the guardrails and the rubric themselves: see [Binding.Policy].
	Policy []PolicyRef `json:"policy,omitempty"`
	// Exemptions and Evidence are digests, in any order.
	Exemptions []string `json:"exemptions,omitempty"`
	Evidence   []string `json:"evidence,omitempty"`
	Score      int      `json:"score"`
	Band       string   `json:"band,omitempty"`
	// Rejections are the digests of the rejections that were there. An approval counts only
	// beside them, verified, so that one which is deleted or spoiled afterwards is missed.
	Rejections []string `json:"rejections,omitempty"`
	Comment    string   `json:"comment,omitempty"`
	// IssuedAt is when it was signed.
	IssuedAt time.Time `json:"issuedAt"`
	// ExpiresAt is when it no longer counts; none by default.
	ExpiresAt time.Time `json:"expiresAt,omitzero"`
}

// Request is what approvals are counted for. [Check] makes it from a bundle.
type Request struct {
	Submission string // digest
	Grant      string // digest of the exact payload; "" while none is composed: nothing counts as approved then
	Guardrail  string
	Rubric     string
	Exemptions []string
	Evidence   []string
	Score      int
	Band       string
	Authors    []string  // identities that signed the submission
	After      time.Time // the latest time of what is reviewed; an earlier approval is void
}

// Count is what the signed decisions about a request amount to.
type Count struct {
	Valid       []Approval     // approvals that count
	Void        []VoidDecision // decisions that do not, each with the reason
	Rejected    []Approval     // rejections that block
	Annotations []Approval
	Missing     []RoleMin // approvals that are still needed
	// Until is when the first approval that is counted ends; the zero time for none.
	Until time.Time
}

// VoidDecision is a decision that does not count.
type VoidDecision struct {
	Index    int       // of the envelope
	Approval *Approval // nil if it was not verified
	Reason   string
}

// Tally counts decisions about a request against the approvals that are needed. One
// identity counts once, in one role, and an author of the submission never.
func Tally(root *dsse.Root, decisions []*dsse.Envelope, r Request, need []RoleMin, now time.Time) Count {
	return tally(root, decisions, r, need, now, false)
}
