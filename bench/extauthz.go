package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/protobuf/proto"

	"github.com/chaperone-proxy/chaperone/authz"
	"github.com/chaperone-proxy/chaperone/internal/testenv"
)

// siteRules is how many rules the scenes around Envoy's door have.
const siteRules = 1000

// turns is how often the rows of these scenes take turns. The medians count: a
// busy moment of the machine lands on neighbours, or on no median.
const turns = 9

// party is who answers, or passes on, in a scene.
type party struct {
	name   string
	order  order          // but for its callers and length
	loader *loader        // nil: the scene's
	pids   []int          // of what is measured
	asks   *testenv.Envoy // the Envoy that sends the checks; nil: the loader does
	rounds []yield
	done   int // requests so far
	rss    int // KiB, the most that was seen
}

// press has every party take turns under the load of so many callers, and
// returns the median of each.
func press(ctx context.Context, l *loader, parties []*party, callers int, length time.Duration) error {
	for _, p := range parties {
		p.rounds = nil
	}
	for range turns {
		for _, p := range parties {
			if err := ctx.Err(); err != nil {
				return err
			}
			o := p.order
			o.Callers, o.Length, o.PIDs = callers, length/turns, p.pids
			from := l
			if p.loader != nil {
				from = p.loader
			}
			y, err := from.order(o)
			if err != nil {
				return fmt.Errorf("%s at %d: %w", p.name, callers, err)
			}
			p.rounds = append(p.rounds, y)
			p.done += y.Warm + y.Done
			rss := 0
			for _, pid := range p.pids {
				rss += rssOf(pid)
			}
			p.rss = max(p.rss, rss)
		}
	}
	return nil
}

// typical is the median of everything that the rounds saw.
func (p *party) typical() yield {
	pick := func(value func(yield) float64) float64 {
		var values []float64
		for _, y := range p.rounds {
			values = append(values, value(y))
		}
		slices.Sort(values)
		return values[len(values)/2]
	}
	y := yield{
		P50: time.Duration(pick(func(y yield) float64 { return float64(y.P50) })), P99: time.Duration(pick(func(y yield) float64 { return float64(y.P99) })),
		CPU: time.Duration(pick(func(y yield) float64 { return float64(y.CPU) })), Own: pick(func(y yield) float64 { return y.Own }),
		Elapsed: time.Second, Done: int(pick(yield.rate)),
	}
	for _, round := range p.rounds {
		y.Wrong += round.Wrong
	}
	return y
}

func mib(kib int) string { return fmt.Sprintf("%.1f MiB", float64(kib)/1024) }

// cells are the columns that these scenes have in common.
func (p *party) cells(callers int) []string {
	y := p.typical()
	return []string{
		p.name, fmt.Sprint(callers), fmt.Sprint(y.Done), us(y.P50), us(y.P99), fmt.Sprintf("%.1f µs", float64(y.CPU)/1000),
		fmt.Sprintf("%.0f %%", 100*y.Own),
	}
}

// doorsteps is what the scene of ext_authz has running.
type doorsteps struct {
	loader         *loader
	floor, ours    *party // over the unix socket
	floor2, ours2  *party // over TCP
	rivals         []*party
	missing        error // why there are no rivals
	processes      []*process
	sidecars       []*sidecar
	cpu, loaderCPU int
}

// Close ends everything.
func (d *doorsteps) Close() {
	if d.loader != nil {
		d.loader.Close()
	}
	for _, s := range d.sidecars {
		s.Close()
	}
	for _, p := range d.processes {
		p.Close()
	}
}

// extauthzScene measures checks over Envoy's protocol.
func extauthzScene(ctx context.Context, w *env) (_ *table, err error) {
	d, err := w.newDoorsteps(ctx, w.rivals)
	if err != nil {
		return nil, err
	}
	defer d.Close()
	t := &table{
		title: fmt.Sprintf("Checks of Envoy's ext_authz: %d rules, one connection, server on CPU %d and load on CPU %d, %d rounds in turn; every decision verified",
			siteRules, d.cpu, d.loaderCPU, turns),
		heads: []string{"server", "callers", "checks/s", "p50", "p99", "CPU/check", "the load's own CPU", "of the floor's checks/s", "p99", "CPU", "RSS", "wrong", "goal"},
	}
	all := append([]*party{d.floor, d.ours, d.floor2, d.ours2}, d.rivals...)
	for _, callers := range []int{1, 8, 64} {
		if err := press(ctx, d.loader, all, callers, w.length); err != nil {
			return nil, fmt.Errorf("%w\n%s%s", err, d.sidecars[0].stderr.String(), d.sidecars[1].stderr.String())
		}
		for _, p := range all {
			base := d.floor
			if p == d.ours2 || p == d.floor2 {
				base = d.floor2
			}
			p.row(t, callers, base, p == d.ours || p == d.ours2)
		}
	}
	if d.missing != nil {
		t.add("OPA, cedar-go, cel-go", "not measured: "+oneLine(d.missing))
	}
	return t, nil
}

