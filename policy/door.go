package policy

import "github.com/chaperone-proxy/chaperone/authz"

// Door is an enforcement point with the conditions that it cannot enforce.
type Door struct {
	Name          string     // as in explain --door and in a PluginTest
	Kind          authz.Door // as in a record
	Detail        string     // in words
	Unenforceable authz.Conditions
}

// Doors returns every kind of door that decides requests. The first is the proxy, which
// enforces all conditions.
func Doors() []Door {
	return []Door{
		{"proxy", authz.DoorProxy, "the proxy", 0},
		{"envoy", authz.DoorExtAuthz, "an Envoy that the sidecar configures", authz.EnvoyUnenforceable(authz.ManagedEnvoyEnforces, true)},
		{"ext_authz", authz.DoorExtAuthz, "an Envoy on a trusted transport", authz.EnvoyUnenforceable(0, true)},
		{"ext_authz_plain", authz.DoorExtAuthz, "an Envoy over plain TCP", authz.EnvoyUnenforceable(0, false)},
	}
}

// DoorNames returns the names of [Doors].
func DoorNames() (out []string) {
	for _, d := range Doors() {
		out = append(out, d.Name)
	}
	return out
}

// DoorNamed returns the door with a name, the proxy for "".
func DoorNamed(name string) (Door, bool) {
	for _, d := range Doors() {
		if d.Name == name || name == "" {
			return d, true
		}
	}
	return Door{}, false
}
