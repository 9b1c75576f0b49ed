package gameday

import (
	"bytes"
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"os/signal"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

// Plan is what the plugin of an exercise does. It comes by standard input, so that neither
// its command line nor its environment shows a responder what will happen.
type Plan struct {
	// TurnAfter is how long the plugin behaves.
	TurnAfter time.Duration `json:"turnAfter"`
	// Until ends the plugin and its child by themselves, if neither the sidecar nor the exercise
	// lives to end them.
	Until time.Time `json:"until"`
	// Orders is the granted URL that is read, and Reports the granted one that is posted to.
	Orders  string `json:"orders"`
	Reports string `json:"reports"`
	// Name is a host and port that are not granted, and Collector its address.
	Name      string `json:"name"`
	Collector string `json:"collector"`
	// Bypass is an address on which a TCP and a UDP socket listen.
	Bypass string `json:"bypass"`
	// Metadata is the address of the metadata service of clouds.
	Metadata string `json:"metadata"`
	// Tunnel is the domain below which names carry data.
	Tunnel string `json:"tunnel"`
	// Child is the one that the turned plugin starts.
	Child bool `json:"child,omitempty"`
}

// The habits of the plugin.
const (
	pieceBytes  = 64                     // of a leak
	pieceEvery  = 50 * time.Millisecond  // of one stream
	orderEvery  = 100 * time.Millisecond // a request of the plugin that behaves
	probeEvery  = 200 * time.Millisecond // a round of attempts
	probeWithin = time.Second            // for one attempt
	maxPlan     = 64 << 10               // bytes
	tunnelLabel = 24                     // bytes of data in one name
)

// event is a line that the plugin prints for the exercise.
type event struct {
	Turned time.Time `json:"turned,omitzero"`
	Tried  string    `json:"tried,omitempty"` // a way out
}

// rogue is the running plugin.
type rogue struct {
	plan   Plan
	client *http.Client
	names  atomic.Uint64 // asked for by the tunnel
	mu     sync.Mutex
	out    io.Writer
}

// Rogue is the plugin: it reads a [Plan] and behaves until it turns. It ignores SIGTERM.
// Its error is one of its plan. command starts this program as the plugin, for
// the child that it starts.
func Rogue(ctx context.Context, in io.Reader, out io.Writer, command []string) error {
	data, err := io.ReadAll(io.LimitReader(in, maxPlan))
	if err != nil {
		return fmt.Errorf("read plan: %w", err)
	}
	r := &rogue{out: out, client: &http.Client{Transport: &http.Transport{Proxy: http.ProxyFromEnvironment}}}
	if err := json.Unmarshal(data, &r.plan); err != nil {
		return fmt.Errorf("read plan: %w", err)
	}
	if r.plan.Orders == "" {
		return errors.New("read plan: it has no orders; chaperonectl plugin gameday starts this program")
	}
	ctx = context.WithoutCancel(ctx) // a signal does not end it
	ctx, cancel := context.WithDeadline(ctx, r.plan.Until)
	defer cancel()
	signal.Ignore(syscall.SIGTERM, syscall.SIGHUP, syscall.SIGINT, syscall.SIGPIPE)
	if !r.plan.Child {
		r.behave(ctx)
		r.report(event{Turned: time.Now()})
		_ = r.fork(command) // the parent goes on by itself
	}
	go r.stream(ctx)
	for ctx.Err() == nil {
		r.probe(ctx)
		time.Sleep(probeEvery)
	}
	return nil
}

// report prints an event. A standard output that is closed does not stop the plugin.
func (r *rogue) report(e event) {
	line, err := json.Marshal(e)
	if err != nil {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	_, _ = r.out.Write(append(line, '\n'))
}

// behave reads orders until it is time to turn.
func (r *rogue) behave(ctx context.Context) {
	for turn := time.Now().Add(r.plan.TurnAfter); time.Now().Before(turn); {
		r.order(ctx)
		time.Sleep(min(orderEvery, max(0, time.Until(turn))))
	}
}

func (r *rogue) order(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, probeWithin)
	defer cancel()
	r.send(ctx, http.MethodGet, r.plan.Orders, nil)
}

// send sends a request, whose answer does not matter.
func (r *rogue) send(ctx context.Context, method, url string, body io.Reader) {
	request, err := http.NewRequestWithContext(ctx, method, url, body)
	if err != nil {
		return
	}
	answer, err := r.client.Do(request)
	if err != nil {
		return
	}
	_, _ = io.Copy(io.Discard, io.LimitReader(answer.Body, maxPlan))
	_ = answer.Body.Close()
}

// fork starts a child in a session of its own, which goes on without its parent.
func (r *rogue) fork(command []string) error {
	plan := r.plan
	plan.Child = true
	data, err := json.Marshal(plan)
	if err != nil {
		return err
	}
	cmd := exec.Command(command[0], command[1:]...) //nolint:noctx // it outlives its parent: that is the exercise
	cmd.Stdin, cmd.Stdout = bytes.NewReader(data), os.Stdout
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return err
	}
	go func() { _ = cmd.Wait() }()
	return nil
}

// stream leaks by the granted POST, in pieces over one request as long as it lasts.
func (r *rogue) stream(ctx context.Context) {
	for ctx.Err() == nil {
		read, write := io.Pipe()
		go func() {
			for {
				if _, err := write.Write(piece()); err != nil {
					return
				}
				time.Sleep(pieceEvery)
			}
		}()
		r.send(ctx, http.MethodPost, r.plan.Reports, read)
		_ = read.CloseWithError(io.ErrClosedPipe)
		time.Sleep(pieceEvery)
	}
}

// piece is one piece of a leak.
func piece() []byte { return []byte(strings.Repeat("x", pieceBytes-1) + "\n") }

// probe tries each way out once.
func (r *rogue) probe(ctx context.Context) {
	var all sync.WaitGroup
	for way, attempt := range map[string]func(context.Context){
		"bypass":    r.bypass,
		"collector": func(ctx context.Context) { dialAndSend(ctx, "tcp", r.plan.Collector) },
		"metadata":  func(ctx context.Context) { dialAndSend(ctx, "tcp", r.plan.Metadata) },
		"name": func(ctx context.Context) {
			r.send(ctx, http.MethodPost, "http://"+r.plan.Name+"/", bytes.NewReader(piece()))
		},
		"dns": func(ctx context.Context) {
			label := hex.EncodeToString(fmt.Appendf(nil, "%0*d", tunnelLabel, r.names.Add(1)))
			_, _ = net.DefaultResolver.LookupHost(ctx, label+"."+r.plan.Tunnel)
		},
	} {
		all.Go(func() {
			ctx, cancel := context.WithTimeout(ctx, probeWithin)
			defer cancel()
			r.report(event{Tried: way})
			attempt(ctx)
		})
	}
	all.Go(func() { r.order(ctx) })
	all.Wait()
}

func (r *rogue) bypass(ctx context.Context) {
	dialAndSend(ctx, "tcp", r.plan.Bypass)
	dialAndSend(ctx, "udp", r.plan.Bypass)
}

// dialAndSend sends a piece by a socket of its own.
func dialAndSend(ctx context.Context, network, address string) {
	var d net.Dialer
	conn, err := d.DialContext(ctx, network, address)
	if err != nil {
		return
	}
	_, _ = conn.Write(piece())
	_ = conn.Close()
}
