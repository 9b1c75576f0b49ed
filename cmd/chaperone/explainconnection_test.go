package main

import (
	"os"
	"testing"
	"time"

	"github.com/chaperone-proxy/chaperone/audit"
	"github.com/chaperone-proxy/chaperone/authz"
	"github.com/chaperone-proxy/chaperone/internal/testenv"
	"github.com/chaperone-proxy/chaperone/internal/testenv/scenario"
)

// A connection that the kernel refused has no request, and explain prints what to ask for.
func TestExplainConnection(t *testing.T) {
	w := bareEnv(t, t.TempDir())
	testenv.Must(t, os.Mkdir(w.File("state"), 0o700))
	log := testenv.MustGet(audit.Open(audit.Config{File: w.File("state/audit.jsonl"), StateDir: w.File("state")}))(t)
	const id = "01a22dd9-9792-7b81-b02c-e04eb9e967c4"
	testenv.Must(t, log.Record(&authz.Record{
		Time: time.Now(), Kind: authz.KindDecision, Plugin: "shop", Door: authz.DoorKernel, Decision: id, Reason: authz.DestinationNotGranted.String(),
		Scheme: "tcp", Host: "db.example", Port: 5433, UID: -1, Detail: "shop may not connect to db.example:5433",
	}))
	testenv.Must(t, log.Close())
	testenv.Must(t, os.WriteFile(w.File("sidecar.yaml"), []byte(`apiVersion: chaperone.dev/v1alpha1
kind: Sidecar
metadata: {name: shop}
spec: {plugin: shop, grants: [grant.yaml], stateDir: state, kernel: "off"}
`), 0o600))
	testenv.Must(t, os.WriteFile(w.File("grant.yaml"), []byte(`apiVersion: chaperone.dev/v1alpha1
kind: PluginGrant
metadata: {name: shop}
spec:
  plugin: shop
  notAfter: `+time.Now().Add(time.Hour).UTC().Format(time.RFC3339)+`
  rules:
  - {id: db, reason: A test, to: {scheme: tcp, hosts: [db.example], ports: [5432]}}
`), 0o600))
	r := w.Chaperone("explain", "--config", w.File("sidecar.yaml"), id)
	scenario.Contains(t, r.Stdout, "shop may not connect to db.example:5433", "ask for ports: [5432, 5433] on rule db of grant shop", "shop/db (differs in port)")
}
