package extauthz

import (
	"strings"
	"testing"

	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
)

// TestMisplaced puts the placeholder of a credential where it belongs, and where
// it does not.
func TestMisplaced(t *testing.T) {
	const standIn = "zq-Test7Kp2Lm9Rv4Xw8"
	h := newHouse(t)
	find := func(text string) (grant, credential string, found bool) {
		return "weather", "bearer", strings.Contains(strings.ToLower(text), strings.ToLower(standIn))
	}
	s := h.server(t, Config{FindPlaceholder: func() func(string) (string, string, bool) { return find }})
	for _, test := range []struct {
		name, host, path, where string
		headers                 []string
	}{
		{"its header", "api.weather.example", "/v1/forecast/1", "", []string{"authorization", "Bearer " + standIn}},
		{"its query parameter", "maps.weather.example", "/?KEY=" + standIn + "&a=1", "", nil},
		{"its cookie", "shop.weather.example", "/", "", []string{"cookie", "a=1; sid=" + standIn}},
		{"a removed header", "api.weather.example", "/v1/forecast/1", "", []string{"x-forwarded-for", standIn}},
		{"a cookie that Connection nominates", "shop.weather.example", "/", "", []string{"cookie", "b=" + standIn, "connection", "Cookie"}},
		{"the path", "api.weather.example", "/v1/forecast/" + standIn, "the path", nil},
		{"the query", "maps.weather.example", "/?k=" + standIn, "the query", nil},
		{"another header", "api.weather.example", "/v1/forecast/1", "header x-api-key", []string{"x-api-key", standIn}},
		{"a header's name", "api.weather.example", "/v1/forecast/1", "the name of a header", []string{"x-" + strings.ToLower(standIn), "1"}},
		{"another cookie", "shop.weather.example", "/", "header cookie", []string{"cookie", "b=" + standIn + "; sid=1"}},
		{"a host without a credential", "a.tiles.weather.example", "/", "header authorization", []string{"authorization", "Bearer " + standIn}},
	} {
		for dialect, check := range map[string]func(string, string, string, string, ...string) *authv3.CheckRequest{"folded": envoyCheck, "raw": rawCheck} {
			out := ask(t, s, check("GET", "https", test.host, test.path, test.headers...))
			if test.where == "" {
				if got := reasonOf(out); got != "granted" || strings.Contains(out.GetOkResponse().String(), standIn) {
					t.Errorf("%s, %s: %s, %s", test.name, dialect, got, out)
				}
				continue
			}
			records := h.book.all()
			end := records[len(records)-1]
			if reasonOf(out) != "credential_misplaced" || out.GetStatus().GetCode() == 0 || end.Reason != "credential_misplaced" || !strings.Contains(end.Detail, test.where) {
				t.Errorf("%s, %s: %s, recorded %s %s", test.name, dialect, reasonOf(out), end.Reason, end.Detail)
			}
			if strings.Contains(strings.ToLower(out.String()+end.Detail), strings.ToLower(standIn)) {
				t.Errorf("%s, %s: the placeholder is quoted", test.name, dialect)
			}
		}
	}
}
