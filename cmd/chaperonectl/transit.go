package main

import (
	"context"
	"crypto/ed25519"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"strings"

	"github.com/hashicorp/vault/api"

	"github.com/chaperone-proxy/chaperone/internal/command"
	"github.com/chaperone-proxy/chaperone/internal/dsse"
)

// transitKey is an ed25519 key of Vault's transit engine. The private half never leaves
// Vault, and Vault's audit log has each use.
type transitKey struct {
	client      *api.Client
	mount, name string
	version     int // signatures are made with this one, also when Vault rotates the key
	public      dsse.PublicKey
}

// newTransitKey finds the newest version of the key MOUNT/NAME. The server and the token
// are those of Vault's own command: VAULT_ADDR, VAULT_TOKEN, VAULT_CACERT, VAULT_NAMESPACE.
func newTransitKey(ctx context.Context, path string) (*transitKey, error) {
	mount, name, ok := cutLast(path, "/")
	if !ok || mount == "" || name == "" {
		return nil, command.Usage("--key vault:%s: write vault:MOUNT/NAME, as in vault:transit/ana", path)
	}
	config := api.DefaultConfig()
	if config.Error != nil {
		return nil, fmt.Errorf("configure vault client: %w", config.Error)
	}
	client, err := api.NewClient(config)
	if err != nil {
		return nil, fmt.Errorf("configure vault client: %w", err)
	}
	k := &transitKey{client: client, mount: mount, name: name}
	secret, err := client.Logical().ReadWithContext(ctx, mount+"/keys/"+name)
	if err != nil {
		return nil, fmt.Errorf("read key %s of vault: %w%s", path, err, tokenAdvice(err))
	}
	if secret == nil {
		return nil, fmt.Errorf("read key %s of vault: it does not exist; make it: vault write -f %s/keys/%s type=ed25519", path, mount, name)
	}
	if err := k.use(secret.Data); err != nil {
		return nil, fmt.Errorf("read key %s of vault: %w", path, err)
	}
	return k, nil
}

// use takes the newest version from Vault's description of a key
// (https://developer.hashicorp.com/vault/api-docs/secret/transit#read-key).
func (k *transitKey) use(data map[string]any) error {
	if kind, _ := data["type"].(string); kind != "ed25519" {
		return fmt.Errorf("its type is %q; ed25519 is required", kind)
	}
	if derived, _ := data["derived"].(bool); derived {
		return errors.New("it is derived by context, and so has no public half; a key that is not derived is required")
	}
	number, _ := data["latest_version"].(json.Number)
	version, err := strconv.Atoi(string(number))
	if err != nil {
		return errors.New("vault states no latest_version of it")
	}
	versions, _ := data["keys"].(map[string]any)
	newest, _ := versions[strconv.Itoa(version)].(map[string]any)
	text, _ := newest["public_key"].(string)
	public, err := base64.StdEncoding.DecodeString(text)
	if err != nil || len(public) != ed25519.PublicKeySize {
		return fmt.Errorf("vault states no public half of version %d", version)
	}
	k.version, k.public = version, dsse.PublicKey(public)
	return nil
}

// Public implements [dsse.Signer].
func (k *transitKey) Public() dsse.PublicKey { return k.public }

// Sign implements [dsse.Signer]
// (https://developer.hashicorp.com/vault/api-docs/secret/transit#sign-data).
func (k *transitKey) Sign(ctx context.Context, message []byte) ([]byte, error) {
	secret, err := k.client.Logical().WriteWithContext(ctx, k.mount+"/sign/"+k.name, map[string]any{
		"input": base64.StdEncoding.EncodeToString(message), "key_version": k.version,
	})
	if err != nil {
		return nil, fmt.Errorf("sign with key %s/%s of vault: %w%s", k.mount, k.name, err, tokenAdvice(err))
	}
	if secret == nil {
		return nil, fmt.Errorf("sign with key %s/%s of vault: it returned no signature", k.mount, k.name)
	}
	text, _ := secret.Data["signature"].(string)
	encoded, ok := strings.CutPrefix(text, fmt.Sprintf("vault:v%d:", k.version))
	signature, err := base64.StdEncoding.DecodeString(encoded)
	if !ok || err != nil || len(signature) != ed25519.SignatureSize {
		return nil, fmt.Errorf("sign with key %s/%s of vault: its answer is not an ed25519 signature of version %d", k.mount, k.name, k.version)
	}
	return signature, nil
}

// tokenAdvice returns what to do about Vault's refusal of a token. Vault gives one answer for
// a token that has ended, one that wraps another, and one whose policy lacks the path.
func tokenAdvice(err error) string {
	if answer, ok := errors.AsType[*api.ResponseError](err); !ok || answer.StatusCode != http.StatusForbidden {
		return ""
	}
	return "; the token (VAULT_TOKEN) has ended, wraps another one (vault unwrap), is of another namespace (VAULT_NAMESPACE), or its policy lacks this path: vault token lookup"
}

func cutLast(s, sep string) (before, after string, found bool) {
	if i := strings.LastIndex(s, sep); i >= 0 {
		return s[:i], s[i+len(sep):], true
	}
	return s, "", false
}
