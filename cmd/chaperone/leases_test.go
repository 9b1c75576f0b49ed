package main

import (
	"fmt"
	"regexp"
	"strings"
	"testing"

	"github.com/chaperone-proxy/chaperone/internal/testenv"
	"github.com/chaperone-proxy/chaperone/internal/testenv/scenario"
)

// leased starts a world whose credential is of an example of the documentation.
func leased(t *testing.T, title string) *env {
	t.Helper()
	all := examples(t)
	e := all[title]
	w := newEnv(t, "off", "")
	if strings.Contains(title, "database") {
		withDatabase(t, w, &e)
	}
	if title == "A client certificate" {
		withClientCertificates(t, w, &e)
	}
	all["AppRole"].setUp(t, w)
	testenv.Must(t, w.Vault.Policy(t.Context(), "weather", e.policy))
	e.setUp(t, w)
	e.use(t, w)
	return w
}

// TestManyAtOnceLeaseOnce sends two hundred requests, fifty at a time, and the first
// of them before there is a credential. Then Vault dies, and they go on.
func TestManyAtOnceLeaseOnce(t *testing.T) {
	w := leased(t, "A database user's password")
	var urls []string
	for i := range 200 {
		urls = append(urls, fmt.Sprintf("-o /dev/null '%s?n=%d'", w.URL("/open"), i))
	}
	// Each is a TLS handshake, and the proxy gives up one that takes ten seconds.
	curl := "curl -sS -Z --parallel-max 50 -w '%{http_code}\\n' " + strings.Join(urls, " ") + " | sort | uniq -c"
	b := w.Start("sh", "-c", "echo cold $("+curl+"); while ! test -e "+w.File("go")+"; do sleep 0.1; done; echo dead $("+curl+"); echo done; sleep 60")
	testenv.Eventually(t, "cold requests are through", func() (bool, bool) { return true, strings.Contains(b.Output.String(), "\ncold ") })
	if leases := testenv.MustGet(w.Vault.Leases(t.Context(), "database/creds/weather"))(t); len(leases) != 1 {
		t.Errorf("got %d leases, want 1", len(leases))
	}
	testenv.Must(t, w.Vault.Kill())
	w.Write("go", "")
	testenv.Eventually(t, "requests after Vault's end are through", func() (bool, bool) { return true, strings.Contains(b.Output.String(), "\ndone") })
	scenario.Contains(t, b.Output.String(), "cold 200 200\n", "dead 200 200\n")
	users := map[string]bool{}
	for _, r := range w.API.Requests() {
		users[basicOf(r)] = true
	}
	if len(users) != 1 || len(w.API.Requests()) != 400 {
		t.Errorf("got %d requests with %d logins, want 400 with 1", len(w.API.Requests()), len(users))
	}
}

// TestLeasesSurviveAKill kills the sidecar, which has leased, and starts it
// again: what the first one left is revoked.
func TestLeasesSurviveAKill(t *testing.T) {
	for title, left := range map[string]func(w *env, file string) bool{
		"A database user's password": func(w *env, _ string) bool {
			return len(testenv.MustGet(w.Vault.Leases(w.T.Context(), "database/creds/weather"))(w.T)) > 0
		},
		"A client certificate": func(w *env, file string) bool {
			serial := regexp.MustCompile(`pki/cert/([0-9a-f:]+)`).FindStringSubmatch(file)
			answer := testenv.MustGet(w.Vault.Read(w.T.Context(), "pki/cert/"+serial[1]))(w.T)
			return fmt.Sprint(answer["revocation_time"]) == "0"
		},
	} {
		t.Run(title, func(t *testing.T) {
			w := leased(t, title)
			b := w.Start("sh", "-c", "curl -sS -o /dev/null "+w.URL("/open")+"; echo through; sleep 60")
			testenv.Eventually(t, "the credential is used", func() (bool, bool) { return true, strings.Contains(b.Output.String(), "through") })
			testenv.Must(t, b.Cmd.Process.Kill())
			<-b.Ended
			file := w.Read("state/leases.json")
			if !left(w, file) {
				t.Fatal("got no lease left, want one to revoke")
			}
			w.Start("sleep", "60")
			w.Ready()
			testenv.Eventually(t, "revocation of the leases that were left", func() (bool, bool) { return true, !left(w, file) })
		})
	}
}

// TestRevokeGoesOnAskingVault revokes while Vault is sealed: access is gone at
// once, the answer lists what Vault did not confirm, and the lease goes when
// Vault is back.
func TestRevokeGoesOnAskingVault(t *testing.T) {
	w := leased(t, "A database user's password")
	b := w.Start("sh", "-c", "curl -sS -o /dev/null "+w.URL("/open")+"; echo through; sleep 60")
	testenv.Eventually(t, "the credential is used", func() (bool, bool) { return true, strings.Contains(b.Output.String(), "through") })
	testenv.Must(t, w.Vault.Seal(t.Context()))
	r := w.Revoke()
	if r.Vault.Unconfirmed != 1 || r.MS > 5000 {
		t.Errorf("%+v", r)
	}
	testenv.Must(t, w.Vault.Unseal(t.Context()))
	testenv.Eventually(t, "the lease is revoked", func() (bool, bool) {
		leases, err := w.Vault.Leases(t.Context(), "database/creds/weather")
		return true, err == nil && len(leases) == 0
	})
}

// TestUpstreamRefusesWhatWasRevoked has an operator revoke a lease at Vault: the
// upstream's 401 is how the sidecar learns of it, and no request after that
// goes out with what was revoked.
func TestUpstreamRefusesWhatWasRevoked(t *testing.T) {
	w := leased(t, "A database user's password")
	b := w.Start("sh", "-c", "curl -sS -o /dev/null "+w.URL("/open")+"; echo through; while ! test -e "+w.File("go")+
		"; do sleep 0.1; done; for i in $(seq 100); do curl -sS -o /dev/null "+w.URL("/echo")+"; sleep 0.1; done; sleep 60")
	testenv.Eventually(t, "the credential is used", func() (bool, bool) { return true, strings.Contains(b.Output.String(), "through") })
	first := basicOf(w.API.Requests()[0])
	testenv.Must(t, w.Vault.RevokeLeases(t.Context(), "database/creds/weather"))
	w.Write("go", "")
	testenv.Eventually(t, "another login is used", func() (bool, bool) {
		all := w.API.Requests()
		return true, basicOf(all[len(all)-1]) != first
	})
	if leases := testenv.MustGet(w.Vault.Leases(t.Context(), "database/creds/weather"))(t); len(leases) != 1 {
		t.Errorf("%d leases: what is refused again and again was leased again and again", len(leases))
	}
}
