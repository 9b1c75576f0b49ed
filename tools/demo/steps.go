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
	database := kernel
	if e.db == nil {
		database = "it needs PostgreSQL (Debian: apt-get install postgresql)"
	}
	return []step{
		{"A plugin without any knowledge of Chaperone calls the API", "", granted},
		{"It tries a method that was not granted", "", refused},
		{"It tries to bypass the sidecar in five ways", kernel, escapes},
		{"It reaches a limit", "", limited},
		{"Its access is cut while it downloads without end", "", cut},
		{"psql reads a granted table, is refused another, and is cut", database, queried},
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
	download, ended, output, err := e.start(ctx, "curl", "-sSN", "-o", "/dev/null", e.url("/stream"))
	if err != nil {
		return err
	}
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
	revoked, err := e.revoke(ctx)
	if err != nil {
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
	if err := e.provedLeasesGone(ctx, "database/creds/reader"); err != nil {
		return err
	}
	return e.restore(ctx, revoked.ID)
}

// start starts a program as the plugin. ended is closed when it has ended; its output is
// complete then.
func (e *env) start(ctx context.Context, program ...string) (cmd *exec.Cmd, ended chan struct{}, output *bytes.Buffer, err error) {
	cmd = exec.CommandContext(ctx, e.binary, append([]string{"run", "--config", e.config(), "--"}, program...)...)
	output, ended = new(bytes.Buffer), make(chan struct{})
	cmd.Stdout, cmd.Stderr = output, output
	if err := cmd.Start(); err != nil {
		return nil, nil, nil, err
	}
	go func() { _ = cmd.Wait(); close(ended) }() // its status is that of a program that was cut
	return cmd, ended, output, nil
}

// revocation is what revoke answered.
type revocation struct {
	ID  string  `json:"id"`
	Cut int     `json:"cut"`
	MS  float64 `json:"ms"`
}

// revoke revokes the plugin's access, which must cut something.
func (e *env) revoke(ctx context.Context) (revoked revocation, err error) {
	r, err := e.chaperone(ctx, "revoke", "--config", e.config(), "--reason", "the demonstration", "--output", "json")
	if err != nil {
		return revoked, err
	}
	if err := json.Unmarshal([]byte(r.stdout), &revoked); err != nil {
		return revoked, expect(false, r, "revoke answered no JSON: %v", err)
	}
	return revoked, expect(r.status == 0 && revoked.Cut > 0, r, "nothing was cut")
}

func (e *env) restore(ctx context.Context, id string) error {
	r, err := e.chaperone(ctx, "restore", id, "--config", e.config(), "--reason", "the demonstration continues")
	if err != nil {
		return err
	}
	return expect(r.status == 0, r, "restore did not work")
}

// queried has an ordinary psql use the database, and cuts it in the middle of a query.
func queried(ctx context.Context, e *env) error {
	psql := []string{"psql", "-X", fmt.Sprintf("host=%s port=%d dbname=weather user=anybody sslmode=verify-full", dbHost, e.db.Addr.Port())}
	r, err := e.plugin(ctx, append(psql, "-c", "SELECT * FROM orders", "-c", "SELECT * FROM customers", "-c", "SELECT count(*) FROM orders")...)
	if err != nil {
		return err
	}
	show(r.stdout, 12)
	show(firstLines(r.stderr, "ERROR", "HINT"), 4)
	ok := strings.Contains(r.stdout, "london") && strings.Contains(r.stdout, "count") &&
		strings.Contains(r.stderr, "statement_not_granted") && strings.Contains(r.stderr, "ask for tables: [public.customers]")
	if err := expect(ok && !strings.Contains(r.stdout, "Ada"), r, "the statements were not decided"); err != nil {
		return err
	}
	proved("psql logged in without a password, as a user that Vault leased; the other table is refused, and the session went on")
	query, ended, output, err := e.start(ctx, append(psql, "-c", "SELECT pg_sleep(60)")...)
	if err != nil {
		return err
	}
	wait, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	if err := e.untilQueried(wait, "pg_sleep", 1); err != nil {
		_ = query.Process.Kill()
		<-ended
		return fmt.Errorf("the query did not start: %w\n%s", err, output)
	}
	revoked, err := e.revoke(ctx)
	if err != nil {
		return err
	}
	select {
	case <-ended:
	case <-wait.Done():
		return errors.New("the query continues")
	}
	proved("a running query was cut in %.1f ms; psql ended: %s", revoked.MS, strings.TrimSpace(firstLines(output.String(), "FATAL")))
	if err := e.untilQueried(wait, "pg_sleep", 0); err != nil {
		return fmt.Errorf("PostgreSQL still runs it: %w", err)
	}
	if err := e.provedLeasesGone(ctx, "database/creds/orders"); err != nil {
		return err
	}
	return e.restore(ctx, revoked.ID)
}

// untilQueried waits until PostgreSQL runs so many queries of leased users with a text.
func (e *env) untilQueried(ctx context.Context, text string, want int) error {
	for {
		running, err := e.db.Query(ctx, "SELECT pid FROM pg_stat_activity WHERE state = 'active' AND usename LIKE 'v-%' AND query LIKE '%"+text+"%'")
		if err != nil || len(running) == want {
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(50 * time.Millisecond):
		}
	}
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
func (e *env) provedLeasesGone(ctx context.Context, path string) error {
	if e.db == nil {
		say("not shown: without PostgreSQL there is no lease to revoke")
		return nil
	}
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		leases, err := e.vault.Leases(ctx, path)
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
