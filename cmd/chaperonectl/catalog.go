package main

import (
	"context"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"github.com/chaperone-proxy/chaperone/authz"
	"github.com/chaperone-proxy/chaperone/governance/catalog"
	"github.com/chaperone-proxy/chaperone/governance/report"
	"github.com/chaperone-proxy/chaperone/internal/atomicfile"
	"github.com/chaperone-proxy/chaperone/internal/command"
	"github.com/chaperone-proxy/chaperone/internal/phrase"
)

func (c *cli) catalogCommand() *cobra.Command {
	var out string
	cmd := &cobra.Command{
		Use: "catalog [DIR] -o FOLDER", Short: "Write the catalogue of plugins: static pages and JSON", Args: cobra.MaximumNArgs(1),
		Long: "Write the catalogue of the repository's plugins: what each is for, what it may do, with which platform it works, who\n" +
			"supports it and until when, and whether a signed grant certifies it. The pages have no script and load nothing else.",
		Example: "  chaperonectl plugin catalog -o public",
		RunE: func(cmd *cobra.Command, args []string) error {
			if out == "" {
				return command.Usage("the folder to write is missing; add -o FOLDER")
			}
			return c.writeCatalog(cmd.Context(), first(args), out)
		},
	}
	cmd.Flags().StringVarP(&out, "out", "o", "", "the `FOLDER` to write, which is made if it is not there")
	return c.repoFlag(cmd)
}

func (c *cli) writeCatalog(ctx context.Context, dir, out string) error {
	r, err := c.openRepo(dir)
	if err != nil {
		return err
	}
	defer r.close()
	all, err := catalog.Build(ctx, r.Repository, c.now())
	if err != nil {
		return err
	}
	files, err := all.Files()
	if err != nil {
		return err
	}
	if err := os.MkdirAll(out, 0o755); err != nil { // #nosec G301 -- the pages are for everybody
		return fmt.Errorf("write catalogue: %w", err)
	}
	for _, name := range slices.Sorted(maps.Keys(files)) {
		if err := atomicfile.Write(filepath.Join(out, name), files[name], maxPublic); err != nil {
			return fmt.Errorf("write catalogue: %w", err)
		}
	}
	c.say("%s: %s, %s", filepath.Join(out, "index.html"), phrase.Counted(len(all.Plugins), "plugin", "plugins"), phrase.Counted(len(all.Calendar), "date", "dates"))
	return nil
}

func (c *cli) reportCommand() *cobra.Command {
	since := authz.Duration(90 * 24 * time.Hour)
	cmd := &cobra.Command{
		Use: "report [DIR] [--since 90d]", Short: "Report cycle times, rework, exemptions and renewals, from signed times", Args: cobra.MaximumNArgs(1),
		Long: "Report how long requests took and where, how often they were sent back, which exemptions are still open and which\n" +
			"grants are to be renewed. Every time is one that somebody signed.",
		Example: "  chaperonectl plugin report --since 90d --output md >retrospective.md",
		RunE: func(cmd *cobra.Command, args []string) error {
			r, err := c.openRepo(first(args))
			if err != nil {
				return err
			}
			defer r.close()
			now := c.now()
			out, err := report.Build(cmd.Context(), r.Repository, now.Add(-time.Duration(since)), now)
			if err != nil {
				return err
			}
			if c.output == "md" {
				_, err := io.WriteString(c.stdout, out.Markdown())
				return err
			}
			return c.print(out, func(w io.Writer) { _, _ = io.WriteString(w, out.Markdown()) })
		},
	}
	cmd.Flags().Var(duration{&since}, "since", "how far back, as in `90d`")
	return c.repoFlag(c.withOutput(cmd, "md"))
}

// first returns the only argument, or the working directory.
func first(args []string) string {
	if len(args) == 0 {
		return "."
	}
	return args[0]
}
