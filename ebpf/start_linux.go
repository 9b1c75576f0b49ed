package ebpf

import (
	"errors"
	"fmt"
	"slices"

	"github.com/chaperone-proxy/chaperone/ebpf/sandbox"
	"github.com/chaperone-proxy/chaperone/ebpf/sandbox/launcher"
	"github.com/chaperone-proxy/chaperone/internal/runtimedir"
)

// Start starts a program confined. It returns when the program runs, or
// an [*ExecError] when there is no such program or it cannot be run, or another
// error when it could not be confined, in which case nothing of it ran. One
// program runs in a confinement at a time; its children are its own affair.
//
// [Process.Wait] has to be called.
func (c *Confinement) Start(command sandbox.Command) (*sandbox.Process, error) {
	if err := command.Complete(); err != nil {
		return nil, err
	}
	return c.start(command, 0)
}

func (c *Confinement) start(command sandbox.Command, selfTest uint) (*sandbox.Process, error) {
	c.starting.Lock()
	defer c.starting.Unlock()
	if !c.group.Own {
		return nil, fmt.Errorf("start %s: the cgroup belongs to somebody else", command.Path)
	}
	if err := c.Check(); err != nil {
		return nil, fmt.Errorf("start %s: %w", command.Path, err)
	}
	if populated, err := c.group.Populated(); err != nil || populated {
		return nil, errors.Join(err, fmt.Errorf("start %s: a program is running already", command.Path))
	}
	c.noteDescriptorPassing(command.Stdin, command.Stdout, command.Stderr)
	config, err := c.processConfig(command, selfTest)
	if err != nil {
		return nil, fmt.Errorf("start %s: %w", command.Path, err)
	}
	p, err := sandbox.StartProcess(config, command)
	if err != nil {
		return nil, errors.Join(err, c.group.Kill())
	}
	return p, nil
}

// processConfig returns the sandbox that a program runs in. A self-test sees the host's files.
func (c *Confinement) processConfig(command sandbox.Command, selfTest uint) (sandbox.ProcessConfig, error) {
	config := sandbox.ProcessConfig{
		Cgroup: c.group, Network: c.network, User: &c.user, Private: c.private(), SelfTest: selfTest,
		UnixSockets: c.programs.unix != nil, ReportListen: c.reportsListen(), AllowAbstract: !c.own && c.programs.unix != nil,
		Denied: c.recordDenial, ListenUnix: c.listenHandler(), ListenTCP: c.servingHandler(),
		Reaper: c.config.Reaper, Logger: c.config.Logger,
	}
	if !c.config.UnsafeSameUser {
		config.Unreadable = c.config.Private
	}
	if !c.hasView() || selfTest != 0 {
		return config, nil
	}
	view, err := c.view(command)
	if err != nil {
		return sandbox.ProcessConfig{}, err
	}
	config.View = view
	config.ViewStarted = func(first int) error { return c.observeView(view, first) }
	config.ViewEnded = func() error {
		c.mu.Lock()
		defer c.mu.Unlock()
		return c.forgetView()
	}
	return config, nil
}

// private are the paths that are the sidecar's alone, without links.
func (c *Confinement) private() []string {
	return launcher.ResolveLinks(append([]string{c.config.StateDir, runtimedir.Default, c.paths.Dir}, c.config.Private...))
}

// servingHandler is called for TCP ports of [Config.Serve] that the plugin is about
// to listen on, while the process waits; nil: there is no handler.
func (c *Confinement) servingHandler() func(port uint16) {
	if !c.own || c.config.Listen.TCP == nil || len(c.config.Serve) == 0 {
		return nil
	}
	return func(port uint16) {
		if slices.Contains(c.config.Serve, port) {
			c.config.Listen.TCP(port)
		}
	}
}

// recordDenial counts a refusal that seccomp reported and hands it to [Confinement.Run].
func (c *Confinement) recordDenial(d sandbox.Denial) {
	c.refusedCalls.Add(1)
	select {
	case c.denials <- d:
	default:
		c.droppedDenials.Add(1)
	}
}
