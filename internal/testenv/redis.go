package testenv

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/tls"
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

// RedisConfig describes a Redis to start.
type RedisConfig struct {
	// Names are the host names of its certificate, beside its address. With any it
	// listens with TLS too.
	Names []string
	// Users are lines of its ACL, as in "user reader on >secret ~app:* +@read". The
	// user default is the administrator, with [Redis.Password].
	Users []string
	// Settings are lines of its configuration, as in "maxmemory 64mb".
	Settings []string
	// Version is [OldRedis] or [NewestRedis]. Empty: that of [RedisVariable], or the system's.
	Version string
}

// Redis is a running Redis without data.
type Redis struct {
	// Addr is where it listens on loopback without TLS, and TLSAddr with it.
	Addr, TLSAddr netip.AddrPort
	// Password is of the user default, who may do everything.
	Password string
	// CA issued its certificate, and CAFile holds the CA; nil and "" without TLS.
	CA     *CA
	CAFile string

	dir     string
	program string
	process *process
	front   *terminator // nil where the server speaks TLS itself
}

// RedisServer needs the program of a Redis server.
func RedisServer() Need { return Program("redis-server") }

// MustRedis starts a Redis for the length of a test.
func MustRedis(t testing.TB, cfg RedisConfig) *Redis {
	t.Helper()
	return mustStart(t, func(ctx context.Context) (*Redis, error) { return StartRedis(ctx, cfg) })
}

// StartRedis starts a Redis on free loopback ports and returns when it answers. Root runs it
// as the user postgres or else nobody. ctx bounds the start only.
func StartRedis(ctx context.Context, cfg RedisConfig) (*Redis, error) {
	dir, err := os.MkdirTemp("", "chaperone-redis-")
	if err != nil {
		return nil, fmt.Errorf("make folder: %w", err)
	}
	r := &Redis{Password: rand.Text(), dir: dir}
	if err := r.start(ctx, cfg); err != nil {
		return nil, errors.Join(fmt.Errorf("start Redis: %w", err), r.Close())
	}
	return r, nil
}

func (r *Redis) start(ctx context.Context, cfg RedisConfig) error {
	as, err := unprivileged()
	if err != nil {
		return err
	}
	if cfg.Version == "" {
		cfg.Version = os.Getenv(RedisVariable)
	}
	if r.program, err = copyRedis(ctx, cfg.Version, r.dir); err != nil {
		return err
	}
	lines := []string{"bind 127.0.0.1", `save ""`, "appendonly no", "daemonize no", "protected-mode no", "dir " + r.dir}
	if r.Addr, err = freeLoopback(); err != nil {
		return err
	}
	lines = append(lines, "port "+strconv.Itoa(int(r.Addr.Port())))
	if len(cfg.Names) > 0 {
		if r.TLSAddr, err = freeLoopback(); err != nil {
			return err
		}
		cert, key := filepath.Join(r.dir, "server.crt"), filepath.Join(r.dir, "server.key")
		if r.CA, r.CAFile, err = issueFor(as, r.dir, cert, key, cfg.Names); err != nil {
			return err
		}
		if cfg.Version != "" {
			pair, err := tls.LoadX509KeyPair(cert, key)
			if err == nil {
				r.front, err = startTerminator(r.TLSAddr.String(), r.Addr.String(), pair)
			}
			if err != nil {
				return err
			}
		} else {
			lines = append(lines, "tls-port "+strconv.Itoa(int(r.TLSAddr.Port())), "tls-cert-file "+cert, "tls-key-file "+key,
				"tls-ca-cert-file "+r.CAFile, "tls-auth-clients no")
		}
	}
	lines = append(append(lines, "user default on >"+r.Password+" ~* &* +@all"), append(cfg.Users, cfg.Settings...)...)
	if as != nil {
		if err := os.Chown(r.dir, int(as.Uid), int(as.Gid)); err != nil {
			return err
		}
	}
	if err := writeAs(as, r.config(), []byte(strings.Join(lines, "\n")+"\n")); err != nil {
		return err
	}
	return r.Start(ctx)
}

func (r *Redis) config() string { return filepath.Join(r.dir, "redis.conf") }

// Start starts a server that Stop or Kill ended, at the same addresses.
func (r *Redis) Start(ctx context.Context) error {
	as, err := unprivileged()
	if err != nil {
		return err
	}
	cmd := exec.Command(r.program, r.config())
	cmd.Dir = r.dir
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + r.dir, "LC_ALL=C"}
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: as}
	if r.process, err = startProcess(cmd, syscall.SIGTERM); err != nil {
		return err
	}
	return r.process.until(ctx, func(ctx context.Context) error {
		_, err := r.Do(ctx, "PING")
		return err
	})
}

// Stop ends the server in good order, until Start.
func (r *Redis) Stop() error { return r.process.close() }

// Kill ends the server at once, as a crash would.
func (r *Redis) Kill() error { return r.process.kill() }

// Pause stops the server without closing its sockets, until Resume.
func (r *Redis) Pause() error { return r.process.pause() }

// Resume lets a paused server go on.
func (r *Redis) Resume() error { return r.process.signal(syscall.SIGCONT) }

// Close ends the server and removes its folder.
func (r *Redis) Close() error {
	var err error
	if r.process != nil {
		err = r.process.close()
	}
	if r.front != nil {
		err = errors.Join(err, r.front.close())
	}
	return errors.Join(err, os.RemoveAll(r.dir))
}

// Do sends a command as the administrator and returns what redis-cli prints for its answer.
// An error of the server is an error.
func (r *Redis) Do(ctx context.Context, command ...string) (string, error) {
	return r.DoAs(ctx, "default", r.Password, command...)
}

// DoAs is Do as another user, so also answers whether it can log in.
func (r *Redis) DoAs(ctx context.Context, user, password string, command ...string) (string, error) {
	args := append([]string{"-e", "--no-auth-warning", "-h", "127.0.0.1", "-p", strconv.Itoa(int(r.Addr.Port())), "--user", user}, command...)
	cmd := exec.CommandContext(ctx, "redis-cli", args...)
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "REDISCLI_AUTH=" + password, "LC_ALL=C", "HOME=/nonexistent"}
	cmd.Dir = "/"
	var errText bytes.Buffer
	cmd.Stderr = &errText
	out, err := cmd.Output()
	if text := strings.TrimSpace(errText.String()); err != nil || text != "" {
		return "", fmt.Errorf("send %s as %s: %w", command[0], user, errors.Join(err, errors.New(text)))
	}
	return strings.TrimSuffix(string(out), "\n"), nil
}

// freeLoopback returns an address of the loopback with a port that is this process's.
func freeLoopback() (netip.AddrPort, error) {
	port, err := freePort()
	return netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), port), err
}
