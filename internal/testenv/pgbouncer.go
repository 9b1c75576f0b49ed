package testenv

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
)

// PgBouncerConfig describes a PgBouncer to start.
type PgBouncerConfig struct {
	// Server is what it connects to, with TLS if the server has it. Required.
	Server *Postgres
	// User and Password are what it logs in with; "": the superuser's.
	User, Password string
	// Mode is its pool_mode; "": session.
	Mode string
	// Names are the host names of its own certificate, beside its address. With any it
	// accepts TLS too.
	Names []string
	// Settings are lines of its section pgbouncer, as in "default_pool_size = 50".
	Settings []string
}

// PgBouncer is a running PgBouncer, which lets every client in without a password.
type PgBouncer struct {
	// Addr is where it listens on loopback.
	Addr netip.AddrPort
	// CA issued its certificate, and CAFile holds the CA; nil and "" without TLS.
	CA     *CA
	CAFile string

	dir     string
	process *process
}

// PgBouncerServer needs the program of PgBouncer.
func PgBouncerServer() Need {
	return Need{"PgBouncer", func() error {
		_, err := pgBouncerPath()
		return err
	}}
}

func pgBouncerPath() (string, error) {
	if path, err := exec.LookPath("pgbouncer"); err == nil {
		return path, nil
	}
	const debians = "/usr/sbin/pgbouncer"
	_, err := os.Stat(debians)
	return debians, err
}

// MustPgBouncer starts a PgBouncer for the length of a test.
func MustPgBouncer(t testing.TB, cfg PgBouncerConfig) *PgBouncer {
	t.Helper()
	return mustStart(t, func(ctx context.Context) (*PgBouncer, error) { return StartPgBouncer(ctx, cfg) })
}

// StartPgBouncer starts a PgBouncer on a free loopback port and returns when it accepts
// connections. It refuses to run as root, so root runs it as the user postgres or else
// nobody. ctx bounds the start only.
func StartPgBouncer(ctx context.Context, cfg PgBouncerConfig) (*PgBouncer, error) {
	dir, err := os.MkdirTemp("", "chaperone-pgbouncer-")
	if err != nil {
		return nil, fmt.Errorf("make folder: %w", err)
	}
	b := &PgBouncer{dir: dir}
	if err := b.start(ctx, cfg); err != nil {
		return nil, errors.Join(fmt.Errorf("start PgBouncer: %w", err), b.Close())
	}
	return b, nil
}

func (b *PgBouncer) start(ctx context.Context, cfg PgBouncerConfig) error {
	path, err := pgBouncerPath()
	if err != nil {
		return err
	}
	as, err := unprivileged()
	if err != nil {
		return err
	}
	if b.Addr, err = freeLoopback(); err != nil {
		return err
	}
	if as != nil {
		if err := os.Chown(b.dir, int(as.Uid), int(as.Gid)); err != nil {
			return err
		}
	}
	text, err := b.configuration(as, cfg)
	if err != nil {
		return err
	}
	file := filepath.Join(b.dir, "pgbouncer.ini")
	if err := writeAs(as, file, []byte(text)); err != nil {
		return err
	}
	cmd := exec.Command(path, file)
	cmd.Dir = b.dir
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + b.dir, "LC_ALL=C"}
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: as}
	if b.process, err = startProcess(cmd, syscall.SIGTERM); err != nil { // SIGTERM waits for no client in 1.18
		return err
	}
	return b.process.until(ctx, func(ctx context.Context) error {
		conn, err := new(net.Dialer).DialContext(ctx, "tcp", b.Addr.String())
		if err != nil {
			return err
		}
		return conn.Close()
	})
}

// configuration returns the text of pgbouncer.ini.
func (b *PgBouncer) configuration(as *syscall.Credential, cfg PgBouncerConfig) (string, error) {
	user, password, mode := cfg.User, cfg.Password, cfg.Mode
	if user == "" {
		user, password = cfg.Server.User, cfg.Server.Password
	}
	if mode == "" {
		mode = "session"
	}
	lines := []string{
		"[databases]",
		fmt.Sprintf("* = host=127.0.0.1 port=%d user=%s password='%s'", cfg.Server.Addr.Port(), user, password),
		"[pgbouncer]",
		"listen_addr = 127.0.0.1", "listen_port = " + strconv.Itoa(int(b.Addr.Port())), "unix_socket_dir =",
		"auth_type = any", "pool_mode = " + mode, "max_client_conn = 1000", "default_pool_size = 40",
		"ignore_startup_parameters = extra_float_digits,options,search_path,statement_timeout,lock_timeout,IntervalStyle",
	}
	if cfg.Server.CAFile != "" {
		lines = append(lines, "server_tls_sslmode = verify-full", "server_tls_ca_file = "+cfg.Server.CAFile)
	}
	if len(cfg.Names) > 0 {
		cert, key := filepath.Join(b.dir, "server.crt"), filepath.Join(b.dir, "server.key")
		var err error
		if b.CA, b.CAFile, err = issueFor(as, b.dir, cert, key, cfg.Names); err != nil {
			return "", err
		}
		lines = append(lines, "client_tls_sslmode = allow", "client_tls_cert_file = "+cert, "client_tls_key_file = "+key)
	}
	return strings.Join(append(lines, cfg.Settings...), "\n") + "\n", nil
}

// PID returns the process's id.
func (b *PgBouncer) PID() int { return b.process.cmd.Process.Pid }

// Close ends PgBouncer and removes its folder.
func (b *PgBouncer) Close() error {
	var err error
	if b.process != nil {
		err = b.process.close()
	}
	return errors.Join(err, os.RemoveAll(b.dir))
}
