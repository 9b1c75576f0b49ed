// Command demo tells on a terminal what Chaperone does, with real parts: a
// Vault, a PostgreSQL where there is one, an HTTPS API, and curl and a Python
// script as plugins. It exits with a failure if any step does not behave.
//
//	go run ./tools/demo -chaperone bin/chaperone
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"github.com/chaperone-proxy/chaperone/tools/internal/paint"
)

func main() {
	binary := flag.String("chaperone", "bin/chaperone", "the `PROGRAM` to show")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, *binary); err != nil {
		fmt.Fprintf(os.Stderr, "\ndemo: %v\n", err)
		os.Exit(1)
	}
}

// run starts the parts and tells the story.
func run(ctx context.Context, binary string) (err error) {
	started := time.Now()
	say("starting a real Vault, an HTTPS API that wants a bearer token, and a PostgreSQL ...")
	w, err := newWorld(ctx, binary)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, w.Close()) }()
	say("ready after %.1f s; files are in %s while this runs", time.Since(started).Seconds(), w.dir)
	for i, step := range story(w) {
		heading(i+1, step.title)
		if step.needs != "" {
			say("not shown: %s", step.needs)
			continue
		}
		if err := step.do(ctx, w); err != nil {
			return fmt.Errorf("step %d (%s): %w", i+1, step.title, err)
		}
	}
	fmt.Printf("\nEvery step behaved. It took %.0f s.\n", time.Since(started).Seconds())
	return nil
}

// step is one scene. needs says what is missing to show it.
type step struct {
	title string
	needs string
	do    func(ctx context.Context, w *world) error
}

func heading(n int, title string) { fmt.Printf("\n%s\n", paint.Bold(fmt.Sprintf("%d. %s", n, title))) }

func say(format string, args ...any) { fmt.Printf("   "+format+"\n", args...) }

// show prints lines of a program's output, indented and at most a few.
func show(output string, most int) {
	lines := strings.Split(strings.TrimRight(output, "\n"), "\n")
	for i, line := range lines {
		if i == most {
			fmt.Printf("   | ... %d more lines\n", len(lines)-most)
			break
		}
		if len(line) > 160 {
			line = line[:157] + "..."
		}
		fmt.Println("   | " + line)
	}
}

func proved(format string, args ...any) {
	fmt.Printf("   "+paint.Green("proved:")+" "+format+"\n", args...)
}