// row adds the median of a party's rounds beside its floor's.
func (p *party) row(t *table, callers int, floor *party, ours bool) {
	y, base := p.typical(), floor.typical()
	share, slower := float64(y.Done)/float64(base.Done), ratio(y.P99, base.P99)
	cells, goal := p.cells(callers), ""
	if p == floor {
		cells = append(cells, "", "", "")
	} else {
		cells = append(cells, fmt.Sprintf("%.2f ×", share), fmt.Sprintf("%.2f ×", slower), fmt.Sprintf("%.2f ×", ratio(y.CPU, base.CPU)))
	}
	if ours && callers > 1 {
		least := 0.9
		if callers == 8 {
			least = 0.95
		}
		goal = fmt.Sprintf("checks/s at least %g ×: %s", least, verdict(share >= least))
		if callers == 8 {
			goal += "; p99 at most 1.1 ×: " + verdict(slower <= 1.1) + "; CPU at most 1.12 ×: " + verdict(ratio(y.CPU, base.CPU) <= 1.12)
		}
		goal += "; RSS at most 40 MiB: " + verdict(p.rss <= 40<<10)
	}
	wrong := fmt.Sprint(y.Wrong)
	if p.order.Blind {
		wrong = "decides nothing"
	}
	t.add(append(cells, mib(p.rss), wrong, goal)...)
}

// oneLine is an error for a cell of the table.
func oneLine(err error) string {
	const most = 200
	text := strings.Join(strings.Fields(err.Error()), " ")
	return text[:min(most, len(text))]
}

// newDoorsteps starts the floor and the sidecar on each kind of socket, the
// load, and the rivals if they are wanted.
func (w *env) newDoorsteps(ctx context.Context, rivals bool) (d *doorsteps, err error) {
	d = &doorsteps{}
	defer func() {
		if err != nil {
			d.Close()
		}
	}()
	if d.cpu, d.loaderCPU, err = cores(); err != nil {
		return d, err
	}
	if d.loader, err = startLoader(d.loaderCPU, nil); err != nil {
		return d, err
	}
	s, file := newSite(siteRules), w.file("site.json")
	for i, address := range []string{"unix:" + w.file("check.sock"), "127.0.0.1:0"} {
		name := fmt.Sprintf("door%d", i)
		sidecar, address, err := w.door(ctx, d.cpu, name, address, s.grant(), []string{pluginID})
		if err != nil {
			return d, err
		}
		d.sidecars = append(d.sidecars, sidecar)
		if i == 0 {
			d.ours = &party{name: "chaperone, unix socket", order: order{Check: address, Site: file}, pids: []int{sidecar.cmd.Process.Pid}}
			err = s.hear(ctx, address)
		} else {
			d.ours2 = &party{name: "chaperone, TCP", order: order{Check: address, Site: file}, pids: []int{sidecar.cmd.Process.Pid}}
		}
		if err != nil {
			return d, err
		}
	}
	if err := s.write(file); err != nil {
		return d, err
	}
	start := func(name, program, address string, blind bool, args ...string) (*party, error) {
		p, err := startProgram(d.cpu, program, append(args, file, address)...)
		if err != nil {
			return nil, err
		}
		d.processes = append(d.processes, p)
		return &party{name: name, order: order{Check: p.address, Site: file, Blind: blind}, pids: []int{p.cmd.Process.Pid}}, nil
	}
	if d.floor, err = start("grpc-go, empty handler, unix socket (floor)", "/proc/self/exe", "unix:"+w.file("floor.sock"), true, "role=check-floor"); err != nil {
		return d, err
	}
	if d.floor2, err = start("grpc-go, empty handler, TCP (floor)", "/proc/self/exe", "tcp:127.0.0.1:0", true, "role=check-floor"); err != nil {
		return d, err
	}
	if !rivals {
		return d, nil
	}
	program, err := w.buildRivals(ctx)
	if err != nil {
		d.missing = err
		return d, optional(err)
	}
	for _, r := range rivalNames() {
		p, err := start(r.label+", unix socket", program, "unix:"+w.file(r.name+".sock"), false, "serve", r.name)
		if err != nil {
			return d, err
		}
		d.rivals = append(d.rivals, p)
	}
	return d, nil
}

