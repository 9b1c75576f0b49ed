package compliance

import (
	"cmp"
	"fmt"
	"iter"
	"slices"
	"strings"
	"time"

	"github.com/chaperone-proxy/chaperone/authz"
	"github.com/chaperone-proxy/chaperone/configs"
	"github.com/chaperone-proxy/chaperone/governance/pilot"
	"github.com/chaperone-proxy/chaperone/internal/phrase"
	"github.com/chaperone-proxy/chaperone/internal/printable"
)

// Outcome is the result of one item.
type Outcome string

// The outcomes.
const (
	Proved   Outcome = "proved"
	Failed   Outcome = "failed"
	Attested Outcome = "attested"
	Missing  Outcome = "missing"
)

// Result is the result of one item.
type Result struct {
	ID      string        `json:"id"`
	Control string        `json:"control"`
	Title   string        `json:"title"`
	Proof   configs.Proof `json:"proof"`
	Outcome Outcome       `json:"result"`
	// Detail is what was checked or what is wrong, on one line and escaped.
	Detail string `json:"detail"`
	// Rules and Decisions show the result: ids of permissions, and of decisions in the log.
	Rules     []string `json:"rules,omitempty"`
	Decisions []string `json:"decisions,omitempty"`
	// Accesses is how many accesses of the log were checked.
	Accesses    uint64       `json:"accesses,omitempty"`
	Attestation *Attestation `json:"attestation,omitempty"`
}

// Attestation is the document that an item of proof attested rests on.
type Attestation struct {
	Document string `json:"document"` // its digest, sha256:HEX
	Name     string `json:"name"`     // of its file
	Role     string `json:"role"`     // in which the signer of the statement attests
	Identity string `json:"identity"` // the signer
}

// Access is one access of the log that ended.
type Access struct {
	Decision string // its id
	Plugin   string
	Rule     string // "" for one that no rule grants
	Scheme   authz.Scheme
	Host     string
	Region   string // of the destination, as a guardrail defines it; "" outside of regions
	TLS      string // the version that was negotiated with the destination, as in 1.3; "" if none is recorded
}

// Input is what the items are checked against.
type Input struct {
	// Declared is the access that the manifest declares: the ids of its rules are those of the
	// permissions.
	Declared authz.Grant
	// Guardrails are those that apply to the plugin.
	Guardrails []authz.Guardrail
	// Trace is the statement about the pilot, and Accesses are those of its log, which was
	// verified to be the trace's. Both are nil without a pilot.
	Trace    *pilot.Trace
	Accesses iter.Seq2[Access, error]
	// Attested are documents by the id of their item.
	Attested map[string]Attestation
}

// Bounds of a result.
const (
	maxDecisions = 10
	maxText      = 256
)

// item is one item with what is found about it.
type item struct {
	Result
	query configs.ChecklistQuery
	bad   uint64 // accesses that contradict it
	// check looks at one access, and returns what is wrong with it. nil: accesses do not matter.
	check func(*Access) string
}

// Check checks items. An item of proof attested without a document is left out: somebody
// else may attest it. The error is that of reading the log.
func Check(items []configs.ChecklistItem, in Input) ([]Result, error) {
	var all []*item
	rules := map[string]*authz.Rule{}
	for i := range in.Declared.Rules {
		rules[in.Declared.Rules[i].ID] = &in.Declared.Rules[i]
	}
	for _, one := range items {
		it := &item{Result: Result{ID: one.ID, Control: one.Control, Title: one.Title, Proof: one.Proof}}
		if one.Proof == configs.ProofAttested {
			if document, ok := in.Attested[one.ID]; ok {
				it.Outcome, it.Attestation, it.Detail = Attested, &document, "by "+printable.Text(document.Name)
				all = append(all, it)
			}
			continue
		}
		it.Outcome = Proved
		if one.Query == nil {
			it.fail("the checklist states no query for it")
		} else {
			it.query = *one.Query
			it.prepare(&in, rules)
		}
		all = append(all, it)
	}
	if err := walk(all, &in); err != nil {
		return nil, err
	}
	out := make([]Result, 0, len(all))
	for _, it := range all {
		out = append(out, it.finish())
	}
	return out, nil
}

// walk has the items look at every access of the log.
func walk(items []*item, in *Input) error {
	if in.Accesses == nil {
		return nil
	}
	for a, err := range in.Accesses {
		if err != nil {
			return fmt.Errorf("read the pilot's log: %w", err)
		}
		for _, it := range items {
			if it.check == nil {
				continue
			}
			it.Accesses++
			if wrong := it.check(&a); wrong != "" {
				it.bad++
				if len(it.Decisions) < maxDecisions {
					it.Decisions = append(it.Decisions, printable.Clip(a.Decision, maxText))
				}
				it.fail("%s", wrong)
			}
		}
	}
	return nil
}

