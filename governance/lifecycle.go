package governance

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"path"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/chaperone-proxy/chaperone/authz"
	"github.com/chaperone-proxy/chaperone/configs"
	"github.com/chaperone-proxy/chaperone/governance/grantcheck"
	"github.com/chaperone-proxy/chaperone/internal/dsse"
	"github.com/chaperone-proxy/chaperone/policy"
)

// Subject returns the policy of a grant under the guardrails of its plugin, for package
// policy to replay and to compare.
func (r *Repository) Subject(payload []byte, now time.Time) (policy.Subject, error) {
	object, err := configs.ParseObject[configs.GrantSpec](FileDraft, payload)
	if err != nil {
		return policy.Subject{}, err
	}
	grant := configs.WithoutAuthorities(object.Spec.Grant)
	in := authz.Input{Plugin: grant.Plugin, Grants: []authz.Grant{grant}}
	for _, g := range r.guardrailsOf(grant.Plugin) {
		in.Guardrails = append(in.Guardrails, g.Guardrail)
	}
	for i := range r.Exemptions {
		x := &r.Exemptions[i]
		if x.Plugin == grant.Plugin && x.State(now, 0) == grantcheck.ExemptionActive {
			in.Exemptions = append(in.Exemptions, authz.Exemption{
				Name: x.Name, Grant: grant.Name, Rule: x.Permission, Ceiling: x.GuardrailRule, Allow: x.Allow, NotAfter: x.NotAfter, MaxUses: uint64(max(x.MaxUses, 0)),
			})
		}
	}
	compiled, problems := authz.Compile(in, now)
	var faults []error
	for _, p := range problems {
		faults = append(faults, fmt.Errorf("%s: %s", p.Path, p.Message))
	}
	if len(faults) > 0 {
		return policy.Subject{}, fmt.Errorf("grant of %s: %w", grant.Plugin, errors.Join(faults...))
	}
	s := policy.Subject{Plugin: grant.Plugin, Path: FileDraft, Input: in, Policy: compiled}
	s.Snapshot = s.With(nil)
	return s, nil
}

// keepPrefix begins the comment of an annotation that keeps an unused permission.
const keepPrefix = "keep "

// KeepComment returns the comment of an annotation that keeps an unused permission in a
// renewal, for a reason.
func KeepComment(permission, reason string) string {
	return keepPrefix + strconv.Quote(permission) + ": " + reason
}

// kept returns the permissions that signed annotations keep, with who and why. An annotation
// of the author keeps nothing: nobody keeps what only he asked for.
func (e *Evaluation) kept() map[string]grantcheck.Approval {
	out := map[string]grantcheck.Approval{}
	for _, a := range e.Count.Annotations {
		rest, ok := strings.CutPrefix(a.Comment, keepPrefix)
		if !ok || slices.Contains(e.Request.Authors, a.Identity) {
			continue
		}
		quoted, err := strconv.QuotedPrefix(rest)
		if err != nil {
			continue
		}
		if permission, err := strconv.Unquote(quoted); err == nil && strings.TrimSpace(strings.TrimPrefix(rest[len(quoted):], ":")) != "" {
			out[permission] = a
		}
	}
	return out
}

// Renew returns the payload of the next generation of a grant: the same request, without the
// permissions that are unused, except those that a signed annotation keeps with a reason.
func (r *Repository) Renew(e *Evaluation, unused []string, lifetime time.Duration, now time.Time) ([]byte, error) {
	if e.Issued == nil || e.previous == nil || e.previous.Dir != e.Request.Dir {
		return nil, fmt.Errorf("renew %s: the grant in force is not of this version; issue it first", e.Request.Dir)
	}
	kept := e.kept()
	e.Dropped = nil
	for _, id := range unused {
		if _, keep := kept[id]; !keep {
			e.Dropped = append(e.Dropped, id)
		}
	}
	left, err := r.leftOut(e)
	if err != nil {
		return nil, err
	}
	e.Dropped = union(e.Dropped, left)
	return r.composeWithout(e, e.Dropped, lifetime, now)
}

// leftOut returns the permissions that the last grant of this manifest lacks, because a
// renewal left them out. Neither a renewal, nor composing the grant again, nor a rollback
// brings them back, and neither does a copy that cannot be read.
func (r *Repository) leftOut(e *Evaluation) ([]string, error) {
	last := e.Issued
	if e.previous == nil || e.previous.Dir != e.Request.Dir {
		var err error
		switch last, err = r.WasIssued(e.Request); {
		case errors.Is(err, errNeverIssued):
			return nil, nil // a first grant has everything that was submitted
		case err != nil:
			return nil, fmt.Errorf("permissions that renewals of %s left out are not known: %w; put the copy back, or remove the file if it is another one", e.Request.Dir, err)
		}
	}
	var out []string
	for i := range e.Request.Manifest.Spec.Permissions {
		if id := e.Request.Manifest.Spec.Permissions[i].ID; !hasRule(last, id) {
			out = append(out, id)
		}
	}
	return out, nil
}

