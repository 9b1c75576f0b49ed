package authz

import (
	"net/netip"
	"strings"
	"testing"
)

// TestDestination takes the hosts and targets that others went wrong on and
// expects one canonical form, or a refusal. Paths are also in the corpus.
func TestDestination(t *testing.T) {
	long := strings.Repeat("a", 63)
	name253 := strings.Join([]string{long, long, long, strings.Repeat("a", 61)}, ".")
	for _, test := range []struct {
		scheme            Scheme
		authority, target string
		want              string // URL with query, or the error
	}{
		{"https", "api.example", "", "https://api.example/"},
		{"https", "api.example", "?", "https://api.example/?"},
		{"https", "api.example", "?a=b", "https://api.example/?a=b"},
		{"https", "api.example", "/?a=b?c=/../d", "https://api.example/?a=b?c=/../d"},
		{"https", "api.example", "/?%00%0d%0A", "https://api.example/?%00%0d%0A"},
		{"https", "api.example", "/?é=ü", "https://api.example/?%C3%A9=%C3%BC"},
		{"https", "api.example", "/?\xff", "https://api.example/?%FF"},
		{"https", "api.example", "/\x80?a\x80~", "https://api.example/%80?a%80~"},
		{"https", "api.example", "/?a b", `query holds the byte 0x20`},
		{"https", "api.example", "/?é\n", `query holds the byte 0x0a`},
		{"https", "api.example", "/?\x7f", `query holds the byte 0x7f`},
		{"https", "api.example", "/?a#b", `query holds the byte 0x23`},
		{"https", "api.example", "/\xff\xfe", "https://api.example/%FF%FE"},
		{"https", "api.example", `/"<>^{|}` + "`", "https://api.example/%22%3C%3E%5E%7B%7C%7D%60"},
		{"https", "api.example", "/%4z", `path holds a broken escape`},
		{"https", "api.example", "/%z4", `path holds a broken escape`},
		{"https", "api.example", "/%25z4%254z", "https://api.example/%25z4%254z"},
		{"https", "api.example", "/a b", `path holds the control byte or space 0x20`},
		{"https", "api.example", "/a\x00", `path holds the control byte or space 0x00`},
		{"https", "api.example", "*", `path does not start with /`},
		{"https", "api.example", "http://other.example/", `path does not start with /`},
		{"https", "api.example", "．．／", `path does not start with /`},
		{"https", "api.example", "/．．／x", "https://api.example/%EF%BC%8E%EF%BC%8E%EF%BC%8Fx"},
		{"https", "api.example", "/" + strings.Repeat("a", 8<<10-1), "https://api.example/" + strings.Repeat("a", 8<<10-1)},
		{"https", "api.example", "/" + strings.Repeat("a", 8<<10), "path is over 8192 bytes long"},
		{"https", "api.example", "/" + strings.Repeat("é", 2<<10), "path is over 8192 bytes long"},
		{"https", "api.example", "/?" + strings.Repeat("a", 32<<10), "target is over 32768 bytes long"},
		{"https", "api.example", "/?" + strings.Repeat("é", 6<<10), "target is over 32768 bytes long"},
		{"http", "api.example:80", "/", "http://api.example/"},
		{"http", "api.example:443", "/", "http://api.example:443/"},
		{"tls", "api.example", "", "tls://api.example"},
		{"tcp", "api.example:22", "", "tcp://api.example:22"},
		{"tcp", "api.example", "", "port is missing"},
		{"tcp", "api.example:22", "/", "tunnel has a path"},
		{"", "api.example", "/", `scheme "" is not http, https, tls, tcp, postgres or redis`},
		{"HTTPS", "api.example", "/", `scheme "HTTPS" is not http, https, tls, tcp, postgres or redis`},

		{"https", "", "/", "host is missing"},
		{"https", ":443", "/", `host "" is not 1 to 253 bytes long`},
		{"https", ".", "/", `host "" is not 1 to 253 bytes long`},
		{"https", name253, "/", "https://" + name253 + "/"},
		{"https", name253 + ".", "/", "https://" + name253 + "/"},
		{"https", name253 + "a", "/", `host "` + (name253 + "a")[:200] + `..." is not 1 to 253 bytes long`},
		{"https", long + "a.example", "/", `host "` + long + `a.example" has a label over 63 bytes`},
		{"https", "api.example\x00.evil.example", "/", `host "api.example?.evil.example" holds '\x00', which is not allowed in a host name`},
		{"https", "api.example\t", "/", `host "api.example?" holds '\t', which is not allowed in a host name`},
		{"https", "api.example ", "/", `host "api.example " holds ' ', which is not allowed in a host name`},
		{"https", "api.example\r\nX: y", "/", `port " y" is not a number from 1 to 65535`},
		{"https", "\u212Aapi.EXAMPLE", "/", "host \"\u212Aapi.example\" is not ASCII"}, // the Kelvin sign is no k
		{"https", "straße.example", "/", `host "straße.example" is not ASCII`},
		{"https", "xn--strae-oqa.example", "/", "https://xn--strae-oqa.example/"},
		{"https", "_dmarc.example", "/", "https://_dmarc.example/"},
		{"https", "*", "/", `host "*" holds '*', which is not allowed in a host name`},
		{"https", "0", "/", "https://0.0.0.0/"},
		{"https", "0x", "/", "https://0.0.0.0/"},
		{"https", "0X7F.1", "/", "https://127.0.0.1/"},
		{"https", "1.2.3.4.", "/", "https://1.2.3.4/"},
		{"https", "1.2.3.4..", "/", `host "1.2.3.4." has an empty label`},
		{"https", "1.0x1ffffff", "/", `host "1.0x1ffffff" ends in a number but is not an IPv4 address`},
		{"https", "1.0xffffff", "/", "https://1.255.255.255/"},
		{"https", "256.1", "/", `host "256.1" ends in a number but is not an IPv4 address`},
		{"https", "99999999999999999999", "/", `host "99999999999999999999" ends in a number but is not an IPv4 address`},
		{"https", "1_0.1", "/", `host "1_0.1" ends in a number but is not an IPv4 address`},
		{"https", "a.example.0x0g", "/", "https://a.example.0x0g/"},
		{"https", "[::1]", "/", "https://[::1]/"},
		{"https", "[::1]:8443", "/", "https://[::1]:8443/"},
		{"https", "[::127.0.0.1]", "/", "https://[::7f00:1]/"},
		{"https", "[1.2.3.4]", "/", `host "[1.2.3.4]" is not an IPv6 address without a zone`},
		{"https", "[]", "/", `host "[]" is not an IPv6 address without a zone`},
		{"https", "[::1]:", "/", `port "" is not a number from 1 to 65535`},
	} {
		d, err := NewDestination(test.scheme, test.authority, test.target)
		var got string
		if err != nil {
			got = err.Error()
			if d != (Destination{}) {
				t.Errorf("%q %q: a destination beside an error", test.authority, test.target)
			}
		} else {
			got = string(d.Scheme()) + "://" + d.Authority() + d.Target()
		}
		if got != test.want {
			t.Errorf("%s %q %q is\n%s, not\n%s", test.scheme, test.authority, test.target, got, test.want)
		}
	}
}

