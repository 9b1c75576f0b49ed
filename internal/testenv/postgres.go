package testenv

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
)

// PostgresConfig describes a PostgreSQL to start. The zero PostgresConfig is the
// installed one, without TLS.
type PostgresConfig struct {
	// Names are the host names of its certificate, beside its address. With any it
	// refuses connections over TCP without TLS.
	Names []string
	// Database is made at the start, and is what queries are of; "": postgres.
	Database string
	// Settings are given to the server, as in "log_statement=all".
	Settings []string
	// Newest starts the PostgreSQL of [InstallPostgres], and not the installed one.
	Newest bool
}

// Postgres is a running PostgreSQL with an empty cluster of its own.
type Postgres struct {
	// Addr is where it listens on loopback.
	Addr netip.AddrPort
	// User and Password are the superuser's.
	User, Password string
	// Database is what Query, QueryAs, URL and leased users are of.
	Database string
	// SocketDir holds its unix socket; the host of a connection string may be
	// this folder.
	SocketDir string
	// CA issued its certificate, and CAFile holds the CA; nil and "" without TLS.
	CA     *CA
	CAFile string

	bin, psql string // folders of the programs of the server, and of psql
	dir       string
	settings  []string
	process   *process
}

// MustPostgres starts a PostgreSQL for the length of a test.
func MustPostgres(t testing.TB) *Postgres {
	t.Helper()
	return mustStart(t, StartPostgres)
}

// MustPostgresOf starts a PostgreSQL for the length of a test.
func MustPostgresOf(t testing.TB, cfg PostgresConfig) *Postgres {
	t.Helper()
	return mustStart(t, func(ctx context.Context) (*Postgres, error) { return StartPostgresOf(ctx, cfg) })
}

// StartPostgres starts a PostgreSQL without TLS.
func StartPostgres(ctx context.Context) (*Postgres, error) {
	return StartPostgresOf(ctx, PostgresConfig{})
}

// StartPostgresOf makes a cluster in a temporary folder, starts it on a free
// loopback port and returns when it answers. PostgreSQL refuses to run as
// root, so root runs it as the user postgres or else nobody. ctx bounds the
// start only.
func StartPostgresOf(ctx context.Context, cfg PostgresConfig) (*Postgres, error) {
	bin, err := PostgreSQLBin()
	if err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp("", "chaperone-pg-")
	if err != nil {
		return nil, fmt.Errorf("make folder: %w", err)
	}
	p := &Postgres{User: "postgres", Password: rand.Text(), Database: "postgres", SocketDir: dir, bin: bin, psql: bin, dir: dir, settings: cfg.Settings}
	if err := p.start(ctx, cfg); err != nil {
		return nil, errors.Join(fmt.Errorf("start PostgreSQL: %w", err), p.Close())
	}
	return p, nil
}

// PostgreSQLBin returns the folder of the programs of the newest installed
// PostgreSQL server.
func PostgreSQLBin() (string, error) {
	if path, err := exec.LookPath("initdb"); err == nil {
		if path, err = filepath.EvalSymlinks(path); err == nil {
			return filepath.Dir(path), nil // psql lies beside it, and rarely beside a link to it
		}
	}
	found, err := filepath.Glob("/usr/lib/postgresql/*/bin/initdb") // Debian's place
	if err != nil {
		return "", err
	}
	best, bestVersion := "", -1
	for _, path := range found {
		dir := filepath.Dir(path)
		version, err := strconv.Atoi(filepath.Base(filepath.Dir(dir)))
		if err == nil && version > bestVersion {
			best, bestVersion = dir, version
		}
	}
	if best == "" {
		return "", errors.New("find PostgreSQL: no initdb in PATH or /usr/lib/postgresql (Debian: apt-get install postgresql)")
	}
	return best, nil
}

func (p *Postgres) start(ctx context.Context, cfg PostgresConfig) error {
	as, err := unprivileged()
	if err != nil {
		return err
	}
	if cfg.Newest {
		if p.bin, err = copyNewestPostgres(ctx, p.dir); err != nil {
			return err
		}
	}
	if err := p.makeCluster(as); err != nil {
		return err
	}
	port, err := freePort()
	if err != nil {
		return err
	}
	p.Addr = netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), port)
	if len(cfg.Names) > 0 {
		if err := p.secure(as, cfg.Names); err != nil {
			return fmt.Errorf("set up TLS: %w", err)
		}
	}
	if err := p.run(ctx, as); err != nil || cfg.Database == "" {
		return err
	}
	_, err = p.Query(ctx, "CREATE DATABASE "+cfg.Database)
	p.Database = cfg.Database
	return err
}

// makeCluster makes the cluster.
func (p *Postgres) makeCluster(as *syscall.Credential) error {
	passwordFile := filepath.Join(p.dir, "password")
	if err := writeAs(as, passwordFile, []byte(p.Password)); err != nil {
		return err
	}
	if as != nil {
		if err := os.Chown(p.dir, int(as.Uid), int(as.Gid)); err != nil {
			return err
		}
	}
	initdb := p.command(as, "initdb", "-D", p.data(), "-U", p.User, "--pwfile="+passwordFile,
		"--auth=scram-sha-256", "--encoding=UTF8", "--locale=C", "--no-sync")
	if out, err := initdb.CombinedOutput(); err != nil {
		return fmt.Errorf("initdb: %w\n%s", err, out)
	}
	return os.Remove(passwordFile)
}

