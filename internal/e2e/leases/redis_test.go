package leases

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/chaperone-proxy/chaperone/internal/testenv"
	"github.com/chaperone-proxy/chaperone/internal/testenv/scenario"
)

const cacheHost = "cache.shop.example"

// cacheLab is a Redis whose users Vault leases by its plugin for Redis, and a sidecar whose
// plugin may use some of its keys.
type cacheLab struct {
	lab
	cache *testenv.Redis
}

// newCacheLab has users leased for ttl, or at the path in Vault.
func newCacheLab(t *testing.T, ttl time.Duration, path string, rules ...string) *cacheLab {
	t.Helper()
	testenv.Require(t, testenv.RedisServer())
	l := &cacheLab{lab: lab{Env: scenario.New(t, "required", "")}}
	ctx := context.WithoutCancel(t.Context())
	l.cache = testenv.MustRedis(t, testenv.RedisConfig{Names: []string{cacheHost}})
	testenv.Must(t, errors.Join(
		l.Vault.EnableRedis(ctx, "cache", l.cache),
		l.Vault.RedisRole(ctx, "cache", "app", ttl, rules...),
		l.Vault.Policy(ctx, "weather", `
path "cache/creds/app" { capabilities = ["read"] }
path "cache/static-creds/fixed" { capabilities = ["read"] }
path "cache/roles/app" { capabilities = ["read"] }
path "cache/config/*" { capabilities = ["read"] }
path "sys/leases/revoke" { capabilities = ["update"] }
path "sys/leases/renew" { capabilities = ["update"] }
`),
		os.WriteFile(l.File("cache-ca.pem"), l.cache.CA.PEM(), 0o644),
	))
	l.configure(cacheHost, fmt.Sprintf(`
  - id: cache
    reason: Tests
    to: {scheme: redis, hosts: [%s], ports: [%d], addresses: [127.0.0.0/8], tls: {caFile: cache-ca.pem}}
    databases: [0]
    commands: [get, set, blpop, acl whoami]
    keys: ["app:*"]
`, cacheHost, l.cache.TLSAddr.Port()), path)
	l.connect = fmt.Sprintf("LEASES_CONNECT=%s:%d", cacheHost, l.cache.TLSAddr.Port())
	return l
}

// users returns the users that Vault has made in the Redis.
func (l *cacheLab) users() (names []string) {
	l.T.Helper()
	for name := range strings.Lines(testenv.MustGet(l.cache.Do(context.WithoutCancel(l.T.Context()), "ACL", "USERS"))(l.T)) {
		if name = strings.TrimSpace(name); strings.HasPrefix(name, "V_") {
			names = append(names, name)
		}
	}
	return names
}

// awaitUsers waits until Vault has made exactly those users.
func (l *cacheLab) awaitUsers(want ...string) {
	l.T.Helper()
	testenv.Eventually(l.T, fmt.Sprintf("the Redis has the users %q", want), func() (bool, bool) {
		return true, strings.Join(l.users(), " ") == strings.Join(want, " ")
	})
}

// appRules are what the leased users may do.
var appRules = []string{"~app:*", "~other", "resetchannels", "+get", "+set", "+blpop", "+@connection", "-@dangerous", "+acl|whoami"}

// TestRedisUsersAreLeased: a session logs in with a user that Vault makes for it; a lease
// that is revoked in Vault cuts the sessions that carry it and removes the user, and so does
// a revocation of the rule.
func TestRedisUsersAreLeased(t *testing.T) {
	l := newCacheLab(t, time.Hour, "cache/creds/app", appRules...)
	c := l.startConsoleAs("cache")
	first := c.rows("idle", "ACL WHOAMI")[0]
	l.awaitUsers(first)
	c.rows("idle", "SET app:1 sunny")
	if rows := c.rows("busy", "GET app:1"); rows[0] != "sunny" || c.rows("busy", "ACL WHOAMI")[0] != first {
		t.Errorf("rows %q", rows)
	}
	if a := c.do("idle", "GET other"); !strings.Contains(a.Error, "statement_not_granted") {
		t.Errorf("a key that is not granted: %+v", a)
	}
	wait := c.begin("busy", "BLPOP app:empty 600")
	testenv.Must(t, l.Vault.RevokeLeases(t.Context(), "cache/creds/app"))
	if a := wait(); a.Error == "" {
		t.Errorf("a command outlives its lease: %+v", a)
	}
	if a := c.do("idle", "GET app:1"); a.Error == "" {
		t.Error("an idle session outlives its lease")
	}
	l.awaitUsers()
	second := testenv.Eventually(t, "a new session works", func() (string, bool) {
		a := c.do("next", "ACL WHOAMI")
		if a.Error != "" {
			c.do("next", "")
			return "", false
		}
		return a.Rows[0], true
	})
	if second == first {
		t.Errorf("the next session has the user %s of the lease that was revoked", first)
	}
	l.awaitUsers(second)
	wait = c.begin("next", "BLPOP app:empty 600")
	testenv.Eventually(t, "the command is there", func() (bool, bool) {
		clients, err := l.cache.Do(t.Context(), "CLIENT", "LIST")
		return true, err == nil && strings.Contains(clients, "cmd=blpop")
	})
	l.Revoke("--rule", "weather/cache")
	if a := wait(); a.Error == "" {
		t.Errorf("a command outlives its rule: %+v", a)
	}
	l.awaitUsers()
}

