package envoy

import (
	"encoding/hex"
	"net/netip"
	"testing"
)

// TestProxyHeader compares with bytes written by hand from the protocol's text
// (haproxy, doc/proxy-protocol.txt, section 2.2).
func TestProxyHeader(t *testing.T) {
	const signature = "0d0a0d0a000d0a515549540a"
	for _, test := range []struct{ from, to, want string }{
		{"127.0.0.1:40000", "240.0.0.1:443", "21" + "11" + "000c" + "7f000001" + "f0000001" + "9c40" + "01bb"},
		{"[::ffff:127.0.0.1]:40000", "[::ffff:240.0.0.1]:443", "21" + "11" + "000c" + "7f000001" + "f0000001" + "9c40" + "01bb"},
		{
			"[::1]:1", "[2001:db8::2]:65535",
			"21" + "21" + "0024" + "00000000000000000000000000000001" + "20010db8000000000000000000000002" + "0001" + "ffff",
		},
		{
			"127.0.0.1:1", "[2001:db8::2]:80",
			"21" + "21" + "0024" + "00000000000000000000ffff7f000001" + "20010db8000000000000000000000002" + "0001" + "0050",
		},
		{"[::1]:1", "192.0.2.1:80", "21" + "11" + "000c" + "00000000" + "c0000201" + "0001" + "0050"},
	} {
		got := hex.EncodeToString(proxyHeader(netip.MustParseAddrPort(test.from), netip.MustParseAddrPort(test.to)))
		if got != signature+test.want {
			t.Errorf("%s to %s: %s", test.from, test.to, got)
		}
	}
}
