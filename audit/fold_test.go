package audit_test

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/chaperone-proxy/chaperone/audit"
	"github.com/chaperone-proxy/chaperone/authz"
)

// refusal is what a gate writes for a request that no rule grants.
func refusal(host, path string, after time.Duration) *authz.Record {
	return &authz.Record{
		Time: at.Add(after), Kind: authz.KindDecision, Plugin: "weather", Door: authz.DoorProxy, Decision: "0193f6c2-refused",
		Reason: "destination_not_granted", Method: "GET", Scheme: "https", Host: host, Port: 443, Path: path, PID: 4711, UID: 1001,
		Exe: "/usr/bin/curl",
	}
}

// deed is an access that was granted.
func deed(after time.Duration) *authz.Record {
	r := sample()
	r.Time, r.Decision = at.Add(after), "the-deed"
	return r
}

// put records, and fails the test when that fails.
func put(t *testing.T, log *audit.Log, records ...*authz.Record) {
	t.Helper()
	for _, r := range records {
		if err := log.Record(r); err != nil {
			t.Fatal(err)
		}
	}
}

// refusals returns how many refusals the records of a log stand for.
func refusals(entries []audit.Entry) (records, events int) {
	for _, e := range entries {
		if e.Kind == string(authz.KindDecision) && e.Allowed != nil && !*e.Allowed {
			records, events = records+1, events+max(e.Count, 1)
		}
	}
	return records, events
}

// TestEqualRefusalsAreFolded checks what is left of a loop of refusals.
func TestEqualRefusalsAreFolded(t *testing.T) {
	f := newFolder(t)
	log := f.open(f.config())
	for i := range 1000 {
		put(t, log, refusal("hooks.other.example", fmt.Sprintf("/services/SECRET-%d", i), time.Duration(i)*time.Millisecond))
	}
	put(t, log, deed(time.Second))
	if n := log.Status().Folded; n != 900 {
		t.Errorf("%d are folded, not 900", n)
	}
	if err := log.Flush(at.Add(30*time.Second), false); err != nil {
		t.Error(err)
	}
	if _, n := refusals(f.entries(audit.Query{})); n != 100 {
		t.Errorf("the count is written before its minute is over: %d refusals", n)
	}
	if err := log.Flush(at.Add(time.Minute), false); err != nil {
		t.Error(err)
	}
	entries := f.entries(audit.Query{})
	if records, events := refusals(entries); records != 101 || events != 1000 {
		t.Errorf("%d records of %d refusals, want 101 of 1000", records, events)
	}
	last := entries[len(entries)-1]
	if last.Count != 900 || !last.FirstTime.Equal(at.Add(100*time.Millisecond)) || !last.LastTime.Equal(at.Add(999*time.Millisecond)) ||
		last.Paths != 64 || last.Host != "hooks.other.example" || last.Method != "GET" || last.PID != 4711 || last.LastPath == "" {
		t.Errorf("folded: %s", last.Raw)
	}
	if strings.Contains(string(f.read()), "SECRET") {
		t.Error("a path is shown")
	}
	f.proved(1, 102)
}

// TestFoldKeepsWhatIsCommon: a count has only the common fields of its refusals.
func TestFoldKeepsWhatIsCommon(t *testing.T) {
	f := newFolder(t)
	log := f.open(f.config())
	for i := range 300 {
		r := refusal("a.example", "/", 0)
		r.Method, r.PID, r.Port, r.Exe = "INVENTED"+fmt.Sprint(i), 100+i, uint16(1+i), "/bin/sh"
		put(t, log, r)
	}
	if err := log.Close(); err != nil {
		t.Fatal(err)
	}
	entries := f.entries(audit.Query{})
	last := entries[len(entries)-1]
	if last.Count != 200 || last.Method != "" || last.PID != 0 || last.UID != nil || last.Port != 0 || last.Exe != "/bin/sh" || last.Paths != 1 {
		t.Errorf("folded: %s", last.Raw)
	}
}

