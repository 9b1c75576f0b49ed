package main

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/netip"
	"strings"
	"testing"

	"github.com/chaperone-proxy/chaperone/internal/testenv"
	"github.com/chaperone-proxy/chaperone/internal/testenv/scenario"
)

// wrapSecretID replaces the secret id by one that is wrapped.
func (w *env) wrapSecretID() {
	w.T.Helper()
	req := testenv.MustGet(http.NewRequestWithContext(w.T.Context(), http.MethodPost, w.Vault.Address+"/v1/auth/approle/role/weather/secret-id", nil))(w.T)
	req.Header.Set("X-Vault-Token", w.Vault.Token)
	req.Header.Set("X-Vault-Wrap-TTL", "10m")
	answer := testenv.MustGet(http.DefaultClient.Do(req))(w.T)
	defer answer.Body.Close()
	var wrapped struct {
		WrapInfo struct {
			Token string `json:"token"`
		} `json:"wrap_info"`
	}
	testenv.Must(w.T, json.NewDecoder(answer.Body).Decode(&wrapped))
	w.Write("secret-id", wrapped.WrapInfo.Token)
	w.Write("sidecar.yaml", strings.Replace(w.Read("sidecar.yaml"), "secretIDFile: secret-id", "secretIDFile: secret-id, secretIDWrapped: true, role: weather", 1))
}

// TestDoctorUsesNothingUp has doctor look a wrapped secret id up and not unwrap it.
func TestDoctorUsesNothingUp(t *testing.T) {
	w := newEnv(t, "off", "")
	w.wrapSecretID()
	for range 2 {
		r := w.Chaperone("doctor", "--config", w.File("sidecar.yaml"))
		if r.Status != 0 {
			t.Fatalf("status %d\n%s%s", r.Status, r.Stdout, r.Stderr)
		}
		scenario.Contains(t, r.Stdout, "pass  wrapped secret id at Vault "+w.Vault.Address+" (looked up and left wrapped;")
	}
	if r := w.Run("true"); r.Status != 0 {
		t.Fatalf("run after doctor: status %d\n%s", r.Status, r.Stderr)
	}
	if r := w.Chaperone("doctor", "--config", w.File("sidecar.yaml")); r.Status != exitFailure || !strings.Contains(r.Stdout, "FAIL  wrapped secret id") {
		t.Errorf("of one that is used up: status %d\n%s", r.Status, r.Stdout)
	}
}

// TestDoctorNames names the server that was asked, and finds addresses that no
// rule allows and grants that end.
func TestDoctorNames(t *testing.T) {
	w := newEnv(t, "off", "")
	server := testenv.MustDNS(t)
	w.Write("sidecar.yaml", strings.Replace(w.Read("sidecar.yaml"), "dns: {hosts: {"+scenario.Host+": [127.0.0.1]}}", fmt.Sprintf("dns: {servers: [%q]}", server.Addr), 1))
	r := w.Chaperone("doctor", "--config", w.File("sidecar.yaml"))
	scenario.Contains(t, r.Stdout, "      code: names.resolve", "warn  name "+scenario.Host+": "+server.Addr.String()+": no such name", "dns.hosts", "\nnames\n", "\nvault\n",
		"chaperone "+buildVersion()+" on Linux ", "warn  grant weather until ", "it ends in", " 0 FAIL\n")
	server.Set(scenario.Host, netip.MustParseAddr("10.1.2.3"))
	scenario.Contains(t, w.Chaperone("doctor", "--config", w.File("sidecar.yaml")).Stdout,
		"warn  name "+scenario.Host+": resolves to 10.1.2.3, which rule weather/api does not allow", "to.addresses")
	server.Set(scenario.Host, netip.MustParseAddr("127.0.0.1"))
	scenario.Contains(t, w.Chaperone("doctor", "--config", w.File("sidecar.yaml")).Stdout, "pass  name "+scenario.Host)
	server.Fail(scenario.Host, 5)
	scenario.Contains(t, w.Chaperone("doctor", "--config", w.File("sidecar.yaml")).Stdout, "warn  name "+scenario.Host+": "+server.Addr.String()+": ")
}

