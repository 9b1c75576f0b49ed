package gameday

import (
	"archive/tar"
	"bufio"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/chaperone-proxy/chaperone/audit"
	"github.com/chaperone-proxy/chaperone/authz"
	"github.com/chaperone-proxy/chaperone/governance/gameday"
	"github.com/chaperone-proxy/chaperone/internal/hostrevocations"
	"github.com/chaperone-proxy/chaperone/internal/phrase"
	"github.com/chaperone-proxy/chaperone/internal/pilotrun"
)

// watch follows the audit log from the turn on.
type watch struct {
	cancel context.CancelFunc
	done   chan struct{}

	mu       sync.Mutex
	observer *gameday.Observer
}

func newWatch(ctx context.Context, file string, turned time.Time) *watch {
	ctx, cancel := context.WithCancel(ctx)
	w := &watch{cancel: cancel, done: make(chan struct{}), observer: gameday.NewObserver(turned, time.Time{})}
	go func() {
		defer close(w.done)
		for e, err := range audit.Read(ctx, audit.Query{File: file, Follow: true, Filter: audit.Filter{Since: turned}}) {
			if err != nil {
				return // the log is read again at the end, which reports the fault
			}
			w.mu.Lock()
			w.observer.Add(&e)
			w.mu.Unlock()
		}
	}()
	return w
}

func (w *watch) stop() {
	w.cancel()
	<-w.done
}

func (w *watch) observed() gameday.Observed {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.observer.Observed()
}

// await waits until the log fits, and reports whether ctx did not end before.
func (w *watch) await(ctx context.Context, fits func(gameday.Observed) bool) bool {
	const pause = 20 * time.Millisecond
	for !fits(w.observed()) {
		if !sleep(ctx, pause) {
			return false
		}
	}
	return true
}

// sleep waits, and reports whether ctx did not end before.
func sleep(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-timer.C:
		return true
	}
}

func (r *run) say(format string, args ...any) { fmt.Fprintf(r.cfg.Screen, format+"\n", args...) }

// brief is the screen before the alarm.
func (r *run) brief() {
	r.say("Plugin %s runs, with its files in %s.", r.plugin, r.dir)
	r.say("It may read and report orders of %s. Wait for the alarm; an interrupt ends the exercise.", ordersHost)
}

// respond shows the alarm and has the responder, or the exercise itself, act.
func (r *run) respond(ctx context.Context) {
	if !r.watch.await(ctx, func(o gameday.Observed) bool { return !o.FirstRefusal.IsZero() }) || !sleep(ctx, settle) {
		return
	}
	r.alarm()
	if r.cfg.Auto {
		r.auto(ctx)
		return
	}
	r.human(ctx)
}

// alarm is the screen of the alarm.
func (r *run) alarm() {
	refusals := r.watch.observed().Refusals
	r.say("\nALARM: plugin %s is refused what it did not ask for before:", r.plugin)
	for _, reason := range slices.Sorted(maps.Keys(refusals)) {
		r.say("  %6d  %s", refusals[reason], reason)
	}
	config := phrase.ShellWord(r.file(sidecarFile))
	r.say("\nYou have %s. In another terminal, as root:", time.Until(r.events.turned().Add(r.cfg.Timeout)).Round(time.Second))
	r.say("  1. end its access        chaperone revoke --config %s ...", config)
	r.say("  2. keep the evidence     chaperone support-bundle --config %s --file %s", config, phrase.ShellWord(r.file(EvidenceFile)))
	r.say("                           chaperone audit verify --config %s", config)
	r.say("  3. find what leaked      chaperone audit query --config %s ...", config)
	r.say("A piece of the leak is %d bytes. Questions follow when its access has ended.\n", pieceBytes)
}

// maxAnswer bounds a line of an answer in bytes.
const maxAnswer = 256

// human waits for the revocation and asks what leaked.
func (r *run) human(ctx context.Context) {
	if !r.watch.await(ctx, func(o gameday.Observed) bool { return !o.Revoked.IsZero() }) {
		r.say("Its access was not revoked in time.")
		return
	}
	r.say("Access revoked. Keep the evidence, then answer.")
	lines := make(chan string)
	go func() { // it ends with its input, at the latest with the process
		defer close(lines)
		for s := bufio.NewScanner(r.cfg.Answers); s.Scan(); {
			select {
			case lines <- strings.TrimSpace(s.Text()):
			case <-ctx.Done():
				return
			}
		}
	}()
	ask := func(question string) (string, bool) {
		r.say("%s", question)
		select {
		case line, ok := <-lines:
			return line, ok && len(line) <= maxAnswer
		case <-ctx.Done():
			return "", false
		}
	}
	pieces, ok := ask("How many pieces left the plugin?")
	if !ok {
		return
	}
	destination, ok := ask("To which host?")
	if !ok {
		return
	}
	n, err := strconv.ParseInt(pieces, 10, 64)
	if err != nil {
		n = -1
	}
	r.answer = &gameday.Answer{Pieces: n, Destination: destination}
}

