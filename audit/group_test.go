package audit_test

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/chaperone-proxy/chaperone/audit"
	"github.com/chaperone-proxy/chaperone/authz"
)

// together has callers record at once: all are queued before the first is written.
// before is called in between. It returns their errors.
func together(t *testing.T, log *audit.Log, callers, each int, before func()) []error {
	t.Helper()
	failures := make([]error, callers)
	release := log.Hold()
	var wg sync.WaitGroup
	for c := range callers {
		wg.Go(func() {
			records := samples(each)
			for i := range records {
				r := *records[i]
				r.Decision = fmt.Sprintf("caller-%d-%d", c, i)
				records[i] = &r
			}
			failures[c] = log.RecordAll(records)
		})
	}
	for end := time.Now().Add(10 * time.Second); log.Queued() < callers; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			release()
			t.Fatal("the callers are not queued")
		}
	}
	before()
	release()
	wg.Wait()
	return failures
}

// decisions returns which decisions the log has, and how many records it reports as
// lost.
func (f folder) decisions() (found map[string]int, lost int) {
	found = map[string]int{}
	for _, entry := range f.entries(audit.Query{}) {
		if lost += int(entry.Lost); entry.Kind == string(authz.KindDecision) {
			found[entry.Decision]++
		}
	}
	return found, lost
}

// Records of concurrent callers are written together: the head, which has a slot for
// odd and one for even numbers, is written once.
func TestConcurrentRecordsAreWrittenTogether(t *testing.T) {
	f := newFolder(t)
	log := f.open(f.config())
	const callers = 20
	for _, err := range together(t, log, callers, 1, func() {}) {
		if err != nil {
			t.Error(err)
		}
	}
	f.proved(1, callers)
	found, _ := f.decisions()
	for c := range callers {
		if found[fmt.Sprintf("caller-%d-0", c)] != 1 {
			t.Errorf("caller %d: recorded %d times", c, found[fmt.Sprintf("caller-%d-0", c)])
		}
	}
	head, err := os.ReadFile(filepath.Join(f.dir, "audit.head"))
	if err != nil {
		t.Fatal(err)
	}
	if odd := head[len(head)/2:]; strings.Trim(string(odd), "\x00") != "" {
		t.Error("the head was written for single records")
	}
}

// Several records of each caller stay together and in order.
func TestConcurrentBatchesStayTogether(t *testing.T) {
	f := newFolder(t)
	log := f.open(f.config())
	for _, err := range together(t, log, 8, 3, func() {}) {
		if err != nil {
			t.Error(err)
		}
	}
	f.proved(1, 24)
	entries := f.entries(audit.Query{})
	for i, entry := range entries {
		if want := fmt.Sprintf("%s-%d", strings.TrimSuffix(entries[i/3*3].Decision, "-0"), i%3); entry.Decision != want {
			t.Errorf("record %d is %s, want %s", i+1, entry.Decision, want)
		}
	}
}

// Each caller's records are written once and in order, whether callers park or look, and
// whoever leads.
func TestConcurrentCallersTakeTurns(t *testing.T) {
	for name, park := range map[string]bool{"park": true, "look": false} {
		t.Run(name, func(t *testing.T) {
			f := newFolder(t)
			log := f.open(f.config())
			if park {
				log.Park()
			}
			const callers, each = 16, 300
			var wg sync.WaitGroup
			for c := range callers {
				wg.Go(func() {
					r := *sample()
					for n := range each {
						r.Decision = fmt.Sprintf("%d-%d", c, n)
						if err := log.Record(&r); err != nil {
							t.Error(err)
						}
					}
				})
			}
			wg.Wait()
			f.proved(1, callers*each)
			next := [callers]int{}
			for _, entry := range f.entries(audit.Query{}) {
				var c, n int
				if _, err := fmt.Sscanf(entry.Decision, "%d-%d", &c, &n); err != nil || n != next[c] {
					t.Fatalf("record %s, want number %d (%v)", entry.Decision, next[c], err)
				}
				next[c]++
			}
		})
	}
}

// Records that are written together are on both sides of a rotation if there is no
// room for all, and no file is larger than its bound.
func TestConcurrentRecordsRotate(t *testing.T) {
	f := newFolder(t)
	cfg := f.config()
	cfg.MaxSize, cfg.Keep = 8<<10, -1
	log := f.open(cfg)
	for range 5 {
		for _, err := range together(t, log, 30, 1, func() {}) {
			if err != nil {
				t.Fatal(err)
			}
		}
	}
	report := f.verify()
	if report.Problem != nil || len(report.Files) < 5 {
		t.Errorf("report %+v", report)
	}
	for _, file := range report.Files {
		if info, err := os.Stat(filepath.Join(f.dir, filepath.Base(file))); err != nil || info.Size() > cfg.MaxSize {
			t.Errorf("%s: %v, %v", file, info, err)
		}
	}
}

// A write that fails, wherever it ends, refuses every record of the group, and the
// chain goes on behind what was written.
func TestFailedWriteRefusesTheGroup(t *testing.T) {
	if os.Getenv(envShort) == "" {
		command := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestFailedWriteRefusesTheGroup$")
		command.Env = append(os.Environ(), envShort+"=1")
		if out, err := command.CombinedOutput(); err != nil {
			t.Errorf("%v: %s", err, out)
		}
		return
	}
	const callers, each = 6, 2
	whole := failGroup(t, callers, each, 1<<30)
	for room := int64(0); room < whole-1; room += 97 {
		failGroup(t, callers, each, room)
	}
}

