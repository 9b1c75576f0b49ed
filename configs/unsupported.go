package configs

import (
	"reflect"
	"slices"

	"github.com/chaperone-proxy/chaperone/authz"
)

// Fields and values of later versions. They are recognised, so that the error is
// precise, and refused, so that no field is accepted and then ignored.

// notYetField reports whether a field of a mapping is one that a later version
// will take.
func notYetField(t reflect.Type, name string) bool {
	return t == reflect.TypeFor[Expectation]() && name == "body"
}

// laterSchemes are the schemes that a later version will take.
func laterSchemes() []string { return []string{"mysql"} }

const notYet = "%q is not supported yet; %s"

// notYetGrant reports the values of a grant that a later version will take.
func notYetGrant(g authz.Grant, report reporter) {
	for i, r := range g.Rules {
		if slices.Contains(laterSchemes(), string(r.To.Scheme)) {
			report(at("spec.rules", i)+".to.scheme", notYet, r.To.Scheme, "use https, http, tls, tcp, postgres or redis")
		}
	}
}

// signedOnly reports the fields of a grant that count only once its signatures are verified.
func signedOnly(g GrantSpec, signed bool, report reporter) {
	const fix = "belongs to a signed grant (NAME.dsse.json), which chaperone plugin issue writes; remove it here"
	if !signed && !g.NotBefore.IsZero() {
		report("spec.notBefore", fix)
	}
	if !signed && g.Binding != nil {
		report("spec.binding", fix)
	}
}
