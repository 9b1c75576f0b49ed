// Command demo shows Chaperone on a terminal, with real components: a Vault, a
// PostgreSQL if it is installed, an HTTPS API, and curl, psql and a Python script as
// plugins. It exits with a failure if any step fails.
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

// run starts the components and runs the steps.
func run(ctx context.Context, binary string) (err error) {
	started := time.Now()
	say("starting a real Vault, an HTTPS API that requires a bearer token, and a PostgreSQL ...")
	e, err := newEnv(ctx, binary)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, e.Close()) }()
	say("ready after %.1f s; files are in %s while this runs", time.Since(started).Seconds(), e.dir)
	for i, step := range steps(e) {
		heading(i+1, step.title)
		if step.needs != "" {
			say("not shown: %s", step.needs)
			continue
		}
		if err := step.do(ctx, e); err != nil {
			return fmt.Errorf("step %d (%s): %w", i+1, step.title, err)
		}
	}
	fmt.Printf("\nEvery step passed, in %.0f s.\n", time.Since(started).Seconds())
	return nil
}

// step is one step of the demo. needs is the missing requirement, if any.
type step struct {
	title string
	needs string
	do    func(ctx context.Context, e *env) error
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
