package scenario

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"

	"github.com/chaperone-proxy/chaperone/internal/testenv"
)

// Config selects what [Start] starts. The zero value is usable.
type Config struct {
	// Dir is the folder of the files; "" for one that Close removes.
	Dir string
	// Policy is added to what the sidecar's login may do in Vault.
	Policy string
	// Authorize reports whether the API serves a request; nil for the bearer token that
	// is in Vault.
	Authorize func(*http.Request) bool
}

// Components are a real Vault with the token of a real API, that API, and a folder with
// the files of a sidecar's login (role-id, secret-id) and the API's authority
// (api-ca.pem).
type Components struct {
	Dir   string
	Vault *testenv.Vault
	API   *testenv.Upstream

	remove bool // Dir
}

// Start starts the components. The caller closes them.
func Start(ctx context.Context, cfg Config) (c *Components, err error) {
	c = &Components{Dir: cfg.Dir, remove: cfg.Dir == ""}
	defer func() {
		if err != nil {
			err = fmt.Errorf("start components: %w", errors.Join(err, c.Close()))
			c = nil
		}
	}()
	if c.Dir == "" {
		if c.Dir, err = os.MkdirTemp("", "chaperone-scenario-"); err != nil {
			return c, err
		}
	}
	if err := os.Chmod(c.Dir, 0o755); err != nil { // the plugin's user reads its program here
		return c, err
	}
	if c.Vault, err = testenv.StartVault(ctx, testenv.VaultConfig{}); err != nil {
		return c, err
	}
	c.API, err = testenv.StartUpstream(ctx, testenv.UpstreamConfig{Names: []string{Host}, Authorize: cfg.Authorize})
	if err != nil {
		return c, err
	}
	if err := c.API.CA.WriteFile(filepath.Join(c.Dir, "api-ca.pem")); err != nil {
		return c, err
	}
	return c, c.fillVault(ctx, cfg.Policy)
}

// fillVault puts the API's token into Vault, and makes a login that may read it.
func (c *Components) fillVault(ctx context.Context, policy string) error {
	if err := c.Vault.PutSecret(ctx, "weather", map[string]any{"api_key": c.API.Token()}); err != nil {
		return err
	}
	login, err := c.Vault.AppRole(ctx, "weather", testenv.AppRole{
		Policy: `path "secret/data/weather" { capabilities = ["read"] }` + "\n" + policy,
	})
	if err != nil {
		return err
	}
	return errors.Join(
		os.WriteFile(filepath.Join(c.Dir, "role-id"), []byte(login.RoleID), 0o600),
		os.WriteFile(filepath.Join(c.Dir, "secret-id"), []byte(login.SecretID), 0o600))
}

// Close ends the components, and removes the folder if Start made it.
func (c *Components) Close() error {
	var errs []error
	if c.API != nil {
		errs = append(errs, c.API.Close())
	}
	if c.Vault != nil {
		errs = append(errs, c.Vault.Close())
	}
	if c.remove && c.Dir != "" {
		errs = append(errs, os.RemoveAll(c.Dir))
	}
	return errors.Join(errs...)
}
