package sandbox

import (
	"cmp"
	"errors"
	"fmt"
	"hash/fnv"
	"io/fs"
	"os"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/chaperone-proxy/chaperone/ebpf/sandbox/launcher"
	"github.com/chaperone-proxy/chaperone/internal/atomicfile"
	"github.com/chaperone-proxy/chaperone/internal/unixsock"
)

// The range from which dynamic users are taken: the one that systemd uses for
// its DynamicUser= (systemd.io/UIDS-GIDS), which distributions keep free.
const (
	firstDynamic = 61184
	lastDynamic  = 65519
)

// uidRegistry remembers, across restarts of the host, which state directory a
// dynamic user belongs to: a file for each uid, with the directory's path. Where
// it cannot be written, state directories in one folder still find each other.
const uidRegistry = "/var/lib/chaperone/uids"

// uidFile is the file of a state directory that holds its dynamic user. Files
// that the plugin made stay its own from one run to the next, and no other
// plugin's, for as long as it is there.
const uidFile = "uid"

// User is the user that a plugin runs as.
type User struct {
	UID, GID int
	groups   []int              // supplementary groups, never root's
	name     string             // of the user database; empty: it is not there
	home     string             // of the user database; empty: it is not there
	shell    string             // of the user database; empty: it is not there
	Same     bool               // root or the sidecar's own
	lock     *unixsock.FileLock // keeps a dynamic user from being taken twice; nil otherwise
}

// ChooseUser finds the user that the configuration asks for. The state
// directory holds what is remembered of a dynamic user.
func (p Paths) ChooseUser(name string, unsafe bool) (User, error) {
	a, err := p.findUser(name)
	if err != nil {
		return User{}, err
	}
	a.Same = a.UID == 0 || a.GID == 0 || a.UID == os.Getuid() || a.UID == os.Geteuid()
	if a.Same && !unsafe {
		return User{}, errors.Join(
			fmt.Errorf("run the plugin as uid %d, gid %d: that is root's or the sidecar's own, and could remove its own confinement; name another user, or set unsafeSameUser", a.UID, a.GID),
			a.Release())
	}
	return a, nil
}

// Release lets others have a dynamic user.
func (a *User) Release() error {
	return a.lock.Release()
}

func (p Paths) findUser(name string) (User, error) {
	if name == "" || name == DynamicUser {
		if a, ok := sudoUser(); ok {
			return a, nil
		}
		return p.dynamicUser()
	}
	if n, err := strconv.Atoi(name); err == nil {
		// The largest two are "no change" to the kernel in some calls.
		if n < 0 || n > 1<<31-2 {
			return User{}, fmt.Errorf("find user: %d is not a user id", n)
		}
		if u, err := user.LookupId(name); err == nil {
			return userFromDatabase(u)
		}
		return User{UID: n, GID: n}, nil
	}
	u, err := user.Lookup(name)
	if err != nil {
		return User{}, fmt.Errorf("find user: %w", err)
	}
	return userFromDatabase(u)
}

// userFromDatabase is a user of the system's, with the groups that a login would
// give it (initgroups(3)), except root's.
func userFromDatabase(u *user.User) (User, error) {
	a := User{name: u.Username, home: u.HomeDir, shell: loginShell(u.Uid)}
	var err error
	if a.UID, err = strconv.Atoi(u.Uid); err != nil {
		return User{}, fmt.Errorf("find user %s: %w", u.Username, err)
	}
	if a.GID, err = strconv.Atoi(u.Gid); err != nil {
		return User{}, fmt.Errorf("find user %s: %w", u.Username, err)
	}
	groups, err := u.GroupIds()
	if err != nil {
		return User{}, fmt.Errorf("find groups of user %s: %w", u.Username, err)
	}
	for _, group := range groups {
		if gid, err := strconv.Atoi(group); err == nil && gid != 0 && gid != a.GID {
			a.groups = append(a.groups, gid)
		}
	}
	return a, nil
}

