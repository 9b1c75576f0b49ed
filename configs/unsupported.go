package configs

import (
	"reflect"
	"slices"

	"github.com/chaperone-proxy/chaperone/authz"
)

// What files may come to say and this version does not enforce. It is
// recognised, so that its writer is told the truth, and refused, so that
// nothing is accepted and then ignored.

// notYetField reports whether a field of a mapping is one that a later version
// will take.
func notYetField(t reflect.Type, name string) bool {
	return t == reflect.TypeFor[authz.Inject]() && name == "database"
}

const notYet = "%q is not supported yet; %s"

// notYetGrant reports the values of a grant that a later version will take.
func notYetGrant(g authz.Grant, report reporter) {
	for i, r := range g.Rules {
		if slices.Contains([]authz.Scheme{"postgres", "redis", "mysql"}, r.To.Scheme) {
			report(at("spec.rules", i)+".to.scheme", notYet, r.To.Scheme, "use https, http, tls or tcp")
		}
	}
}