// maxFaults bounds the faults that a result lists.
const maxFaults = 5

// fail notes a fault. The same one is listed once.
func (it *item) fail(format string, args ...any) {
	text := printable.Clip(fmt.Sprintf(format, args...), maxText)
	switch {
	case it.Outcome != Failed:
		it.Outcome, it.Detail = Failed, text
	case !strings.Contains(it.Detail, text) && strings.Count(it.Detail, "; ") < maxFaults:
		it.Detail += "; " + text
	}
}

// rule fails the item for a rule.
func (it *item) rule(r *authz.Rule, format string, args ...any) {
	it.Rules = append(it.Rules, r.ID)
	it.fail("permission %s %s", r.ID, fmt.Sprintf(format, args...))
}

// shown lists the rules that prove an item.
func (it *item) shown(in *Input) {
	if it.Outcome == Proved {
		for i := range in.Declared.Rules {
			it.Rules = append(it.Rules, in.Declared.Rules[i].ID)
		}
	}
}

// finish returns the result.
func (it *item) finish() Result {
	r := it.Result
	if r.Outcome == Failed && it.bad > 0 {
		r.Detail += fmt.Sprintf(" (%d of %d accesses)", it.bad, r.Accesses)
	}
	slices.Sort(r.Rules)
	r.Rules = slices.Compact(r.Rules)
	return r
}

// prepare checks what does not need the log, and sets what does.
func (it *item) prepare(in *Input, rules map[string]*authz.Rule) {
	q := &it.query
	switch {
	case len(q.Regions) > 0:
		it.regions(in, rules)
	case q.TLSMin != "":
		it.tls(in)
	case q.Retention != "":
		it.retention(in)
	case len(q.Classes) > 0:
		it.classes(in)
	case q.CredentialLifetime > 0:
		it.credentials(in)
	case q.Undeclared != nil:
		it.undeclared(in)
	case q.Mediation > 0:
		it.mediation(in)
	default:
		it.fail("the query of the checklist is not supported by this version")
	}
}

// needLog fails an item that a pilot is needed for.
func (it *item) needLog(in *Input) bool {
	if in.Trace == nil || in.Accesses == nil {
		it.Outcome, it.Detail = Missing, "the log of a pilot is missing; run chaperonectl plugin pilot"
		return false
	}
	return true
}

// regions proves residency: every rule is enforced to regions of the list, and every access
// went to one.
func (it *item) regions(in *Input, rules map[string]*authz.Rule) {
	allowed := it.query.Regions
	for i := range in.Declared.Rules {
		r := &in.Declared.Rules[i]
		outside := slices.DeleteFunc(slices.Clone(r.Data.Regions), func(s string) bool { return slices.Contains(allowed, s) })
		switch {
		case len(r.Data.Regions) == 0:
			it.rule(r, "states no data.regions; write regions: [%s]", strings.Join(allowed, ", "))
		case len(outside) > 0:
			it.rule(r, "allows region %s", strings.Join(outside, ", "))
		}
	}
	if it.Outcome == Failed || !it.needLog(in) {
		return
	}
	it.shown(in)
	it.Detail = fmt.Sprintf("every permission is enforced to, and every access went to, region %s", strings.Join(allowed, " or "))
	it.check = func(a *Access) string {
		switch {
		case rules[a.Rule] == nil:
			return fmt.Sprintf("an access to %s is by no declared permission, so that its region is not enforced", host(a))
		case !slices.Contains(allowed, a.Region):
			return fmt.Sprintf("an access to %s went to region %s", host(a), cmp.Or(printable.Text(a.Region), "(none)"))
		}
		return ""
	}
}

// host returns the host of an access for a text.
func host(a *Access) string { return printable.Text(printable.Clip(a.Host, maxText)) }

// SpeaksTLS reports whether the sidecar itself makes the TLS connections of a scheme. The
// others are plain, or have TLS of the plugin's own.
func SpeaksTLS(scheme authz.Scheme) bool {
	return slices.Contains([]authz.Scheme{authz.SchemeHTTPS, authz.SchemePostgres, authz.SchemeRedis}, scheme)
}

