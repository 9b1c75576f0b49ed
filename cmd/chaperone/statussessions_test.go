package main

import (
	"strings"
	"testing"
	"time"

	"github.com/chaperone-proxy/chaperone/internal/admin"
)

// TestSessionRows shows what each session is for and does, and counts those that do not fit.
func TestSessionRows(t *testing.T) {
	now := time.Now()
	one := admin.Session{
		Decision: "d-1", Protocol: "postgres", Host: "db.internal", Port: 5432, Database: "shop\x1b[2J", Rule: "crm/read", Credential: "login",
		PID: 7, Since: now.Add(-90 * time.Second), IdleMS: 3000, SentBytes: 10, Bytes: 2048,
	}
	running := one
	running.Running, running.Statement = 2, "d-2"
	all := []admin.Session{one, running}
	for range maxSessionRows {
		all = append(all, one)
	}
	var out strings.Builder
	sessionRows(&out, all, now)
	for _, want := range []string{
		`postgres://db.internal:5432/shop\u001b[2J by crm/read, credential login, process 7, open 1m30s, idle 3s, sent 10B, received 2KiB (decision d-1)`,
		"runs 2 statements (decision d-2)", "2 more sessions (all with --output json)",
	} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("%q is not in\n%s", want, out.String())
		}
	}
}
