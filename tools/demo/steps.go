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

// steps returns the steps, each with a missing requirement.
func steps(e *env) []step {
	kernel := ""
	if !e.root {
		kernel = "confining a program with the kernel needs root; run make demo as root to see it"
	}
	return []step{
		{"A plugin without any knowledge of Chaperone calls the API", "", granted},
		{"It tries a method that was not granted", "", refused},
		{"It tries to bypass the sidecar in five ways", kernel, escapes},
		{"It reaches a limit", "", limited},
		{"Its access is cut while it downloads without end", "", cut},
		{"The audit log is verified, and detects a change", "", audited},
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
	r, err := e.plugin(ctx, "python3", filepath.Join(e.dir, "plugin.py"), e.url("/v1/forecast/london"))
	if err != nil {
		return err
	}
	show(firstLines(r.stdout, "status", "answer", "sent"), 6)
	if err := expect(r.status == 0 && strings.Contains(r.stdout, "status 200"), r, "the call did not work"); err != nil {
		return err
	}
	requests := e.api.Requests()
	last := requests[len(requests)-1]
	if last.Header.Get("Authorization") != "Bearer "+e.api.Token() {
		return errors.New("the API did not receive its token")
	}
	for _, encoding := range encodings(e.api.Token()) {
		if strings.Contains(r.stdout+r.stderr, encoding) {
			return errors.New("the plugin has seen the token")
		}
	}
	proved("the API received its bearer token; it is nowhere in the %d lines the plugin printed:", strings.Count(r.stdout, "\n"))
	proved("its whole environment, what it sent, and an answer that echoes the request's headers")
	return nil
}

// encodings returns the forms in which a secret could be in an output.
func encodings(secret string) []string {
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

func refused(ctx context.Context, e *env) error {
	before := e.api.Total()
	r, err := e.plugin(ctx, "curl", "-sS", "-X", "POST", "-d", "rain", e.url("/v1/forecast/london"))
	if err != nil {
		return err
	}
	show(r.stdout, 2)
	show(r.stderr, 4)
	ok := strings.Contains(r.stdout, "method_not_granted") && strings.Contains(r.stderr, "ask for methods: [POST] on rule read-forecast")
	if err := expect(ok, r, "the refusal has no remedy"); err != nil {
		return err
	}
	if e.api.Total() != before {
		return errors.New("the API was reached")
	}
	proved("the API was not reached, and both the plugin and its terminal got the remedy")
	return nil
}

func escapes(ctx context.Context, e *env) error {
	before := e.api.Total()
	port := fmt.Sprint(e.api.Addr.Port())
	r, err := e.plugin(ctx, "python3", filepath.Join(e.dir, "escape.py"), port)
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
		if err := expect(containsAny(line, wanted), r, "%s is not refused: %q", attempt, line); err != nil {
			return err
		}
	}
	if e.api.Total() != before {
		return errors.New("the API was reached")
	}
	proved("all five are refused, and each is in the audit log")
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

func limited(ctx context.Context, e *env) error {
	args := []string{"curl", "-sS", "-o", "/dev/null", "-w", "%{http_code} %header{retry-after}\n"}
	for range 4 {
		args = append(args, e.url("/v1/alerts"))
	}
	// -o holds for one address only.
	args = append(args, "-o", "/dev/null", "-o", "/dev/null", "-o", "/dev/null")
	r, err := e.plugin(ctx, args...)
	if err != nil {
		return err
	}
	show(r.stdout, 6)
	codes := strings.Fields(r.stdout)
	ok := len(codes) == 5 && strings.Join(codes[:4], " ") == "200 200 200 429" && codes[4] == "20"
	if err := expect(ok, r, "want three requests a minute, then 429"); err != nil {
		return err
	}
	proved("three of three a minute passed; the fourth got Retry-After: %s", codes[4])
	return nil
}

func cut(ctx context.Context, e *env) error {
	say("the plugin: curl %s, which never ends", e.url("/stream"))
	download := exec.CommandContext(ctx, e.binary, "run", "--config", e.config(), "--",
		"curl", "-sSN", "-o", "/dev/null", e.url("/stream"))
	var output bytes.Buffer
	download.Stdout, download.Stderr = &output, &output
	if err := download.Start(); err != nil {
		return err
	}
	ended := make(chan struct{})
	go func() { _ = download.Wait(); close(ended) }() // its status is that of a curl that was cut
	wait, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	if err := e.api.WaitStreams(wait, 1); err != nil {
		_ = download.Process.Kill()
		<-ended
		return fmt.Errorf("the download did not start: %w\n%s", err, output.String())
	}
	if err := e.sayLeases(ctx, "while it runs"); err != nil {
		return err
	}
	r, err := e.chaperone(ctx, "revoke", "--config", e.config(), "--reason", "the demonstration", "--output", "json")
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
		return errors.New("the download continues")
	}
	proved("%d live exchange cut in %.1f ms; curl ended: %s", revoked.Cut, revoked.MS, strings.TrimSpace(firstLines(output.String(), "curl")))
	if err := e.api.WaitStreams(wait, 0); err != nil {
		return fmt.Errorf("the API still serves it: %w", err)
	}
	if err := e.provedLeasesGone(ctx); err != nil {
		return err
	}
	r, err = e.chaperone(ctx, "restore", revoked.ID, "--config", e.config(), "--reason", "the demonstration continues")
	if err != nil {
		return err
	}
	return expect(r.status == 0, r, "restore did not work")
}

func (e *env) sayLeases(ctx context.Context, when string) error {
	if e.db == nil {
		return nil
	}
	leases, err := e.vault.Leases(ctx, "database/creds/reader")
	if err != nil {
		return err
	}
	if len(leases) == 0 {
		return errors.New("no lease at Vault for the download")
	}
	say("%s Vault has %d lease: a database user for this plugin", when, len(leases))
	return nil
}

// provedLeasesGone waits until Vault has revoked the leases; the cut did not wait for it.
func (e *env) provedLeasesGone(ctx context.Context) error {
	if e.db == nil {
		say("not shown: without PostgreSQL there is no lease to revoke")
		return nil
	}
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		leases, err := e.vault.Leases(ctx, "database/creds/reader")
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
	users, err := e.db.Query(ctx, "SELECT rolname FROM pg_roles WHERE rolname LIKE 'v-%'")
	if err != nil {
		return err
	}
	if len(users) != 0 {
		return fmt.Errorf("PostgreSQL still has %v", users)
	}
	proved("the lease is gone at Vault, and its user is gone from PostgreSQL")
	return nil
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
	file := filepath.Join(e.dir, "state", "audit.jsonl")
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
	say("changing one bit of one byte in the log")
	r, err = e.chaperone(ctx, "audit", "verify", "--config", e.config())
	if err != nil {
		return err
	}
	show(r.stdout+r.stderr, 3)
	if err := expect(r.status == 1, r, "the change was not found"); err != nil {
		return err
	}
	proved("the change is found, with its place")
	return nil
}
