package ebpf

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// shell runs a shell script in a cage with a view.
func (r *rig) shell(script string, change ...func(*Command)) result {
	r.t.Helper()
	account := r.Account()
	command := Command{Args: []string{"sh", "-c", script}, Env: append(pluginEnv(), "HOME="+account.Home, "USER="+account.Name)}
	for _, f := range change {
		f(&command)
	}
	return r.command(command)
}

func withView(c *Config) { c.View = true }

func TestView(t *testing.T) {
	r := newRig(t, withView)
	marker := filepath.Join(t.TempDir(), "marker") // below the host's /tmp
	if err := os.WriteFile(marker, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	id := r.Info().UID
	for _, test := range []struct{ name, script, want string }{
		{"process table", "ls -d /proc/[0-9]* | wc -l", "4"}, // init, sh, ls, wc
		{"first process is ours", "tr '\\0' ' ' </proc/1/cmdline", "chaperone-init"},
		{"temporary directory is its own", "ls " + marker + " 2>/dev/null || echo hidden", "hidden"},
		{"temporary directory is writable", "echo x >/tmp/x && cat /tmp/x", "x"},
		{"shared memory is its own", "ls /dev/shm | wc -l; echo x >/dev/shm/x && echo ok", "0\nok"},
		{"home", "cd && echo x >f && pwd", r.Account().Home},
		{"user name", "whoami", "test"},
		{"group name", "id -gn", "test"},
		{"runtime directory", "ls -ld /run/user/* | cut -c1-10", "drwx------"},
		{"nothing else in /run", "ls -A /run | tr '\\n' ' '", ".own home lock user"},
		{"terminals", "ls /dev/pts", "ptmx"},
		{"resolver", "cat /etc/resolv.conf", "nameserver 127.0.0.1\noptions ndots:1"},
		{"orphans are collected", "for i in 1 2 3; do (sh -c 'sleep 0.1 & exit 0'); done; sleep 0.5; grep -l 'State:.Z' /proc/[0-9]*/status | wc -l", "0"},
		{"status", "exit 37", ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			got := r.shell(test.script)
			if text := strings.TrimSpace(got.stdout); text != test.want {
				t.Errorf("got %q, want %q\n%s", text, test.want, got.stderr)
			}
			if test.name == "status" && got.status != 37 {
				t.Errorf("status %d, want 37", got.status)
			}
		})
	}
	if again := r.Info().UID; again != id {
		t.Errorf("uid %d became %d", id, again)
	}
}
