package ebpf

import (
	"errors"
	"fmt"
	"hash/fnv"
	"io/fs"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// The range from which dynamic users are taken: the one that systemd uses for
// its DynamicUser= (systemd.io/UIDS-GIDS), which distributions keep free.
const (
	firstDynamic = 61184
	lastDynamic  = 65519
)

// account is the user that a plugin runs as.
type account struct {
	uid, gid int
	same     bool  // root or the sidecar's own
	lock     *lock // keeps a dynamic user from being taken twice; nil otherwise
}

// chooseAccount finds the user that the configuration asks for.
func (p places) chooseAccount(name string, unsafe bool) (account, error) {
	a, err := p.findAccount(name)
	if err != nil {
		return account{}, err
	}
	a.same = a.uid == 0 || a.gid == 0 || a.uid == os.Getuid() || a.uid == os.Geteuid()
	if a.same && !unsafe {
		return account{}, errors.Join(
			fmt.Errorf("run the plugin as uid %d, gid %d: that is root's or the sidecar's own, and could remove the walls; name another user, or set unsafeSameUser", a.uid, a.gid),
			a.close())
	}
	return a, nil
}

// close lets others have a dynamic user.
func (a *account) close() error {
	return a.lock.release()
}

func (p places) findAccount(name string) (account, error) {
	if name == "" || name == DynamicUser {
		if a, ok := sudoAccount(); ok {
			return a, nil
		}
		return p.dynamicAccount()
	}
	if n, err := strconv.Atoi(name); err == nil {
		// The largest two are "no change" to the kernel in some calls.
		if n < 0 || n > 1<<31-2 {
			return account{}, fmt.Errorf("find user: %d is not a user id", n)
		}
		a := account{uid: n, gid: n}
		if u, err := user.LookupId(name); err == nil {
			if gid, err := strconv.Atoi(u.Gid); err == nil {
				a.gid = gid
			}
		}
		return a, nil
	}
	u, err := user.Lookup(name)
	if err != nil {
		return account{}, fmt.Errorf("find user: %w", err)
	}
	uid, err := strconv.Atoi(u.Uid)
	if err != nil {
		return account{}, fmt.Errorf("find user %s: %w", name, err)
	}
	gid, err := strconv.Atoi(u.Gid)
	if err != nil {
		return account{}, fmt.Errorf("find user %s: %w", name, err)
	}
	return account{uid: uid, gid: gid}, nil
}

// sudoAccount is the user that called sudo, if that is how we became root.
func sudoAccount() (account, bool) {
	if os.Geteuid() != 0 {
		return account{}, false
	}
	uid, err := strconv.Atoi(os.Getenv("SUDO_UID"))
	if err != nil || uid <= 0 {
		return account{}, false
	}
	gid, err := strconv.Atoi(os.Getenv("SUDO_GID"))
	if err != nil || gid <= 0 {
		return account{}, false
	}
	return account{uid: uid, gid: gid}, true
}

// dynamicAccount picks a user that nobody has. The search starts at a number
// made from the cage's name, so that a plugin usually gets the same one again.
func (p places) dynamicAccount() (account, error) {
	used, err := usedIDs()
	if err != nil {
		return account{}, err
	}
	const size = lastDynamic - firstDynamic + 1
	sum := fnv.New32a()
	_, _ = sum.Write([]byte(p.id)) // never fails
	start := int(sum.Sum32() % size)
	for step := range size {
		uid := firstDynamic + (start+step)%size
		if used[uid] {
			continue
		}
		lock, err := p.take("users/"+strconv.Itoa(uid), false)
		if errors.Is(err, unix.EWOULDBLOCK) {
			continue
		}
		if err != nil {
			return account{}, fmt.Errorf("reserve user: %w", err)
		}
		return account{uid: uid, gid: uid, lock: lock}, nil
	}
	return account{}, fmt.Errorf("pick a user: all of %d to %d are in use", firstDynamic, lastDynamic)
}

// usedIDs are the ids in the user and group files, and those that processes
// run under.
func usedIDs() (map[int]bool, error) {
	used := make(map[int]bool)
	for _, file := range []string{"/etc/passwd", "/etc/group"} {
		text, err := os.ReadFile(file)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, fmt.Errorf("list users: %w", err)
		}
		for line := range strings.Lines(string(text)) {
			if fields := strings.Split(line, ":"); len(fields) > 2 {
				if n, err := strconv.Atoi(strings.TrimSpace(fields[2])); err == nil {
					used[n] = true
				}
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
