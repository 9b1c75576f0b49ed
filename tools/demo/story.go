package main

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

// story returns the steps, each with what it needs and is not there.
func story(w *world) []step {
	kernel := ""
	if !w.root {
		kernel = "it takes root to confine a program with the kernel; run make demo as root to see it"
	}
	return []step{
		{"A plugin that knows nothing of Chaperone calls the API", "", granted},
		{"It tries a method that was not granted", "", refused},
		{"It tries five ways around", kernel, escapes},
		{"It reaches a limit", "", limited},
		{"Its access is cut while it downloads without end", "", cut},
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
	r, err := w.plugin(ctx, "python3", filepath.Join(w.dir, "plugin.py"), w.url("/v1/forecast/london"))
	if err != nil {
		return err
	}
	show(firstLines(r.stdout, "status", "answer", "sent"), 6)
	if err := expect(r.status == 0 && strings.Contains(r.stdout, "status 200"), r, "the call did not work"); err != nil {
		return err
	}
	requests := w.api.Requests()
	last := requests[len(requests)-1]
	if last.Header.Get("Authorization") != "Bearer "+w.api.Token() {
		return errors.New("the API did not receive its token")
	}
	for _, spelling := range spellings(w.api.Token()) {
		if strings.Contains(r.stdout+r.stderr, spelling) {
			return errors.New("the plugin has seen the token")
		}
	}
	proved("the API received its bearer token; it is nowhere in the %d lines the plugin printed:", strings.Count(r.stdout, "\n"))
	proved("its whole environment, what it sent, and an answer that echoes the request's headers")
	return nil
}

// spellings returns the ways in which a secret could lie in an output.
func spellings(secret string) []string {
	return []string{secret, base64.StdEncoding.EncodeToString([]byte(secret)), fmt.Sprintf("%x", secret)}
}

func firstLines(output string, prefixes ...string) string {
	var out []string
	for line := range strings.Lines(output) {
		for _, p := range prefixes {
			if strings.HasPrefix(line, p) {
				out = append(out, line)
			}
		}
	}
	return strings.Join(out, "")
}

func refused(ctx context.Context, w *world) error {
	before := w.api.Total()
	r, err := w.plugin(ctx, "curl", "-sS", "-X", "POST", "-d", "rain", w.url("/v1/forecast/london"))
	if err != nil {
		return err
	}
	show(r.stdout, 2)
	show(r.stderr, 4)
	ok := strings.Contains(r.stdout, "method_not_granted") && strings.Contains(r.stderr, "ask for methods: [POST] on rule read-forecast")
	if err := expect(ok, r, "the refusal does not say what to ask for"); err != nil {
		return err
	}
	if w.api.Total() != before {
		return errors.New("the API was reached")
	}
	proved("the API was not reached, and both the plugin and its terminal were told what to ask for")
	return nil
}

func escapes(ctx context.Context, w *world) error {
	before := w.api.Total()
	port := fmt.Sprint(w.api.Addr.Port())
	r, err := w.plugin(ctx, "python3", filepath.Join(w.dir, "escape.py"), port)
	if err != nil {
		return err
	}
	show(r.stdout, 6)
	for attempt, wanted := range map[string][]string{
		"direct_ip":      {"ConnectionRefusedError"},
		"host_loopback":  {"ConnectionRefusedError"},
		"own_dns_server": {"NXDOMAIN"},
		"udp":            {"PermissionError"},
		"mapped_ipv6":    {"ConnectionRefusedError"},
	} {
		line := firstLines(r.stdout, attempt+" ->")
		if err := expect(containsAny(line, wanted), r, "%s is not shut: %q", attempt, line); err != nil {
			return err
		}
	}
	if w.api.Total() != before {
		return errors.New("the API was reached")
	}
	proved("all five are shut, and each is in the audit log")
	return nil
}

func containsAny(s string, parts []string) bool {
	for _, p := range parts {
		if strings.Contains(s, p) {
			return true
		}
	}
	return false
}

func limited(ctx context.Context, w *world) error {
	args := []string{"curl", "-sS", "-o", "/dev/null", "-w", "%{http_code} %header{retry-after}\n"}
	for range 4 {
		args = append(args, w.url("/v1/alerts"))
	}
	// -o holds for one address only.
	args = append(args, "-o", "/dev/null", "-o", "/dev/null", "-o", "/dev/null")
	r, err := w.plugin(ctx, args...)
	if err != nil {
		return err
	}
	show(r.stdout, 6)
	codes := strings.Fields(r.stdout)
	ok := len(codes) == 5 && strings.Join(codes[:4], " ") == "200 200 200 429" && codes[4] == "20"
	if err := expect(ok, r, "three requests a minute were not three"); err != nil {
		return err
	}
	proved("three of three a minute passed, the fourth is told to come back in %s s", codes[4])
	return nil
}

func cut(ctx context.Context, w *world) error {
	say("the plugin: curl %s, which never ends", w.url("/stream"))
	download := exec.CommandContext(ctx, w.binary, "run", "--config", w.config(), "--",
		"curl", "-sSN", "-o", "/dev/null", w.url("/stream"))
	var output bytes.Buffer
	download.Stdout, download.Stderr = &output, &output
	if err := download.Start(); err != nil {
		return err
	}
	ended := make(chan struct{})
	go func() { _ = download.Wait(); close(ended) }() // its status is that of a curl that was cut
	wait, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	if err := w.api.WaitStreams(wait, 1); err != nil {
		_ = download.Process.Kill()
		<-ended
		return fmt.Errorf("the download did not start: %w\n%s", err, output.String())
	}
	if err := w.sayLeases(ctx, "while it runs"); err != nil {
		return err
	}
	r, err := w.chaperone(ctx, "revoke", "--config", w.config(), "--reason", "the demonstration", "--output", "json")
	if err != nil {
		return err
	}
	var revoked struct {
		ID  string  `json:"id"`
		Cut int     `json:"cut"`
		MS  float64 `json:"ms"`
	}
	if err := json.Unmarshal([]byte(r.stdout), &revoked); err != nil {
		return expect(false, r, "revoke answered no JSON: %v", err)
	}
	if err := expect(r.status == 0 && revoked.Cut > 0, r, "nothing was cut"); err != nil {
		return err
	}
	select {
	case <-ended:
	case <-wait.Done():
		return errors.New("the download goes on")
	}
	proved("%d live exchange cut in %.1f ms; curl ended: %s", revoked.Cut, revoked.MS, strings.TrimSpace(firstLines(output.String(), "curl")))
	if err := w.api.WaitStreams(wait, 0); err != nil {
		return fmt.Errorf("the API still serves it: %w", err)
	}
	if err := w.provedLeasesGone(ctx); err != nil {
		return err
	}
	r, err = w.chaperone(ctx, "restore", revoked.ID, "--config", w.config(), "--reason", "the demonstration goes on")
	if err != nil {
		return err
	}
	return expect(r.status == 0, r, "restore did not work")
}

func (w *world) sayLeases(ctx context.Context, when string) error {
	if w.db == nil {
		return nil
	}
	leases, err := w.vault.Leases(ctx, "database/creds/reader")
	if err != nil {
		return err
	}
	if len(leases) == 0 {
		return errors.New("no lease at Vault for the download")
	}
	say("%s Vault holds %d lease: a database user made for this plugin", when, len(leases))
	return nil
}

// provedLeasesGone waits for Vault's word, which the cut did not wait for.
func (w *world) provedLeasesGone(ctx context.Context) error {
	if w.db == nil {
		say("not shown: without PostgreSQL there is no lease to revoke")
		return nil
	}
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		leases, err := w.vault.Leases(ctx, "database/creds/reader")
		if err != nil {
			return err
		}
		if len(leases) == 0 {
			break
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("still %d leases at Vault", len(leases))
		}
	}
	users, err := w.db.Query(ctx, "SELECT rolname FROM pg_roles WHERE rolname LIKE 'v-%'")
	if err != nil {
		return err
	}
	if len(users) != 0 {
		return fmt.Errorf("PostgreSQL still has %v", users)
	}
	proved("the lease is gone at Vault, and its user is gone from PostgreSQL")
	return nil
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
	file := filepath.Join(w.dir, "state", "audit.jsonl")
	data, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	at := bytes.Index(data, []byte("method_not_granted"))
	if at < 0 {
		return errors.New("the refusal is not in the log")
	}
	data[at] ^= 1
	if err := os.WriteFile(file, data, 0o600); err != nil {
		return err
	}
	say("one bit of one byte is changed in the log")
	r, err = w.chaperone(ctx, "audit", "verify", "--config", w.config())
	if err != nil {
		return err
	}
	show(r.stdout+r.stderr, 3)
	if err := expect(r.status == 1, r, "the change was not found"); err != nil {
		return err
	}
	proved("the change is found, and where")
	return nil
}
