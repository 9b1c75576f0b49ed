package main

import (
	"context"
	"encoding/json"
	"fmt"
	"path/filepath"

	"github.com/spf13/cobra"

	"github.com/chaperone-proxy/chaperone/configs"
	"github.com/chaperone-proxy/chaperone/governance"
	"github.com/chaperone-proxy/chaperone/internal/command"
	"github.com/chaperone-proxy/chaperone/internal/dsse"
)

func (c *cli) trustShowCommand() *cobra.Command {
	var next bool
	cmd := &cobra.Command{
		Use: "show [FOLDER]", Short: "Print the trust root in force, with its rotations applied", Args: cobra.MaximumNArgs(1),
		Example: "  chaperonectl plugin trust show --next >new.yaml",
		RunE: func(_ *cobra.Command, args []string) error {
			r, err := c.openFolder(folderOf(args))
			if err != nil {
				return err
			}
			defer r.close()
			root, err := governance.ReadTrust(r.files())
			if err != nil {
				return err
			}
			spec := root.Spec()
			if next {
				spec.Version++
			}
			data, err := renderYAML(&configs.Object[configs.TrustRoot]{
				Metadata: configs.Metadata{Name: spec.Name}, Spec: configs.TrustRoot{Version: spec.Version, Roles: spec.Roles, Revoked: spec.Revoked},
			})
			if err != nil {
				return err
			}
			if !next {
				c.say("# %s", root.Digest())
			}
			_, err = c.stdout.Write(data)
			return err
		},
	}
	cmd.Flags().BoolVar(&next, "next", false, "with the next version, to edit and to rotate to")
	return c.repoFlag(cmd)
}

func folderOf(args []string) string {
	if len(args) == 1 {
		return args[0]
	}
	return "."
}

func (c *cli) trustRotateCommand() *cobra.Command {
	var key string
	cmd := &cobra.Command{
		Use: "rotate FILE --key KEY", Short: "Sign the next trust root, with the root keys of the old and the new one",
		Args: command.Exactly(1, "the file of the next trust root (see trust show --next)"),
		Long: "Sign the next trust root. Enough people of role root have to sign it, of the old trust root and of the new one: each\n" +
			"adds a signature with `sign --add`, and the last one puts it in force as trust.N.dsse.json. trust.yaml stays as it is.\n" +
			"A key that is listed as revoked counts for nothing any more, also in what it has signed, and stays revoked.",
		Example: "  chaperonectl plugin trust show --next >new.yaml    # edit new.yaml\n" +
			"  chaperonectl plugin trust rotate new.yaml --key ana.key\n" +
			"  chaperonectl plugin sign --add trust.2.pending.json --key bo.key",
		RunE: func(cmd *cobra.Command, args []string) error {
			k, err := signer(cmd.Context(), key)
			if err != nil {
				return err
			}
			return c.rotate(cmd.Context(), args[0], k)
		},
	}
	keyFlag(cmd, &key)
	return c.repoFlag(cmd)
}

func (c *cli) rotate(ctx context.Context, file string, key dsse.Signer) error {
	data, err := readDocument(file)
	if err != nil {
		return err
	}
	object, err := configs.ParseObject[configs.TrustRoot](file, data)
	if err != nil {
		return err
	}
	next, err := dsse.NewRoot(object.Spec.Root(object.Metadata.Name))
	if err != nil {
		return fmt.Errorf("%s: %w", file, err)
	}
	payload, err := json.Marshal(next.Spec())
	if err != nil {
		return fmt.Errorf("rotate trust root: %w", err)
	}
	e, err := dsse.Sign(ctx, dsse.KindTrust, payload, key)
	if err != nil {
		return err
	}
	folder, err := c.findRepo(filepath.Dir(file))
	if err != nil {
		return err
	}
	return c.putSigned(file, filepath.Join(folder, governance.RotationFile(next.Spec().Version)), e, key)
}