// TestIncidentsAreNoRefusals: an escape is never counted with others, nor moved to the
// second log; refusals of the kernel are equal if they are for the same.
func TestIncidentsAreNoRefusals(t *testing.T) {
	f := newFolder(t)
	cfg := f.config()
	cfg.MaxSize = 64 << 10
	log := f.open(cfg)
	flood(t, log, 0, time.Minute)
	kernel := func(detail string, incident bool) *authz.Record {
		return &authz.Record{
			Time: at.Add(time.Minute), Kind: authz.KindDecision, Door: authz.DoorKernel, Reason: "destination_not_granted", UID: -1, Detail: detail, Incident: incident,
		}
	}
	for range 300 {
		put(t, log, kernel("it left the confinement", true), kernel("packet sockets are not made", false))
	}
	put(t, log, kernel("ptrace leads out", false))
	if err := log.Close(); err != nil {
		t.Fatal(err)
	}
	left, other := 0, 0
	for _, e := range f.entries(audit.Query{}) {
		switch e.Detail {
		case "it left the confinement":
			left++
		case "ptrace leads out":
			other++
		}
	}
	if second, err := os.ReadFile(audit.SecondFile(f.file())); err != nil || left != 300 || other != 1 || strings.Contains(string(second), "it left") {
		t.Errorf("%d incidents and %d other refusals (%v)", left, other, err)
	}
}

// However refusals come, each is in the log, alone or in a count; and one reason
// does not hide another.
func TestEachRefusalIsCounted(t *testing.T) {
	for seed := range uint64(8) {
		random := rand.New(rand.NewPCG(seed, 4))
		f := newFolder(t)
		log := f.open(f.config())
		want := map[string]int{}
		now := time.Duration(0)
		hosts := 1 + random.IntN(2000)
		for range 3000 {
			now += time.Duration(random.IntN(40)) * time.Millisecond
			r := refusal(fmt.Sprintf("h%d.example", random.IntN(hosts)), "/x", now)
			r.Reason = []string{"destination_not_granted", "no_grant", "quota_exceeded"}[random.IntN(3)]
			r.Count = random.IntN(4)
			want[r.Reason] += max(r.Count, 1)
			put(t, log, r)
		}
		rare := refusal("evil.example", "/", now)
		rare.Reason = "credential_misplaced"
		put(t, log, rare)
		if err := log.Close(); err != nil {
			t.Fatal(err)
		}
		got, alone := map[string]int{}, false
		for _, e := range f.entries(audit.Query{}) {
			if e.Kind == "decision" {
				got[e.Reason] += max(e.Count, 1)
				alone = alone || e.Host == rare.Host && e.Reason == rare.Reason
			}
		}
		for reason, n := range want {
			if got[reason] != n {
				t.Errorf("seed %d: %d of %d refusals for %s are recorded", seed, got[reason], n, reason)
			}
		}
		if !alone {
			t.Errorf("seed %d: a flood hides a refusal for another reason", seed)
		}
		if report := f.verify(); report.Problem != nil {
			t.Error(report.Problem)
		}
	}
}

// flood has 60 different refusals a second recorded, each as long as can be.
func flood(t *testing.T, log *audit.Log, from, to time.Duration) {
	t.Helper()
	long := "/" + strings.Repeat("n", 1900)
	for now, n := from, 0; now < to; now, n = now+time.Second/60, n+1 {
		put(t, log, refusal(fmt.Sprintf("h%d.example", n), long, now))
	}
}

// disk returns how many bytes the files of a log take.
func disk(t *testing.T, f folder) (size int64) {
	t.Helper()
	files, err := filepath.Glob(f.file() + "*")
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range files {
		info, err := os.Stat(file)
		if err != nil {
			t.Fatal(err)
		}
		size += info.Size()
	}
	return size
}

// TestRefusalsPushOutNothing floods a small log, through restarts.
func TestRefusalsPushOutNothing(t *testing.T) {
	f := newFolder(t)
	cfg := f.config()
	cfg.MaxSize, cfg.Keep = 256<<10, 2
	cfg.FullPaths = func() bool { return true }
	for run := range 6 {
		log := f.open(cfg)
		begin := time.Duration(run) * 10 * time.Minute
		put(t, log, deed(begin))
		flood(t, log, begin, begin+10*time.Minute)
		if err := log.Close(); err != nil {
			t.Fatal(err)
		}
	}
	deeds := 0
	for _, e := range f.entries(audit.Query{}) {
		if e.Decision == "the-deed" {
			deeds++
		}
	}
	if deeds != 6 {
		t.Errorf("%d of 6 grants are left", deeds)
	}
	if size := disk(t, f); size > 3*cfg.MaxSize {
		t.Errorf("the log takes %d bytes, more than 3 files of %d", size, cfg.MaxSize)
	}
	report := f.verify()
	if report.Problem != nil || report.First != 1 || len(report.Files) != 1 || report.Refused == nil || report.Refused.Removed == 0 {
		t.Errorf("report %+v, refused %+v", report, report.Refused)
	}
	if !strings.Contains(report.WholeSince(), "its beginning") || !strings.Contains(report.Refused.WholeSince(), "were removed by") {
		t.Errorf("%s; refused %s", report.WholeSince(), report.Refused.WholeSince())
	}
}