// TestDoctorSpendsNoLogin has doctor examine every kind of login that has a limit
// on its uses, beside no sidecar and beside one that runs.
func TestDoctorSpendsNoLogin(t *testing.T) {
	for _, kind := range []string{"secret id of one use", "token of few uses"} {
		t.Run(kind, func(t *testing.T) {
			w := newEnv(t, "off", "")
			doctor := func(args ...string) scenario.Result {
				return w.Chaperone(append([]string{"doctor", "--config", w.File("sidecar.yaml")}, args...)...)
			}
			uses := w.limitLogin(kind)
			before := uses()
			for range 3 {
				r := doctor()
				if r.Status != 0 {
					t.Fatalf("status %d\n%s%s", r.Status, r.Stdout, r.Stderr)
				}
				scenario.Contains(t, r.Stdout, "pass  Vault "+w.Vault.Address+" answers", "a login may use something up")
			}
			if after := uses(); after != before {
				t.Fatalf("of %d uses %d are left", before, after)
			}

			w.Serve()
			r := doctor()
			scenario.Contains(t, r.Stdout, "pass  login to Vault "+w.Vault.Address+" (of the sidecar that runs, pid ")
			if r.Status != 0 {
				t.Errorf("beside a sidecar that is well: status %d\n%s", r.Status, r.Stdout)
			}
		})
	}
	t.Run("asked to log in", func(t *testing.T) {
		w := newEnv(t, "off", "")
		uses := w.limitLogin("secret id of one use")
		scenario.Contains(t, w.Chaperone("doctor", "--login", "--config", w.File("sidecar.yaml")).Stdout, "pass  login to Vault "+w.Vault.Address+"\n")
		if uses() != 0 {
			t.Error("no login was made")
		}
		scenario.Contains(t, w.Chaperone("doctor", "--login", "--config", w.File("sidecar.yaml")).Stdout, "FAIL  login to Vault", "invalid role or secret ID")
	})
	t.Run("no Vault", func(t *testing.T) {
		w := newEnv(t, "off", "")
		testenv.Must(t, w.Vault.Seal(t.Context()))
		scenario.Contains(t, w.Chaperone("doctor", "--config", w.File("sidecar.yaml")).Stdout, "FAIL  Vault "+w.Vault.Address+": look at Vault's health: it is sealed")
		w.Write("secret-id", "")
		scenario.Contains(t, w.Chaperone("doctor", "--config", w.File("sidecar.yaml")).Stdout, "FAIL  Vault", "does not hold one word")
	})
}

// limitLogin gives the sidecar a login that may be used few times, and returns how
// many are left.
func (w *env) limitLogin(kind string) (left func() int) {
	w.T.Helper()
	ctx := w.T.Context()
	if kind == "secret id of one use" {
		made := testenv.MustGet(w.Vault.Write(ctx, "auth/approle/role/weather/secret-id", map[string]any{"num_uses": 1}))(w.T)
		id := fmt.Sprint(made["secret_id"])
		w.Write("secret-id", id)
		return func() int {
			answer, err := w.Vault.Write(ctx, "auth/approle/role/weather/secret-id/lookup", map[string]any{"secret_id": id})
			if err != nil || answer == nil {
				return 0
			}
			n, _ := answer["secret_id_num_uses"].(float64)
			return int(n)
		}
	}
	answer := testenv.MustGet(w.Vault.Do(ctx, http.MethodPost, "auth/token/create", w.Vault.Token, map[string]any{
		"policies": []string{"weather"}, "no_parent": true, "ttl": "1h", "num_uses": 20,
	}))(w.T)
	token := fmt.Sprint(answer["auth"].(map[string]any)["client_token"])
	w.Write("token", token)
	w.Write("sidecar.yaml", strings.Replace(w.Read("sidecar.yaml"), "method: approle, roleIDFile: role-id, secretIDFile: secret-id", "method: token, tokenFile: token", 1))
	return func() int {
		looked := testenv.MustGet(w.Vault.Write(ctx, "auth/token/lookup", map[string]any{"token": token}))(w.T)
		n, _ := looked["num_uses"].(float64)
		return int(n)
	}
}
