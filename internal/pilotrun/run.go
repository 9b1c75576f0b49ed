package pilotrun

import (
	"context"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"time"

	"github.com/chaperone-proxy/chaperone/authz"
	"github.com/chaperone-proxy/chaperone/configs"
	"github.com/chaperone-proxy/chaperone/governance/pilot"
)

// Config is a pilot to run.
type Config struct {
	// Chaperone is the path of the sidecar's executable.
	Chaperone string
	// Dir is a folder of the pilot's own (0700), which the caller makes and removes. The path
	// has to be short: sockets are below it.
	Dir string
	// Sidecar is the one to derive the pilot's from, with defaults filled in and paths absolute.
	Sidecar configs.Sidecar
	// Grant is the access that the manifest declares; the ids of its rules are those of the
	// permissions.
	Grant authz.Grant
	// Guardrails apply beside those that Sidecar names.
	Guardrails []configs.Object[configs.GuardrailSpec]
	// Version is the plugin's.
	Version string
	// Command is the plugin's program with its arguments; nil with Cgroup.
	Command []string
	// Cgroup is the cgroup v2 folder in which something else starts the plugin, as a container
	// runtime does, once the sidecar confines it; "" for a plugin that the sidecar starts. It has
	// no process before, and those that are in it when the pilot ends are killed.
	Cgroup string
	// Profile is the load, nil for none; ProfileDigest is the digest of its file.
	Profile       *pilot.Profile
	ProfileDigest string
	// For is how long the pilot lasts. With Coverage it is how long it lasts at most.
	For time.Duration
	// Coverage ends the pilot once the estimated share of accesses whose kind was seen reaches
	// it, as in 0.99; 0 for none.
	Coverage float64
	// Output takes what the plugin and the sidecar print.
	Output io.Writer
	// Progress takes a line for the operator now and then; it may be nil.
	Progress func(line string)
}

// sampleEvery is how often samples are taken.
const sampleEvery = 250 * time.Millisecond

// Margin is how long the sidecar goes on observing after the pilot should have ended. The
// grant has to last as long.
const Margin = time.Hour

// run is one pilot.
type run struct {
	cfg     Config
	spec    configs.Sidecar // the derived one
	started time.Time
	child   *Child

	samples pilot.Samples
	load    pilot.Load
	spans   []pilot.Span
	began   time.Time // when a plugin that something else starts was first seen; zero for another
	apart   time.Time // since when its processes are all in another network; zero if they are not
	ready   time.Time // zero: no answer yet
	env     pilot.Environment
}

func (r *run) sidecarFile() string { return filepath.Join(r.cfg.Dir, sidecarFile) }

func (r *run) say(format string, args ...any) {
	if r.cfg.Progress != nil {
		r.cfg.Progress(fmt.Sprintf(format, args...))
	}
}

// Run runs a pilot until its time is over, its coverage is reached, or the plugin ends. An
// end of ctx ends the plugin, and is an error: a pilot that was interrupted measures
// nothing. When Run returns, the sidecar and the plugin have ended.
func Run(ctx context.Context, cfg Config) (*pilot.Measurement, error) {
	r := &run{cfg: cfg, started: time.Now()}
	grant, err := r.writeFiles(r.started.Add(cfg.For + Margin))
	if err != nil {
		return nil, err
	}
	if r.child, err = Start(ChildConfig{
		Chaperone: cfg.Chaperone, File: r.sidecarFile(), Spec: r.spec, Command: cfg.Command, Cgroup: cfg.Cgroup, Stdout: cfg.Output, Stderr: cfg.Output,
		Patience: endPatience + time.Duration(r.spec.Drain), Exercise: "pilot", Progress: func(line string) { r.say("%s", line) },
	}); err != nil {
		return nil, err
	}
	err = r.observe(ctx)
	ended := time.Now()
	err = errors.Join(err, r.child.End(context.WithoutCancel(ctx)))
	if err != nil {
		return nil, err
	}
	m := &pilot.Measurement{
		Plugin: cfg.Grant.Plugin, Version: cfg.Version, Started: r.started, Ended: ended, Samples: &r.samples, Load: &r.load,
		Profile: cfg.ProfileDigest, Environment: r.env,
	}
	return m, r.readLog(ctx, m, grant)
}

