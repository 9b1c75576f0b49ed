package sidecar

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"

	"go.uber.org/zap"

	"github.com/chaperone-proxy/chaperone/authz"
	"github.com/chaperone-proxy/chaperone/configs"
	"github.com/chaperone-proxy/chaperone/internal/atomicfile"
	"github.com/chaperone-proxy/chaperone/internal/phrase"
	"github.com/chaperone-proxy/chaperone/internal/unixsock"
)

// Files of a stateDir that belong to no room.
const (
	lockFile        = "lock"
	revocationsFile = "revocations.json"
	totalsFile      = "totals.json"
	ratesFile       = "rates.json"
	namesFile       = "names"
	socketsFile     = "sockets.json" // paths of the host's Unix sockets that are forwarded
	leasesFile      = "leases.json"
	trustFile       = "trust.json" // the path of a trust folder that lies among the temporary files
)

// ErrLocked means that a sidecar runs on the stateDir.
var ErrLocked = errors.New("a sidecar is running on it")

// state is a stateDir, locked by one sidecar.
type state struct {
	dir   string
	lock  *os.File
	files atomicfile.FS // nil is the operating system's
}

// openState creates the folder if it is missing, checks that nobody else can
// look into it, and locks it. An empty folder of ours that is open to others, as a
// volume is that was just mounted, is closed to them first.
func openState(dir string) (*state, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		if errors.Is(err, fs.ErrPermission) && os.Geteuid() != 0 {
			return nil, fmt.Errorf("create stateDir: %w; run it as root, or write a stateDir that %s may make", err, phrase.User(os.Geteuid()))
		}
		return nil, fmt.Errorf("create stateDir: %w", err)
	}
	info, err := os.Lstat(dir)
	if err != nil {
		return nil, fmt.Errorf("read stateDir: %w", err)
	}
	if info.IsDir() && info.Mode().Perm()&0o077 != 0 {
		unixsock.CloseEmpty(dir)
		if info, err = os.Lstat(dir); err != nil {
			return nil, fmt.Errorf("read stateDir: %w", err)
		}
	}
	owner, ok := info.Sys().(*syscall.Stat_t)
	switch {
	case !info.IsDir():
		return nil, fmt.Errorf("stateDir %s is not a folder", dir)
	case !ok || int(owner.Uid) != os.Geteuid():
		return nil, fmt.Errorf("stateDir %s belongs to %s, and the sidecar is %s; name another, or run the command as that user", dir, phrase.User(int(owner.Uid)), phrase.User(os.Geteuid()))
	case info.Mode().Perm()&0o077 != 0:
		return nil, fmt.Errorf("stateDir %s can be read by others; run chmod 700 on it", dir)
	}
	lock, err := os.OpenFile(filepath.Join(dir, lockFile), os.O_RDWR|os.O_CREATE|syscall.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open lock of stateDir: %w", err)
	}
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		_ = lock.Close()
		return nil, fmt.Errorf("lock stateDir %s: %w", dir, ErrLocked)
	}
	s := &state{dir: dir, lock: lock}
	if err := s.removeTemporary(); err != nil {
		return nil, errors.Join(err, s.Close())
	}
	return s, nil
}

// removeTemporary removes what an earlier sidecar was writing when it crashed.
func (s *state) removeTemporary() error {
	for _, name := range []string{revocationsFile, totalsFile, ratesFile, socketsFile, leasesFile, trustFile, placeholdersFile, configs.GenerationsFile} {
		if err := atomicfile.RemoveTemporary(s.path(name)); err != nil {
			return fmt.Errorf("remove temporary file of stateDir: %w", err)
		}
	}
	return nil
}

// checkPlace reports a folder above a stateDir in which anybody but root and uid,
// the sidecar's user, could put another stateDir in its place, one without the
// revocations: a plugin that is started beside it sees the same files, and under
// sudo it is the user whose folder that is.
func checkPlace(dir, plugin string, uid int) error {
	err := unixsock.CheckPath(dir, uid)
	replaceable, is := errors.AsType[*unixsock.ReplaceableError](err)
	switch {
	case err == nil:
		return nil
	case !is:
		return fmt.Errorf("check who may replace stateDir: %w", err)
	case replaceable.Owner >= 0:
		return fmt.Errorf("stateDir %s can be replaced, and its revocations with it: folder %s belongs to %s, and under sudo the plugin runs as the user who called; write stateDir: /var/lib/chaperone/%s, which the sidecar makes, or any folder in which all above it is root's",
			dir, replaceable.Dir, phrase.User(replaceable.Owner), plugin)
	}
	return fmt.Errorf("stateDir %s can be replaced, and its revocations with it: folder %s may be written by others (mode %04o); run chmod go-w on it, or write stateDir: /var/lib/chaperone/%s, which the sidecar makes (on a volume of its own, the volume itself)",
		dir, replaceable.Dir, replaceable.Mode.Perm(), plugin)
}

