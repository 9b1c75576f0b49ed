// Command demo-envoy shows Chaperone with Envoy on a terminal, with real
// components: an Envoy that the sidecar configures, a Vault, an HTTPS API, and
// curl as the plugin. It exits with a failure if any step fails.
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

// run starts the components and runs the steps.
func run(ctx context.Context, binary string) (err error) {
	started := time.Now()
	say("starting a real Vault, an HTTPS API that requires a bearer token, a sidecar and an Envoy ...")
	e, err := newEnv(ctx, binary)
	if e != nil {
		defer func() { err = errors.Join(err, e.Close()) }()
	}
	if err != nil {
		return err
	}
	say("ready after %.1f s; files are in %s while this runs", time.Since(started).Seconds(), e.dir)
	if e.root {
		say("the plugin's programs run in a cgroup, whose kernel programs redirect their connections to the")
		say("sidecar; the sidecar identifies the plugin and forwards to Envoy, which has no other way out")
	} else {
		say("without root the kernel redirects no connection: curl uses Envoy as its proxy, and is not forced to")
	}
	for i, step := range steps(e) {
		fmt.Printf("\n%s\n", paint.Bold(fmt.Sprintf("%d. %s", i+1, step.title)))
		if step.needs != "" {
			say("not shown: %s", step.needs)
			continue
		}
		if err := step.do(ctx, e); err != nil {
			return fmt.Errorf("step %d (%s): %w\n--- the sidecar\n%s--- Envoy\n%s", i+1, step.title, err, e.sidecar.output.String(), e.envoy.Log())
		}
	}
	fmt.Printf("\nEvery step passed, in %.0f s.\n", time.Since(started).Seconds())
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
