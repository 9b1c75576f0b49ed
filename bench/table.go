package main

import (
	"fmt"
	"io"
	"strings"
)

// table is one part of the result, printed as Markdown.
type table struct {
	title string
	heads []string
	rows  [][]string
}

func (t *table) add(cells ...string) { t.rows = append(t.rows, cells) }

func (t *table) print(w io.Writer) {
	fmt.Fprintf(w, "**%s**\n\n| %s |\n|%s\n", t.title, strings.Join(t.heads, " | "), strings.Repeat("---|", len(t.heads)))
	for _, row := range t.rows {
		fmt.Fprintf(w, "| %s |\n", strings.Join(row, " | "))
	}
	fmt.Fprintln(w)
}

// verdict prints whether a goal was reached.
func verdict(ok bool) string {
	if ok {
		return "reached"
	}
	return "**not reached**"
}