// union returns the elements of both lists, those of the first one first.
func union(a, b []string) []string {
	for _, s := range b {
		if !slices.Contains(a, s) {
			a = append(a, s)
		}
	}
	return a
}

// Notice is a signed statement to the contacts of a plugin.
type Notice struct {
	// Event is promotion or rollback.
	Event      string    `json:"event"`
	Plugin     string    `json:"plugin"`
	Version    string    `json:"version"`
	Generation int64     `json:"generation"`
	Grant      string    `json:"grant"` // digest
	Previous   string    `json:"previous,omitempty"`
	Reason     string    `json:"reason,omitempty"`
	IssuedAt   time.Time `json:"issuedAt"`
}

// The events of notices.
const (
	EventPromotion = "promotion"
	EventRollback  = "rollback"
)

// NewNotice returns the payload of a notice about the grant under review, and the path of
// its file.
func (e *Evaluation) NewNotice(event, reason string, now time.Time) (file string, payload []byte, err error) {
	object, err := configs.ParseObject[configs.GrantSpec](FileDraft, e.Request.Draft)
	if err != nil {
		return "", nil, err
	}
	b := object.Spec.Binding
	payload, err = json.Marshal(Notice{event, e.Request.Plugin, e.Request.Version, b.Generation, e.Draft, b.Previous, reason, now.UTC()})
	return path.Join(e.Request.Dir, "notices", fmt.Sprintf("%d-%s%s", b.Generation, event, signedEnding)), payload, err
}

// Notice returns the signed notice of a request about a grant, by the grant's digest, and its
// event; a nil notice if the request has no such one. One that does not verify is an error.
func (r *Repository) Notice(q *Request, grant string) (notice *dsse.Envelope, event string, err error) {
	files, err := list(r.fsys, path.Join(q.Dir, "notices"), signedEnding)
	if err != nil {
		return nil, "", err
	}
	for _, file := range files {
		e, err := file.envelope(r.fsys)
		if err != nil {
			return nil, "", err
		}
		doc, err := r.Root.Verify(e, dsse.KindNotice)
		if err != nil {
			return nil, "", fmt.Errorf("%s: %w", file.path, err)
		}
		var n Notice
		if err := dsse.Decode(doc.Payload, &n); err != nil {
			return nil, "", fmt.Errorf("%s: %w", file.path, err)
		}
		if n.Grant == grant && n.Plugin == q.Plugin && n.Version == q.Version {
			return e, n.Event, nil
		}
	}
	return nil, "", nil
}

// GenerationFile returns the path of a copy of an issued grant, which a rollback compares
// with.
func (e *Evaluation) GenerationFile() (string, error) {
	object, err := configs.ParseObject[configs.GrantSpec](FileDraft, e.Request.Draft)
	if err != nil {
		return "", err
	}
	return path.Join(e.Request.Dir, "issued", strconv.FormatInt(object.Spec.Binding.Generation, 10)+signedEnding), nil
}

// lastIssued is the copy of the highest generation that was issued for a plugin.
type lastIssued struct {
	file, digest string
	generation   int64
}

// marks are the highest generations of a plugin's grants: those that verify, and those that no
// longer do, because their keys were revoked since. Sidecars have seen the latter as well, so
// that the next grant has to be a later generation than both.
type marks struct{ last, retired lastIssued }

// marks finds the highest generations in the folders issued/ of a plugin's versions and, of the
// retired ones, in its grant.
func (r *Repository) marks(plugin string) (marks, error) {
	if known, ok := r.last.Load(plugin); ok {
		return known.(marks), nil //nolint:forcetypeassert // nothing else is stored
	}
	var out marks
	versions, err := r.Versions(plugin)
	if err != nil {
		return out, err
	}
	files := []entry{}
	if file, err := find(r.fsys, GrantFile(plugin)); err == nil {
		files = append(files, file)
	}
	for _, version := range versions {
		copies, err := list(r.fsys, path.Join(RequestDir(plugin, version), "issued"), signedEnding)
		if err != nil {
			return out, err
		}
		files = append(files, copies...)
	}
	for _, file := range files {
		e, err := file.envelope(r.fsys)
		if err != nil {
			continue // WasIssued reports it where it matters
		}
		if one := r.retired(e, plugin); one.generation > out.retired.generation {
			out.retired = lastIssued{file.path, one.digest, one.generation}
		}
		doc, err := r.Root.Verify(e, dsse.KindGrant)
		if err != nil || file.path == GrantFile(plugin) {
			continue
		}
		of, b, err := grantcheck.BindingOf(doc.Payload)
		if err == nil && of == plugin && b.Generation > out.last.generation {
			out.last = lastIssued{file.path, doc.Digest, b.Generation}
		}
	}
	r.last.Store(plugin, out)
	return out, nil
}

