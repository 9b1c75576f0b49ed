package prove

import "github.com/chaperone-proxy/chaperone/authz"

// Door is a door at which a request arrives, and the conditions that it cannot enforce.
type Door struct {
	Name          authz.Door
	Detail        string // the kind of ext_authz client, "" at the proxy
	Unenforceable authz.Conditions
}

// Doors returns every kind of door.
func Doors() []Door {
	const (
		answers = authz.ConditionCertificate | authz.ConditionSignature // an ext_authz answer cannot carry them
		foreign = answers | authz.ConditionAddresses | authz.ConditionTLS | authz.ConditionTimeout
	)
	return []Door{
		{authz.DoorProxy, "", 0},
		{authz.DoorExtAuthz, "an Envoy that the sidecar configures", answers},
		{authz.DoorExtAuthz, "an Envoy on a trusted transport", foreign},
		{authz.DoorExtAuthz, "an Envoy over plain TCP", foreign | authz.ConditionCredential},
	}
}
