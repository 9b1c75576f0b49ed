package sandbox

import "net/netip"

// PluginAddresses are the addresses that the loopback of a plugin's own network
// has beside 127.0.0.1 and ::1. C libraries look names up only in the families
// of which the machine has another address than these two (AI_ADDRCONFIG of
// getaddrinfo(3)), and programs that serve on "the machine's address" find one.
// The plugin's connections to them stay within its network, as those to
// 127.0.0.1 do. bpf/chaperone.bpf.h holds the same two.
//
// The first is of the block for hosts whose network has no IPv4 of its own
// (RFC 7335), the second a unique local address (RFC 4193).
func PluginAddresses() []netip.Addr {
	return []netip.Addr{
		netip.AddrFrom4([4]byte{192, 0, 0, 1}),
		netip.AddrFrom16([16]byte{0xfd, 0x63, 0x68, 0x61, 0x70, 0x65, 15: 1}),
	}
}
