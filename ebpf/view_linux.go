package ebpf

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/chaperone-proxy/chaperone/ebpf/sandbox"
)

// Directories of a state directory that hold what a plugin keeps from one run to
// the next. Only root can enter the state directory; the plugin reaches them in
// its view.
const (
	homeDir = "plugin/home"
	tempDir = "plugin/var-tmp"
)

// hasView reports whether the plugin gets a view of its own.
func (c *Cage) hasView() bool { return c.config.View && c.group.own }

// Account describes the user of the plugin, for its environment.
func (c *Cage) Account() Account {
	out := c.account.describe(c.config.Plugin)
	if !c.hasView() {
		return out
	}
	out.RuntimeDir = filepath.Join(sandbox.RuntimeRoot, strconv.Itoa(out.UID))
	if out.Home == noHome {
		out.Home = filepath.Join(sandbox.HomeRoot, out.Name)
	}
	return out
}

// Account describes the user of the plugin, for its environment.
func (f *Fence) Account() Account { return f.account.describe(f.config.Plugin) }

// noHome is the home of a user that has none.
const noHome = "/"

// describe fills in what the user database lacks.
func (a *account) describe(plugin string) Account {
	out := Account{UID: a.uid, GID: a.gid, Name: cmp.Or(a.name, accountName(plugin)), Home: noHome, Shell: cmp.Or(a.shell, "/bin/sh"), SameUser: a.same}
	if info, err := os.Stat(a.home); a.home != "" && err == nil && info.IsDir() {
		out.Home = a.home
	}
	return out
}

// accountName makes a login name of a plugin's name, within the limits of
// useradd(8): lower-case letters, digits, - and _, at most 32, a letter first.
func accountName(plugin string) string {
	clean := func(r rune) rune {
		switch {
		case r >= 'a' && r <= 'z', r >= '0' && r <= '9', r == '-', r == '_':
			return r
		}
		return '-'
	}
	name := strings.Map(clean, strings.ToLower(plugin))
	if name == "" || name[0] < 'a' || name[0] > 'z' {
		name = "plugin-" + name
	}
	return strings.TrimRight(name[:min(len(name), 32)], "-")
}

// view composes what the plugin is to see.
func (c *Cage) view(command Command) (*sandbox.View, error) {
	dir := command.Dir
	if dir == "" {
		var err error
		if dir, err = os.Getwd(); err != nil {
			return nil, fmt.Errorf("find working directory: %w", err)
		}
	}
	account := c.Account()
	v := &sandbox.View{
		UID: c.account.uid, GID: c.account.gid, Directory: dir,
		Trust: sandbox.Trust{Bundle: command.TrustBundle},
		Kept:  c.kept(command, dir),
	}
	var err error
	if v.Trees, err = c.trees(account); err != nil {
		return nil, err
	}
	if err := c.shareTrees(v); err != nil {
		return nil, err
	}
	v.Files, err = c.viewFiles(account)
	return v, err
}

// trees are the directories that the plugin shares with nobody, each with its
// twin. Temporary files end with the plugin, but for those in /var/tmp, which
// outlive a restart (hier(7)), as the home of a dynamic user does.
func (c *Cage) trees(account Account) ([]sandbox.Tree, error) {
	trees := []sandbox.Tree{
		{Path: "/run", Mode: 0o755},
		{Path: "/tmp", Mode: 0o1777},
		{Path: "/dev/shm", Mode: 0o1777},
	}
	if info, err := os.Lstat("/var/run"); err == nil && info.IsDir() { // not a link to /run
		trees = append(trees, sandbox.Tree{Path: "/var/run", Mode: 0o755})
	}
	temp, err := c.ownDirectory(tempDir)
	if err != nil {
		return nil, err
	}
	trees = append(trees, sandbox.Tree{Path: "/var/tmp", Source: temp})
	if strings.HasPrefix(account.Home, sandbox.HomeRoot+"/") {
		home, err := c.ownDirectory(homeDir)
		if err != nil {
			return nil, err
		}
		trees = append(trees, sandbox.Tree{Path: account.Home, Source: home})
	}
	if c.wall.unix != nil {
		for i := range trees {
			trees[i].Twin = filepath.Join(sandbox.Own, strconv.Itoa(i))
		}
	}
	return trees, nil
}

// ownDirectory makes a directory of the plugin's in the state directory.
func (c *Cage) ownDirectory(name string) (string, error) {
	path := filepath.Join(c.config.StateDir, name)
	if err := os.MkdirAll(filepath.Dir(path), privateAccess); err != nil {
		return "", fmt.Errorf("make directory of the plugin: %w", err)
	}
	if err := os.Mkdir(path, privateAccess); err != nil && !errors.Is(err, os.ErrExist) {
		return "", fmt.Errorf("make directory of the plugin: %w", err)
	}
	if err := os.Lchown(path, c.account.uid, c.account.gid); err != nil {
		return "", fmt.Errorf("give the plugin its directory: %w", err)
	}
	absolute, err := filepath.Abs(path)
	if err != nil {
		return "", fmt.Errorf("make directory of the plugin: %w", err)
	}
	return absolute, nil
}

