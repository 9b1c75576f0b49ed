package catalog

import (
	"cmp"
	"context"
	"slices"
	"time"

	"github.com/Masterminds/semver/v3"

	"github.com/chaperone-proxy/chaperone/configs"
	"github.com/chaperone-proxy/chaperone/governance"
)

// Catalog is every plugin of a repository at one time.
type Catalog struct {
	At      time.Time `json:"at"`
	Plugins []Plugin  `json:"plugins"` // by name
	// Calendar are the ends of support, of versions and of certifications, the next one first.
	Calendar []Date `json:"calendar"`
}

// Plugin is a plugin with its versions.
type Plugin struct {
	Name string `json:"name"`
	// Certification is that of the grant in force; nil for a plugin that has no valid one.
	Certification *Certification `json:"certification,omitempty"`
	Versions      []Version      `json:"versions"` // the newest first
}

// Certification is a signed grant: somebody reviewed the version, for a time.
type Certification struct {
	Version    string    `json:"version,omitempty"` // "" if no folder holds the version that was submitted
	Generation int64     `json:"generation"`
	Band       string    `json:"band"`
	Score      int       `json:"score"`
	NotBefore  time.Time `json:"notBefore"`
	NotAfter   time.Time `json:"notAfter"`
	Expired    bool      `json:"expired"`
	Digest     string    `json:"digest"` // of the grant's payload
}

// Version is one version of a plugin, as its author describes it.
type Version struct {
	Version string `json:"version"`
	Dir     string `json:"dir"`
	// Fault is why the version cannot be described; the fields below are then empty.
	Fault   string `json:"fault,omitempty"`
	Vendor  string `json:"vendor,omitempty"`
	Purpose string `json:"purpose,omitempty"`
	// Stage is the stage that the version waits in; "issued" after the last.
	Stage       string            `json:"stage,omitempty"`
	Artifact    configs.Artifact  `json:"artifact,omitzero"`
	Label       Label             `json:"label,omitzero"`
	APIVersions string            `json:"apiVersions,omitempty"` // of the platform
	Requires    map[string]string `json:"requires,omitempty"`
	Supersedes  []string          `json:"supersedes,omitempty"`
	Support     configs.Support   `json:"support,omitzero"`
	Docs        configs.Docs      `json:"docs,omitzero"`
	// Deprecated and Unsupported are true from their dates on.
	Deprecated  bool `json:"deprecated,omitempty"`
	Unsupported bool `json:"unsupported,omitempty"`
}

// Date is an entry of the calendar.
type Date struct {
	At      time.Time `json:"at"`
	Plugin  string    `json:"plugin"`
	Version string    `json:"version,omitempty"`
	// Event is deprecated, end of support or certification ends.
	Event string `json:"event"`
	// Migration is where the way to a later version is described.
	Migration string `json:"migration,omitempty"`
	Past      bool   `json:"past,omitempty"`
}

// The events of the calendar.
const (
	EventDeprecated    = "deprecated"
	EventEndOfSupport  = "end of support"
	EventCertification = "certification ends"
)

// issued is the stage of a version whose grant is in force.
const issued = "issued"

// Build describes every plugin of a repository. A version that cannot be read is described
// by its fault, so that one broken folder does not hide the others.
func Build(ctx context.Context, r *governance.Repository, now time.Time) (*Catalog, error) {
	names, err := r.Plugins()
	if err != nil {
		return nil, err
	}
	c := &Catalog{At: now, Plugins: []Plugin{}, Calendar: []Date{}}
	for _, name := range names {
		p, err := plugin(ctx, r, name, now)
		if err != nil {
			return nil, err
		}
		c.Plugins = append(c.Plugins, p)
		c.Calendar = append(c.Calendar, p.dates(now)...)
	}
	slices.SortFunc(c.Calendar, func(a, b Date) int {
		return cmp.Or(a.At.Compare(b.At), cmp.Compare(a.Plugin, b.Plugin), cmp.Compare(a.Version, b.Version), cmp.Compare(a.Event, b.Event))
	})
	return c, nil
}

func plugin(ctx context.Context, r *governance.Repository, name string, now time.Time) (Plugin, error) {
	p := Plugin{Name: name, Versions: []Version{}}
	folders, err := r.Versions(name)
	if err != nil {
		return p, err
	}
	grant, err := r.Issued(name)
	if err == nil && grant != nil {
		p.Certification = certification(r, grant, now)
	}
	for _, folder := range folders {
		v, submission := version(ctx, r, name, folder, now)
		if c := p.Certification; c != nil && submission != "" && submission == grant.Object.Spec.Binding.Submission {
			c.Version = v.Version
		}
		p.Versions = append(p.Versions, v)
	}
	slices.SortFunc(p.Versions, func(a, b Version) int {
		return cmp.Or(newer(a.Version, b.Version), cmp.Compare(a.Dir, b.Dir))
	})
	return p, nil
}

// newer orders the later version first, and text that is no version last.
func newer(a, b string) int {
	x, errX := semver.StrictNewVersion(a)
	y, errY := semver.StrictNewVersion(b)
	switch {
	case errX != nil && errY != nil:
		return cmp.Compare(b, a)
	case errX != nil:
		return 1
	case errY != nil:
		return -1
	}
	return y.Compare(x)
}

func certification(r *governance.Repository, grant *governance.Issued, now time.Time) *Certification {
	spec, ends := &grant.Object.Spec, r.Ends(grant, now)
	return &Certification{
		Generation: spec.Binding.Generation, Band: spec.Binding.Band, Score: spec.Binding.Score,
		NotBefore: spec.NotBefore, NotAfter: ends, Expired: !now.Before(ends), Digest: grant.Digest,
	}
}

// version describes one version, and returns the digest of its submission.
func version(ctx context.Context, r *governance.Repository, name, folder string, now time.Time) (v Version, submission string) {
	v = Version{Version: folder, Dir: governance.RequestDir(name, folder)}
	q, err := r.Request(v.Dir)
	if err != nil {
		v.Fault = err.Error()
		return v, ""
	}
	state, err := r.Evaluate(ctx, q, now)
	if err != nil {
		v.Fault = err.Error()
		return v, ""
	}
	m := &q.Manifest.Spec
	v.Vendor, v.Purpose, v.Artifact, v.Label = m.Vendor, m.Purpose, m.Artifact, NewLabel(m)
	v.APIVersions, v.Requires, v.Supersedes, v.Support, v.Docs = m.Host.APIVersions, m.Requires, m.Supersedes, m.Support, m.Docs
	v.Deprecated = past(m.Support.DeprecatedAfter, now)
	v.Unsupported = past(m.Support.EndOfSupport, now)
	v.Stage = issued
	if current := state.Current(); current != nil {
		v.Stage = current.Name
	}
	return v, q.SubmissionDigest
}

func past(at, now time.Time) bool { return !at.IsZero() && !now.Before(at) }

func (p *Plugin) dates(now time.Time) (out []Date) {
	add := func(at time.Time, version, event, migration string) {
		if !at.IsZero() {
			out = append(out, Date{at, p.Name, version, event, migration, past(at, now)})
		}
	}
	for i := range p.Versions {
		v := &p.Versions[i]
		add(v.Support.DeprecatedAfter, v.Version, EventDeprecated, v.Support.Migration)
		add(v.Support.EndOfSupport, v.Version, EventEndOfSupport, v.Support.Migration)
	}
	if c := p.Certification; c != nil {
		add(c.NotAfter, c.Version, EventCertification, "")
	}
	return out
}
