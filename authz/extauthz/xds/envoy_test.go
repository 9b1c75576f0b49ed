package xds_test

import (
	"net/http"
	"testing"

	"github.com/chaperone-proxy/chaperone/authz"
)

func TestEnvoyExplicit(t *testing.T) {
	p := newPlane(t, nil, grant(authz.Rule{
		ID: "old", To: authz.To{Hosts: []string{"old.weather.example"}, TLS: authz.TLS{Originate: true}},
		Methods: []string{"GET"}, Paths: []string{"/echo"},
	}))
	p.exits.to["old.weather.example:443"] = p.secure.Addr
	resp, body := p.send(t, get("http://old.weather.example/echo"))
	if resp.StatusCode != http.StatusOK || p.secure.Total() != 1 {
		t.Errorf("%s %v %s", resp.Status, resp.Header, body)
	}
	t.Log(body)
	resp, body = p.send(t, get("http://evil.example/echo"))
	if resp.StatusCode != http.StatusForbidden || resp.Header.Get(authz.HeaderReason) != "destination_not_granted" || p.secure.Total() != 1 {
		t.Errorf("%s %v %s", resp.Status, resp.Header, body)
	}
}
