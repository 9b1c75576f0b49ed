package main

import (
	"encoding/json"
	"fmt"
	"os"
	"strings"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/chaperone-proxy/chaperone/authz"
)

// pluginID is who the checks say is asking.
const pluginID = "spiffe://weather.example/ns/plugins/sa/weather"

// pathPrefix is below what a rule's paths are.
func pathPrefix(rule int) string { return fmt.Sprintf("/api/v1/res%d/", rule) }

// below is the name that a rule's hosts are one label below.
func below(rule int) string { return fmt.Sprintf("svc-%04d.weather.example", rule) }

// site is what is decided in the scenes that compare engines: rules, requests
// that they allow and requests that they do not. Its exported fields are a file
// for the rivals, which names them in the same way.
type site struct {
	Principal       string
	Rules           []siteRule
	Requests        []siteRequest
	Allowed, Denied []byte // CheckResponses, as Chaperone answers
}

// siteRule allows methods at the hosts one label below a name, under a path.
type siteRule struct {
	Below   string
	Methods []string
	Prefix  string
}

// siteRequest is one access, and what has to be decided about it.
type siteRequest struct {
	Principal, Method, Host, Path string
	Allowed                       bool
}

// newSite returns n rules and five requests for each: four of five are to be
// allowed; the fifth is for a host that only ends in the same letters, a path
// beside the granted one, or a method that is not granted, in turn. They are in
// an order in which neighbours have nothing to do with each other, the fifth
// in every fifth place.
func newSite(n int) *site {
	s := &site{Principal: pluginID}
	for i := range n {
		s.Rules = append(s.Rules, siteRule{below(i), []string{"GET", "POST"}, pathPrefix(i)})
	}
	for i := range 5 * n {
		// A step that has no factor in common with n visits every rule.
		rule := i * 7919 % n
		r := siteRequest{pluginID, "GET", fmt.Sprintf("api-%d.%s", i%7, below(rule)), pathPrefix(rule) + fmt.Sprintf("items/%06d/details", i), true}
		if i%5 == 4 {
			r.Allowed = false
			switch i / 5 % 3 {
			case 0:
				r.Host = "api." + "evil" + below(rule)
			case 1:
				r.Path = strings.Replace(r.Path, "/api/v1/", "/api/v2/", 1)
			case 2:
				r.Method = "DELETE"
			}
		}
		s.Requests = append(s.Requests, r)
	}
	return s
}

// write writes the rivals' file.
func (s *site) write(path string) error {
	text, err := json.Marshal(s)
	if err != nil {
		return err
	}
	return os.WriteFile(path, text, 0o600)
}

// check returns the CheckRequest that Envoy makes of a request: with raw headers,
// twelve of them, of a plugin that came with a client certificate.
func check(i int, r siteRequest) *authv3.CheckRequest {
	var headers []*corev3.HeaderValue
	for _, h := range [][2]string{
		{":authority", r.Host},
		{":path", r.Path},
		{":method", r.Method},
		{":scheme", "https"},
		{"user-agent", "weather-cards/2.11.0 (linux; amd64) node/22.11.0 undici/6.21.0"},
		{"accept", "application/json"},
		{"accept-encoding", "gzip, deflate, br"},
		{"content-type", "application/json"},
		{"x-request-id", fmt.Sprintf("%08x-6a1b-4f6e-9a33-7d5a7b2f8c11", i)},
		{"x-forwarded-proto", "https"},
		{"traceparent", fmt.Sprintf("00-0af7651916cd43dd8448eb21%08x-b7ad6b7169203331-01", i)},
		{"x-envoy-internal", "true"},
	} {
		headers = append(headers, &corev3.HeaderValue{Key: h[0], RawValue: []byte(h[1])})
	}
	socket := func(address string, port uint32) *corev3.Address {
		return &corev3.Address{Address: &corev3.Address_SocketAddress{SocketAddress: &corev3.SocketAddress{
			Address: address, PortSpecifier: &corev3.SocketAddress_PortValue{PortValue: port},
		}}}
	}
	return &authv3.CheckRequest{Attributes: &authv3.AttributeContext{
		Source:      &authv3.AttributeContext_Peer{Address: socket("10.8.3.17", uint32(20_000+i%40_000)), Principal: r.Principal},
		Destination: &authv3.AttributeContext_Peer{Address: socket("10.8.0.2", 15006), Principal: "spiffe://weather.example/ns/plugins/sa/egress"},
		Request: &authv3.AttributeContext_Request{
			Time: timestamppb.New(time.Date(2026, 11, 22, 0, 0, 0, i, time.UTC)),
			Http: &authv3.AttributeContext_HttpRequest{
				Id: fmt.Sprint(11400714819323198485 - uint64(i)), Method: r.Method, Host: r.Host, Path: r.Path, Scheme: "https", Protocol: "HTTP/1.1",
				HeaderMap: &corev3.HeaderMap{Headers: headers},
			},
		},
		ContextExtensions: map[string]string{"plugin": "weather"},
		MetadataContext:   &corev3.Metadata{}, RouteMetadataContext: &corev3.Metadata{}, // Envoy sends them empty
	}}
}

// checks returns the wire form of every request's check.
func (s *site) checks() ([][]byte, error) {
	var all [][]byte
	for i, r := range s.Requests {
		wire, err := proto.Marshal(check(i, r))
		if err != nil {
			return nil, err
		}
		all = append(all, wire)
	}
	return all, nil
}

// grant returns the rules as a plugin is granted them.
func (s *site) grant() authz.Grant {
	grant := authz.Grant{Name: "weather", Plugin: "weather", NotAfter: time.Now().Add(24 * time.Hour)}
	for i, r := range s.Rules {
		grant.Rules = append(grant.Rules, authz.Rule{
			ID: fmt.Sprintf("r%d", i), Reason: "benchmark", To: authz.To{Hosts: []string{"*." + r.Below}}, Methods: r.Methods, Paths: []string{r.Prefix + "**"},
		})
	}
	return grant
}