func (p *Postgres) data() string { return filepath.Join(p.dir, "data") }

// secure gives the server a certificate, and has it refuse connections over TCP without TLS.
func (p *Postgres) secure(as *syscall.Credential, names []string) (err error) {
	cert, key := filepath.Join(p.dir, "server.crt"), filepath.Join(p.dir, "server.key")
	if p.CA, p.CAFile, err = issueFor(as, p.dir, cert, key, names); err != nil {
		return err
	}
	p.settings = append(p.settings, "ssl=on", "ssl_cert_file="+cert, "ssl_key_file="+key)
	const rules = "local all all scram-sha-256\nhostssl all all 127.0.0.1/32 scram-sha-256\nhostssl replication all 127.0.0.1/32 scram-sha-256\n"
	return writeAs(as, filepath.Join(p.data(), "pg_hba.conf"), []byte(rules))
}

// run starts the server and returns when it answers.
func (p *Postgres) run(ctx context.Context, as *syscall.Credential) (err error) {
	args := []string{
		"-D", p.data(), "-k", p.SocketDir, "-h", p.Addr.Addr().String(), "-p", strconv.Itoa(int(p.Addr.Port())),
		"-c", "fsync=off", "-c", "full_page_writes=off", "-c", "synchronous_commit=off", "-c", "max_connections=50", "-c", "shared_buffers=16MB",
	}
	for _, setting := range p.settings {
		args = append(args, "-c", setting)
	}
	// SIGINT is PostgreSQL's fast shutdown: it waits for no client.
	if p.process, err = startProcess(p.command(as, "postgres", args...), syscall.SIGINT); err != nil {
		return err
	}
	return p.process.until(ctx, func(ctx context.Context) error {
		_, err := p.Query(ctx, "SELECT 1")
		return err
	})
}

// Restart ends the server by a fast shutdown, which ends every session with an error
// (57P01), and starts it again at the same address.
func (p *Postgres) Restart(ctx context.Context) error {
	if err := p.Stop(); err != nil {
		return err
	}
	return p.Start(ctx)
}

// Stop ends the server by a fast shutdown, until Start.
func (p *Postgres) Stop() error { return p.process.close() }

// Start starts a server that Stop or Kill ended, at the same address.
func (p *Postgres) Start(ctx context.Context) error {
	as, err := unprivileged()
	if err != nil {
		return err
	}
	return p.run(ctx, as)
}

func (p *Postgres) command(as *syscall.Credential, program string, args ...string) *exec.Cmd {
	cmd := exec.Command(filepath.Join(p.bin, program), args...)
	cmd.Dir = p.dir
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + p.dir, "LC_ALL=C"}
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: as}
	return cmd
}

// Close ends the server and removes its cluster.
func (p *Postgres) Close() error {
	var err error
	if p.process != nil {
		err = p.process.close()
	}
	return errors.Join(err, os.RemoveAll(p.dir))
}

// Kill ends the server at once, as a crash would.
func (p *Postgres) Kill() error { return p.process.kill() }

// Pause stops the server without closing its sockets, until Resume.
func (p *Postgres) Pause() error { return p.process.pause() }

// Resume lets a paused server go on.
func (p *Postgres) Resume() error { return p.process.signal(syscall.SIGCONT) }

// URL returns a connection string for a user of the database.
func (p *Postgres) URL(user, password string) string {
	mode := "sslmode=disable"
	if p.CAFile != "" {
		mode = "sslmode=verify-full&sslrootcert=" + p.CAFile
	}
	return fmt.Sprintf("postgresql://%s:%s@%s/%s?%s", user, password, p.Addr, p.Database, mode)
}

// Query runs SQL as the superuser and returns the rows, columns joined by |.
func (p *Postgres) Query(ctx context.Context, sql string) ([]string, error) {
	return p.QueryAs(ctx, p.User, p.Password, sql)
}

// QueryAs runs SQL as the given user, so also answers whether it can log in.
func (p *Postgres) QueryAs(ctx context.Context, user, password, sql string) ([]string, error) {
	cmd := exec.CommandContext(ctx, filepath.Join(p.psql, "psql"), "-XAtq", "-v", "ON_ERROR_STOP=1",
		"-h", p.Addr.Addr().String(), "-p", strconv.Itoa(int(p.Addr.Port())), "-U", user, "-d", p.Database, "-c", sql)
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "PGPASSWORD=" + password, "LC_ALL=C"}
	cmd.Dir = "/"
	var errText bytes.Buffer
	cmd.Stderr = &errText
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("query as %s: %w: %s", user, err, strings.TrimSpace(errText.String()))
	}
	text := strings.TrimSuffix(string(out), "\n")
	if text == "" {
		return nil, nil
	}
	return strings.Split(text, "\n"), nil
}
