package pilotrun

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/chaperone-proxy/chaperone/authz"
	"github.com/chaperone-proxy/chaperone/configs"
	"github.com/chaperone-proxy/chaperone/internal/dsse"
)

// The files of a pilot, in its folder.
const (
	sidecarFile = "sidecar.json"
	grantFile   = "declared.json"
	stateFolder = "state"
	auditFile   = "audit.jsonl"
)

// document is a file in the shape of a Kubernetes object.
type document struct {
	APIVersion string           `json:"apiVersion"`
	Kind       configs.Kind     `json:"kind"`
	Metadata   configs.Metadata `json:"metadata"`
	Spec       any              `json:"spec"`
}

// Derive returns the Sidecar of a pilot, whose files are in dir and which observes until a
// time. It is the given one, with defaults filled in and paths absolute, but for the
// declared access in place of its grants, a state of its own, and without spec.trust and the
// listeners that a plugin does not need.
func Derive(spec configs.Sidecar, dir string, until time.Time) configs.Sidecar {
	spec.Grants = []string{filepath.Join(dir, grantFile)}
	if spec.Guardrails = slices.Clone(spec.Guardrails); spec.Trust != nil {
		// The declared access is not signed yet. The signed guardrails are among those of Config.
		spec.Trust, spec.Guardrails = nil, nil
	}
	spec.StateDir = filepath.Join(dir, stateFolder)
	spec.Kernel, spec.Mode, spec.ObserveUntil = configs.KernelRequired, authz.ModeObserve, until.UTC().Truncate(time.Second)
	spec.Listen = configs.Listen{
		Proxy: configs.Address{Network: "tcp", Addr: "127.0.0.1:0"},
		Admin: configs.Address{Network: "unix", Addr: filepath.Join(spec.StateDir, "admin.sock")},
	}
	spec.Envoy, spec.SPIFFEIDs = nil, nil
	spec.Audit.File, spec.Audit.Paths = filepath.Join(spec.StateDir, auditFile), configs.AuditPathsFull
	spec.OnBadReload = configs.OnBadReloadKeep
	return spec
}

// writeFiles writes the declared access and the Sidecar, loads them as the child will, and
// returns the digest of the former's file.
func (r *run) writeFiles(until time.Time) (grant string, err error) {
	g := counted(r.cfg.Grant)
	data, err := marshal(document{configs.APIVersion, configs.KindGrant, configs.Metadata{Name: g.Name}, g})
	if err == nil {
		err = os.WriteFile(filepath.Join(r.cfg.Dir, grantFile), data, 0o600)
	}
	if err != nil {
		return "", fmt.Errorf("write declared access: %w", err)
	}
	r.spec = Derive(r.cfg.Sidecar, r.cfg.Dir, until)
	if err := r.writeGuardrails(); err != nil {
		return "", fmt.Errorf("write guardrails: %w", err)
	}
	config, err := marshal(document{configs.APIVersion, configs.KindSidecar, configs.Metadata{Name: g.Plugin + "-pilot"}, r.spec})
	if err == nil {
		err = os.WriteFile(r.sidecarFile(), config, 0o600)
	}
	if err != nil {
		return "", fmt.Errorf("write the pilot's Sidecar: %w", err)
	}
	if _, err := configs.Load(r.sidecarFile(), r.started); err != nil {
		return "", fmt.Errorf("the Sidecar of the pilot, derived from that of --config, or the access that the manifest declares, cannot be loaded:\n%w", err)
	}
	return dsse.Digest(data), nil
}

// writeGuardrails writes the guardrails of the pilot, and has the Sidecar name them.
func (r *run) writeGuardrails() error {
	for i := range r.cfg.Guardrails {
		g := &r.cfg.Guardrails[i]
		data, err := marshal(document{configs.APIVersion, configs.KindGuardrail, g.Metadata, g.Spec})
		if err != nil {
			return err
		}
		file := filepath.Join(r.cfg.Dir, fmt.Sprintf("guardrail-%d.json", i))
		if err := os.WriteFile(file, data, 0o600); err != nil {
			return err
		}
		r.spec.Guardrails = append(r.spec.Guardrails, file)
	}
	return nil
}

// CopyLog copies the audit log of a pilot in dir, with its key, into a folder, and removes
// the log of an earlier pilot there: its rotated files would belong to no chain.
func CopyLog(dir, to string) error {
	state := filepath.Join(dir, stateFolder)
	old, err := auditFiles(to)
	if err != nil {
		return err
	}
	for _, name := range old {
		if err := os.Remove(filepath.Join(to, name)); err != nil {
			return err
		}
	}
	files, err := auditFiles(state)
	if err != nil {
		return err
	}
	for _, name := range files {
		if err := copyFile(filepath.Join(state, name), filepath.Join(to, name)); err != nil {
			return err
		}
	}
	return nil
}

// auditFiles returns the names of the files of a log in a folder: audit.jsonl, its rotated
// and second ones, audit.key and audit.head.
func auditFiles(dir string) ([]string, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	var out []string
	for _, e := range entries {
		if e.Type().IsRegular() && strings.HasPrefix(e.Name(), "audit") {
			out = append(out, e.Name())
		}
	}
	return out, nil
}

func copyFile(from, to string) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer func() { _ = in.Close() }() // opened for reading only
	out, err := os.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_TRUNC|syscall.O_NOFOLLOW, 0o600)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, in)
	return errors.Join(err, out.Close())
}

// counted returns the grant with its system calls counted one by one. A grant that does not
// limit them gets a limit that no host reaches: it is what the kernel counts for.
func counted(g authz.Grant) authz.Grant {
	if g.Limits.Syscalls.IsZero() {
		const unreachable = 1_000_000_000
		g.Limits.Syscalls = authz.Limit{Count: unreachable, Period: time.Second}
	}
	g.Limits.CountSyscalls = authz.CountExact
	return g
}

func marshal(d document) ([]byte, error) {
	data, err := json.MarshalIndent(d, "", "  ")
	return append(data, '\n'), err
}
