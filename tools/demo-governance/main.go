// Command demo-governance shows on a terminal how a plugin is approved, with several
// people's keys, a real chaperonectl and a real sidecar that loads what they signed. It
// exits with a failure if any step does not give what it has to.
//
//	go run ./tools/demo-governance -programs bin
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"regexp"
	"strings"
	"syscall"
	"time"

	"github.com/chaperone-proxy/chaperone/tools/internal/paint"
)

func main() {
	programs := flag.String("programs", "bin", "the `FOLDER` of chaperone and chaperonectl")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, *programs); err != nil {
		fmt.Fprintf(os.Stderr, "\ndemo-governance: %v\n", err)
		os.Exit(1)
	}
}

// run makes the environment and runs the steps.
func run(ctx context.Context, programs string) (err error) {
	started := time.Now()
	e, err := newEnv(ctx, programs)
	if e != nil {
		defer func() { err = errors.Join(err, e.Close()) }()
	}
	if err != nil {
		return err
	}
	say("an HTTPS API is started; files are in %s while this runs", e.dir)
	if !e.root {
		say("without root there is no kernel half: the pilot is left out, and the plugin is not forced to use the sidecar")
	}
	for i, step := range steps() {
		fmt.Printf("\n%s\n", paint.Bold(fmt.Sprintf("%d. %s", i+1, step.title)))
		if step.kernel && !e.root {
			say("not shown: a pilot confines the plugin with the kernel; run make demo-governance as root to see it")
			continue
		}
		if err := step.do(ctx, e); err != nil {
			return fmt.Errorf("step %d (%s): %w", i+1, step.title, err)
		}
	}
	fmt.Printf("\nEvery step passed, in %.0f s.\n", time.Since(started).Seconds())
	return nil
}

// step is one step of the demo. kernel is set if it needs root and the kernel half.
type step struct {
	title  string
	kernel bool
	do     func(ctx context.Context, e *env) error
}

func say(format string, args ...any) { fmt.Printf("   "+format+"\n", args...) }

func proved(text string) { fmt.Println("   " + paint.Green("proved:") + " " + text) }

// digests are of SHA-256, whose first digits are enough to see.
var digests = regexp.MustCompile(`(sha256:[0-9a-f]{8})[0-9a-f]{56}`)

// show prints the lines of an output that hold one of some texts, each once and clipped.
func show(output string, texts ...string) {
	const longest = 160
	output = digests.ReplaceAllString(output, "$1...")
	for line := range strings.Lines(output) {
		for _, text := range texts {
			if strings.Contains(line, text) {
				line = strings.TrimRight(line, "\n")
				if len(line) > longest {
					line = line[:longest-3] + "..."
				}
				fmt.Println("   | " + line)
				break
			}
		}
	}
}
