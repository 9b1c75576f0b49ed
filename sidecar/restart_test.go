package sidecar

import (
	"strings"
	"testing"

	"github.com/chaperone-proxy/chaperone/authz"
	"github.com/chaperone-proxy/chaperone/configs"
)

// TestRestartFields names what a reload does not put in force.
func TestRestartFields(t *testing.T) {
	running := configs.Sidecar{Plugin: "weather", Kernel: configs.KernelRequired, Vault: &configs.Vault{Address: "https://vault.example:8200", CA: "one"}}
	for _, c := range []struct {
		name   string
		change func(*configs.Sidecar)
		want   string
	}{
		{"nothing", func(*configs.Sidecar) {}, ""},
		{"fields that a reload puts in force", func(s *configs.Sidecar) {
			s.Mode, s.Grants, s.Guardrails, s.OnBadReload = authz.ModeObserve, []string{"x"}, []string{"y"}, configs.OnBadReloadQuarantine
		}, ""},
		{"listen", func(s *configs.Sidecar) { s.Listen.Proxy = configs.Address{Network: "tcp", Addr: "127.0.0.1:1"} }, "listen.proxy"},
		{"two", func(s *configs.Sidecar) { s.Kernel, s.Drain = configs.KernelOff, 1 }, "kernel, drain"},
		{"below a pointer", func(s *configs.Sidecar) { v := *s.Vault; v.Auth.Role = "r"; s.Vault = &v }, "vault.auth.role"},
		{"another file", func(s *configs.Sidecar) { v := *s.Vault; v.CAFile = "two.pem"; s.Vault = &v }, "vault.caFile"},
		{"the content of a file that each connection reads", func(s *configs.Sidecar) { v := *s.Vault; v.CA = "two"; s.Vault = &v }, ""},
		{"a part that is removed", func(s *configs.Sidecar) { s.Vault = nil }, "vault"},
		{"maps", func(s *configs.Sidecar) { s.Process.Env = map[string]string{"A": "b"} }, "process.env"},
	} {
		t.Run(c.name, func(t *testing.T) {
			loaded := running
			c.change(&loaded)
			if got := strings.Join(restartFields(running, loaded), ", "); got != c.want {
				t.Errorf("%q, want %q", got, c.want)
			}
		})
	}
}
