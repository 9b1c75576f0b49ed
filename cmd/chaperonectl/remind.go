package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"

	"github.com/chaperone-proxy/chaperone/authz"
	"github.com/chaperone-proxy/chaperone/internal/command"
)

func (c *cli) remindCommand() *cobra.Command {
	within := authz.Duration(14 * day)
	cmd := &cobra.Command{
		Use: "remind [FOLDER]", Short: "Print what is overdue or ends soon, for a scheduled job", Args: cobra.MaximumNArgs(1),
		Long: "Print requests whose stage is overdue, and grants, approvals and exemptions that end soon, with whose turn it is.\n\n" +
			"Exit status 0: nothing is due. 1: something is, or a failure. 2: usage.",
		Example: "  chaperonectl plugin remind --within 14d || mail -s 'Plugins wait' reviewers@corp.example",
		RunE: func(cmd *cobra.Command, args []string) error {
			return c.remind(cmd.Context(), folderOf(args), time.Duration(within))
		},
	}
	cmd.Flags().Var(duration{&within}, "within", "the `DURATION` ahead")
	return c.repoFlag(c.withOutput(cmd))
}

func (c *cli) remind(ctx context.Context, dir string, within time.Duration) error {
	r, err := c.openRepo(dir)
	if err != nil {
		return err
	}
	defer r.close()
	all, unread := r.Reminders(ctx, c.now(), within)
	err = c.print(all, func(w io.Writer) {
		command.Row(w, "WHAT", "WHEN", "WHOSE TURN", "DETAIL")
		for _, one := range all {
			command.Row(w, one.What, one.At.Format("2006-01-02 15:04Z"), one.Turn, one.Detail)
		}
	})
	if err = errors.Join(err, unread); err == nil && len(all) > 0 {
		return command.ExitError{Status: command.ExitFailure}
	}
	return err
}

func (c *cli) verifyCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use: "verify FILE...", Short: "Verify signed documents: who signed them, and for a grant everything it is bound to", Args: command.AtLeast(1, "a file"),
		Example: "  chaperonectl plugin verify grants/weather.dsse.json",
		RunE: func(_ *cobra.Command, args []string) error {
			r, err := c.openRepo(".")
			if err != nil {
				return err
			}
			defer r.close()
			for _, file := range args {
				data, err := readDocument(file)
				if err != nil {
					return err
				}
				v, err := r.VerifyFile(data, c.now())
				if err != nil {
					return fmt.Errorf("%s: %w", file, err)
				}
				c.say("%s: %s %s", file, v.Kind, v.Digest)
				for _, s := range v.Signed {
					c.say("  signed by %s as %s (%s)", s.Identity, s.Role, s.KeyID)
				}
				for _, line := range v.Details {
					c.say("  %s", line)
				}
			}
			return nil
		},
	}
	return c.repoFlag(cmd)
}
