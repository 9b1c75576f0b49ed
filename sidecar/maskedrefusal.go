package sidecar

import (
	"net/url"
	"strings"

	"github.com/chaperone-proxy/chaperone/authz"
)

// leastSecret is how long a segment of a path is at least that is masked wherever
// it stands in the words of a refusal: shorter ones are parts of words.
const leastSecret = 4

// maskRefusal returns a refusal with every segment of its path masked as in the
// audit log, also where its words repeat the path.
func maskRefusal(r authz.Refusal, mask func(segment string) string) authz.Refusal {
	scheme, rest, ok := strings.Cut(r.URL, "://")
	host, path, hasPath := strings.Cut(rest, "/")
	if !ok || !hasPath || path == "" {
		return r
	}
	segments := strings.Split(path, "/")
	for i, segment := range segments {
		if segment == "" {
			continue
		}
		segments[i] = mask(segment)
		plain, err := url.PathUnescape(segment)
		for _, text := range []string{segment, plain} {
			if err == nil && len(text) >= leastSecret {
				r.Detail, r.Remedy = strings.ReplaceAll(r.Detail, text, segments[i]), strings.ReplaceAll(r.Remedy, text, segments[i])
			}
		}
	}
	r.URL = scheme + "://" + host + "/" + strings.Join(segments, "/")
	return r
}
