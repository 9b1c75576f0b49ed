package authz

import (
	"slices"
	"testing"
)

// TestNotSecret has fields beside a key that are no secrets: what is searched for in
// answers is the key and the value that it is part of.
func TestNotSecret(t *testing.T) {
	fields := map[string]string{"account": "acme-production", "region": "eu-west-1", "token": "hunter2hunter2"}
	for name, test := range map[string]struct {
		inject         Inject
		notSecret      []string
		secret, public []string
	}{
		"nothing said": {
			Inject{Header: "Authorization", Value: "sso-key {account}:{token}"},
			nil,
			[]string{"sso-key acme-production:hunter2hunter2", "acme-production", "hunter2hunter2"},
			[]string{"sso-key ", ":"},
		},
		"an account": {
			Inject{Header: "Authorization", Value: "sso-key {account}:{token}"},
			[]string{"account"},
			[]string{"sso-key acme-production:hunter2hunter2", "hunter2hunter2"},
			[]string{"sso-key acme-production:"},
		},
		"several": {
			Inject{Cookie: "sid", Value: "{account}/{token}/{region}."},
			[]string{"account", "region"},
			[]string{"acme-production/hunter2hunter2/eu-west-1.", "hunter2hunter2"},
			[]string{"acme-production/", "/eu-west-1."},
		},
		"basic": {
			Inject{Basic: &Basic{"{account}", "{region}{token}"}},
			[]string{"region", "account"},
			[]string{"Basic YWNtZS1wcm9kdWN0aW9uOmV1LXdlc3QtMWh1bnRlcjJodW50ZXIy", "acme-production:eu-west-1hunter2hunter2", "hunter2hunter2"},
			[]string{"acme-production", "eu-west-1"},
		},
	} {
		g := with(test.inject, "secret/data/weather")
		g.Credentials[0].Vault.NotSecret = test.notSecret
		w := newWorld(t, input(g))
		w.source.credential = Credential{Fields: secrets(fields), Generation: 1}
		got := w.admit(t, get(t, forecastURL)).Injection
		if !slices.Equal(revealed(got.Secrets()), test.secret) || !slices.Equal(got.NotSecret(), test.public) {
			t.Errorf("%s: %q are secret, %q are not; want %q and %q", name, revealed(got.Secrets()), got.NotSecret(), test.secret, test.public)
		}
	}
}
