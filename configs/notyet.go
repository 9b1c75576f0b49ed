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
	switch t {
	case reflect.TypeFor[Sidecar]():
		return name == "upstreamProxy"
	case reflect.TypeFor[VaultAuth]():
		return slices.Contains([]string{"role", "jwtFile", "certFile", "keyFile"}, name)
	case reflect.TypeFor[authz.CredentialSpec]():
		return name == "placeholder"
	case reflect.TypeFor[authz.Inject]():
		return slices.Contains([]string{"mtls", "sigv4", "oauth2", "database"}, name)
	}
	return false
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

// notYetMethod reports whether a way to log in to Vault is one that a later
// version will take.
func notYetMethod(m VaultMethod) bool {
	return slices.Contains([]VaultMethod{"kubernetes", "jwt", "cert"}, m)
}
