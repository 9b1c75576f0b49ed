package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/chaperone-proxy/chaperone/internal/testenv"
	"github.com/chaperone-proxy/chaperone/internal/testenv/scenario"
)

// chaperonectl is the command beside chaperone, built once.
var chaperonectl = sync.OnceValues(func() (string, error) {
	if _, err := chaperone(); err != nil {
		return "", err
	}
	root, err := testenv.Root()
	if err != nil {
		return "", err
	}
	return goBuild(root, "chaperonectl", "./cmd/chaperonectl", "CGO_ENABLED=0")
})

// newGameday returns an env whose folder takes everything that exercises write.
func newGameday(t *testing.T) *env {
	t.Helper()
	testenv.Require(t, testenv.Superuser(), testenv.CgroupV2(), testenv.BTF())
	e := &env{t: t, dir: t.TempDir()}
	testenv.Must(t, os.Mkdir(e.file("tmp"), 0o755))
	e.env = []string{"CHAPERONE_REGISTRY=" + e.file("registry"), "TMPDIR=" + e.file("tmp")} // not the host's
	t.Cleanup(func() {
		if left := testenv.MustGet(os.ReadDir(e.file("tmp")))(t); len(left) > 0 {
			t.Errorf("left behind: %v", left)
		}
		for _, pid := range plugins(t) {
			t.Errorf("process %s of an exercise lives", pid)
		}
	})
	return e
}

// plugins returns the processes of chaperonectl of these tests.
func plugins(t *testing.T) (pids []string) {
	t.Helper()
	for _, link := range testenv.MustGet(filepath.Glob("/proc/[0-9]*/exe"))(t) {
		if to, err := os.Readlink(link); err == nil && to == testenv.MustGet(chaperonectl())(t) {
			pids = append(pids, filepath.Base(filepath.Dir(link)))
		}
	}
	return pids
}

func (e *env) gameday(args ...string) []string {
	e.t.Helper()
	return append([]string{testenv.MustGet(chaperonectl())(e.t), "plugin", "gameday", "--output", "json"}, args...)
}

// card is what these tests read of a score card.
type card struct {
	Passed   bool
	Grade    string
	Points   int
	Refusals map[string]int
	Evidence string
	Figures  []struct {
		ID, Why     string
		Points, Max int
	}
}

func (e *env) card(text string) (c card) {
	e.t.Helper()
	if err := json.Unmarshal([]byte(text), &c); err != nil {
		e.t.Fatalf("no card: %v\n%s", err, text)
	}
	return c
}

// loses checks which figures of a card have lost points.
func (e *env) loses(c card, want ...string) {
	e.t.Helper()
	for _, f := range c.Figures {
		if lost := f.Points < f.Max; lost != slices.Contains(want, f.ID) {
			e.t.Errorf("%s has %d of %d points: %s", f.ID, f.Points, f.Max, f.Why)
		}
	}
}

// TestGameday has the exercise respond by itself.
func TestGameday(t *testing.T) {
	e := newGameday(t)
	r := e.exec(e.gameday("--auto", "--seed", "7", "--after", "1s", "--timeout", "2m", "--dir", e.file("kept"))...)
	if r.status != 0 {
		t.Fatal(r)
	}
	c := e.card(r.stdout)
	e.loses(c)
	if !c.Passed || c.Grade != "A" || c.Refusals["guardrail"] == 0 || c.Refusals["destination_not_granted"] == 0 || c.Refusals["revoked"] == 0 {
		t.Errorf("%v", r)
	}
	if kept := e.card(string(testenv.MustGet(os.ReadFile(e.file("kept/card.json")))(t))); kept.Points != c.Points {
		t.Errorf("the kept card is another: %+v", kept)
	}
	if verified := e.chaperone("audit", "verify", "--config", e.file("kept/sidecar.yaml")); verified.status != 0 {
		t.Errorf("the kept log is not proved: %v", verified)
	}
	if again := e.exec(e.gameday("--auto", "--dir", e.file("kept"))...); again.status != 1 || !strings.Contains(again.stderr, "not empty") {
		t.Errorf("a second exercise takes the folder: %v", again)
	}
}

// TestGamedayUnanswered has nobody revoke.
func TestGamedayUnanswered(t *testing.T) {
	e := newGameday(t)
	r := e.exec(e.gameday("--seed", "8", "--after", "1s", "--timeout", "3s")...)
	c := e.card(r.stdout)
	if r.status != 1 || c.Passed || c.Grade != "F" || !strings.Contains(r.stdout, "not measured: access was not revoked") {
		t.Errorf("%v", r)
	}
	e.loses(c, "revoke", "cut", "leakedBefore", "leakedAfter", "admittedAfter", "evidence", "answerPieces", "answerDestination")
}

