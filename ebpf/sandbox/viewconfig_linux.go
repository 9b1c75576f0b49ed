package sandbox

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/chaperone-proxy/chaperone/ebpf/sandbox/launcher"
)

// Directories of a state directory that hold what a plugin keeps from one run to
// the next. Only root can enter the state directory; the plugin reaches them in
// its view.
const (
	homeDir = "plugin/home"
	tempDir = "plugin/var-tmp"
)

// ViewConfig is whose view [NewView] composes.
type ViewConfig struct {
	// User is the user of the program, and Account that user as its environment
	// describes it.
	User    *User
	Account Account
	// StateDir is the sidecar's state directory, which holds the directories that
	// outlive a run.
	StateDir string
	// Command is the program.
	Command Command
	// Sockets lists paths of the host to show for the sockets that grants name.
	Sockets []string
	// Twins has each private directory mounted a second time: see [sandbox.Tree].
	Twins bool
}

// NewView composes what a program is to see.
func NewView(c ViewConfig) (*launcher.View, error) {
	dir := c.Command.Dir
	if dir == "" {
		var err error
		if dir, err = os.Getwd(); err != nil {
			return nil, fmt.Errorf("find working directory: %w", err)
		}
	}
	v := &launcher.View{
		UID: c.User.UID, GID: c.User.GID, Directory: dir,
		Trust: launcher.Trust{Bundle: c.Command.TrustBundle},
		Kept:  c.keptPaths(dir),
	}
	var err error
	if v.Trees, err = c.trees(); err != nil {
		return nil, err
	}
	v.Files, err = c.viewFiles()
	return v, err
}

// trees are the directories that the plugin does not share, each with its
// twin. Temporary files end with the plugin, but for those in /var/tmp, which
// outlive a restart (hier(7)), as the home of a dynamic user does.
func (c *ViewConfig) trees() ([]launcher.Tree, error) {
	trees := []launcher.Tree{
		{Path: "/run", Mode: 0o755},
		{Path: "/tmp", Mode: 0o1777},
		{Path: "/dev/shm", Mode: 0o1777},
	}
	if info, err := os.Lstat("/var/run"); err == nil && info.IsDir() { // not a link to /run
		trees = append(trees, launcher.Tree{Path: "/var/run", Mode: 0o755})
	}
	temp, err := c.ownDirectory(tempDir)
	if err != nil {
		return nil, err
	}
	trees = append(trees, launcher.Tree{Path: "/var/tmp", Source: temp})
	if strings.HasPrefix(c.Account.Home, launcher.HomeRoot+"/") {
		home, err := c.ownDirectory(homeDir)
		if err != nil {
			return nil, err
		}
		trees = append(trees, launcher.Tree{Path: c.Account.Home, Source: home})
	}
	if c.Twins {
		for i := range trees {
			trees[i].Twin = filepath.Join(launcher.Own, strconv.Itoa(i))
		}
	}
	return trees, nil
}

// ownDirectory makes a directory of the plugin's in the state directory.
func (c *ViewConfig) ownDirectory(name string) (string, error) {
	path := filepath.Join(c.StateDir, name)
	if err := os.MkdirAll(filepath.Dir(path), privateAccess); err != nil {
		return "", fmt.Errorf("make directory of the plugin: %w", err)
	}
	if err := os.Mkdir(path, privateAccess); err != nil && !errors.Is(err, os.ErrExist) {
		return "", fmt.Errorf("make directory of the plugin: %w", err)
	}
	if err := os.Lchown(path, c.User.UID, c.User.GID); err != nil {
		return "", fmt.Errorf("give the plugin its directory: %w", err)
	}
	absolute, err := filepath.Abs(path)
	if err != nil {
		return "", fmt.Errorf("make directory of the plugin: %w", err)
	}
	return absolute, nil
}

// keptPaths is what stays visible of directories that the view covers: what the
// command names, the granted sockets, and the certificates. Where files are
// limited, it is what the limits name.
func (c *ViewConfig) keptPaths(dir string) []launcher.Kept {
	var out []launcher.Kept
	follow := func(path string, readOnly bool) {
		if target, err := filepath.EvalSymlinks(path); err == nil && target != path {
			out = append(out, launcher.Kept{Path: target, ReadOnly: readOnly})
		}
	}
	add := func(path string, readOnly bool) {
		if crossesLinkOf(c.User.UID, path) {
			return // an earlier run may have left the link, to choose what this one sees
		}
		out = append(out, launcher.Kept{Path: path, ReadOnly: readOnly})
		follow(path, readOnly)
	}
	if c.Command.TrustBundle != "" {
		add(filepath.Dir(c.Command.TrustBundle), true)
	}
	for _, socket := range c.Sockets {
		add(socket, false)
	}
	if c.Command.Files == nil {
		out = append(out, launcher.Kept{Path: dir}) // the caller stands there, by whatever links
		follow(dir, false)
		for _, path := range c.Command.Kept {
			add(path, false)
		}
		return out
	}
	for _, path := range c.Command.Files.Write {
		add(path, false)
	}
	for _, path := range c.Command.Files.Read {
		add(path, true)
	}
	for _, path := range launcher.Candidates(c.Command.Path, c.Command.Env) {
		if absolute, err := filepath.Abs(path); err == nil {
			add(absolute, true)
		}
	}
	return out
}