// sudoUser is the user that called sudo, if that is how we became root.
func sudoUser() (User, bool) {
	if os.Geteuid() != 0 {
		return User{}, false
	}
	uid, err := strconv.Atoi(os.Getenv("SUDO_UID"))
	if err != nil || uid <= 0 {
		return User{}, false
	}
	gid, err := strconv.Atoi(os.Getenv("SUDO_GID"))
	if err != nil || gid <= 0 {
		return User{}, false
	}
	if u, err := user.LookupId(strconv.Itoa(uid)); err == nil {
		if a, err := userFromDatabase(u); err == nil {
			a.GID = gid
			return a, true
		}
	}
	return User{UID: uid, GID: gid}, true
}

// dynamicUser returns the user that the state directory remembers, or picks
// one that nobody has and has it remembered. The search starts at a number made
// from the confinement's name, so that a directory that cannot remember usually gets
// the same one again.
func (p Paths) dynamicUser() (User, error) {
	if uid, ok := rememberedUID(p.State); ok {
		lock, err := p.Take("users/"+strconv.Itoa(uid), false)
		if err == nil {
			return User{UID: uid, GID: uid, lock: lock}, nil
		}
		if !errors.Is(err, unixsock.ErrLocked) {
			return User{}, fmt.Errorf("reserve user: %w", err)
		}
		// The state directory is a copy of another one, whose plugin runs.
	}
	used, err := usedIDs()
	if err != nil {
		return User{}, err
	}
	for _, uid := range append(siblingUIDs(p.State), registeredUIDs()...) {
		used[uid] = true
	}
	const size = lastDynamic - firstDynamic + 1
	sum := fnv.New32a()
	_, _ = sum.Write([]byte(p.ID)) // never fails
	start := int(sum.Sum32() % size)
	for step := range size {
		uid := firstDynamic + (start+step)%size
		if used[uid] {
			continue
		}
		lock, err := p.Take("users/"+strconv.Itoa(uid), false)
		if errors.Is(err, unixsock.ErrLocked) {
			continue
		}
		if err != nil {
			return User{}, fmt.Errorf("reserve user: %w", err)
		}
		return User{UID: uid, GID: uid, lock: lock}, rememberUID(p.State, uid)
	}
	return User{}, fmt.Errorf("pick a user: all of %d to %d are in use", firstDynamic, lastDynamic)
}

// rememberedUID reads the dynamic user of a state directory. A number that a
// person or a system user got since then is not its own any more.
func rememberedUID(stateDir string) (int, bool) {
	if stateDir == "" {
		return 0, false
	}
	uid, ok := readUID(filepath.Join(stateDir, uidFile))
	if !ok {
		return 0, false
	}
	_, taken := user.LookupId(strconv.Itoa(uid))
	return uid, taken != nil
}

func readUID(file string) (int, bool) {
	text, err := os.ReadFile(file) //nolint:gosec // a number is read from a file of ours, or none
	if err != nil {
		return 0, false
	}
	uid, err := strconv.Atoi(strings.TrimSpace(string(text)))
	return uid, err == nil && uid >= firstDynamic && uid <= lastDynamic
}

// rememberUID writes the dynamic user of a state directory down, so that a crash
// leaves the whole number or none.
func rememberUID(stateDir string, uid int) error {
	if stateDir == "" {
		return nil
	}
	err := atomicfile.Write(filepath.Join(stateDir, uidFile), fmt.Appendln(nil, uid), 0o600)
	if errors.Is(err, fs.ErrNotExist) {
		return nil // a state directory that was never made remembers nothing
	}
	if err != nil {
		return fmt.Errorf("remember user: %w", err)
	}
	registerUID(stateDir, uid)
	return nil
}

// registerUID enters a dynamic user in the registry, where that is possible.
func registerUID(stateDir string, uid int) {
	if os.MkdirAll(uidRegistry, privateAccess) != nil {
		return
	}
	_ = atomicfile.Write(filepath.Join(uidRegistry, strconv.Itoa(uid)), []byte(stateDir), 0o600) // see uidRegistry
}

