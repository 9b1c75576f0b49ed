package sidecar

import (
	"net/netip"
	"testing"
)

// TestSelfAddrs: the sidecar's own listeners and its Vault are never dialled, by
// whichever address a connection would lead there; other hosts' ports of the same
// number are.
func TestSelfAddrs(t *testing.T) {
	port := func(texts ...string) (out []netip.AddrPort) {
		for _, s := range texts {
			out = append(out, netip.MustParseAddrPort(s))
		}
		return out
	}
	local, remote := port("127.0.0.1:8200"), port("10.0.0.7:8200")
	for _, c := range []struct {
		name         string
		listeners    []netip.AddrPort
		vault        *[]netip.AddrPort
		vaultPort    uint16
		shut, passes []string
	}{
		{
			name: "a listener on the loopback", listeners: port("127.0.0.1:9000"),
			shut: []string{
				"127.0.0.1:9000", "0.0.0.0:9000", "[::]:9000", "[::ffff:127.0.0.1]:9000", "[::ffff:0.0.0.0]:9000",
				"[64:ff9b::7f00:1]:9000", "[2002:7f00:1::1]:9000", "[::127.0.0.1]:9000", "[64:ff9b:1::127.0.0.1]:9000",
			},
			passes: []string{"127.0.0.1:9001", "127.0.0.2:9000", "10.0.0.1:9000", "[2606:4700::1]:9000"},
		},
		{
			name: "a listener on all addresses", listeners: port("[::]:9000", "0.0.0.0:9001"),
			shut:   []string{"127.0.0.1:9000", "127.8.8.8:9001", "[::1]:9000", "0.0.0.0:9000"},
			passes: []string{"8.8.8.8:9000", "[2606:4700::1]:9001", "10.255.255.77:9000"},
		},
		{
			name: "Vault on this host", vault: &local, vaultPort: 8200,
			shut:   []string{"127.0.0.1:8200", "127.0.0.2:8200", "[::1]:8200", "0.0.0.0:8200", "[::]:8200"},
			passes: []string{"127.0.0.1:8201", "10.255.255.77:8200"},
		},
		{
			name: "Vault elsewhere", vault: &remote, vaultPort: 8200,
			shut:   []string{"10.0.0.7:8200", "[::ffff:10.0.0.7]:8200", "[64:ff9b::10.0.0.7]:8200", "[2002:a00:7::]:8200"},
			passes: []string{"127.0.0.1:8200", "10.0.0.8:8200", "10.0.0.7:443"},
		},
		{name: "Vault, not known where", vaultPort: 8200, shut: []string{"10.0.0.7:8200", "8.8.8.8:8200"}, passes: []string{"8.8.8.8:443"}},
	} {
		f := &selfAddrs{listeners: c.listeners, vaultPort: c.vaultPort}
		f.vault.Store(c.vault)
		for _, s := range c.shut {
			if !f.dial(netip.MustParseAddrPort(s)) {
				t.Errorf("%s: %s is dialled", c.name, s)
			}
		}
		for _, s := range c.passes {
			if f.dial(netip.MustParseAddrPort(s)) {
				t.Errorf("%s: %s is refused", c.name, s)
			}
		}
	}
}
