package authz

import (
	"bytes"
	"encoding/json"
	"flag"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/goccy/go-yaml"
	"github.com/google/go-cmp/cmp"
	"golang.org/x/tools/txtar"
)

var update = flag.Bool("update", false, "write the decisions that are taken into the corpus")

// The corpus holds grants, revocations and usage, and then requests
// with what is decided. A request is a line
//
//	METHOD URL [key=value ...]
//
// with - for the method of a tunnel, and the keys as (the plugin), upgrade,
// without (conditions that the door cannot enforce), at (a time), live (the
// request is in flight), resolves (the address of the name) and standin
// (GRANT/CREDENTIAL, whose placeholder is found outside its slot). The decision is
// indented below it. Run the test with -update to write it.
type scenario struct {
	in          Input
	revocations []Revocation
	spent       []spending
}

type spending struct {
	Grant, Rule, Kind string
	Used              uint64
	Ago               Duration
}

type policyFile struct {
	ObserveUntil time.Time `json:"observeUntil"`
	Grants       []struct {
		Name string `json:"name"`
		Grant
	} `json:"grants"`
	Guardrails []struct {
		Name string `json:"name"`
		Guardrail
	} `json:"guardrails"`
	Revocations []Revocation `json:"revocations"`
	Spent       []spending   `json:"spent"`
}

func readScenario(t *testing.T, data []byte) scenario {
	t.Helper()
	decoder := json.NewDecoder(bytes.NewReader(data))
	decoder.DisallowUnknownFields()
	var file policyFile
	if err := decoder.Decode(&file); err != nil {
		t.Fatal(err)
	}
	s := scenario{
		in:          Input{Plugin: "weather", Observe: !file.ObserveUntil.IsZero(), ObserveUntil: file.ObserveUntil},
		revocations: file.Revocations, spent: file.Spent,
	}
	for _, g := range file.Grants {
		g.Grant.Name = g.Name
		s.in.Grants = append(s.in.Grants, g.Grant)
	}
	for _, g := range file.Guardrails {
		g.Guardrail.Name = g.Name
		s.in.Guardrails = append(s.in.Guardrails, g.Guardrail)
	}
	return s
}

// ledger returns a ledger in which all that the scenario states has been spent.
func (s scenario) ledger(snapshot *Snapshot) *Ledger {
	ledger := NewLedger()
	for _, spent := range s.spent {
		at := noon.Add(-time.Duration(spent.Ago))
		if spent.Kind == "meter" {
			ledger.samples["weather"] = reading{at: at}
			continue
		}
		for _, lim := range snapshot.allLimits("weather") {
			if name := lim.key.Value(); name.grant == spent.Grant && name.rule == spent.Rule && lim.kind.String() == spent.Kind {
				ledger.bucket(lim.key).spend(lim.spec, spent.Used, at, true)
			}
		}
	}
	return ledger
}

// question is one request of the corpus.
type question struct {
	text     string
	req      Request
	err      error // why it is malformed
	at       time.Time
	live     bool
	resolves []netip.Addr
	standin  string
}

func readQuestion(t *testing.T, text string) question {
	t.Helper()
	words := strings.Fields(text)
	if len(words) < 2 {
		t.Fatalf("%q is not a request", text)
	}
	q := question{text: text, at: noon}
	q.req.Principal = "weather"
	upgrade, method := "", words[0]
	for _, word := range words[2:] {
		key, value, _ := strings.Cut(word, "=")
		switch key {
		case "as":
			q.req.Principal = Principal(value)
		case "upgrade":
			upgrade = value
		case "live":
			q.live = true
		case "at":
			at, err := time.Parse(time.RFC3339, value)
			if err != nil {
				t.Fatal(err)
			}
			q.at = at
		case "without":
			for name := range strings.SplitSeq(value, ",") {
				q.req.Unenforceable |= map[string]Conditions{
					"addresses": ConditionAddresses, "tls": ConditionTLS, "timeout": ConditionTimeout,
					"credential": ConditionCredential, "originate": ConditionOriginate,
					"mtls": ConditionCertificate, "sigv4": ConditionSignature,
				}[name]
			}
		case "standin":
			q.standin = value
		case "resolves":
			for address := range strings.SplitSeq(value, ",") {
				q.resolves = append(q.resolves, netip.MustParseAddr(address))
			}
		default:
			t.Fatalf("%q: what is %q?", text, key)
		}
	}
	scheme, rest, _ := strings.Cut(words[1], "://")
	authority, target := rest, ""
	if i := strings.IndexAny(rest, "/?"); i >= 0 {
		authority, target = rest[:i], rest[i:]
	}
	q.req.Destination, q.err = NewDestination(Scheme(scheme), authority, target)
	if method != "-" && q.err == nil {
		q.req.Action, q.err = NewAction(method, upgrade)
	}
	return q
}

