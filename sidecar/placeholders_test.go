package sidecar

import (
	"os"
	"regexp"
	"strings"
	"testing"

	"github.com/chaperone-proxy/chaperone/authz"
	"github.com/chaperone-proxy/chaperone/internal/testenv"
)

func placeholderGrants(like string) []authz.Grant {
	credential := authz.CredentialSpec{Name: "key", Placeholder: &authz.PlaceholderSpec{Env: "WEATHER_API_KEY", Like: like}}
	return []authz.Grant{
		{Name: "weather", Plugin: "weather", Credentials: []authz.CredentialSpec{credential, {Name: "other"}}},
		{Name: "another", Plugin: "another", Credentials: []authz.CredentialSpec{credential}},
	}
}

func TestPlaceholdersAreRandomAndStay(t *testing.T) {
	file := t.TempDir() + "/placeholders.env"
	p := testenv.MustGet(newPlaceholders(file))(t)
	testenv.Must(t, p.follow("weather", placeholderGrants("wk_{32}_live")))
	first := p.environment()["WEATHER_API_KEY"]
	if !regexp.MustCompile(`^wk_[A-Za-z0-9]{32}_live$`).MatchString(first) || len(p.current()) != 1 {
		t.Fatalf("%q of %d", first, len(p.current()))
	}
	info := testenv.MustGet(os.Stat(file))(t)
	if got := string(testenv.MustGet(os.ReadFile(file))(t)); got != "WEATHER_API_KEY="+first+"\n" || info.Mode().Perm() != 0o600 {
		t.Errorf("%s %q", info.Mode(), got)
	}
	was := p.current()
	testenv.Must(t, p.follow("weather", placeholderGrants("wk_{32}_live")))
	if &was[0] != &p.current()[0] {
		t.Error("made again though nothing has changed")
	}
	restarted := testenv.MustGet(newPlaceholders(file))(t)
	testenv.Must(t, restarted.follow("weather", placeholderGrants("wk_{32}_live")))
	if got := restarted.environment()["WEATHER_API_KEY"]; got != first {
		t.Errorf("got %q after a restart, want %q", got, first)
	}
	testenv.Must(t, restarted.follow("weather", placeholderGrants("sk_{16}")))
	if got := restarted.environment()["WEATHER_API_KEY"]; !strings.HasPrefix(got, "sk_") || len(restarted.current()) != 2 {
		t.Errorf("%q; %d are looked for", got, len(restarted.current()))
	}
	other := testenv.MustGet(newPlaceholders(""))(t)
	testenv.Must(t, other.follow("weather", placeholderGrants("wk_{32}_live")))
	if got := other.environment()["WEATHER_API_KEY"]; got == first {
		t.Error("two sidecars made the same")
	}
}
