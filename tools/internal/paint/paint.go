// Package paint emphasizes text of the demonstrations on a terminal.
package paint

import (
	"os"

	"golang.org/x/sys/unix"
)

// Bold returns text in bold, Green in green. Where standard output is no terminal,
// or NO_COLOR is set (no-color.org), it is returned as it is.
func Bold(text string) string  { return paint("\033[1m", text) }
func Green(text string) string { return paint("\033[32m", text) }

func paint(escape, text string) string {
	_, err := unix.IoctlGetTermios(int(os.Stdout.Fd()), unix.TCGETS)
	if err != nil || os.Getenv("NO_COLOR") != "" || os.Getenv("TERM") == "dumb" {
		return text
	}
	return escape + text + "\033[0m"
}
