// Command vaultdev runs a real, in-memory, unsealed HashiCorp Vault for tests
// and the demonstration. See README.md for its licence and its limits.
package main

import (
	"context"
	"crypto/tls"
	"encoding/base64"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/hashicorp/go-hclog"
	authjwt "github.com/hashicorp/vault-plugin-auth-jwt"
	authkube "github.com/hashicorp/vault-plugin-auth-kubernetes"
	redis "github.com/hashicorp/vault-plugin-database-redis"
	kv "github.com/hashicorp/vault-plugin-secrets-kv"
	"github.com/hashicorp/vault/audit"
	"github.com/hashicorp/vault/builtin/credential/approle"
	"github.com/hashicorp/vault/builtin/credential/cert"
	"github.com/hashicorp/vault/builtin/credential/userpass"
	"github.com/hashicorp/vault/builtin/logical/database"
	"github.com/hashicorp/vault/builtin/logical/pki"
	"github.com/hashicorp/vault/builtin/logical/transit"
	"github.com/hashicorp/vault/builtin/plugin"
	"github.com/hashicorp/vault/helper/namespace"
	vaulthttp "github.com/hashicorp/vault/http"
	"github.com/hashicorp/vault/internalshared/configutil"
	"github.com/hashicorp/vault/plugins/database/postgresql"
	"github.com/hashicorp/vault/sdk/helper/consts"
	"github.com/hashicorp/vault/sdk/logical"
	"github.com/hashicorp/vault/sdk/physical/inmem"
	"github.com/hashicorp/vault/vault"
)

func main() {
	var cfg config
	flag.StringVar(&cfg.listen, "listen", "127.0.0.1:0", "address to listen on; port 0 picks one")
	flag.StringVar(&cfg.certFile, "tls-cert", "", "certificate file (PEM); with -tls-key, serve HTTPS")
	flag.StringVar(&cfg.keyFile, "tls-key", "", "key file (PEM)")
	flag.StringVar(&cfg.level, "log-level", "error", "level of Vault's own log on stderr")
	flag.Parse()

	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, cfg, os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "vaultdev:", err)
		os.Exit(1)
	}
}

type config struct {
	listen, certFile, keyFile, level string
}

// ready is the one line written to stdout. internal/testenv reads it.
type ready struct {
	Address   string `json:"address"`
	Token     string `json:"token"`
	UnsealKey string `json:"unsealKey"` // base64, as PUT sys/unseal takes it
}

func run(ctx context.Context, cfg config, out io.Writer) error {
	listener, err := net.Listen("tcp", cfg.listen)
	if err != nil {
		return err
	}
	defer listener.Close()
	scheme := "http"
	if cfg.certFile != "" {
		scheme = "https"
	}
	said := ready{Address: scheme + "://" + listener.Addr().String()}

	core, err := newCore(said.Address, cfg.level)
	if err != nil {
		return fmt.Errorf("make core: %w", err)
	}
	if err := open(core, &said); err != nil {
		return err
	}
	server := &http.Server{
		Handler: vaulthttp.Handler.Handler(&vault.HandlerProperties{
			Core:           core,
			ListenerConfig: &configutil.Listener{Address: listener.Addr().String()},
		}),
		// As Vault's own listener does, for logins with a certificate.
		TLSConfig:         &tls.Config{ClientAuth: tls.RequestClientCert, MinVersion: tls.VersionTLS12},
		ReadHeaderTimeout: 10 * time.Second,
	}
	served := make(chan error, 1)
	go func() {
		if cfg.certFile != "" {
			served <- server.ServeTLS(listener, cfg.certFile, cfg.keyFile)
			return
		}
		served <- server.Serve(listener)
	}()
	if err := json.NewEncoder(out).Encode(said); err != nil {
		return err
	}
	select {
	case err := <-served:
		return fmt.Errorf("serve: %w", err)
	case <-ctx.Done():
	}
	return errors.Join(server.Close(), core.ShutdownWait())
}

