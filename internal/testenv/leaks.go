package testenv

import "go.uber.org/goleak"

// Lingering ignores what net/http leaves behind for half a second on purpose:
// a server that answered without reading a request to its end goes on holding
// the connection, so that the answer is not lost to a reset
// (rstAvoidanceDelay in net/http/server.go). It ends by itself, later than
// goleak waits for.
func Lingering() goleak.Option {
	return goleak.IgnoreAnyFunction("net/http.(*conn).closeWriteAndWait")
}
