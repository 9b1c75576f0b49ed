package audit_test

import (
	"strings"
	"testing"

	"github.com/chaperone-proxy/chaperone/audit"
)

// TestIsMask: a mask is its mark and 16 characters of base64url, whichever bytes stand at
// whichever place.
func TestIsMask(t *testing.T) {
	const mask, alphabet = "~0123456789abcdEF", "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
	for _, segment := range []string{mask, mask + "%2F", mask + "…", mask + "%2F…"} {
		if !audit.IsMask(segment) {
			t.Errorf("%q is no mask", segment)
		}
	}
	for _, segment := range []string{"", "~", mask[1:], mask[:16], mask + "0", mask + "%2f", mask + "%2F%2F", "%2F" + mask, "0" + mask[1:]} {
		if audit.IsMask(segment) {
			t.Errorf("%q is a mask", segment)
		}
	}
	for at := 1; at < len(mask); at++ {
		for c := range 256 {
			segment := mask[:at] + string([]byte{byte(c)}) + mask[at+1:]
			if want := strings.IndexByte(alphabet, byte(c)) >= 0; audit.IsMask(segment) != want {
				t.Errorf("%q: a mask: %v, want %v", segment, !want, want)
			}
		}
	}
}
