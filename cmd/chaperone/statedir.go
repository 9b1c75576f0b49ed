package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"github.com/chaperone-proxy/chaperone/configs"
	"github.com/chaperone-proxy/chaperone/governance/grantcheck"
	"github.com/chaperone-proxy/chaperone/internal/phrase"
	"github.com/chaperone-proxy/chaperone/sidecar"
)

func (c *cli) stateCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "statedir", Short: "Accept a stateDir that has lost its history", Args: noArgs}
	var reason, trustRoot string
	accept := c.withConfig(&cobra.Command{
		Use:   "accept --config FILE --reason TEXT",
		Short: "Accept a stateDir as it is, without its history",
		Long: "Accept a stateDir as it is, even if it is missing, emptied, replaced or an older copy of the former one.\n" +
			"Lost revocations, usage of limits and audit records stay lost: revoke again, before the sidecar is\n" +
			"started, whatever has to stay revoked.\n\n" +
			"With --trust-root, accept a trust root instead that does not follow the one which was in force.",
		Args: noArgs,
		RunE: func(*cobra.Command, []string) error {
			spec, err := c.sidecarFile()
			if err != nil {
				return err
			}
			if reason == "" {
				return usageError("statedir accept: --reason is missing; say why its history is lost")
			}
			if trustRoot != "" {
				return c.acceptTrust(spec, trustRoot, reason)
			}
			return c.acceptState(spec, reason)
		},
	})
	accept.Flags().StringVar(&reason, "reason", "", "`TEXT` for the audit log: why the history is lost")
	accept.Flags().StringVar(&trustRoot, "trust-root", "", "`DIGEST` of the trust root to accept, sha256:...")
	cmd.AddCommand(accept)
	return cmd
}

// acceptTrust takes a trust root that does not follow the one which was in force.
func (c *cli) acceptTrust(spec *configs.Sidecar, digest, reason string) error {
	if !grantcheck.IsDigest(digest) {
		return usageError("statedir accept: --trust-root: write the digest of the trust root, sha256: and 64 hexadecimal digits")
	}
	if err := sidecar.AcceptTrust(spec, digest, reason, actor()); err != nil {
		return err
	}
	fmt.Fprintf(c.stdout, "trust root %s is accepted\n", digest)
	return nil
}

// acceptState takes a stateDir as it is and prints what it has lost and what is in force.
func (c *cli) acceptState(spec *configs.Sidecar, reason string) error {
	lost, revocations, err := sidecar.AcceptState(spec, reason, actor())
	if lost == nil && err == nil {
		fmt.Fprintf(c.stdout, "stateDir %s has its history; it is unchanged\n", spec.StateDir)
	}
	if lost != nil {
		fmt.Fprintf(c.stdout, "%v\naccepted; %s in force\n", lost, phrase.Counted(revocations, "revocation is", "revocations are"))
	}
	return err
}
