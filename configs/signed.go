package configs

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/chaperone-proxy/chaperone/authz"
	"github.com/chaperone-proxy/chaperone/governance/grantcheck"
	"github.com/chaperone-proxy/chaperone/internal/atomicfile"
	"github.com/chaperone-proxy/chaperone/internal/dsse"
)

// signedSuffix ends the name of a file that holds a signed document.
const signedSuffix = ".dsse.json"

// maxGenerations bounds the file of [Generations].
const maxGenerations = 1 << 20

// IsSigned reports whether a file of that name holds a signed document.
func IsSigned(name string) bool { return strings.HasSuffix(name, signedSuffix) }

// trusted is what a Sidecar with spec.trust trusts, while its files are loaded.
type trusted struct {
	spec       *Trust
	plugin     string
	root       *dsse.Root // nil: it could not be read, which is reported
	seen       Generations
	exemptions []*dsse.Envelope
	guardrails []*source    // signed, in the order of reading
	bundles    []bundleFile // to be verified once all guardrails are read
	out        *Trusted
}

type bundleFile struct {
	file   string
	bundle *grantcheck.Bundle
}

// beginTrust reads the trust root and the generations of a Sidecar with spec.trust, so
// that the files which it names are verified before they are decoded.
func (l *loader) beginTrust(s *source) {
	spec := s.sidecar.Spec.Trust
	report := s.reporter(&l.errs)
	var seen Generations
	if s.sidecar.Spec.StateDir != "" {
		seen = l.generations(s, s.beside(s.sidecar.Spec.StateDir))
	}
	if spec == nil {
		if seen.Trust > 0 {
			report("spec.trust", "is missing, and trust root version %d was in force in this stateDir; write spec.trust as it was, or to load unsigned grants from now on stop the sidecar and remove %s",
				seen.Trust, filepath.Join(s.beside(s.sidecar.Spec.StateDir), GenerationsFile))
		}
		return
	}
	spec.validate(report)
	l.trust = &trusted{spec: spec, plugin: s.sidecar.Spec.Plugin, out: &Trusted{}, seen: seen}
	s.sidecar.Spec.Process.validateLoader(report)
	if l.trust.seen.Time.After(l.now) {
		if ahead := l.trust.seen.Time.Sub(l.now); ahead > grantcheck.MaxAhead {
			s.reporter(&l.warnings)("spec.trust", "the clock is %s behind %s, the latest time that this sidecar has seen, which counts; set the clock", ahead.Round(time.Second), l.trust.seen.Time.Format(time.RFC3339))
		}
		l.now = l.trust.seen.Time
	}
	if spec.Root == "" {
		return // reported as missing
	}
	root, err := l.trustRoot(s.beside(spec.Root))
	if positions, ok := errors.AsType[Errors](err); ok {
		l.errs = append(l.errs, positions...)
		return
	} else if err != nil {
		report("spec.trust.root", "%v", err)
		return
	}
	l.trust.root = root
	l.trust.out.Root, l.trust.out.Version, l.trust.out.RootDigest = root.Spec().Name, root.Spec().Version, root.Digest()
	for i, ref := range spec.Exemptions {
		l.exemptionFiles(s, at("spec.trust.exemptions", i), ref)
	}
	l.signedMode(s, report)
}

// generations reads the [Generations] of a stateDir.
func (l *loader) generations(s *source, dir string) (out Generations) {
	path := filepath.Join(dir, GenerationsFile)
	data, err := atomicfile.Read(path, maxGenerations)
	if err == nil {
		err = json.Unmarshal(data, &out)
	}
	switch {
	case err == nil, errors.Is(err, fs.ErrNotExist):
	case errors.Is(err, fs.ErrPermission) && s.sidecar.Spec.Trust == nil:
	case errors.Is(err, fs.ErrPermission):
		// A sidecar that may not read its stateDir does not start.
		s.reporter(&l.warnings)("spec.stateDir", "%s may not be read by this user; generations that were in force are not compared", path)
	default:
		s.reporter(&l.errs)("spec.stateDir", "%s cannot be read: %v; put it back from a backup, since without it an older grant could be loaded", path, err)
	}
	return out
}

