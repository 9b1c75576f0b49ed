package main

import (
	"strings"

	"github.com/spf13/cobra"

	"github.com/chaperone-proxy/chaperone/configs"
)

func (c *cli) schemaCommand() *cobra.Command {
	var kinds []string
	for _, k := range configs.Kinds() {
		kinds = append(kinds, string(k))
	}
	return &cobra.Command{
		Use: "schema KIND", Short: "Print the JSON Schema of " + strings.Join(kinds, ", "),
		Args: exactly(1, "one of "+strings.Join(kinds, ", ")), ValidArgs: kinds,
		RunE: func(_ *cobra.Command, args []string) error {
			schema, err := configs.Schema(args[0])
			if err != nil {
				return usageError("%w", err)
			}
			_, err = c.stdout.Write(schema)
			return err
		},
	}
}
