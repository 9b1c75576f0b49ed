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

// env is the components and the files of one run of the demo.
type env struct {
	binary string
	dir    string
	vault  *testenv.Vault
	db     *testenv.Postgres // nil without PostgreSQL
	api    *testenv.Upstream
	root   bool
}

func newEnv(ctx context.Context, binary string) (e *env, err error) {
	e = &env{root: os.Geteuid() == 0}
	defer func() {
		if err != nil {
			err = errors.Join(err, e.Close())
		}
	}()
	if e.binary, err = filepath.Abs(binary); err != nil {
		return e, err
	}
	if e.dir, err = os.MkdirTemp("", "chaperone-demo-"); err != nil {
		return e, err
	}
	if err := os.Chmod(e.dir, 0o755); err != nil { // the plugin's user reads its scripts here
		return e, err
	}
	if e.vault, err = testenv.StartVault(ctx, testenv.VaultConfig{}); err != nil {
		return e, err
	}
	if testenv.Missing(testenv.PostgreSQL()) == nil {
		if e.db, err = testenv.StartPostgres(ctx); err != nil {
			return e, err
		}
	}
	e.api, err = testenv.StartUpstream(ctx, testenv.UpstreamConfig{Names: []string{apiHost}, Authorize: e.authorize})
	if err != nil {
		return e, err
	}
	if err := e.fillVault(ctx); err != nil {
		return e, err
	}
	return e, e.writeFiles()
}

// Close ends every component and removes the files.
func (e *env) Close() error {
	var errs []error
	if e.api != nil {
		errs = append(errs, e.api.Close())
	}
	if e.db != nil {
		errs = append(errs, e.db.Close())
	}
	if e.vault != nil {
		errs = append(errs, e.vault.Close())
	}
	if e.dir != "" {
		errs = append(errs, os.RemoveAll(e.dir))
	}
	return errors.Join(errs...)
}

// authorize is the API's own check. Its stream also accepts users of its
// database.
func (e *env) authorize(r *http.Request) bool {
	if r.Header.Get("Authorization") == "Bearer "+e.api.Token() {
		return true
	}
	user, password, ok := r.BasicAuth()
	if !ok || e.db == nil || r.URL.Path != "/stream" {
		return false
	}
	_, err := e.db.QueryAs(r.Context(), user, password, "SELECT 1")
	return err == nil
}

// fillVault puts the API's token into Vault, and a role that leases database
// users, and makes a login for the sidecar that may read those two.
func (e *env) fillVault(ctx context.Context) error {
	if _, err := e.vault.Write(ctx, "secret/data/weather", map[string]any{"data": map[string]any{"api_key": e.api.Token()}}); err != nil {
		return err
	}
	policy := `path "secret/data/weather" { capabilities = ["read"] }`
	if e.db != nil {
		policy += "\n" + `path "database/creds/reader" { capabilities = ["read"] }`
		if err := e.vault.EnableDatabase(ctx, "database", e.db); err != nil {
			return err
		}
		role := testenv.DatabaseRole{TTL: 5 * time.Minute}
		if err := e.vault.DatabaseRole(ctx, "database", "reader", role); err != nil {
			return err
		}
	}
	policy += "\n" + `path "sys/leases/revoke" { capabilities = ["update"] }` +
		"\n" + `path "sys/leases/renew" { capabilities = ["update"] }`
	login, err := e.vault.AppRole(ctx, "weather", testenv.AppRole{Policy: policy})
	if err != nil {
		return err
	}
	return errors.Join(
		os.WriteFile(filepath.Join(e.dir, "role-id"), []byte(login.RoleID), 0o600),
		os.WriteFile(filepath.Join(e.dir, "secret-id"), []byte(login.SecretID), 0o600))
}

// writeFiles writes the sidecar's configuration, the grant and the scripts.
func (e *env) writeFiles() error {
	values := map[string]any{
		"Host": apiHost, "Port": e.api.Addr.Port(), "Address": e.api.Addr.Addr(), "Vault": e.vault.Address,
		"NotAfter": time.Now().Add(24 * time.Hour).UTC().Format(time.RFC3339), "Database": e.db != nil, "Kernel": e.root,
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
		if err := os.WriteFile(filepath.Join(e.dir, name), out.Bytes(), 0o600); err != nil {
			return err
		}
	}
	return errors.Join(
		e.api.CA.WriteFile(filepath.Join(e.dir, "api-ca.pem")),
		os.WriteFile(filepath.Join(e.dir, "plugin.py"), pluginPy, 0o644),
		os.WriteFile(filepath.Join(e.dir, "escape.py"), escapePy, 0o644))
}

func (e *env) url(path string) string { return e.api.URL(apiHost, path) }

func (e *env) config() string { return filepath.Join(e.dir, "sidecar.yaml") }

// result is the output and exit status of a command.
type result struct {
	stdout, stderr string
	status         int
}

// chaperone runs a command of the program.
func (e *env) chaperone(ctx context.Context, args ...string) (result, error) {
	fmt.Println("   $ chaperone " + strings.NewReplacer(e.dir+"/", "", "\n", `\n`).Replace(strings.Join(args, " ")))
	cmd := exec.CommandContext(ctx, e.binary, args...)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	cmd.Dir = e.dir
	err := cmd.Run()
	if _, ok := errors.AsType[*exec.ExitError](err); ok {
		err = nil
	}
	return result{stdout.String(), stderr.String(), cmd.ProcessState.ExitCode()}, err
}

// plugin runs an ordinary program as the plugin.
func (e *env) plugin(ctx context.Context, program ...string) (result, error) {
	return e.chaperone(ctx, append([]string{"run", "--config", e.config(), "--"}, program...)...)
}
