package ebpf

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"github.com/cilium/ebpf"
	"go.uber.org/zap"

	"github.com/chaperone-proxy/chaperone/ebpf/sandbox"
)

// maxAliases is how many sockets the plugin may have outside its private
// directories at once, for itself to connect to by path.
const maxAliases = 64

// aliases are the Unix sockets that the plugin listens on in directories that it shares
// with others: its working directory, the home of a named user. Every user who may
// write there can put another socket in the place of one. So the hooks write the path
// of an alias over the name: a mount of the very file that the plugin bound its socket
// to.
type aliases struct {
	mu   sync.Mutex
	last uint64                // number that an alias was made with
	of   map[uint64]*aliasedTo // by inode number of the socket
}

// aliasedTo is one socket.
type aliasedTo struct {
	number uint64
	names  []string // absolute paths that are turned to the alias
}

// reportsListen reports whether listen(2) is to be reported.
func (c *Confinement) reportsListen() bool {
	return c.group.Own
}

// listenHandler returns what is called before a process of the plugin listens on
// a Unix socket with a path; nil: that is not reported.
func (c *Confinement) listenHandler() func(process uint32, l sandbox.Listener) {
	if !c.reportsListen() {
		return nil
	}
	return c.handleUnixListen
}

// handleUnixListen handles a socket that the plugin is about to listen on.
func (c *Confinement) handleUnixListen(process uint32, l sandbox.Listener) {
	c.followDirect(l)
	if err := c.alias(process, l); err != nil {
		c.config.Logger.Warn("own socket unreachable for the plugin", zap.String("path", l.Path), zap.Error(err))
	}
	if c.config.Listen.Unix == nil {
		_ = l.File.Close() // it was only open to be looked at
		return
	}
	c.config.Listen.Unix(l)
}

// alias makes a socket outside the private directories reachable for the plugin.
func (c *Confinement) alias(process uint32, l sandbox.Listener) error {
	if c.programs.unix == nil || !c.hasView() {
		return nil
	}
	names := c.unsharedNames(process, l)
	if len(names) == 0 {
		return nil
	}
	namespace, err := os.Open(fmt.Sprintf("/proc/%d/ns/mnt", process))
	if err != nil {
		return fmt.Errorf("open view: %w", err)
	}
	defer func() { _ = namespace.Close() }()
	a := &c.aliases
	a.mu.Lock()
	defer a.mu.Unlock()
	switch {
	case a.of[l.Socket] != nil:
		return nil // listen(2) a second time
	case len(a.of) >= maxAliases:
		return fmt.Errorf("%d sockets outside its own directories are the most", maxAliases)
	}
	a.last++
	one := &aliasedTo{number: a.last, names: names}
	path := ""
	err = sandbox.OnThread(func() (_ bool, err error) {
		path, err = sandbox.Alias(namespace, l.File, one.number)
		return false, err
	})
	if err != nil {
		return err
	}
	if a.of == nil {
		a.of = make(map[uint64]*aliasedTo)
	}
	a.of[l.Socket] = one
	for _, name := range names {
		key, value, err := aliasEntry(name, path)
		if err == nil {
			err = c.programs.unix.Maps["trees"].Put(key, value)
		}
		if err != nil {
			return fmt.Errorf("turn %s to its alias: %w", name, err)
		}
	}
	return nil
}

// aliasEntry is a whole path as the hooks look it up: with the zero behind it, so
// that no longer path matches.
func aliasEntry(name, alias string) (unixTreeKey, unixTree, error) {
	key, value, err := treeEntry(name, alias)
	if len(name) < len(key.Path) {
		key.Path[len(name)] = 0
	}
	return key, value, err
}

// unsharedNames returns the absolute paths of a socket, as it lies and as it was
// bound, unless the hooks turn them to a private directory.
func (c *Confinement) unsharedNames(process uint32, l sandbox.Listener) []string {
	bound := l.Name
	if !filepath.IsAbs(bound) {
		dir, err := os.Readlink(fmt.Sprintf("/proc/%d/cwd", process))
		if err != nil {
			return nil
		}
		bound = filepath.Join(dir, bound)
	}
	var out []string
	for _, name := range []string{l.Path, filepath.Clean(bound)} {
		if strings.ContainsRune(name, 0) || len(out) > 0 && out[0] == name {
			continue
		}
		key := unixTreeKey{Bits: 8 * uint32(len(unixTreeKey{}.Path))}
		var value unixTree
		if len(name) >= len(key.Path) {
			continue
		}
		copy(key.Path[:], name)
		if err := c.programs.unix.Maps["trees"].Lookup(key, &value); err == nil && value.Length > 0 && !value.isAlias() {
			continue
		}
		out = append(out, name)
	}
	return out
}

// isAlias reports whether a path is turned to an alias, and not to the twin of a
// private directory.
func (t *unixTree) isAlias() bool {
	return strings.HasPrefix(string(t.Twin[:t.Length]), filepath.Dir(sandbox.AliasPath(0))+"/")
}

// dropAliases forgets the sockets that the plugin has closed.
func (c *Confinement) dropAliases() {
	c.aliases.mu.Lock()
	defer c.aliases.mu.Unlock()
	if len(c.aliases.of) == 0 {
		return
	}
	sockets := make([]uint64, 0, len(c.aliases.of))
	for socket := range c.aliases.of {
		sockets = append(sockets, socket)
	}
	bound, err := c.Bound(sockets)
	if err != nil {
		c.config.Logger.Error("own sockets of the plugin not checked", zap.Error(err))
		return
	}
	for _, socket := range sockets {
		if bound[socket] {
			continue
		}
		if err := c.dropAlias(c.aliases.of[socket]); err != nil {
			c.config.Logger.Warn("alias of a closed socket stays", zap.Error(err))
		}
		delete(c.aliases.of, socket)
	}
}

// dropAlias removes the names first, because the sockets that they named have no listener any more.
func (c *Confinement) dropAlias(one *aliasedTo) error {
	for _, name := range one.names {
		var now unixTree
		key, own, err := aliasEntry(name, sandbox.AliasPath(one.number))
		if err == nil {
			err = c.programs.unix.Maps["trees"].Lookup(key, &now)
		}
		if err == nil && now == own { // else the name is a newer socket's
			err = c.programs.unix.Maps["trees"].Delete(key)
		}
		if err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
			return fmt.Errorf("forget %s: %w", name, err)
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.running == nil {
		return nil // it went with the view
	}
	return sandbox.OnThread(func() (bool, error) { return false, sandbox.RemoveAlias(c.running.namespace, one.number) })
}
