package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"github.com/chaperone-proxy/chaperone/authz"
	"github.com/chaperone-proxy/chaperone/governance/manifest"
	"github.com/chaperone-proxy/chaperone/internal/atomicfile"
	"github.com/chaperone-proxy/chaperone/internal/command"
	"github.com/chaperone-proxy/chaperone/internal/phrase"
)

// draftFlags are the flags of commands that write a draft of a manifest.
type draftFlags struct {
	name, out string
	json      bool
}

func (f *draftFlags) add(cmd *cobra.Command) {
	cmd.Flags().StringVar(&f.name, "name", "", "the plugin's `NAME`")
	cmd.Flags().StringVarP(&f.out, "out", "o", "", "write to this `FILE`, which must not exist")
	cmd.Flags().BoolVar(&f.json, "json", false, "print the open points as JSON, and no manifest")
}

func (c *cli) importCommand() *cobra.Command {
	var f draftFlags
	formats := make([]string, 0, len(manifest.Formats()))
	for _, format := range manifest.Formats() {
		formats = append(formats, string(format))
	}
	cmd := &cobra.Command{
		Use: "import " + strings.Join(formats, "|") + " FILE", Short: "Make a manifest from that of another platform",
		Args: command.Exactly(len("FF"), "FORMAT and FILE"),
		Long: "Make a draft of a manifest from a file of another platform, on standard output. It asks for what the file states\n" +
			"and for nothing wider; everything else is listed as TODO. Values that may be secrets are not copied.\n\n" +
			"  forge    manifest.yml of an Atlassian Forge app: permissions.external.fetch and scopes\n" +
			"  deno     deno.json: a set of permissions, or --allow-net of tasks\n" +
			"  mcp      server.json of the MCP registry: packages, remotes, environment variables\n" +
			"  openapi  OpenAPI 3.0 or 3.1 of an API that the plugin uses: servers, paths, methods, security schemes\n" +
			"  grafana  plugin.json: routes with their credentials",
		Example: "  chaperonectl plugin import mcp server.json -o plugins/search/1.0.0/manifest.yaml",
		RunE: func(_ *cobra.Command, args []string) error {
			data, err := readBounded(args[1])
			if err != nil {
				return fmt.Errorf("import: %w", err)
			}
			d, err := manifest.Import(manifest.Format(args[0]), args[1], data)
			if err != nil {
				return err
			}
			return c.writeDraft(d, &f)
		},
	}
	f.add(cmd)
	return cmd
}

// writeDraft prints a draft, or writes it to a new file.
func (c *cli) writeDraft(d *manifest.Draft, f *draftFlags) error {
	if f.name != "" {
		d.Name = f.name
	}
	if !authz.IsName(d.Name) {
		return command.Usage("%q is not a plugin's name; give one with --name: lower-case letters and digits, with dashes between them", d.Name)
	}
	if f.json {
		todos := d.Todos
		if todos == nil {
			todos = []manifest.Todo{}
		}
		return command.WriteJSON(c.stdout, map[string]any{"plugin": d.Name, "todo": todos})
	}
	if folder := filepath.Base(filepath.Dir(f.out)); manifest.IsVersion(folder) {
		d.Spec.Version = folder
	}
	var text strings.Builder
	if err := d.YAML(&text); err != nil {
		return err
	}
	if f.out == "" {
		_, err := c.stdout.Write([]byte(text.String()))
		return err
	}
	if err := os.MkdirAll(filepath.Dir(f.out), 0o750); err != nil {
		return fmt.Errorf("write manifest: %w", err)
	}
	switch err := atomicfile.Create(f.out, []byte(text.String()), maxPublic); {
	case errors.Is(err, fs.ErrExist):
		return fmt.Errorf("%s exists; name another file", f.out)
	case err != nil:
		return fmt.Errorf("write manifest: %w", err)
	}
	c.say("%s: %s; replace each TODO, then chaperonectl plugin check %s", f.out,
		phrase.Count(len(d.Spec.Permissions), "permission"), phrase.ShellWord(filepath.Dir(f.out)))
	return nil
}
