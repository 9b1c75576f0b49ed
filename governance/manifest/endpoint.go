package manifest

import (
	"errors"
	"fmt"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/chaperone-proxy/chaperone/authz"
)

// endpoint is a destination as foreign files write it.
type endpoint struct {
	to   authz.To
	path string // "" without one
}

// parseEndpoint reads HOST, HOST:PORT, *.HOST or a URL. Its error is what is open: a part
// that is filled in elsewhere, or one that no permission can state.
func parseEndpoint(text string) (endpoint, error) {
	text = strings.TrimSpace(text)
	switch {
	case text == "":
		return endpoint{}, errors.New("is empty")
	case strings.ContainsAny(text, "{}$<>"):
		return endpoint{}, errors.New("is filled in elsewhere; name the hosts that it stands for")
	case strings.Trim(text, "*.") == "" || strings.HasSuffix(text, "://*"):
		return endpoint{}, errors.New("is every host; name the hosts")
	}
	if !strings.Contains(text, "://") {
		text = "https://" + text
	}
	u, err := url.Parse(text)
	if err != nil {
		return endpoint{}, errors.New("is not a URL or a host")
	}
	if u.User != nil {
		return endpoint{}, errors.New("holds a user and maybe a password; name a credential")
	}
	var e endpoint
	switch u.Scheme {
	case "https", "wss":
	case "http", "ws":
		e.to.Scheme = authz.SchemeHTTP
	default:
		return endpoint{}, fmt.Errorf("is of scheme %s, which is not imported; write a permission for it", quote(u.Scheme))
	}
	e.to.Hosts = []string{strings.TrimSuffix(strings.ToLower(u.Hostname()), ".")}
	if p := u.Port(); p != "" {
		port, err := strconv.ParseUint(p, 10, 16)
		if err != nil || port == 0 {
			return endpoint{}, fmt.Errorf("has the port %s, which is not one", quote(p))
		}
		if scheme := schemeOf(e.to); uint16(port) != scheme.DefaultPort() {
			e.to.Ports = []uint16{uint16(port)}
		}
	}
	if why := refused(authz.Rule{To: e.to, Methods: []string{"GET"}, Paths: []string{"/"}}); why != "" {
		return endpoint{}, errors.New(why)
	}
	e.path = u.EscapedPath()
	return e, nil
}

func schemeOf(to authz.To) authz.Scheme {
	if to.Scheme == "" {
		return authz.SchemeHTTPS
	}
	return to.Scheme
}

// refused returns why no policy may hold a rule, "" if one may.
func refused(r authz.Rule) string {
	r.ID, r.Reason = "r", "imported"
	in := authz.Input{Plugin: "p", Grants: []authz.Grant{{Name: "g", Plugin: "p", NotAfter: time.Unix(1, 0), Rules: []authz.Rule{r}}}}
	if _, problems := authz.Compile(in, time.Time{}); len(problems) > 0 {
		return problems[0].Message
	}
	return ""
}

// label is what a permission for an endpoint is called.
func (e endpoint) label() string {
	host := strings.TrimLeft(e.to.Hosts[0], "*.")
	if len(e.to.Ports) > 0 {
		host += "-" + strconv.Itoa(int(e.to.Ports[0]))
	}
	return host
}

// templatePath turns a path with {NAME} for segments into one with *. It reports false for a path in
// which a template is a part of a segment, which * would be wider than.
func templatePath(path string) (string, bool) {
	segments := strings.Split(path, "/")
	for i, s := range segments {
		if strings.HasPrefix(s, "{") && strings.HasSuffix(s, "}") && strings.Count(s, "{") == 1 && strings.Count(s, "}") == 1 {
			segments[i] = "*"
		} else if strings.ContainsAny(s, "{}*") {
			return "", false
		}
	}
	return strings.Join(segments, "/"), true
}
