package command

import (
	"fmt"
	"os"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// Exit statuses, as in docs/commands.md#exit-codes.
const (
	ExitFailure = 1
	ExitUsage   = 2
	ExitDenied  = 3
)

// ExitError is an error that ends the process with a status. One without an error has been
// reported already.
type ExitError struct {
	Status int
	Err    error
}

// Error returns the text of the error, or the status.
func (e ExitError) Error() string {
	if e.Err == nil {
		return fmt.Sprintf("exit status %d", e.Status)
	}
	return e.Err.Error()
}

// Unwrap returns the error.
func (e ExitError) Unwrap() error { return e.Err }

// Usage returns the error of a command line that has no meaning.
func Usage(format string, args ...any) error {
	return ExitError{ExitUsage, fmt.Errorf(format, args...)}
}

// AtLeast wants n arguments or more; what names them.
func AtLeast(n int, what string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if len(args) < n {
			return Usage("%s: %s is missing; see %s --help", cmd.Name(), what, cmd.CommandPath())
		}
		return nil
	}
}

// Exactly wants n arguments; what names them.
func Exactly(n int, what string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if len(args) != n {
			return Usage("%s: takes %s; see %s --help", cmd.Name(), what, cmd.CommandPath())
		}
		return nil
	}
}

// FlagsFromEnvironment sets the flags that the command line did not from
// CHAPERONE_<COMMAND>_<FLAG>. The function skip names flags that it leaves as they are.
func FlagsFromEnvironment(cmd *cobra.Command, skip func(*pflag.Flag) bool) error {
	path := strings.Fields(cmd.CommandPath())
	var err error
	cmd.Flags().VisitAll(func(f *pflag.Flag) {
		if f.Changed || err != nil || f.Name == "help" || skip(f) {
			return
		}
		err = FlagFromEnvironment(cmd, f.Name, EnvironmentName(append(path[1:], f.Name)...))
	})
	return err
}

// FlagFromEnvironment sets a flag from a variable of the environment, if that is not empty.
func FlagFromEnvironment(cmd *cobra.Command, flag, variable string) error {
	value := os.Getenv(variable)
	if value == "" {
		return nil
	}
	if err := cmd.Flags().Set(flag, value); err != nil {
		return Usage("%s: %s", variable, PlainFlagProblem(err))
	}
	return nil
}

// EnvironmentName returns the name of the variable of a command's flag, as in
// CHAPERONE_AUDIT_TAIL_FOLLOW.
func EnvironmentName(words ...string) string {
	return "CHAPERONE_" + strings.ToUpper(strings.ReplaceAll(strings.Join(words, "_"), "-", "_"))
}
