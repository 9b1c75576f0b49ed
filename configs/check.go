package configs

import (
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
}

// Document is one document of a file.
type Document struct {
	File   string `json:"file"`
	Line   int    `json:"line"`
	Kind   Kind   `json:"kind"`
	Name   string `json:"name"`
	Plugin string `json:"plugin,omitempty"` // empty for a guardrail
}

// CheckOptions say how [CheckWith] reads.
type CheckOptions struct {
	Now       time.Time
	Stdin     io.Reader // read for the path "-"; relative paths in it are relative to the working directory
	Recursive bool      // folders with those below them, hidden ones left out
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
	l.stdin = o.Stdin
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
	l.checkGrants(l.order)
	l.checkSidecars(l.order)
	if err := l.failure(); err != nil {
		return Checked{}, err
	}
	out := Checked{Files: l.files, Warnings: l.warnings.sorted(l.names()), Expired: l.expired.sorted(l.names())}
	for _, d := range l.order {
		if one := d.summary(); !slices.Contains(out.Documents, one) {
			out.Documents = append(out.Documents, one)
		}
	}
	return out, nil
}

// checkSidecars loads each Sidecar as it would be loaded to run.
func (l *loader) checkSidecars(documents []*source) {
	done := map[string]bool{}
	for _, d := range documents {
		if d.kind != KindSidecar || done[d.file] {
			continue
		}
		done[d.file] = true
		inner := newLoader(l.now)
		inner.stdin, inner.stdinRead = l.stdin, l.stdinRead
		inner.load(d.file)
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
}

// checkGrants compiles the grants of each plugin under all guardrails.
func (l *loader) checkGrants(documents []*source) {
	plugins := map[string][]authz.Grant{}
	var guardrails []authz.Guardrail
	for _, d := range documents {
		switch d.kind {
		case KindGrant:
			plugins[d.grant.Spec.Plugin] = append(plugins[d.grant.Spec.Plugin], d.grant.Spec)
		case KindGuardrail:
			guardrails = append(guardrails, d.guardrail.Spec)
		case KindSidecar:
		}
	}
	if len(plugins) == 0 {
		l.compile(authz.Input{Guardrails: guardrails}, documents)
	}
	for _, plugin := range slices.Sorted(maps.Keys(plugins)) {
		l.compile(authz.Input{Grants: plugins[plugin], Guardrails: guardrails}, documents)
	}
}

// summary names the document.
func (s *source) summary() Document {
	d := Document{File: s.file, Line: s.root.line, Kind: s.kind}
	switch s.kind {
	case KindSidecar:
		d.Name, d.Plugin = s.sidecar.Metadata.Name, s.sidecar.Spec.Plugin
	case KindGrant:
		d.Name, d.Plugin = s.grant.Metadata.Name, s.grant.Spec.Plugin
	case KindGuardrail:
		d.Name = s.guardrail.Metadata.Name
	}
	return d
}
