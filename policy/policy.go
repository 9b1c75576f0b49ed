package policy

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/chaperone-proxy/chaperone/authz"
	"github.com/chaperone-proxy/chaperone/configs"
)

// Options say what [Load] returns.
type Options struct {
	// Plugin is the only plugin to return; "" for all.
	Plugin string
	// Recursive includes the folders below folders.
	Recursive bool
	// Contents are read in place of the files whose real paths are its keys.
	Contents map[string][]byte
}

// Subject is the policy of one plugin.
type Subject struct {
	Plugin string
	// Name is the metadata.name of the Sidecar, "" for grants by themselves.
	Name string
	// Path is the Sidecar's file, or what the caller named.
	Path string
	// Sidecar is the Sidecar's spec; nil for grants by themselves.
	Sidecar *configs.Sidecar
	// Input is what Policy is compiled from.
	Input  authz.Input
	Policy *authz.Policy
	// Snapshot has Policy in force, without revocations.
	Snapshot *authz.Snapshot
	// Notes are what is assumed of the policy, as sentences without a period.
	Notes []string
	// Files are the files of the policy, as they were named.
	Files []string

	source configs.PluginPolicy
}

// Position is a place in a file.
type Position = configs.Position

// Load reads the files and folders at paths as of now, with everything that a Sidecar
// among them names, and returns the policy of each plugin, sorted by plugin and Sidecar.
// Its error is [configs.Errors] for files that are wrong, of which ceilings that a grant
// exceeds are a part, and otherwise states that no policy was found.
func Load(now time.Time, o Options, paths ...string) ([]Subject, error) {
	checked, err := configs.CheckWith(configs.CheckOptions{Now: now, Recursive: o.Recursive, Contents: o.Contents}, paths...)
	if err != nil {
		return nil, err
	}
	var out []Subject
	var plugins []string
	for _, p := range checked.Policies {
		plugins = append(plugins, p.Plugin)
		if o.Plugin == "" || p.Plugin == o.Plugin {
			out = append(out, subject(p, strings.Join(paths, " ")))
		}
	}
	switch where := strings.Join(paths, ", "); {
	case len(plugins) == 0:
		return nil, fmt.Errorf("%s: no policy; name a Sidecar, a PluginGrant, or a folder that holds one", where)
	case len(out) == 0:
		slices.Sort(plugins)
		return nil, fmt.Errorf("%s: no policy of plugin %q; the plugins are %s", where, o.Plugin, strings.Join(slices.Compact(plugins), ", "))
	}
	slices.SortStableFunc(out, func(a, b Subject) int { return compareNames(a.Plugin, a.Name, b.Plugin, b.Name) })
	return out, nil
}

// compareNames orders by plugin, then by the name of the Sidecar.
func compareNames(plugin, name, otherPlugin, otherName string) int {
	return cmp.Or(strings.Compare(plugin, otherPlugin), strings.Compare(name, otherName))
}

func subject(p configs.PluginPolicy, named string) Subject {
	s := Subject{Plugin: p.Plugin, Path: named, Input: p.Input, Policy: p.Policy, Files: p.Files, source: p}
	if p.Sidecar != nil {
		s.Name, s.Path, s.Sidecar = p.Sidecar.Name, p.Sidecar.Path, &p.Sidecar.Sidecar
	} else {
		s.Notes = []string{assumed(p)}
	}
	s.Snapshot = s.With(nil)
	return s
}

// assumed returns what is assumed of a policy that no Sidecar states.
func assumed(p configs.PluginPolicy) string {
	var names []string
	for _, g := range p.Input.Guardrails {
		names = append(names, g.Name)
	}
	if len(names) == 0 {
		return fmt.Sprintf("%s: no guardrail and mode enforce are assumed, as no Sidecar states others", p.Plugin)
	}
	return fmt.Sprintf("%s: guardrails %s and mode enforce are assumed, as no Sidecar states others", p.Plugin, strings.Join(names, ", "))
}

// Empty returns the policy of a plugin that is granted nothing.
func Empty(plugin string, now time.Time) Subject {
	in := authz.Input{Plugin: plugin}
	policy, _ := authz.Compile(in, now) // an empty input has no problems
	s := Subject{Plugin: plugin, Input: in, Policy: policy}
	s.Snapshot = s.With(nil)
	return s
}

// With returns the policy in force under revocations.
func (s *Subject) With(revocations []authz.Revocation) *authz.Snapshot {
	var engine authz.Engine
	engine.Install(s.Policy)
	if len(revocations) > 0 {
		engine.Revoke(revocations...)
	}
	return engine.Current()
}

// Metadata returns the metadata of a grant or guardrail; the zero value for a document
// that the policy does not hold.
func (s *Subject) Metadata(document authz.Origin) configs.Metadata {
	m, _ := s.source.Metadata(document)
	return m
}

// Config returns the Sidecar with all that it names, nil for grants by themselves.
func (s *Subject) Config() *configs.Config { return s.source.Sidecar }

// Position returns where a rule is written, or where a grant is if rule is "". They are
// named as in a decision. It is false for one that the policy does not hold.
func (s *Subject) Position(grant, rule string) (Position, bool) {
	for i := range s.Input.Grants {
		g := &s.Input.Grants[i]
		if g.Name != grant {
			continue
		}
		if rule == "" {
			return s.source.Position(g.Origin, "metadata.name")
		}
		for j := range g.Rules {
			if g.Rules[j].ID == rule {
				return s.source.Position(g.Origin, fmt.Sprintf("spec.rules[%d]", j))
			}
		}
	}
	return Position{}, false
}

// FieldPosition returns where a field of a document is written, as in spec.notAfter, or
// the nearest field around it. The Sidecar has the origin "".
func (s *Subject) FieldPosition(document authz.Origin, field string) (Position, bool) {
	return s.source.Position(document, field)
}
