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

// step is one step of the demo. needs is the missing requirement, if any.
type step struct {
	title string
	needs string
	do    func(ctx context.Context, e *env) error
}

// steps returns the steps, each with a missing requirement.
func steps(e *env) []step {
	kernel := ""
	if !e.root {
		kernel = "confining a program with the kernel needs root; run make demo-envoy as root to see it"
	}
	return []step{
		{"A plugin without any knowledge of Chaperone calls the API, through Envoy", "", granted},
		{"It tries a host that was not granted", "", anotherHost},
		{"It tries a path that was not granted", "", anotherPath},
		{"It tries to bypass Envoy", kernel, around},
		{"Its access is revoked while Envoy streams to it without end, and restored", "", cut},
		{"The sidecar is killed during a stream", "", killed},
		{"The audit log is verified", "", audited},
	}
}

// expect returns an error with the result unless ok.
func expect(ok bool, r result, format string, args ...any) error {
	if ok {
		return nil
	}
	return fmt.Errorf(format+"\n--- stdout\n%s--- stderr\n%s", append(args, r.stdout, r.stderr)...)
}

func granted(ctx context.Context, e *env) error {
	r, err := e.ask(ctx, "-i", e.url("/v1/forecast/london"))
	if err != nil {
		return err
	}
	show(strings.ReplaceAll(r.stdout, e.api.Token(), "THE API'S TOKEN"), 1)
	if err := expect(strings.Contains(r.stdout, "200 OK"), r, "the call did not work"); err != nil {
		return err
	}
	requests := e.api.Requests()
	last := requests[len(requests)-1]
	if last.Header.Get("Authorization") != "Bearer "+e.api.Token() || last.SNI != apiHost {
		return fmt.Errorf("the API received %+v", last)
	}
	count, err := e.envoy.Counter(ctx, fmt.Sprintf("cluster.weather/read-forecast/%s_%d.upstream_rq_total", apiHost, e.api.Addr.Port()))
	if err != nil {
		return err
	}
	clusters, err := e.envoy.Admin(ctx, http.MethodGet, "/clusters")
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

// showRefusal prints type, detail and remedy of a refusal's body, and returns
// the reason; "" without a remedy.
func showRefusal(body string) string {
	var refusal struct{ Type, Detail, Remedy string }
	if err := json.Unmarshal([]byte(body), &refusal); err != nil || refusal.Remedy == "" {
		show(body, 3)
		return ""
	}
	show(refusal.Type+"\n"+refusal.Detail+"\nremedy: "+refusal.Remedy, 3)
	return path.Base(refusal.Type)
}

func anotherHost(ctx context.Context, e *env) error {
	before := e.api.Total()
	r, err := e.ask(ctx, "--noproxy", "", "--proxy", "http://"+e.via, "http://evil.example/")
	if err != nil {
		return err
	}
	ok := showRefusal(r.stdout) == "destination_not_granted"
	if err := expect(ok, r, "the refusal has no remedy"); err != nil {
		return err
	}
	return e.untouched(before, "the name was not resolved, and the plugin got the remedy")
}

// untouched returns an error if a request has reached the API since.
func (e *env) untouched(before int, what string) error {
	if got := e.api.Total(); got != before {
		return fmt.Errorf("%d requests reached the API", got-before)
	}
	proved("no request reached the API; %s", what)
	return nil
}

func anotherPath(ctx context.Context, e *env) error {
	before := e.api.Total()
	r, err := e.ask(ctx, e.url("/v1/admin"))
	if err != nil {
		return err
	}
	ok := showRefusal(r.stdout) == "path_not_granted" && strings.Contains(r.stdout, `ask for paths: [/v1/admin]`)
	if err := expect(ok, r, "the refusal has no remedy"); err != nil {
		return err
	}
	return e.untouched(before, "Envoy sent a Check for the request, and forwarded the sidecar's answer")
}

func around(ctx context.Context, e *env) error {
	before := e.api.Total()
	exits, err := filepath.Glob(filepath.Join(e.dir, "state/envoy/exit/*.sock"))
	if err != nil || len(exits) == 0 {
		return errors.Join(errors.New("there are no egress sockets"), err)
	}
	for _, way := range []struct {
		what string
		args []string
	}{
		{"the API's own address", []string{"-k", e.api.URL("127.0.0.1", "/open")}},
		{"Envoy's socket", []string{"--unix-socket", filepath.Join(e.dir, "state/envoy/plugin.sock"), e.url("/v1/forecast/london")}},
		{"the sidecar's egress sockets", []string{"--unix-socket", exits[0], e.url("/v1/forecast/london")}},
		{"another name in Host", []string{"-H", "Host: evil.example", e.url("/v1/forecast/london")}},
	} {
		r, err := e.ask(ctx, append(way.args, "-w", "%{http_code}")...)
		if err != nil {
			return err
		}
		show(r.stdout+r.stderr, 1)
		if err := expect(!strings.HasSuffix(r.stdout, "200"), r, "%s bypasses Envoy", way.what); err != nil {
			return err
		}
	}
	return e.untouched(before, "Envoy is the only way out")
}

// revoked is the answer of chaperone revoke.
type revoked struct {
	ID  string  `json:"id"`
	Cut int     `json:"cut"`
	MS  float64 `json:"ms"`
}

func cut(ctx context.Context, e *env) error {
	download, err := e.stream(ctx)
	if err != nil {
		return err
	}
	asked := time.Now()
	r, err := e.chaperone(ctx, "revoke", "--config", e.config(), "--reason", "the demonstration", "--output", "json")
	if err != nil {
		return err
	}
	var answer revoked
	if err := json.Unmarshal([]byte(r.stdout), &answer); err != nil {
		return expect(false, r, "revoke answered no JSON: %v", err)
	}
	if err := expect(r.status == 0 && answer.Cut > 0, r, "nothing was cut"); err != nil {
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
	if err := e.idle(ctx); err != nil {
		return err
	}
	proved("the sidecar cut it in %.1f ms; curl saw the end %d ms after the start of the command", answer.MS, took.Milliseconds())
	show(download.output.String(), 1)
	if r, err = e.ask(ctx, "-w", "%{http_code}", "-o", "/dev/null", e.url("/v1/forecast/london")); err != nil {
		return err
	}
	if err := expect(!strings.HasSuffix(r.stdout, "200"), r, "it works after the revocation"); err != nil {
		return err
	}
	if r, err = e.chaperone(ctx, "restore", answer.ID, "--config", e.config(), "--reason", "the demonstration continues"); err != nil {
		return err
	}
	if err := expect(r.status == 0, r, "restore did not work"); err != nil {
		return err
	}
	return e.worksAgain(ctx)
}

// worksAgain waits until Envoy has its routes back.
func (e *env) worksAgain(ctx context.Context) error {
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(100 * time.Millisecond) {
		r, err := e.ask(ctx, "-w", "%{http_code}", "-o", "/dev/null", e.url("/v1/forecast/london"))
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
func (e *env) stream(ctx context.Context) (*download, error) {
	cmd := e.curl(ctx, "-o", "/dev/null", e.url("/stream"))
	cmd.Stdout = io.Discard
	p, err := start(cmd)
	if err != nil {
		return nil, err
	}
	d := &download{p, make(chan time.Time, 1)}
	go func() { <-p.ended; d.ending <- time.Now() }()
	bounded, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	if err := e.api.WaitStreams(bounded, 1); err != nil {
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
	return time.Time{}, errors.New("the stream continues")
}

// idle waits until the API serves no stream.
func (e *env) idle(ctx context.Context) error {
	bounded, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	if err := e.api.WaitStreams(bounded, 0); err != nil {
		return fmt.Errorf("the API still serves it: %w", err)
	}
	return nil
}

func killed(ctx context.Context, e *env) error {
	download, err := e.stream(ctx)
	if err != nil {
		return err
	}
	say("$ kill -9 %d", e.sidecar.cmd.Process.Pid)
	if err := e.sidecar.cmd.Process.Kill(); err != nil {
		return err
	}
	<-e.sidecar.ended
	if _, err := download.wait(ctx); err != nil {
		return err
	}
	if err := e.idle(ctx); err != nil {
		return err
	}
	before := e.api.Total()
	for range 5 {
		r, err := e.ask(ctx, "-w", "%{http_code}", "-o", "/dev/null", e.url("/v1/forecast/london"))
		if err != nil {
			return err
		}
		if err := expect(!strings.HasSuffix(r.stdout, "200"), r, "it works without a sidecar"); err != nil {
			return err
		}
	}
	return e.untouched(before, "the stream has ended, and the running Envoy has no way out")
}

func audited(ctx context.Context, e *env) error {
	r, err := e.chaperone(ctx, "audit", "verify", "--config", e.config())
	if err != nil {
		return err
	}
	show(r.stdout+r.stderr, 3)
	if err := expect(r.status == 0, r, "the log does not verify"); err != nil {
		return err
	}
	data, err := os.ReadFile(filepath.Join(e.dir, "state", "audit.jsonl"))
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
	if strings.Contains(string(data), e.api.Token()) {
		return errors.New("the token is in the log")
	}
	admitted := strings.Count(string(data), `"allowed":true,"reason":"granted"`)
	if reached := e.api.Total(); admitted < reached {
		return fmt.Errorf("%d requests reached the API, and %d were admitted", reached, admitted)
	}
	proved("the chain is valid also after kill -9; each of the %d requests at the API was admitted first", e.api.Total())
	return nil
}
