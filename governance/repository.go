package governance

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/chaperone-proxy/chaperone/authz"
	"github.com/chaperone-proxy/chaperone/configs"
	"github.com/chaperone-proxy/chaperone/governance/grantcheck"
	"github.com/chaperone-proxy/chaperone/governance/manifest"
	"github.com/chaperone-proxy/chaperone/internal/dsse"
)

// The files at the root of a repository.
const (
	FileTrust    = "trust.yaml"
	FileRubric   = "rubric" + signedEnding
	dirGuardrail = "guardrails"
	dirExemption = "exemptions"
	dirGrants    = "grants"
	dirPlugins   = "plugins"
)

// Repository is a verified folder of governance. Its documents are signed by the roles that
// sign their kinds; a file that is not is an error of [Open], because a guardrail or an
// exemption that is left out in silence would widen what is granted.
type Repository struct {
	// Root is the trust root, with its rotations applied.
	Root       *dsse.Root
	Guardrails []Guardrail
	Exemptions []Exemption
	Rubric     Rubric
	// Checklists apply to every plugin.
	Checklists []Checklist

	fsys     fs.FS
	former   []*dsse.Root // each version of the trust root with the keys that were revoked since
	others   sync.Map     // *Request by folder: see [Repository.other]
	versions sync.Map     // []string by plugin: see [Repository.Versions]
	last     sync.Map     // marks by plugin: see [Repository.marks]
}

// Guardrail is a signed guardrail.
type Guardrail struct {
	configs.GuardrailSpec
	File   string
	Digest string // of its payload
	Signed []dsse.Signed

	rules *manifest.Rules // its conditions; nil if they are wrong, which a check reports
}

// Exemption is a signed exemption.
type Exemption struct {
	grantcheck.Exemption
	Spec     configs.GrantExemption
	File     string
	Envelope *dsse.Envelope
	Signed   []dsse.Signed
}

// Rubric is the signed rubric.
type Rubric struct {
	configs.RiskRubric
	Name   string
	Digest string // of its payload; "" without a rubric
}

// Open reads and verifies a repository. The error has every fault, one a line.
func Open(fsys fs.FS) (*Repository, error) {
	r := &Repository{fsys: fsys}
	roots, err := readRoots(fsys)
	if err != nil {
		return nil, err
	}
	r.Root = roots[len(roots)-1]
	for _, root := range roots {
		spec := root.Spec()
		spec.Revoked = nil
		former, err := dsse.NewRoot(spec)
		if err != nil {
			return nil, err
		}
		r.former = append(r.former, former)
	}
	faults := []error{r.readGuardrails(), r.readExemptions(), r.readRubric(), r.readChecklists()}
	if err := errors.Join(faults...); err != nil {
		return nil, err
	}
	if err := r.notOlder(); err != nil {
		return nil, err
	}
	return r, nil
}

// ReadTrust reads trust.yaml and applies the rotations beside it, in their order.
func ReadTrust(fsys fs.FS) (*dsse.Root, error) {
	roots, err := readRoots(fsys)
	if err != nil {
		return nil, err
	}
	return roots[len(roots)-1], nil
}

// readRoots returns the trust root of trust.yaml and those that rotations put in its place; the
// last one is in force.
func readRoots(fsys fs.FS) ([]*dsse.Root, error) {
	data, err := readFile(fsys, FileTrust)
	if err != nil {
		return nil, fmt.Errorf("%w; make one: chaperonectl plugin trust init", err)
	}
	object, err := configs.ParseObject[configs.TrustRoot](FileTrust, data)
	if err != nil {
		return nil, err
	}
	root, err := dsse.NewRoot(object.Spec.Root(object.Metadata.Name))
	if err != nil {
		return nil, fmt.Errorf("%s: %w", FileTrust, err)
	}
	rotations, err := rotationFiles(fsys, root.Spec().Version)
	if err != nil {
		return nil, err
	}
	roots := []*dsse.Root{root}
	for _, file := range rotations {
		e, err := envelope(fsys, file)
		if err != nil {
			return nil, err
		}
		if root, err = root.Rotate(e); err != nil {
			return nil, fmt.Errorf("%s: %w", file, err)
		}
		roots = append(roots, root)
	}
	return roots, nil
}

