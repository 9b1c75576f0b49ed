package main

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/chaperone-proxy/chaperone/internal/testenv"
)

// The names of the databases for the plugin.
const (
	shopHost  = "db.shop.example"
	cacheHost = "cache.shop.example"
)

// databases are a PostgreSQL with pgbench's tables, a PgBouncer and a Redis, and the
// files of a sidecar whose plugin is granted both.
type databases struct {
	w      *env
	dir    string
	db     *testenv.Postgres
	redis  *testenv.Redis
	bounce map[bool]*testenv.PgBouncer // with and without TLS to the server, in session mode

	plain, secure int    // ports of Redis
	password      string // of Redis
	binary        string // this program, where the plugin can run it
}

// newDatabases starts the servers. The caller closes them.
func (w *env) newDatabases(ctx context.Context) (d *databases, err error) {
	d = &databases{w: w, bounce: map[bool]*testenv.PgBouncer{}}
	defer func() {
		if err != nil {
			err = errors.Join(err, d.Close())
		}
	}()
	if d.dir, err = os.MkdirTemp("", "chaperone-bench-databases-"); err != nil {
		return d, err
	}
	if err := os.Chmod(d.dir, 0o755); err != nil { // the plugin runs this program here
		return d, err
	}
	if err := d.startPostgres(ctx); err != nil {
		return d, err
	}
	if err := d.startRedis(ctx); err != nil {
		return d, err
	}
	for secure, settings := range map[bool][]string{true: nil, false: {"server_tls_sslmode = disable"}} {
		if d.bounce[secure], err = testenv.StartPgBouncer(ctx, testenv.PgBouncerConfig{Server: d.db, Settings: settings}); err != nil {
			return d, err
		}
	}
	d.binary = filepath.Join(d.dir, "bench")
	self, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		return d, err
	}
	return d, errors.Join(os.WriteFile(d.binary, self, 0o755), d.configure(ctx))
}

// Close ends the servers and removes their files.
func (d *databases) Close() error {
	var errs []error
	for _, b := range d.bounce {
		if b != nil {
			errs = append(errs, b.Close())
		}
	}
	if d.redis != nil {
		errs = append(errs, d.redis.Close())
	}
	if d.db != nil {
		errs = append(errs, d.db.Close())
	}
	return errors.Join(append(errs, os.RemoveAll(d.dir))...)
}

func (d *databases) file(name string) string { return filepath.Join(d.dir, name) }

// startPostgres starts a PostgreSQL that offers TLS, and fills pgbench's tables.
func (d *databases) startPostgres(ctx context.Context) (err error) {
	d.db, err = testenv.StartPostgresOf(ctx, testenv.PostgresConfig{
		Names: []string{shopHost}, Settings: []string{fmt.Sprintf("max_connections=%d", postgresSessions+50)},
	})
	if err != nil {
		return err
	}
	const rules = "local all all scram-sha-256\nhost all all 127.0.0.1/32 scram-sha-256\n" // with TLS and without
	if err := os.WriteFile(filepath.Join(d.db.SocketDir, "data", "pg_hba.conf"), []byte(rules), 0o600); err != nil {
		return err
	}
	if _, err := d.db.Query(ctx, "SELECT pg_reload_conf()"); err != nil {
		return err
	}
	fill := exec.CommandContext(ctx, "pgbench", "-i", "-q", "-s", "2", d.db.URL(d.db.User, d.db.Password))
	if out, err := fill.CombinedOutput(); err != nil {
		return fmt.Errorf("fill the tables of pgbench: %w\n%s", err, out)
	}
	return nil
}

func (d *databases) startRedis(ctx context.Context) (err error) {
	d.redis, err = testenv.StartRedis(ctx, testenv.RedisConfig{Names: []string{cacheHost}, Settings: []string{"maxclients 4000"}})
	if err != nil {
		return err
	}
	d.plain, d.secure, d.password = int(d.redis.Addr.Port()), int(d.redis.TLSAddr.Port()), d.redis.Password
	return os.WriteFile(d.file("ca.pem"), append(d.db.CA.PEM(), d.redis.CA.PEM()...), 0o644)
}

