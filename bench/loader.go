package main

import (
	"bufio"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"slices"
	"syscall"
	"time"

	"github.com/chaperone-proxy/chaperone/internal/testenv"
)

// The loader is the load of the scenes around Envoy's door: a process of its own
// on a CPU of its own, with as little work for each request as there can be, so
// that it is not what is measured. It takes orders on its standard input, a line
// of JSON each, and answers with a line of JSON.

// order is one load.
type order struct {
	// Check is where to ask ext_authz checks, unix:PATH or tcp:HOST:PORT; Get is
	// where to send GETs. One of them is set.
	Check, Get string
	// Site is the file of the requests.
	Site string
	// Port makes GETs those to a proxy, for a whole URL with this port; "" leaves
	// only the path in their first line.
	Port string
	// Header is added to every GET, with its line end.
	Header string
	// Callers is how many requests are on their way at any time: on one
	// connection those of Check, on one each those of Get.
	Callers int
	// The load ends after Length, or after Count requests where that is not 0.
	Length time.Duration
	Count  int
	// PIDs are measured: their CPU time.
	PIDs []int
	// Blind accepts wrong answers: a floor decides nothing.
	Blind bool
}

// yield is what a load has seen.
type yield struct {
	Done, Wrong int
	Warm        int    // done before, to warm up
	First       string // error
	Elapsed     time.Duration
	P50, P99    time.Duration
	CPU         time.Duration // of what is measured, for each request
	Own         float64       // CPU time of the loader, as a share of Elapsed
	Failed      string        // why there is no result
}

func (y yield) rate() float64 { return float64(y.Done) / y.Elapsed.Seconds() }

// loaderMain is the role "loader".
func loaderMain() error {
	orders, answers := json.NewDecoder(bufio.NewReader(os.Stdin)), json.NewEncoder(os.Stdout)
	sites := map[string]*site{}
	for {
		var o order
		if err := orders.Decode(&o); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return err
		}
		y, err := o.carryOut(sites)
		if err != nil {
			y.Failed = err.Error()
		}
		if err := answers.Encode(y); err != nil {
			return err
		}
	}
}

// tally is what a kind of load counts.
type tally struct {
	took  []time.Duration
	done  int
	wrong int
	first string
}

func (t *tally) mistake(form string, about ...any) {
	if t.wrong == 0 {
		t.first = fmt.Sprintf(form, about...)
	}
	t.wrong++
}

// carryOut warms up, then measures.
func (o order) carryOut(sites map[string]*site) (yield, error) {
	s := sites[o.Site]
	if s == nil {
		s = new(site)
		text, err := os.ReadFile(o.Site)
		if err == nil {
			err = json.Unmarshal(text, s)
		}
		if err != nil {
			return yield{}, err
		}
		sites[o.Site] = s
	}
	load, err := o.connect(s)
	if err != nil {
		return yield{}, err
	}
	defer load.close()
	warm := o
	warm.Length, warm.Count = min(o.Length/4, time.Second/4), 0
	warmed, err := load.run(warm)
	if err != nil {
		return yield{}, err
	}
	measured := func() (total time.Duration) {
		for _, pid := range o.PIDs {
			total += cpuOf(pid)
		}
		return total
	}
	cpu, own, began := measured(), cpuOf(os.Getpid()), time.Now()
	t, err := load.run(o)
	elapsed := time.Since(began)
	if err != nil || t.done == 0 {
		return yield{}, errors.Join(err, fmt.Errorf("%d requests were done", t.done))
	}
	y := yield{
		Done: t.done, Warm: warmed.done, Wrong: t.wrong + warmed.wrong, First: cmp.Or(t.first, warmed.first), Elapsed: elapsed,
		CPU: (measured() - cpu) / time.Duration(t.done), Own: float64(cpuOf(os.Getpid())-own) / float64(elapsed),
	}
	slices.Sort(t.took)
	y.P50, y.P99 = t.took[len(t.took)/2], t.took[len(t.took)*99/100]
	return y, nil
}

// loading is one kind of load, connected.
type loading interface {
	run(o order) (*tally, error)
	close()
}

func (o order) connect(s *site) (loading, error) {
	if o.Check != "" {
		return newAsker(o, s)
	}
	return newGetter(o, s)
}

// loader is the other end: the load process as the scenes see it.
type loader struct {
	process
	orders  *json.Encoder
	answers *json.Decoder
	stdin   io.Closer
}

// startLoader starts one on a CPU, in a cgroup if there is one.
func startLoader(cpu int, group *testenv.Cgroup) (*loader, error) {
	l := &loader{}
	l.cmd = exec.Command("/proc/self/exe", "role=loader") //nolint:noctx // this program; ended by Close
	l.cmd.Stderr = os.Stderr
	l.cmd.SysProcAttr = &syscall.SysProcAttr{}
	if group != nil {
		l.cmd.SysProcAttr = group.SysProcAttr()
	}
	l.cmd.SysProcAttr.Pdeathsig = syscall.SIGKILL
	in, err := l.cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	out, err := l.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	l.orders, l.answers, l.stdin = json.NewEncoder(in), json.NewDecoder(out), in
	return l, startOn(cpu, l.cmd)
}

func (l *loader) order(o order) (yield, error) {
	if err := l.orders.Encode(o); err != nil {
		return yield{}, err
	}
	var y yield
	if err := l.answers.Decode(&y); err != nil {
		return yield{}, fmt.Errorf("read the loader's result: %w", err)
	}
	if y.Failed != "" {
		return y, errors.New(y.Failed)
	}
	if y.Wrong > 0 {
		return y, fmt.Errorf("%d of %d answers were wrong, the first: %s", y.Wrong, y.Done, y.First)
	}
	return y, nil
}
