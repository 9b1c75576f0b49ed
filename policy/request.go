package policy

import (
	"errors"
	"fmt"
	"strings"

	"github.com/chaperone-proxy/chaperone/authz"
)

// Request reads an access of a plugin, written as METHOD and URL. The method of a tls or
// tcp URL is CONNECT or -. upgrade is the protocol that the access upgrades to, or "". Its
// error states what is malformed.
func Request(plugin authz.Principal, method, url, upgrade string) (authz.Request, error) {
	scheme, rest, ok := strings.Cut(url, "://")
	if !ok {
		return authz.Request{}, fmt.Errorf("%q is not a URL, as in https://api.weather.example/v1", url)
	}
	req := authz.Request{Principal: plugin}
	target := ""
	if i := strings.IndexAny(rest, "/?"); i >= 0 {
		rest, target = rest[:i], rest[i:]
	}
	s := authz.Scheme(strings.ToLower(scheme))
	var err error
	switch {
	case s.HTTP():
		if req.Action, err = authz.NewAction(method, upgrade); err != nil {
			return req, err
		}
	case method != "CONNECT" && method != "-":
		return req, errors.New("a tunnel's method is CONNECT")
	case upgrade != "":
		return req, errors.New("a tunnel has no upgrade")
	}
	req.Destination, err = authz.NewDestination(s, rest, target)
	return req, err
}

// Text returns an access as [Request] reads it.
func Text(req authz.Request) (method, url, upgrade string) {
	to := req.Destination
	method = req.Action.Method
	if !to.Scheme().HTTP() {
		method = "CONNECT"
	}
	return method, string(to.Scheme()) + "://" + to.Authority() + to.Target(), req.Action.Upgrade
}

// Format returns an access on one line, METHOD URL, and the upgrade if there is one.
func Format(req authz.Request) string {
	method, url, upgrade := Text(req)
	if upgrade != "" {
		return method + " " + url + " (upgrade " + upgrade + ")"
	}
	return method + " " + url
}
