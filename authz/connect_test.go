package authz

import (
	"strings"
	"testing"
	"time"
)

// TestRefuseConnect checks what to ask for instead of a tunnel.
func TestRefuseConnect(t *testing.T) {
	engine, book := new(Engine), new(kept)
	policy, problems := Compile(Input{Plugin: "lab", Grants: []Grant{{
		Name: "lab", Plugin: "lab", NotAfter: refuseTime.Add(time.Hour), Rules: []Rule{
			{ID: "web", Reason: "a test", To: To{Hosts: []string{"api.lab.example"}}, Methods: []string{"POST"}, Paths: []string{"/v1"}},
			{ID: "plain", Reason: "a test", To: To{Scheme: SchemeHTTP, Hosts: []string{"plain.lab.example"}, Ports: []uint16{8080}}, Methods: []string{"GET"}, Paths: []string{"/**"}},
			{ID: "db", Reason: "a test", To: To{Scheme: SchemeTCP, Hosts: []string{"db.lab.example"}, Ports: []uint16{5432}}},
		},
	}}}, refuseTime)
	if len(problems) > 0 {
		t.Fatal(problems)
	}
	engine.Install(policy)
	gate, err := NewGate(GateConfig{Engine: engine, Ledger: NewLedger(), Recorder: book, Now: func() time.Time { return refuseTime }})
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		to, remedy, scheme string // no remedy: it is not refused here
	}{
		{"new.lab.example:443", "ask for a rule with to: {hosts: [new.lab.example]}; add methods and paths, which are not known yet", "https"},
		{"new.lab.example:80", "ask for a rule with to: {scheme: http, hosts: [new.lab.example]}; add methods and paths, which are not known yet", "http"},
		{"new.lab.example:8443", "ask for a rule with to: {hosts: [new.lab.example], ports: [8443]}; add methods and paths, which are not known yet", "https"},
		{"api.lab.example:443", "send the request itself instead of CONNECT: rules grant requests to this host, and a tunnel's content is not inspected here", "https"},
		{"plain.lab.example:8080", "send the request itself instead of CONNECT: rules grant requests to this host, and a tunnel's content is not inspected here", "http"},
		{"api.lab.example:8443", "ask for a rule with to: {hosts: [api.lab.example], ports: [8443]}; add methods and paths, which are not known yet", "https"},
		{"db.lab.example:5433", "ask for ports: [5432, 5433] on rule db of grant lab", "tcp"},
		{"db.lab.example:443", "ask for a rule with to: {hosts: [db.lab.example]}; add methods and paths, which are not known yet", "https"},
		{"db.lab.example:5432", "", ""},
	} {
		to, err := NewDestination(SchemeTCP, c.to, "")
		if err != nil {
			t.Fatal(err)
		}
		book.records = nil
		refusal, refused, err := gate.RefuseConnect("lab", to, Source{Door: DoorExtAuthz})
		if err != nil || refused != (c.remedy != "") {
			t.Fatalf("%s: refused %v, %v", c.to, refused, err)
		}
		if !refused {
			continue
		}
		if refusal.Reason != DestinationNotGranted || refusal.Remedy != c.remedy {
			t.Errorf("%s: %s, %q", c.to, refusal.Reason, refusal.Remedy)
		}
		if len(book.records) != 1 || book.records[0].Scheme != c.scheme || book.records[0].Method != "CONNECT" || !strings.HasPrefix(c.to, book.records[0].Host+":") {
			t.Errorf("%s: recorded %+v", c.to, book.records)
		}
	}
}

var refuseTime = time.Date(2030, 6, 1, 12, 0, 0, 0, time.UTC)

// kept keeps records.
type kept struct{ records []Record }

func (k *kept) Record(r *Record) error {
	k.records = append(k.records, *r)
	return nil
}

// TestShownURL has a scheme where it is known, and no user.
func TestShownURL(t *testing.T) {
	for _, c := range []struct {
		attempt Attempt
		want    string
	}{
		{Attempt{URL: "//bucket.lab.example/a//b?X-Amz-Signature=1", Scheme: SchemeHTTPS}, "https://bucket.lab.example/a//b"},
		{Attempt{URL: "//user:secret@bucket.lab.example/a", Scheme: SchemeHTTP}, "http://bucket.lab.example/a"},
		{Attempt{URL: "//user:secret@bucket.lab.example/a"}, "bucket.lab.example/a"},
		{Attempt{URL: "https://user:secret@bucket.lab.example/a", Scheme: SchemeHTTP}, "https://bucket.lab.example/a"},
		{Attempt{URL: "/a", Scheme: SchemeHTTP}, "/a"},
	} {
		if got := c.attempt.displayURL(); got != c.want {
			t.Errorf("%+v: %q, want %q", c.attempt, got, c.want)
		}
	}
}
