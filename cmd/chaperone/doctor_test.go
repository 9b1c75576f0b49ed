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

// TestDoctorSpendsNoLogin has doctor examine every kind of login that has a limit
// on its uses, beside no sidecar and beside one that runs.
func TestDoctorSpendsNoLogin(t *testing.T) {
	for _, kind := range []string{"secret id of one use", "token of few uses"} {
		t.Run(kind, func(t *testing.T) {
			w := newWorld(t, "off", "")
			doctor := func(args ...string) result {
				return w.chaperone(append([]string{"doctor", "--config", w.file("sidecar.yaml")}, args...)...)
			}
			uses := w.limitLogin(kind)
			before := uses()
			for range 3 {
				r := doctor()
				if r.status != 0 {
					t.Fatalf("status %d\n%s%s", r.status, r.stdout, r.stderr)
				}
				contains(t, r.stdout, "pass  Vault "+w.vault.Address+" answers", "a login may use something up")
			}
			if after := uses(); after != before {
				t.Fatalf("of %d uses %d are left", before, after)
			}

			w.serve()
			r := doctor()
			contains(t, r.stdout, "pass  login to Vault "+w.vault.Address+" (of the sidecar that runs, pid ")
			if r.status != 0 {
				t.Errorf("beside a sidecar that is well: status %d\n%s", r.status, r.stdout)
			}
		})
	}
	t.Run("asked to log in", func(t *testing.T) {
		w := newWorld(t, "off", "")
		uses := w.limitLogin("secret id of one use")
		contains(t, w.chaperone("doctor", "--login", "--config", w.file("sidecar.yaml")).stdout, "pass  login to Vault "+w.vault.Address+"\n")
		if uses() != 0 {
			t.Error("no login was made")
		}
		contains(t, w.chaperone("doctor", "--login", "--config", w.file("sidecar.yaml")).stdout, "FAIL  login to Vault", "invalid role or secret ID")
	})
	t.Run("no Vault", func(t *testing.T) {
		w := newWorld(t, "off", "")
		testenv.Must(t, w.vault.Seal(t.Context()))
		contains(t, w.chaperone("doctor", "--config", w.file("sidecar.yaml")).stdout, "FAIL  Vault "+w.vault.Address+": look at Vault's health: it is sealed")
		w.write("secret-id", "")
		contains(t, w.chaperone("doctor", "--config", w.file("sidecar.yaml")).stdout, "FAIL  Vault", "does not hold one word")
	})
}

// limitLogin gives the sidecar a login that may be used few times, and returns how
// many are left.
func (w *world) limitLogin(kind string) (left func() int) {
	w.t.Helper()
	ctx := w.t.Context()
	if kind == "secret id of one use" {
		made := testenv.MustGet(w.vault.Write(ctx, "auth/approle/role/weather/secret-id", map[string]any{"num_uses": 1}))(w.t)
		id := fmt.Sprint(made["secret_id"])
		w.write("secret-id", id)
		return func() int {
			answer, err := w.vault.Write(ctx, "auth/approle/role/weather/secret-id/lookup", map[string]any{"secret_id": id})
			if err != nil || answer == nil {
				return 0
			}
			n, _ := answer["secret_id_num_uses"].(float64)
			return int(n)
		}
	}
	answer := testenv.MustGet(w.vault.Do(ctx, http.MethodPost, "auth/token/create", w.vault.Token, map[string]any{
		"policies": []string{"weather"}, "no_parent": true, "ttl": "1h", "num_uses": 20,
	}))(w.t)
	token := fmt.Sprint(answer["auth"].(map[string]any)["client_token"])
	w.write("token", token)
	w.write("sidecar.yaml", strings.Replace(w.read("sidecar.yaml"), "method: approle, roleIDFile: role-id, secretIDFile: secret-id", "method: token, tokenFile: token", 1))
	return func() int {
		looked := testenv.MustGet(w.vault.Write(ctx, "auth/token/lookup", map[string]any{"token": token}))(w.t)
		n, _ := looked["num_uses"].(float64)
		return int(n)
	}
}