// answer writes what is decided.
func (q question) answer(s *Snapshot, usage Usage) string {
	var out strings.Builder
	line := func(format string, args ...any) { fmt.Fprintf(&out, "  "+format+"\n", args...) }
	if q.err != nil {
		line("%s: %v", MalformedRequest, q.err)
		return out.String()
	}
	if q.live {
		usage = usage.InFlight()
	}
	e := s.Explain(q.req, usage, q.at)
	d := e.Decision
	first := d.Reason.String()
	if d.Rule != "" {
		first += " by " + d.Grant + "/" + d.Rule
	}
	if d.Allowed() && d.Credential != "" {
		first += " with " + d.Credential
	}
	if d.Allowed() && d.rule != nil {
		if to := d.rule.destination(q.req.Destination); to != q.req.Destination {
			first += " as " + to.URL()
		}
	}
	if terms := d.Terms(); d.Allowed() && terms.Timeout > 0 {
		first += " within " + Duration(terms.Timeout).String()
	}
	if !d.Allowed() && !d.Cuts() {
		first += ", sparing what is in flight"
	}
	line("%s", first)
	for _, addr := range q.resolves {
		line("at %s: %s", addr, d.CheckAddress(addr))
	}
	if grant, credential, ok := strings.Cut(q.standin, "/"); ok && d.Allowed() {
		detail, remedy := s.misplacedPlaceholder(q.req.Principal, d, grant, credential)
		line("%s: %s", CredentialMisplaced, detail)
		line("remedy: %s", remedy)
	}
	if d.Allowed() {
		return out.String()
	}
	line("%s", e.Detail)
	if e.Nearest != nil {
		line("nearest: %s/%s but for %s", e.Nearest.Grant, e.Nearest.Rule, strings.Join(e.Nearest.Differs, ", "))
	}
	if d.RetryAfter > 0 {
		line("retry: %s", d.RetryAfter)
	}
	line("remedy: %s", e.Remedy)
	return out.String()
}

func TestDecisions(t *testing.T) {
	files, err := filepath.Glob("testdata/decisions/*.txtar")
	if err != nil || len(files) == 0 {
		t.Fatal("the corpus is missing", err)
	}
	seen := map[string]bool{}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txtar"), func(t *testing.T) {
			archive, err := txtar.ParseFile(file)
			if err != nil {
				t.Fatal(err)
			}
			if len(archive.Files) != 2 || archive.Files[0].Name != "policy.json" || archive.Files[1].Name != "requests" {
				t.Fatal("a scenario holds policy.json and requests")
			}
			scenario := readScenario(t, archive.Files[0].Data)
			s := newSnapshot(compile(t, scenario.in), scenario.revocations, 1)
			usage := scenario.ledger(s).Usage()
			var got strings.Builder
			for text := range strings.Lines(string(archive.Files[1].Data)) {
				switch {
				case strings.HasPrefix(text, "  "):
				case strings.TrimSpace(text) == "", strings.HasPrefix(text, "#"):
					got.WriteString(text)
				default:
					q := readQuestion(t, strings.TrimSpace(text))
					answer := q.answer(s, usage)
					got.WriteString(q.text + "\n" + answer)
					seen[strings.FieldsFunc(answer, func(r rune) bool { return r == ' ' || r == ':' || r == ',' || r == '\n' })[0]] = true
					scenario.checkOrder(t, q, answer)
					scenario.checkRemedy(t, q, s, usage)
				}
			}
			if *update {
				archive.Files[1].Data = []byte(got.String())
				if err := os.WriteFile(file, txtar.Format(archive), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			if diff := cmp.Diff(string(archive.Files[1].Data), got.String()); diff != "" {
				t.Errorf("decisions differ from the corpus (-want +got):\n%s", diff)
			}
		})
	}
	for r := Granted; r <= UsageUnknown; r++ { // later reasons are not decisions of the policy
		// No document here states a matcher; facts_test.go and statement_test.go test them.
		statement := r == StatementUnreadable || r == StatementTooLarge || r == StatementNotGranted
		if !seen[r.String()] && r != DestinationMismatch && !statement {
			t.Errorf("no request in the corpus is answered %s", r)
		}
	}
}

