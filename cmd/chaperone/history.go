package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"time"

	"github.com/spf13/cobra"
	"go.uber.org/zap"

	"github.com/chaperone-proxy/chaperone/audit"
	"github.com/chaperone-proxy/chaperone/authz"
	"github.com/chaperone-proxy/chaperone/configs"
	"github.com/chaperone-proxy/chaperone/internal/admin"
	"github.com/chaperone-proxy/chaperone/internal/statehistory"
)

// historyRoots returns the folders below which it is remembered that a stateDir had
// a history: those of the revocations of the host.
func historyRoots() []string {
	if dir := registry(); dir != "" {
		return []string{dir}
	}
	return []string{stateRoot, admin.DefaultRegistry}
}

// auditKeyFile is the key of the audit log's chain, see package audit.
const auditKeyFile = "audit.key"

// historyFiles are the files of a stateDir that do not go once they are there.
func historyFiles() []string {
	return []string{revocationsFile, totalsFile, ratesFile, auditKeyFile}
}

// openHistory compares a stateDir with what is remembered of it.
func openHistory(spec *configs.Sidecar, config string) (*statehistory.History, error) {
	h, err := statehistory.Open(spec.StateDir, spec.Plugin, historyRoots()...)
	if _, lost := errors.AsType[*statehistory.LostError](err); lost {
		return nil, fmt.Errorf("%w; put it back, or begin with what is there: chaperone statedir accept --config %s --reason TEXT", err, shellWord(config))
	}
	return h, err
}

// openKnownState opens a stateDir for a sidecar, unless its history is lost. One that
// is missing is not made then, so that it can be put back.
func openKnownState(spec *configs.Sidecar, config string) (*state, *statehistory.History, error) {
	if _, err := os.Lstat(spec.StateDir); errors.Is(err, fs.ErrNotExist) {
		if _, err := openHistory(spec, config); err != nil {
			return nil, nil, err
		}
	}
	kept, err := openState(spec.StateDir)
	if err != nil {
		return nil, nil, err
	}
	h, err := openHistory(spec, config)
	if err != nil {
		return nil, nil, errors.Join(err, kept.Close())
	}
	return kept, h, nil
}

// advanceHistory counts a change of the stateDir: a start, an end, a revocation. What
// cannot be written delays nothing.
func (s *sidecar) advanceHistory() {
	if s.history == nil {
		return
	}
	if err := s.history.Advance(len(s.ownRevocations()), historyFiles()...); err != nil {
		s.opts.log.Warn("state history not written", zap.Error(err))
	}
}

// beginHistory counts the start of a sidecar, which has made what is missing.
func (s *sidecar) beginHistory(*configs.Sidecar) error {
	s.advanceHistory()
	if err := s.history.Unkept; err != nil {
		level := zap.WarnLevel
		if os.Geteuid() != 0 {
			level = zap.InfoLevel // the folders are root's
		}
		s.opts.log.Log(level, "state history not remembered outside of the stateDir", zap.Error(err))
	}
	return nil
}

func (c *cli) stateCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "statedir", Short: "Accept a stateDir that has lost its history", Args: noArgs}
	var reason string
	accept := c.withConfig(&cobra.Command{
		Use:   "accept --config FILE --reason TEXT",
		Short: "Begin with a stateDir as it is, although its history is lost",
		Long: "Begin with a stateDir as it is, although it is missing, emptied, replaced or an older copy of the one that\n" +
			"sidecars had before. Revocations, the use of limits and audit records that it has lost stay lost:\n" +
			"revoke anew what has to stay revoked, before the sidecar is started.",
		Args: noArgs,
		RunE: func(*cobra.Command, []string) error {
			spec, err := c.sidecarFile()
			if err != nil {
				return err
			}
			if reason == "" {
				return usageError("statedir accept: --reason is missing; say why its history is lost")
			}
			return c.acceptState(spec, reason)
		},
	})
	accept.Flags().StringVar(&reason, "reason", "", "`TEXT` for the audit log: why the history is lost")
	cmd.AddCommand(accept)
	return cmd
}

// acceptState takes a stateDir as it is, records that, and prints what is in force.
func (c *cli) acceptState(spec *configs.Sidecar, reason string) (err error) {
	kept, err := openState(spec.StateDir)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, kept.Close()) }()
	all, err := kept.revocations()
	if err != nil {
		return err
	}
	lost, err := statehistory.Accept(spec.StateDir, spec.Plugin, len(all), historyRoots()...)
	if err != nil {
		return err
	}
	if lost == nil {
		fmt.Fprintf(c.stdout, "stateDir %s has its history; nothing is changed\n", spec.StateDir)
		return nil
	}
	fmt.Fprintf(c.stdout, "%v\naccepted; %s in force\n", lost, counted(len(all), "revocation is", "revocations are"))
	log, err := audit.Open(auditConfig(spec))
	if err == nil {
		err = errors.Join(log.Record(&authz.Record{
			Time: time.Now(), Kind: authz.KindRevocation, Plugin: spec.Plugin, Actor: actor(), UID: -1,
			Detail: "accepted by chaperone statedir accept: " + oneLine(lost.Error()) + "; reason: " + oneLine(reason),
		}), log.Close())
	}
	if err != nil {
		return fmt.Errorf("audit: %w", err)
	}
	return nil
}
