package authz

import (
	"strings"
	"testing"

	"pgregory.net/rapid"
)

// Every name in Vault can be used: paths and fields with blanks, colons, commas,
// brackets and letters beyond ASCII.
func TestNamesThatVaultHas(t *testing.T) {
	for path, valid := range map[string]bool{
		"secret/data/My Secret": true, "kv one/data/x": true, "secret/data/db:5432": true, "secret/data/schlüssel": true,
		"secret/data/a,b": true, "secret/data/a(b)": true, "secret/data/me@example.com": true, "secret/data/100%": true,
		"secret/data/日本": true, "secret/data/a&b=c;d": true, "secret/data/a'b": true, "team/kv/data/x~y": true,
		"": false, "/secret": false, "secret/": false, "secret//x": false, "secret/../sys": false, "secret/./x": false,
		"secret/x?version=1": false, "secret/x#y": false, `secret\x`: false, " secret/x": false, "secret/x ": false,
		"secret/x\n": false, "secret/\x00": false, "secret/\xff": false, "secret/x\u202ey": false, "secret/x\u00a0y": false,
		"sys/raw": false, "auth/token/lookup-self": false, "cubbyhole/x": false,
	} {
		if validVaultPath(path) != valid {
			t.Errorf("path %q: valid is %v", path, !valid)
		}
	}
	for field, valid := range map[string]bool{
		"api-key": true, "tls.key": true, "API Key": true, "a/b": true, "client:id": true, "schlüssel": true, "user@host": true,
		"db.password": true, "a,b(c)[d]": true, "$x": true,
		"": false, " a": false, "a ": false, "a\nb": false, `"a"`: false, `a\b`: false, "a{b": false, "a\u200bb": false, "\xff": false,
	} {
		parsed, err := parseTemplate("Bearer {" + field + "}")
		if (err == nil) != valid {
			t.Errorf("field %q: %v", field, err)
		}
		if err == nil && (len(parsed.fields) != 1 || parsed.fields[0] != field) {
			t.Errorf("field %q is read as %q", field, parsed.fields)
		}
	}
}

// A path that is taken holds nothing that ends a line, a URL's path or a segment.
func TestVaultPathsAreSafe(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		path := rapid.StringOf(rapid.RuneFrom([]rune("a./?#\\ %\n\r\x00é\u202e"))).Draw(t, "path")
		if !validVaultPath(path) {
			return
		}
		if strings.ContainsAny(path, "?#\\\n\r\x00\u202e") || strings.Contains("/"+path+"/", "//") || strings.Contains("/"+path+"/", "/../") {
			t.Fatalf("%q is taken", path)
		}
	})
}
