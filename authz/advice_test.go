package authz

import (
	"strings"
	"testing"
)

// TestAdvice checks the advice for what people bring along from elsewhere.
func TestAdvice(t *testing.T) {
	for host, want := range map[string]string{
		"https://api.weather.example":            `"https://api.weather.example" is a URL; write the host alone, api.weather.example`,
		"http://API.weather.example:8080/v1":     `"http://API.weather.example:8080/v1" is a URL; write the host alone, api.weather.example, with scheme: http beside it, with ports: [8080] beside it, and the path under paths`,
		"https://[2001:db8::1]:8443":             `"https://[2001:db8::1]:8443" is a URL; write the host alone, "2001:db8::1", with ports: [8443] beside it`,
		"https://me:hunter2@api.weather.example": `"https://...@api.weather.example" is a URL; write the host alone, api.weather.example`,
		"me:hunter2@api.weather.example":         `"...@api.weather.example" holds a user; write the host alone, api.weather.example, and name the secret under credentials`,
		"api.weather.example:443":                `"api.weather.example:443" holds a port; write the host alone, api.weather.example, with ports: [443] beside it`,
		"*.weather.example:443":                  `"*.weather.example:443" holds a port; write the host alone, "*.weather.example", with ports: [443] beside it`,
		"10.0.0.0/8":                             `"10.0.0.0/8" is a range of addresses; name each host, and the range that names may resolve to under to.addresses`,
		"api.weather.example/v1":                 `"api.weather.example/v1" holds a path; write the host alone, api.weather.example, and the path under paths`,
	} {
		if _, err := parseHostPattern(host); err == nil || err.Error() != want {
			t.Errorf("host %q: %v\nwant %s", host, err, want)
		}
	}
	for path, want := range map[string]string{
		"/v1/{id}":              `"/v1/{id}" is a template; write * for a variable segment: "/v1/*"`,
		"/v1/{id}/x/<name>":     `"/v1/{id}/x/<name>" is a template; write * for a variable segment: "/v1/*/x/*"`,
		"/v1/{id}.json":         `"/v1/{id}.json" is a template; write * for a variable segment: "/v1/*" (* stands for a whole segment)`,
		"/v1?days=3":            `"/v1?days=3" holds a query or a fragment, which paths do not match; write "/v1"`,
		"/v1#top":               `"/v1#top" holds a query or a fragment, which paths do not match; write "/v1"`,
		"https://api.example/a": `"https://api.example/a" is a URL; write the path alone, "/a", and the host under to.hosts`,
		"v1":                    `"v1" does not start with /; write "/v1"`,
		"/a b":                  `"/a b" holds a space; write it as %20`,
	} {
		if _, err := parsePathPattern(path, false); err == nil || err.Error() != want {
			t.Errorf("path %q: %v\nwant %s", path, err, want)
		}
	}
	for path, want := range map[string]string{
		"/v1/:id/x": `"/v1/:id/x" matches only the text ":id"; write * for a variable segment: "/v1/*/x"`,
		"/v1/$id":   `"/v1/$id" matches only the text "$id"; write * for a variable segment: "/v1/*"`,
		"/v1/*":     "",
		"/v1/a:b":   "",
	} {
		if got := PathWarning(path); got != want {
			t.Errorf("path %q: %q, want %q", path, got, want)
		}
	}
	if _, err := parseHostPattern("https://" + strings.Repeat("a", 4000)); err == nil || len(err.Error()) > 1000 {
		t.Errorf("a long host is quoted as a whole: %d bytes", len(err.Error()))
	}
}