// kept is what stays visible of directories that the view covers: what the
// command names, the granted sockets, and the certificates. Where files are
// limited, it is what the limits name.
func (c *Cage) kept(command Command, dir string) []sandbox.Kept {
	var out []sandbox.Kept
	follow := func(path string, readOnly bool) {
		if target, err := filepath.EvalSymlinks(path); err == nil && target != path {
			out = append(out, sandbox.Kept{Path: target, ReadOnly: readOnly})
		}
	}
	add := func(path string, readOnly bool) {
		if crossesLinkOf(c.account.uid, path) {
			return // an earlier run may have left the link, to choose what this one sees
		}
		out = append(out, sandbox.Kept{Path: path, ReadOnly: readOnly})
		follow(path, readOnly)
	}
	if command.TrustBundle != "" {
		add(filepath.Dir(command.TrustBundle), true)
	}
	for _, socket := range c.grantedSockets() {
		add(socket, false)
	}
	if command.Files == nil {
		out = append(out, sandbox.Kept{Path: dir}) // the caller stands there, by whatever links
		follow(dir, false)
		for _, path := range command.Kept {
			add(path, false)
		}
		return out
	}
	for _, path := range command.Files.Write {
		add(path, false)
	}
	for _, path := range command.Files.Read {
		add(path, true)
	}
	for _, path := range candidates(command.Path, command.Env) {
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
			return false // it leads to no file
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

// grantedSockets are the paths to show for the sockets that grants name.
func (c *Cage) grantedSockets() []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	var out []string
	for _, path := range c.sockets.wanted {
		if filepath.IsAbs(path) { // not an abstract name
			out = append(out, shownFor(path))
		}
	}
	return out
}

// shownFor is what a view shows for a granted socket: its folder, since a
// service that is restarted binds another file under the name, unless the folder
// holds more than sockets of one service.
func shownFor(socket string) string {
	dir := filepath.Dir(socket)
	if slices.Contains([]string{"/", "/run", "/var/run", "/tmp", "/var/tmp", "/dev"}, dir) {
		return socket
	}
	return dir
}

// runningView is the view of the program that runs.
type runningView struct {
	*sandbox.View
	namespace *os.File        // its mount namespace
	shown     map[string]bool // granted sockets that it shows, by path
}

// observeView notes the view of a program that was started. What its grants name
// was kept, as far as it existed.
func (c *Cage) observeView(v *sandbox.View, first int) error {
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
func (c *Cage) forgetView() error {
	if c.running == nil {
		return nil
	}
	err := c.running.namespace.Close()
	c.running = nil
	return err
}

// showSocket makes a granted socket visible in the view of the program that
// runs. The caller holds c.mu.
func (c *Cage) showSocket(socket string) error {
	if c.running == nil || !filepath.IsAbs(socket) {
		return nil
	}
	path := shownFor(socket)
	if c.running.shown[path] {
		return nil
	}
	err := onThread(func() (bool, error) { return false, c.running.Show(c.running.namespace, path) })
	if err != nil {
		return fmt.Errorf("show it in the plugin's view: %w", err)
	}
	c.running.shown[path] = true
	return nil
}

// viewFiles are the files of the system's that have to fit the plugin's account
// and network.
func (c *Cage) viewFiles(account Account) ([]sandbox.File, error) {
	host, err := os.Hostname()
	if err != nil {
		return nil, fmt.Errorf("make view: %w", err)
	}
	hosts := "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n"
	if host != "localhost" && host != "" {
		// Both families, or the look-up of the other asks the resolver (nss-myhostname(8) answers both).
		hosts += "127.0.1.1\t" + host + "\n::1\t" + host + "\n"
	}
	files := []sandbox.File{
		// Any server's port 53 is the sidecar's resolver. With ndots:1 a name with a
		// dot is asked for as it is, and not first with every suffix of a search list.
		{Path: "/etc/resolv.conf", Content: []byte("nameserver 127.0.0.1\noptions ndots:1\n")},
		{Path: "/etc/hosts", Content: []byte(hosts)},
	}
	id, gid := strconv.Itoa(account.UID), strconv.Itoa(c.account.gid)
	user := []string{account.Name, "x", id, gid, "plugin of Chaperone", account.Home, account.Shell}
	group := []string{account.Name, "x", gid, ""}
	for _, database := range []struct {
		path  string
		entry []string
	}{{"/etc/passwd", user}, {"/etc/group", group}} {
		content, changed, err := withEntry(database.path, database.entry)
		if err != nil {
			return nil, err
		}
		if changed {
			files = append(files, sandbox.File{Path: database.path, Content: content})
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

// keepOverride is the capability that lets the plugin's user execute the
// sidecar's own file, whatever its mode: the first process of the view is that
// file, and has no capability from then on.
const keepOverride = 1 << unix.CAP_DAC_OVERRIDE
