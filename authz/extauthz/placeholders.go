package extauthz

import (
	"slices"
	"strings"

	"github.com/chaperone-proxy/chaperone/authz"
	"github.com/chaperone-proxy/chaperone/internal/httpclean"
)

// misplacedPlaceholder refuses an admitted access that contains the placeholder of a
// credential outside the credential's slot, and reports whether it does.
func (s *Server) misplacedPlaceholder(a *access, admission *authz.Admission) (authz.Refusal, bool) {
	if s.cfg.FindPlaceholder == nil {
		return authz.Refusal{}, false
	}
	find := s.cfg.FindPlaceholder()
	if find == nil {
		return authz.Refusal{}, false
	}
	var grant, credential, where string
	a.forwardedTexts(admission, func(text, in string) bool {
		var found bool
		if grant, credential, found = find(text); found {
			where = in
		}
		return !found
	})
	if where == "" {
		return authz.Refusal{}, false
	}
	refusal := admission.RefuseMisplaced(grant, credential)
	refusal.Detail += ": in " + where
	to := admission.Request.Destination
	refusal.URL = string(to.Scheme()) + "://" + to.HostPort() // the path may contain the placeholder
	return refusal, true
}

// forwardedTexts calls visit with the plugin's texts that the upstream would receive,
// except for the body, and their places, until visit returns false.
func (a *access) forwardedTexts(admission *authz.Admission, visit func(text, in string) bool) {
	to, slot := admission.Request.Destination, admission.Injection
	query := to.Query()
	if slot.Kind == authz.InjectQuery {
		query = httpclean.WithoutParameter(query, slot.Name)
	}
	if !visit(to.Path(), "the path") || !visit(query, "the query") {
		return
	}
	removed := a.removals(nil, slot) // sorted
	for _, h := range a.headers {
		value := h.value
		_, gone := slices.BinarySearch(removed, h.name)
		switch {
		case gone, strings.HasPrefix(h.name, ":"):
			continue
		case h.name == "cookie" && slot.Kind == authz.InjectCookie:
			value = httpclean.WithoutCookie([]string{value}, slot.Name)
		}
		if !visit(h.name, "the name of a header") || !visit(value, "header "+h.name) {
			return
		}
	}
}
