package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"strings"

	"github.com/spf13/cobra"

	"github.com/chaperone-proxy/chaperone/internal/atomicfile"
	"github.com/chaperone-proxy/chaperone/internal/command"
	"github.com/chaperone-proxy/chaperone/internal/dsse"
)

// maxKeyFile bounds a private key in PEM. An ed25519 key has 119 bytes.
const maxKeyFile = 4 << 10

// keyHelp is the help of every flag that names a key.
const keyHelp = "the private `KEY`: FILE, or vault:MOUNT/NAME for a key of Vault's transit engine (VAULT_ADDR, VAULT_TOKEN)"

// keyFlag adds --key.
func keyFlag(cmd *cobra.Command, key *string) { cmd.Flags().StringVar(key, "key", "", keyHelp) }

// signer returns the key that --key names: a file that nobody else may read, or a key that
// stays in Vault.
func signer(ctx context.Context, key string) (dsse.Signer, error) {
	if key == "" {
		return nil, command.Usage("--key is missing: name the file of a private key, or vault:MOUNT/NAME")
	}
	if path, ok := strings.CutPrefix(key, "vault:"); ok {
		return newTransitKey(ctx, path)
	}
	return readKey(key)
}

func readKey(path string) (dsse.PrivateKey, error) {
	data, err := atomicfile.Read(path, maxKeyFile)
	if errors.Is(err, fs.ErrNotExist) {
		return dsse.PrivateKey{}, fmt.Errorf("read key %s: %w; make one: chaperonectl plugin keygen --out %[1]s", path, err)
	}
	if err != nil {
		return dsse.PrivateKey{}, fmt.Errorf("read key: %w", err)
	}
	if err := checkKeyMode(path); err != nil {
		return dsse.PrivateKey{}, err
	}
	k, err := dsse.ParsePrivateKey(data)
	if err != nil {
		return dsse.PrivateKey{}, fmt.Errorf("%s: %w", path, err)
	}
	return k, nil
}