// checkOrder checks that the order of documents and rules does not matter.
func (s scenario) checkOrder(t *testing.T, q question, want string) {
	t.Helper()
	in := s.in
	in.Grants, in.Guardrails = slices.Clone(in.Grants), slices.Clone(in.Guardrails)
	for i := range in.Grants {
		in.Grants[i].Rules = slices.Clone(in.Grants[i].Rules)
		slices.Reverse(in.Grants[i].Rules)
	}
	slices.Reverse(in.Grants)
	revocations := slices.Clone(s.revocations)
	slices.Reverse(revocations)
	snapshot := newSnapshot(compile(t, in), revocations, 1)
	if got := q.answer(snapshot, s.ledger(snapshot).Usage()); got != want {
		t.Errorf("%s is answered\n%sand with everything in reverse order\n%s", q.text, want, got)
	}
}

// checkRemedy checks that the rule which a refusal asks for, and the field it
// would add to the nearest rule, do grant the request.
func (s scenario) checkRemedy(t *testing.T, q question, before *Snapshot, usage Usage) {
	t.Helper()
	if q.err != nil {
		return
	}
	e := before.Explain(q.req, usage, q.at)
	if e.YAML == "" || !IsName(string(q.req.Principal)) || q.req.Action.Method == "" && q.req.Destination.scheme.HTTP() {
		return
	}
	// A tunnel to an address is asked for as tcp, since tls matches
	// server names, and what a rule cannot change stays as it is.
	if q.req.Destination.addr.IsValid() && q.req.Destination.scheme == SchemeTLS {
		return
	}
	stays := []Reason{Granted, NotEnforceableHere, QuotaExceeded, UsageUnknown, Revoked}
	g := Grant{Name: "zz-asked-for", Plugin: string(q.req.Principal), NotAfter: q.at.Add(time.Hour), Rules: readRules(t, e.YAML)}
	in := s.in
	in.Grants = slices.Clone(in.Grants)
	nearest := slices.IndexFunc(in.Grants, func(o Grant) bool { return e.Nearest != nil && o.Name == e.Nearest.Grant })
	if nearest >= 0 && g.Rules[0].Credential != "" { // with the credential it belongs into that grant
		in.Grants[nearest].Rules = append(slices.Clone(in.Grants[nearest].Rules), g.Rules...)
	} else {
		in.Grants = append(in.Grants, g)
	}
	after := newSnapshot(compile(t, in), s.revocations, 1)
	if d := after.Decide(q.req, usage, q.at); !slices.Contains(stays, d.Reason) {
		t.Errorf("%s: with the rule\n%sit is %s", q.text, e.YAML, d.Reason)
	}
	field, ok := strings.CutPrefix(e.Remedy, "ask for ")
	field, on, ok2 := strings.Cut(field, " on rule ")
	if !ok || !ok2 {
		return
	}
	in.Grants = slices.Clone(s.in.Grants)
	for i := range in.Grants {
		in.Grants[i].Rules = slices.Clone(in.Grants[i].Rules)
		for j := range in.Grants[i].Rules {
			if r := &in.Grants[i].Rules[j]; on == r.ID+" of grant "+in.Grants[i].Name {
				addField(t, r, field)
			}
		}
	}
	after = newSnapshot(compile(t, in), s.revocations, 1)
	if d := after.Decide(q.req, usage, q.at); !slices.Contains(stays, d.Reason) {
		t.Errorf("%s: with %s on rule %s it is %s", q.text, field, on, d.Reason)
	}
}

// readRules reads rules as a person would paste them into a grant.
func readRules(t *testing.T, text string) []Rule {
	t.Helper()
	data, err := yaml.YAMLToJSON([]byte(text))
	if err != nil {
		t.Fatalf("%v in\n%s", err, text)
	}
	decoder := json.NewDecoder(bytes.NewReader(data))
	decoder.DisallowUnknownFields()
	var rules []Rule
	if err := decoder.Decode(&rules); err != nil {
		t.Fatalf("%v in\n%s", err, text)
	}
	return rules
}

// addField adds to a rule the text of a remedy.
func addField(t *testing.T, r *Rule, field string) {
	t.Helper()
	var more Rule
	data, err := yaml.YAMLToJSON([]byte(field))
	if err != nil {
		t.Fatal(err)
	}
	if ports, ok := strings.CutPrefix(field, "ports: "); ok {
		if err := json.Unmarshal([]byte(ports), &r.To.Ports); err != nil {
			t.Fatal(err)
		}
		return
	}
	if err := json.Unmarshal(data, &more); err != nil {
		t.Fatal(err)
	}
	r.Methods = append(slices.Clone(r.Methods), more.Methods...)
	r.Paths = append(slices.Clone(r.Paths), more.Paths...)
	r.Upgrades = append(slices.Clone(r.Upgrades), more.Upgrades...)
	if more.EncodedSlash != "" {
		r.EncodedSlash = more.EncodedSlash
	}
}
