package ebpf

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/chaperone-proxy/chaperone/ebpf/sandbox"
	"github.com/chaperone-proxy/chaperone/ebpf/sandbox/launcher"
)

// hasView reports whether the plugin gets a view of its own.
func (c *Confinement) hasView() bool { return c.config.View && c.group.Own }

// Account describes the user of the plugin, for its environment.
func (c *Confinement) Account() sandbox.Account { return c.user.Account(c.config.Plugin, c.hasView()) }

// view composes what the plugin is to see, and shares its private directories.
func (c *Confinement) view(command sandbox.Command) (*launcher.View, error) {
	v, err := sandbox.NewView(sandbox.ViewConfig{
		User: &c.user, Account: c.Account(), StateDir: c.config.StateDir, Command: command,
		Sockets: c.grantedSockets(), Twins: c.programs.unix != nil,
	})
	if err != nil {
		return nil, err
	}
	return v, c.shareTrees(v)
}

// grantedSockets are the paths to show for the sockets that grants name.
func (c *Confinement) grantedSockets() []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	var out []string
	for _, path := range c.allowlist.wanted {
		if filepath.IsAbs(path) { // not an abstract name
			out = append(out, sandbox.ShownPath(path))
		}
	}
	return out
}

// runningView is the view of the program that runs.
type runningView struct {
	*launcher.View
	namespace *os.File        // its mount namespace
	shown     map[string]bool // granted sockets that it shows, by path
}

// observeView notes the view of a program that was started. Sockets that its grants
// name were kept, as far as they existed.
func (c *Confinement) observeView(v *launcher.View, first int) error {
	namespace, err := os.Open(fmt.Sprintf("/proc/%d/ns/mnt", first))
	if errors.Is(err, os.ErrNotExist) {
		return nil // the program has ended already
	}
	if err != nil {
		return fmt.Errorf("open view: %w", err)
	}
	shown := make(map[string]bool)
	for _, kept := range v.Kept {
		if _, err := os.Lstat(kept.Path); err == nil {
			shown[kept.Path] = true
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	err = c.forgetView()
	c.running = &runningView{v, namespace, shown}
	return err
}

// forgetView lets the view of a program go that has ended. The caller holds c.mu.
func (c *Confinement) forgetView() error {
	if c.running == nil {
		return nil
	}
	err := c.running.namespace.Close()
	c.running = nil
	return err
}

// showSocket makes a granted socket visible in the view of the program that
// runs. The caller holds c.mu.
func (c *Confinement) showSocket(socket string) error {
	if c.running == nil || !filepath.IsAbs(socket) {
		return nil
	}
	path := sandbox.ShownPath(socket)
	if c.running.shown[path] {
		return nil
	}
	err := sandbox.OnThread(func() (bool, error) { return false, c.running.Show(c.running.namespace, path) })
	if err != nil {
		return fmt.Errorf("show it in the plugin's view: %w", err)
	}
	c.running.shown[path] = true
	return nil
}
