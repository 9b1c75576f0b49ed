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
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
)

// Postgres is a running PostgreSQL with an empty cluster of its own.
type Postgres struct {
	// Addr is where it listens on loopback.
	Addr netip.AddrPort
	// User and Password are the superuser's.
	User, Password string
	// SocketDir holds its unix socket; the host of a connection string may be
	// this folder.
	SocketDir string

	bin     string
	dir     string
	process *process
}

// MustPostgres starts a PostgreSQL for the length of a test.
func MustPostgres(t testing.TB) *Postgres {
	t.Helper()
	return mustStart(t, StartPostgres)
}

// StartPostgres makes a cluster in a temporary folder, starts it on a free
// loopback port and returns when it answers. PostgreSQL refuses to run as
// root, so root runs it as the user postgres or else nobody. ctx bounds the
// start only.
func StartPostgres(ctx context.Context) (*Postgres, error) {
	bin, err := PostgreSQLBin()
	if err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp("", "chaperone-pg-")
	if err != nil {
		return nil, fmt.Errorf("make folder: %w", err)
	}
	p := &Postgres{User: "postgres", Password: rand.Text(), SocketDir: dir, bin: bin, dir: dir}
	if err := p.start(ctx); err != nil {
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

// unprivileged returns the identity to run as, nil if this process is not root.
func unprivileged() (*syscall.Credential, error) {
	if os.Geteuid() != 0 {
		return nil, nil
	}
	account, err := user.Lookup("postgres")
	if err != nil {
		account, err = user.Lookup("nobody")
	}
	if err != nil {
		return nil, fmt.Errorf("find a user that is not root: %w", err)
	}
	uid, uidErr := strconv.ParseUint(account.Uid, 10, 32)
	gid, gidErr := strconv.ParseUint(account.Gid, 10, 32)
	return &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}, errors.Join(uidErr, gidErr)
}

func (p *Postgres) start(ctx context.Context) error {
	as, err := unprivileged()
	if err != nil {
		return err
	}
	passwordFile := filepath.Join(p.dir, "password")
	if err := os.WriteFile(passwordFile, []byte(p.Password), 0o600); err != nil {
		return err
	}
	if as != nil {
		err := errors.Join(os.Chown(p.dir, int(as.Uid), int(as.Gid)), os.Chown(passwordFile, int(as.Uid), int(as.Gid)))
		if err != nil {
			return err
		}
	}
	data := filepath.Join(p.dir, "data")
	initdb := p.command(as, "initdb", "-D", data, "-U", p.User, "--pwfile="+passwordFile,
		"--auth=scram-sha-256", "--encoding=UTF8", "--locale=C", "--no-sync")
	if out, err := initdb.CombinedOutput(); err != nil {
		return fmt.Errorf("initdb: %w\n%s", err, out)
	}
	if err := os.Remove(passwordFile); err != nil {
		return err
	}
	port, err := freePort()
	if err != nil {
		return err
	}
	p.Addr = netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), port)
	server := p.command(as, "postgres", "-D", data, "-k", p.SocketDir, "-h", p.Addr.Addr().String(),
		"-p", strconv.Itoa(int(port)), "-c", "fsync=off", "-c", "full_page_writes=off", "-c", "synchronous_commit=off",
		"-c", "max_connections=50", "-c", "shared_buffers=16MB")
	// SIGINT is PostgreSQL's fast shutdown: it waits for no client.
	if p.process, err = startProcess(server, syscall.SIGINT); err != nil {
		return err
	}
	return p.process.until(ctx, func(ctx context.Context) error {
		_, err := p.Query(ctx, "SELECT 1")
		return err
	})
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

// URL returns a connection string for a user of the database postgres.
func (p *Postgres) URL(user, password string) string {
	return fmt.Sprintf("postgresql://%s:%s@%s/postgres?sslmode=disable", user, password, p.Addr)
}

// Query runs SQL as the superuser and returns the rows, columns joined by |.
func (p *Postgres) Query(ctx context.Context, sql string) ([]string, error) {
	return p.QueryAs(ctx, p.User, p.Password, sql)
}

// QueryAs runs SQL as the given user, so also answers whether it can log in.
func (p *Postgres) QueryAs(ctx context.Context, user, password, sql string) ([]string, error) {
	cmd := exec.CommandContext(ctx, filepath.Join(p.bin, "psql"), "-XAtq", "-v", "ON_ERROR_STOP=1",
		"-h", p.Addr.Addr().String(), "-p", strconv.Itoa(int(p.Addr.Port())), "-U", user, "-d", "postgres", "-c", sql)
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
