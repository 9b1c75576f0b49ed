//go:build man

package main

import (
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/cobra/doc"

	"github.com/chaperone-proxy/chaperone/internal/command"
)

// packagingCommands returns the command that writes the man pages, for those who
// package the binary: `make release` alone builds with the tag man.
func (c *cli) packagingCommands() []*cobra.Command {
	return []*cobra.Command{{
		Use: "man FOLDER", Short: "Write the man pages of every command into a folder", Hidden: true,
		Args: command.Exactly(1, "a folder"),
		RunE: func(cmd *cobra.Command, args []string) error {
			dir := filepath.Clean(args[0])
			if err := os.MkdirAll(dir, 0o755); err != nil { //nolint:gosec // pages that everybody reads
				return fmt.Errorf("write man pages: %w", err)
			}
			// A fixed date keeps the pages of one version equal.
			date := time.Unix(0, 0).UTC()
			header := &doc.GenManHeader{Title: "CHAPERONECTL", Section: "1", Source: "Chaperone " + buildVersion(), Date: &date}
			if err := doc.GenManTree(cmd.Root(), header, dir); err != nil {
				return fmt.Errorf("write man pages: %w", err)
			}
			return nil
		},
	}}
}
