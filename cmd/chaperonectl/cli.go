package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"runtime"
	"runtime/debug"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/chaperone-proxy/chaperone/internal/command"
	"github.com/chaperone-proxy/chaperone/internal/printable"
)

// version is set by the linker: -X main.version=.
var version string

// cli is the state of every command. All output goes through stdout and stderr, which
// escape control characters.
type cli struct {
	stdin          io.Reader
	stdout, stderr *printable.Writer
	clock          func() time.Time // for what a command signs and what it judges
	output         string           // --output
	repo           string           // --repo
}

// now returns the present in whole seconds, as signed documents state it.
func (c *cli) now() time.Time { return c.clock().UTC().Truncate(time.Second) }

// execute runs one command and returns the exit status.
func execute(ctx context.Context, args []string, stdin io.Reader, stdout, stderr io.Writer, clock func() time.Time) int {
	c := &cli{stdin: stdin, stdout: printable.NewWriter(stdout), stderr: printable.NewWriter(stderr), clock: clock}
	root := c.root()
	root.SetArgs(args)
	err := command.UnknownCommand(root, args)
	if err == nil {
		err = root.ExecuteContext(ctx)
	}
	var exit command.ExitError
	switch {
	case err == nil:
		return 0
	case errors.As(err, &exit):
		if exit.Err != nil {
			fmt.Fprintf(c.stderr, "chaperonectl: %v\n", exit.Err)
		}
		return exit.Status
	}
	fmt.Fprintf(c.stderr, "chaperonectl: %v\n", err)
	return command.ExitFailure
}

// root returns the command tree.
func (c *cli) root() *cobra.Command {
	root := &cobra.Command{
		Use:   "chaperonectl",
		Short: "Approve plugins: from a manifest to a signed grant that expires",
		Long: "Approve plugins: from a manifest to a signed grant that expires, and back.\n\n" +
			"Exit status 0: done, or yes. 1: failure, a finding, or no. 2: usage.",
		SilenceUsage: true, SilenceErrors: true,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
		PersistentPreRunE: func(cmd *cobra.Command, _ []string) error {
			return command.FlagsFromEnvironment(cmd, func(*pflag.Flag) bool { return false })
		},
	}
	root.SetIn(c.stdin)
	root.SetOut(c.stdout)
	root.SetErr(c.stderr)
	root.SetFlagErrorFunc(command.FlagError)
	root.AddCommand(c.pluginCommand(), c.versionCommand())
	root.AddCommand(c.packagingCommands()...)
	return root
}

// group returns a command that has only others below it.
func group(use, short, long string, commands ...*cobra.Command) *cobra.Command {
	cmd := &cobra.Command{Use: use, Short: short, Long: long, Args: noArgs, RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() }}
	cmd.AddCommand(commands...)
	return cmd
}

func noArgs(cmd *cobra.Command, args []string) error {
	if len(args) == 0 {
		return nil
	}
	return command.Usage("unknown argument %q of %s, which takes none; see %[2]s --help", args[0], cmd.CommandPath())
}

// withOutput adds --output, with formats beside table, json and yaml.
func (c *cli) withOutput(cmd *cobra.Command, more ...string) *cobra.Command {
	formats := append([]string{"table", "json", "yaml"}, more...)
	c.output = "table"
	cmd.Flags().Var(command.OneOf(&c.output, formats...), "output", "`FORMAT`: "+command.Alternatives(formats))
	return cmd
}

// print writes value as --output asks: as JSON or YAML, or by table.
func (c *cli) print(value any, table func(w io.Writer)) error {
	return command.Print(c.stdout, c.output, value, table)
}

// say prints one line to standard output.
func (c *cli) say(format string, args ...any) { command.Say(c.stdout, format, args...) }

// warn prints one line to standard error.
func (c *cli) warn(format string, args ...any) {
	command.Say(c.stderr, "warning: "+format, args...)
}

func (c *cli) versionCommand() *cobra.Command {
	return c.withOutput(&cobra.Command{
		Use: "version", Short: "Print the version", Args: noArgs,
		RunE: func(*cobra.Command, []string) error {
			v := struct {
				Version  string `json:"version"`
				Go       string `json:"go"`
				Platform string `json:"platform"`
			}{buildVersion(), runtime.Version(), runtime.GOOS + "/" + runtime.GOARCH}
			return c.print(v, func(w io.Writer) { command.Say(w, "chaperonectl %s (%s, %s)", v.Version, v.Go, v.Platform) })
		},
	})
}

// buildVersion returns the version that the linker set, or that of the module.
func buildVersion() string {
	if version != "" {
		return version
	}
	if info, ok := debug.ReadBuildInfo(); ok && info.Main.Version != "" && info.Main.Version != "(devel)" {
		return info.Main.Version
	}
	return "dev"
}
