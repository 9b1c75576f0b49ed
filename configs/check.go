package configs

import (
	"fmt"
	"io"
	"maps"
	"slices"
	"time"

	"github.com/chaperone-proxy/chaperone/authz"
)

// Checked is what [Check] found in files that are right.
type Checked struct {
	Documents []Document // in the order of reading
	Files     []File
	Warnings  Errors
	Expired   Errors // grants that have ended: nothing that they state is allowed
	Policies  []PluginPolicy
}

// PluginPolicy is the policy of one plugin that checked files state: that of a
// Sidecar, or that of grants by themselves.
type PluginPolicy struct {
	Plugin string
	// Sidecar is what a Sidecar's file states with all that it names; nil for grants by
	// themselves, which are then under all guardrails among the paths, and enforced.
	Sidecar *Config
	Input   authz.Input
	Policy  *authz.Policy
	// Files are the files of the documents in the policy, as they were named.
	Files []string

	documents []*source
}

// Metadata returns the metadata of a document of the policy; false for a document of
// another policy.
func (p *PluginPolicy) Metadata(document authz.Origin) (Metadata, bool) {
	for _, d := range p.documents {
		switch {
		case d.origin() != document:
		case d.grant != nil, d.guardrail != nil:
			return d.object.metadata(), true
		}
	}
	return Metadata{}, false
}

// Position is a place in a file.
type Position struct {
	File   string `json:"file"`   // as it was named
	Line   int    `json:"line"`   // 1-based
	Column int    `json:"column"` // 1-based, in characters
}

// String returns file:line:column.
func (p Position) String() string { return fmt.Sprintf("%s:%d:%d", p.File, p.Line, p.Column) }

// Position returns the place of a field of a document of the policy, as in
// spec.rules[0].to.hosts, or of the nearest field around it that is stated; false for a
// document of another policy. An empty origin is the Sidecar's.
func (p *PluginPolicy) Position(document authz.Origin, field string) (Position, bool) {
	for _, d := range p.documents {
		if d.origin() == document || document == "" && d.kind == KindSidecar {
			n := d.root.find(field)
			return Position{d.file, n.line, n.column}, true
		}
	}
	return Position{}, false
}

// Document is one document of a file.
type Document struct {
	File   string `json:"file"`
	Line   int    `json:"line"`
	Kind   Kind   `json:"kind"`
	Name   string `json:"name"`
	Plugin string `json:"plugin,omitempty"` // empty for a guardrail, and for a test that does not state it
}

// CheckOptions say how [CheckWith] reads.
type CheckOptions struct {
	Now       time.Time
	Stdin     io.Reader // read for the path "-"; relative paths in it are relative to the working directory
	Recursive bool      // folders with those below them, hidden ones left out
	// Contents are read in place of the files whose real paths are its keys, to check files
	// before they are written.
	Contents map[string][]byte
}

// Check is CheckWith as of now, with neither.
func Check(now time.Time, paths ...string) (Checked, error) {
	return CheckWith(CheckOptions{Now: now}, paths...)
}

// CheckWith reads files and folders of any kinds of documents and checks them,
// without keeping anything. A Sidecar is checked with all that it
// names. Grants are also checked by themselves, plugin by plugin, under all
// guardrails among the paths. Its error is [Errors] with everything that is
// wrong.
func CheckWith(o CheckOptions, paths ...string) (Checked, error) {
	l := newLoader(o.Now)
	l.stdin, l.contents, l.checking = o.Stdin, o.Contents, true
	for _, path := range paths {
		files, err := l.folders(path, o.Recursive)
		if err != nil {
			l.errs = append(l.errs, Error{File: path, Message: err.Error()})
		} else if len(files) == 0 {
			l.errs = append(l.errs, Error{File: path, Message: "holds no *.yaml, *.yml or *.json"})
		}
		for _, file := range files {
			l.named(file)
		}
	}
	alone := l.checkGrants(l.order)
	l.checkRoles(l.order)
	served := l.checkSidecars(l.order)
	l.warnUnverified(served)
	if err := l.failure(); err != nil {
		return Checked{}, err
	}
	out := Checked{Files: l.files, Warnings: l.warned(), Expired: l.expired.sorted(l.names())}
	out.Policies = append(served, apart(alone, served)...)
	for _, d := range l.order {
		if one := d.summary(); !slices.Contains(out.Documents, one) {
			out.Documents = append(out.Documents, one)
		}
	}
	return out, nil
}

