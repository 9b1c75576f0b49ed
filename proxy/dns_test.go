package proxy_test

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/miekg/dns"

	"github.com/chaperone-proxy/chaperone/authz"
	"github.com/chaperone-proxy/chaperone/internal/testenv"

	proxydns "github.com/chaperone-proxy/chaperone/proxy/dns"
)

func names(hosts ...string) authz.Input {
	return granted(authz.Rule{
		ID: "names", Reason: "a test", Methods: []string{"GET"}, Paths: []string{"/"}, To: authz.To{Hosts: hosts},
	})
}

func TestResolver(t *testing.T) {
	w := newWorld(t, setup{input: names("api.weather.example", "*.tiles.weather.example", "192.0.2.7")})
	for _, test := range []struct {
		name string
		kind uint16
		code int
		want string
	}{
		{"api.weather.example", dns.TypeA, dns.RcodeSuccess, "240.0.0.1"},
		{"API.Weather.EXAMPLE", dns.TypeA, dns.RcodeSuccess, "240.0.0.1"},
		{"api.weather.example", dns.TypeAAAA, dns.RcodeSuccess, "2001:20::f000:1"},
		{"a.tiles.weather.example", dns.TypeA, dns.RcodeSuccess, "240.0.0.2"},
		{"a.tiles.weather.example", dns.TypeAAAA, dns.RcodeSuccess, "2001:20::f000:2"},
		{"api.weather.example", dns.TypeHTTPS, dns.RcodeSuccess, ""},
		{"api.weather.example", dns.TypeSVCB, dns.RcodeSuccess, ""},
		{"api.weather.example", dns.TypeMX, dns.RcodeSuccess, ""},
		{"api.weather.example", dns.TypeANY, dns.RcodeSuccess, ""},
		{"evil.example", dns.TypeA, dns.RcodeNameError, ""},
		{"evil.example", dns.TypeAAAA, dns.RcodeNameError, ""},
		{"evil.example", dns.TypeTXT, dns.RcodeNameError, ""},
		{"evilapi.weather.example", dns.TypeA, dns.RcodeNameError, ""},
		{"b.a.tiles.weather.example", dns.TypeA, dns.RcodeNameError, ""},
		{"tiles.weather.example", dns.TypeA, dns.RcodeNameError, ""},
		{"192.0.2.7", dns.TypeA, dns.RcodeNameError, ""},
		{"c2VjcmV0.evil.example", dns.TypeTXT, dns.RcodeNameError, ""},
		{"1.0.0.240.in-addr.arpa", dns.TypePTR, dns.RcodeNameError, ""},
		{"localhost", dns.TypeA, dns.RcodeSuccess, "127.0.0.1"},
		{"LOCALHOST", dns.TypeAAAA, dns.RcodeSuccess, "::1"},
		{"x.localhost", dns.TypeA, dns.RcodeSuccess, "127.0.0.1"},
		{".", dns.TypeNS, dns.RcodeNameError, ""},
	} {
		answer := w.ask(test.name, test.kind)
		got := ""
		for _, record := range answer.Answer {
			switch record := record.(type) {
			case *dns.A:
				got += netip.MustParseAddr(record.A.String()).String()
			case *dns.AAAA:
				addr, _ := netip.AddrFromSlice(record.AAAA)
				got += addr.String()
			default:
				got += record.String()
			}
		}
		if answer.Rcode != test.code || got != test.want || len(answer.Question) != 1 || answer.Question[0].Name != dns.Fqdn(test.name) {
			t.Errorf("%s %s: %s %q, want %q", test.name, dns.TypeToString[test.kind], dns.RcodeToString[answer.Rcode], got, test.want)
		}
	}
	for address, want := range map[string]string{
		"240.0.0.2": "a.tiles.weather.example", "::ffff:240.0.0.2": "a.tiles.weather.example", "2001:20::f000:2": "a.tiles.weather.example",
		"2001:20::f000:9": "", "2001:20::7f00:1": "", "2001:20:0:0:0:1:f000:2": "", "fd00::f000:2": "",
	} {
		if host, _ := w.resolver.Host(netip.MustParseAddr(address)); host != want {
			t.Errorf("%s is %q, want %q", address, host, want)
		}
	}
	// Equal names are recorded once, localhost and names of addresses never.
	var urls []string
	for _, record := range w.records.of(authz.KindDecision) {
		urls = append(urls, record.Reason+" "+record.Detail)
		if record.Host == "" && !strings.Contains(record.Detail, "not a host name") || record.Port != 0 || record.Scheme != "" {
			t.Errorf("a refused name is recorded as %q, port %d, scheme %q", record.Host, record.Port, record.Scheme)
		}
	}
	if len(urls) != 7 {
		t.Errorf("recorded %d refusals: %s", len(urls), strings.Join(urls, "\n"))
	}
}