// trustRoot reads a TrustRoot and applies the rotations beside it. The one that was in force
// in this stateDir has to be among them: trust.yaml is a file, and whoever may write it could
// otherwise choose whose signatures count.
func (l *loader) trustRoot(path string) (*dsse.Root, error) {
	data, err := l.bytes(path, true)
	if err != nil {
		return nil, fmt.Errorf("%s %w", path, err)
	}
	object, err := ParseObject[TrustRoot](path, data)
	if err != nil {
		return nil, err
	}
	root, err := dsse.NewRoot(object.Spec.Root(object.Metadata.Name))
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	const longest = 1000 // rotations
	known := false
	for range longest {
		known = known || root.Digest() == l.trust.seen.TrustDigest
		next := rotationFile(path, root.Spec().Version+1)
		l.stat(next)
		if _, err := os.Lstat(next); errors.Is(err, fs.ErrNotExist) {
			return root, l.trust.seen.follows(root, known, path)
		}
		envelope, err := l.envelope(next)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", next, err)
		}
		if root, err = root.Rotate(envelope); err != nil {
			return nil, fmt.Errorf("%s: %w", next, err)
		}
	}
	return nil, fmt.Errorf("%s: it has more than %d rotations; replace it by the version in force", path, longest)
}

// follows refuses a root that does not follow the one which was in force; known: that one is
// the root, or was rotated to it. path is the file of the root.
func (g *Generations) follows(root *dsse.Root, known bool, path string) error {
	version := root.Spec().Version
	switch {
	case known || g.Trust == 0:
		return nil
	case version < g.Trust:
		return fmt.Errorf("version %d of the trust root was in force, and this is version %d; put the rotation %s back", g.Trust, version, rotationFile(path, version+1))
	case g.TrustDigest == "": // written before digests were
		return nil
	}
	return fmt.Errorf("version %d is %s, and does not follow version %d that was in force, which is %s; put that %s back with the rotations beside it, "+
		"or if the change is meant stop the sidecar and accept it: chaperone statedir accept --trust-root %s --config FILE --reason TEXT",
		version, root.Digest(), g.Trust, g.TrustDigest, filepath.Base(path), root.Digest())
}

// rotationFile returns the file of a version of the trust root: trust.2.dsse.json beside
// trust.yaml.
func rotationFile(root string, version int64) string {
	return fmt.Sprintf("%s.%d%s", strings.TrimSuffix(root, filepath.Ext(root)), version, signedSuffix)
}

func (l *loader) envelope(path string) (*dsse.Envelope, error) {
	data, err := l.bytes(path, true)
	if err != nil {
		return nil, err
	}
	return dsse.Parse(data)
}

// exemptionFiles reads signed exemptions. They are verified with the grant that uses them.
func (l *loader) exemptionFiles(s *source, field, ref string) {
	report := s.reporter(&l.errs)
	files, err := l.folder(s.beside(ref))
	if err != nil {
		report(field, "%s %v%s", s.beside(ref), err, advice(err))
		return
	}
	for _, file := range files {
		if !IsSigned(file) {
			continue // its YAML, from which it was signed
		}
		envelope, err := l.envelope(file)
		if err != nil {
			report(field, "%s: %v", file, err)
			continue
		}
		l.trust.exemptions = append(l.trust.exemptions, envelope)
	}
}

// signedMode refuses a Sidecar that observes beyond the signed document.
func (l *loader) signedMode(s *source, report reporter) {
	spec := &s.sidecar.Spec
	if spec.Trust.Sidecar == "" {
		if spec.Mode == authz.ModeObserve {
			report("spec.mode", "observe is not signed; write mode: enforce, or name this document signed by role policy in spec.trust.sidecar")
		}
		return
	}
	path := s.beside(spec.Trust.Sidecar)
	signed, err := l.signedSidecar(path)
	if fields, ok := errors.AsType[Errors](err); ok {
		for _, e := range fields {
			l.errs = append(l.errs, Error{File: path, Field: e.Field, Message: e.Message})
		}
		return
	} else if err != nil {
		report("spec.trust.sidecar", "%v", err)
		return
	}
	if demands := signed.Spec.Trust; demands != nil { // the signed ones and those of the file both count
		spec.Trust.MinGenerations = highest(spec.Trust.MinGenerations, demands.MinGenerations)
	}
	switch {
	case signed.Metadata.Name != s.sidecar.Metadata.Name || signed.Spec.Plugin != spec.Plugin:
		report("spec.trust.sidecar", "%s is of Sidecar %q for plugin %q, and this is %q for %q", path, clip(signed.Metadata.Name), clip(signed.Spec.Plugin), s.sidecar.Metadata.Name, spec.Plugin)
	case spec.Mode != authz.ModeObserve:
	case signed.Spec.Mode != authz.ModeObserve:
		report("spec.mode", "is observe, and the mode that is signed in %s is not; write mode: enforce", path)
	case spec.ObserveUntil.After(signed.Spec.ObserveUntil):
		report("spec.observeUntil", "is later than %s, which is signed in %s", signed.Spec.ObserveUntil.UTC().Format(time.RFC3339), path)
	}
}