// TestAgrees compares a destination with the request's other statements about it.
func TestAgrees(t *testing.T) {
	for _, test := range []struct {
		scheme          Scheme
		of, with        string
		agrees, asAName bool
	}{
		{"https", "api.example", "api.example", true, true},
		{"https", "api.example", "API.example.", true, true},
		{"https", "api.example", "api.example:443", true, false},
		{"https", "api.example", "api.example:0443", false, false},
		{"https", "api.example", "api.example:80", false, false},
		{"https", "api.example", "evil.example", false, false},
		{"https", "api.example", "api.example.evil", false, false},
		{"https", "api.example", "evilapi.example", false, false},
		{"https", "api.example", "", false, false},
		{"https", "api.example", "api.example,evil.example", false, false},
		{"https", "api.example", "user@api.example", false, false},
		{"https", "api.example:8443", "api.example:8443", true, false},
		{"https", "api.example:8443", "api.example", false, true},
		{"https", "api.example:80", "api.example:80", true, false},
		{"https", "api.example:80", "api.example", false, true},
		{"http", "api.example", "api.example", true, true},
		{"http", "api.example:443", "api.example", false, true},
		{"tcp", "db.example:5432", "db.example", true, true},
		{"tcp", "db.example:5432", "db.example:5432", true, false},
		{"tcp", "db.example:5432", "db.example:5433", false, false},
		{"https", "127.0.0.1", "127.1", true, true},
		{"https", "127.0.0.1", "[::ffff:127.0.0.1]", true, true},
		{"https", "[2001:db8::1]", "[2001:DB8:0::1]:443", true, false},
		{"https", "[2001:db8::1]", "[2001:db8::2]", false, false},
	} {
		d, err := NewDestination(test.scheme, test.of, "")
		if err != nil {
			t.Fatal(err)
		}
		if got := d.Agrees(test.with); got != test.agrees {
			t.Errorf("%s://%s agrees with %q: %t", test.scheme, test.of, test.with, got)
		}
		if got := d.AgreesName(test.with); got != test.asAName {
			t.Errorf("%s://%s agrees with the name %q: %t", test.scheme, test.of, test.with, got)
		}
	}
	if (Destination{}).Agrees("") || (Destination{}).AgreesName("") {
		t.Error("nowhere agrees with nothing")
	}
}

