package main

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/chaperone-proxy/chaperone/internal/admin"
	"github.com/chaperone-proxy/chaperone/internal/asyncwriter"
	"github.com/chaperone-proxy/chaperone/internal/command"
	"github.com/chaperone-proxy/chaperone/internal/phrase"
	"github.com/chaperone-proxy/chaperone/internal/printable"
)

// cli is the state of every command. All output goes through stdout and stderr,
// which escape control characters; a text of another origin is a field of a line, and
// never ends one.
type cli struct {
	stdin          io.Reader
	stdout, stderr *printable.Writer
	admin          string          // --admin
	config         string          // --config
	plugin         string          // --plugin, of commands that talk to a sidecar
	output         string          // --output
	curl           bool            // --print-curl
	noted          map[string]bool // the assumptions that were printed

	screen screen              // standard error of run and serve
	queue  *asyncwriter.Writer // before screen; nil for other commands
}

// execute runs one command and returns the exit status.
func execute(ctx context.Context, args []string, stdin io.Reader, stdout, stderr io.Writer) int {
	c := &cli{stdin: stdin, stdout: printable.NewWriter(stdout), stderr: printable.NewWriter(stderr)}
	defer c.flush()
	root := c.root()
	root.SetArgs(args)
	err := command.UnknownCommand(root, args)
	if err == nil {
		err = root.ExecuteContext(ctx)
	}
	var exit command.ExitError
	switch {
	case err == nil, errors.Is(err, admin.ErrPrinted):
		return 0
	case errors.As(err, &exit):
		if exit.Err != nil {
			fmt.Fprintf(c.stderr, "chaperone: %v\n", exit.Err)
		}
		return exit.Status
	}
	fmt.Fprintf(c.stderr, "chaperone: %v\n", err)
	return exitFailure
}

// root returns the command tree.
func (c *cli) root() *cobra.Command {
	root := &cobra.Command{
		Use:   "chaperone",
		Short: "The sidecar that is a plugin's only way out",
		Long: "Chaperone is the sidecar of a plugin process and its only way out. It allows exactly the granted\n" +
			"accesses, adds credentials that the plugin never sees, meters in the kernel, and revokes while\n" +
			"the plugin runs.",
		SilenceUsage: true, SilenceErrors: true,
		Args:              noArgs,
		RunE:              func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
		PersistentPreRunE: func(cmd *cobra.Command, _ []string) error { return flagsFromEnvironment(cmd) },
	}
	root.SetIn(c.stdin)
	root.SetOut(c.stdout)
	root.SetErr(c.stderr)
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		return command.FlagError(cmd, err)
	})
	root.AddCommand(
		c.runCommand(), c.serveCommand(), c.checkCommand(), c.explainCommand(), c.sidecarsCommand(), c.statusCommand(), c.usageCommand(),
		c.topCommand(), c.revokeCommand(), c.restoreCommand(), c.reloadCommand(), c.auditCommand(), c.doctorCommand(),
		c.detachCommand(), c.stateCommand(), c.envoyCommand(), c.pluginCommand(), c.policyCommand(), c.schemaCommand(), c.supportBundleCommand(), c.versionCommand(),
	)
	root.AddCommand(c.packagingCommands()...)
	completeValues(root)
	return root
}

// noArgs is cobra.NoArgs with the exit status of a usage error.
func noArgs(cmd *cobra.Command, args []string) error {
	if len(args) == 0 {
		return nil
	}
	hint := ""
	if cmd.Flags().Lookup("plugin") != nil {
		hint = fmt.Sprintf("; for the sidecar of one plugin say --plugin %s", phrase.ShellWord(args[0]))
	}
	return usageError("unknown argument %q of %s, which takes none%s; see %[2]s --help", args[0], cmd.CommandPath(), hint)
}

// flagsFromEnvironment sets the flags that the command line did not from
// CHAPERONE_<COMMAND>_<FLAG>, and --admin from CHAPERONE_ADMIN.
func flagsFromEnvironment(cmd *cobra.Command) error {
	if f := cmd.Flags().Lookup("admin"); f != nil && !f.Changed && !cmd.Flags().Changed("config") && !cmd.Flags().Changed("plugin") {
		// Otherwise the command line names another sidecar.
		if err := command.FlagFromEnvironment(cmd, "admin", command.EnvironmentName("admin")); err != nil {
			return err
		}
	}
	return command.FlagsFromEnvironment(cmd, func(f *pflag.Flag) bool { return f.Name == "admin" })
}

// withConfig adds --config.
func (c *cli) withConfig(cmd *cobra.Command) *cobra.Command {
	cmd.Flags().StringVar(&c.config, "config", "", "the Sidecar `FILE`")
	return cmd
}

// withConfiguration adds --config to commands that read policies. A second one
// is an error: its files would take the place of the first ones unnoticed.
func (c *cli) withConfiguration(cmd *cobra.Command) *cobra.Command {
	cmd.Flags().Var(&onceFlag{value: &c.config}, "config", "the `CONFIGURATION`: a Sidecar's file, a grant's file, or a folder")
	return cmd
}

// onceFlag is a flag of text that is not repeated.
type onceFlag struct {
	value *string
	set   bool
}

func (f *onceFlag) String() string { return *f.value }
func (f *onceFlag) Type() string   { return "string" }

func (f *onceFlag) Set(value string) error {
	if f.set {
		return fmt.Errorf("%q was named before; name a folder that holds both", *f.value)
	}
	*f.value, f.set = value, true
	return nil
}

// withAdmin adds the flags of commands that talk to a running sidecar.
func (c *cli) withAdmin(cmd *cobra.Command) *cobra.Command {
	cmd.Flags().StringVar(&c.admin, "admin", "", "the admin socket of a running sidecar, `unix:PATH`")
	cmd.Flags().StringVar(&c.plugin, "plugin", "", "the sidecar of this `PLUGIN` on this host")
	return c.withConfig(cmd)
}

// withCurl adds --print-curl, to commands that ask one sidecar one thing.
func (c *cli) withCurl(cmd *cobra.Command) *cobra.Command {
	cmd.Flags().BoolVar(&c.curl, "print-curl", false, "print the request to the admin socket as a curl command, and do not send it")
	return cmd
}

// withOutput adds --output, with formats beside table, json and yaml.
func (c *cli) withOutput(cmd *cobra.Command, more ...string) *cobra.Command {
	c.output = "table"
	formats := append([]string{"table", "json", "yaml"}, more...)
	cmd.Flags().Var(command.OneOf(&c.output, formats...), "output", "`FORMAT`: "+command.Alternatives(formats))
	return cmd
}

func lockMemoryFlag(cmd *cobra.Command, lock *bool) {
	cmd.Flags().BoolVar(lock, "mlock", false, "never swap out the sidecar's memory; needs CAP_IPC_LOCK")
}