// highest returns the higher of two generations of each name.
func highest(a, b map[string]int64) map[string]int64 {
	out := map[string]int64{}
	for _, m := range []map[string]int64{a, b} {
		for name, n := range m {
			out[name] = max(out[name], n)
		}
	}
	return out
}

func (l *loader) signedSidecar(path string) (*Object[Sidecar], error) {
	envelope, err := l.envelope(path)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	doc, err := l.trust.root.Verify(envelope, dsse.KindSidecar)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return ParseObject[Sidecar](path, doc.Payload)
}

// signed reads the content of a signed file: it is verified before it is decoded. Grants
// wait for all guardrails.
func (l *loader) signed(path string, data []byte) []*source {
	fail := func(format string, args ...any) []*source {
		l.errs = append(l.errs, Error{File: path, Message: fmt.Sprintf(format, args...)})
		return nil
	}
	bundle, err := grantcheck.ParseBundle(data)
	if err != nil {
		return fail("%v", err)
	}
	envelope := bundle.Grant
	switch {
	case l.trust == nil && l.checking:
		l.unverified = append(l.unverified, path)
		if documentOf(envelope.PayloadType) == "" {
			return nil // a submission, an approval or evidence
		}
		return l.decodePayload(path, envelope.Unverified, &signature{digest: envelope.Digest()})
	case l.trust == nil:
		return fail("is signed, and no spec.trust of the Sidecar states whose signatures count; write spec.trust: {root: trust.yaml}")
	case l.trust.root == nil:
		return nil // the root's error is reported
	case envelope.PayloadType == dsse.KindGrant.PayloadType():
		l.trust.bundles = append(l.trust.bundles, bundleFile{path, bundle})
		return nil
	case envelope.PayloadType != dsse.KindGuardrail.PayloadType():
		return fail("payload type %q is neither a signed grant nor a signed guardrail; move the file elsewhere", clip(envelope.PayloadType))
	}
	doc, err := l.trust.root.Verify(envelope, dsse.KindGuardrail)
	if err != nil {
		return fail("%v", err)
	}
	out := l.decodePayload(path, doc.Payload, &signature{digest: doc.Digest})
	if len(out) == 1 && out[0].guardrail == nil {
		return fail("kind: is %s; a signed guardrail holds a %s", out[0].kind, KindGuardrail)
	}
	l.trust.guardrails = append(l.trust.guardrails, out...)
	return out
}

// signature is of a document that was read from a signed file.
type signature struct {
	digest   string
	verified *grantcheck.Verified // of a grant
}

// decodePayload decodes a payload like a file. Its positions name the field alone: those
// of the payload are not the file's.
func (l *loader) decodePayload(path string, payload []byte, sig *signature) []*source {
	roots, errs := parseJSON(path, payload)
	for i := range errs {
		errs[i].Line, errs[i].Column = 0, 0
	}
	l.errs = append(l.errs, errs...)
	if len(roots) != 1 {
		if len(errs) == 0 {
			l.errs = append(l.errs, Error{File: path, Message: fmt.Sprintf("the payload holds %d documents; one is required", len(roots))})
		}
		return nil
	}
	roots[0].forgetPlaces()
	l.signing = sig
	s := l.document(path, roots[0])
	l.signing = nil
	if s == nil {
		return nil
	}
	l.order = append(l.order, s)
	return []*source{s}
}

// forgetPlaces removes the lines and columns of a tree.
func (n *node) forgetPlaces() {
	n.line, n.column = 0, 0
	for _, item := range n.items {
		item.forgetPlaces()
	}
	for i := range n.fields {
		n.fields[i].line, n.fields[i].column = 0, 0
		n.fields[i].value.forgetPlaces()
	}
}

