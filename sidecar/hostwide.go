package sidecar

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"go.uber.org/zap"

	"github.com/chaperone-proxy/chaperone/authz"
	"github.com/chaperone-proxy/chaperone/configs"
	"github.com/chaperone-proxy/chaperone/internal/admin"
	"github.com/chaperone-proxy/chaperone/internal/hostrevocations"
	"github.com/chaperone-proxy/chaperone/internal/phrase"
)

// StateRoot is where the states of sidecars usually are. It survives a reboot,
// which the registry below /run does not.
const StateRoot = "/var/lib/chaperone"

// HostStore returns the revocations of the whole host: in stateRoot, or in the
// registry's folder where that cannot be written. CHAPERONE_REGISTRY stands for
// both.
func HostStore() *hostrevocations.Store {
	if dir := Registry(); dir != "" {
		return hostrevocations.New(dir)
	}
	return hostrevocations.New(StateRoot, admin.DefaultRegistry)
}

// hostWide keeps a sidecar in line with the revocations of the whole host.
type hostWide struct {
	store *hostrevocations.Store

	mu       sync.Mutex // guards what follows
	stamp    string     // of the files, when they were last taken in
	failures int        // in a row, to read them
	detail   string     // for status
	inForce  []string   // ids of what the files revoke
}

const (
	// hostInterval is how often the files are looked at. A sidecar that runs gets a
	// revocation by its admin socket too, and does not wait for this.
	hostInterval = time.Second
	// hostPatience is after how many failures in a row to read the files a sidecar
	// that runs denies. One that starts denies at the first.
	hostPatience = 3
	// UnreadableID is the id of the revocation that is in force while the files
	// cannot be read. It is never written to the stateDir.
	UnreadableID = "host-revocations-unreadable"
	// maxAnswers bounds the results kept of revocations that were read from the
	// files before they came by the admin socket.
	maxAnswers = 64
)

// loadHostRevocations puts the revocations of the host in force before anything
// runs.
func (c *PolicyControl) loadHostRevocations(*configs.Sidecar) error {
	c.host.store = HostStore()
	c.host.failures = hostPatience - 1
	c.followHost()
	if detail := c.host.detail; detail != "" {
		c.cfg.Log.Info("host revocations limited", zap.String("detail", detail))
	}
	return nil
}

// watchHost follows the revocations of the host until ctx ends.
func (c *PolicyControl) watchHost(ctx context.Context) { tick(ctx, hostInterval, c.followHost) }

// followHost puts in force what the files of the host revoke, and lifts what they
// restore. Files that cannot be read revoke everything until they can.
func (c *PolicyControl) followHost() {
	h := &c.host
	h.mu.Lock()
	defer h.mu.Unlock()
	stamp := h.store.Stamp()
	if stamp == h.stamp && h.failures == 0 {
		return
	}
	state, err := h.store.Read()
	h.stamp, h.detail = stamp, hostDetail()
	switch {
	case errors.Is(err, fs.ErrPermission) && os.Geteuid() != 0:
		h.failures = 0
		h.detail = "host-wide revocations are root's to read: revoke --all does not reach this sidecar while it is down"
	case err != nil:
		h.failures++
		h.detail = err.Error()
		if h.failures >= hostPatience {
			c.denyUnreadable(err)
		}
	default:
		h.failures = 0
		c.lift(UnreadableID, "the files can be read again", "chaperone")
	}
	c.followState(state)
}

// denyUnreadable quarantines the plugin because the files of the host cannot be read.
func (c *PolicyControl) denyUnreadable(err error) {
	if _, denied := findRevocation(c.engine.Current().Revocations(), UnreadableID); denied {
		return
	}
	c.cfg.Log.Error("host revocations unreadable", zap.Error(err), zap.String("effect", "plugin quarantined"))
	c.cut(authz.Revocation{
		ID: UnreadableID, Plugin: string(c.cfg.Plugin), Level: authz.LevelQuarantine, Actor: "chaperone", At: time.Now().UTC(),
		Reason: "host-wide revocations cannot be read, so everything is denied: " + phrase.OneLine(err.Error()) + "; repair or remove the file as root",
	})
}

