// Command chaperone is the sidecar of a plugin process and its only way out.
package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"

	"github.com/chaperone-proxy/chaperone/ebpf/sandbox"
)

func main() {
	sandbox.Launch() // does not return in the first process of a rootless sandbox
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	os.Exit(execute(ctx, os.Args[1:], os.Stdin, os.Stdout, os.Stderr))
}
