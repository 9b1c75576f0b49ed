package extauthz

import (
	"slices"
	"testing"

	"github.com/chaperone-proxy/chaperone/authz"
)

// TestRemovals checks that headers which a server could take for a removed one are
// removed in the spelling that was sent, as the proxy does.
func TestRemovals(t *testing.T) {
	for name, test := range map[string]struct {
		headers    []header
		slot       authz.Injection
		want, keep []string
	}{
		"nominated by Connection": {
			headers: []header{{"connection", "X_Note, close, , te"}, {"x-note", "1"}, {"x_note", "2"}, {"te", "trailers"}, {"x-other", "3"}},
			want:    []string{"x-note", "x_note"}, keep: []string{"te", "close", "connection", "x-other"},
		},
		"not shown":                 {want: []string{"forwarded", "proxy-authenticate", "proxy-authentication-info", "proxy-authorization", "x-original-url"}},
		"underscores":               {headers: []header{{"transfer_encoding", "chunked"}, {"content_length", "1"}, {"x_forwarded_tls", "1"}}, want: []string{"content_length", "transfer_encoding", "x_forwarded_tls"}},
		"consumed by the caller":    {headers: []header{{"transfer-encoding", "chunked"}, {"upgrade", "websocket"}, {"content-length", "1"}}, keep: []string{"content-length", "transfer-encoding", "upgrade"}},
		"spellings of a credential": {headers: []header{{"x_api_key", "mine"}, {"x-api_key", "mine"}}, slot: authz.Injection{Kind: authz.InjectHeader, Name: "x-api-key"}, want: []string{"x-api_key", "x_api_key"}},
	} {
		a := &access{headers: test.headers}
		if _, detail := a.scan(); detail != "" {
			t.Errorf("%s: scan() = %q, want no fault", name, detail)
		}
		got := a.removals(nil, test.slot)
		for _, header := range test.want {
			if !slices.Contains(got, header) {
				t.Errorf("%s: removals() = %q, want %q among them", name, got, header)
			}
		}
		for _, header := range test.keep {
			if slices.Contains(got, header) {
				t.Errorf("%s: removals() = %q, want %q not among them", name, got, header)
			}
		}
	}
}
