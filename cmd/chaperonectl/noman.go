//go:build !man

package main

import "github.com/spf13/cobra"

// packagingCommands returns no command: see man.go.
func (c *cli) packagingCommands() []*cobra.Command { return nil }
