package httpclean

import (
	"net/url"
	"slices"
	"strings"
)

// WithoutCookie returns the values of Cookie as one, without the cookies of a name
// in any case, "" if none is left (RFC 6265, section 4.2.1).
//
// A cookie also begins at a comma: proxies join several Cookie headers with one where
// they show them as a map, and some servers split at it. The text around a removed
// cookie is unchanged.
func WithoutCookie(values []string, name string) string {
	var kept []string
	for _, value := range values {
		for pair := range strings.SplitSeq(value, ";") {
			pieces := slices.DeleteFunc(strings.Split(pair, ","), func(piece string) bool {
				key, _, _ := strings.Cut(piece, "=")
				return strings.EqualFold(strings.Trim(key, " \t\""), name)
			})
			if pair = strings.TrimSpace(strings.Join(pieces, ",")); pair != "" {
				kept = append(kept, pair)
			}
		}
	}
	return strings.Join(kept, "; ")
}

// AddCookie returns a Cookie header with one more cookie; cookies is what
// [WithoutCookie] returned.
func AddCookie(cookies, name, value string) string {
	if cookies != "" {
		cookies += "; "
	}
	return cookies + name + "=" + value
}

// WithoutParameter returns a query without the parameters of a name, however it is
// escaped or capitalised, and also where a server splits at semicolons. Empty
// parameters are left out.
func WithoutParameter(query, name string) string {
	if query == "" {
		return ""
	}
	var kept []string
	for pair := range strings.SplitSeq(query, "&") {
		parts := slices.DeleteFunc(strings.Split(pair, ";"), func(part string) bool {
			return strings.EqualFold(strings.TrimSpace(ParameterName(part)), name)
		})
		if pair = strings.Join(parts, ";"); pair != "" {
			kept = append(kept, pair)
		}
	}
	return strings.Join(kept, "&")
}

// ParameterName returns the name in a part of a query, unescaped where it is valid.
func ParameterName(part string) string {
	name, _, _ := strings.Cut(part, "=")
	if plain, err := url.QueryUnescape(name); err == nil {
		return plain
	}
	return name
}

// AddParameter returns a query with one more parameter; query is what
// [WithoutParameter] returned.
func AddParameter(query, name, value string) string {
	if query != "" {
		query += "&"
	}
	return query + url.QueryEscape(name) + "=" + url.QueryEscape(value)
}
