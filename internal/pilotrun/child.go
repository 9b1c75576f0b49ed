package pilotrun

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"syscall"
	"time"

	"github.com/chaperone-proxy/chaperone/authz"
	"github.com/chaperone-proxy/chaperone/configs"
	"github.com/chaperone-proxy/chaperone/internal/admin"
	"github.com/chaperone-proxy/chaperone/internal/printable"
	"github.com/chaperone-proxy/chaperone/internal/statehistory"
)

// The times of a child.
const (
	startPatience = 60 * time.Second
	// containerPatience is how long a container may take to start, with the pull of its image.
	containerPatience = 10 * time.Minute
	endPatience       = 10 * time.Second // beside the time that the sidecar drains
	statusTimeout     = 5 * time.Second
)

// ChildConfig is a sidecar to start with its plugin.
type ChildConfig struct {
	// Chaperone is the path of the sidecar's executable.
	Chaperone string
	// File is the path of the Sidecar, and Spec its content, with paths absolute.
	File string
	Spec configs.Sidecar
	// Command is the plugin's program with its arguments; nil with Cgroup.
	Command []string
	// Cgroup is the cgroup v2 folder of a plugin that something else starts, without a process
	// until then; see [Config].
	Cgroup string
	// Stdin is the plugin's, nil for none. Stdout and Stderr take what the plugin and the
	// sidecar print.
	Stdin          io.Reader
	Stdout, Stderr io.Writer
	// Patience is how long the plugin may take to end after SIGTERM; then it is halted.
	Patience time.Duration
	// Exercise names the purpose of the run in errors and in the reason of a halt, as in
	// "pilot".
	Exercise string
	// Progress takes a line for the operator; it may be nil.
	Progress func(line string)
}

// Child is a started `chaperone run` with its plugin.
type Child struct {
	cfg    ChildConfig
	client *admin.Client
	group  *pluginCgroup // of a plugin that something else starts; nil without Cgroup
	cmd    *exec.Cmd
	ended  chan struct{} // closed when it has ended
	err    error         // of Wait, once it has
}

// Start starts a sidecar, which ends with this process at the latest.
func Start(cfg ChildConfig) (*Child, error) {
	args := append([]string{"run", "--config", cfg.File, "--"}, cfg.Command...)
	var group *pluginCgroup
	if cfg.Cgroup != "" {
		var err error
		if group, err = openCgroup(cfg.Cgroup); err != nil {
			return nil, err
		}
		cfg.Cgroup = group.path
		args = []string{"serve", "--config", cfg.File, "--cgroup", cfg.Cgroup}
	}
	cmd := exec.Command(cfg.Chaperone, args...) //nolint:noctx // End stops it
	cmd.Stdin, cmd.Stdout, cmd.Stderr = cfg.Stdin, cfg.Stdout, cfg.Stderr
	cmd.WaitDelay = endPatience
	// A terminal's interrupt reaches this process alone, which then ends the sidecar.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGTERM}
	c := &Child{cfg: cfg, client: admin.Dial(cfg.Spec.Listen.Admin.Addr), group: group, cmd: cmd, ended: make(chan struct{})}
	if err := c.start(); err != nil {
		err = fmt.Errorf("start the sidecar: %w", err)
		if group != nil {
			err = errors.Join(err, group.folder.Close())
		}
		return nil, err
	}
	return c, nil
}

// start starts the command. The kernel signals it when the thread that started it ends, so
// that the thread waits for it.
func (c *Child) start() error {
	started := make(chan error)
	go func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := c.cmd.Start()
		started <- err
		if err == nil {
			c.err = c.cmd.Wait()
			close(c.ended)
		}
	}()
	return <-started
}

// Ended is closed when the sidecar has ended.
func (c *Child) Ended() <-chan struct{} { return c.ended }

// AwaitPlugin waits until the plugin runs.
func (c *Child) AwaitPlugin(ctx context.Context) (*admin.Status, error) {
	patience := startPatience
	if c.cfg.Cgroup != "" {
		patience = containerPatience
	}
	deadline := time.NewTimer(patience)
	defer deadline.Stop()
	const pause = 5 * time.Millisecond
	for ready := false; ; {
		if s, err := c.Status(ctx); err == nil && s.Process != nil {
			switch runs, err := c.runs(&s); {
			case err != nil:
				return nil, c.early("before it was observed", err)
			case runs:
				return &s, nil
			}
			if c.cfg.Cgroup != "" && s.Ready && !ready && c.cfg.Progress != nil {
				ready = true
				c.cfg.Progress(fmt.Sprintf("start the plugin in %s now; its programs trust the sidecar with SSL_CERT_FILE=%s", c.cfg.Cgroup, s.Certificates))
			}
		}
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("the %s was interrupted: %w", c.cfg.Exercise, ctx.Err())
		case <-c.ended:
			if err := c.lost(); errors.Is(err, errRemoved) { // the sidecar ends with it
				return nil, c.early("before it was observed", err)
			}
			return nil, fmt.Errorf("the plugin ended before it was observed: %w", c.outcome())
		case <-deadline.C:
			return nil, fmt.Errorf("the plugin did not start within %s", patience)
		case <-time.After(pause):
		}
	}
}