func TestResolverOverTCP(t *testing.T) {
	w := newWorld(t, setup{input: names("api.weather.example")})
	w.resolve()
	question := new(dns.Msg)
	question.SetQuestion("api.weather.example.", dns.TypeA)
	question.SetEdns0(1232, true)
	answer, _, err := (&dns.Client{Net: "tcp"}).ExchangeContext(t.Context(), question, w.dnsTCP)
	testenv.Must(t, err)
	if len(answer.Answer) != 1 || answer.IsEdns0() == nil {
		t.Errorf("answer is %s", answer)
	}
	question = new(dns.Msg)
	question.SetQuestion("api.weather.example.", dns.TypeA)
	question.Question = append(question.Question, question.Question[0])
	answer, _, err = (&dns.Client{Net: "tcp"}).ExchangeContext(t.Context(), question, w.dnsTCP)
	testenv.Must(t, err)
	if answer.Rcode != dns.RcodeFormatError {
		t.Errorf("two questions are answered %s", answer)
	}
	question = new(dns.Msg)
	question.SetQuestion("evil.example.", dns.TypeA)
	_, _, err = (&dns.Client{Net: "tcp"}).ExchangeContext(t.Context(), question, w.dnsTCP)
	testenv.Must(t, err)
	w.ask("evil.example", dns.TypeA)
	w.ask("evil.example", dns.TypeA) // folded in the log, not here
	want := proxydns.Stats{TCP: proxydns.Questions{Answered: 1, Refused: 1}, UDP: proxydns.Questions{Refused: 2}}
	if got := w.resolver.Stats(); got != want {
		t.Errorf("counted %+v, want %+v", got, want)
	}
}

// TestResolverFollowsThePolicy stops resolving names whose grant is revoked.
func TestResolverFollowsThePolicy(t *testing.T) {
	w := newWorld(t, setup{input: names("api.weather.example")})
	if got := w.ask("api.weather.example", dns.TypeA); got.Rcode != dns.RcodeSuccess {
		t.Fatalf("answer is %s", got)
	}
	w.engine.Revoke(authz.Revocation{ID: "r", Plugin: plugin, Level: authz.LevelQuarantine})
	if got := w.ask("api.weather.example", dns.TypeA); got.Rcode != dns.RcodeNameError {
		t.Errorf("answer after the revocation is %s", got)
	}
	w.engine.Restore("r")
	w.install(names("other.weather.example"))
	if got := w.ask("api.weather.example", dns.TypeA); got.Rcode != dns.RcodeNameError {
		t.Errorf("answer after the reload is %s", got)
	}
	if got := w.ask("other.weather.example", dns.TypeA); len(got.Answer) != 1 || !strings.Contains(got.Answer[0].String(), "240.0.0.2") {
		t.Errorf("answer for the new name is %s", got)
	}
}

// resolverWith returns a resolver over a file of names, and a function that
// asks it without any network.
func resolverWith(t *testing.T, w *world, file string) *proxydns.Resolver {
	t.Helper()
	r, err := proxydns.NewResolver(proxydns.Config{Plugin: plugin, Gate: w.gate, Engine: w.engine, NamesFile: file})
	testenv.Must(t, err)
	return r
}

func TestNamesSurviveARestart(t *testing.T) {
	file := filepath.Join(t.TempDir(), "names")
	w := newWorld(t, setup{input: names("api.weather.example", "*.tiles.weather.example")})
	w.resolver = resolverWith(t, w, file)
	w.ask("api.weather.example", dns.TypeA)
	w.ask("a.tiles.weather.example", dns.TypeA)
	info, err := os.Stat(file)
	testenv.Must(t, err)
	if info.Mode().Perm() != 0o600 {
		t.Errorf("mode is %s", info.Mode())
	}
	// A line that was cut short was never answered.
	content, err := os.ReadFile(file)
	testenv.Must(t, err)
	testenv.Must(t, os.WriteFile(file, append(content, "240.0.0.3 b.ti"...), 0o600))

	w2 := newWorld(t, setup{input: names("api.weather.example", "*.tiles.weather.example")})
	w2.resolver = resolverWith(t, w2, file)
	for name, want := range map[string]string{"a.tiles.weather.example": "240.0.0.2", "api.weather.example": "240.0.0.1", "c.tiles.weather.example": "240.0.0.3"} {
		answer := w2.ask(name, dns.TypeA)
		if len(answer.Answer) != 1 || answer.Answer[0].(*dns.A).A.String() != want {
			t.Errorf("%s is %s, want %s", name, answer, want)
		}
	}
	want := "240.0.0.1 api.weather.example =api.weather.example\n240.0.0.2 a.tiles.weather.example =*.tiles.weather.example\n240.0.0.3 c.tiles.weather.example =*.tiles.weather.example\n"
	content, err = os.ReadFile(file)
	testenv.Must(t, err)
	if diff := cmp.Diff(want, string(content)); diff != "" {
		t.Errorf("file (-want +got):\n%s", diff)
	}
	for _, broken := range []string{
		"240.0.0.1\n", "10.0.0.1 a =a\n", "::ffff:240.0.0.1 a =a\n", "240.0.0.1 a =a\n240.0.0.1 b =b\n", "240.0.0.1 a =a\n240.0.0.2 a =a\n", "x y z\n",
	} {
		testenv.Must(t, os.WriteFile(file, []byte(broken), 0o600))
		if _, err := proxydns.NewResolver(proxydns.Config{Plugin: plugin, Gate: w.gate, Engine: w.engine, NamesFile: file}); err == nil {
			t.Errorf("names %q are taken", broken)
		}
	}
}