// TestRedisLeasesAreReplaced: an idle session ends before its lease does, the next one has
// another user, and none is left when the sidecar has ended.
func TestRedisLeasesAreReplaced(t *testing.T) {
	l := newCacheLab(t, 6*time.Second, "cache/creds/app", appRules...)
	c := l.startConsoleAs("cache")
	first := c.rows("a", "ACL WHOAMI")[0]
	wait := c.begin("a", "BLPOP app:empty 600") // busy until the end of the lease
	second := testenv.Eventually(t, "a new session has another user", func() (string, bool) {
		a := c.do("b", "ACL WHOAMI")
		c.do("b", "")
		return strings.Join(a.Rows, ""), a.Error == "" && a.Rows[0] != first
	})
	if a := wait(); a.Error == "" {
		t.Errorf("a command outlives its lease: %+v", a)
	}
	testenv.Eventually(t, "the first user is removed", func() (bool, bool) { return true, !strings.Contains(strings.Join(l.users(), " "), first) })
	if second == "" {
		t.Error("no second user")
	}
	c.process.Stop()
	l.awaitUsers()
}

// TestRedisPasswordRotated: a password that Vault has rotated is read again when the Redis
// refuses the one before, and the plugin sees nothing of it.
func TestRedisPasswordRotated(t *testing.T) {
	l := newCacheLab(t, time.Hour, "cache/static-creds/fixed", appRules...)
	testenv.MustGet(l.cache.Do(t.Context(), append([]string{"ACL", "SETUSER", "app", "on", ">first"}, appRules...)...))(t)
	testenv.MustGet(l.Vault.Write(t.Context(), "cache/static-roles/fixed", map[string]any{"db_name": "redis", "username": "app", "rotation_period": "1h"}))(t)
	c := l.startConsoleAs("cache")
	c.rows("before", "SET app:1 sunny")
	testenv.MustGet(l.Vault.Write(t.Context(), "cache/rotate-role/fixed", map[string]any{}))(t)
	if rows := c.rows("after", "ACL WHOAMI"); rows[0] != "app" || l.credentialRecords("replaced") != 1 {
		t.Errorf("rows %q, replaced %d times", rows, l.credentialRecords("replaced"))
	}
	if rows := c.rows("before", "GET app:1"); rows[0] != "sunny" {
		t.Errorf("a session that was open: %q", rows)
	}
}

// TestDoctorComparesTheRedisRole has doctor read the ACL rules of a role in Vault.
func TestDoctorComparesTheRedisRole(t *testing.T) {
	l := newCacheLab(t, time.Hour, "cache/creds/app", appRules...)
	doctor := func() string {
		r := l.Chaperone("doctor", "--login", "--config", l.File("sidecar.yaml"))
		return r.Stdout + r.Stderr
	}
	scenario.Contains(t, doctor(), "warn  role cache/roles/app of credential weather/shop: its users may use keys other, and the rules name app:*", "code: vault.role_keys")
	testenv.Must(t, l.Vault.RedisRole(t.Context(), "cache", "app", time.Hour, "~app:*", "+get", "+set", "+blpop", "+acl|whoami", "+monitor"))
	scenario.Contains(t, doctor(), "its users may run monitor, which no rule grants", "code: vault.role_commands")
	testenv.Must(t, l.Vault.RedisRole(t.Context(), "cache", "app", time.Hour, "~app:*", "+get", "+set", "+blpop", "+acl|whoami"))
	scenario.Contains(t, doctor(), "pass  role cache/roles/app of credential weather/shop\n")
}

// redisLink is a connection to a Redis, without TLS on the plugin's own side.
type redisLink struct {
	conn net.Conn
	r    *bufio.Reader
}

func connectRedis() (link, error) {
	conn, err := net.Dial("tcp", os.Getenv("LEASES_CONNECT"))
	if err != nil {
		return nil, err
	}
	return redisLink{conn, bufio.NewReader(conn)}, nil
}

func (l redisLink) close() error { return l.conn.Close() }

// query sends a command of words, and returns its answer, a line or a string, as a row.
func (l redisLink) query(command string) ([]string, error) {
	words := strings.Fields(command)
	request := fmt.Appendf(nil, "*%d\r\n", len(words))
	for _, word := range words {
		request = fmt.Appendf(request, "$%d\r\n%s\r\n", len(word), word)
	}
	if _, err := l.conn.Write(request); err != nil {
		return nil, err
	}
	line, err := l.r.ReadString('\n')
	switch {
	case err != nil:
		return nil, err
	case line[0] == '-':
		return nil, errors.New(line)
	case line[0] != '$':
		return []string{strings.TrimSpace(line[1:])}, nil
	}
	n, err := strconv.Atoi(strings.TrimSpace(line[1:]))
	if err != nil || n < 0 {
		return nil, err
	}
	text := make([]byte, n+2)
	_, err = io.ReadFull(l.r, text)
	return []string{string(text[:n])}, err
}