// endTrust verifies the grants that were read, and refuses what is not signed. documents
// are all that were read; it returns those that count.
func (l *loader) endTrust(documents []*source) []*source {
	t := l.trust
	if t == nil {
		return documents
	}
	if t.root != nil {
		terms := t.terms()
		l.olderGuardrails()
		t.out.Guardrail = terms.Guardrail
		for _, b := range t.bundles {
			documents = append(documents, l.verifyGrant(b, terms)...)
		}
		t.out.Generations = t.next(l.now)
	}
	return l.withoutUnsigned(documents)
}

// olderGuardrails refuses guardrails that are older than those which were in force: their
// signatures are right as well.
func (l *loader) olderGuardrails() {
	for _, d := range l.trust.guardrails {
		name := d.guardrail.Metadata.Name
		seen, ok := l.trust.seen.Guardrails[name]
		if !ok {
			continue
		}
		was := grantcheck.PolicyRef{Kind: dsse.KindGuardrail, Name: name, Digest: seen.Digest, Generation: seen.Generation}
		is := grantcheck.PolicyRef{Kind: dsse.KindGuardrail, Name: name, Digest: d.signed.digest, Generation: d.guardrail.Spec.Generation}
		if text := was.Replaced(is); text != "" {
			d.reporter(&l.errs)("spec.generation", "%s", text)
		}
	}
}

// withoutUnsigned refuses grants and guardrails that are not signed, or during a
// migration warns of them and drops those that a signed document replaces. A file NAME.yaml
// beside NAME.dsse.json is the text that was signed, and counts for nothing.
func (l *loader) withoutUnsigned(documents []*source) (out []*source) {
	replaced := func(d *source) bool {
		return slices.ContainsFunc(documents, func(other *source) bool {
			return other.signed != nil && other.kind == d.kind && other.object.metadata().Name == d.object.metadata().Name
		})
	}
	until := l.trust.spec.UnsignedUntil
	for _, d := range documents {
		switch {
		case d.signed != nil || d.kind != KindGrant && d.kind != KindGuardrail:
			out = append(out, d)
		case d.kind == KindGrant && !replaced(d) && l.trust.seen.Grants[d.object.metadata().Name].Generation > 0:
			d.reporter(&l.errs)("metadata.name", "is not signed, and a signed grant of this name was in force, generation %d; put the signed one back, and remove this file", l.trust.seen.Grants[d.object.metadata().Name].Generation)
		case replaced(d) && l.now.Before(until):
			d.reporter(&l.warnings)("metadata.name", "the signed %s of this name replaces it; remove this file", d.kind)
		case d.isTextOf(documents):
		case l.now.Before(until):
			d.reporter(&l.warnings)("metadata.name", "is not signed; it is no longer loaded from %s, see spec.trust.unsignedUntil", until.UTC().Format(time.RFC3339))
			out = append(out, d)
		default:
			d.reporter(&l.errs)("metadata.name", "is not signed, and spec.trust of the Sidecar demands it; have it signed (chaperone plugin %s), or state spec.trust.unsignedUntil while grants are migrated", signCommand(d.kind))
		}
	}
	return out
}

// isTextOf reports whether d is the text from which one of documents was signed: of the same
// kind and name, in NAME.yaml beside NAME.dsse.json.
func (d *source) isTextOf(documents []*source) bool {
	signed := strings.TrimSuffix(d.file, filepath.Ext(d.file)) + signedSuffix
	return d.signed == nil && slices.ContainsFunc(documents, func(other *source) bool {
		return other.signed != nil && other.file == signed && other.kind == d.kind && other.object.metadata().Name == d.object.metadata().Name
	})
}

// warned returns the warnings in their order. One of a signed file that is also one of its
// text, NAME.yaml beside NAME.dsse.json, is left out: the text has lines.
func (l *loader) warned() Errors {
	texts := map[Error]bool{}
	for _, one := range l.warnings {
		texts[Error{File: strings.TrimSuffix(one.File, filepath.Ext(one.File)) + signedSuffix, Field: one.Field, Message: one.Message}] = true
	}
	return slices.DeleteFunc(l.warnings.sorted(l.names()), func(one Error) bool {
		return texts[Error{File: one.File, Field: one.Field, Message: one.Message}]
	})
}