// registeredUIDs are the dynamic users in the registry whose state directories
// still exist and still have them. The entries of others are removed.
func registeredUIDs() []int {
	entries, err := os.ReadDir(uidRegistry)
	if err != nil {
		return nil
	}
	var uids []int
	for _, entry := range entries {
		file := filepath.Join(uidRegistry, entry.Name())
		uid, err := strconv.Atoi(entry.Name())
		stateDir, unreadable := os.ReadFile(file)
		if err != nil || unreadable != nil {
			continue
		}
		if has, ok := readUID(filepath.Join(string(stateDir), uidFile)); ok && has == uid {
			uids = append(uids, uid)
			continue
		}
		_ = os.Remove(file) // it frees the number, and nothing depends on when
	}
	return uids
}

// siblingUIDs are the dynamic users of the state directories beside one: the
// plugins of a host usually keep theirs in one folder, and a plugin that does
// not run has to keep its number, too.
func siblingUIDs(stateDir string) []int {
	if stateDir == "" {
		return nil
	}
	files, err := filepath.Glob(filepath.Join(globLiteral(filepath.Dir(stateDir)), "*", uidFile))
	if err != nil {
		return nil // never: the pattern is well formed
	}
	var uids []int
	for _, file := range files {
		if uid, ok := readUID(file); ok {
			uids = append(uids, uid)
		}
	}
	return uids
}

// globLiteral escapes what filepath.Match reads as a pattern.
func globLiteral(path string) string {
	return strings.NewReplacer(`\`, `\\`, `*`, `\*`, `?`, `\?`, `[`, `\[`).Replace(path)
}

// databaseFields returns the entries of /etc/passwd or /etc/group.
func databaseFields(file string) ([][]string, error) {
	text, err := os.ReadFile(file)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("read %s: %w", file, err)
	}
	var entries [][]string
	for line := range strings.Lines(string(text)) {
		if fields := strings.Split(strings.TrimRight(line, "\n"), ":"); len(fields) > 2 {
			entries = append(entries, fields)
		}
	}
	return entries, nil
}

// loginShell is a user's shell, by its uid. Package user does not return it.
func loginShell(uid string) string {
	entries, err := databaseFields("/etc/passwd")
	if err != nil {
		return ""
	}
	i := slices.IndexFunc(entries, func(fields []string) bool { return len(fields) == 7 && fields[2] == uid })
	if i < 0 {
		return ""
	}
	return cmp.Or(entries[i][6], "/bin/sh")
}

// usedIDs are the ids in the user and group files, and those that processes
// run under.
func usedIDs() (map[int]bool, error) {
	used := make(map[int]bool)
	for _, file := range []string{"/etc/passwd", "/etc/group"} {
		entries, err := databaseFields(file)
		if err != nil {
			return nil, fmt.Errorf("list users: %w", err)
		}
		for _, fields := range entries {
			if n, err := strconv.Atoi(strings.TrimSpace(fields[2])); err == nil {
				used[n] = true
			}
		}
	}
	files, err := filepath.Glob("/proc/[0-9]*/status")
	if err != nil {
		return nil, fmt.Errorf("list processes: %w", err)
	}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			continue // it ended
		}
		for line := range strings.Lines(string(text)) {
			name, value, _ := strings.Cut(line, ":")
			if name != "Uid" && name != "Gid" {
				continue
			}
			for field := range strings.FieldsSeq(value) {
				if n, err := strconv.Atoi(field); err == nil {
					used[n] = true
				}
			}
		}
	}
	return used, nil
}

// noHome is the home of a user that has none.
const noHome = "/"

// Account fills in what the user database lacks, for the environment of a
// plugin. In a view every user has a home and a runtime directory.
func (a *User) Account(plugin string, view bool) Account {
	out := Account{UID: a.UID, GID: a.GID, Groups: a.groups, Name: cmp.Or(a.name, loginName(plugin)), Home: noHome, Shell: cmp.Or(a.shell, "/bin/sh"), SameUser: a.Same}
	if info, err := os.Stat(a.home); a.home != "" && err == nil && info.IsDir() {
		out.Home = a.home
	}
	if view {
		out.RuntimeDir = filepath.Join(launcher.RuntimeRoot, strconv.Itoa(out.UID))
	}
	if view && out.Home == noHome {
		out.Home = filepath.Join(launcher.HomeRoot, out.Name)
	}
	return out
}

// loginName makes a login name of a plugin's name, within the limits of
// useradd(8): lower-case letters, digits, - and _, at most 32, a letter first.
func loginName(plugin string) string {
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
