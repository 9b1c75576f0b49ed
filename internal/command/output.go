package command

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"text/tabwriter"

	"github.com/goccy/go-yaml"

	"github.com/chaperone-proxy/chaperone/internal/phrase"
	"github.com/chaperone-proxy/chaperone/internal/printable"
)

// Print writes value in a format, table, json or yaml: the first by calling table.
func Print(out io.Writer, format string, value any, table func(w io.Writer)) error {
	switch format {
	case "json":
		return WriteJSON(out, value)
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
		_, err = out.Write(data)
		return err
	case "table", "":
		w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
		table(w)
		return w.Flush()
	}
	return Usage("--output %q is not table, json or yaml", format)
}

// WriteJSON writes value as JSON, in which every character has a glyph.
func WriteJSON(out io.Writer, value any) error {
	var b bytes.Buffer
	encoder := json.NewEncoder(&b)
	encoder.SetIndent("", "  ")
	encoder.SetEscapeHTML(false)
	if err := encoder.Encode(value); err != nil {
		return err
	}
	_, err := out.Write(printable.JSON(b.Bytes()))
	return err
}

// Row writes one line of a table, in which no cell begins another cell or line.
func Row(w io.Writer, cells ...any) {
	for i, cell := range cells {
		if i > 0 {
			fmt.Fprint(w, "\t")
		}
		fmt.Fprint(w, printable.Text(fmt.Sprint(cell)))
	}
	fmt.Fprintln(w)
}

// Say prints one line. Its arguments may be any text and cannot begin another line.
func Say(w io.Writer, format string, args ...any) {
	fmt.Fprintln(w, phrase.OneLine(fmt.Sprintf(format, args...)))
}
