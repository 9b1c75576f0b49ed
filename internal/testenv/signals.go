package testenv

import (
	"os"
	"os/signal"
	"syscall"
)

// DefaultSignals has the processes that tests start not ignore SIGINT and SIGQUIT.
// They would where the tests themselves were started with both ignored, as a shell
// without job control starts what it puts in the background. TestMain calls it.
func DefaultSignals() {
	for _, sig := range []os.Signal{os.Interrupt, syscall.SIGQUIT} {
		if signal.Ignored(sig) {
			signal.Notify(make(chan os.Signal, 1), sig)
		}
	}
}
