package main

import (
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"

	"github.com/spf13/cobra"

	"github.com/chaperone-proxy/chaperone/internal/atomicfile"
	"github.com/chaperone-proxy/chaperone/internal/command"
	"github.com/chaperone-proxy/chaperone/internal/dsse"
)

// publicHalf is what a trust root lists of a key.
type publicHalf struct {
	KeyID   string `json:"keyID"`
	Ed25519 string `json:"ed25519"` // base64
	File    string `json:"file,omitempty"`
}

func halfOf(k dsse.PublicKey, file string) publicHalf {
	return publicHalf{KeyID: k.KeyID(), Ed25519: base64.StdEncoding.EncodeToString(k), File: file}
}

func (c *cli) keygenCommand() *cobra.Command {
	var out, show string
	cmd := &cobra.Command{
		Use: "keygen --out FILE", Short: "Make a signing key, and print its public half", Args: noArgs,
		Long: "Make an ed25519 key in a new file that only you may read, and print its public half for the trust root.\n" +
			"A person needs one key, which stays with that person. With --show, print the public half of an existing key.",
		Example: "  chaperonectl plugin keygen --out ana.key\n" +
			"  chaperonectl plugin keygen --show vault:transit/ana",
		RunE: func(cmd *cobra.Command, _ []string) error {
			if (out == "") == (show == "") {
				return command.Usage("keygen: name a new file with --out, or an existing key with --show")
			}
			if show == "" {
				return c.keygen(out)
			}
			k, err := signer(cmd.Context(), show)
			if err != nil {
				return err
			}
			return c.printHalf(halfOf(k.Public(), ""))
		},
	}
	cmd.Flags().StringVar(&out, "out", "", "the new `FILE` of the private key")
	cmd.Flags().StringVar(&show, "show", "", "print the public half of this `KEY`: FILE or vault:MOUNT/NAME")
	return c.withOutput(cmd)
}

func (c *cli) keygen(path string) error {
	k, err := dsse.GenerateKey()
	if err != nil {
		return err
	}
	text, err := k.PEM()
	if err != nil {
		return err
	}
	switch err := atomicfile.Create(path, text, 0o600); {
	case errors.Is(err, fs.ErrExist):
		return fmt.Errorf("make key: %s exists already, and a key is never replaced; name another file, or print it with --show", path)
	case err != nil:
		return fmt.Errorf("make key: %w", err)
	}
	return c.printHalf(halfOf(k.Public(), path))
}

func (c *cli) printHalf(half publicHalf) error {
	return c.print(half, func(w io.Writer) {
		if half.File != "" {
			command.Row(w, "private key", half.File+" (keep it; there is no other copy)")
		}
		command.Row(w, "public half", half.Ed25519)
		command.Row(w, "key id", half.KeyID)
	})
}

// checkKeyMode refuses a private key that others may read.
func checkKeyMode(path string) error {
	info, err := os.Lstat(path)
	if err != nil {
		return fmt.Errorf("read key: %w", err)
	}
	if mode := info.Mode().Perm(); mode&0o077 != 0 {
		return fmt.Errorf("read key %s: its mode is %#o, so that others may read it; only its owner should: chmod 600 %[1]s", path, mode)
	}
	return nil
}
