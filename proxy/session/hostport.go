package session

import (
	"strconv"
	"strings"
)

// Quote returns a name that the plugin sent, fit for a line.
func Quote(s string) string {
	if len(s) > 64 {
		s = s[:64] + "..."
	}
	return strconv.QuoteToASCII(s)
}

// JoinHostPort returns host:port; host has no brackets.
func JoinHostPort(host string, port uint16) string {
	if strings.Contains(host, ":") {
		host = "[" + host + "]"
	}
	return host + ":" + strconv.Itoa(int(port))
}

// WithPort adds the port to an authority that states none.
func WithPort(authority string, port uint16) string {
	if strings.LastIndexByte(authority, ':') > strings.LastIndexByte(authority, ']') {
		return authority
	}
	return authority + ":" + strconv.Itoa(int(port))
}