// crossesLinkOf reports whether a path crosses a symbolic link of a user's. One
// that has too many links does.
func crossesLinkOf(uid int, path string) bool {
	const mostLinks = 40 // as many as the kernel follows (path_resolution(7))
	at, names := "/", strings.Split(filepath.Clean(path), "/")
	for links := 0; len(names) > 0; {
		next := filepath.Join(at, names[0])
		names = names[1:]
		var stat unix.Stat_t
		if err := unix.Lstat(next, &stat); err != nil {
			return false // it does not resolve to a file
		}
		if stat.Mode&unix.S_IFMT != unix.S_IFLNK {
			at = next
			continue
		}
		target, err := os.Readlink(next)
		if links++; err != nil || links > mostLinks || int(stat.Uid) == uid {
			return true
		}
		if filepath.IsAbs(target) {
			at = "/"
		}
		names = append(strings.Split(target, "/"), names...) // joining an empty name or . stays, .. goes up
	}
	return false
}

// ShownPath is what a view shows for a granted socket: its folder, since a
// service that is restarted binds another file under the name, unless the folder
// holds more than sockets of one service.
func ShownPath(socket string) string {
	dir := filepath.Dir(socket)
	if slices.Contains([]string{"/", "/run", "/var/run", "/tmp", "/var/tmp", "/dev"}, dir) {
		return socket
	}
	return dir
}

// viewFiles are the files of the system's that have to fit the plugin's account
// and network.
func (c *ViewConfig) viewFiles() ([]launcher.File, error) {
	host, err := os.Hostname()
	if err != nil {
		return nil, fmt.Errorf("make view: %w", err)
	}
	hosts := "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n"
	if host != "localhost" && host != "" {
		// Both families, or the look-up of the other asks the resolver (nss-myhostname(8) answers both).
		hosts += "127.0.1.1\t" + host + "\n::1\t" + host + "\n"
	}
	files := []launcher.File{
		// Any server's port 53 is the sidecar's resolver. With ndots:1 a name with a
		// dot is asked for as it is, and not first with every suffix of a search list.
		{Path: "/etc/resolv.conf", Content: []byte("nameserver 127.0.0.1\noptions ndots:1\n")},
		{Path: "/etc/hosts", Content: []byte(hosts)},
	}
	id, gid := strconv.Itoa(c.Account.UID), strconv.Itoa(c.User.GID)
	user := []string{c.Account.Name, "x", id, gid, "plugin of Chaperone", c.Account.Home, c.Account.Shell}
	group := []string{c.Account.Name, "x", gid, ""}
	for _, database := range []struct {
		path  string
		entry []string
	}{{"/etc/passwd", user}, {"/etc/group", group}} {
		content, changed, err := withEntry(database.path, database.entry)
		if err != nil {
			return nil, err
		}
		if changed {
			files = append(files, launcher.File{Path: database.path, Content: content})
		}
	}
	return files, nil
}

// withEntry returns a user or group file with an entry for an id that it lacks.
// An entry that is there gets the home that exists. An entry of the same name
// for another id goes: in the view the name is the plugin's.
func withEntry(path string, entry []string) (content []byte, changed bool, err error) {
	entries, err := databaseFields(path)
	if err != nil {
		return nil, false, err
	}
	const name, id, home = 0, 2, 5
	found := false
	kept := entries[:0]
	for _, fields := range entries {
		switch {
		case fields[id] == entry[id] && !found:
			found = true
			if len(entry) > home && len(fields) > home && fields[home] != entry[home] {
				fields[home], changed = entry[home], true
			}
		case fields[name] == entry[name] && fields[id] != entry[id]:
			changed = true
			continue
		}
		kept = append(kept, fields)
	}
	if !found {
		kept, changed = append(kept, entry), true
	}
	var out bytes.Buffer
	for _, fields := range kept {
		fmt.Fprintln(&out, strings.Join(fields, ":"))
	}
	return out.Bytes(), changed, nil
}
