package main

import (
	"context"
	"errors"
	"net/netip"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/chaperone-proxy/chaperone/audit"
	"github.com/chaperone-proxy/chaperone/authz"
	"github.com/chaperone-proxy/chaperone/policy"
)

// recordLog is a command of scripts: recordlog STATEDIR CONFIG full|masked ACCESSES. It
// writes the audit log of a sidecar that decides the accesses of a file, one METHOD URL a
// line and one a second, beginning at 2026-12-01T12:00:00Z. A line of the form
// "METHOD URL at ADDRESS" also has the address that the host resolves to.
func recordLog(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 4 {
		ts.Fatalf("usage: recordlog STATEDIR CONFIG full|masked ACCESSES")
	}
	now := time.Date(2026, 12, 1, 12, 0, 0, 0, time.UTC)
	accesses := strings.Split(strings.TrimSpace(ts.ReadFile(args[3])), "\n")
	ts.Check(recordedLog(ts.MkAbs(args[0]), ts.MkAbs(args[1]), args[2] == "full", now, accesses))
}

// recordedLog writes the audit log of the sidecar of a configuration that decides
// accesses, one a second from now on.
func recordedLog(stateDir, config string, full bool, now time.Time, accesses []string) error {
	subjects, err := policy.Load(now, policy.Options{}, config)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(stateDir, 0o700); err != nil {
		return err
	}
	log, err := audit.Open(audit.Config{
		StateDir: stateDir, FullPaths: func() bool { return full }, Now: func() time.Time { return now },
	})
	if err != nil {
		return err
	}
	engine := &authz.Engine{}
	engine.Install(subjects[0].Policy)
	gate, err := authz.NewGate(authz.GateConfig{
		Engine: engine, Ledger: authz.NewLedger(), Recorder: log, Credentials: anyCredential{}, Now: func() time.Time { return now },
	})
	if err != nil {
		return errors.Join(err, log.Close())
	}
	for _, line := range accesses {
		if err := recordAccess(gate, subjects[0].Plugin, strings.Fields(line)); err != nil {
			return errors.Join(err, log.Close())
		}
		now = now.Add(time.Second)
	}
	return log.Close()
}

// anyCredential leases an API key to everyone.
type anyCredential struct{}

func (anyCredential) Credential(context.Context, authz.CredentialRef) (authz.Credential, error) {
	return authz.Credential{Fields: map[string]authz.Secret{"api_key": authz.NewSecret("a-key")}, Generation: 1}, nil
}

// recordAccess has a gate decide METHOD URL [at ADDRESS...], as a proxy does.
func recordAccess(gate *authz.Gate, plugin string, words []string) error {
	req, err := policy.Request(authz.Principal(plugin), words[0], words[1], "")
	if err != nil {
		return err
	}
	a, err := gate.Admit(context.Background(), req, authz.Source{Door: authz.DoorProxy, UID: -1})
	if err != nil || a.Refusal != nil {
		return err
	}
	var resolved []netip.Addr
	for _, word := range words[min(3, len(words)):] {
		resolved = append(resolved, netip.MustParseAddr(word))
	}
	a.Resolved(resolved)
	outcome := authz.Outcome{}
	allowed := func(addr netip.Addr) bool { return a.Decision.CheckAddress(addr) == authz.Granted }
	if i := slices.IndexFunc(resolved, allowed); i >= 0 {
		outcome.Address = netip.AddrPortFrom(resolved[i], req.Destination.Port()).String()
	} else if len(resolved) > 0 {
		a.RefuseAddress(resolved[len(resolved)-1])
	}
	return a.End(outcome)
}