// Grants rotate the log by themselves, as far as it is theirs.
func TestGrantsRotateByThemselves(t *testing.T) {
	f := newFolder(t)
	cfg := f.config()
	cfg.MaxSize, cfg.Keep = 64<<10, 3
	log := f.open(cfg)
	for i := range 2000 {
		put(t, log, deed(time.Duration(i)*time.Second), refusal(fmt.Sprintf("h%d.example", i), "/x", time.Duration(i)*time.Second))
	}
	if err := log.Close(); err != nil {
		t.Fatal(err)
	}
	report := f.verify()
	if report.Problem != nil || report.Removed == 0 || report.First != report.Removed+1 || report.Refused == nil {
		t.Errorf("report %+v", report)
	}
	if size := disk(t, f); size > 4*cfg.MaxSize {
		t.Errorf("the log takes %d bytes", size)
	}
	var before time.Time
	kinds := map[bool]int{}
	for _, e := range f.entries(audit.Query{Filter: audit.Filter{Kind: "decision"}}) {
		if e.Time.Before(before) {
			t.Errorf("%s is read after %s", e.Time, before)
		}
		before = e.Time
		kinds[*e.Allowed]++
	}
	if kinds[true] == 0 || kinds[false] == 0 {
		t.Errorf("read %v", kinds)
	}
	last := f.entries(audit.Query{Filter: audit.Filter{Kind: "decision"}, Last: 10})
	if len(last) != 10 || last[9].Time.Before(last[0].Time) {
		t.Errorf("the last 10: %v", ids(last))
	}
}

// The second log cannot be removed, cut or exchanged unseen.
func TestSecondLogIsProved(t *testing.T) {
	flooded := func(t *testing.T) folder {
		f := newFolder(t)
		cfg := f.config()
		cfg.MaxSize, cfg.Keep = 64<<10, 3
		log := f.open(cfg)
		put(t, log, deed(0))
		flood(t, log, 0, 2*time.Minute)
		if err := log.Close(); err != nil {
			t.Fatal(err)
		}
		if report := f.verify(); report.Problem != nil || report.Refused == nil || report.Refused.Records == 0 {
			t.Fatalf("report %+v", report)
		}
		return f
	}
	remove := func(t *testing.T, files ...string) {
		for _, file := range files {
			if err := os.Remove(file); err != nil {
				t.Fatal(err)
			}
		}
	}
	head := func(f folder) string { return filepath.Join(f.dir, "audit.refused.head") }
	for name, test := range map[string]struct {
		harm func(*testing.T, folder)
		want string
	}{
		"its files are removed": {func(t *testing.T, f folder) {
			files, err := filepath.Glob(audit.SecondFile(f.file()) + "*")
			if err != nil {
				t.Fatal(err)
			}
			remove(t, files...)
		}, "missing"},
		"all of it is removed": {func(t *testing.T, f folder) {
			files, err := filepath.Glob(audit.SecondFile(f.file()) + "*")
			if err != nil {
				t.Fatal(err)
			}
			remove(t, append(files, head(f))...)
		}, "cannot be proved"},
		"it begins again": {func(t *testing.T, f folder) {
			files, err := filepath.Glob(audit.SecondFile(f.file()) + "*")
			if err != nil {
				t.Fatal(err)
			}
			remove(t, append(files, head(f))...)
			cfg := f.config()
			cfg.MaxSize, cfg.Keep = 64<<10, 3
			log := f.open(cfg)
			flood(t, log, time.Hour, time.Hour+5*time.Second)
			if err := log.Close(); err != nil {
				t.Fatal(err)
			}
		}, "an earlier one names record"},
		"its head is removed": {func(t *testing.T, f folder) { remove(t, head(f)) }, "cannot be proved"},
		"its end is cut": {func(t *testing.T, f folder) {
			data, err := os.ReadFile(audit.SecondFile(f.file()))
			if err == nil {
				err = os.WriteFile(audit.SecondFile(f.file()), data[:len(data)/2], 0o600)
			}
			if err != nil {
				t.Fatal(err)
			}
		}, ""},
		"it is a copy of the first": {func(t *testing.T, f folder) {
			data := f.read()
			if err := os.WriteFile(audit.SecondFile(f.file()), data, 0o600); err != nil {
				t.Fatal(err)
			}
		}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			f := flooded(t)
			test.harm(t, f)
			report := f.verify()
			if report.Problem == nil || !strings.Contains(report.Problem.What, test.want) {
				t.Errorf("problem %v", report.Problem)
			}
		})
	}
}

