// Command demo-envoy tells on a terminal what Chaperone does together with
// Envoy, with real parts: an Envoy that the sidecar configures, a Vault, an
// HTTPS API, and curl as the plugin. It exits with a failure if any step does
// not behave.
//
//	go run ./tools/demo-envoy -chaperone bin/chaperone
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
		fmt.Fprintf(os.Stderr, "\ndemo-envoy: %v\n", err)
		os.Exit(1)
	}
}

// run starts the parts and tells the story.
func run(ctx context.Context, binary string) (err error) {
	started := time.Now()
	say("starting a real Vault, an HTTPS API that wants a bearer token, a sidecar and an Envoy ...")
	w, err := newWorld(ctx, binary)
	if w != nil {
		defer func() { err = errors.Join(err, w.Close()) }()
	}
	if err != nil {
		return err
	}
	say("ready after %.1f s; files are in %s while this runs", time.Since(started).Seconds(), w.dir)
	if w.root {
		say("the plugin's programs run in a cgroup of their own, where the kernel leads what they dial to the")
		say("sidecar; the sidecar proves whose it is and passes it on to Envoy, which knows no other way out")
	} else {
		say("without root the kernel leads nothing: curl is told that Envoy is its proxy, and nothing keeps it there")
	}
	for i, step := range story(w) {
		fmt.Printf("\n%s\n", paint.Bold(fmt.Sprintf("%d. %s", i+1, step.title)))
		if step.needs != "" {
			say("not shown: %s", step.needs)
			continue
		}
		if err := step.do(ctx, w); err != nil {
			return fmt.Errorf("step %d (%s): %w\n--- the sidecar\n%s--- Envoy\n%s", i+1, step.title, err, w.sidecar.output.String(), w.envoy.Log())
		}
	}
	fmt.Printf("\nEvery step that is shown behaved. It took %.0f s.\n", time.Since(started).Seconds())
	return nil
}

func say(format string, args ...any) { fmt.Printf("   "+format+"\n", args...) }

// show prints lines of a program's output, indented and at most a few.
func show(output string, most int) {
	lines := strings.Split(strings.TrimSpace(output), "\n")
	for i, line := range lines {
		if i == most {
			fmt.Printf("   | ... %d more lines\n", len(lines)-most)
			break
		}
		if len(line) > 200 {
			line = line[:197] + "..."
		}
		fmt.Println("   | " + line)
	}
}

func proved(format string, args ...any) {
	fmt.Printf("   "+paint.Green("proved:")+" "+format+"\n", args...)
}
