package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"testing"
	"time"

	"github.com/chaperone-proxy/chaperone/authz"
	"github.com/chaperone-proxy/chaperone/vault"
	"github.com/chaperone-proxy/chaperone/vault/tokens"
)

// credentialScene measures the cost of a cached credential in Gate.Admit, leased
// from the benchmark's Vault, without an audit log, which has a scene of its own.
func credentialScene(ctx context.Context, w *env) (t *table, err error) {
	broker, err := vault.New(vault.Config{Plugin: "weather", Address: w.vault.Address, Auth: vault.Auth{
		Method: vault.MethodAppRole, RoleIDFile: w.file("role-id"), SecretIDFile: w.file("secret-id"),
	}})
	if err != nil {
		return nil, err
	}
	leased, stop := context.WithCancel(ctx)
	defer func() {
		stop()
		err = errors.Join(err, broker.Run(leased)) // gives back
	}()
	source, err := tokens.New(tokens.Config{Source: broker, Dial: (&net.Dialer{}).DialContext})
	if err != nil {
		return nil, err
	}
	took := map[string]testing.BenchmarkResult{}
	for range scrubRounds { // in turns, and the least disturbed one counts
		for _, credential := range []string{"", "key"} {
			gate, request, err := gateOf(credential, source)
			if err != nil {
				return nil, err
			}
			r := testing.Benchmark(func(b *testing.B) {
				b.ReportAllocs()
				for range b.N {
					if a, err := gate.Admit(ctx, request, authz.Source{Door: authz.DoorProxy}); err != nil || a.Refusal != nil {
						b.Fatal("not admitted", err)
					}
				}
			})
			if best, ok := took[credential]; !ok || r.NsPerOp() < best.NsPerOp() {
				took[credential] = r
			}
		}
	}
	without, with := took[""], took["key"]
	adds, more := with.NsPerOp()-without.NsPerOp(), with.AllocsPerOp()-without.AllocsPerOp()
	t = &table{title: "Gate.Admit with a warm credential, nothing recorded", heads: []string{"without", "with", "adds", "goal: below 1 µs, no allocation"}}
	t.add(fmt.Sprintf("%d ns", without.NsPerOp()), fmt.Sprintf("%d ns", with.NsPerOp()), fmt.Sprintf("%d ns, %d allocations", adds, more), verdict(adds < 1000 && more == 0))
	return t, nil
}

// silent records nothing.
type silent struct{}

func (silent) Record(*authz.Record) error { return nil }

// gateOf returns a gate of one rule, with a credential unless it is "".
func gateOf(credential string, source authz.CredentialSource) (*authz.Gate, authz.Request, error) {
	grant := authz.Grant{
		Name: "weather", Plugin: "weather", NotAfter: time.Now().Add(time.Hour),
		Rules: []authz.Rule{{
			ID: "api", Reason: "benchmark", To: authz.To{Hosts: []string{apiHost}}, Methods: []string{"GET"}, Paths: []string{"/v1/*"}, Credential: credential,
		}},
		Credentials: []authz.CredentialSpec{{
			Name: "key", Vault: authz.VaultPath{Path: "secret/data/weather"}, Inject: authz.Inject{Header: "Authorization", Value: "Bearer {api_key}"},
		}},
	}
	policy, problems := authz.Compile(authz.Input{Plugin: "weather", Grants: []authz.Grant{grant}}, time.Now())
	if problems != nil {
		return nil, authz.Request{}, fmt.Errorf("compile: %v", problems[0])
	}
	engine := &authz.Engine{}
	engine.Install(policy)
	to, err := authz.NewDestination(authz.SchemeHTTPS, apiHost, "/v1/forecast")
	if err != nil {
		return nil, authz.Request{}, err
	}
	gate, err := authz.NewGate(authz.GateConfig{Engine: engine, Ledger: authz.NewLedger(), Recorder: silent{}, Now: time.Now, Credentials: source})
	return gate, authz.Request{Principal: "weather", Action: authz.Action{Method: "GET"}, Destination: to}, err
}

