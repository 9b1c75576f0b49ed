package testenv

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// VaultConfig is how a test Vault listens.
type VaultConfig struct {
	// Listen is a loopback address and port. Empty: 127.0.0.1 and a port that
	// is free. Name one to start another Vault where a former one was.
	Listen string
	// TLS makes it serve HTTPS with a certificate of its own authority.
	TLS bool
}

// Vault is a running, unsealed Vault that keeps everything in memory. KV v2 is
// mounted at secret/, and nothing else is mounted or enabled.
type Vault struct {
	// Address is what VAULT_ADDR would be.
	Address string
	// Token is a root token.
	Token string
	// UnsealKey is the one key that unseals it, in base64.
	UnsealKey string
	// CA signed the certificate; nil without TLS.
	CA *CA
	// CAFile holds CA's certificate (PEM); empty without TLS.
	CAFile string

	process *process
	client  *http.Client
	dir     string
}

// MustVault starts a Vault for the length of a test.
func MustVault(t testing.TB, cfg VaultConfig) *Vault {
	t.Helper()
	return mustStart(t, func(ctx context.Context) (*Vault, error) { return StartVault(ctx, cfg) })
}

// StartVault builds the Vault if need be, starts it and returns when it serves.
// ctx bounds the start only.
func StartVault(ctx context.Context, cfg VaultConfig) (*Vault, error) {
	program, err := BuildVault(ctx, nil)
	if err != nil {
		return nil, err
	}
	if cfg.Listen == "" {
		cfg.Listen = "127.0.0.1:0"
	}
	dir, err := os.MkdirTemp("", "chaperone-vault-")
	if err != nil {
		return nil, fmt.Errorf("make folder: %w", err)
	}
	v := &Vault{dir: dir}
	if err := v.start(ctx, program, cfg); err != nil {
		return nil, errors.Join(fmt.Errorf("start Vault: %w", err), v.Close())
	}
	return v, nil
}

func (v *Vault) start(ctx context.Context, program string, cfg VaultConfig) error {
	transport := &http.Transport{}
	v.client = &http.Client{Transport: transport, Timeout: 30 * time.Second}
	args := []string{"-listen", cfg.Listen}
	if cfg.TLS {
		tlsArgs, err := v.makeCertificate()
		if err != nil {
			return err
		}
		args = append(args, tlsArgs...)
		transport.TLSClientConfig = &tls.Config{RootCAs: v.CA.Pool(), MinVersion: tls.VersionTLS12}
	}
	out, in, err := os.Pipe()
	if err != nil {
		return err
	}
	defer out.Close()
	cmd := exec.Command(program, args...)
	cmd.Stdout = in
	v.process, err = startProcess(cmd, syscall.SIGTERM)
	if err := errors.Join(err, in.Close()); err != nil {
		return err
	}
	deadline, ok := ctx.Deadline()
	if limit := time.Now().Add(startLimit); !ok || limit.Before(deadline) {
		deadline = limit
	}
	if err := out.SetReadDeadline(deadline); err != nil {
		return err
	}
	line, err := bufio.NewReader(out).ReadBytes('\n')
	if err != nil {
		return fmt.Errorf("read its address: %w, having printed:\n%s", err, v.process.log)
	}
	if err := json.Unmarshal(line, &struct {
		Address, Token, UnsealKey *string
	}{&v.Address, &v.Token, &v.UnsealKey}); err != nil {
		return fmt.Errorf("read its address: %w", err)
	}
	// A new KV v2 mount answers errors until its first upgrade is done.
	return v.process.until(ctx, func(ctx context.Context) error {
		_, err := v.Read(ctx, "secret/config")
		return err
	})
}

func (v *Vault) makeCertificate() ([]string, error) {
	var err error
	if v.CA, err = NewCA("chaperone test Vault"); err != nil {
		return nil, err
	}
	pair, err := v.CA.Issue("127.0.0.1", "::1", "localhost")
	if err != nil {
		return nil, err
	}
	v.CAFile = filepath.Join(v.dir, "ca.pem")
	certFile, keyFile := filepath.Join(v.dir, "cert.pem"), filepath.Join(v.dir, "key.pem")
	if err := errors.Join(v.CA.WriteFile(v.CAFile), WritePair(pair, certFile, keyFile)); err != nil {
		return nil, err
	}
	return []string{"-tls-cert", certFile, "-tls-key", keyFile}, nil
}

// Close ends the Vault; everything it held is gone.
func (v *Vault) Close() error {
	var err error
	if v.process != nil {
		err = v.process.close()
	}
	if v.client != nil {
		v.client.CloseIdleConnections()
	}
	return errors.Join(err, os.RemoveAll(v.dir))
}

