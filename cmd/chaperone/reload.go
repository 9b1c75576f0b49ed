package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"

	"github.com/spf13/cobra"

	"github.com/chaperone-proxy/chaperone/internal/admin"
	"github.com/chaperone-proxy/chaperone/internal/phrase"
)

func (c *cli) reloadCommand() *cobra.Command {
	var all bool
	cmd := c.withCurl(c.withOutput(c.withAdmin(&cobra.Command{
		Use: "reload", Short: "Read the files again, like SIGHUP",
		Long: "Read the files again, like SIGHUP, and print the changes or the errors. With --all every sidecar of this\n" +
			"host reloads, and the last line counts those in which the change is in force.",
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if all {
				return c.reloadAll(cmd.Context())
			}
			client, err := c.client()
			if err != nil {
				return err
			}
			result, err := ask(cmd.Context(), client, client.Reload)
			if err != nil {
				return reloadError(err)
			}
			return c.print(result, func(w io.Writer) { reloadTable(w, result) })
		},
	})))
	cmd.Flags().BoolVar(&all, "all", false, "every sidecar of this host")
	return cmd
}

func reloadTable(w io.Writer, result admin.ReloadResult) {
	say(w, "generation %d is in force", result.Generation)
	for _, change := range result.Changed {
		say(w, "  %s", change)
	}
}

// reloadError returns why files were refused, a line each.
func reloadError(err error) error {
	if refused, ok := errors.AsType[*admin.Error](err); ok {
		return fmt.Errorf("%s:\n%s", refused.Message, strings.Join(refused.Details, "\n"))
	}
	return err
}

// reloaded is the answer of one sidecar to reload --all.
type reloaded struct {
	Plugin     string   `json:"plugin"`
	Generation uint64   `json:"generation,omitempty"`
	Changed    []string `json:"changed,omitempty"`
	Error      string   `json:"error,omitempty"`
}

// reloadAll has every sidecar of the host reload, and waits for none longer than
// for one that hangs.
func (c *cli) reloadAll(ctx context.Context) error {
	if c.admin != "" || c.config != "" || c.plugin != "" || c.curl {
		return usageError("--all contradicts --admin, --config, --plugin and --print-curl; say one of them")
	}
	all, err := listSidecars()
	if err != nil && len(all) == 0 {
		return err
	}
	running := slices.DeleteFunc(all, func(s admin.Sidecar) bool { return s.Gone })
	rows := make([]reloaded, len(running))
	var asking sync.WaitGroup
	for i, s := range running {
		asking.Go(func() { rows[i] = reloadOne(ctx, s) })
	}
	asking.Wait()
	inForce := 0
	for _, r := range rows {
		if r.Error == "" {
			inForce++
		}
	}
	perr := c.print(rows, func(w io.Writer) {
		for _, r := range rows {
			row(w, phrase.ShellWord(r.Plugin), reloadedText(r))
		}
		say(w, "%d of %s: in force", inForce, phrase.Count(len(rows), "sidecar"))
	})
	if perr == nil && inForce < len(rows) {
		return exitWith(exitFailure, nil)
	}
	return errors.Join(perr, err)
}

func reloadOne(ctx context.Context, s admin.Sidecar) reloaded {
	bounded, cancel := context.WithTimeout(ctx, hangAfter)
	defer cancel()
	result, err := admin.Dial(s.Socket).Reload(bounded)
	switch {
	case bounded.Err() != nil:
		return reloaded{Plugin: s.Plugin, Error: fmt.Sprintf("it hangs (pid %d)", s.PID)}
	case err != nil:
		return reloaded{Plugin: s.Plugin, Error: reloadError(err).Error()}
	}
	return reloaded{Plugin: s.Plugin, Generation: result.Generation, Changed: result.Changed}
}

func reloadedText(r reloaded) string {
	if r.Error != "" {
		return "NOT IN FORCE: " + phrase.OneLine(r.Error)
	}
	return fmt.Sprintf("generation %d: %s", r.Generation, strings.Join(r.Changed, "; "))
}
