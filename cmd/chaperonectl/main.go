// Command chaperonectl approves plugins: it checks manifests, gathers evidence, and signs
// what turns a manifest into a grant. It is for authors, reviewers and release managers,
// and links formats and a policy language that the sidecar does without.
package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"
	"time"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	os.Exit(execute(ctx, os.Args[1:], os.Stdin, os.Stdout, os.Stderr, time.Now))
}
