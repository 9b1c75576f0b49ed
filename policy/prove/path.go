package prove

import (
	"slices"
	"strconv"
	"strings"
)

// pattern is a path pattern as a sequence of segments. A pattern that ends in a slash
// has an empty last segment.
type pattern struct {
	segments []string // literals and *, without the final **
	rest     bool     // ends in **: any further segments, also a single empty one
}

func parsePattern(text string) pattern {
	segments := strings.Split(strings.TrimPrefix(text, "/"), "/")
	if last := len(segments) - 1; segments[last] == "**" {
		return pattern{segments[:last], true}
	}
	return pattern{segments, false}
}

// anyPath is the pattern /**.
func anyPath() pattern { return pattern{rest: true} }

// meet returns the pattern that matches the paths which both p and q match; false if
// they have no path in common.
func (p pattern) meet(q pattern) (pattern, bool) {
	if len(p.segments) < len(q.segments) {
		p, q = q, p
	}
	if len(p.segments) > len(q.segments) && !q.rest {
		return pattern{}, false
	}
	// A pattern that ends in ** demands at least one more segment, which may be empty.
	if q.rest && !p.rest && len(p.segments) == len(q.segments) {
		return pattern{}, false
	}
	out := pattern{slices.Clone(p.segments), p.rest && q.rest}
	if p.rest && !q.rest && len(p.segments) == len(q.segments) {
		return pattern{}, false
	}
	for i, s := range q.segments {
		switch {
		case s == out.segments[i] || s == "*" && out.segments[i] != "":
		case out.segments[i] == "*" && s != "":
			out.segments[i] = s
		default:
			return pattern{}, false
		}
	}
	return out, true
}

// instances returns the generic paths of the pattern, of up to depth segments: wildcards
// are replaced by segments that begin with fresh. If slash is set, each is repeated with
// an encoded slash in one of these segments.
func (p pattern) instances(fresh string, depth int, slash bool) []string {
	segments := slices.Clone(p.segments)
	for i, s := range segments {
		if s == "*" {
			segments[i] = fresh + strconv.Itoa(i+1)
		}
	}
	if !p.rest {
		return withSlash([]string{join(segments)}, fresh, slash)
	}
	out := []string{join(append(segments, ""))}
	for len(segments) < depth {
		segments = append(segments, fresh+strconv.Itoa(len(segments)+1))
		out = append(out, join(segments), join(append(slices.Clone(segments), "")))
	}
	return withSlash(out, fresh, slash)
}

func join(segments []string) string { return "/" + strings.Join(segments, "/") }

func withSlash(paths []string, fresh string, slash bool) []string {
	if !slash {
		return paths
	}
	for _, p := range slices.Clone(paths) {
		if i := strings.Index(p, "/"+fresh); i >= 0 {
			paths = append(paths, p[:i+1]+fresh+"%2F"+p[i+1:])
		}
	}
	return paths
}
