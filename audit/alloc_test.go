//go:build !race

package audit_test

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"os"
	"runtime"
	"strings"
	"testing"

	"github.com/chaperone-proxy/chaperone/audit"
)

// The race detector makes sync.Pool drop what it is given.
func TestRecordDoesNotAllocate(t *testing.T) {
	f := newFolder(t)
	log := f.open(f.config())
	r := sample()
	if n := testing.AllocsPerRun(200, func() {
		if err := log.Record(r); err != nil {
			t.Fatal(err)
		}
	}); n > 1 {
		t.Errorf("Record allocates %v times", n)
	}
}

func BenchmarkRecord(b *testing.B) {
	log := newFolder(b).benchmark()
	r := sample()
	b.ReportAllocs()
	for b.Loop() {
		if err := log.Record(r); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkRecordConcurrent has 8 and 64 callers that record all the time. The time
// is that of the whole for each record.
func BenchmarkRecordConcurrent(b *testing.B) {
	for _, callers := range []int{8, 64} {
		b.Run(fmt.Sprint(callers), func(b *testing.B) {
			log := newFolder(b).benchmark()
			b.ReportAllocs()
			b.SetParallelism(callers / runtime.GOMAXPROCS(0))
			b.RunParallel(func(pb *testing.PB) {
				r := sample()
				for pb.Next() {
					if err := log.Record(r); err != nil {
						b.Error(err)
						return
					}
				}
			})
		})
	}
}

// The same line made with encoding/json, an HMAC and one write: what the
// encoder by hand is measured against.
func BenchmarkEncodingJSON(b *testing.B) {
	file, err := os.OpenFile(newFolder(b).file(), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		b.Fatal(err)
	}
	defer file.Close()
	yes, uid, s := true, 1001, sample()
	entry := audit.Entry{
		Time: s.Time, Prev: strings.Repeat("A", 43), Kind: string(s.Kind), Plugin: s.Plugin, Door: string(s.Door),
		Decision: s.Decision, Allowed: &yes, Reason: s.Reason, Grant: s.Grant, Rule: s.Rule, Generation: s.Generation,
		Method: s.Method, Scheme: s.Scheme, Host: s.Host, Port: s.Port, Path: s.Path, Query: s.Query,
		Credential: s.Credential, Lease: s.Lease, PID: s.PID, Exe: s.Exe, UID: &uid, TraceID: s.TraceID, SpanID: s.SpanID,
	}
	mac := hmac.New(sha256.New, make([]byte, 32))
	b.ReportAllocs()
	for b.Loop() {
		line, err := json.Marshal(entry)
		if err != nil {
			b.Fatal(err)
		}
		mac.Reset()
		mac.Write(line)
		entry.Seq++
		entry.Prev = base64.RawURLEncoding.EncodeToString(mac.Sum(nil))
		if _, err := file.Write(append(line, '\n')); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkVerify(b *testing.B) {
	f := newFolder(b)
	f.write(audit.Config{StateDir: f.dir}, 10_000)
	b.SetBytes(int64(len(f.read())))
	for b.Loop() {
		if report := f.verify(); report.Problem != nil {
			b.Fatal(report.Problem)
		}
	}
}

func (f folder) benchmark() *audit.Log {
	return f.open(audit.Config{StateDir: f.dir, MaxSize: 1 << 40})
}

func BenchmarkFoldedRefusal(b *testing.B) {
	log := newFolder(b).benchmark()
	r := refusal("hooks.other.example", "/services/"+strings.Repeat("n", 100), 0)
	b.ReportAllocs()
	for b.Loop() {
		if err := log.Record(r); err != nil {
			b.Fatal(err)
		}
	}
}