// tls proves the floor of TLS: that of every rule, and the version that was negotiated for
// every access.
func (it *item) tls(in *Input) {
	const byDefault = "1.2"
	least := it.query.TLSMin
	for i := range in.Declared.Rules {
		r := &in.Declared.Rules[i]
		scheme := cmp.Or(r.To.Scheme, authz.SchemeHTTPS)
		switch version := cmp.Or(r.To.TLS.Min, byDefault); {
		case !SpeaksTLS(scheme):
			it.rule(r, "has scheme %s, where the sidecar does not make the TLS connection", scheme)
		case version < least:
			it.rule(r, "accepts TLS %s; write to: {tls: {min: %q}}", version, least)
		}
	}
	if it.Outcome == Failed || !it.needLog(in) {
		return
	}
	it.shown(in)
	it.Detail = fmt.Sprintf("the sidecar refuses an upstream below TLS %s for every permission, and negotiated at least it for every access", least)
	it.check = func(a *Access) string {
		switch version := a.TLS; {
		case !SpeaksTLS(a.Scheme):
			return fmt.Sprintf("an access to %s was by scheme %s, where the sidecar does not make the TLS connection", host(a), printable.Text(string(a.Scheme)))
		case version == "":
			return fmt.Sprintf("the log has no TLS version of an access to %s; run the pilot again with this version of Chaperone", host(a))
		case version < least:
			return fmt.Sprintf("an access to %s was by TLS %s", host(a), printable.Text(version))
		}
		return ""
	}
}

// retention proves that every rule states a retention, and at most this one. A sidecar
// cannot see what a destination keeps: it is as declared.
func (it *item) retention(in *Input) {
	most, _ := it.query.Retention.Duration()
	for i := range in.Declared.Rules {
		r := &in.Declared.Rules[i]
		kept, stated := r.Data.Retention.Duration()
		switch {
		case !stated:
			it.rule(r, "states no data.retention; write none, or a duration up to %s", it.query.Retention)
		case kept > most:
			it.rule(r, "states a retention of %s; at most %s is allowed", r.Data.Retention, it.query.Retention)
		}
	}
	if it.shown(in); it.Outcome == Proved {
		it.Detail = fmt.Sprintf("every permission declares a retention of at most %s", it.query.Retention)
	}
}

// classes proves that every rule states classes of data, and only these.
func (it *item) classes(in *Input) {
	for i := range in.Declared.Rules {
		r := &in.Declared.Rules[i]
		if len(r.Data.Classes) == 0 {
			it.rule(r, "states no data.classes")
		}
		for _, class := range r.Data.Classes {
			if !slices.Contains(it.query.Classes, class) {
				it.rule(r, "carries %s data", class)
			}
		}
	}
	if it.shown(in); it.Outcome == Proved {
		it.Detail = "every permission declares its classes of data, and no other ones"
	}
}

// credentials proves access controls: a guardrail bounds the life of leases, and no
// credential goes to a wildcard host or over plain http.
func (it *item) credentials(in *Input) {
	most, bound := time.Duration(it.query.CredentialLifetime), time.Duration(0)
	for i := range in.Guardrails {
		if one := time.Duration(in.Guardrails[i].Ceilings.CredentialLifetime); one > 0 && (bound == 0 || one < bound) {
			bound = one
		}
	}
	used := 0
	for i := range in.Declared.Rules {
		r := &in.Declared.Rules[i]
		if r.Credential == "" {
			continue
		}
		used++
		it.Rules = append(it.Rules, r.ID)
		switch {
		case r.WildcardCredential:
			it.fail("permission %s sends credential %s to a wildcard host", r.ID, r.Credential)
		case r.Insecure:
			it.fail("permission %s sends credential %s over plain http", r.ID, r.Credential)
		case bound == 0:
			it.fail("no guardrail bounds credentialLifetime; write ceilings: {credentialLifetime: %s}", it.query.CredentialLifetime)
		case bound > most:
			it.fail("the guardrails allow a credentialLifetime of %s; at most %s is allowed", bound, most)
		}
	}
	if it.Outcome == Proved {
		it.Detail = fmt.Sprintf("%s with a credential, none for a wildcard host or plain http; leases last at most %s", phrase.Count(used, "permission"), it.query.CredentialLifetime)
	}
}

func (it *item) undeclared(in *Input) {
	if !it.needLog(in) {
		return
	}
	found := in.Trace.UndeclaredMore
	for _, u := range in.Trace.Undeclared {
		found += u.Count
		if len(it.Decisions) < maxDecisions {
			it.Decisions = append(it.Decisions, u.Decisions...)
		}
	}
	it.Detail = fmt.Sprintf("%d accesses of the pilot were not declared", found)
	if found > uint64(max(*it.query.Undeclared, 0)) {
		it.fail("%d accesses of the pilot were not declared; at most %d are allowed", found, *it.query.Undeclared)
	}
}

func (it *item) mediation(in *Input) {
	if !it.needLog(in) {
		return
	}
	const hundredth = 100 // of a percent, in millionths
	m := in.Trace.Mediation
	it.Accesses = m.Admitted
	it.Detail = fmt.Sprintf("%d of %d connections were mediated", m.Admitted-min(m.Unmediated, m.Admitted), m.Admitted)
	if !m.Known || m.CompletenessPPM < int64(it.query.Mediation)*hundredth {
		it.fail("%d of %d connections were not mediated, and %s have to be", m.Unmediated, m.Admitted, it.query.Mediation)
	}
}