// optional returns nil for what may be left out, on machines where anything may.
func optional(err error) error {
	if os.Getenv("CHAPERONE_REQUIRE") == "1" {
		return fmt.Errorf("CHAPERONE_REQUIRE=1: %w", err)
	}
	return nil
}

type rivalName struct{ name, label string }

func rivalNames() []rivalName {
	return []rivalName{{"opa", "OPA, prepared and indexed"}, {"cedar-go", "cedar-go, a policy for each rule and method"}, {"cel-go", "cel-go, a program for each rule"}}
}

// buildRivals builds the program with the other engines, which has a module of
// its own.
func (w *env) buildRivals(ctx context.Context) (string, error) {
	program := w.file("rivals")
	if _, err := os.Stat(program); err == nil {
		return program, nil
	}
	root, err := testenv.Root()
	if err != nil {
		return "", err
	}
	cmd := exec.CommandContext(ctx, "go", "build", "-trimpath", "-o", program, ".")
	cmd.Dir = filepath.Join(root, "bench", "rivals")
	cmd.Env = append(os.Environ(), "GOWORK=off")
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build the rivals: %w: %s", err, out)
	}
	return program, nil
}

// door starts a sidecar that serves ext_authz, and returns where.
func (w *env) door(ctx context.Context, cpu int, name, address string, grant authz.Grant, spiffeIDs []string) (*sidecar, string, error) {
	more := map[string]any{"listen": map[string]any{"extAuthz": address}}
	if spiffeIDs != nil {
		more["spiffeIDs"] = spiffeIDs
	}
	err := w.sidecarFile(name, grant, more)
	if err != nil {
		return nil, "", err
	}
	sidecar, err := w.serve(ctx, cpu, w.file(name+".json"), w.file(name))
	if err != nil || strings.HasPrefix(address, "unix:") {
		return sidecar, address, err
	}
	status, err := statusOf(w.file(name))
	if err != nil {
		sidecar.Close()
		return nil, "", err
	}
	return sidecar, "tcp:" + status.door(string(authz.DoorExtAuthz)), nil
}

// sidecarFile writes NAME.json: a sidecar without the kernel, its grant, and
// what else its spec has to say. Its state folder is NAME.
func (w *env) sidecarFile(name string, grant authz.Grant, more map[string]any) error {
	spec := map[string]any{"plugin": "weather", "grants": []string{name + "-grant.json"}, "stateDir": name, "kernel": "off"}
	maps.Copy(spec, more)
	return errors.Join(w.document(name+".json", "Sidecar", spec), w.document(name+"-grant.json", "PluginGrant", grant))
}

func (w *env) document(name, kind string, spec any) error {
	text, err := json.Marshal(map[string]any{
		"apiVersion": "chaperone.dev/v1alpha1", "kind": kind, "metadata": map[string]any{"name": "weather"}, "spec": spec,
	})
	if err != nil {
		return err
	}
	return os.WriteFile(w.file(name), text, 0o600)
}

// hear asks a request that is to be allowed and one that is not, and keeps the
// answers for those that only have to return some.
func (s *site) hear(ctx context.Context, address string) error {
	conn, err := grpc.NewClient(address, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return err
	}
	client := authv3.NewAuthorizationClient(conn)
	for i, r := range s.Requests[:5] {
		answer, err := client.Check(ctx, check(i, r), grpc.WaitForReady(true))
		if err != nil {
			return errors.Join(err, conn.Close())
		}
		wire, err := proto.Marshal(answer)
		if err != nil {
			return errors.Join(err, conn.Close())
		}
		if r.Allowed {
			s.Allowed = wire
		} else {
			s.Denied = wire
		}
	}
	return conn.Close()
}