// before returns the generation and the digest that the next grant follows.
func (m marks) before(issued *Issued) grantcheck.HighWater {
	seen := grantcheck.HighWater{Generation: m.retired.generation, Digest: m.retired.digest}
	if issued != nil && issued.Object.Spec.Binding.Generation >= seen.Generation {
		seen = grantcheck.HighWater{Generation: issued.Object.Spec.Binding.Generation, Digest: issued.Digest}
	}
	return seen
}

// notRolledBack demands the grant that was issued last, of which issued/ has a copy: a new one
// would otherwise follow an older one, or none.
func (r *Repository) notRolledBack(e *Evaluation) error {
	marks, err := r.marks(e.Request.Plugin)
	if err != nil {
		return err
	}
	last := marks.last
	if e.follows = marks.before(e.Issued); e.Issued == nil && e.follows.Generation > last.generation {
		e.Findings = append(e.Findings, fmt.Sprintf("%s, generation %d, is signed by keys that were revoked since, so that no sidecar loads it any more; this request is reviewed as for a first grant, with every permission of its manifest, and becomes generation %d",
			marks.retired.file, e.follows.Generation, e.follows.Generation+1))
	}
	file := GrantFile(e.Request.Plugin)
	var is string
	switch _, missing := find(r.fsys, file); {
	case e.Issued == nil && last.generation > 0 && missing == nil:
		is = "is signed by keys that were revoked since"
	case e.Issued == nil && last.generation > 0:
		is = "is missing"
	case e.Issued == nil || e.Issued.Object.Spec.Binding.Generation > last.generation:
		return nil
	case e.Issued.Object.Spec.Binding.Generation < last.generation:
		is = fmt.Sprintf("is generation %d", e.Issued.Object.Spec.Binding.Generation)
	case e.Issued.Digest != last.digest:
		is = "is another grant of this generation"
	default:
		return nil
	}
	e.problem(stageEligibility, Problem{
		Message: fmt.Sprintf("%s %s, and generation %d was issued (%s); copy that one to its place", file, is, last.generation, last.file),
		Role:    "release", People: r.people("release", nil),
	})
	return nil
}

// Generation is a grant of a plugin that was issued before the present one.
type Generation struct {
	// SHA256 is the digest of its file in hexadecimal, by which a sidecar records that it was loaded.
	SHA256 string
	// Unchanged are the ids of its rules that the present grant has as they were.
	Unchanged []string
}

// Generations returns the copies of the grants that were issued before the present one, the
// latest first. Copies that cannot be read or verified are left out.
func (r *Repository) Generations(e *Evaluation) ([]Generation, error) {
	plugin, now := e.Request.Plugin, e.Issued.Object.Spec
	versions, err := r.Versions(plugin)
	if err != nil {
		return nil, err
	}
	var all []*Issued
	for _, version := range versions {
		files, err := list(r.fsys, path.Join(RequestDir(plugin, version), "issued"), signedEnding)
		if err != nil {
			return nil, err
		}
		for _, file := range files {
			if one, err := r.issuedIn(file.path, plugin); err == nil && one != nil && one.Object.Spec.Binding.Generation < now.Binding.Generation {
				all = append(all, one)
			}
		}
	}
	slices.SortFunc(all, func(a, b *Issued) int {
		return cmp.Compare(b.Object.Spec.Binding.Generation, a.Object.Spec.Binding.Generation)
	})
	out := make([]Generation, 0, len(all))
	for _, one := range all {
		g := Generation{SHA256: one.SHA256}
		for _, rule := range one.Object.Spec.Rules {
			if slices.ContainsFunc(now.Rules, func(is authz.Rule) bool { return is.ID == rule.ID && rest(is) == rest(rule) }) {
				g.Unchanged = append(g.Unchanged, rule.ID)
			}
		}
		out = append(out, g)
	}
	return out, nil
}

// errNeverIssued is of a request without a grant that was issued before.
var errNeverIssued = errors.New("was never issued with this manifest; there is no grant to return to")

// WasIssued reports whether the request's folder has a grant that was issued before: what a
// rollback may return to. Its signature is verified, and that it is of this manifest.
func (r *Repository) WasIssued(q *Request) (*Issued, error) {
	files, err := list(r.fsys, path.Join(q.Dir, "issued"), signedEnding)
	if err != nil {
		return nil, err
	}
	var newest *Issued
	for _, file := range files {
		issued, err := r.issuedIn(file.path, q.Plugin)
		if err != nil {
			if e, rerr := file.envelope(r.fsys); rerr == nil && r.retired(e, q.Plugin).generation > 0 {
				continue // it counts as absent, see [Repository.Issued]
			}
			return nil, err
		}
		if issued == nil || issued.Object.Spec.Binding.Manifest != q.ManifestDigest {
			continue // removed since it was listed, of another version, or of a manifest that was changed since
		}
		if newest == nil || issued.Object.Spec.Binding.Generation > newest.Object.Spec.Binding.Generation {
			newest = issued
		}
	}
	if newest == nil {
		return nil, fmt.Errorf("%s %w", q.Dir, errNeverIssued)
	}
	return newest, nil
}
