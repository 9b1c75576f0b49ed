package gameday

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"os"
	"sync"
	"time"

	"github.com/chaperone-proxy/chaperone/audit"
	"github.com/chaperone-proxy/chaperone/authz"
	"github.com/chaperone-proxy/chaperone/configs"
	"github.com/chaperone-proxy/chaperone/governance/gameday"
	"github.com/chaperone-proxy/chaperone/internal/pilotrun"
)

// Config is an exercise to run.
type Config struct {
	// Chaperone is the path of the sidecar's executable.
	Chaperone string
	// Command starts [Rogue].
	Command []string
	// Dir is an empty folder, or one to make, which is kept; "" is a folder that is removed.
	Dir string
	// Auto has the exercise run the responder's commands itself.
	Auto bool
	// Seed decides when the plugin turns: between a half of After and After.
	Seed  uint64
	After time.Duration
	// Timeout is how long the responder has from the turn on, for all of it.
	Timeout time.Duration
	// Answers are the responder's, a line for each question.
	Answers io.Reader
	// Screen takes what the responder reads.
	Screen io.Writer
}

// ownEnd is how long after the exercise should have ended the plugin ends by itself.
const ownEnd = 5 * time.Minute

// settle is how long refusals are gathered before the alarm is shown.
const settle = time.Second

// run is one exercise.
type run struct {
	cfg     Config
	dir     string
	plugin  string
	started time.Time
	spec    configs.Sidecar
	servers *servers
	child   *pilotrun.Child
	events  *events
	output  *tail
	watch   *watch

	ended  time.Time // when the exercise began to end the plugin
	answer *gameday.Answer
}

// Run runs an exercise and returns its card. When it returns, the sidecar and the plugin have
// ended. An exercise that was interrupted, or whose plugin did not turn, has no card.
func Run(ctx context.Context, cfg Config) (card gameday.Card, err error) {
	r := &run{cfg: cfg, plugin: fmt.Sprintf("gameday-%d", cfg.Seed), started: time.Now(), events: newEvents(), output: &tail{}}
	dir, remove, err := prepare(cfg.Dir)
	if err != nil {
		return card, err
	}
	defer func() { err = errors.Join(err, remove()) }()
	r.dir = dir
	if r.servers, err = listen(ctx); err != nil {
		return card, err
	}
	defer r.servers.close()
	if err := r.servers.prove(ctx); err != nil {
		return card, err
	}
	if err := r.writeFiles(); err != nil {
		return card, err
	}
	if err := r.start(); err != nil {
		return card, err
	}
	err = r.exercise(ctx)
	r.ended = time.Now()
	if err = errors.Join(err, r.child.End(context.WithoutCancel(ctx)), r.lift(context.WithoutCancel(ctx))); err != nil {
		return card, r.explain(err)
	}
	m, err := r.measure(ctx)
	if err != nil {
		return card, err
	}
	card = gameday.Score(m)
	return card, r.keep(card)
}

// start starts the sidecar with the plugin, which gets its plan.
func (r *run) start() error {
	random := rand.New(rand.NewPCG(r.cfg.Seed, 0)) //nolint:gosec // an exercise that can be repeated
	half := max(r.cfg.After/2, 1)
	plan, err := json.Marshal(Plan{
		TurnAfter: half + time.Duration(random.Int64N(int64(half))), Until: r.started.Add(r.cfg.After + r.cfg.Timeout + ownEnd),
		Orders:  "https://" + hostPort(ordersHost, r.servers.orders) + "/orders",
		Reports: "https://" + hostPort(ordersHost, r.servers.orders) + "/reports",
		Name:    hostPort(nameHost, r.servers.collector), Collector: r.servers.collector.Addr().String(),
		Bypass: r.servers.bypass.Addr().String(), Metadata: gameday.MetadataService + ":80", Tunnel: tunnelHost,
	})
	if err != nil {
		return fmt.Errorf("write plan: %w", err)
	}
	r.child, err = pilotrun.Start(pilotrun.ChildConfig{
		Chaperone: r.cfg.Chaperone, File: r.file(sidecarFile), Spec: r.spec, Command: r.cfg.Command,
		Stdin: bytes.NewReader(plan), Stdout: r.events, Stderr: r.output, Exercise: "exercise",
	})
	return err
}

// exercise waits for the turn, shows the alarm, and has the responder act.
func (r *run) exercise(ctx context.Context) error {
	if _, err := r.child.AwaitPlugin(ctx); err != nil {
		return err
	}
	r.brief()
	if err := r.awaitTurn(ctx); err != nil {
		return err
	}
	if err := r.checkEarly(ctx); err != nil {
		return err
	}
	bounded, cancel := context.WithDeadline(ctx, r.events.turned().Add(r.cfg.Timeout))
	defer cancel()
	r.watch = newWatch(bounded, r.spec.Audit.File, r.events.turned())
	defer r.watch.stop()
	r.respond(bounded)
	if ctx.Err() != nil {
		return fmt.Errorf("the exercise was interrupted: %w", ctx.Err())
	}
	return nil
}