// auto runs the commands of a responder. One that fails shows in the score.
func (r *run) auto(ctx context.Context) {
	config := r.file(sidecarFile)
	for _, args := range [][]string{
		{"revoke", "--config", config, "--reason", "exercise: refusals after the turn"},
		{"support-bundle", "--config", config, "--file", r.file(EvidenceFile)},
		{"audit", "verify", "--config", config},
	} {
		if out, err := r.chaperone(ctx, args...); err != nil {
			r.say("chaperone %s: %v\n%s", args[0], err, out)
		}
	}
	out, err := r.chaperone(ctx, "audit", "query", "--config", config, "--kind", string(authz.KindEnd), "--rule", ruleReports, "--output", "jsonl")
	if err == nil {
		r.answer, err = answerOf(out)
	}
	if err != nil {
		r.say("chaperone audit query: %v", err)
	}
}

// answerOf reads what leaked from the ends of accesses, one line of JSON for each.
func answerOf(lines []byte) (*gameday.Answer, error) {
	sent, answer := int64(0), &gameday.Answer{}
	for line := range strings.Lines(string(lines)) {
		var e audit.Entry
		if err := json.Unmarshal([]byte(line), &e); err != nil {
			return nil, fmt.Errorf("read the audit log: %w", err)
		}
		sent += e.SentBytes
		if e.SentBytes > 0 {
			answer.Destination = e.Host
		}
	}
	answer.Pieces = sent / pieceBytes
	return answer, nil
}

// chaperone runs a command of the sidecar's program and returns what it prints.
func (r *run) chaperone(ctx context.Context, args ...string) ([]byte, error) {
	cmd := exec.CommandContext(ctx, r.cfg.Chaperone, args...)
	cmd.WaitDelay = time.Second
	errs := &tail{}
	cmd.Stderr = errs
	out, err := cmd.Output()
	if err != nil {
		return out, fmt.Errorf("%w: %s", err, strings.TrimSpace(errs.String()))
	}
	return out, nil
}

// maxBundle bounds what is read of a support bundle, unpacked, in bytes.
const maxBundle = 64 << 20

// findEvidence returns a support bundle in a folder that has the revocation of a time, and
// why none counts.
func findEvidence(dir string, revoked time.Time) (file, fault string) {
	found, err := filepath.Glob(filepath.Join(dir, "*.tar.gz"))
	if err != nil || len(found) == 0 {
		return "", "the folder of the exercise has none"
	}
	for _, path := range found {
		if err := checkEvidence(path, revoked); err != nil {
			fault = fmt.Sprintf("%s: %v", filepath.Base(path), err)
			continue
		}
		return filepath.Base(path), ""
	}
	return "", fault
}

// checkEvidence reads the records of a support bundle and looks for the revocation.
func checkEvidence(path string, revoked time.Time) error {
	file, err := os.Open(path)
	if err != nil {
		return err
	}
	defer func() { _ = file.Close() }() // opened for reading only
	unpacked, err := gzip.NewReader(file)
	if err != nil {
		return err
	}
	for archive := tar.NewReader(io.LimitReader(unpacked, maxBundle)); ; {
		header, err := archive.Next()
		if errors.Is(err, io.EOF) {
			return errors.New("it has no audit records")
		}
		if err != nil {
			return err
		}
		if header.Name != "audit.json" {
			continue
		}
		var records []struct {
			Time time.Time `json:"time"`
			Kind string    `json:"kind"`
		}
		if err := json.NewDecoder(archive).Decode(&records); err != nil {
			return err
		}
		for _, one := range records {
			if one.Kind == string(authz.KindRevocation) && one.Time.Equal(revoked) {
				return nil
			}
		}
		return errors.New("it was written before the revocation, or does not record it")
	}
}

// lift restores what a responder revoked for the plugin on the whole host: no sidecar of its
// name comes back.
func (r *run) lift(ctx context.Context) error {
	state, err := hostrevocations.New(pilotrun.Roots()...).Read()
	if err != nil {
		return fmt.Errorf("read the revocations of the host: %w", err)
	}
	for _, one := range state.InForce(r.plugin) {
		if one.Plugin != r.plugin {
			continue // of every plugin, which the exercise leaves to the responder
		}
		if _, err := r.chaperone(ctx, "restore", one.ID, "--reason", "the exercise has ended"); err != nil {
			return fmt.Errorf("restore revocation %s of %s: %w", one.ID, r.plugin, err)
		}
	}
	return nil
}
