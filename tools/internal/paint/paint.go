// Package paint makes text of the demonstrations stand out on a terminal.
package paint

import (
	"os"

	"golang.org/x/sys/unix"
)

// Bold returns text in bold. Where standard output is no terminal, or the variable
// of no-color.org is set, it is returned as it is.
func Bold(text string) string { return paint("\033[1m", text) }

// Green is Bold in green.
func Green(text string) string { return paint("\033[32m", text) }

func paint(escape, text string) string {
	_, err := unix.IoctlGetTermios(int(os.Stdout.Fd()), unix.TCGETS)
	if err != nil || os.Getenv("NO_COLOR") != "" || os.Getenv("TERM") == "dumb" {
		return text
	}
	return escape + text + "\033[0m"
}
