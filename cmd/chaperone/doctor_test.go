package main

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/netip"
	"strings"
	"testing"

	"github.com/chaperone-proxy/chaperone/internal/testenv"
)

// wrapSecretID replaces the secret id by one that is wrapped.
func (w *world) wrapSecretID() {
	w.t.Helper()
	req := testenv.MustGet(http.NewRequestWithContext(w.t.Context(), http.MethodPost, w.vault.Address+"/v1/auth/approle/role/weather/secret-id", nil))(w.t)
	req.Header.Set("X-Vault-Token", w.vault.Token)
	req.Header.Set("X-Vault-Wrap-TTL", "10m")
	answer := testenv.MustGet(http.DefaultClient.Do(req))(w.t)
	defer answer.Body.Close()
	var wrapped struct {
		WrapInfo struct {
			Token string `json:"token"`
		} `json:"wrap_info"`
	}
	testenv.Must(w.t, json.NewDecoder(answer.Body).Decode(&wrapped))
	w.write("secret-id", wrapped.WrapInfo.Token)
	w.write("sidecar.yaml", strings.Replace(w.read("sidecar.yaml"), "secretIDFile: secret-id", "secretIDFile: secret-id, secretIDWrapped: true, role: weather", 1))
}

// TestDoctorUsesNothingUp has doctor look a wrapped secret id up and not unwrap it.
func TestDoctorUsesNothingUp(t *testing.T) {
	w := newWorld(t, "off", "")
	w.wrapSecretID()
	for range 2 {
		r := w.chaperone("doctor", "--config", w.file("sidecar.yaml"))
		if r.status != 0 {
			t.Fatalf("status %d\n%s%s", r.status, r.stdout, r.stderr)
		}
		contains(t, r.stdout, "pass  wrapped secret id at Vault "+w.vault.Address+" (looked up and left wrapped;")
	}
	if r := w.run("true"); r.status != 0 {
		t.Fatalf("run after doctor: status %d\n%s", r.status, r.stderr)
	}
	if r := w.chaperone("doctor", "--config", w.file("sidecar.yaml")); r.status != exitFailure || !strings.Contains(r.stdout, "FAIL  wrapped secret id") {
		t.Errorf("of one that is used up: status %d\n%s", r.status, r.stdout)
	}
}

// TestDoctorNames names the server that was asked, and finds addresses that no
// rule allows and grants that end.
func TestDoctorNames(t *testing.T) {
	w := newWorld(t, "off", "")
	server := testenv.MustDNS(t)
	w.write("sidecar.yaml", strings.Replace(w.read("sidecar.yaml"), "dns: {hosts: {"+apiHost+": [127.0.0.1]}}", fmt.Sprintf("dns: {servers: [%q]}", server.Addr), 1))
	r := w.chaperone("doctor", "--config", w.file("sidecar.yaml"))
	contains(t, r.stdout, "      code: names.resolve", "warn  name "+apiHost+": "+server.Addr.String()+": no such name", "dns.hosts", "\nnames\n", "\nvault\n",
		"chaperone "+buildVersion()+" on Linux ", "warn  grant weather until ", "it ends in", " 0 FAIL\n")
	server.Set(apiHost, netip.MustParseAddr("10.1.2.3"))
	contains(t, w.chaperone("doctor", "--config", w.file("sidecar.yaml")).stdout,
		"warn  name "+apiHost+": resolves to 10.1.2.3, which rule weather/api does not allow", "to.addresses")
	server.Set(apiHost, netip.MustParseAddr("127.0.0.1"))
	contains(t, w.chaperone("doctor", "--config", w.file("sidecar.yaml")).stdout, "pass  name "+apiHost)
	server.Fail(apiHost, 5)
	contains(t, w.chaperone("doctor", "--config", w.file("sidecar.yaml")).stdout, "warn  name "+apiHost+": "+server.Addr.String()+": ")
}
