package vault

import (
	"context"
	"encoding/json"
	"net/http"
	"slices"

	"github.com/hashicorp/vault/api"
	"go.uber.org/zap"
)

// warnIrrevocable warns of leases that Vault has given up revoking in the mounts that this
// plugin uses: if a database refuses for some minutes after a token ended, the leases that
// ended with the token become irrevocable and belong to no token (Vault API,
// "/sys/leases/count"). Vault returns their owners only to a token that may list leases.
// Without permission for the count there is no warning.
func (b *Broker) warnIrrevocable(ctx context.Context) {
	s, paths := b.login.current(), b.leases.pathsLeased()
	if !s.usable(b.clock.now()) || len(paths) == 0 {
		return
	}
	answer, err := b.client.do(ctx, call{
		op: "count irrevocable leases", method: http.MethodGet, path: "sys/leases/count", query: "type=irrevocable", token: s.token, optional: true,
	})
	if err != nil || answer == nil {
		return
	}
	counts, _ := answer.Data["counts"].(map[string]any)
	if len(counts) == 0 {
		return
	}
	var left int64
	for _, accessor := range b.accessorsOf(ctx, s, paths) {
		number, _ := counts[accessor].(json.Number)
		n, _ := number.Int64()
		left += n
	}
	if left > 0 {
		b.cfg.Logger.Warn("irrevocable leases in mounts of this plugin",
			zap.Int64("leases", left), zap.Strings("paths", paths), zap.String("fix", "list them with vault list sys/leases type=irrevocable, and remove their users by hand"))
	}
}

// accessorsOf returns the accessors of the engines at paths, each once.
func (b *Broker) accessorsOf(ctx context.Context, s *session, paths []string) []string {
	var accessors []string
	for _, path := range paths {
		answer, err := b.client.engineAt(ctx, s, path)
		if err != nil || answer == nil {
			continue
		}
		if accessor, _ := answer.Data["accessor"].(string); accessor != "" && !slices.Contains(accessors, accessor) {
			accessors = append(accessors, accessor)
		}
	}
	return accessors
}

// engineAt asks which engine is mounted at path, which Vault returns to every token that
// may use the path (its command "vault kv" begins with it).
func (c *client) engineAt(ctx context.Context, s *session, path string) (*api.Secret, error) {
	return c.do(ctx, call{
		op: "look up the engine at " + path, method: http.MethodGet, path: "sys/internal/ui/mounts/" + path, token: s.token,
	})
}