// runs reports whether the plugin runs. It fails if it cannot run any more.
func (c *Child) runs(s *admin.Status) (bool, error) {
	if c.group == nil {
		return s.Process.PID != 0, nil
	}
	used := c.group.usage() // read first: a process that starts between the two reads is not one that ended
	err := c.group.running()
	if errors.Is(err, errNoProcess) && used <= c.group.used {
		return false, nil
	}
	return err == nil, err
}

// early returns the error of a plugin that ended before the exercise did, which something else
// started.
func (c *Child) early(when string, err error) error {
	return fmt.Errorf("the plugin ended %s: %w; start it so that it runs until the %s ends it", when, err, c.cfg.Exercise)
}

// lost returns why a plugin that something else started runs no more, nil if it does.
func (c *Child) lost() error {
	if c.group == nil {
		return nil
	}
	return c.group.running()
}

// Status asks the sidecar for its status.
func (c *Child) Status(ctx context.Context) (admin.Status, error) {
	ctx, cancel := context.WithTimeout(ctx, statusTimeout)
	defer cancel()
	return c.client.Status(ctx)
}

// outcome returns the error of a child that ended by itself, also with status 0.
func (c *Child) outcome() error {
	if c.err != nil {
		return c.err
	}
	return errors.New("exit status 0")
}

// End ends the sidecar, and with it the plugin, waits for both, and has the host forget the
// state directory. A plugin that ignores SIGTERM is halted, so that the sidecar ends its log
// in order.
func (c *Child) End(ctx context.Context) error {
	return errors.Join(c.end(ctx), statehistory.Forget(c.cfg.Spec.StateDir, Roots()...))
}

func (c *Child) end(ctx context.Context) error {
	if c.cfg.Cgroup != "" {
		return c.endBeside(ctx)
	}
	if c.signal(syscall.SIGTERM, c.cfg.Patience) {
		return nil
	}
	if c.cfg.Progress != nil {
		c.cfg.Progress("the plugin ignored SIGTERM, and is killed")
	}
	err := c.halt(ctx)
	if err == nil && c.endsWithin(endPatience) {
		return nil
	}
	// A sidecar that is killed leaves its plugin to detach.
	c.signal(syscall.SIGKILL, endPatience)
	if derr := c.detach(ctx); derr != nil {
		return fmt.Errorf("the sidecar did not end, and its %w", errors.Join(derr, err))
	}
	return fmt.Errorf("the sidecar did not end within %s and was killed, so that its log has no end: %w", endPatience, err)
}

// endBeside ends a plugin that something else started, before the sidecar that confines it.
func (c *Child) endBeside(ctx context.Context) error {
	err := c.group.kill()
	if err != nil {
		err = errors.Join(err, c.halt(ctx))
	}
	if !c.signal(syscall.SIGTERM, c.cfg.Patience) {
		c.signal(syscall.SIGKILL, endPatience)
		err = errors.Join(err, errors.New("the sidecar did not end and was killed, so that its log has no end"))
	}
	return errors.Join(err, c.detach(ctx), c.group.folder.Close()) // serve leaves a cgroup that it did not make confined
}

// detach kills the processes of the plugin, and removes what the sidecar left on its cgroup.
func (c *Child) detach(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, endPatience)
	defer cancel()
	out, err := exec.CommandContext(ctx, c.cfg.Chaperone, "detach", "--config", c.cfg.File, "--kill").CombinedOutput()
	if err != nil {
		return fmt.Errorf("plugin is not detached: %w: %s; run chaperone doctor", err, printable.Clip(string(out), maxOutput))
	}
	return nil
}

// maxOutput bounds what an error shows of the output of detach, in bytes.
const maxOutput = 1 << 10

// halt has the sidecar kill the plugin.
func (c *Child) halt(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, endPatience)
	defer cancel()
	_, err := c.client.Revoke(ctx, admin.RevokeRequest{Level: authz.LevelHalt, Reason: fmt.Sprintf("the %s has ended", c.cfg.Exercise)})
	return err
}

// signal sends a signal to the child and reports whether it ended within a time.
func (c *Child) signal(signal os.Signal, within time.Duration) bool {
	if c.endsWithin(0) {
		return true
	}
	_ = c.cmd.Process.Signal(signal) // it may have ended
	return c.endsWithin(within)
}

// endsWithin reports whether the child ends within a time.
func (c *Child) endsWithin(within time.Duration) bool {
	timer := time.NewTimer(within)
	defer timer.Stop()
	select {
	case <-c.ended:
		return true
	case <-timer.C:
	}
	select { // both may have been ready
	case <-c.ended:
		return true
	default:
		return false
	}
}

// Roots are the folders in which sidecars remember their state directories, and the host its
// revocations.
func Roots() []string {
	if dir := os.Getenv("CHAPERONE_REGISTRY"); dir != "" {
		return []string{dir}
	}
	return []string{"/var/lib/chaperone", admin.DefaultRegistry}
}
