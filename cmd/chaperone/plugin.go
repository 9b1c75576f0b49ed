package main

import (
	"fmt"
	"os"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/chaperone-proxy/chaperone/internal/command"
)

// approvalProgram is the program that approves plugins. The sidecar does not link its
// formats and its policy language.
const approvalProgram = "chaperonectl"

func (c *cli) pluginCommand() *cobra.Command {
	return &cobra.Command{
		Use: "plugin COMMAND", Short: "Approve plugins: from a manifest to a signed grant (runs " + approvalProgram + ")",
		Long: "Approve plugins: from a manifest to a signed grant that expires. This runs " + approvalProgram + " plugin COMMAND,\n" +
			"the program of that name beside this one, and no other.",
		DisableFlagParsing: true, // all flags are those of the other program
		RunE:               func(_ *cobra.Command, args []string) error { return executeBeside(approvalProgram, args) },
	}
}

// executeBeside replaces this process by the program of a name beside it.
func executeBeside(name string, args []string) error {
	path, err := command.Beside(name)
	if err != nil {
		return err
	}
	err = syscall.Exec(path, append([]string{name, "plugin"}, args...), os.Environ())
	return command.ExitError{Status: exitFailure, Err: fmt.Errorf("execute %s: %w", path, err)}
}