// failGroup has callers record at once into a file that may grow by room bytes, and
// returns by how many it grew.
func failGroup(t *testing.T, callers, each int, room int64) int64 {
	t.Helper()
	f := newFolder(t)
	log := f.open(f.config())
	record(t, log, 1)
	length := int64(len(f.read()))
	lift := func() {}
	failures := together(t, log, callers, each, func() { lift = limitFiles(t, length+room) })
	lift()
	grown := int64(len(f.read())) - length
	for c, err := range failures {
		if err == nil && grown >= room {
			t.Errorf("room for %d: caller %d may act without the others' records", room, c)
		}
	}
	record(t, log, 1)
	if err := log.Close(); err != nil {
		t.Fatal(err)
	}
	if report := f.verify(); report.Problem != nil {
		t.Fatalf("room for %d: %v", room, report.Problem)
	}
	found, lost := f.decisions()
	written := 0
	for _, n := range found {
		written += n
	}
	if written+lost != callers*each+2 {
		t.Errorf("room for %d: %d written, %d reported as lost, want %d in all", room, written, lost, callers*each+2)
	}
	return grown
}

// A log that is closed while callers wait refuses them.
func TestCloseRefusesWaitingRecords(t *testing.T) {
	f := newFolder(t)
	log := f.open(f.config())
	closed := make(chan error, 1)
	failures := together(t, log, 4, 1, func() { go func() { closed <- log.Close() }() })
	if err := <-closed; err != nil {
		t.Error(err)
	}
	recorded := 0
	for _, err := range failures {
		if err == nil {
			recorded++
		} else if !errors.Is(err, audit.ErrClosed) {
			t.Error(err)
		}
	}
	f.proved(min(1, uint64(recorded)), uint64(recorded))
}

// envCallers is how many callers record at once in the program that writes until it
// is killed.
const envCallers = "AUDIT_TEST_CALLERS"

// recordUntilKilled has callers record at once, and print each decision when its
// record is written, as an access is then made.
func recordUntilKilled(dir string, callers int) int {
	log, err := audit.Open(audit.Config{StateDir: dir})
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	var wg sync.WaitGroup
	for c := range callers {
		wg.Go(func() {
			for n := 0; ; n++ {
				r := *sample()
				r.Decision = fmt.Sprintf("%d-%d-%d", os.Getpid(), c, n)
				if err := log.Record(&r); err != nil {
					fmt.Fprintln(os.Stderr, err)
					return
				}
				fmt.Println(r.Decision)
			}
		})
	}
	wg.Wait()
	return 1
}

// A process that is killed while callers record together leaves a record of every
// access that was made.
func TestKilledBetweenGroupAndEffect(t *testing.T) {
	f := newFolder(t)
	made := map[string]bool{}
	for round := range 10 {
		command := exec.CommandContext(t.Context(), os.Args[0])
		command.Env = []string{envWriter + "=" + f.dir, envCallers + "=8"}
		command.Stderr = os.Stderr
		out, err := command.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := command.Start(); err != nil {
			t.Fatal(err)
		}
		lines := bufio.NewReader(out)
		for n := 0; ; n++ {
			if n == 1+round*53 {
				if err := command.Process.Kill(); err != nil {
					t.Fatal(err)
				}
			}
			line, err := lines.ReadString('\n')
			if err != nil {
				break // without its end it was not printed in full
			}
			made[strings.TrimSpace(line)] = true
		}
		_ = command.Wait() // it was killed
		if report := f.verify(); report.Problem != nil {
			t.Fatalf("round %d: %v", round, report.Problem)
		}
		found, _ := f.decisions()
		for decision := range made {
			if found[decision] != 1 {
				t.Fatalf("round %d: access %s was made and is recorded %d times", round, decision, found[decision])
			}
		}
	}
	if len(made) < 10 {
		t.Errorf("only %d accesses were made", len(made))
	}
}

// Masks are the same whatever was masked before: other segments, other patterns of the
// same path, and segments that share the place in which a mask is kept.
func TestMasksDoNotDependOnEarlierOnes(t *testing.T) {
	f := newFolder(t)
	log := f.open(f.config())
	var want []string
	for i := range 2000 {
		r := *sample()
		segment := strings.Repeat("s", i%27) + fmt.Sprint(i%331)
		r.Path, r.Pattern = "/v1/"+segment, "/v1/*"
		text := "/v1/" + log.MaskPath(segment)
		if i%7 == 0 {
			r.Pattern, text = "/*/"+segment, "/"+log.MaskPath("v1")+"/"+segment
		}
		other := r
		other.Pattern = "/*/*"
		if err := log.RecordAll([]*authz.Record{&r, &r, &other}); err != nil {
			t.Fatal(err)
		}
		want = append(want, text, text, "/"+log.MaskPath("v1")+"/"+log.MaskPath(segment))
	}
	for i, entry := range f.entries(audit.Query{}) {
		if entry.Path != want[i] {
			t.Fatalf("record %d has path %s, want %s", i+1, entry.Path, want[i])
		}
	}
}
