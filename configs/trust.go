package configs

import "github.com/chaperone-proxy/chaperone/internal/dsse"

// TrustRoot is the spec of a TrustRoot: whose keys are trusted, and for what.
type TrustRoot struct {
	// Version is 1 at first, and one more at each rotation.
	Version int64 `json:"version"`
	// Roles are the roles, each with the keys of its people.
	Roles []dsse.RoleSpec `json:"roles"`
	// Revoked are ids of keys whose signatures count for nothing any more, also earlier ones.
	Revoked []string `json:"revoked,omitempty"`
}

// Root returns the root in the form that the role root signs. name is the document's.
func (t TrustRoot) Root(name string) dsse.RootSpec {
	return dsse.RootSpec{Name: name, Version: t.Version, Roles: t.Roles, Revoked: t.Revoked}
}