func TestDestinationParts(t *testing.T) {
	d, err := NewDestination("https", "[::FFFF:10.0.0.1]:8443", "/%7Ea?b")
	if err != nil {
		t.Fatal(err)
	}
	if d.Host() != "10.0.0.1" || d.Port() != 8443 || d.Path() != "/~a" || d.Query() != "b" ||
		d.Address() != netip.MustParseAddr("10.0.0.1") || d.HostPort() != "10.0.0.1:8443" || d.URL() != "https://10.0.0.1:8443/~a" {
		t.Errorf("%+v", d)
	}
}

// TestPlainPathSegments: a path without an escape is refused for exactly the segments for
// which every path is.
func TestPlainPathSegments(t *testing.T) {
	paths := []string{"/"}
	for i := 0; len(paths[i]) < 8; i++ {
		path := paths[i]
		paths = append(paths, path+"/", path+".", path+"a")
		want := checkSegments(path)
		got, slash, err := canonicalPath(path)
		if (err == nil) != (want == nil) || got != path || slash {
			t.Errorf("canonicalPath(%q) is %q, %v, %v; its segments: %v", path, got, slash, err, want)
		}
	}
}

// FuzzDestination: whatever is sent, there is an error or one canonical form,
// which is its own canonical form, agrees with itself and ends no line.
func FuzzDestination(f *testing.F) {
	for _, scheme := range []string{"https", "http", "tls", "tcp", "ftp"} {
		f.Add(scheme, "api.example:443", "/a/%2e%2E/%25%32%65?b=c")
	}
	for _, authority := range []string{"[::ffff:127.0.0.1]", "0x7f.1", "\u212A.EXAMPLE", "a..", "127.0.0.1.:80", "[fe80::1%25a]", "a:0443"} {
		f.Add("https", authority, "/é/{x}?é#")
	}
	for _, target := range []string{"", "?", "//", "/%", "/%5C", "/;a", "/a%2f..%2fb", "/%3b..%3b/", "/%25%25%34%31", "/%2%35"} {
		f.Add("http", "a", target)
	}
	f.Fuzz(func(t *testing.T, scheme, authority, target string) {
		d, err := NewDestination(Scheme(scheme), authority, target)
		if err != nil {
			if d != (Destination{}) {
				t.Fatal("a destination beside an error")
			}
			if strings.ContainsFunc(err.Error(), func(r rune) bool { return r < 0x20 || r == 0x7f }) {
				t.Fatalf("%q moves a terminal's cursor", err)
			}
			return
		}
		wire := d.Authority() + d.Target()
		for i := range len(wire) {
			if wire[i] <= 0x20 || wire[i] >= 0x7f {
				t.Fatalf("%q holds the byte %#02x", wire, wire[i])
			}
		}
		for _, spelling := range []string{d.Authority(), d.HostPort()} {
			again, err := NewDestination(d.Scheme(), spelling, d.Target())
			if err != nil || again != d && (d.scheme.DefaultPort() != 0 || spelling != d.Authority()) {
				t.Fatalf("%+v is %+v (%v) when it is built again from %s%s", d, again, err, spelling, d.Target())
			}
			if !d.Agrees(spelling) {
				t.Fatalf("%+v does not agree with %s", d, spelling)
			}
		}
		if d.port == 0 || d.host == "" || d.scheme.HTTP() != strings.HasPrefix(d.path, "/") {
			t.Fatalf("%+v is incomplete", d)
		}
		for segment := range strings.SplitSeq(strings.ReplaceAll(d.path, "%2F", "/"), "/") {
			if segment == "." || segment == ".." || strings.ContainsAny(segment, `\;`) {
				t.Fatalf("%s holds %q", d.path, segment)
			}
		}
		if addr, err := netip.ParseAddr(d.host); (err == nil) != d.addr.IsValid() || d.addr.IsValid() && (addr != d.addr || addr.Is4In6()) {
			t.Fatalf("%s is the address %s", d.host, d.addr)
		}
		if strings.Contains(d.path, "%2F") != d.encodedSlash {
			t.Fatalf("%s: encoded slash %t", d.path, d.encodedSlash)
		}
		if p, err := parsePathPattern(patternFor(cmpOr(d.path, "/")), true); err != nil || !p.matches(cmpOr(d.path, "/")) {
			t.Fatalf("%s has no pattern: %v", d.path, err)
		}
		if p, err := parseHostPattern(d.host); err != nil || !p.matches(d.host) {
			t.Fatalf("%s is no host of a rule: %v", d.host, err)
		}
	})
}

// A password in a URL is in no word about it.
func TestUserInformationIsNotQuoted(t *testing.T) {
	for _, authority := range []string{"user:hunter2@api.weather.example", "hunter2@api.weather.example:443", "[hunter2@::1]", "a:hunter2@b:c@d", "@hunter2"} {
		if _, err := NewDestination(SchemeHTTPS, authority, "/"); err == nil || strings.Contains(err.Error(), "hunter2") {
			t.Errorf("%s: %v", authority, err)
		}
	}
}