func signCommand(kind Kind) string {
	if kind == KindGrant {
		return "issue"
	}
	return "sign"
}

// terms returns what the signed guardrails of the plugin demand of its grants. Of several
// guardrails every demand counts.
func (t *trusted) terms() grantcheck.Terms {
	terms := grantcheck.Terms{Approvals: map[string]grantcheck.Approvers{}, Lifetimes: map[string]time.Duration{}}
	if a := t.spec.Artifact; a != nil && a.Kind == grantcheck.ArtifactImage {
		terms.Artifact = grantcheck.Artifact{Kind: a.Kind, Digest: a.Digest}
	}
	var digests []string
	for _, d := range t.guardrails {
		g := &d.guardrail.Spec
		if !g.AppliesTo(t.plugin) {
			continue
		}
		digests = append(digests, d.signed.digest)
		g.AddTerms(&terms)
	}
	terms.Guardrail = grantcheck.GuardrailDigest(digests...)
	return terms
}

// AddTerms adds what the guardrail demands of grants to terms: the highest number of
// approvals of each role, the shortest lifetime and age.
func (g *GuardrailSpec) AddTerms(terms *grantcheck.Terms) {
	for _, band := range Bands() {
		if a := g.Approvals.Of(band); a != nil {
			terms.Approvals[string(band)] = addApprovers(terms.Approvals[string(band)], a)
		}
		if life := time.Duration(g.Lifetimes.Of(band)); life > 0 {
			if known := terms.Lifetimes[string(band)]; known == 0 || life < known {
				terms.Lifetimes[string(band)] = life
			}
		}
	}
	for _, e := range g.Evidence {
		terms.Evidence = append(terms.Evidence, grantcheck.EvidenceTerm{PredicateType: e.PredicateType, From: string(e.From), MaxAge: time.Duration(e.MaxAge)})
	}
}

func addApprovers(to grantcheck.Approvers, a *ApprovalTerms) grantcheck.Approvers {
	to.Roles = slices.Clone(to.Roles)
	for _, role := range a.Roles {
		i := slices.IndexFunc(to.Roles, func(r grantcheck.RoleMin) bool { return r.Role == role.Name })
		if i < 0 {
			to.Roles = append(to.Roles, grantcheck.RoleMin{Role: role.Name, Min: role.Min})
			continue
		}
		to.Roles[i].Min = max(to.Roles[i].Min, role.Min)
	}
	if sla := time.Duration(a.SLA); sla > 0 && (to.SLA == 0 || sla < to.SLA) {
		to.SLA = sla
	}
	if e := a.Escalate; e != nil && to.EscalateTo == "" {
		to.EscalateAfter, to.EscalateTo = time.Duration(e.After), e.Role
	}
	return to
}

// verifyGrant verifies a signed grant and then decodes it.
func (l *loader) verifyGrant(b bundleFile, terms grantcheck.Terms) []*source {
	t := l.trust
	terms.Plugin, terms.SeenByName, terms.Least = t.plugin, t.seen.Grants, t.spec.MinGenerations
	b.bundle.Exemptions = append(slices.Clone(b.bundle.Exemptions), t.exemptions...)
	v, err := grantcheck.Check(t.root, b.bundle, terms, l.now)
	if ended, ok := errors.AsType[*grantcheck.EndedError](err); ok {
		v = ended.Verified
		l.expired = append(l.expired, Error{File: b.file, Field: "spec.notAfter", Message: ended.Reason + "; nothing that this grant states is allowed"})
	} else if other, ok := errors.AsType[*grantcheck.OtherPluginError](err); ok {
		l.warnings = append(l.warnings, Error{File: b.file, Field: "spec.plugin", Message: fmt.Sprintf("is %s, which this sidecar does not serve (it serves %s); the grant is not used", other.Plugin, t.plugin)})
		return nil
	} else if err != nil {
		l.refuseGrant(b.file, err)
		return nil
	}
	for i, e := range v.Exemptions {
		l.strictExemption(b.file, at("spec.binding.exemptions", i), e.Payload)
	}
	out := l.decodePayload(b.file, v.Payload, &signature{v.Digest, v})
	if len(out) != 1 || out[0].grant == nil {
		return nil // reported
	}
	spec := &out[0].grant.Spec
	spec.NotAfter = v.NotAfter
	for i := range spec.Rules {
		if spec.Rules[i].NotAfter.After(v.NotAfter) {
			spec.Rules[i].NotAfter = v.NotAfter
		}
	}
	t.out.Grants = append(t.out.Grants, l.signedGrant(b.file, v))
	return out
}