// awaitTurn waits until the plugin has turned.
func (r *run) awaitTurn(ctx context.Context) error {
	const patience = 30 * time.Second
	deadline := time.NewTimer(r.cfg.After + patience)
	defer deadline.Stop()
	select {
	case <-r.events.turning:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("the exercise was interrupted: %w", ctx.Err())
	case <-r.child.Ended():
		return errors.New("the plugin ended before it turned")
	case <-deadline.C:
		return errors.New("the plugin did not turn")
	}
}

// checkEarly refuses to go on if access was revoked before the turn: the time from the turn to
// the revocation, and what leaked, cannot be measured then.
func (r *run) checkEarly(ctx context.Context) error {
	q := audit.Query{File: r.spec.Audit.File, Filter: audit.Filter{Kind: string(authz.KindRevocation), Until: r.events.turned()}}
	for _, err := range audit.Read(ctx, q) {
		if err != nil {
			return fmt.Errorf("read the log of the exercise: %w", err)
		}
		return errors.New("access was revoked before the plugin turned; start again, and wait for the alarm")
	}
	return nil
}

// explain adds the end of what the sidecar and the plugin printed to an error.
func (r *run) explain(err error) error {
	if text := r.output.String(); text != "" {
		return fmt.Errorf("%w\n%s", err, text)
	}
	return err
}

// measure gathers what this exercise measured.
func (r *run) measure(ctx context.Context) (gameday.Measurement, error) {
	m := gameday.Measurement{
		Plugin: r.plugin, Seed: r.cfg.Seed, Auto: r.cfg.Auto, Started: r.started, Turned: r.events.turned(), PieceBytes: pieceBytes,
		Tried: r.events.tried(), Answer: r.answer,
	}
	reached := int(r.servers.reached.Load())
	m.Reached = &reached
	report, err := audit.Verify(audit.VerifyConfig{File: r.spec.Audit.File, StateDir: r.spec.StateDir})
	switch {
	case err != nil:
		m.ChainFault = err.Error()
	case report.Problem != nil:
		m.ChainFault = report.Problem.String()
	default:
		m.Chain = report.Keyed && report.Records > 0
	}
	o := gameday.NewObserver(m.Turned, r.ended)
	for e, err := range audit.Read(ctx, audit.Query{File: r.spec.Audit.File}) {
		if err != nil {
			return m, fmt.Errorf("read the log of the exercise: %w", err)
		}
		o.Add(&e)
	}
	log := o.Observed()
	m.Log = &log
	if before, after, last, whole := r.servers.leaks(log.Revoked.Add(gameday.InFlight)); whole {
		m.LeakedBefore, m.LeakedAfter, m.LastByte, m.Pieces = &before, &after, last, (before+after)/pieceBytes
	}
	m.Evidence, m.EvidenceFault = findEvidence(r.dir, log.Revoked)
	return m, nil
}

// keep writes the card into a folder that is kept, with what was printed.
func (r *run) keep(card gameday.Card) error {
	if r.cfg.Dir == "" {
		return nil
	}
	data, err := json.MarshalIndent(card, "", "  ")
	if err == nil {
		err = os.WriteFile(r.file(CardFile), append(data, '\n'), 0o600)
	}
	if err == nil {
		err = os.WriteFile(r.file(outputFile), []byte(r.output.String()), 0o600)
	}
	if err != nil {
		return fmt.Errorf("keep the card: %w", err)
	}
	return nil
}

// maxLine bounds a line of an event, and the end that is kept of what is printed.
const maxLine = 4 << 10

// events reads the lines of the plugin. It is a writer, so that a line may come in parts.
type events struct {
	turning chan struct{} // closed at the turn

	mu    sync.Mutex
	at    time.Time
	ways  map[string]int
	line  []byte
	parts bool // of a line that is too long
}

func newEvents() *events { return &events{turning: make(chan struct{}), ways: map[string]int{}} }

// Write implements io.Writer.
func (e *events) Write(data []byte) (int, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, b := range data {
		switch {
		case b == '\n':
			if !e.parts {
				e.take(e.line)
			}
			e.line, e.parts = e.line[:0], false
		case len(e.line) < maxLine:
			e.line = append(e.line, b)
		default:
			e.parts = true
		}
	}
	return len(data), nil
}

func (e *events) take(line []byte) {
	var one event
	if json.Unmarshal(line, &one) != nil {
		return
	}
	if !one.Turned.IsZero() && e.at.IsZero() {
		e.at = one.Turned
		close(e.turning)
	}
	for _, way := range gameday.Ways() {
		if one.Tried == way {
			e.ways[way]++
		}
	}
}

func (e *events) turned() time.Time {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.at
}

func (e *events) tried() map[string]int {
	e.mu.Lock()
	defer e.mu.Unlock()
	return maps.Clone(e.ways)
}

// tail keeps the end of what is written.
type tail struct {
	mu   sync.Mutex
	text []byte
}

// Write implements io.Writer.
func (t *tail) Write(data []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.text = append(t.text, data[max(0, len(data)-maxLine):]...)
	t.text = t.text[max(0, len(t.text)-maxLine):]
	return len(data), nil
}

func (t *tail) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return string(t.text)
}