// growthScene asks very many checks of one sidecar and looks at its memory.
func growthScene(ctx context.Context, w *env) (*table, error) {
	d, err := w.newDoorsteps(ctx, false)
	if err != nil {
		return nil, err
	}
	defer d.Close()
	const step, callers = 1_000_000, 64
	t := &table{
		title: fmt.Sprintf("Memory of a sidecar while it answers checks over a unix socket, %d callers, its audit log on", callers),
		heads: []string{"checks", "took", "RSS", "wrong", "goal: no growth after the first million (2 MiB are noise)"},
	}
	var first, wrong int
	begun := time.Now()
	for done := 0; done < w.checks; {
		o := d.ours.order
		o.Callers, o.Count = callers, min(step, w.checks-done)
		y, err := d.loader.order(o)
		if err != nil {
			return nil, err
		}
		done, wrong = done+y.Done, wrong+y.Wrong
		rss := d.sidecars[0].rss()
		fmt.Fprintf(os.Stderr, "%d checks, %s\n", done, mib(rss)) // it takes minutes
		switch {
		case first == 0:
			first = rss
			t.add(fmt.Sprint(done), time.Since(begun).Round(time.Second).String(), mib(rss), fmt.Sprint(wrong), "")
		case done >= w.checks:
			t.add(fmt.Sprint(done), time.Since(begun).Round(time.Second).String(), mib(rss), fmt.Sprint(wrong), verdict(rss-first <= 2<<10))
		}
	}
	return t, nil
}

// enginesScene measures decisions alone, each engine in a process of its own.
func enginesScene(ctx context.Context, w *env) (*table, error) {
	t := &table{
		title: "Decisions without any transport, four of five allowed, every one verified; the fastest of 40 batches",
		heads: []string{"engine", "1 rule", "allocations", "100 rules", "allocations", "1,000 rules", "allocations"},
	}
	sizes := []int{1, 100, siteRules}
	ours := []string{"chaperone, Snapshot.Decide"}
	args := []string{"decide"}
	for _, n := range sizes {
		s := newSite(n)
		took, allocations, err := s.decide()
		if err != nil {
			return nil, err
		}
		ours = append(ours, nsPerOp(took), fmt.Sprint(allocations))
		args = append(args, w.file(fmt.Sprintf("site-%d.json", n)))
		if err := s.write(args[len(args)-1]); err != nil {
			return nil, err
		}
	}
	t.add(ours...)
	program, err := w.buildRivals(ctx)
	if err != nil {
		t.add("OPA, cedar-go, cel-go", "not measured: "+oneLine(err))
		return t, optional(err)
	}
	cmd := exec.CommandContext(ctx, program, args...)
	cmd.Stderr = os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("measure the rivals: %w", err)
	}
	var costs []struct {
		Engine                   string
		Rules                    int
		Nanoseconds, Allocations int64
	}
	if err := json.Unmarshal(out, &costs); err != nil {
		return nil, err
	}
	for _, r := range rivalNames() {
		row := []string{r.label}
		for _, n := range sizes {
			for _, cost := range costs {
				if cost.Engine == r.name && cost.Rules == n {
					row = append(row, nsPerOp(cost.Nanoseconds), fmt.Sprint(cost.Allocations))
				}
			}
		}
		t.add(row...)
	}
	return t, nil
}

func nsPerOp(n int64) string { return fmt.Sprintf("%d ns", n) }

// decide times Snapshot.Decide on the site's requests.
func (s *site) decide() (took, allocations int64, err error) {
	policy, problems := authz.Compile(authz.Input{Plugin: "weather", Grants: []authz.Grant{s.grant()}}, time.Now())
	if problems != nil {
		return 0, 0, fmt.Errorf("compile: %v", problems[0])
	}
	engine := &authz.Engine{}
	engine.Install(policy)
	snapshot, now := engine.Current(), time.Now()
	requests := make([]authz.Request, len(s.Requests))
	for i, r := range s.Requests {
		to, err := authz.NewDestination(authz.SchemeHTTPS, r.Host, r.Path)
		if err != nil {
			return 0, 0, err
		}
		requests[i] = authz.Request{Principal: "weather", Action: authz.Action{Method: r.Method}, Destination: to}
		if snapshot.Decide(requests[i], authz.Usage{}, now).Allowed() != r.Allowed {
			return 0, 0, fmt.Errorf("%s %s%s is decided wrongly", r.Method, r.Host, r.Path)
		}
	}
	turn := 0
	once := func() {
		snapshot.Decide(requests[turn%len(requests)], authz.Usage{}, now)
		turn++
	}
	return fastest(once), int64(testing.AllocsPerRun(len(requests), once)), nil
}

// fastest returns what once takes, in nanoseconds, in the fastest of many
// batches of some milliseconds, as the rivals measure it.
func fastest(once func()) int64 {
	const batches, length = 40, 25 * time.Millisecond
	n := 1
	for begun := time.Now(); time.Since(begun) < length; n++ {
		once()
	}
	best := int64(math.MaxInt64)
	for range batches {
		begun := time.Now()
		for range n {
			once()
		}
		best = min(best, int64(time.Since(begun))/int64(n))
	}
	return best
}