// configure fills Vault and writes the sidecar's files.
func (d *databases) configure(ctx context.Context) error {
	mount := "database-" + strings.ToLower(rand.Text()) // scenes of one run share a Vault
	policy := `
path "` + mount + `/creds/shop" { capabilities = ["read"] }
path "secret/data/cache" { capabilities = ["read"] }
path "sys/leases/revoke" { capabilities = ["update"] }
path "sys/leases/renew" { capabilities = ["update"] }
`
	login, err := d.w.vault.AppRole(ctx, "databases", testenv.AppRole{Policy: policy})
	if err != nil {
		return err
	}
	if err := errors.Join(
		d.w.vault.EnableDatabase(ctx, mount, d.db),
		d.w.vault.DatabaseRole(ctx, mount, "shop", testenv.DatabaseRole{}),
		d.w.vault.PutSecret(ctx, "cache", map[string]any{"username": "default", "password": d.password}),
	); err != nil {
		return err
	}
	sidecar := fmt.Sprintf(`apiVersion: chaperone.dev/v1alpha1
kind: Sidecar
metadata: {name: shop}
spec:
  plugin: shop
  grants: [grant.yaml]
  stateDir: state
  kernel: required
  listen: {proxy: "127.0.0.1:0"}
  dns: {hosts: {%s: [127.0.0.1], %s: [127.0.0.1]}}
  vault: {address: %s, auth: {method: approle, roleIDFile: role-id, secretIDFile: secret-id}}
`, shopHost, cacheHost, d.w.vault.Address)
	grant := fmt.Sprintf(`apiVersion: chaperone.dev/v1alpha1
kind: PluginGrant
metadata: {name: shop}
spec:
  plugin: shop
  notAfter: %s
  rules:
  - id: accounts
    reason: benchmark
    to: {scheme: postgres, hosts: [%s], ports: [%d], addresses: [127.0.0.0/8], tls: {caFile: ca.pem}}
    databases: [postgres]
    statements: {verbs: [select], tables: [public.pgbench_accounts, public.pgbench_branches, catalog], functions: [safe]}
    credential: shop
  - id: cache
    reason: benchmark
    to: {scheme: redis, hosts: [%s], ports: [%d], addresses: [127.0.0.0/8], tls: {caFile: ca.pem}}
    databases: [0]
    commands: [get, set, ping]
    keys: ["key:*"]
    credential: cache
  credentials:
  - {name: shop, vault: {path: %s/creds/shop}, inject: {database: {}}}
  - {name: cache, vault: {path: secret/data/cache}, inject: {database: {}}}
`, time.Now().Add(24*time.Hour).UTC().Format(time.RFC3339), shopHost, d.db.Addr.Port(), cacheHost, d.secure, mount)
	return errors.Join(
		os.WriteFile(d.file("sidecar.yaml"), []byte(sidecar), 0o600), os.WriteFile(d.file("grant.yaml"), []byte(grant), 0o600),
		os.WriteFile(d.file("role-id"), []byte(login.RoleID), 0o600), os.WriteFile(d.file("secret-id"), []byte(login.SecretID), 0o600))
}

// plugin prepares a program that runs as the plugin.
func (d *databases) plugin(ctx context.Context, program ...string) *exec.Cmd {
	return exec.CommandContext(ctx, d.w.binary, append([]string{"run", "--config", d.file("sidecar.yaml"), "--log-level", "warn", "--"}, program...)...)
}

// contender is one way from a client to a database.
type contender struct {
	name string
	run  func(ctx context.Context, args ...string) *exec.Cmd
	pid  int // of the process in between, which runs already; 0 for the command itself
}

// task is what each contender does.
type task struct {
	args   []string
	least  []string // the same with next to nothing to do, as which starting and logging in are counted
	figure func(output string) (float64, error)
	n      func(output string) (float64, error) // operations that were made; nil: CPU time is not measured
}

