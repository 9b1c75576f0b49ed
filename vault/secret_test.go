package vault

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"

	"github.com/chaperone-proxy/chaperone/internal/testenv"
)

// No output of the broker but Credential.Fields, and no file that it writes, holds a
// secret.
func TestNothingSecretIsPrinted(t *testing.T) {
	t.Parallel()
	const canary = "wk_CANARY_5f1c"
	v := testenv.MustVault(t, testenv.VaultConfig{})
	for _, name := range []string{"weather", "echo"} {
		testenv.Must(t, v.PutSecret(t.Context(), name, map[string]any{"api_key": canary}))
	}
	testenv.Must(t, v.PutSecret(t.Context(), "bad", map[string]any{"api_key": canary + "\n"}))
	testenv.Must(t, v.PutSecret(t.Context(), "half", map[string]any{"api_key": canary, "pem": canary + "\n"}))
	f := newFaults(t, v)
	auth := approle(t, v, "weather", testenv.AppRole{Policy: readForecast})
	// An answer that repeats whatever it was sent, as some gateways' do.
	f.breaks("secret/data/echo", func(w http.ResponseWriter, r *http.Request, _ func() *httptest.ResponseRecorder) {
		w.WriteHeader(http.StatusInternalServerError)
		_ = json.NewEncoder(w).Encode(map[string]any{"errors": []string{"sent " + r.Header.Get("X-Vault-Token") + " to " + r.URL.String()}})
	})
	state := filepath.Join(t.TempDir(), "leases.json")
	var seen, logged strings.Builder
	logger := zap.New(zapcore.NewCore(zapcore.NewJSONEncoder(zapcore.EncoderConfig{MessageKey: "m"}),
		zapcore.Lock(zapcore.AddSync(&logged)), zap.DebugLevel))
	var log journal
	b, stop := run(t, Config{
		Address: f.address, Auth: auth, Recorder: &log, StateFile: state, Logger: logger, Refresh: 20 * time.Millisecond,
		Fetched: func(_ time.Duration, err error) { _ = err },
	})
	show := func(values ...any) {
		for _, value := range values {
			fmt.Fprintf(&seen, "%v %+v %#v %s\n", value, value, value, value)
			if text, err := json.Marshal(value); err == nil {
				seen.Write(text)
			}
		}
	}
	for _, name := range []string{"weather", "half", "bad", "echo"} {
		c, err := b.Credential(t.Context(), ref("key", "secret/data/"+name))
		show(c, err)
	}
	until(t, "it was read again", func() bool { return f.count("secret/data/weather") > 2 })
	first := b.login.current()
	token := first.token.Reveal()
	secretID := strings.TrimSpace(string(testenv.MustGet(os.ReadFile(auth.SecretIDFile))(t)))

	wrong := auth
	wrong.SecretIDFile = write(t, "wrong", "0000-CANARY-wrong")
	show(broker(t, Config{Address: f.address, Auth: wrong}).Login(t.Context()))
	f.breaks("auth/", func(w http.ResponseWriter, r *http.Request, _ func() *httptest.ResponseRecorder) {
		var body map[string]any
		_ = json.NewDecoder(r.Body).Decode(&body)
		w.WriteHeader(http.StatusBadRequest)
		_ = json.NewEncoder(w).Encode(map[string]any{"errors": []string{fmt.Sprint("cannot use ", body)}})
	})
	echoed := broker(t, Config{Address: f.address, Auth: auth}).Login(t.Context())
	if echoed == nil || !strings.Contains(echoed.Error(), "cannot use") {
		t.Errorf("got %v from the echoing login", echoed)
	}
	f.mend()
	report := b.Revoke(t.Context())
	status := b.Status()
	err := stop()
	show(echoed, status, report, err, b.cfg, first, b.client, log.records, b)
	for _, e := range b.leases.entries {
		show(e, e.lease)
	}
	if text, err := os.ReadFile(state); err == nil {
		seen.Write(text)
	}
	if !strings.Contains(logged.String(), "pem") {
		t.Errorf("the log does not name the field that is not used: %s", &logged)
	}
	seen.WriteString(logged.String())
	for what, secret := range map[string]string{"credential": canary, "token": token, "secret id": secretID, "wrong secret id": "CANARY-wrong"} {
		if i := strings.Index(seen.String(), secret); i >= 0 {
			t.Errorf("the %s is printed: %.200q", what, seen.String()[max(0, i-100):])
		}
	}
}

// A gateway that repeats whatever it is sent gets nothing of ours into an
// error, a log or a record, whatever we log in or ask with.
func TestEchoingGateway(t *testing.T) {
	t.Parallel()
	const canary = "CANARY-8d1f-not-to-be-seen"
	echo := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/v1/sys/wrapping/lookup" {
			_, _ = w.Write([]byte(`{"data":{"creation_path":"auth/approle/role/weather/secret-id"}}`))
			return
		}
		text, _ := io.ReadAll(r.Body)
		w.WriteHeader(http.StatusBadRequest)
		_ = json.NewEncoder(w).Encode(map[string]any{"errors": []string{
			"path " + r.URL.String(), "token " + r.Header.Get("X-Vault-Token"), "body " + string(text), fmt.Sprint(r.Header),
		}})
	}))
	t.Cleanup(echo.Close)
	file := write(t, "secret", canary)
	for name, auth := range map[string]Auth{
		"token":      {Method: MethodToken, TokenFile: file},
		"approle":    {Method: MethodAppRole, RoleIDFile: file, SecretIDFile: file},
		"wrapped":    {Method: MethodAppRole, RoleIDFile: write(t, "role-id", "r"), SecretIDFile: file, SecretIDWrapped: true, Role: "weather"},
		"kubernetes": {Method: MethodKubernetes, Role: "weather", JWTFile: file},
		"jwt":        {Method: MethodJWT, Role: "weather", JWTFile: file},
	} {
		t.Run(name, func(t *testing.T) {
			logger, logged := writing()
			var log journal
			state := filepath.Join(t.TempDir(), "leases.json")
			b := broker(t, Config{Address: echo.URL, Auth: auth, Logger: logger, Recorder: &log, StateFile: state})
			err := b.Login(t.Context())
			if err == nil || !strings.Contains(err.Error(), "[redacted]") {
				t.Errorf("login: got %v", err)
			}
			_, asked := b.Credential(t.Context(), ref("key", "secret/data/weather"))
			kept, _ := os.ReadFile(state)
			text := fmt.Sprintf("%v %+v %v %s %s %+v %s %+v", err, err, asked, &log, logged, b.Status(), kept, b)
			if strings.Contains(text, canary) || strings.Contains(text, "CANARY") {
				t.Errorf("printed: %s", text)
			}
			if auth.Role != "" && auth.Method != MethodAppRole && !strings.Contains(err.Error(), "weather") {
				t.Errorf("the role is not named: %v", err)
			}
		})
	}
}