// Kill ends the Vault at once, as a crash would.
func (v *Vault) Kill() error { return v.process.kill() }

// Pause stops the Vault without closing its sockets: it accepts connections
// and answers nothing, until Resume.
func (v *Vault) Pause() error { return v.process.pause() }

// Resume lets a paused Vault go on.
func (v *Vault) Resume() error { return v.process.signal(syscall.SIGCONT) }

// PID returns the process id of the Vault.
func (v *Vault) PID() int { return v.process.cmd.Process.Pid }

// Seal seals the Vault: it answers 503 to everything until Unseal.
func (v *Vault) Seal(ctx context.Context) error {
	_, err := v.Do(ctx, http.MethodPut, "sys/seal", v.Token, nil)
	return err
}

// Unseal unseals it again.
func (v *Vault) Unseal(ctx context.Context) error {
	if _, err := v.Do(ctx, http.MethodPut, "sys/unseal", "", map[string]any{"key": v.UnsealKey}); err != nil {
		return err
	}
	// The mounts come back a little after the answer.
	return v.process.until(ctx, func(ctx context.Context) error {
		_, err := v.Read(ctx, "secret/config")
		return err
	})
}

// VaultError is an answer of Vault with a status of 400 or above.
type VaultError struct {
	Status int
	Errors []string `json:"errors"`
}

func (e *VaultError) Error() string {
	return fmt.Sprintf("vault answered %d: %s", e.Status, strings.Join(e.Errors, "; "))
}

// Do sends one request of the HTTP API (path without /v1/) and returns the
// whole decoded answer, nil if it is empty. An answer of 400 or above is a
// [*VaultError].
func (v *Vault) Do(ctx context.Context, method, path, token string, body any) (map[string]any, error) {
	var content io.Reader
	if body != nil {
		text, err := json.Marshal(body)
		if err != nil {
			return nil, fmt.Errorf("encode body: %w", err)
		}
		content = bytes.NewReader(text)
	}
	req, err := http.NewRequestWithContext(ctx, method, v.Address+"/v1/"+path, content)
	if err != nil {
		return nil, err
	}
	if token != "" {
		req.Header.Set("X-Vault-Token", token)
	}
	resp, err := v.client.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		return nil, fmt.Errorf("read answer: %w", err)
	}
	if resp.StatusCode >= http.StatusBadRequest {
		refused := &VaultError{Status: resp.StatusCode}
		_ = json.Unmarshal(text, refused) // an answer that is no JSON keeps its status
		return nil, fmt.Errorf("%s %s: %w", method, path, refused)
	}
	if len(text) == 0 {
		return nil, nil
	}
	var answer map[string]any
	if err := json.Unmarshal(text, &answer); err != nil {
		return nil, fmt.Errorf("%s %s: decode answer: %w", method, path, err)
	}
	return answer, nil
}

// Read reads path with the root token and returns the data of the answer.
func (v *Vault) Read(ctx context.Context, path string) (map[string]any, error) {
	return v.data(ctx, http.MethodGet, path, nil)
}

// Write writes data to path with the root token and returns the data of the
// answer, nil if it has none.
func (v *Vault) Write(ctx context.Context, path string, data map[string]any) (map[string]any, error) {
	return v.data(ctx, http.MethodPut, path, data)
}

// Delete deletes path with the root token.
func (v *Vault) Delete(ctx context.Context, path string) error {
	_, err := v.data(ctx, http.MethodDelete, path, nil)
	return err
}

func (v *Vault) data(ctx context.Context, method, path string, body map[string]any) (map[string]any, error) {
	var content any
	if body != nil {
		content = body
	}
	answer, err := v.Do(ctx, method, path, v.Token, content)
	if err != nil {
		return nil, err
	}
	data, _ := answer["data"].(map[string]any)
	return data, nil
}

// PutSecret writes a version of a KV v2 secret; name is below secret/, so the
// path that a client reads is secret/data/NAME.
func (v *Vault) PutSecret(ctx context.Context, name string, fields map[string]any) error {
	_, err := v.Write(ctx, "secret/data/"+name, map[string]any{"data": fields})
	return err
}

// EnableEngine mounts a secrets engine of kind (kv, database, pki, transit) at
// path. options may be nil; kv takes {"version": "2"}.
func (v *Vault) EnableEngine(ctx context.Context, path, kind string, options map[string]string) error {
	if _, err := v.Write(ctx, "sys/mounts/"+path, map[string]any{"type": kind, "options": options}); err != nil {
		return err
	}
	if kind != "kv" || options["version"] != "2" {
		return nil
	}
	return v.process.until(ctx, func(ctx context.Context) error {
		_, err := v.Read(ctx, path+"/config")
		return err
	})
}