// observe waits for the plugin, drives the load and takes samples until the pilot ends.
func (r *run) observe(ctx context.Context) error {
	status, err := r.child.AwaitPlugin(ctx)
	if err != nil {
		return err
	}
	cgroup := status.Process.Cgroup
	r.env = environment(status.Version)
	if r.cfg.Cgroup == "" {
		r.say("plugin started, process %d", status.Process.PID)
	} else {
		cgroup, r.began = r.child.group.path, time.Now()
		r.say("plugin runs in %s", cgroup)
	}
	bounded, cancel := context.WithTimeout(ctx, r.cfg.For)
	defer cancel()
	loaded := make(chan error, 1)
	go func() { loaded <- r.drive(bounded, status.Process.Listen) }()
	err = r.sampleUntil(bounded, cgroup)
	cancel()
	if lerr := <-loaded; lerr != nil {
		err = errors.Join(err, lerr)
	}
	if ctx.Err() != nil {
		return fmt.Errorf("the pilot was interrupted: %w", ctx.Err())
	}
	return err
}

// sampleUntil takes samples until the pilot ends. A plugin that ends with status 0 has done
// its work.
func (r *run) sampleUntil(ctx context.Context, cgroup string) error {
	tick := time.NewTicker(sampleEvery)
	defer tick.Stop()
	estimate := estimator{next: time.Now().Add(firstEstimate)}
	for {
		if err := r.lost(networkPatience); err != nil {
			return err
		}
		if one, err := r.sample(ctx, cgroup); err == nil {
			r.samples.Add(one)
			r.env.CPUMax, r.env.MemoryMax = limit(cgroup, "cpu.max"), limit(cgroup, "memory.max") // a runtime sets them after its first process
		}
		select {
		case <-ctx.Done():
			return r.lost(0)
		case <-r.child.ended:
			if err := r.child.lost(); errors.Is(err, errRemoved) { // the sidecar ends with it
				return r.early(err)
			}
			if r.cfg.Cgroup != "" {
				return fmt.Errorf("the sidecar ended in the pilot: %w", r.child.outcome())
			}
			if r.child.err != nil {
				return fmt.Errorf("the plugin ended in the pilot after %s: %w", time.Since(r.started).Round(time.Millisecond), r.child.err)
			}
			return nil
		case <-tick.C:
		}
		if r.cfg.Coverage > 0 && r.covered(ctx, &estimate) {
			return r.lost(0)
		}
	}
}

// networkPatience is how long the processes of a plugin may all be in another network namespace. The
// first process of a container runtime is in the cgroup a moment before it enters the
// container's namespace.
const networkPatience = 2 * time.Second

// lost returns the error of a pilot whose plugin, which something else started, runs no more, or
// where the sidecar has not served it for longer than patience. Samples of a later cgroup of the
// same name would be of a plugin that is not confined.
func (r *run) lost(patience time.Duration) error {
	if err := r.child.lost(); err != nil {
		return r.early(err)
	}
	if r.child.group == nil {
		return nil
	}
	err := r.child.group.reachable()
	switch {
	case err == nil:
		r.apart = time.Time{}
		return nil
	case r.apart.IsZero():
		r.apart = time.Now()
	}
	if time.Since(r.apart) < patience {
		return nil
	}
	return err
}

// early returns the error of a plugin that ended in the pilot.
func (r *run) early(err error) error {
	return r.child.early(fmt.Sprintf("in the pilot after %s", time.Since(r.started).Round(time.Millisecond)), err)
}
