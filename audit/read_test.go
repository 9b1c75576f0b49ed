package audit_test

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"strings"
	"testing"
	"time"

	"github.com/chaperone-proxy/chaperone/audit"
	"github.com/chaperone-proxy/chaperone/authz"
)

// writeMany writes n decisions with their number as the decision's id.
func writeMany(t *testing.T, log *audit.Log, from, n int) {
	t.Helper()
	for i := from; i < from+n; i++ {
		r := sample()
		r.Decision, r.Time = fmt.Sprintf("d%03d", i), at.Add(time.Duration(i)*time.Second)
		r.Allowed = i%2 == 0
		if !r.Allowed {
			r.Reason, r.Plugin = "no_grant", "other"
		}
		if err := log.Record(r); err != nil {
			t.Fatal(err)
		}
	}
}

func ids(entries []audit.Entry) string {
	var all []string
	for _, entry := range entries {
		if entry.Kind == string(authz.KindDecision) {
			all = append(all, strings.TrimPrefix(entry.Decision, "d"))
		}
	}
	return strings.Join(all, " ")
}

func TestQuery(t *testing.T) {
	f := newFolder(t)
	log := f.open(rotating(f, -1))
	writeMany(t, log, 1, 12)
	yes, no := true, false
	tests := []struct {
		name   string
		filter audit.Filter
		last   int
		want   string
	}{
		{"all", audit.Filter{Kind: "decision"}, 0, "001 002 003 004 005 006 007 008 009 010 011 012"},
		{"id", audit.Filter{Decision: "d007"}, 0, "007"},
		{"part of an id", audit.Filter{Decision: "d00"}, 0, ""},
		{"plugin", audit.Filter{Plugin: "other"}, 0, "001 003 005 007 009 011"},
		{"reason", audit.Filter{Reason: "granted"}, 0, "002 004 006 008 010 012"},
		{"allowed", audit.Filter{Allowed: &yes, Since: at.Add(5 * time.Second)}, 0, "006 008 010 012"},
		{"refused", audit.Filter{Allowed: &no, Until: at.Add(5 * time.Second)}, 0, "001 003"},
		{"rule and host", audit.Filter{Grant: "weather", Rule: "read-forecast", Host: "api.weather.example", Decision: "d001"}, 0, "001"},
		{"other kind", audit.Filter{Kind: "end"}, 0, ""},
		{"last", audit.Filter{Kind: "decision"}, 3, "010 011 012"},
		{"last chosen", audit.Filter{Plugin: "other"}, 4, "005 007 009 011"},
		{"more than there are", audit.Filter{Kind: "decision"}, 100, "001 002 003 004 005 006 007 008 009 010 011 012"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			if got := ids(f.entries(audit.Query{Filter: test.filter, Last: test.last})); got != test.want {
				t.Errorf("read %q, want %q", got, test.want)
			}
		})
	}
}

func TestReadStopsWhenTold(t *testing.T) {
	f := newFolder(t)
	writeMany(t, f.open(rotating(f, -1)), 1, 12)
	for _, q := range []audit.Query{{}, {Last: 5}, {Follow: true}} {
		q.File = f.file()
		n := 0
		for _, err := range audit.Read(t.Context(), q) {
			if err != nil {
				t.Fatal(err)
			}
			if n++; n == 2 {
				break
			}
		}
		if n != 2 {
			t.Errorf("%+v: %d records, want 2", q, n)
		}
	}
}

func TestReadErrors(t *testing.T) {
	f := newFolder(t)
	read := func(ctx context.Context, file string) (err error) {
		for _, err = range audit.Read(ctx, audit.Query{File: file}) {
			if err != nil {
				return err
			}
		}
		return nil
	}
	if err := read(t.Context(), f.file()); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("missing file: %v", err)
	}
	if err := read(t.Context(), "/dev/zero"); err == nil || !strings.Contains(err.Error(), "regular") {
		t.Errorf("device: %v", err)
	}
	f.write(f.config(), 1)
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	if err := read(ended, f.file()); !errors.Is(err, context.Canceled) {
		t.Errorf("ended context: %v", err)
	}
}

// Following crosses rotations and loses nothing, wherever it starts.
func TestFollow(t *testing.T) {
	for _, last := range []int{0, 3} {
		f := newFolder(t)
		log := f.open(rotating(f, -1))
		writeMany(t, log, 1, 5)
		ctx, cancel := context.WithCancel(t.Context())
		seen := make(chan string, 200)
		done := make(chan error, 1)
		go func() {
			var failed error
			q := audit.Query{File: f.file(), Filter: audit.Filter{Kind: "decision"}, Last: last, Follow: true, Poll: time.Millisecond}
			for entry, err := range audit.Read(ctx, q) {
				if err != nil {
					failed = err
					break
				}
				seen <- entry.Decision
			}
			done <- failed
		}()
		first := 1
		if last > 0 {
			first = 6 - last
		}
		for i := first; i <= 5; i++ {
			if id := <-seen; id != fmt.Sprintf("d%03d", i) {
				t.Errorf("read %s, want d%03d", id, i)
			}
		}
		writeMany(t, log, 6, 60)
		// Refusals may be in the second log, so that the order is that of the looks.
		all := map[string]bool{}
		for range 60 {
			all[<-seen] = true
		}
		for i := 6; i <= 65; i++ {
			if !all[fmt.Sprintf("d%03d", i)] {
				t.Errorf("d%03d is not read", i)
			}
		}
		cancel()
		if err := <-done; err != nil {
			t.Errorf("end: %v", err)
		}
	}
}

// Bytes that are no record are shown, and not taken for one.
func TestReadShowsWhatIsNoRecord(t *testing.T) {
	f := newFolder(t)
	f.write(f.config(), 1)
	f.put(append(f.read(), "not a record\n{\"seq\":2"...))
	for _, last := range []int{0, 10} {
		entries := f.entries(audit.Query{Last: last})
		if len(entries) < 2 || string(entries[1].Raw) != "not a record" || entries[1].Seq != 0 || entries[1].Kind != "" {
			t.Errorf("last %d: %+v", last, entries)
		}
		if entries := f.entries(audit.Query{Last: last, Filter: audit.Filter{Plugin: "weather"}}); len(entries) != 1 {
			t.Errorf("last %d: %+v", last, entries)
		}
	}
}
