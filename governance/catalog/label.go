package catalog

import (
	"cmp"
	"slices"

	"github.com/chaperone-proxy/chaperone/authz"
	"github.com/chaperone-proxy/chaperone/configs"
)

// Label sums up what a version asks for, as people compare it.
type Label struct {
	// Destinations are hosts or addresses with their schemes, as in https://api.weather.example.
	Destinations []Destination `json:"destinations"`
	// Credentials are the names and kinds of what is injected, which the plugin never sees.
	Credentials []string `json:"credentials,omitempty"`
	// Classes of the data, from the least to the most sensitive.
	Classes []authz.DataClass `json:"classes,omitempty"`
	Regions []string          `json:"regions,omitempty"`
	Sockets []string          `json:"sockets,omitempty"` // Unix sockets of the host
}

// Destination is one permission's destination.
type Destination struct {
	ID       string   `json:"id"`
	To       []string `json:"to"`
	Methods  []string `json:"methods,omitempty"`
	Reason   string   `json:"reason"`
	Writes   bool     `json:"writes"` // it may change data
	Optional bool     `json:"optional,omitempty"`
	// Retention is how long the destination keeps the data, as the author states it.
	Retention string `json:"retention,omitempty"`
}

// NewLabel sums up a manifest.
func NewLabel(m *configs.PluginManifest) Label {
	l := Label{Destinations: []Destination{}, Sockets: m.Sockets}
	for i := range m.Permissions {
		p := &m.Permissions[i]
		d := Destination{ID: p.ID, Methods: p.Methods, Reason: p.Reason, Optional: p.Optional, Writes: writes(&p.Rule)}
		for _, host := range p.To.Hosts {
			d.To = append(d.To, string(cmp.Or(p.To.Scheme, authz.SchemeHTTPS))+"://"+host)
		}
		d.Retention = string(p.Data.Retention)
		l.Classes = append(l.Classes, p.Data.Classes...)
		l.Regions = append(l.Regions, p.Data.Regions...)
		l.Destinations = append(l.Destinations, d)
	}
	for _, c := range m.Credentials {
		l.Credentials = append(l.Credentials, c.Name+" ("+string(c.Kind)+")")
	}
	order := []authz.DataClass{authz.DataPublic, authz.DataInternal, authz.DataConfidential, authz.DataRestricted}
	slices.SortFunc(l.Classes, func(a, b authz.DataClass) int { return slices.Index(order, a) - slices.Index(order, b) })
	l.Classes = slices.Compact(l.Classes)
	slices.Sort(l.Regions)
	l.Regions = slices.Compact(l.Regions)
	return l
}

// writes reports whether a permission may change data. A protocol whose requests nobody
// reads counts as one that may.
func writes(r *authz.Rule) bool {
	switch r.To.Scheme {
	case "", authz.SchemeHTTPS, authz.SchemeHTTP:
		return slices.ContainsFunc(r.Methods, func(m string) bool { return !slices.Contains([]string{"GET", "HEAD", "OPTIONS"}, m) })
	case authz.SchemePostgres, authz.SchemeRedis:
		return r.Matcher == nil || r.Matcher.Writes
	case authz.SchemeTLS, authz.SchemeTCP:
	}
	return true
}
