package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/spf13/cobra"

	"github.com/chaperone-proxy/chaperone/audit"
	"github.com/chaperone-proxy/chaperone/internal/command"
	"github.com/chaperone-proxy/chaperone/internal/phrase"
	"github.com/chaperone-proxy/chaperone/internal/terminal"
	"github.com/chaperone-proxy/chaperone/policy"
	"github.com/chaperone-proxy/chaperone/policy/accesslog"
	"github.com/chaperone-proxy/chaperone/policy/replay"
)

// policyReplay is one run of policy replay.
type policyReplay struct {
	*cli
	flags      policyFlags
	logs       logFlags
	time       string
	maskKeys   []string
	allowWiden bool
	minDecided float64 // in percent
}

// The instants at which a replay decides accesses.
const (
	replayRecorded = "recorded"
	replayNow      = "now"
)

func (c *cli) policyReplayCommand() *cobra.Command {
	p := policyReplay{cli: c, time: replayRecorded}
	cmd := c.withOutput(withLog(c.withConfiguration(c.withPolicy(&cobra.Command{
		Use: "replay --config NEW [LOG...]", Short: "Decide recorded accesses again",
		Long: "Decide the accesses that logs record again, under the configuration NEW, and print which it breaks\n" +
			"(allowed before, refused now), which it widens (refused before, allowed now), and which get another rule or\n" +
			"credential. LOG is a file or a folder, or - for standard input; without one it is the log of each Sidecar of NEW. Limits and\n" +
			"revocations are not decided again. An access that its record does not describe wholly is counted as not\n" +
			"replayable.\n\n" +
			"  chaperone policy replay --config sidecar.new.yaml /var/lib/chaperone/weather/audit.jsonl\n\n" +
			"Exit status 0: no access breaks or widens. 1: failure, a broken log, or too few replayable accesses. 3: otherwise.",
		RunE: func(cmd *cobra.Command, args []string) error { return p.run(cmd.Context(), args) },
	}, &p.flags)), &p.logs))
	cmd.Flags().Var(command.OneOf(&p.time, replayRecorded, replayNow), "time", "decide accesses at this `TIME`: recorded, or now (that of --at)")
	cmd.Flags().StringArrayVar(&p.maskKeys, "mask-key", nil, "a `FILE` with the key of masked paths, written by audit export-mask-key; may be repeated")
	cmd.Flags().BoolVar(&p.allowWiden, "allow-widen", false, "exit with 0 if accesses widen and none breaks")
	cmd.Flags().Float64Var(&p.minDecided, "min-replayable", 0, "fail if less than this `PERCENTAGE` of the accesses could be decided again")
	return cmd
}

// replayGarbage is how much garbage a replay may leave, in percent of its memory in use,
// which is little and does not grow with the logs.
const replayGarbage = 400

func (p *policyReplay) run(ctx context.Context, args []string) error {
	defer debug.SetGCPercent(debug.SetGCPercent(replayGarbage))
	if p.config == "" {
		return usageError("replay: --config is missing; name the configuration to decide with")
	}
	if p.minDecided < 0 || p.minDecided > 100 {
		return usageError("replay: --min-replayable %g is no percentage; write a number from 0 to 100", p.minDecided)
	}
	now := p.flags.at.orNow()
	subjects, err := p.loadPolicies(&p.flags, p.config)
	if err != nil {
		return err
	}
	o, err := p.options(ctx, subjects, args, now)
	if err != nil {
		return err
	}
	options := replay.Options{}
	if p.time == replayNow {
		options.At = now
	}
	r, err := replay.New(subjects, options)
	if err != nil {
		return err
	}
	reader, err := accesslog.Open(o)
	if err != nil {
		return err
	}
	err = p.read(ctx, reader, r)
	result := r.Result()
	result.Notes = reader.Notes()
	// An interrupt also ends the program that writes to standard input, so that its end is not the log's.
	if result.Partial = ctx.Err() != nil; err != nil && !result.Partial {
		return err
	}
	for _, note := range result.Notes {
		say(p.stderr, "note: %s", note)
	}
	if err := p.print(result, func(w io.Writer) { printReplay(w, result) }); err != nil {
		return err
	}
	return p.status(result)
}

// options returns what to read of which logs.
func (p *policyReplay) options(ctx context.Context, subjects []policy.Subject, args []string, now time.Time) (accesslog.Options, error) {
	if len(args) == 0 {
		if args = logsOf(subjects); len(args) == 0 {
			return accesslog.Options{}, usageError("replay: %s names no log; name LOG", p.config)
		}
	}
	o, err := p.logs.options(p.flags.plugin, now, args)
	if err != nil {
		return o, err
	}
	o.Stdin = interruptible(ctx, p.stdin)
	for _, s := range subjects {
		if o.StateDir == "" && len(args) == 1 && s.Sidecar != nil && s.Sidecar.Audit.File == args[0] {
			o.StateDir = s.Sidecar.StateDir
		}
	}
	for _, path := range p.maskKeys {
		key, err := audit.LoadMaskKey(path)
		if err != nil {
			return o, err
		}
		o.MaskKeys = append(o.MaskKeys, key)
	}
	return o, nil
}

