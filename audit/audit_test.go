package audit_test

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/chaperone-proxy/chaperone/audit"
	"github.com/chaperone-proxy/chaperone/authz"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func sample(i int) *authz.Record {
	return &authz.Record{
		Time: time.Date(2026, 11, 21, 9, 30, 0, i*1000, time.UTC), Kind: authz.KindDecision,
		Plugin: "weather", Door: authz.DoorProxy, Decision: "0193f6c2-7c1e-7000-8000-0123456789ab",
		Allowed: true, Reason: "granted", Grant: "weather", Rule: "read-forecast", Generation: 3,
		Method: "GET", Scheme: "https", Host: "api.weather.example", Port: 443,
		Path: "/v1/forecast/berlin", Query: "units=metric", Pattern: "/v1/forecast/*",
		Credential: "weather-key", Lease: "database/creds/ro/abc", PID: 4711, UID: 1001,
		Exe: "/usr/bin/curl", TraceID: "4bf92f3577b34da6a3ce929d0e0e4736",
	}
}

func open(t testing.TB, cfg audit.Config) *audit.Log {
	t.Helper()
	log, err := audit.Open(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { log.Close() })
	return log
}

func TestFirst(t *testing.T) {
	dir := t.TempDir()
	log := open(t, audit.Config{StateDir: dir})
	for i := range 3 {
		if err := log.Record(sample(i)); err != nil {
			t.Fatal(err)
		}
	}
	log.Close()
	data, _ := os.ReadFile(filepath.Join(dir, "audit.jsonl"))
	t.Logf("%s", data)
	r, err := audit.Verify(audit.VerifyConfig{File: filepath.Join(dir, "audit.jsonl"), StateDir: dir})
	t.Log(r, err)
}

func BenchmarkRecord(b *testing.B) {
	log := open(b, audit.Config{StateDir: b.TempDir(), MaxSize: 1 << 30})
	r := sample(0)
	b.ReportAllocs()
	for b.Loop() {
		if err := log.Record(r); err != nil {
			b.Fatal(err)
		}
	}
}