// EnableAuth mounts a way to log in of kind (approle, cert, jwt, kubernetes) at
// auth/PATH, unless one of that path is there.
func (v *Vault) EnableAuth(ctx context.Context, path, kind string) error {
	_, err := v.Write(ctx, "sys/auth/"+path, map[string]any{"type": kind})
	if refused := new(VaultError); errors.As(err, &refused) && strings.Contains(err.Error(), "already in use") {
		return nil
	}
	return err
}

// AppRole is what a login by AppRole may do.
type AppRole struct {
	// Policy is Vault policy text (HCL), besides the policy "default".
	Policy string
	// TokenTTL and TokenMaxTTL bound the token; zero: Vault's 768 hours.
	TokenTTL, TokenMaxTTL time.Duration
	// SecretIDUses bounds how often the secret id may be used; zero: no bound.
	SecretIDUses int
}

// AppRoleLogin is what a client logs in with at auth/approle/login.
type AppRoleLogin struct {
	RoleID, SecretID string
}

// AppRole makes a policy and an AppRole called name, at auth/approle, and
// returns its role id and a secret id.
func (v *Vault) AppRole(ctx context.Context, name string, role AppRole) (AppRoleLogin, error) {
	var login AppRoleLogin
	if err := v.EnableAuth(ctx, "approle", "approle"); err != nil {
		return login, err
	}
	if err := v.Policy(ctx, name, role.Policy); err != nil {
		return login, err
	}
	path := "auth/approle/role/" + name
	if _, err := v.Write(ctx, path, map[string]any{
		"token_policies":     []string{name},
		"token_ttl":          role.TokenTTL.String(),
		"token_max_ttl":      role.TokenMaxTTL.String(),
		"secret_id_num_uses": role.SecretIDUses,
	}); err != nil {
		return login, err
	}
	id, err := v.Read(ctx, path+"/role-id")
	if err != nil {
		return login, err
	}
	secret, err := v.Write(ctx, path+"/secret-id", map[string]any{})
	if err != nil {
		return login, err
	}
	login.RoleID, _ = id["role_id"].(string)
	login.SecretID, _ = secret["secret_id"].(string)
	return login, nil
}

// Policy writes a policy (HCL), replacing one of the same name.
func (v *Vault) Policy(ctx context.Context, name, text string) error {
	_, err := v.Write(ctx, "sys/policies/acl/"+name, map[string]any{"policy": text})
	return err
}

// NewToken makes a token with the named policies, renewable, that lives for
// ttl; zero: Vault's 768 hours.
func (v *Vault) NewToken(ctx context.Context, ttl time.Duration, policies ...string) (string, error) {
	body := map[string]any{"policies": policies, "no_parent": true}
	if ttl > 0 {
		body["ttl"] = ttl.String()
	}
	answer, err := v.Do(ctx, http.MethodPost, "auth/token/create", v.Token, body)
	if err != nil {
		return "", err
	}
	auth, _ := answer["auth"].(map[string]any)
	token, _ := auth["client_token"].(string)
	if token == "" {
		return "", errors.New("create token: the answer has none")
	}
	return token, nil
}

// EnableDatabase mounts a database engine at mount, with one connection called
// "postgres" to db.
func (v *Vault) EnableDatabase(ctx context.Context, mount string, db *Postgres) error {
	if err := v.EnableEngine(ctx, mount, "database", nil); err != nil {
		return err
	}
	_, err := v.Write(ctx, mount+"/config/postgres", map[string]any{
		"plugin_name":    "postgresql-database-plugin",
		"allowed_roles":  "*",
		"connection_url": db.URL("{{username}}", "{{password}}"),
		"username":       db.User,
		"password":       db.Password,
	})
	return err
}

// EnableRedis mounts a database engine at mount, with one connection called "redis" to a
// Redis.
func (v *Vault) EnableRedis(ctx context.Context, mount string, r *Redis) error {
	if err := v.EnableEngine(ctx, mount, "database", nil); err != nil {
		return err
	}
	_, err := v.Write(ctx, mount+"/config/redis", map[string]any{
		"plugin_name": "redis-database-plugin", "allowed_roles": "*",
		"host": r.Addr.Addr().String(), "port": r.Addr.Port(), "username": "default", "password": r.Password,
	})
	return err
}

// RedisRole makes a role whose users, who have the ACL rules, are leased at
// MOUNT/creds/NAME for ttl.
func (v *Vault) RedisRole(ctx context.Context, mount, name string, ttl time.Duration, rules ...string) error {
	creation, err := json.Marshal(rules)
	if err != nil {
		return err
	}
	_, err = v.Write(ctx, mount+"/roles/"+name, map[string]any{
		"db_name": "redis", "creation_statements": string(creation), "default_ttl": ttl.String(), "max_ttl": ttl.String(),
	})
	return err
}