// followState puts in force and lifts what a reading of the files states. The caller
// holds host.mu.
func (c *PolicyControl) followState(state hostrevocations.State) {
	plugin := string(c.cfg.Plugin)
	current := c.engine.Current().Revocations()
	c.host.inForce = nil
	for _, r := range state.InForce(plugin) {
		c.host.inForce = append(c.host.inForce, r.ID)
		if _, known := findRevocation(current, r.ID); known || Expired(r) {
			continue
		}
		out := c.cut(r)
		c.cfg.Log.Warn("host revocation in force", zap.String("id", r.ID), zap.String("level", string(r.Level)),
			zap.String("reason", r.Reason), zap.Int("cut", out.cut), zap.Strings("failed", out.failed))
	}
	for _, r := range current {
		if by, lifted := state.Lifted(r.ID, plugin); lifted {
			c.lift(r.ID, by.Reason, by.Actor)
			c.cfg.Log.Info("host revocation lifted", zap.String("id", r.ID), zap.String("reason", by.Reason))
		}
	}
}

// Expired reports whether the time of a revocation is over.
func Expired(r authz.Revocation) bool { return !r.Until.IsZero() && !time.Now().Before(r.Until) }

// hostRevocationsInto puts the revocations of the host into a policy that is looked
// at without a sidecar.
func hostRevocationsInto(engine *authz.Engine, plugin string) {
	state, err := HostStore().Read()
	for _, r := range engine.Current().Revocations() {
		if _, lifted := state.Lifted(r.ID, plugin); lifted {
			engine.Restore(r.ID)
		}
	}
	engine.Revoke(state.InForce(plugin)...)
	if err != nil && (!errors.Is(err, fs.ErrPermission) || os.Geteuid() == 0) {
		engine.Revoke(authz.Revocation{ID: UnreadableID, Plugin: plugin, Level: authz.LevelQuarantine, Reason: phrase.OneLine(err.Error()), Actor: "chaperone"})
	}
}

// liftHostWide lifts a revocation of the host for this plugin, so that it is not
// put in force again. One that is the sidecar's own needs nothing.
func (c *PolicyControl) liftHostWide(id, reason, actor string) error {
	state, err := c.host.store.Read()
	if errors.Is(err, fs.ErrPermission) && os.Geteuid() != 0 {
		return nil
	}
	if err == nil && slices.ContainsFunc(state.InForce(string(c.cfg.Plugin)), func(r authz.Revocation) bool { return r.ID == id }) {
		err = c.host.store.Restore(hostrevocations.Restoration{ID: id, Plugin: string(c.cfg.Plugin), Reason: reason, Actor: actor, At: time.Now().UTC()})
	}
	if err != nil {
		return fmt.Errorf("revocation %q stays: %w; run chaperone restore as root", id, err)
	}
	return nil
}

// hostStatus returns where the revocations of the host are read.
func (c *PolicyControl) hostStatus() *admin.HostRevocations {
	c.followHost()
	c.host.mu.Lock()
	defer c.host.mu.Unlock()
	return &admin.HostRevocations{Files: c.host.store.Paths(), InForce: slices.Clone(c.host.inForce), Detail: c.host.detail}
}

// hostDetail returns whose revocations are read in a container.
func hostDetail() string {
	const initial = "pid:[4026531836]" // PROC_PID_INIT_INO of the kernel
	if ns, err := os.Readlink("/proc/self/ns/pid"); err != nil || ns == initial || Registry() != "" {
		return ""
	}
	if _, err := os.Stat(StateRoot); errors.Is(err, fs.ErrNotExist) {
		return "in a container without " + StateRoot + ": revoke --all on the host does not reach this sidecar; mount the host's folder there"
	}
	return "in a container: revoke --all on the host reaches this sidecar only if " + StateRoot + " is the host's"
}

// otherSidecars returns the other sidecars of the plugin that run on the host.
func (s *Sidecar) otherSidecars() []admin.Sidecar {
	all, _ := admin.List(Registry()) // revoke --all reports what cannot be listed
	return slices.DeleteFunc(all, func(o admin.Sidecar) bool {
		return o.Gone || o.Plugin != string(s.name) || o.Socket == s.admin.Socket()
	})
}

// otherSidecarWarning returns a warning while the plugin has another sidecar, or "".
func (s *Sidecar) otherSidecarWarning() string {
	var where []string
	for _, o := range s.otherSidecars() {
		where = append(where, fmt.Sprintf("pid %d, %s", o.PID, phrase.ShellWord(o.Socket)))
	}
	if where == nil {
		return ""
	}
	return fmt.Sprintf("%s has another sidecar, with a stateDir of its own (%s): each counts its limits alone", s.name, strings.Join(where, "; "))
}