// TestGamedayEarly revokes before the plugin turns.
func TestGamedayEarly(t *testing.T) {
	e := newGameday(t)
	p := e.startCommand(e.gameday("--seed", "11", "--after", "4s", "--dir", e.file("kept"))...)
	eventually(t, "the plugin runs", func() (int, error) { return 0, e.running(p, "Plugin gameday-11 runs") })
	if r := e.chaperone("revoke", "--config", e.file("kept/sidecar.yaml"), "--reason", "too early"); r.status != 0 {
		t.Error(r)
	}
	if status := p.Wait(); status != 1 || !strings.Contains(p.Output.String(), "revoked before the plugin turned") {
		t.Errorf("status %d\n%s", status, p.Output.String())
	}
}

// startGameday starts an exercise without --auto and waits for its alarm.
func (e *env) startGameday(seed string) (p *scenario.Process, answers io.Writer) {
	e.t.Helper()
	args := e.gameday("--seed", seed, "--after", "1s", "--timeout", "2m", "--dir", e.file("kept"))
	cmd := e.command(context.WithoutCancel(e.t.Context()), args...)
	answers = testenv.MustGet(cmd.StdinPipe())(e.t)
	p = scenario.StartProcess(e.t, cmd)
	eventually(e.t, "the alarm", func() (int, error) { return 0, e.running(p, "ALARM: plugin gameday-"+seed) })
	return p, answers
}

// running returns an error while a process has not printed a text. It fails the test if the
// process has ended.
func (e *env) running(p *scenario.Process, text string) error {
	e.t.Helper()
	err := printed(p, text)
	select {
	case <-p.Ended:
		if err != nil {
			e.t.Fatal(err)
		}
	default:
	}
	return err
}

// TestGamedayByHand has a responder who halts the plugin on the whole host, keeps evidence,
// and is wrong about the destination.
func TestGamedayByHand(t *testing.T) {
	e := newGameday(t)
	p, answers := e.startGameday("9")
	if r := e.chaperone("revoke", "--plugin", "gameday-9", "--level", "halt", "--reason", "exercise"); r.status != 0 {
		t.Error(r)
	}
	eventually(t, "the question", func() (int, error) { return 0, e.running(p, "How many pieces") })
	if r := e.chaperone("support-bundle", "--config", e.file("kept/sidecar.yaml"), "--file", e.file("kept/mine.tar.gz")); r.status != 0 {
		t.Error(r)
	}
	const piece = 64
	ends := e.chaperone("audit", "query", "--config", e.file("kept/sidecar.yaml"), "--kind", "end", "--output", "json")
	var accesses []struct {
		Sent int64 `json:"sent_bytes"`
	}
	testenv.Must(t, json.Unmarshal([]byte(ends.stdout), &accesses))
	sent := int64(0)
	for _, one := range accesses {
		sent += one.Sent
	}
	_ = testenv.MustGet(fmt.Fprintf(answers, "%d\nevil.gameday.test\n", sent/piece))(t)
	<-p.Ended
	c := e.card(string(testenv.MustGet(os.ReadFile(e.file("kept/card.json")))(t)))
	e.loses(c, "answerDestination")
	if status := p.Cmd.ProcessState.ExitCode(); status != 0 || c.Grade != "A" || c.Evidence != "mine.tar.gz" {
		t.Errorf("status %d\n%s", status, p.Output.String())
	}
	var host struct{ Revocations []json.RawMessage }
	testenv.Must(t, json.Unmarshal(testenv.MustGet(os.ReadFile(e.file("registry/host-revocations.json")))(t), &host))
	if len(host.Revocations) > 0 {
		t.Errorf("left in the host's revocations: %s", host.Revocations)
	}
}

// TestGamedayInterrupted interrupts an exercise: there is no card, and nothing is left.
func TestGamedayInterrupted(t *testing.T) {
	e := newGameday(t)
	p, _ := e.startGameday("10")
	testenv.Must(t, p.Cmd.Process.Signal(syscall.SIGINT))
	select {
	case <-p.Ended:
	case <-time.After(2 * time.Minute):
		t.Fatalf("it goes on:\n%s", p.Output.String())
	}
	if status := p.Cmd.ProcessState.ExitCode(); status != 1 || !strings.Contains(p.Output.String(), "interrupted") {
		t.Errorf("status %d\n%s", status, p.Output.String())
	}
	if _, err := os.Stat(e.file("kept/card.json")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("an interrupted exercise has a card: %v", err)
	}
}