// RotationFile returns the name of the rotation to a version.
func RotationFile(version int64) string { return fmt.Sprintf("trust.%d%s", version, signedEnding) }

// rotationFiles returns the rotations after a version, in their order. One that is left out
// is an error: what follows it could not be verified.
func rotationFiles(fsys fs.FS, version int64) ([]string, error) {
	all, err := list(fsys, ".", signedEnding)
	if err != nil {
		return nil, err
	}
	var versions []int64
	for _, file := range all {
		name := file.path
		number, ok := strings.CutPrefix(strings.TrimSuffix(name, signedEnding), "trust.")
		if !ok {
			continue
		}
		n, err := strconv.ParseInt(number, 10, 64)
		if err != nil || RotationFile(n) != name {
			return nil, fmt.Errorf("%s: %q is not the version of a rotation; name it as in %s", name, number, RotationFile(version+1))
		}
		if n > version {
			versions = append(versions, n)
		}
	}
	slices.Sort(versions)
	out := make([]string, 0, len(versions))
	for i, n := range versions {
		if want := version + int64(i) + 1; n != want {
			return nil, fmt.Errorf("%s is there and %s is not; each rotation follows the one before", RotationFile(n), RotationFile(want))
		}
		out = append(out, RotationFile(n))
	}
	return out, nil
}

// signed reads the signed documents of a folder.
func signed[S any](r *Repository, dir string, kind dsse.Kind, add func(file string, e *dsse.Envelope, doc *dsse.Document, object *configs.Object[S])) error {
	files, err := list(r.fsys, dir, signedEnding)
	if err != nil {
		return err
	}
	var faults []error
	for _, file := range files {
		e, err := file.envelope(r.fsys)
		if err != nil {
			faults = append(faults, err)
			continue
		}
		doc, object, err := parseSigned[S](r.Root, file.path, e, kind)
		if err != nil {
			faults = append(faults, err)
			continue
		}
		add(file.path, e, doc, object)
	}
	return errors.Join(faults...)
}

// parseSigned verifies an envelope and reads its payload.
func parseSigned[S any](root *dsse.Root, file string, e *dsse.Envelope, kind dsse.Kind) (*dsse.Document, *configs.Object[S], error) {
	doc, err := root.Verify(e, kind)
	if err != nil {
		return nil, nil, fmt.Errorf("%s: %w", file, err)
	}
	object, err := configs.ParseObject[S](file, doc.Payload)
	if err != nil {
		return nil, nil, err
	}
	return doc, object, nil
}

func (r *Repository) readGuardrails() error {
	return signed(r, dirGuardrail, dsse.KindGuardrail, func(file string, _ *dsse.Envelope, doc *dsse.Document, object *configs.Object[configs.GuardrailSpec]) {
		object.Spec.Name = object.Metadata.Name
		rules, _ := manifest.CompileRules(object.Spec.Rules)
		r.Guardrails = append(r.Guardrails, Guardrail{object.Spec, file, doc.Digest, doc.Signed, rules})
	})
}

func (r *Repository) readExemptions() error {
	var bad []error
	err := signed(r, dirExemption, dsse.KindExemption, func(file string, e *dsse.Envelope, doc *dsse.Document, object *configs.Object[configs.GrantExemption]) {
		decides, err := grantcheck.ReadExemption(doc.Payload)
		if err != nil {
			bad = append(bad, fmt.Errorf("%s: %w", file, err))
			return
		}
		r.Exemptions = append(r.Exemptions, Exemption{decides, object.Spec, file, e, doc.Signed})
	})
	slices.SortFunc(r.Exemptions, func(a, b Exemption) int { return cmp.Compare(a.Name, b.Name) })
	for i := range r.Exemptions[min(1, len(r.Exemptions)):] {
		if a, b := &r.Exemptions[i], &r.Exemptions[i+1]; a.Name == b.Name {
			bad = append(bad, fmt.Errorf("%s and %s: both are exemption %s; names are unique", a.File, b.File, a.Name))
		}
	}
	return errors.Join(err, errors.Join(bad...))
}