// scrubScene measures what looking for the credential in an answer costs: the
// same answer through the sidecar with and without a credential, beside the
// origin and the floor.
func scrubScene(ctx context.Context, w *env) (*table, error) {
	s, err := w.startSidecar(ctx)
	if err != nil {
		return nil, err
	}
	defer s.Close()
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(w.ca.PEM())
	trusting := &tls.Config{RootCAs: roots, ServerName: apiHost, MinVersion: tls.VersionTLS12}
	ca, err := pluginCA(ctx, s.address, w.origin.address)
	if err != nil {
		return nil, err
	}
	pluginRoots := x509.NewCertPool()
	pluginRoots.AddCert(ca)
	intercepted := &tls.Config{RootCAs: pluginRoots, MinVersion: tls.VersionTLS12}
	_, port, err := net.SplitHostPort(w.origin.address)
	if err != nil {
		return nil, err
	}
	api := "https://" + net.JoinHostPort(apiHost, port)
	t := &table{
		title: "Scrubbing: answers through the sidecar without and with a credential to look for, one connection, HTTP/1.1, TLS on both sides",
		heads: []string{"answer", "path", "p50", "answers/s", "proxy CPU/answer", "scrubbing adds", "goal"},
	}
	for _, answer := range []struct{ name, path string }{{"2 KiB of JSON", "json-2"}, {"1 MiB of JSON", "json-1024"}, {"1 MiB of an image", "image-1024"}} {
		rows := []proxyRow{
			{"direct", "https://" + w.origin.address + "/open/" + answer.path, "", trusting, nil},
			{"net/http reverse proxy (floor)", "https://" + w.floor.address + "/open/" + answer.path, "", trusting, w.floor},
			{"chaperone, no credential", api + "/open/" + answer.path, s.address, intercepted, &s.process},
			{"chaperone, credential and scrubbing", api + "/secret/" + answer.path, s.address, intercepted, &s.process},
		}
		if err := w.scrubRows(ctx, t, answer.name, rows); err != nil {
			return nil, fmt.Errorf("%w\n%s", err, s.stderr.String())
		}
	}
	return t, nil
}

// scrubRounds is more than rounds: what is looked for is a small difference.
const scrubRounds = 7

func (w *env) scrubRows(ctx context.Context, t *table, answer string, rows []proxyRow) error {
	seen := make([][]measured, len(rows))
	for range scrubRounds {
		for i, r := range rows {
			c := client(1, r.proxy, r.trust)
			m, err := load(ctx, c, r.target, 1, w.length/scrubRounds, r.measure)
			c.CloseIdleConnections()
			if err != nil {
				return fmt.Errorf("%s of %s: %w", r.name, answer, err)
			}
			seen[i] = append(seen[i], m)
		}
	}
	plain := median(seen[2])
	for i, r := range rows {
		m := median(seen[i])
		cpu, adds, goal := "", "", ""
		if i > 0 {
			cpu = us(m.cpu)
		}
		if i == 3 {
			slower := 1 - m.rate/plain.rate
			adds = fmt.Sprintf("%s of CPU, %.0f %% of throughput", us(m.cpu-plain.cpu), 100*slower)
			switch answer {
			case "2 KiB of JSON":
				goal = "at most 15 µs: " + verdict(m.cpu-plain.cpu <= 15*time.Microsecond)
			case "1 MiB of JSON":
				goal = "at most 25 % of throughput: " + verdict(slower <= 0.25)
			default: // the machine's noise
				goal = "at most 5 % of CPU: " + verdict(ratio(m.cpu, plain.cpu) <= 1.05)
			}
		}
		t.add(answer, r.name, us(m.p50), fmt.Sprintf("%.0f", m.rate), cpu, adds, goal)
	}
	return nil
}
