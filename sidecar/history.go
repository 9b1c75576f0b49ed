package sidecar

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"time"

	"go.uber.org/zap"

	"github.com/chaperone-proxy/chaperone/audit"
	"github.com/chaperone-proxy/chaperone/authz"
	"github.com/chaperone-proxy/chaperone/configs"
	"github.com/chaperone-proxy/chaperone/internal/admin"
	"github.com/chaperone-proxy/chaperone/internal/phrase"
	"github.com/chaperone-proxy/chaperone/internal/statehistory"
)

// historyRoots returns the folders below which it is remembered that a stateDir had
// a history: those of the revocations of the host.
func historyRoots() []string {
	if dir := Registry(); dir != "" {
		return []string{dir}
	}
	return []string{StateRoot, admin.DefaultRegistry}
}

// auditKeyFile is the key of the audit log's chain, see package audit.
const auditKeyFile = "audit.key"

// historyFiles are the files of a stateDir that do not go once they are there.
func historyFiles() []string {
	return []string{revocationsFile, totalsFile, ratesFile, auditKeyFile, configs.GenerationsFile}
}

// openHistory compares a stateDir with what is remembered of it. An empty or missing
// one may be initialised again, see mayReinitialize: lost then has what is missing.
func openHistory(spec *configs.Sidecar, config string) (h *statehistory.History, lost *statehistory.LostError, err error) {
	h, err = statehistory.Open(spec.StateDir, spec.Plugin, historyRoots()...)
	if lost, is := errors.AsType[*statehistory.LostError](err); is {
		if mayReinitialize(spec, lost) {
			return nil, lost, nil
		}
		return nil, nil, fmt.Errorf("%w; put it back, or begin with what is there: chaperone statedir accept --config %s --reason TEXT", err, phrase.ShellWord(config))
	}
	return h, nil, err
}

// replaceable reports whether a sidecar may use a stateDir that its plugin could
// replace: its history is remembered where only root and the sidecar's own user can
// change it, so that one which was replaced stops the next start, and the admin
// socket, which answers while it runs, lies elsewhere.
func replaceable(spec *configs.Sidecar) bool {
	h, err := statehistory.Open(spec.StateDir, spec.Plugin, historyRoots()...)
	return err == nil && h.Unkept == nil && !within(AbsPath(spec.StateDir), AbsPath(spec.Listen.Admin.Addr))
}

// mayReinitialize reports whether a stateDir that has lost its history is begun again: it
// is missing, or made again and empty, in a place where nobody but root and the
// sidecar's own user can have removed it, as to begin afresh. That is not assumed
// of one that is missing while revocations were in force in it: its disk may not be
// mounted.
func mayReinitialize(spec *configs.Sidecar, lost *statehistory.LostError) bool {
	return (lost.Empty || lost.Missing && lost.Revocations == 0) && checkPlace(spec.StateDir, spec.Plugin, os.Geteuid()) == nil
}

// openStateWithHistory opens a stateDir for a sidecar, unless its history is lost. One that
// is missing is not made then, so that it can be put back. lost is what a stateDir
// that is begun again had before, nil for any other.
func openStateWithHistory(spec *configs.Sidecar, config string) (kept *state, h *statehistory.History, lost *statehistory.LostError, err error) {
	if _, err := os.Lstat(spec.StateDir); errors.Is(err, fs.ErrNotExist) {
		if _, lost, err = openHistory(spec, config); err != nil {
			return nil, nil, nil, err
		}
	}
	if kept, err = openState(spec.StateDir); err != nil {
		return nil, nil, nil, err
	}
	if lost == nil {
		h, lost, err = openHistory(spec, config)
	}
	if lost != nil {
		if _, err = statehistory.Accept(spec.StateDir, spec.Plugin, 0, historyRoots()...); err == nil {
			h, err = statehistory.Open(spec.StateDir, spec.Plugin, historyRoots()...)
		}
	}
	if err != nil {
		return nil, nil, nil, errors.Join(err, kept.Close())
	}
	return kept, h, lost, nil
}

