package gameday

import (
	"bytes"
	"net"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/chaperone-proxy/chaperone/internal/testenv"
)

// TestOutside runs the plugin's ways out without a sandbox: the listeners count each, so that
// a count of none in an exercise is the sidecar's merit.
func TestOutside(t *testing.T) {
	defer goleak.VerifyNone(t)
	s := testenv.MustGet(listen(t.Context()))(t)
	defer s.close()
	testenv.Must(t, s.prove(t.Context()))
	if n := s.reached.Load(); n != 0 {
		t.Fatalf("the proof itself counts as %d", n)
	}
	transport := &http.Transport{}
	defer transport.CloseIdleConnections()
	r := &rogue{client: &http.Client{Transport: transport}, plan: Plan{Bypass: s.bypass.Addr().String(), Name: s.collector.Addr().String()}}
	r.bypass(t.Context())
	r.send(t.Context(), http.MethodPost, "http://"+r.plan.Name, bytes.NewReader(piece()))
	const want = 3 // a connection and a packet of bypass, and the collector
	for deadline := time.Now().Add(time.Minute); s.reached.Load() < want; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%d of %d ways out were counted", s.reached.Load(), want)
		}
	}
}

// TestNotProved checks that a listener that is gone is an error before the exercise starts.
func TestNotProved(t *testing.T) {
	s := testenv.MustGet(listen(t.Context()))(t)
	defer s.close()
	testenv.Must(t, s.dns.Close())
	if err := s.prove(t.Context()); err == nil || !strings.Contains(err.Error(), "does not count") {
		t.Errorf("got %v", err)
	}
}

func TestLeaks(t *testing.T) {
	at := time.Unix(1000, 0)
	s := &servers{reads: []read{{at.Add(-time.Second), 64}, {at, 64}, {at.Add(1), 30}}}
	before, after, last, whole := s.leaks(at)
	if before != 128 || after != 30 || !last.Equal(at.Add(1)) || !whole {
		t.Error(before, after, last, whole)
	}
	s.reads = make([]read, maxReads)
	s.leaked(1)
	if _, _, _, whole := s.leaks(at); whole || len(s.reads) > maxReads {
		t.Error("the reads are not bounded, or what is not kept is not reported")
	}
}

// TestEvents feeds lines of the plugin in parts, with some that are no events.
func TestEvents(t *testing.T) {
	e := newEvents()
	for _, part := range []string{
		`{"tried":"dns"}` + "\n" + `{"tri`, `ed":"dns"}` + "\n", "no event\n", `{"tried":"unknown"}` + "\n", strings.Repeat("x", 2*maxLine) + "\n",
		`{"turned":"2026-11-30T12:00:00Z"}` + "\n" + `{"turned":"2027-11-30T12:00:00Z"}` + "\n", `{"tried":"name"}`,
	} {
		_ = testenv.MustGet(e.Write([]byte(part)))(t)
	}
	<-e.turning
	if got := e.tried(); len(got) != 1 || got["dns"] != 2 || e.turned().Year() != 2026 {
		t.Error(got, e.turned())
	}
}

func TestAnswerOf(t *testing.T) {
	got := testenv.MustGet(answerOf([]byte(`{"host":"a.test","sent_bytes":640}` + "\n" + `{"host":"b.test"}` + "\n" + `{"host":"a.test","sent_bytes":65}` + "\n")))(t)
	if got.Pieces != 11 || got.Destination != "a.test" {
		t.Errorf("%+v", got)
	}
	if _, err := answerOf([]byte("{")); err == nil {
		t.Error("half a record is an answer")
	}
}

func TestPrepare(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "new")
	path, remove, err := prepare(dir)
	testenv.Must(t, err)
	testenv.Must(t, remove())
	if info := testenv.MustGet(os.Stat(path))(t); info.Mode().Perm() != 0o700 {
		t.Error(info.Mode())
	}
	testenv.Must(t, os.WriteFile(filepath.Join(dir, "x"), nil, 0o600))
	if _, _, err := prepare(dir); err == nil || !strings.Contains(err.Error(), "not empty") {
		t.Errorf("got %v", err)
	}
	path, remove, err = prepare("")
	testenv.Must(t, err)
	testenv.Must(t, remove())
	if _, err := os.Stat(path); !os.IsNotExist(err) {
		t.Errorf("left behind: %v", err)
	}
}

// TestFindEvidence refuses what is no support bundle with the revocation.
func TestFindEvidence(t *testing.T) {
	dir := t.TempDir()
	if file, fault := findEvidence(dir, time.Time{}); file != "" || !strings.Contains(fault, "has none") {
		t.Error(file, fault)
	}
	testenv.Must(t, os.WriteFile(filepath.Join(dir, "a.tar.gz"), []byte("none"), 0o600))
	if file, fault := findEvidence(dir, time.Time{}); file != "" || !strings.Contains(fault, "a.tar.gz: ") {
		t.Error(file, fault)
	}
}

func TestHostPort(t *testing.T) {
	l := testenv.MustGet(net.Listen("tcp", "127.0.0.1:0"))(t)
	defer l.Close()
	if got := hostPort("a.test", l); got != "a.test:"+strings.TrimPrefix(l.Addr().String(), "127.0.0.1:") {
		t.Error(got)
	}
}

// TestPlan refuses to be the plugin without an exercise.
func TestPlan(t *testing.T) {
	for _, in := range []string{"", "{}", "[]"} {
		if err := Rogue(t.Context(), strings.NewReader(in), &bytes.Buffer{}, nil); err == nil {
			t.Errorf("%q starts the plugin", in)
		}
	}
}

// TestUntil ends the plugin by itself when nobody else did.
func TestUntil(t *testing.T) {
	defer signal.Reset() // the plugin ignores signals
	plan := `{"orders":"http://127.0.0.1:1/","child":true,"until":"2026-01-01T00:00:00Z"}`
	testenv.Must(t, Rogue(t.Context(), strings.NewReader(plan), &bytes.Buffer{}, nil))
}
