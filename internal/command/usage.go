package command

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

// Choice is a flag that takes one of several words. It is refused when it is
// read, from the command line and the environment alike, so that no command acts
// before all of its flags are right.
type Choice struct {
	value *string
	words []string
	flags map[string]string // words of another flag, and that flag
}

// OneOf returns a flag that stores one of the words in value.
func OneOf(value *string, words ...string) *Choice { return &Choice{value: value, words: words} }

// Or adds a word that another flag is meant by.
func (c *Choice) Or(flags map[string]string) *Choice {
	c.flags = flags
	return c
}

// Words returns the words that the flag takes.
func (c *Choice) Words() []string { return c.words }

// String returns the value in force (pflag.Value).
func (c *Choice) String() string { return *c.value }

// Type names the flag's type (pflag.Value).
func (c *Choice) Type() string { return "string" }

// Set stores a word, or returns an error with the words there are (pflag.Value).
func (c *Choice) Set(word string) error {
	if slices.Contains(c.words, word) {
		*c.value = word
		return nil
	}
	near := nearword.Suggest(word, slices.Collect(maps.Keys(c.flags)))
	if flag := c.flags[near]; flag != "" && nearword.Suggest(word, c.words) == "" {
		return fmt.Errorf("%q is not %s; did you mean %s?", word, Alternatives(c.words), flag)
	}
	return UnknownWord(word, c.words)
}

// UnknownWord returns the error of a word that is not among the known ones.
func UnknownWord(word string, known []string) error {
	text := fmt.Sprintf("%q is not %s", word, Alternatives(known))
	if near := nearword.Suggest(word, known); near != "" {
		text += "; did you mean " + near + "?"
	}
	return errors.New(text)
}

// Alternatives joins words as in "pause, quarantine or halt".
func Alternatives(words []string) string {
	if len(words) < 2 {
		return strings.Join(words, "")
	}
	last := len(words) - 1
	return strings.Join(words[:last], ", ") + " or " + words[last]
}

// UnknownCommand returns the error of a command line whose command is not
// known. Flags that belong to the command that was meant do not hide it.
func UnknownCommand(root *cobra.Command, args []string) error {
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
	return Usage("unknown command %q of %s; see %[2]s --help%s", word, cmd.CommandPath(), hint)
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

// FlagError adds the flag that may have been meant to an error of reading flags.
func FlagError(cmd *cobra.Command, err error) error {
	hint := ""
	if unknown, ok := errors.AsType[*pflag.NotExistError](err); ok {
		var known []string
		cmd.Flags().VisitAll(func(f *pflag.Flag) { known = append(known, f.Name) })
		if near := nearword.Suggest(unknown.GetSpecifiedName(), known); near != "" {
			hint = fmt.Sprintf("; did you mean --%s?", near)
		}
	}
	return Usage("%s; see %s --help%s", PlainFlagProblem(err), cmd.CommandPath(), hint)
}

// PlainFlagProblem replaces the texts of the packages strconv and time about a
// flag's value.
func PlainFlagProblem(err error) string {
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