// interruptible returns a reader of in that fails once ctx has ended, also while in has
// nothing to read.
func interruptible(ctx context.Context, in io.Reader) io.Reader {
	out, pipe := io.Pipe()
	context.AfterFunc(ctx, func() { pipe.CloseWithError(context.Cause(ctx)) })
	var once sync.Once
	return readerFunc(func(b []byte) (int, error) {
		once.Do(func() {
			go func() { // ends with the input, or with the process
				_, err := io.Copy(pipe, in)
				pipe.CloseWithError(err)
			}()
		})
		return out.Read(b)
	})
}

// readerFunc is a function that reads.
type readerFunc func(b []byte) (int, error)

// Read implements io.Reader.
func (f readerFunc) Read(b []byte) (int, error) { return f(b) }

// progressEvery is how often the progress of long work is printed.
const progressEvery = 5 * time.Second

// read replays the accesses.
func (p *policyReplay) read(ctx context.Context, reader *accesslog.Reader, r *replay.Replayer) error {
	progress := func() {}
	if file, ok := p.stderr.Destination().(*os.File); ok && terminal.Is(file) {
		next := time.Now().Add(progressEvery)
		progress = func() {
			if now := time.Now(); now.After(next) {
				next = now.Add(progressEvery)
				say(p.stderr, "%d records read", reader.Records())
			}
		}
	}
	n := 0
	for a, err := range reader.Accesses(ctx) {
		if err != nil {
			return err
		}
		if err := r.Take(a); err != nil {
			return err
		}
		if n++; n%4096 == 0 {
			progress()
		}
	}
	return nil
}

func (p *policyReplay) status(r replay.Result) error {
	switch {
	case r.Partial:
		return exitWith(exitFailure, errors.New("replay interrupted: the result is that of a part of the log"))
	case len(r.Breaks) > 0, len(r.Widens) > 0 && !p.allowWiden:
		return exitWith(exitWider, nil)
	}
	decided := r.Decided()
	if short := float64(decided)*100 < p.minDecided*float64(r.Accesses); short || decided == 0 && r.Accesses > 0 {
		return fmt.Errorf("replay: %d of %s could be decided again, which shows too little of the change; see the reasons above", decided, phrase.Counted(r.Accesses, "access", "accesses"))
	}
	return nil
}

func printReplay(w io.Writer, r replay.Result) {
	for _, list := range []struct {
		what    string
		changes []replay.Change
	}{
		{"breaks: %s, allowed before and refused now", r.Breaks},
		{"widens: %s, refused before and allowed now", r.Widens},
		{"changed: %s, allowed by another rule or with another credential", r.Changed},
	} {
		if len(list.changes) == 0 {
			continue
		}
		say(w, list.what, phrase.Counted(replay.Total(list.changes), "access", "accesses"))
		row(w, "  BEFORE", "NOW", "ACCESSES", "FIRST", "LAST", "SAMPLE")
		for _, c := range list.changes {
			row(w, "  "+verdictText(c.Old), verdictText(c.New), c.Count, timeText(c.First), timeText(c.Last), sampleText(c.Sample))
		}
	}
	say(w, "unchanged: %s", phrase.Counted(r.Unchanged, "access", "accesses"))
	if len(r.NotReplayable) > 0 {
		var parts []string
		total := 0
		for _, why := range slices.Sorted(maps.Keys(r.NotReplayable)) {
			parts = append(parts, fmt.Sprintf("%s %d", why, r.NotReplayable[why]))
			total += r.NotReplayable[why]
		}
		say(w, "not replayable: %s: %s", phrase.Counted(total, "access", "accesses"), strings.Join(parts, ", "))
	}
	if r.Accesses == 0 {
		say(w, "no access was recorded")
		return
	}
	say(w, "replayed: %s from %s to %s; limits and revocations were not decided again",
		phrase.Counted(r.Accesses, "access", "accesses"), timeText(r.First), timeText(r.Last))
}

func timeText(t time.Time) string { return t.UTC().Format(time.RFC3339) }

// verdictText returns a decision on one line.
func verdictText(v replay.Verdict) string {
	text := v.Reason
	if v.Rule != "" {
		text += " by " + phrase.Rule(v.Grant, v.Rule)
	}
	if v.Credential != "" {
		text += " with " + v.Credential
	}
	return text
}

func sampleText(s replay.Sample) string {
	text := s.Words().String()
	if s.Upgrade != "" {
		text += " (upgrade " + s.Upgrade + ")"
	}
	return fmt.Sprintf("%s (%s:%d)", clipText(text), s.File, s.Line)
}
