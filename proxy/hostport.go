package proxy

import (
	"strconv"
	"strings"
)

// clean returns a name that the plugin sent, fit for a line.
func clean(s string) string {
	if len(s) > 64 {
		s = s[:64] + "..."
	}
	return strconv.QuoteToASCII(s)
}

// joinPort returns host:port; host has no brackets.
func joinPort(host string, port uint16) string {
	if strings.Contains(host, ":") {
		host = "[" + host + "]"
	}
	return host + ":" + strconv.Itoa(int(port))
}

// withPort adds the port to an authority that states none.
func withPort(authority string, port uint16) string {
	if strings.LastIndexByte(authority, ':') > strings.LastIndexByte(authority, ']') {
		return authority
	}
	return authority + ":" + strconv.Itoa(int(port))
}
