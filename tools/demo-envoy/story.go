package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path"
	"path/filepath"
	"strings"
	"time"
)

// step is one scene. needs says what is missing to show it.
type step struct {
	title string
	needs string
	do    func(ctx context.Context, w *world) error
}

// story returns the steps, each with what it needs and is not there.
func story(w *world) []step {
	kernel := ""
	if !w.root {
		kernel = "it takes root to have the kernel hold a program; run make demo-envoy as root to see it"
	}
	return []step{
		{"A plugin that knows nothing of Chaperone calls the API, through Envoy", "", granted},
		{"It tries a host that was not granted", "", anotherHost},
		{"It tries a path that was not granted", "", anotherPath},
		{"It tries to go around Envoy", kernel, around},
		{"Its access is cut while Envoy streams to it without end, and given back", "", cut},
		{"The sidecar is killed under a stream", "", killed},
		{"The audit log proves itself", "", audited},
	}
}

// expect fails the demonstration when something is not as it should be.
func expect(ok bool, r result, format string, args ...any) error {
	if ok {
		return nil
	}
	return fmt.Errorf(format+"\n--- stdout\n%s--- stderr\n%s", append(args, r.stdout, r.stderr)...)
}

func granted(ctx context.Context, w *world) error {
	r, err := w.ask(ctx, "-i", w.url("/v1/forecast/london"))
	if err != nil {
		return err
	}
	show(strings.ReplaceAll(r.stdout, w.api.Token(), "THE API'S TOKEN"), 1)
	if err := expect(strings.Contains(r.stdout, "200 OK"), r, "the call did not work"); err != nil {
		return err
	}
	requests := w.api.Requests()
	last := requests[len(requests)-1]
	if last.Header.Get("Authorization") != "Bearer "+w.api.Token() || last.SNI != apiHost {
		return fmt.Errorf("the API received %+v", last)
	}
	count, err := w.envoy.Counter(ctx, fmt.Sprintf("cluster.weather/read-forecast/%s_%d.upstream_rq_total", apiHost, w.api.Addr.Port()))
	if err != nil {
		return err
	}
	clusters, err := w.envoy.Admin(ctx, http.MethodGet, "/clusters")
	if err != nil {
		return err
	}
	if count == 0 && !strings.Contains(clusters, "rq_success::1") {
		return fmt.Errorf("not carried by Envoy:\n%s", clusters)
	}
	proved("the plugin sent plain http and no credential; Envoy carried it, and the API received TLS for")
	proved("%s by a rule that states TLS 1.3 and addresses, with the bearer token from Vault", apiHost)
	return nil
}

// showRefusal prints what of a refusal's body helps its reader, and returns the
// reason; "" without a remedy.
func showRefusal(body string) string {
	var refusal struct{ Type, Detail, Remedy string }
	if err := json.Unmarshal([]byte(body), &refusal); err != nil || refusal.Remedy == "" {
		show(body, 3)
		return ""
	}
	show(refusal.Type+"\n"+refusal.Detail+"\nremedy: "+refusal.Remedy, 3)
	return path.Base(refusal.Type)
}

func anotherHost(ctx context.Context, w *world) error {
	before := w.api.Total()
	r, err := w.ask(ctx, "--noproxy", "", "--proxy", "http://"+w.via, "http://evil.example/")
	if err != nil {
		return err
	}
	ok := showRefusal(r.stdout) == "destination_not_granted"
	if err := expect(ok, r, "the refusal does not say what to ask for"); err != nil {
		return err
	}
	return w.untouched(before, "the name was not looked up, and the plugin was told what to ask for")
}

// untouched fails when anything has reached the API since.
func (w *world) untouched(before int, what string) error {
	if got := w.api.Total(); got != before {
		return fmt.Errorf("%d requests reached the API", got-before)
	}
	proved("nothing reached the API; %s", what)
	return nil
}

func anotherPath(ctx context.Context, w *world) error {
	before := w.api.Total()
	r, err := w.ask(ctx, w.url("/v1/admin"))
	if err != nil {
		return err
	}
	ok := showRefusal(r.stdout) == "path_not_granted" && strings.Contains(r.stdout, `ask for paths: [/v1/admin]`)
	if err := expect(ok, r, "the refusal does not say what to ask for"); err != nil {
		return err
	}
	return w.untouched(before, "Envoy asked about the request, and gave the sidecar's answer")
}

func around(ctx context.Context, w *world) error {
	before := w.api.Total()
	exits, err := filepath.Glob(filepath.Join(w.dir, "state/envoy/exit/*.sock"))
	if err != nil || len(exits) == 0 {
		return errors.Join(errors.New("there are no exits"), err)
	}
	for _, way := range []struct {
		what string
		args []string
	}{
		{"the API's own address", []string{"-k", w.api.URL("127.0.0.1", "/open")}},
		{"Envoy's socket", []string{"--unix-socket", filepath.Join(w.dir, "state/envoy/plugin.sock"), w.url("/v1/forecast/london")}},
		{"the sidecar's exits", []string{"--unix-socket", exits[0], w.url("/v1/forecast/london")}},
		{"another name in Host", []string{"-H", "Host: evil.example", w.url("/v1/forecast/london")}},
	} {
		r, err := w.ask(ctx, append(way.args, "-w", "%{http_code}")...)
		if err != nil {
			return err
		}
		show(r.stdout+r.stderr, 1)
		if err := expect(!strings.HasSuffix(r.stdout, "200"), r, "%s is a way around", way.what); err != nil {
			return err
		}
	}
	return w.untouched(before, "Envoy is the only way out")
}

// revoked is what chaperone revoke answers.
type revoked struct {
	ID  string  `json:"id"`
	Cut int     `json:"cut"`
	MS  float64 `json:"ms"`
}

