package gameday

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"time"

	"github.com/chaperone-proxy/chaperone/configs"
)

// The files of an exercise, in its folder.
const (
	sidecarFile   = "sidecar.yaml"
	grantFile     = "grant.yaml"
	guardrailFile = "guardrail.yaml"
	authorityFile = "orders-ca.pem"
	outputFile    = "plugin.log"
	// EvidenceFile is where the responder keeps the support bundle.
	EvidenceFile = "evidence.tar.gz"
	// CardFile is the score card, in a folder that is kept.
	CardFile = "card.json"
)

// lifetime is how long the grant and the certificate of an exercise are valid.
const lifetime = 24 * time.Hour

// The ids of the rules.
const (
	ruleOrders  = "read-orders"
	ruleReports = "send-reports"
)

const sidecarText = `# The sidecar of an exercise: chaperonectl plugin gameday.
apiVersion: chaperone.dev/v1alpha1
kind: Sidecar
metadata: {name: %[1]s}
spec:
  plugin: %[1]s
  grants: [` + grantFile + `]
  guardrails: [` + guardrailFile + `]
  stateDir: state
  kernel: required
  process: {network: host}   # a socket of the plugin would reach the listeners of the exercise: the kernel alone refuses it
  listen: {proxy: "127.0.0.1:0"}
  dns:
    servers: ["%[2]s"]
    hosts: {` + ordersHost + `: [127.0.0.1], ` + nameHost + `: [127.0.0.2]}
  audit: {paths: full}
  drain: 1s
`

const grantText = `apiVersion: chaperone.dev/v1alpha1
kind: PluginGrant
metadata: {name: %[1]s}
spec:
  plugin: %[1]s
  notAfter: %[2]s
  rules:
  - id: ` + ruleOrders + `
    reason: Shows the state of orders
    to: {hosts: [` + ordersHost + `], ports: [%[3]s], addresses: [127.0.0.1/32], tls: {caFile: ` + authorityFile + `}}
    methods: [GET]
    paths: [/orders]
  - id: ` + ruleReports + `
    reason: Sends a report of the day
    to: {hosts: [` + ordersHost + `], ports: [%[3]s], addresses: [127.0.0.1/32], tls: {caFile: ` + authorityFile + `}}
    methods: [POST]
    paths: [/reports]
`

const guardrailText = `apiVersion: chaperone.dev/v1alpha1
kind: PluginGuardrail
metadata: {name: gameday}
spec:
  plugins: ["**"]
  never:
  - {id: metadata-service, hosts: [metadata.google.internal], addresses: [169.254.0.0/16]}
  ceilings: {grantLifetime: 2d}
`

// prepare makes the folder, or takes an empty one, and returns how to remove it.
func prepare(dir string) (path string, remove func() error, err error) {
	if dir == "" {
		path, err = os.MkdirTemp("", "chaperone-gameday-")
		if err != nil {
			return "", nil, fmt.Errorf("make the folder of the exercise: %w", err)
		}
		return path, func() error { return os.RemoveAll(path) }, nil
	}
	if path, err = filepath.Abs(dir); err != nil {
		return "", nil, fmt.Errorf("make the folder of the exercise: %w", err)
	}
	if err := os.Mkdir(path, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return "", nil, fmt.Errorf("make the folder of the exercise: %w", err)
	}
	entries, err := os.ReadDir(path)
	if err == nil && len(entries) > 0 {
		err = fmt.Errorf("%s is not empty; name a folder that is, or does not exist", path)
	}
	if err == nil {
		err = os.Chmod(path, 0o700) //nolint:gosec // a folder
	}
	if err != nil {
		return "", nil, fmt.Errorf("take the folder of the exercise: %w", err)
	}
	return path, func() error { return nil }, nil
}

// writeFiles writes the configuration and loads it as the sidecar will.
func (r *run) writeFiles() error {
	_, port, err := net.SplitHostPort(r.servers.orders.Addr().String())
	if err != nil {
		return fmt.Errorf("write the files of the exercise: %w", err)
	}
	for name, text := range map[string]string{
		sidecarFile:   fmt.Sprintf(sidecarText, r.plugin, r.servers.dns.LocalAddr()),
		grantFile:     fmt.Sprintf(grantText, r.plugin, r.started.Add(lifetime).UTC().Format(time.RFC3339), port),
		guardrailFile: guardrailText,
		authorityFile: string(r.servers.authority),
	} {
		if err := os.WriteFile(r.file(name), []byte(text), 0o600); err != nil {
			return fmt.Errorf("write the files of the exercise: %w", err)
		}
	}
	config, err := configs.Load(r.file(sidecarFile), r.started)
	if err != nil {
		return fmt.Errorf("load the files of the exercise: %w", err)
	}
	r.spec = config.Sidecar
	return nil
}

func (r *run) file(name string) string { return filepath.Join(r.dir, name) }
