package sidecar

import (
	"strings"
	"testing"
	"time"

	"github.com/chaperone-proxy/chaperone/authz"
	"github.com/chaperone-proxy/chaperone/configs"
)

// The end of a signed grant is not the operator's to write.
func TestExpiryRemedy(t *testing.T) {
	now := time.Now()
	for _, c := range []struct {
		trust *configs.Trusted
		left  time.Duration
		want  string
	}{
		{nil, -time.Hour, "write a later notAfter, or remove the grant"},
		{nil, time.Hour, "write a later notAfter if it is still needed"},
		{&configs.Trusted{}, -time.Hour, "have it approved and issued again, or remove the grant"},
		{&configs.Trusted{}, time.Hour, "have it approved and issued again if it is still needed"},
	} {
		found := checkExpiry(&configs.Config{Trust: c.trust, Grants: []authz.Grant{{Name: "shop", NotAfter: now.Add(c.left)}}}, now)
		if len(found) != 1 || !strings.Contains(found[0].Remedy, c.want) {
			t.Errorf("%+v, want %q", found, c.want)
		}
	}
}
