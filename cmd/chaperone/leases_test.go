package main

import (
	"fmt"
	"regexp"
	"strings"
	"testing"

	"github.com/chaperone-proxy/chaperone/internal/testenv"
)

// leased starts a world whose credential is of an example of the documentation.
func leased(t *testing.T, title string) *world {
	t.Helper()
	all := examples(t)
	e := all[title]
	w := newWorld(t, "off", "")
	if strings.Contains(title, "database") {
		withDatabase(t, w, &e)
	}
	if title == "A client certificate" {
		withClientCertificates(t, w, &e)
	}
	all["AppRole"].setUp(t, w)
	testenv.Must(t, w.vault.Policy(t.Context(), "weather", e.policy))
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
		urls = append(urls, fmt.Sprintf("-o /dev/null '%s?n=%d'", w.url("/open"), i))
	}
	// Each is a TLS handshake, and the proxy gives up one that takes ten seconds.
	curl := "curl -sS -Z --parallel-max 50 -w '%{http_code}\\n' " + strings.Join(urls, " ") + " | sort | uniq -c"
	b := w.start("sh", "-c", "echo cold $("+curl+"); while ! test -e "+w.file("go")+"; do sleep 0.1; done; echo dead $("+curl+"); echo done; sleep 60")
	eventually(t, "cold requests are through", func() (bool, bool) { return true, strings.Contains(b.output.String(), "\ncold ") })
	if leases := testenv.MustGet(w.vault.Leases(t.Context(), "database/creds/weather"))(t); len(leases) != 1 {
		t.Errorf("got %d leases, want 1", len(leases))
	}
	testenv.Must(t, w.vault.Kill())
	w.write("go", "")
	eventually(t, "requests after Vault's end are through", func() (bool, bool) { return true, strings.Contains(b.output.String(), "\ndone") })
	contains(t, b.output.String(), "cold 200 200\n", "dead 200 200\n")
	users := map[string]bool{}
	for _, r := range w.api.Requests() {
		users[basicOf(r)] = true
	}
	if len(users) != 1 || len(w.api.Requests()) != 400 {
		t.Errorf("got %d requests with %d logins, want 400 with 1", len(w.api.Requests()), len(users))
	}
}

// TestLeasesSurviveAKill kills the sidecar, which has leased, and starts it
// again: what the first one left is revoked.
func TestLeasesSurviveAKill(t *testing.T) {
	for title, left := range map[string]func(w *world, file string) bool{
		"A database user's password": func(w *world, _ string) bool {
			return len(testenv.MustGet(w.vault.Leases(w.t.Context(), "database/creds/weather"))(w.t)) > 0
		},
		"A client certificate": func(w *world, file string) bool {
			serial := regexp.MustCompile(`pki/cert/([0-9a-f:]+)`).FindStringSubmatch(file)
			answer := testenv.MustGet(w.vault.Read(w.t.Context(), "pki/cert/"+serial[1]))(w.t)
			return fmt.Sprint(answer["revocation_time"]) == "0"
		},
	} {
		t.Run(title, func(t *testing.T) {
			w := leased(t, title)
			b := w.start("sh", "-c", "curl -sS -o /dev/null "+w.url("/open")+"; echo through; sleep 60")
			eventually(t, "the credential is used", func() (bool, bool) { return true, strings.Contains(b.output.String(), "through") })
			testenv.Must(t, b.cmd.Process.Kill())
			<-b.ended
			file := w.read("state/leases.json")
			if !left(w, file) {
				t.Fatal("got no lease left, want one to revoke")
			}
			w.start("sleep", "60")
			w.ready()
			eventually(t, "revocation of the leases that were left", func() (bool, bool) { return true, !left(w, file) })
		})
	}
}

// TestRevokeGoesOnAskingVault revokes while Vault is sealed: access is gone at
// once, the answer lists what Vault did not confirm, and the lease goes when
// Vault is back.
func TestRevokeGoesOnAskingVault(t *testing.T) {
	w := leased(t, "A database user's password")
	b := w.start("sh", "-c", "curl -sS -o /dev/null "+w.url("/open")+"; echo through; sleep 60")
	eventually(t, "the credential is used", func() (bool, bool) { return true, strings.Contains(b.output.String(), "through") })
	testenv.Must(t, w.vault.Seal(t.Context()))
	r := w.revoke()
	if r.Vault.Unconfirmed != 1 || r.MS > 5000 {
		t.Errorf("%+v", r)
	}
	testenv.Must(t, w.vault.Unseal(t.Context()))
	eventually(t, "the lease is revoked", func() (bool, bool) {
		leases, err := w.vault.Leases(t.Context(), "database/creds/weather")
		return true, err == nil && len(leases) == 0
	})
}

// TestUpstreamRefusesWhatWasRevoked has an operator revoke a lease at Vault: the
// upstream's 401 is how the sidecar learns of it, and no request after that
// goes out with what was revoked.
func TestUpstreamRefusesWhatWasRevoked(t *testing.T) {
	w := leased(t, "A database user's password")
	b := w.start("sh", "-c", "curl -sS -o /dev/null "+w.url("/open")+"; echo through; while ! test -e "+w.file("go")+
		"; do sleep 0.1; done; for i in $(seq 100); do curl -sS -o /dev/null "+w.url("/echo")+"; sleep 0.1; done; sleep 60")
	eventually(t, "the credential is used", func() (bool, bool) { return true, strings.Contains(b.output.String(), "through") })
	first := basicOf(w.api.Requests()[0])
	testenv.Must(t, w.vault.RevokeLeases(t.Context(), "database/creds/weather"))
	w.write("go", "")
	eventually(t, "another login is used", func() (bool, bool) {
		all := w.api.Requests()
		return true, basicOf(all[len(all)-1]) != first
	})
	if leases := testenv.MustGet(w.vault.Leases(t.Context(), "database/creds/weather"))(t); len(leases) != 1 {
		t.Errorf("%d leases: what is refused again and again was leased again and again", len(leases))
	}
}