// pluginElsewhere reports whether the plugin is in another container or on another
// machine: serve without a cgroup.
func (c *PolicyControl) pluginElsewhere() bool { return c.cfg.External && c.cfg.Cgroup == "" }

// checkPlaces refuses a stateDir, or an audit log, that the plugin could put another
// one in the place of; see replaceable for an exception. Where the plugin is in
// another container or on another machine (serve without a cgroup), it cannot; who
// else may is logged and not refused.
func (c *PolicyControl) checkPlaces(spec *configs.Sidecar) error {
	beside := c.pluginElsewhere()
	if err := checkLogPlace(spec); err != nil && !beside {
		return err
	}
	err := checkPlace(spec.StateDir, spec.Plugin, os.Geteuid())
	switch {
	case err == nil:
	case beside:
		c.cfg.Log.Info("state replaceable", zap.Error(err))
	case replaceable(spec):
		c.cfg.Log.Warn("state replaceable", zap.Error(err), zap.String("detail", "its history is remembered elsewhere: one that is replaced stops the next start"))
	default:
		if _, _, lost := openHistory(spec, c.config.Load().Path); lost != nil {
			return lost
		}
		return err
	}
	return nil
}

// checkLogPlace is checkPlace for an audit log that is not in the stateDir. Others may
// write into its folder, as a group that collects logs; the log has a record of a
// cut. The directories above its folder must not be replaceable.
func checkLogPlace(spec *configs.Sidecar) error {
	folder := filepath.Dir(AbsPath(spec.Audit.File))
	if spec.Audit.File == "" || within(AbsPath(spec.StateDir), folder) {
		return nil
	}
	err := unixsock.CheckPath(folder, os.Geteuid())
	if replaceable, is := errors.AsType[*unixsock.ReplaceableError](err); is {
		return fmt.Errorf("audit.file %s can be replaced: folder %s may be changed by others (uid %d, mode %04o); write an audit.file in which all above it is root's, or leave it out: it is then in the stateDir",
			spec.Audit.File, replaceable.Dir, max(replaceable.Owner, 0), replaceable.Mode.Perm())
	}
	if err != nil {
		return fmt.Errorf("check who may replace audit.file: %w", err)
	}
	return nil
}

// sidecarUser returns the user that a sidecar will run as: root where the kernel
// half is required, as far as can be foreseen, otherwise the caller.
func sidecarUser(kernel configs.Kernel) int {
	if kernel == configs.KernelRequired {
		return 0
	}
	return os.Geteuid()
}

// Close gives the lock back.
func (s *state) Close() error { return s.lock.Close() }

func (s *state) path(name string) string { return filepath.Join(s.dir, name) }

// save replaces a file of the state: a power cut leaves the old one or the new one.
func (s *state) save(name string, value any) error {
	data, err := json.MarshalIndent(value, "", " ")
	if err == nil {
		err = atomicfile.WriteFS(s.files, s.path(name), data, 0o600)
	}
	if err != nil {
		return fmt.Errorf("save %s: %w", name, err)
	}
	return nil
}

// load reads a file of the state into value, which stays as it is when there
// is no such file. A file that cannot be read is an error: state with
// revocations is never taken for empty.
func (s *state) load(name string, value any) error {
	data, err := os.ReadFile(s.path(name))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err == nil {
		err = json.Unmarshal(data, value)
	}
	if err != nil {
		return fmt.Errorf("load %s: %w", s.path(name), err)
	}
	return nil
}

// revocations reads those that outlived earlier sidecars.
func (s *state) revocations() ([]authz.Revocation, error) {
	var all []authz.Revocation
	return all, s.load(revocationsFile, &all)
}

// revocationsInto puts them into force.
func (s *state) revocationsInto(engine *authz.Engine) error {
	all, err := s.revocations()
	if err == nil && len(all) > 0 {
		engine.Revoke(all...)
	}
	return err
}
