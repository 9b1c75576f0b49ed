// Command bench measures the whole system and prints the sections of README.md, one for
// each question: what the product costs beside its own floor, measured in the same
// run on the same machine. See README.md for what each row is and for recorded results.
//
//	go run ./bench -chaperone bin/chaperone >here.md
//	go run ./bench -chaperone bin/chaperone -beside elsewhere.md
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"runtime"
	"strings"
	"syscall"
	"time"

	"github.com/chaperone-proxy/chaperone/ebpf/sandbox"

	"golang.org/x/sys/unix"
)

// limit bounds the whole run, and grows by perCheck for each of -checks.
const (
	limit    = 20 * time.Minute
	perCheck = 200 * time.Microsecond
)

func main() {
	sandbox.Launch() // does not return in the first process of a rootless sandbox
	if len(os.Args) > 1 && strings.HasPrefix(os.Args[1], "role=") {
		if err := playRole(strings.TrimPrefix(os.Args[1], "role="), os.Args[2:]); err != nil {
			fmt.Fprintln(os.Stderr, "bench:", err)
			os.Exit(1)
		}
		return
	}
	// The kernel scenes measure under SCHED_FIFO, in batches of milliseconds. A
	// process that runs for seconds is faulty and starves the machine: it is killed.
	const most = 2e6 // microseconds
	if err := unix.Setrlimit(unix.RLIMIT_RTTIME, &unix.Rlimit{Cur: most, Max: most}); err != nil {
		fmt.Fprintln(os.Stderr, "bench: bound real-time threads:", err)
		os.Exit(1)
	}
	binary := flag.String("chaperone", "bin/chaperone", "the `PROGRAM` to measure")
	seconds := flag.Duration("time", 3*time.Second, "how long each load row runs")
	only := flag.String("only", "", "run only the scenes whose name contains one of these `TEXTS`, with commas between them")
	rivals := flag.Bool("rivals", true, "measure other engines beside ext_authz")
	checks := flag.Int("checks", 0, "send `CHECKS` to ext_authz, for example 10000000, and measure the growth of the sidecar's memory")
	beside := flag.String("beside", "", "print below each question what `FILE`, the output on another machine, has for it")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	ctx, cancel := context.WithTimeout(ctx, limit+time.Duration(*checks)*perCheck)
	defer cancel()
	if err := run(ctx, options{binary: *binary, length: *seconds, only: *only, checks: *checks, rivals: *rivals, beside: *beside}); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

// options are the flags.
type options struct {
	binary string
	length time.Duration // of each load row
	only   string
	checks int
	rivals bool
	beside string // the file of another machine's run; "" for none
}

func run(ctx context.Context, o options) (err error) {
	other, err := readSections(o.beside)
	if err != nil {
		return err
	}
	w, err := newEnv(ctx, o.binary, o.length)
	if err != nil {
		return err
	}
	w.checks, w.rivals = o.checks, o.rivals
	defer func() { err = errors.Join(err, w.Close()) }()
	machine := fmt.Sprintf("%s, %d CPUs, %s/%s, %s, %s", cpuModel(), runtime.NumCPU(), runtime.GOOS, runtime.GOARCH, runtime.Version(),
		time.Now().UTC().Format(time.DateOnly))
	for _, s := range sections() {
		if err := s.play(ctx, w, o, machine, other); err != nil {
			return err
		}
	}
	return nil
}

// wanted reports whether a scene is one of those that were asked for.
func wanted(name, only string) bool {
	for text := range strings.SplitSeq(only, ",") {
		if strings.Contains(name, text) {
			return true
		}
	}
	return false
}

// cpuModel returns what /proc/cpuinfo calls the processor.
func cpuModel() string {
	data, err := os.ReadFile("/proc/cpuinfo")
	if err != nil {
		return "unknown CPU"
	}
	for line := range strings.Lines(string(data)) {
		if name, ok := strings.CutPrefix(line, "model name"); ok {
			return strings.TrimSpace(strings.TrimLeft(name, "\t :"))
		}
	}
	return "unknown CPU"
}