// warnUnverified warns of signed files that no Sidecar with spec.trust names.
func (l *loader) warnUnverified(served []PluginPolicy) {
	for _, file := range l.unverified {
		if !slices.ContainsFunc(served, func(p PluginPolicy) bool { return p.Sidecar.Trust != nil && slices.Contains(p.Files, file) }) {
			l.warnings = append(l.warnings, Error{File: file, Message: "is signed, and its signatures are not verified here; check the Sidecar whose spec.trust names the trust root"})
		}
	}
}

// apart returns the policies of plugins that no Sidecar serves. Grants beside the
// Sidecar of their plugin are in force only if it names them.
func apart(alone, served []PluginPolicy) []PluginPolicy {
	return slices.DeleteFunc(alone, func(p PluginPolicy) bool {
		return slices.ContainsFunc(served, func(s PluginPolicy) bool { return s.Plugin == p.Plugin })
	})
}

// checkSidecars loads each Sidecar as it would be loaded to run.
func (l *loader) checkSidecars(documents []*source) (out []PluginPolicy) {
	done := map[string]bool{}
	for _, d := range documents {
		if d.kind != KindSidecar || d.signed != nil || done[d.file] {
			continue
		}
		done[d.file] = true
		inner := newLoader(l.now)
		inner.stdin, inner.stdinRead, inner.contents = l.stdin, l.stdinRead, l.contents
		if c := inner.load(d.file); c != nil {
			c.Path = d.file
			out = append(out, PluginPolicy{c.Sidecar.Plugin, c, c.input(), c.Policy, inner.names(), inner.order})
		}
		if len(inner.errs) > 0 {
			inner.checkGrants(inner.order) // the grants of a faulty Sidecar are checked too
		}
		l.errs = append(l.errs, inner.errs...)
		l.warnings = append(l.warnings, inner.warnings...)
		l.expired = append(l.expired, inner.expired...)
		l.order = append(l.order, inner.order...)
		for _, f := range inner.files {
			if !slices.Contains(l.files, f) {
				l.files = append(l.files, f)
			}
		}
	}
	return out
}

// checkGrants compiles the grants of each plugin under all guardrails.
func (l *loader) checkGrants(all []*source) (out []PluginPolicy) {
	documents := slices.DeleteFunc(slices.Clone(all), func(d *source) bool { return d.isTextOf(all) })
	plugins := map[string][]authz.Grant{}
	var guardrails []authz.Guardrail
	for _, d := range documents {
		switch d.kind {
		case KindGrant:
			plugins[d.grant.Spec.Plugin] = append(plugins[d.grant.Spec.Plugin], d.grant.Spec.Grant)
		case KindGuardrail:
			guardrails = append(guardrails, d.guardrail.Spec.Guardrail)
		case KindSidecar, KindTest, KindManifest, KindExemption, KindRubric, KindTrust, KindChecklist:
		}
	}
	if len(plugins) == 0 {
		l.compile(authz.Input{Guardrails: guardrails}, documents)
	}
	for _, plugin := range slices.Sorted(maps.Keys(plugins)) {
		in := authz.Input{Plugin: plugin, Grants: plugins[plugin], Guardrails: guardrails}
		out = append(out, PluginPolicy{plugin, nil, in, l.compile(in, documents), files(documents, plugin), documents})
	}
	return out
}

// files returns the files of guardrails and of a plugin's grants.
func files(documents []*source, plugin string) (out []string) {
	for _, d := range documents {
		own := d.kind == KindGuardrail || d.kind == KindGrant && d.grant.Spec.Plugin == plugin
		if own && !slices.Contains(out, d.file) {
			out = append(out, d.file)
		}
	}
	return out
}

// summary names the document.
func (s *source) summary() Document {
	d := Document{File: s.file, Line: s.root.line, Kind: s.kind, Name: s.object.metadata().Name}
	switch {
	case s.sidecar != nil:
		d.Plugin = s.sidecar.Spec.Plugin
	case s.grant != nil:
		d.Plugin = s.grant.Spec.Plugin
	case s.test != nil:
		d.Plugin = s.test.Spec.Plugin
	case s.manifest != nil:
		d.Plugin = d.Name
	case s.exemption != nil:
		d.Plugin = s.exemption.Spec.Scope.Plugin
	}
	return d
}
