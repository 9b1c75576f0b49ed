package main

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/chaperone-proxy/chaperone/internal/nearword"
)

// choice is a flag that takes one of several words. It is refused when it is
// read, from the command line and the environment alike, so that no command acts
// before all of its flags are right.
type choice struct {
	value *string
	words []string
	flags map[string]string // words of another flag, and that flag
}

// oneOf returns a flag that stores one of the words in value.
func oneOf(value *string, words ...string) *choice { return &choice{value: value, words: words} }

// or adds a word that another flag is meant by.
func (c *choice) or(flags map[string]string) *choice {
	c.flags = flags
	return c
}

// String returns the value in force (pflag.Value).
func (c *choice) String() string { return *c.value }

// Type names the flag's type (pflag.Value).
func (c *choice) Type() string { return "string" }

// Set stores a word, or returns an error with the words there are (pflag.Value).
func (c *choice) Set(word string) error {
	if slices.Contains(c.words, word) {
		*c.value = word
		return nil
	}
	near := nearword.Suggest(word, slices.Collect(maps.Keys(c.flags)))
	if flag := c.flags[near]; flag != "" && nearword.Suggest(word, c.words) == "" {
		return fmt.Errorf("%q is not %s; did you mean %s?", word, alternatives(c.words), flag)
	}
	return unknownWord(word, c.words)
}

// unknownWord returns the error of a word that is not among the known ones.
func unknownWord(word string, known []string) error {
	text := fmt.Sprintf("%q is not %s", word, alternatives(known))
	if near := nearword.Suggest(word, known); near != "" {
		text += "; did you mean " + near + "?"
	}
	return errors.New(text)
}

// alternatives joins words as in "pause, quarantine or halt".
func alternatives(words []string) string {
	if len(words) < 2 {
		return strings.Join(words, "")
	}
	last := len(words) - 1
	return strings.Join(words[:last], ", ") + " or " + words[last]
}

// unknownCommand returns the error of a command line whose command is not
// known. Flags that belong to the command that was meant do not hide it.
func unknownCommand(root *cobra.Command, args []string) error {
	if len(args) > 0 && strings.HasPrefix(args[0], cobra.ShellCompRequestCmd) {
		return nil
	}
	root.InitDefaultHelpCmd()
	root.InitDefaultCompletionCmd(args...)
	cmd, rest, err := root.Find(args)
	if err != nil || !cmd.HasSubCommands() {
		return nil //nolint:nilerr // the command reports it when it is executed
	}
	word := firstWord(rest)
	if word == "" {
		return nil
	}
	var known []string
	for _, sub := range cmd.Commands() {
		if sub.IsAvailableCommand() || sub.Name() == "help" {
			known = append(known, sub.Name())
		}
	}
	hint := ""
	if near := nearword.Suggest(word, known); near != "" {
		hint = fmt.Sprintf("; did you mean %s %s?", cmd.CommandPath(), near)
	}
	return usageError("unknown command %q of %s; see %[2]s --help%s", word, cmd.CommandPath(), hint)
}

// firstWord returns the first argument that is neither a flag nor, as far as that
// is known without the flags, the value of one.
func firstWord(args []string) string {
	for i := 0; i < len(args); i++ {
		switch arg := args[i]; {
		case arg == "--":
			return ""
		case strings.HasPrefix(arg, "--") && !strings.Contains(arg, "="):
			if arg == "--help" {
				return ""
			}
			i++ // its value
		case strings.HasPrefix(arg, "-"):
		default:
			return arg
		}
	}
	return ""
}

// flagError adds the flag that may have been meant to an error of reading flags.
func flagError(cmd *cobra.Command, err error) error {
	hint := ""
	if unknown, ok := errors.AsType[*pflag.NotExistError](err); ok {
		var known []string
		cmd.Flags().VisitAll(func(f *pflag.Flag) { known = append(known, f.Name) })
		if near := nearword.Suggest(unknown.GetSpecifiedName(), known); near != "" {
			hint = fmt.Sprintf("; did you mean --%s?", near)
		}
	}
	return usageError("%s; see %s --help%s", plainFlagProblem(err), cmd.CommandPath(), hint)
}

// plainFlagProblem replaces the texts of the packages strconv and time about a
// flag's value.
func plainFlagProblem(err error) string {
	text := err.Error()
	for _, known := range []struct{ goes, says string }{
		{"strconv.ParseBool: ", "it is not true or false"},
		{"strconv.ParseInt: ", "it is not a whole number"},
		{"strconv.Atoi: ", "it is not a whole number"},
		{"strconv.ParseUint: ", "it is not a whole number"},
		{"time: ", "it is not a duration, as in 500ms, 10s or 5m"},
	} {
		if head, _, ok := strings.Cut(text, known.goes); ok {
			return head + known.says
		}
	}
	return text
}