// TestWildcardNamesAreBounded fills the file up to the limit of one pattern.
func TestWildcardNamesAreBounded(t *testing.T) {
	file := filepath.Join(t.TempDir(), "names")
	var lines strings.Builder
	for i := range 4095 {
		fmt.Fprintf(&lines, "240.0.%d.%d n%d.tiles.weather.example =*.tiles.weather.example\n", (i+1)>>8, (i+1)&0xff, i)
	}
	testenv.Must(t, os.WriteFile(file, []byte(lines.String()), 0o600))
	w := newWorld(t, setup{input: names("api.weather.example", "*.tiles.weather.example")})
	w.resolver = resolverWith(t, w, file)
	for _, test := range []struct {
		name string
		want int
	}{
		{"last.tiles.weather.example", dns.RcodeSuccess},
		{"more.tiles.weather.example", dns.RcodeNameError},
		{"n7.tiles.weather.example", dns.RcodeSuccess},
		{"last.tiles.weather.example", dns.RcodeSuccess},
		{"api.weather.example", dns.RcodeSuccess},
	} {
		if got := w.ask(test.name, dns.TypeA); got.Rcode != test.want {
			t.Errorf("%s: %s", test.name, dns.RcodeToString[got.Rcode])
		}
	}
}

// TestNamesFileMustBeAFile rejects files that cannot store names.
func TestNamesFileMustBeAFile(t *testing.T) {
	w := newWorld(t, setup{input: names("api.weather.example")})
	dir := t.TempDir()
	link := filepath.Join(dir, "link")
	testenv.Must(t, os.Symlink(filepath.Join(dir, "elsewhere"), link))
	for _, file := range []string{"/dev/full", dir, link, filepath.Join(dir, "missing", "names")} {
		if _, err := proxydns.NewResolver(proxydns.Config{Plugin: plugin, Gate: w.gate, Engine: w.engine, NamesFile: file}); err == nil {
			t.Errorf("%s is taken", file)
		}
	}
}

// TestObservingResolves answers any name while the sidecar observes.
func TestObservingResolves(t *testing.T) {
	input := names("api.weather.example")
	input.Observe, input.ObserveUntil = true, time.Now().Add(time.Hour)
	w := newWorld(t, setup{input: input})
	if got := w.ask("evil.example", dns.TypeA); len(got.Answer) != 1 {
		t.Errorf("answer is %s", got)
	}
}

// TestResolverProbes answers NXDOMAIN to names that resolver libraries construct, and
// does not record a refusal.
func TestResolverProbes(t *testing.T) {
	t.Setenv("LOCALDOMAIN", "svc.cluster.example corp.example")
	w := newWorld(t, setup{input: names("api.weather.example", "*.tiles.weather.example")})
	probes := make(chan authz.Probe, 8)
	w.resolver = testenv.MustGet(proxydns.NewResolver(proxydns.Config{
		Plugin: plugin, Gate: w.gate, Engine: w.engine, Probe: func(p authz.Probe, _ string) { probes <- p },
	}))(t)
	for _, test := range []struct {
		name string
		want authz.Probe
	}{
		{"api.weather.example.svc.cluster.example", authz.ProbeSearch},
		{"API.weather.example.CORP.example", authz.ProbeSearch},
		{"a.tiles.weather.example.corp.example", authz.ProbeSearch},
		{"_grpc_config.api.weather.example", authz.ProbeService},
		{"_https._tcp.api.weather.example", authz.ProbeService},
		{"_grpc_config.api.weather.example.corp.example", authz.ProbeService},
		{"api.weather.example.other.example", ""}, // no search domain
		{"evil.corp.example", ""},
		{"evilapi.weather.example.corp.example", ""},
		{"_grpc_config.evil.example", ""},
		{"corp.example", ""},
		{"evil.example", ""},
		{"evil.example.corp.example", authz.ProbeSearch}, // evil.example itself was reported
		{"_grpc_config.evil.example", authz.ProbeService},
		{"c2VjcmV0.api.weather.example.corp.example", ""},
		{"_", ""},
	} {
		if answer := w.ask(test.name, dns.TypeA); answer.Rcode != dns.RcodeNameError || len(answer.Answer) > 0 {
			t.Errorf("%s: %s", test.name, dns.RcodeToString[answer.Rcode])
		}
		var got authz.Probe
		select {
		case got = <-probes: // it is reported before the answer
		default:
		}
		if got != test.want {
			t.Errorf("%s is probe %q, want %q", test.name, got, test.want)
		}
	}
}