func (r *Repository) readRubric() error {
	e, err := envelope(r.fsys, FileRubric)
	if errors.Is(err, fs.ErrNotExist) {
		return nil // a request then has no score, and no stage after it
	}
	if err != nil {
		return err
	}
	doc, object, err := parseSigned[configs.RiskRubric](r.Root, FileRubric, e, dsse.KindRubric)
	if err != nil {
		return err
	}
	r.Rubric = Rubric{object.Spec, object.Metadata.Name, doc.Digest}
	return nil
}

// guardrailsOf returns the guardrails that apply to a plugin.
func (r *Repository) guardrailsOf(plugin string) []Guardrail {
	var out []Guardrail
	for i := range r.Guardrails {
		if r.Guardrails[i].AppliesTo(plugin) {
			out = append(out, r.Guardrails[i])
		}
	}
	return out
}

// Plugins returns the names of the plugins that have a folder, sorted.
func (r *Repository) Plugins() ([]string, error) { return r.folders(dirPlugins) }

// Versions returns the versions of a plugin that have a folder, sorted as text. The folder is
// listed once.
func (r *Repository) Versions(plugin string) ([]string, error) {
	if known, ok := r.versions.Load(plugin); ok {
		return known.([]string), nil //nolint:forcetypeassert // nothing else is stored
	}
	out, err := r.folders(path.Join(dirPlugins, plugin))
	if err == nil {
		r.versions.Store(plugin, out)
	}
	return out, err
}

func (r *Repository) folders(dir string) ([]string, error) {
	all, err := list(r.fsys, dir, "")
	if err != nil {
		return nil, err
	}
	var out []string
	for _, one := range all {
		if one.kind.IsDir() {
			out = append(out, path.Base(one.path))
		}
	}
	return out, nil
}

// GrantFile returns the path of a plugin's signed grant.
func GrantFile(plugin string) string { return path.Join(dirGrants, plugin+signedEnding) }

// Issued is the grant of a plugin that was issued last.
type Issued struct {
	File   string
	Bundle *grantcheck.Bundle
	Digest string // of the payload
	// SHA256 is the digest of File in hexadecimal, by which a sidecar records that it was loaded.
	SHA256 string
	Object *configs.Object[configs.GrantSpec]
}

// Issued returns the grant of a plugin that was issued last, nil for a plugin without one, and
// for one whose grant is signed by keys that were revoked since or left the trust root: no
// sidecar loads it any more. It is signed by the role that signs grants; whether it is in force
// is for [grantcheck.Check].
func (r *Repository) Issued(plugin string) (*Issued, error) {
	issued, err := r.issuedIn(GrantFile(plugin), plugin)
	if err != nil {
		if e, rerr := envelope(r.fsys, GrantFile(plugin)); rerr == nil && r.retired(e, plugin).generation > 0 {
			return nil, nil //nolint:nilnil // the next grant is reviewed as a first one, see [Repository.marks]
		}
	}
	return issued, err
}

// retired returns the generation of a grant that verifies by an earlier trust root, or with keys
// that were revoked since, and not by the one in force; the zero value for any other.
func (r *Repository) retired(e *dsse.Envelope, plugin string) lastIssued {
	if _, err := r.Root.Verify(e, dsse.KindGrant); err == nil {
		return lastIssued{}
	}
	for _, root := range r.former {
		doc, err := root.Verify(e, dsse.KindGrant)
		if err != nil {
			continue
		}
		if of, b, err := grantcheck.BindingOf(doc.Payload); err == nil && of == plugin {
			return lastIssued{digest: doc.Digest, generation: b.Generation}
		}
	}
	return lastIssued{}
}