// advanceHistory counts a change of the stateDir: a start, an end, a revocation. A failed
// write delays nothing.
func (c *PolicyControl) advanceHistory() {
	if c.history == nil {
		return
	}
	if err := c.history.Advance(len(c.ownRevocations()), historyFiles()...); err != nil {
		c.cfg.Log.Warn("state history not written", zap.Error(err))
	}
}

// startHistory counts the start of a sidecar, which has made what is missing. The disk is
// waited for by awaitHistory.
func (c *PolicyControl) startHistory(*configs.Sidecar) error {
	c.advancing.Go(c.advanceHistory)
	if c.lost != nil {
		text := c.lost.Error() + "; it was begun again"
		c.cfg.Log.Warn("state begun again", zap.String("detail", text))
		c.cfg.Record(&authz.Record{Kind: authz.KindRevocation, Detail: phrase.OneLine(text)})
	}
	if err := c.history.Unkept; err != nil {
		level := zap.WarnLevel
		if os.Geteuid() != 0 {
			level = zap.InfoLevel // the folders are root's
		}
		c.cfg.Log.Log(level, "state history not remembered outside of the stateDir", zap.Error(err))
	}
	return nil
}

// awaitHistory returns once the start is counted, which has to come before the first access.
func (c *PolicyControl) awaitHistory(*configs.Sidecar) error {
	c.advancing.Wait()
	return nil
}

// AcceptState takes a stateDir that has lost its history as it is, and records that.
// It returns what was lost, nil for a stateDir that has its history, and how many
// revocations are in force in it.
func AcceptState(spec *configs.Sidecar, reason, actor string) (lost error, revocations int, err error) {
	kept, err := openState(spec.StateDir)
	if err != nil {
		return nil, 0, err
	}
	defer func() { err = errors.Join(err, kept.Close()) }()
	all, err := kept.revocations()
	if err != nil {
		return nil, 0, err
	}
	found, err := statehistory.Accept(spec.StateDir, spec.Plugin, len(all), historyRoots()...)
	if err != nil || found == nil {
		return nil, 0, err
	}
	log, err := audit.Open(auditConfig(spec))
	if err == nil {
		err = errors.Join(log.Record(&authz.Record{
			Time: time.Now(), Kind: authz.KindRevocation, Plugin: spec.Plugin, Actor: actor, UID: -1,
			Detail: "accepted by chaperone statedir accept: " + phrase.OneLine(found.Error()) + "; reason: " + phrase.OneLine(reason),
		}), log.Close())
	}
	if err != nil {
		err = fmt.Errorf("audit: %w", err)
	}
	return found, len(all), err
}

// AcceptTrust has a stopped sidecar take a trust root, by its digest, that does not follow the
// one which was in force in its stateDir, and records that first.
func AcceptTrust(spec *configs.Sidecar, digest, reason, actor string) (err error) {
	kept, err := openState(spec.StateDir)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, kept.Close()) }()
	var seen configs.Generations
	if err := kept.load(configs.GenerationsFile, &seen); err != nil {
		return err
	}
	if seen.Trust == 0 {
		return fmt.Errorf("accept trust root: none was in force in stateDir %s; start the sidecar with it", spec.StateDir)
	}
	log, err := audit.Open(auditConfig(spec))
	if err == nil {
		err = errors.Join(log.Record(&authz.Record{
			Time: time.Now(), Kind: authz.KindReload, Plugin: spec.Plugin, Actor: actor, UID: -1,
			Detail: fmt.Sprintf("accepted by chaperone statedir accept: trust root %s instead of version %d, %s; reason: %s", digest, seen.Trust, seen.TrustDigest, phrase.OneLine(reason)),
		}), log.Close())
	}
	if err != nil {
		return fmt.Errorf("audit: %w", err)
	}
	seen.TrustDigest = digest
	return kept.save(configs.GenerationsFile, seen)
}

// CheckStatePlace returns why a sidecar would refuse the place of a stateDir, as far as
// can be foreseen; watched: it starts on it nevertheless, since a stateDir
// that was replaced stops the next start.
func CheckStatePlace(spec *configs.Sidecar) (watched bool, err error) {
	err = checkPlace(spec.StateDir, spec.Plugin, sidecarUser(spec.Kernel))
	return err != nil && replaceable(spec), err
}
