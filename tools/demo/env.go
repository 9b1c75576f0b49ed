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
	"github.com/chaperone-proxy/chaperone/internal/testenv/scenario"
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

const (
	apiHost = scenario.Host
	dbHost  = "db.weather.example"
)

// tables are the database of the weather's orders.
const tables = `
CREATE TABLE orders (id int PRIMARY KEY, city text);
INSERT INTO orders VALUES (1, 'london'), (2, 'oslo');
CREATE TABLE customers (name text, card text);
INSERT INTO customers VALUES ('Ada', '4111 1111 1111 1111');
`

// env is the components and the files of one run of the demo.
type env struct {
	binary string
	parts  *scenario.Components
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
	if testenv.Missing(testenv.PostgreSQL()) == nil {
		if e.db, err = testenv.StartPostgresOf(ctx, testenv.PostgresConfig{Names: []string{dbHost}, Database: "weather"}); err != nil {
			return e, err
		}
		if _, err := e.db.Query(ctx, tables); err != nil {
			return e, err
		}
	}
	e.parts, err = scenario.Start(ctx, scenario.Config{Policy: e.policy(), Authorize: e.authorize})
	if err != nil {
		return e, err
	}
	e.dir, e.vault, e.api = e.parts.Dir, e.parts.Vault, e.parts.API
	if err := e.leaseUsers(ctx); err != nil {
		return e, err
	}
	return e, e.writeFiles()
}

// Close ends every component and removes the files.
func (e *env) Close() error {
	var errs []error
	if e.parts != nil {
		errs = append(errs, e.parts.Close())
	}
	if e.db != nil {
		errs = append(errs, e.db.Close())
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

// policy is what the sidecar's login may do in Vault beside reading the API's token.
func (e *env) policy() string {
	policy := `path "sys/leases/revoke" { capabilities = ["update"] }` + "\n" + `path "sys/leases/renew" { capabilities = ["update"] }`
	if e.db != nil {
		policy += "\n" + `path "database/creds/*" { capabilities = ["read"] }`
	}
	return policy
}

// leaseUsers makes roles of Vault that lease users of the database, if there is one. The
// plugin's may read more than its rule grants, so that its refusal is the sidecar's.
func (e *env) leaseUsers(ctx context.Context) error {
	if e.db == nil {
		return nil
	}
	if err := e.vault.EnableDatabase(ctx, "database", e.db); err != nil {
		return err
	}
	return errors.Join(
		e.vault.DatabaseRole(ctx, "database", "reader", testenv.DatabaseRole{TTL: 5 * time.Minute}),
		e.vault.DatabaseRole(ctx, "database", "orders", testenv.DatabaseRole{
			TTL: 5 * time.Minute, Grants: []string{`GRANT SELECT ON orders, customers TO "{{name}}"`},
		}))
}

// writeFiles writes the sidecar's configuration, the grant and the scripts.
func (e *env) writeFiles() error {
	values := map[string]any{
		"Host": apiHost, "Port": e.api.Addr.Port(), "Address": e.api.Addr.Addr(), "Vault": e.vault.Address,
		"NotAfter": time.Now().Add(24 * time.Hour).UTC().Format(time.RFC3339), "Database": e.db != nil, "Kernel": e.root, "DatabaseHost": dbHost,
	}
	if e.db != nil {
		values["DatabasePort"] = e.db.Addr.Port()
		if err := e.db.CA.WriteFile(filepath.Join(e.dir, "db-ca.pem")); err != nil {
			return err
		}
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
