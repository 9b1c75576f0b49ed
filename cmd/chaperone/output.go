package main

import (
	"encoding/json"
	"fmt"
	"io"
	"text/tabwriter"

	"github.com/goccy/go-yaml"

	"github.com/chaperone-proxy/chaperone/internal/phrase"
	"github.com/chaperone-proxy/chaperone/internal/printable"
)

// print writes value as --output asks: as JSON or YAML, or by table.
func (c *cli) print(value any, table func(w io.Writer)) error {
	switch c.output {
	case "json":
		encoder := json.NewEncoder(c.stdout)
		encoder.SetIndent("", "  ")
		encoder.SetEscapeHTML(false)
		return encoder.Encode(value)
	case "yaml":
		// Through JSON, so that both formats have the same names.
		data, err := json.Marshal(value)
		if err != nil {
			return fmt.Errorf("encode answer: %w", err)
		}
		data, err = yaml.JSONToYAML(data)
		if err != nil {
			return fmt.Errorf("encode answer: %w", err)
		}
		_, err = c.stdout.Write(data)
		return err
	case "table", "":
		w := tabwriter.NewWriter(c.stdout, 0, 0, 2, ' ', 0)
		table(w)
		return w.Flush()
	}
	return usageError("--output %q is not table, json or yaml", c.output)
}

// row writes one line of a table, in which no cell begins another cell or line.
func row(w io.Writer, cells ...any) {
	for i, cell := range cells {
		if i > 0 {
			fmt.Fprint(w, "\t")
		}
		fmt.Fprint(w, printable.Text(fmt.Sprint(cell)))
	}
	fmt.Fprintln(w)
}

// say prints one line. Its arguments may be any text and cannot begin another line.
func say(w io.Writer, format string, args ...any) {
	fmt.Fprintln(w, phrase.OneLine(fmt.Sprintf(format, args...)))
}