func cut(ctx context.Context, w *world) error {
	download, err := w.stream(ctx)
	if err != nil {
		return err
	}
	asked := time.Now()
	r, err := w.chaperone(ctx, "revoke", "--config", w.config(), "--reason", "the demonstration", "--output", "json")
	if err != nil {
		return err
	}
	var said revoked
	if err := json.Unmarshal([]byte(r.stdout), &said); err != nil {
		return expect(false, r, "revoke answered no JSON: %v", err)
	}
	if err := expect(r.status == 0 && said.Cut > 0, r, "nothing was cut"); err != nil {
		return err
	}
	ended, err := download.wait(ctx)
	if err != nil {
		return err
	}
	took := ended.Sub(asked)
	if took > time.Second {
		return fmt.Errorf("the stream ended %s after revoke was started, which is more than a second", took)
	}
	if err := w.idle(ctx); err != nil {
		return err
	}
	proved("the sidecar cut it in %.1f ms; curl's end of the stream was gone %d ms after the command was started", said.MS, took.Milliseconds())
	show(download.output.String(), 1)
	if r, err = w.ask(ctx, "-w", "%{http_code}", "-o", "/dev/null", w.url("/v1/forecast/london")); err != nil {
		return err
	}
	if err := expect(!strings.HasSuffix(r.stdout, "200"), r, "it works although it was revoked"); err != nil {
		return err
	}
	if r, err = w.chaperone(ctx, "restore", said.ID, "--config", w.config(), "--reason", "the demonstration goes on"); err != nil {
		return err
	}
	if err := expect(r.status == 0, r, "restore did not work"); err != nil {
		return err
	}
	return w.worksAgain(ctx)
}

// worksAgain waits until Envoy has its routes back.
func (w *world) worksAgain(ctx context.Context) error {
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(100 * time.Millisecond) {
		r, err := w.ask(ctx, "-w", "%{http_code}", "-o", "/dev/null", w.url("/v1/forecast/london"))
		if err != nil {
			return err
		}
		if strings.HasSuffix(r.stdout, "200") {
			proved("after restore the same call works again")
			return nil
		}
		if time.Now().After(deadline) {
			return expect(false, r, "it does not work after restore")
		}
	}
}

// download is a stream without end.
type download struct {
	*process
	ending chan time.Time
}

// stream starts one and returns when the API serves it.
func (w *world) stream(ctx context.Context) (*download, error) {
	cmd := w.curl(ctx, "-o", "/dev/null", w.url("/stream"))
	cmd.Stdout = io.Discard
	p, err := start(cmd)
	if err != nil {
		return nil, err
	}
	d := &download{p, make(chan time.Time, 1)}
	go func() { <-p.ended; d.ending <- time.Now() }()
	bounded, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	if err := w.api.WaitStreams(bounded, 1); err != nil {
		p.end()
		return nil, fmt.Errorf("the stream did not start: %w\n%s", err, p.output.String())
	}
	return d, nil
}

// wait returns when the stream ended.
func (d *download) wait(ctx context.Context) (time.Time, error) {
	select {
	case at := <-d.ending:
		return at, nil
	case <-ctx.Done():
	case <-time.After(20 * time.Second):
	}
	d.end()
	return time.Time{}, errors.New("the stream goes on")
}

// idle waits until the API serves no stream.
func (w *world) idle(ctx context.Context) error {
	bounded, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	if err := w.api.WaitStreams(bounded, 0); err != nil {
		return fmt.Errorf("the API still serves it: %w", err)
	}
	return nil
}

func killed(ctx context.Context, w *world) error {
	download, err := w.stream(ctx)
	if err != nil {
		return err
	}
	say("$ kill -9 %d", w.sidecar.cmd.Process.Pid)
	if err := w.sidecar.cmd.Process.Kill(); err != nil {
		return err
	}
	<-w.sidecar.ended
	if _, err := download.wait(ctx); err != nil {
		return err
	}
	if err := w.idle(ctx); err != nil {
		return err
	}
	before := w.api.Total()
	for range 5 {
		r, err := w.ask(ctx, "-w", "%{http_code}", "-o", "/dev/null", w.url("/v1/forecast/london"))
		if err != nil {
			return err
		}
		if err := expect(!strings.HasSuffix(r.stdout, "200"), r, "it works although no sidecar lives"); err != nil {
			return err
		}
	}
	return w.untouched(before, "the stream has ended, and Envoy, which lives, has no way out")
}

func audited(ctx context.Context, w *world) error {
	r, err := w.chaperone(ctx, "audit", "verify", "--config", w.config())
	if err != nil {
		return err
	}
	show(r.stdout+r.stderr, 3)
	if err := expect(r.status == 0, r, "the log does not verify"); err != nil {
		return err
	}
	data, err := os.ReadFile(filepath.Join(w.dir, "state", "audit.jsonl"))
	if err != nil {
		return err
	}
	for _, part := range []string{
		`"door":"ext_authz"`, `"reason":"granted"`, `"reason":"destination_not_granted"`, `"reason":"path_not_granted"`, `"kind":"revocation"`,
	} {
		if !strings.Contains(string(data), part) {
			return fmt.Errorf("%s is not in the log", part)
		}
	}
	if strings.Contains(string(data), w.api.Token()) {
		return errors.New("the token is in the log")
	}
	admitted := strings.Count(string(data), `"allowed":true,"reason":"granted"`)
	if reached := w.api.Total(); admitted < reached {
		return fmt.Errorf("%d requests reached the API, and %d were admitted", reached, admitted)
	}
	proved("the chain holds also after kill -9; every one of the %d requests that reached the API was admitted first", w.api.Total())
	return nil
}
