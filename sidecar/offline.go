package sidecar

import (
	"errors"
	"fmt"
	"strings"

	"github.com/chaperone-proxy/chaperone/audit"
	"github.com/chaperone-proxy/chaperone/authz"
	"github.com/chaperone-proxy/chaperone/configs"
	"github.com/chaperone-proxy/chaperone/ebpf"
	"github.com/chaperone-proxy/chaperone/internal/admin"
	"github.com/chaperone-proxy/chaperone/internal/statehistory"
)

// changeOffline changes the revocations of a stateDir that no sidecar holds.
func changeOffline(spec *configs.Sidecar, change func([]authz.Revocation) ([]authz.Revocation, []*authz.Record, error)) (failed []string, err error) {
	kept, err := openState(spec.StateDir)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, kept.Close()) }()
	all, err := kept.revocations()
	if err != nil {
		return nil, err
	}
	all, records, err := change(all)
	if err != nil {
		return nil, err
	}
	if err := kept.save(revocationsFile, admin.NonNil(all)); err != nil {
		return nil, err
	}
	// A stateDir that has lost its history is still refused at the next start.
	if h, err := statehistory.Open(spec.StateDir, spec.Plugin, historyRoots()...); err == nil {
		if err := h.Advance(len(all), historyFiles()...); err != nil {
			failed = append(failed, err.Error())
		}
	}
	log, err := audit.Open(auditConfig(spec))
	if err == nil {
		for _, record := range records {
			err = errors.Join(err, log.Record(record))
		}
		err = errors.Join(err, log.Close())
	}
	if err != nil {
		failed = append(failed, "audit: "+err.Error())
	}
	return failed, nil
}

// OfflineEngine returns an engine with the policy of the files and the revocations of
// the stateDir and of the host, as a sidecar that started now would have it.
func OfflineEngine(cfg *configs.Config) (*authz.Engine, error) {
	engine := &authz.Engine{}
	engine.Install(cfg.Policy)
	kept := &state{dir: cfg.Sidecar.StateDir}
	err := kept.revocationsInto(engine)
	hostRevocationsInto(engine, cfg.Sidecar.Plugin)
	return engine, err
}

// Detach removes what a killed sidecar left: its kernel programs, links and cgroup,
// its certificates and sockets, and its entry in the list of the host's sidecars.
// While processes are left in the cgroup it returns ebpf.ErrPopulated, unless they
// are to be killed.
func Detach(spec *configs.Sidecar, kill bool) error {
	kept, err := openState(spec.StateDir)
	if err != nil {
		return err
	}
	err = ebpf.Detach(spec.StateDir, kill)
	if err == nil {
		err = errors.Join(removeTrust(kept), removeLeftSockets(kept), restoreLeftStreams(kept))
	}
	if err := errors.Join(err, kept.Close()); err != nil {
		return err
	}
	return admin.Forget(Registry(), spec.Listen.Admin.Addr)
}

// RevokeOffline writes a revocation into the stateDir of a sidecar that does not run.
// A rule is looked up in grants if that is checked. Failed is what did not keep the
// revocation from being written.
func RevokeOffline(spec *configs.Sidecar, grants []authz.Grant, checked bool, req RevocationRequest) (r authz.Revocation, failed []string, err error) {
	named := req
	if !checked {
		named.Rule = ""
	}
	if r, err = newRevocation(spec.Plugin, grants, named); err != nil {
		return r, nil, err
	}
	if !checked {
		r.Grant, r.Rule, _ = strings.Cut(req.Rule, "/")
	}
	failed, err = changeOffline(spec, func(all []authz.Revocation) ([]authz.Revocation, []*authz.Record, error) {
		detail := fmt.Sprintf("%s: %s (no sidecar was running)", r.Level, r.Reason)
		return append(all, r), []*authz.Record{revocationRecord(r, detail, 0)}, nil
	})
	return r, failed, err
}

// RestoreOffline lifts the revocations that chosen reports in the stateDir of a
// sidecar that does not run. It returns those that were in force, and those of them
// that are lifted. Failed is what did not keep them from being lifted.
func RestoreOffline(spec *configs.Sidecar, reason, actor string, chosen func(authz.Revocation) bool) (known, lifted []authz.Revocation, failed []string, err error) {
	failed, err = changeOffline(spec, func(all []authz.Revocation) (left []authz.Revocation, records []*authz.Record, err error) {
		known = all
		for _, v := range all {
			if !chosen(v) {
				left = append(left, v)
				continue
			}
			lifted = append(lifted, v)
			v.Actor = actor
			records = append(records, revocationRecord(v, "restored: "+reason+" (no sidecar was running)", 0))
		}
		return left, records, nil
	})
	return known, lifted, failed, err
}