// TestRotationIsToldFromRemoval distinguishes a file that the log's own limit removed
// from one that somebody else removed.
func TestRotationIsToldFromRemoval(t *testing.T) {
	f := newFolder(t)
	cfg := rotating(f, 3)
	log := f.open(cfg)
	for i := range 60 {
		put(t, log, deed(time.Duration(i)*time.Second))
	}
	report := f.verify()
	if report.Problem != nil || report.Removed == 0 || report.Since.IsZero() || !strings.Contains(string(f.read()), `"removed_hash":"`) {
		t.Fatalf("report %+v", report)
	}
	if err := os.Remove(report.Files[0]); err != nil {
		t.Fatal(err)
	}
	f.disproved("missing")
}

// Records of the second log are followed as those of the first.
func TestFollowSecondLog(t *testing.T) {
	f := newFolder(t)
	cfg := f.config()
	cfg.MaxSize, cfg.Keep = 8<<10, -1
	log := f.open(cfg)
	put(t, log, deed(0))
	seen := make(chan string, 1000)
	done := make(chan error, 1)
	go func() {
		for entry, err := range audit.Read(t.Context(), audit.Query{File: f.file(), Last: 5, Follow: true, Poll: time.Millisecond}) {
			if err != nil {
				done <- err
				return
			}
			if seen <- entry.Host; entry.Host == "h59.example" {
				break
			}
		}
		done <- nil
	}()
	<-seen
	flood(t, log, 0, time.Second)
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if report := f.verify(); report.Problem != nil || report.Refused == nil || report.Refused.First != 1 {
		t.Errorf("report %+v", report)
	}
	if len(seen) < 60 {
		t.Errorf("%d of 60 are followed", len(seen))
	}
}

// TestWorstFlood measures how long refusals of the longest kind last in the second
// log by default, and that they are a bounded number whatever the plugin does.
func TestWorstFlood(t *testing.T) {
	f := newFolder(t)
	cfg := f.config()
	cfg.Keep = -1
	cfg.FullPaths = func() bool { return true }
	log := f.open(cfg)
	reasons := []string{"destination_not_granted", "no_grant", "malformed_request", "guardrail", "path_not_granted", "method_not_granted", "quota_exceeded", "destination_mismatch", "identity_unknown", "credential_misplaced"}
	long := strings.Repeat("n", 2000)
	const minutes = 12
	var settled int64
	for i := range minutes * 60 * 100 {
		now := time.Duration(i) * time.Second / 100
		r := refusal(fmt.Sprintf("%d.%s.example", i, long[:200]), "/"+long, now)
		r.Reason, r.Query, r.Exe, r.Method = reasons[i%len(reasons)], long, "/"+long[:200], "M"+fmt.Sprint(i)
		put(t, log, r)
		if i == minutes*60*100*2/3 {
			settled = log.Status().Size
		}
	}
	each := (log.Status().Size - settled) / (minutes / 3)
	share := int64(audit.DefaultMaxSize / 8 * (audit.DefaultKeep + 1))
	t.Logf("%d KiB a minute once it has settled: the second log lasts %.1f h by default, beside as much in the first", each>>10, float64(share)/float64(each)/60)
	if each > 2<<20 {
		t.Errorf("%d bytes a minute", each)
	}
}
