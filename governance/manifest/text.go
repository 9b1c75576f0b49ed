package manifest

import (
	"strconv"

	"github.com/chaperone-proxy/chaperone/internal/printable"
)

// maxText bounds what is quoted of a file in a message.
const maxText = 200

// quote returns a text as Go and YAML read it, in ASCII on one line and clipped.
func quote(s string) string { return strconv.QuoteToASCII(printable.Clip(s, maxText)) }
