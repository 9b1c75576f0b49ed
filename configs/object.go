package configs

import (
	"encoding/json"
	"fmt"
	"path/filepath"
	"slices"

	"github.com/chaperone-proxy/chaperone/authz"
)

// ParseObject reads the one document that data holds, whose spec must be an S: a
// [GrantSpec], [GuardrailSpec], [Sidecar], [PluginTest], [PluginManifest],
// [GrantExemption], [RiskRubric], [TrustRoot] or [ComplianceChecklist]. It is strict as
// files are, and checks all that one document shows by itself; it reads no other file.
// name is for positions; data are JSON unless it ends in .yaml or .yml. The error is
// [Errors].
func ParseObject[S any](name string, data []byte) (*Object[S], error) {
	object, _, err := ParseLocated[S](name, data)
	return object, err
}

// ParseLocated is [ParseObject] that also returns where the fields are written.
func ParseLocated[S any](name string, data []byte) (*Object[S], *Locator, error) {
	s, err := parseOne(name, data)
	if err != nil {
		return nil, nil, err
	}
	object, ok := s.object.(*Object[S])
	if !ok {
		var want Object[S]
		n := s.root.find("kind")
		return nil, nil, Errors{{name, n.line, n.column, "kind", fmt.Sprintf("is %s; write %s", s.kind, want.kindOf())}}
	}
	return object, &Locator{name, s.root}, nil
}

// KindOf returns the kind of the one document that data holds, which is read as by
// [ParseObject].
func KindOf(name string, data []byte) (Kind, error) {
	s, err := parseOne(name, data)
	if err != nil {
		return "", err
	}
	return s.kind, nil
}

func parseOne(name string, data []byte) (*source, error) {
	if len(data) > maxFileSize {
		return nil, Errors{{File: name, Message: "is larger than 1MiB"}}
	}
	parse := parseJSON
	if slices.Contains([]string{".yaml", ".yml"}, filepath.Ext(name)) {
		parse = parseYAML
	}
	roots, errs := parse(name, data)
	switch {
	case len(errs) > 0:
		return nil, errs
	case len(roots) != 1:
		return nil, Errors{{File: name, Message: fmt.Sprintf("holds %d documents; write one", len(roots))}}
	}
	l := &loader{}
	l.alone = true
	s := l.document(name, roots[0])
	if s != nil && s.grant != nil {
		g := WithoutAuthorities(s.grant.Spec.Grant)
		l.compile(authz.Input{Plugin: g.Plugin, Grants: []authz.Grant{g}, Guardrails: anyRegions(g.Rules)}, []*source{s})
	}
	if len(l.errs) > 0 {
		return nil, l.errs.sorted([]string{name})
	}
	return s, nil
}

// WithoutAuthorities returns a grant that compiles without the files of authorities that it
// names, for decisions away from a sidecar: no decision reads their content.
func WithoutAuthorities(g authz.Grant) authz.Grant {
	g.Rules, g.Credentials = slices.Clone(g.Rules), slices.Clone(g.Credentials)
	for i := range g.Rules {
		if t := &g.Rules[i].To.TLS; t.CAFile != "" {
			t.CA = "of " + t.CAFile
		}
	}
	for i := range g.Credentials {
		if o := g.Credentials[i].Inject.OAuth2; o != nil && o.CAFile != "" {
			assumed := *o
			assumed.CA = "of " + o.CAFile
			g.Credentials[i].Inject.OAuth2 = &assumed
		}
	}
	return g
}

// RenderObject returns the canonical JSON of a document, which is what is signed: the
// fields in the order of the types, without those that are not stated, and no white space.
// [ParseObject] reads it back without a loss.
func RenderObject[S any](object *Object[S]) ([]byte, error) {
	out := *object
	out.APIVersion, out.Kind = APIVersion, out.kindOf()
	data, err := json.Marshal(out)
	if err != nil {
		return nil, fmt.Errorf("render %s %s: %w", out.Kind, out.Metadata.Name, err)
	}
	return data, nil
}

// kindOf returns the kind of a document whose spec is an S, "" for any other type.
func (o *Object[S]) kindOf() Kind {
	for _, kind := range Kinds() {
		s := source{kind: kind}
		if _, ok := s.allocate().(*Object[S]); ok {
			return kind
		}
	}
	return ""
}

// Rules returns the permissions as rules of a grant.
func (m *PluginManifest) Rules() []authz.Rule {
	out := make([]authz.Rule, 0, len(m.Permissions))
	for i := range m.Permissions {
		out = append(out, m.Permissions[i].Rule)
	}
	return out
}