func (r *Repository) issuedIn(file, plugin string) (*Issued, error) {
	data, err := readFile(r.fsys, file)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil //nolint:nilnil // a plugin without a grant is no error
	}
	if err != nil {
		return nil, err
	}
	bundle, err := grantcheck.ParseBundle(data)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	doc, object, err := parseSigned[configs.GrantSpec](r.Root, file, bundle.Grant, dsse.KindGrant)
	switch {
	case err != nil:
		return nil, err
	case object.Spec.Binding == nil:
		return nil, fmt.Errorf("%s: the grant has no spec.binding", file)
	case object.Spec.Plugin != plugin:
		return nil, fmt.Errorf("%s: the grant is for plugin %s; %s is required", file, object.Spec.Plugin, plugin)
	}
	return &Issued{file, bundle, doc.Digest, strings.TrimPrefix(dsse.Digest(data), "sha256:"), object}, nil
}

// terms are what the guardrails of a plugin demand, all of them together.
type terms struct {
	guardrail   string // [grantcheck.GuardrailDigest]
	evidence    []configs.EvidenceRequirement
	renewBefore time.Duration
	block       configs.Severity
	grant       time.Duration // ceilings.grantLifetime; 0 for any
}

func termsOf(all []Guardrail) terms {
	t := terms{block: configs.SeverityHigh}
	digests := make([]string, 0, len(all))
	for i := range all {
		g := &all[i]
		digests = append(digests, g.Digest)
		t.evidence = append(t.evidence, g.Evidence...)
		t.grant = shorter(t.grant, time.Duration(g.Ceilings.GrantLifetime))
		t.renewBefore = max(t.renewBefore, time.Duration(g.RenewBefore))
		if b := g.Severities.Block; b != "" && lower(b, t.block) {
			t.block = b
		}
	}
	if t.renewBefore == 0 {
		t.renewBefore = defaultRenewBefore
	}
	t.guardrail = grantcheck.GuardrailDigest(digests...)
	return t
}

// defaultRenewBefore is how long before its end a grant is to be renewed.
const defaultRenewBefore = 14 * 24 * time.Hour

// shorter returns the shorter of two times, of which 0 stands for any.
func shorter(a, b time.Duration) time.Duration {
	switch {
	case a == 0:
		return b
	case b == 0:
		return a
	}
	return min(a, b)
}

func lower(a, b configs.Severity) bool {
	order := []configs.Severity{configs.SeverityNone, configs.SeverityLow, configs.SeverityMedium, configs.SeverityHigh, configs.SeverityCritical}
	return slices.Index(order, a) < slices.Index(order, b)
}

// bandTerms are what the guardrails demand in one band.
type bandTerms struct {
	stated   bool // by each guardrail, or by one at least
	roles    []grantcheck.RoleMin
	sla      time.Duration
	escalate []configs.Escalation
	lifetime time.Duration
}

// inBand unites what guardrails demand in a band: of each role the most, and the shortest
// times.
func inBand(all []Guardrail, band string) bandTerms {
	var t bandTerms
	for i := range all {
		g := &all[i]
		t.lifetime = shorter(t.lifetime, time.Duration(g.Lifetimes.Of(configs.Band(band))))
		a := g.Approvals.Of(configs.Band(band))
		if a == nil {
			continue
		}
		t.stated = true
		t.sla = shorter(t.sla, time.Duration(a.SLA))
		if a.Escalate != nil {
			t.escalate = append(t.escalate, *a.Escalate)
		}
		for _, role := range a.Roles {
			t.roles = needRole(t.roles, role.Name, role.Min)
		}
	}
	return t
}

// needRole demands at least n identities of a role.
func needRole(roles []grantcheck.RoleMin, role string, n int) []grantcheck.RoleMin {
	for i := range roles {
		if roles[i].Role == role {
			roles[i].Min = max(roles[i].Min, n)
			return roles
		}
	}
	return append(roles, grantcheck.RoleMin{Role: role, Min: max(n, 1)})
}

// isName reports whether a name is one of a plugin, and so of a file.
func isName(s string) bool { return authz.IsName(s) }
