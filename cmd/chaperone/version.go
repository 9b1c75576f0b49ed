package main

import (
	"fmt"
	"io"
	"runtime"

	"github.com/spf13/cobra"
)

// version is set by the linker: -X main.version=.
var version = "dev"

func (c *cli) versionCommand() *cobra.Command {
	return c.withOutput(&cobra.Command{
		Use: "version", Short: "Print the version", Args: noArgs,
		RunE: func(*cobra.Command, []string) error {
			v := struct {
				Version  string `json:"version"`
				Go       string `json:"go"`
				Platform string `json:"platform"`
			}{version, runtime.Version(), runtime.GOOS + "/" + runtime.GOARCH}
			return c.print(v, func(w io.Writer) { fmt.Fprintf(w, "chaperone %s (%s, %s)\n", v.Version, v.Go, v.Platform) })
		},
	})
}