func newCore(address, level string) (*vault.Core, error) {
	logger := hclog.New(&hclog.LoggerOptions{Name: "vault", Level: hclog.LevelFromString(level)})
	storage, err := inmem.NewInmem(nil, logger)
	if err != nil {
		return nil, err
	}
	return vault.NewCore(&vault.CoreConfig{
		BuiltinRegistry:    builtins(),
		LogicalBackends:    with(engines(), "plugin", plugin.Factory),
		CredentialBackends: with(logins(), "plugin", plugin.Factory),
		AuditBackends:      map[string]audit.Factory{"file": audit.NewFileBackend},
		Physical:           storage,
		StorageType:        "inmem",
		DisableMlock:       true,
		Logger:             logger,
		RedirectAddr:       address,
		NumRollbackWorkers: 4,
	})
}

// open initialises and unseals core, and mounts KV v2 at secret/, as a Vault
// in development mode does.
func open(core *vault.Core, said *ready) error {
	ctx := namespace.RootContext(context.Background())
	made, err := core.Initialize(ctx, &vault.InitParams{
		BarrierConfig: &vault.SealConfig{SecretShares: 1, SecretThreshold: 1},
	})
	if err != nil {
		return fmt.Errorf("initialise: %w", err)
	}
	unsealed, err := core.Unseal(made.SecretShares[0])
	if err != nil {
		return fmt.Errorf("unseal: %w", err)
	}
	if !unsealed {
		return errors.New("unseal: still sealed")
	}
	said.Token = made.RootToken
	said.UnsealKey = base64.StdEncoding.EncodeToString(made.SecretShares[0])
	_, err = core.HandleRequest(ctx, &logical.Request{
		ID:          "vaultdev-mount-kv",
		Operation:   logical.UpdateOperation,
		ClientToken: made.RootToken,
		Path:        "sys/mounts/secret",
		Data:        map[string]any{"type": "kv", "options": map[string]any{"version": "2"}},
	})
	if err != nil {
		return fmt.Errorf("mount kv at secret/: %w", err)
	}
	return nil
}

// registry holds what Vault may mount; everything else it would look for in a
// plugin folder that this program does not have.
type registry map[consts.PluginType]map[string]func() (any, error)

func builtins() registry {
	return registry{
		consts.PluginTypeDatabase:   {"postgresql-database-plugin": postgresql.New, "redis-database-plugin": redis.New},
		consts.PluginTypeCredential: makers(logins()),
		consts.PluginTypeSecrets:    makers(engines()),
	}
}

// logins are the ways to log in besides tokens.
func logins() map[string]logical.Factory {
	return map[string]logical.Factory{
		"approle": approle.Factory, "cert": cert.Factory, "jwt": authjwt.Factory, "kubernetes": authkube.Factory,
		"userpass": userpass.Factory,
	}
}

func engines() map[string]logical.Factory {
	return map[string]logical.Factory{
		"database": database.Factory, "kv": kv.Factory, "pki": pki.Factory, "transit": transit.Factory,
	}
}

func with(factories map[string]logical.Factory, name string, f logical.Factory) map[string]logical.Factory {
	factories[name] = f
	return factories
}

func makers(factories map[string]logical.Factory) map[string]func() (any, error) {
	all := make(map[string]func() (any, error), len(factories))
	for name, f := range factories {
		all[name] = func() (any, error) { return f, nil }
	}
	return all
}

func (r registry) Contains(name string, kind consts.PluginType) bool {
	_, ok := r[kind][name]
	return ok
}

func (r registry) Get(name string, kind consts.PluginType) (func() (any, error), bool) {
	factory, ok := r[kind][name]
	return factory, ok
}

func (r registry) Keys(kind consts.PluginType) []string {
	names := make([]string, 0, len(r[kind]))
	for name := range r[kind] {
		names = append(names, name)
	}
	return names
}

func (r registry) DeprecationStatus(name string, kind consts.PluginType) (consts.DeprecationStatus, bool) {
	return consts.Supported, r.Contains(name, kind)
}

func (r registry) IsBuiltinEntPlugin(string, consts.PluginType) bool { return false }
