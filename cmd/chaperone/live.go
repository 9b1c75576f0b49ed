package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"syscall"
	"time"
)

// leastInterval bounds how often a live screen is drawn.
const leastInterval = 100 * time.Millisecond

// live shows something again and again until it is interrupted: in place on a
// terminal, and one reading below the other anywhere else.
func (c *cli) live(ctx context.Context, interval time.Duration, show func(context.Context) error) error {
	ctx, stop := signal.NotifyContext(ctx, os.Interrupt, syscall.SIGTERM)
	defer stop()
	var erase, home, below string // ECMA-48: ED 2, CUP and ED 0
	terminal := c.stdout.Destination()
	if isTerminal(terminal) {
		erase, home, below = "\033[2J", "\033[H", "\033[J"
	}
	for {
		fmt.Fprint(terminal, erase, home)
		if err := show(ctx); err != nil {
			if ctx.Err() != nil {
				return nil // interrupted, which is how it ends
			}
			return err
		}
		if home == "" {
			fmt.Fprintln(c.stdout)
		}
		fmt.Fprint(terminal, below)
		erase = ""
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(max(interval, leastInterval)):
		}
	}
}
