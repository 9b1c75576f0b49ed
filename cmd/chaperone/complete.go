package main

import (
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/chaperone-proxy/chaperone/internal/command"
	"github.com/chaperone-proxy/chaperone/internal/phrase"
)

// completeValues has the shell complete the values of flags below a command: the
// words of flags that take a few, and the plugins that have a sidecar on this host
// for --plugin.
func completeValues(cmd *cobra.Command) {
	cmd.Flags().VisitAll(func(f *pflag.Flag) {
		var complete cobra.CompletionFunc
		words, ok := f.Value.(*command.Choice)
		switch {
		case ok:
			complete = cobra.FixedCompletions(words.Words(), cobra.ShellCompDirectiveNoFileComp)
		case f.Name == "plugin":
			complete = completePlugins
		default:
			return
		}
		// It fails only for a flag that does not exist or has a completion already.
		_ = cmd.RegisterFlagCompletionFunc(f.Name, complete)
	})
	for _, child := range cmd.Commands() {
		completeValues(child)
	}
}

func completePlugins(*cobra.Command, []string, string) ([]cobra.Completion, cobra.ShellCompDirective) {
	all, err := listSidecars()
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp // for root to list
	}
	return plugins(all), cobra.ShellCompDirectiveNoFileComp
}

// completeRevocations completes the ids of the revocations of the sidecar that the
// flags name, each with its reason.
func (c *cli) completeRevocations(cmd *cobra.Command, args []string, _ string) ([]cobra.Completion, cobra.ShellCompDirective) {
	client, err := c.client()
	if err != nil || len(args) > 0 {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	all, err := client.Revocations(cmd.Context())
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	var out []cobra.Completion
	for _, r := range all {
		out = append(out, cobra.CompletionWithDesc(r.ID, phrase.OneLine(r.Reason)))
	}
	return out, cobra.ShellCompDirectiveNoFileComp
}