// strictExemption refuses an exemption that is no document of its kind: a field that is
// not known here might restrict it.
func (l *loader) strictExemption(file, field string, payload []byte) {
	_, err := ParseObject[GrantExemption](file, payload)
	wrong, _ := errors.AsType[Errors](err)
	for _, e := range wrong {
		l.errs = append(l.errs, Error{File: file, Field: field + ": " + e.Field, Message: e.Message})
	}
}

func (l *loader) refuseGrant(file string, err error) {
	problems, ok := errors.AsType[grantcheck.CheckErrors](err)
	if !ok {
		problems = grantcheck.CheckErrors{{Message: err.Error()}}
	}
	for _, p := range problems {
		l.errs = append(l.errs, Error{File: file, Field: p.Field, Message: p.Message})
	}
}

// signedGrant finds the dates of a grant, and warns of those that are near.
func (l *loader) signedGrant(file string, v *grantcheck.Verified) SignedGrant {
	out := SignedGrant{Verified: v, File: file, RenewBefore: v.Binding.RenewBefore}
	notice := ExpiryNotice
	for _, d := range l.trust.guardrails {
		g := &d.guardrail.Spec
		if !g.AppliesTo(v.Plugin) {
			continue
		}
		if before := time.Duration(g.RenewBefore); before > 0 {
			notice = before
		}
		if stale := g.OnStaleEvidence; stale != nil && !v.Stale.IsZero() {
			at := v.Stale.Add(time.Duration(stale.After))
			if out.StaleAt.IsZero() || at.Before(out.StaleAt) {
				out.StaleAt, out.OnStale = at, stale.Then
			}
		}
	}
	if out.RenewBefore.IsZero() {
		out.RenewBefore = v.NotAfter.Add(-notice)
	}
	warn := func(field, format string, args ...any) {
		l.warnings = append(l.warnings, Error{File: file, Field: field, Message: fmt.Sprintf(format, args...)})
	}
	if !l.now.Before(out.RenewBefore) && l.now.Before(v.NotAfter) {
		warn("spec.notAfter", "the grant ends at %s; renew it (chaperone plugin renew)", v.NotAfter.UTC().Format(time.RFC3339))
	}
	if !v.Stale.IsZero() && !l.now.Before(v.Stale) {
		warn("spec.binding.evidence", "is stale since %s%s; add new evidence and renew the grant", v.Stale.UTC().Format(time.RFC3339), out.consequence())
	}
	for i, e := range v.Exemptions {
		if state := e.State(l.now, 0); state != grantcheck.ExemptionActive {
			warn(at("spec.binding.exemptions", i), "exemption %s is %s; the rules that need it are denied", e.Name, state)
		}
	}
	return out
}

// consequence is the effect of stale evidence, in words.
func (g *SignedGrant) consequence() string {
	if g.OnStale == "" {
		return ""
	}
	return fmt.Sprintf("; at %s the plugin is revoked with level %s", g.StaleAt.UTC().Format(time.RFC3339), g.OnStale)
}

// next returns the generations once what was loaded is in force.
func (t *trusted) next(now time.Time) Generations {
	out := Generations{Trust: t.root.Spec().Version, TrustDigest: t.root.Digest(), Grants: map[string]grantcheck.HighWater{}, Time: now, Contained: t.seen.Contained}
	maps.Copy(out.Grants, t.seen.Grants)
	for _, g := range t.out.Grants {
		out.Grants[g.Name] = grantcheck.HighWater{Generation: g.Binding.Generation, Digest: g.Digest}
	}
	out.Guardrails = maps.Clone(t.seen.Guardrails)
	for _, d := range t.guardrails {
		if n := d.guardrail.Spec.Generation; n > 0 {
			if out.Guardrails == nil {
				out.Guardrails = map[string]grantcheck.HighWater{}
			}
			out.Guardrails[d.guardrail.Metadata.Name] = grantcheck.HighWater{Generation: n, Digest: d.signed.digest}
		}
	}
	return out
}