// result is the median of what a contender needed.
type result struct {
	figure float64
	cpu    time.Duration // of the process in between, of user and kernel, for an operation
}

// measure has each contender do the task in turn.
func measure(ctx context.Context, contenders []contender, t task) ([]result, error) {
	seen, spent := make([]series, len(contenders)), make([]series, len(contenders))
	idle := make([]time.Duration, len(contenders))
	for round := range rounds {
		for i, c := range contenders {
			if round == 0 && t.n != nil {
				var err error
				if _, idle[i], err = c.play(ctx, t.least); err != nil {
					return nil, err
				}
			}
			r, err := c.attempt(ctx, t, idle[i])
			if err != nil {
				return nil, err
			}
			seen[i], spent[i] = append(seen[i], int64(r.figure*1000)), append(spent[i], int64(r.cpu))
		}
	}
	results := make([]result, len(contenders))
	for i := range seen {
		results[i] = result{float64(seen[i].median()) / 1000, time.Duration(spent[i].median())}
	}
	return results, nil
}

// attempt does the task once. idle is the CPU time that is not counted.
func (c contender) attempt(ctx context.Context, t task, idle time.Duration) (r result, err error) {
	out, used, err := c.play(ctx, t.args)
	if err != nil {
		return r, err
	}
	if r.figure, err = t.figure(out); err != nil {
		return r, fmt.Errorf("%s: %w\n%s", c.name, err, out)
	}
	if t.n == nil {
		return r, nil
	}
	n, err := t.n(out)
	if err != nil {
		return r, fmt.Errorf("%s: %w\n%s", c.name, err, out)
	}
	r.cpu = time.Duration(float64(used-idle) / max(n, 1))
	return r, nil
}

// play runs the contender's command and returns its output, and the CPU time that the
// process in between used during it.
func (c contender) play(ctx context.Context, args []string) (output string, used time.Duration, err error) {
	cmd := c.run(ctx, args...)
	var out strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &out
	before := cpuEver(c.pid)
	if err := cmd.Start(); err != nil {
		return "", 0, fmt.Errorf("%s: %w", c.name, err)
	}
	pid := cmp.Or(c.pid, cmd.Process.Pid)
	// The command has ended and not been waited for when its times are read.
	for err = unix.EINTR; errors.Is(err, unix.EINTR); {
		err = unix.Waitid(unix.P_PID, cmd.Process.Pid, nil, unix.WEXITED|unix.WNOWAIT, nil)
	}
	used = cpuEver(pid) - before
	if err = errors.Join(err, cmd.Wait()); err != nil {
		return "", 0, fmt.Errorf("%s: %q: %w\n%s", c.name, cmd.Args, err, out.String())
	}
	return out.String(), used, nil
}

// cpuEver returns the CPU time of a process, with that of its threads that have ended, in
// steps of 10 ms; 0 without the process. A process that has ended and was not waited for
// still has it.
func cpuEver(pid int) time.Duration {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0
	}
	const userTime, tick = 11, 10 * time.Millisecond // proc_pid_stat(5): the 14th field, of which two are in front of the ")"
	fields := strings.Fields(string(data[strings.LastIndexByte(string(data), ')')+1:]))
	var total time.Duration
	for _, text := range fields[userTime : userTime+2] {
		n, err := strconv.Atoi(text)
		if err != nil {
			return 0
		}
		total += time.Duration(n) * tick
	}
	return total
}

// perOperation prints CPU times.
func perOperation(of ...result) string {
	var texts []string
	for _, r := range of {
		texts = append(texts, fmt.Sprintf("%.1f", float64(r.cpu)/float64(time.Microsecond)))
	}
	return strings.Join(texts, ", ")
}

// after reads the number that follows a text.
func after(text string) func(string) (float64, error) {
	return func(output string) (value float64, err error) {
		_, rest, found := strings.Cut(output, text)
		if !found {
			return 0, fmt.Errorf("the output lacks %q", text)
		}
		_, err = fmt.Sscan(rest, &value)
		return value, err
	}
}
