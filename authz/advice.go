package authz

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
)

// hostAdvice returns an error for common mistakes in a host: a URL, a host with a
// port, path or user, a range of addresses. It returns nil for anything else.
func hostAdvice(s string) error {
	if s == "" {
		return errors.New("is empty; name a host, as in api.weather.example")
	}
	scheme, rest, isURL := strings.Cut(s, "://")
	if isURL {
		authority, path, _ := strings.Cut(rest, "/")
		if i := strings.LastIndexByte(authority, '@'); i >= 0 { // no message may contain a password
			authority = authority[i+1:]
			s = scheme + "://...@" + authority
		}
		host, port := splitPort(authority)
		advice := fmt.Sprintf("%q is a URL; write the host alone, %s", clip(s), advised(host))
		if scheme != string(SchemeHTTPS) {
			advice += fmt.Sprintf(", with scheme: %s beside it", clip(asciiLower(scheme)))
		}
		if port != "" {
			advice += fmt.Sprintf(", with ports: [%s] beside it", port)
		}
		if path != "" {
			advice += ", and the path under paths"
		}
		return errors.New(advice)
	}
	if prefix, err := netip.ParsePrefix(s); err == nil {
		return fmt.Errorf("%q is a range of addresses; name each host, and the range that names may resolve to under to.addresses", prefix)
	}
	if host, _, ok := strings.Cut(s, "/"); ok {
		return fmt.Errorf("%q holds a path; write the host alone, %s, and the path under paths", clip(s), advised(host))
	}
	if i := strings.LastIndexByte(s, '@'); i >= 0 {
		return fmt.Errorf("%q holds a user; write the host alone, %s, and name the secret under credentials", clip("..."+s[i:]), advised(s[i+1:]))
	}
	if host, port := splitPort(s); port != "" {
		return fmt.Errorf("%q holds a port; write the host alone, %s, with ports: [%s] beside it", clip(s), advised(host), port)
	}
	return nil
}

// advised returns a host as a hint quotes it.
func advised(host string) string {
	return yamlString(clip(asciiLower(strings.TrimSuffix(host, "."))))
}

// splitPort splits HOST:PORT and [ADDRESS]:PORT. If PORT is not digits, port is "".
func splitPort(s string) (host, port string) {
	host, port, err := net.SplitHostPort(s)
	if err != nil || port == "" || strings.Trim(port, "0123456789") != "" {
		return strings.Trim(s, "[]"), ""
	}
	return host, port
}

// pathAdvice returns an error for common mistakes in a path: a URL, a query, an
// OpenAPI template. It returns nil for anything else.
func pathAdvice(s string) error {
	switch {
	case strings.Contains(s, "://"):
		_, rest, _ := strings.Cut(s, "://")
		_, path, _ := strings.Cut(rest, "/")
		return fmt.Errorf("%q is a URL; write the path alone, %q, and the host under to.hosts", clip(s), clip("/"+path))
	case strings.ContainsAny(s, "?#"):
		path := s[:strings.IndexAny(s, "?#")]
		return fmt.Errorf("%q holds a query or a fragment, which paths do not match; write %q", clip(s), clip(path))
	case !strings.HasPrefix(s, "/"):
		return fmt.Errorf("%q does not start with /; write %q", clip(s), clip("/"+s))
	case strings.Contains(s, " "):
		return fmt.Errorf("%q holds a space; write it as %%20", clip(s))
	}
	segments := strings.Split(s, "/")
	template, inside := false, false
	for i, segment := range segments {
		whole := len(segment) > 2 && (segment[0] == '{' && segment[len(segment)-1] == '}' || segment[0] == '<' && segment[len(segment)-1] == '>')
		switch {
		case whole && !strings.ContainsAny(segment[1:len(segment)-1], "{}<>"):
			template, segments[i] = true, "*"
		case strings.ContainsAny(segment, "{<") && strings.ContainsAny(segment, "}>"):
			template, inside, segments[i] = true, true, "*"
		}
	}
	if !template {
		return nil
	}
	advice := fmt.Sprintf("%q is a template; write * for a variable segment: %q", clip(s), clip(strings.Join(segments, "/")))
	if inside {
		advice += " (* stands for a whole segment)"
	}
	return errors.New(advice)
}

// PathWarning returns a warning for a path that matches only its literal text
// although it looks like a template, as in /v1/:id and /v1/$id; "" for any other.
func PathWarning(s string) string {
	segments := strings.Split(s, "/")
	doubt := ""
	for i, segment := range segments {
		if len(segment) > 1 && (segment[0] == ':' || segment[0] == '$') {
			if doubt == "" {
				doubt = segment
			}
			segments[i] = "*"
		}
	}
	if doubt == "" {
		return ""
	}
	return fmt.Sprintf("%q matches only the text %q; write * for a variable segment: %q", clip(s), clip(doubt), clip(strings.Join(segments, "/")))
}
