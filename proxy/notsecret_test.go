package proxy_test

import (
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/chaperone-proxy/chaperone/authz"
)

// TestNotSecretStays has an API answer with what stands beside the key in the
// credential's value, names of JSON included: it passes, and the key does not.
func TestNotSecretStays(t *testing.T) {
	const account = "acmeProduction2026account"
	api := newAPI(t, func(w http.ResponseWriter, r *http.Request) {
		sent := r.Header.Get("Authorization")
		w.Header().Set("X-Account", account)
		w.Header().Set("Content-Type", "application/json")
		_, _ = io.WriteString(w, `{"`+account+`":"`+account+`","VendorAuthenticationV2":"`+sent+`","key":"`+apiKey+`"}`)
	})
	inject := authz.Inject{Header: "Authorization", Value: "VendorAuthenticationV2 {account}:{api_key}"}
	g := grant(inject, ruleFor(api))
	g.Credentials[0].Vault.NotSecret = []string{"account"}
	w := newWorld(t, setup{input: authz.Input{Grants: []authz.Grant{g}}})
	w.credentials.more = map[string]string{"account": account}
	response, body := send(t, w.client(nil), request(t, "GET", urlOf(api, "/"), ""))
	wantNoKey(t, response, body)
	blank := strings.Repeat("*", len("VendorAuthenticationV2 "+account+":"+apiKey))
	want := `{"` + account + `":"` + account + `","VendorAuthenticationV2":"` + blank + `","key":"` + strings.Repeat("*", len(apiKey)) + `"}`
	if body != want || response.Header.Get("X-Account") != account {
		t.Errorf("answer is %s, want %s, %v", body, want, response.Header)
	}
}
