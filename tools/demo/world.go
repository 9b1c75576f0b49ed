package main

import (
	"bytes"
	"context"
	_ "embed"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"text/template"
	"time"

	"github.com/chaperone-proxy/chaperone/internal/testenv"
)

var (
	//go:embed plugin.py
	pluginPy []byte
	//go:embed escape.py
	escapePy []byte
	//go:embed sidecar.yaml.tmpl
	sidecarYAML string
	//go:embed grant.yaml.tmpl
	grantYAML string
)

const apiHost = "api.weather.example"

// world is the real parts and the files of one demonstration.
type world struct {
	binary string
	dir    string
	vault  *testenv.Vault
	db     *testenv.Postgres // nil when there is none
	api    *testenv.Upstream
	root   bool
}

func newWorld(ctx context.Context, binary string) (w *world, err error) {
	w = &world{root: os.Geteuid() == 0}
	defer func() {
		if err != nil {
			err = errors.Join(err, w.Close())
		}
	}()
	if w.binary, err = filepath.Abs(binary); err != nil {
		return w, err
	}
	if w.dir, err = os.MkdirTemp("", "chaperone-demo-"); err != nil {
		return w, err
	}
	if err := os.Chmod(w.dir, 0o755); err != nil { // the plugin's user reads its scripts here
		return w, err
	}
	if w.vault, err = testenv.StartVault(ctx, testenv.VaultConfig{}); err != nil {
		return w, err
	}
	if testenv.Missing(testenv.PostgreSQL()) == nil {
		if w.db, err = testenv.StartPostgres(ctx); err != nil {
			return w, err
		}
	}
	w.api, err = testenv.StartUpstream(ctx, testenv.UpstreamConfig{Names: []string{apiHost}, Authorize: w.authorize})
	if err != nil {
		return w, err
	}
	if err := w.fillVault(ctx); err != nil {
		return w, err
	}
	return w, w.writeFiles()
}

// Close ends every part and removes the files.
func (w *world) Close() error {
	var errs []error
	if w.api != nil {
		errs = append(errs, w.api.Close())
	}
	if w.db != nil {
		errs = append(errs, w.db.Close())
	}
	if w.vault != nil {
		errs = append(errs, w.vault.Close())
	}
	if w.dir != "" {
		errs = append(errs, os.RemoveAll(w.dir))
	}
	return errors.Join(errs...)
}

// authorize is the API's own check. Besides its bearer token it takes, for its
// stream, whoever can log in to its database.
func (w *world) authorize(r *http.Request) bool {
	if r.Header.Get("Authorization") == "Bearer "+w.api.Token() {
		return true
	}
	user, password, ok := r.BasicAuth()
	if !ok || w.db == nil || r.URL.Path != "/stream" {
		return false
	}
	_, err := w.db.QueryAs(r.Context(), user, password, "SELECT 1")
	return err == nil
}

// fillVault puts the API's token into Vault, and a role that leases database
// users, and makes a login for the sidecar that may read those two.
func (w *world) fillVault(ctx context.Context) error {
	if _, err := w.vault.Write(ctx, "secret/data/weather", map[string]any{"data": map[string]any{"api_key": w.api.Token()}}); err != nil {
		return err
	}
	policy := `path "secret/data/weather" { capabilities = ["read"] }`
	if w.db != nil {
		policy += "\n" + `path "database/creds/reader" { capabilities = ["read"] }`
		if err := w.vault.EnableDatabase(ctx, "database", w.db); err != nil {
			return err
		}
		role := testenv.DatabaseRole{TTL: 5 * time.Minute}
		if err := w.vault.DatabaseRole(ctx, "database", "reader", role); err != nil {
			return err
		}
	}
	policy += "\n" + `path "sys/leases/revoke" { capabilities = ["update"] }` +
		"\n" + `path "sys/leases/renew" { capabilities = ["update"] }`
	login, err := w.vault.AppRole(ctx, "weather", testenv.AppRole{Policy: policy})
	if err != nil {
		return err
	}
	return errors.Join(
		os.WriteFile(filepath.Join(w.dir, "role-id"), []byte(login.RoleID), 0o600),
		os.WriteFile(filepath.Join(w.dir, "secret-id"), []byte(login.SecretID), 0o600))
}

// writeFiles writes the sidecar's configuration, the grant and the scripts.
func (w *world) writeFiles() error {
	values := map[string]any{
		"Host": apiHost, "Port": w.api.Addr.Port(), "Address": w.api.Addr.Addr(), "Vault": w.vault.Address,
		"NotAfter": time.Now().Add(24 * time.Hour).UTC().Format(time.RFC3339), "Database": w.db != nil, "Kernel": w.root,
	}
	for name, text := range map[string]string{"sidecar.yaml": sidecarYAML, "grant.yaml": grantYAML} {
		parsed, err := template.New(name).Parse(text)
		if err != nil {
			return err
		}
		var out bytes.Buffer
		if err := parsed.Execute(&out, values); err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(w.dir, name), out.Bytes(), 0o600); err != nil {
			return err
		}
	}
	return errors.Join(
		w.api.CA.WriteFile(filepath.Join(w.dir, "api-ca.pem")),
		os.WriteFile(filepath.Join(w.dir, "plugin.py"), pluginPy, 0o644),
		os.WriteFile(filepath.Join(w.dir, "escape.py"), escapePy, 0o644))
}

func (w *world) url(path string) string { return w.api.URL(apiHost, path) }

func (w *world) config() string { return filepath.Join(w.dir, "sidecar.yaml") }

// result is what a command did.
type result struct {
	stdout, stderr string
	status         int
}

// chaperone runs a command of the program.
func (w *world) chaperone(ctx context.Context, args ...string) (result, error) {
	fmt.Println("   $ chaperone " + strings.NewReplacer(w.dir+"/", "", "\n", `\n`).Replace(strings.Join(args, " ")))
	cmd := exec.CommandContext(ctx, w.binary, args...)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	cmd.Dir = w.dir
	err := cmd.Run()
	if _, ok := errors.AsType[*exec.ExitError](err); ok {
		err = nil
	}
	return result{stdout.String(), stderr.String(), cmd.ProcessState.ExitCode()}, err
}

// plugin runs an ordinary program as the plugin.
func (w *world) plugin(ctx context.Context, program ...string) (result, error) {
	return w.chaperone(ctx, append([]string{"run", "--config", w.config(), "--"}, program...)...)
}
