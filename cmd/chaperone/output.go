package main

import (
	"io"

	"github.com/spf13/cobra"

	"github.com/chaperone-proxy/chaperone/internal/command"
)

// Exit codes, as in docs/commands.md#exit-codes.
const (
	exitFailure = command.ExitFailure
	exitUsage   = command.ExitUsage
	exitDenied  = command.ExitDenied
	exitSidecar = 125 // run: the sidecar failed before the plugin ran
)

// exitWith ends the process with a status. A nil err has been reported.
func exitWith(status int, err error) error { return command.ExitError{Status: status, Err: err} }

// usageError is a command line that means nothing.
func usageError(format string, args ...any) error { return command.Usage(format, args...) }

func atLeast(n int, what string) cobra.PositionalArgs { return command.AtLeast(n, what) }

func exactly(n int, what string) cobra.PositionalArgs { return command.Exactly(n, what) }

// print writes value as --output asks: as JSON or YAML, or by table.
func (c *cli) print(value any, table func(w io.Writer)) error {
	return command.Print(c.stdout, c.output, value, table)
}

func row(w io.Writer, cells ...any) { command.Row(w, cells...) }

func say(w io.Writer, format string, args ...any) { command.Say(w, format, args...) }
