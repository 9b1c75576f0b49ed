package ebpf

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/chaperone-proxy/chaperone/ebpf/sandbox/launcher"
)

// linkedDirectories are the directories of sockets and temporary files that some
// distributions keep as a symbolic link to another one (hier(7)).
func linkedDirectories() []string {
	return []string{"/var/run", "/var/lock", "/var/tmp", "/tmp", "/dev/shm"}
}

// shareTrees makes the Unix sockets that the plugin binds in its private
// directories reachable for the plugin itself, by path as well. The hooks write
// the path below the directory's twin over a path below the directory, so that
// the kernel looks for the socket in that directory and nowhere else: no symbolic
// link, mount or rename leads from there to a socket of another program. Paths
// below what the view keeps of the host stay refused.
//
// It replaces what an earlier call shared. Trees without a twin are not shared.
func (c *Confinement) shareTrees(v *launcher.View) error {
	if c.programs.unix == nil {
		return nil
	}
	c.aliases.mu.Lock()
	defer c.aliases.mu.Unlock()
	c.aliases.of = nil // they went with the view
	m := c.programs.unix.Maps["trees"]
	var key unixTreeKey
	var value unixTree
	var old []unixTreeKey
	for entries := m.Iterate(); entries.Next(&key, &value); {
		old = append(old, key)
	}
	for _, key := range old {
		if err := m.Delete(key); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
			return fmt.Errorf("share private directories: %w", err)
		}
	}
	for directory, twin := range twins(v.Trees) {
		key, value, err := treeEntry(directory, twin)
		if err == nil {
			err = m.Put(key, value)
		}
		if err != nil {
			return fmt.Errorf("share private directory %s: %w", directory, err)
		}
	}
	for _, kept := range v.Kept {
		key, value, err := treeEntry(filepath.Clean(kept.Path), "/")
		if err != nil {
			continue // too long for the table: the twin has nothing under that name
		}
		value.Length = 0
		if err := m.Update(key, value, ebpf.UpdateNoExist); err != nil && !errors.Is(err, ebpf.ErrKeyExist) && !errors.Is(err, unix.ENOSPC) {
			return fmt.Errorf("except %s from the private directories: %w", kept.Path, err)
		}
	}
	return nil
}

// twins maps each name of a private directory to the path of its twin.
func twins(trees []launcher.Tree) map[string]string {
	out := make(map[string]string)
	for _, tree := range trees {
		if tree.Twin != "" {
			out[tree.Path] = tree.Twin
		}
	}
	for _, name := range linkedDirectories() {
		target, err := filepath.EvalSymlinks(name)
		if err != nil || target == name {
			continue
		}
		delete(out, name) // a link is not covered
		longest := 0
		for _, tree := range trees {
			below := target == tree.Path || strings.HasPrefix(target, tree.Path+string(os.PathSeparator))
			if tree.Twin != "" && below && len(tree.Path) > longest {
				longest = len(tree.Path)
				out[name] = tree.Twin + target[len(tree.Path):]
			}
		}
	}
	return out
}

// treeEntry is a private directory as the hooks look it up.
func treeEntry(directory, twin string) (key unixTreeKey, value unixTree, err error) {
	prefix := directory + "/"
	switch {
	case filepath.Clean(directory) != directory || !filepath.IsAbs(directory) || directory == "/" || len(prefix) > len(key.Path):
		return key, value, errors.New("it is no clean absolute path")
	case filepath.Clean(twin) != twin || !filepath.IsAbs(twin) || len(twin) > len(value.Twin):
		return key, value, fmt.Errorf("its twin %s is no clean absolute path of at most %d bytes", twin, len(value.Twin))
	}
	key.Bits = uint32(8 * len(prefix))
	copy(key.Path[:], prefix)
	value.Visible, value.Length = uint32(len(directory)), uint32(len(twin))
	copy(value.Twin[:], twin)
	return key, value, nil
}
