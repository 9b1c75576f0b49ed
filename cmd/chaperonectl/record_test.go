package main

import (
	"context"
	"os"
	"path/filepath"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/chaperone-proxy/chaperone/audit"
	"github.com/chaperone-proxy/chaperone/authz"
	"github.com/chaperone-proxy/chaperone/configs"
	"github.com/chaperone-proxy/chaperone/policy"
)

// recordAccesses loads a Sidecar at TEST_NOW, as chaperone does, and writes its start and
// accesses that it allows into its audit log: record SIDECAR ACCESS...
func recordAccesses(ts *testscript.TestScript, _ bool, args []string) {
	now, err := time.Parse(time.RFC3339, ts.Getenv("TEST_NOW"))
	ts.Check(err)
	cfg, err := configs.Load(ts.MkAbs(args[0]), now)
	ts.Check(err)
	clock := func() time.Time { return now }
	ts.Check(os.MkdirAll(cfg.Sidecar.StateDir, 0o700))
	log, err := audit.Open(audit.Config{StateDir: cfg.Sidecar.StateDir, FullPaths: func() bool { return true }, Now: clock})
	ts.Check(err)
	files := map[string]string{}
	for _, f := range cfg.Files {
		files[f.Path] = f.SHA256
	}
	ts.Check(log.Record(&authz.Record{Kind: authz.KindReload, Time: now, Plugin: cfg.Sidecar.Plugin, Actor: "start", UID: -1, Allowed: true, Files: files}))
	engine := &authz.Engine{}
	engine.Install(cfg.Policy)
	gate, err := authz.NewGate(authz.GateConfig{Engine: engine, Ledger: authz.NewLedger(), Recorder: log, Now: clock})
	ts.Check(err)
	for _, text := range args[1:] {
		now = now.Add(time.Second)
		req, err := policy.Request(authz.Principal(cfg.Sidecar.Plugin), policy.ParseWords(text))
		ts.Check(err)
		admission, err := gate.Admit(context.Background(), req, authz.Source{Door: authz.DoorProxy, UID: -1})
		ts.Check(err)
		if admission.Refusal != nil {
			ts.Fatalf("%s: %v", text, admission.Refusal)
		}
		ts.Check(admission.End(authz.Outcome{}))
	}
	ts.Check(log.Close())
}

// buildSidecar sets $CHAPERONE to the program of the sidecar.
func buildSidecar(ts *testscript.TestScript, _ bool, _ []string) {
	ts.Check(chaperoneBeside())
	self, err := os.Executable()
	ts.Check(err)
	ts.Setenv("CHAPERONE", filepath.Join(filepath.Dir(self), "chaperone"))
}