// DatabaseRole is what a leased database user may do and for how long.
type DatabaseRole struct {
	// Grants are SQL statements run for a new user, with {{name}} for it.
	// Empty: it may read every table.
	Grants []string
	// TTL and MaxTTL bound a lease; zero: an hour and a day.
	TTL, MaxTTL time.Duration
}

// DatabaseRole makes a role whose users are leased at MOUNT/creds/NAME.
func (v *Vault) DatabaseRole(ctx context.Context, mount, name string, role DatabaseRole) error {
	if len(role.Grants) == 0 {
		role.Grants = []string{`GRANT pg_read_all_data TO "{{name}}"`}
	}
	if role.TTL == 0 {
		role.TTL = time.Hour
	}
	if role.MaxTTL == 0 {
		role.MaxTTL = max(24*time.Hour, role.TTL)
	}
	create := `CREATE ROLE "{{name}}" WITH LOGIN PASSWORD '{{password}}' VALID UNTIL '{{expiration}}'`
	_, err := v.Write(ctx, mount+"/roles/"+name, map[string]any{
		"db_name":             "postgres",
		"creation_statements": append([]string{create}, role.Grants...),
		"default_ttl":         role.TTL.String(),
		"max_ttl":             role.MaxTTL.String(),
	})
	return err
}

// Wrap asks for path with the root token and returns a token that the answer
// is wrapped in for ttl, and can be unwrapped with once.
func (v *Vault) Wrap(ctx context.Context, method, path string, ttl time.Duration) (string, error) {
	req, err := http.NewRequestWithContext(ctx, method, v.Address+"/v1/"+path, nil)
	if err != nil {
		return "", err
	}
	req.Header.Set("X-Vault-Token", v.Token)
	req.Header.Set("X-Vault-Wrap-TTL", ttl.String())
	resp, err := v.client.Do(req)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	var answer struct {
		WrapInfo struct {
			Token string `json:"token"`
		} `json:"wrap_info"`
	}
	if err := json.NewDecoder(resp.Body).Decode(&answer); err != nil || answer.WrapInfo.Token == "" {
		return "", fmt.Errorf("wrap %s: Vault answered %s without a token", path, resp.Status)
	}
	return answer.WrapInfo.Token, nil
}

// StaticDatabaseRole makes a role whose one user, which must be in the
// database, has its password rotated every period (5 s at least); it is read at
// MOUNT/static-creds/NAME.
func (v *Vault) StaticDatabaseRole(ctx context.Context, mount, name, user string, period time.Duration) error {
	_, err := v.Write(ctx, mount+"/static-roles/"+name, map[string]any{
		"db_name": "postgres", "username": user, "rotation_period": period.String(),
	})
	return err
}

// EnablePKI mounts a PKI engine at mount with an authority of its own, and
// returns the authority's certificate (PEM).
func (v *Vault) EnablePKI(ctx context.Context, mount string) (string, error) {
	if err := v.EnableEngine(ctx, mount, "pki", nil); err != nil {
		return "", err
	}
	root, err := v.Write(ctx, mount+"/root/generate/internal", map[string]any{
		"common_name": "chaperone test PKI", "key_type": "ec", "key_bits": 256, "ttl": "24h",
	})
	if err != nil {
		return "", err
	}
	certificate, _ := root["certificate"].(string)
	return certificate, nil
}

// Leases returns the ids of the leases in force under prefix, for example
// "database/creds/reader".
func (v *Vault) Leases(ctx context.Context, prefix string) ([]string, error) {
	prefix = strings.TrimSuffix(prefix, "/") + "/"
	data, err := v.data(ctx, "LIST", "sys/leases/lookup/"+prefix, nil)
	if refused := new(VaultError); errors.As(err, &refused) && refused.Status == http.StatusNotFound {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	keys, _ := data["keys"].([]any)
	var leases []string
	for _, key := range keys {
		name, _ := key.(string)
		if !strings.HasSuffix(name, "/") {
			leases = append(leases, prefix+name)
			continue
		}
		below, err := v.Leases(ctx, prefix+name)
		if err != nil {
			return nil, err
		}
		leases = append(leases, below...)
	}
	return leases, nil
}

// RevokeLeases revokes every lease under prefix and waits until it is done.
func (v *Vault) RevokeLeases(ctx context.Context, prefix string) error {
	_, err := v.Write(ctx, "sys/leases/revoke-prefix/"+strings.TrimSuffix(prefix, "/"), map[string]any{"sync": true})
	return err
}
