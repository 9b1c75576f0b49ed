package main

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/chaperone-proxy/chaperone/internal/testenv"
	"github.com/chaperone-proxy/chaperone/internal/testenv/scenario"
)

// machine is a systemd that was booted in a container: with the programs of this
// system, a network that is empty but for its loopback, and nothing else of it.
type machine struct {
	t    *testing.T
	root string // its file tree; /run and /tmp are only seen from inside
	bpf  string // its /sys/fs/bpf, as a path of the host
	init int    // its first process, as this side numbers it
	log  scenario.Buffer
}

// unitTimeout bounds a wait for the machine. A boot takes some three seconds.
const unitTimeout = 3 * time.Minute

// bootMachine boots a systemd with the shipped unit, and the shipped binary.
func bootMachine(t *testing.T, files map[string]string) *machine {
	t.Helper()
	testenv.Require(t, testenv.Superuser(), testenv.CgroupV2(), testenv.BTF(),
		testenv.Program("systemd-nspawn"), testenv.Program("nsenter"), testenv.Program("python3"))
	m := &machine{t: t, root: containerRoot(t), bpf: t.TempDir()}
	testenv.Must(t, unix.Mount("bpf", m.bpf, "bpf", 0, "mode=0700"))
	t.Cleanup(func() { testenv.Must(t, unix.Unmount(m.bpf, unix.MNT_DETACH)) })
	unit := testenv.MustGet(os.ReadFile("../../configs/systemd/chaperone@.service"))(t)
	m.write("/etc/systemd/system/chaperone@.service", string(unit))
	m.write("/etc/systemd/system/default.target", "[Unit]\nRequires=basic.target\nAfter=basic.target\n")
	m.write("/etc/machine-id", "5d2ee1b0c6a54cbb9a2f1d1d5a0e4a3c\n") // without one, a first boot enables every unit there is
	m.write("/etc/os-release", "ID=test\n")
	m.write("/etc/passwd", "root:x:0:0::/root:/bin/sh\nmessagebus:x:100:100::/:/usr/sbin/nologin\nnobody:x:65534:65534::/:/usr/sbin/nologin\n")
	m.write("/etc/group", "root:x:0:\nmessagebus:x:100:\nsystemd-journal:x:101:\nnogroup:x:65534:\n")
	for name, content := range files {
		m.write(name, content)
	}
	m.boot()
	return m
}

// containerRoot makes the file tree of a container that has this system's /usr.
func containerRoot(t *testing.T) string {
	t.Helper()
	root := t.TempDir()
	for _, dir := range []string{"etc/systemd/system", "etc/alternatives", "usr", "var/lib", "run", "tmp", "proc", "sys", "dev", "root"} {
		testenv.Must(t, os.MkdirAll(filepath.Join(root, dir), 0o755))
	}
	for _, name := range []string{"bin", "sbin", "lib", "lib64"} {
		if target, err := os.Readlink("/" + name); err == nil {
			testenv.Must(t, os.Symlink(target, filepath.Join(root, name)))
		}
	}
	testenv.Must(t, os.Chmod(root, 0o755))
	return root
}

// nspawnArguments are those of a container that may do what root of the host may,
// in a network that is empty but for its loopback.
func nspawnArguments(root string) []string {
	return []string{
		"--quiet", "--directory=" + root, "--register=no", "--keep-unit", "--private-network", "--capability=all",
		"--system-call-filter=bpf perf_event_open open_by_handle_at", "--bind-ro=/usr", "--bind-ro=/etc/alternatives",
	}
}

// boot starts systemd and waits until it answers.
func (m *machine) boot() {
	m.t.Helper()
	group := testenv.MustCgroup(m.t) // systemd-nspawn makes others below its own
	cmd := exec.Command("systemd-nspawn", append(nspawnArguments(m.root), "--console=read-only", "--bind="+m.bpf+":/sys/fs/bpf",
		"--overlay-ro=/usr/bin:"+filepath.Dir(shipped(m.t))+":/usr/bin", "--boot")...)
	cmd.Env = append(os.Environ(), "SYSTEMD_NSPAWN_UNIFIED_HIERARCHY=1")
	cmd.SysProcAttr = group.SysProcAttr()
	cmd.Stdout, cmd.Stderr = &m.log, &m.log
	testenv.Must(m.t, cmd.Start())
	ended := make(chan struct{})
	go func() { _ = cmd.Wait(); close(ended) }() // it is ended below
	m.t.Cleanup(func() {
		_ = cmd.Process.Signal(syscall.SIGTERM) // asks systemd to power off
		select {
		case <-ended:
		case <-time.After(2 * time.Minute):
			m.t.Errorf("the machine does not power off:\n%s", m.log.String())
			_ = cmd.Process.Kill() // the cgroup's end is that of the rest
			<-ended
		}
	})
	m.until(unitTimeout, "systemd answers", func() bool {
		m.init = child(cmd.Process.Pid, "systemd")
		if m.init == 0 {
			return false
		}
		_, err := m.try("systemctl is-active default.target")
		return err == nil
	})
}

// child returns the child process of that name, 0 for none.
func child(pid int, name string) int {
	text, _ := os.ReadFile(fmt.Sprintf("/proc/%d/task/%[1]d/children", pid)) // it may have ended
	for field := range strings.FieldsSeq(string(text)) {
		n, err := strconv.Atoi(field)
		comm, _ := os.ReadFile("/proc/" + field + "/comm")
		if err == nil && strings.TrimSpace(string(comm)) == name {
			return n
		}
	}
	return 0
}

func (m *machine) write(name, content string) {
	m.t.Helper()
	path := filepath.Join(m.root, name)
	testenv.Must(m.t, errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(content), 0o644)))
}

// try runs a shell script inside, and returns what it printed.
func (m *machine) try(script string) (string, error) {
	cmd := exec.Command("timeout", "180", "nsenter", "--target", strconv.Itoa(m.init), "--mount", "--uts", "--ipc", "--net", "--pid", "--root", "--wd", "sh", "-c", script)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	err := cmd.Run()
	return strings.TrimSpace(out.String()), err
}

// sh is try of what may not fail.
func (m *machine) sh(script string) string {
	m.t.Helper()
	out, err := m.try(script)
	if err != nil {
		m.t.Fatalf("%s: %v: %s\n%s", script, err, out, m.journal())
	}
	return out
}

func (m *machine) journal() string {
	out, _ := m.try("journalctl --no-pager --output=short-monotonic --boot | tail -60") // for a message
	return out
}

func (m *machine) until(bound time.Duration, what string, is func() bool) {
	m.t.Helper()
	for deadline := time.Now().Add(bound); !is(); time.Sleep(100 * time.Millisecond) {
		if time.Now().After(deadline) {
			journal := ""
			if m.init != 0 {
				journal = m.journal()
			}
			m.t.Fatalf("not within %s: %s\n%s\n%s", bound, what, m.log.String(), journal)
		}
	}
}

// unit returns a property of the plugin's unit.
func (m *machine) unit(property string) string {
	return m.sh("systemctl show --value --property=" + property + " chaperone@weather")
}

// files below the places that a sidecar uses, by the way of find(1).
func (m *machine) left() string {
	return m.sh(`find /run/chaperone /tmp /var/tmp -mindepth 1 ! -type d ! -path '*systemd-private*' 2>/dev/null
find /tmp -mindepth 1 -maxdepth 1 -name 'chaperone*'
find /sys/fs/cgroup -name 'chaperone-*' -type d
grep -o ' /run/chaperone[^ ]*' /proc/self/mountinfo
grep -l '/chaperone-[0-9a-f]\{16\}' /proc/[0-9]*/cgroup 2>/dev/null; true`)
}

// pluginCalls is a plugin that calls an API of its machine, and prints what it was
// answered.
const pluginCalls = `import os, time, urllib.request
while True:
    try:
        answer = urllib.request.urlopen("http://api.weather.example:8080/v1/forecast", timeout=5).status
    except Exception as e:
        answer = getattr(e, "code", type(e).__name__)
    try:
        os.write(1, b"answer %s\n" % str(answer).encode())
    except OSError:
        pass  # nobody reads it while the journal is away
    time.sleep(0.2)
`

// TestUnit boots a systemd and runs the shipped unit through its life.
func TestUnit(t *testing.T) {
	m := bootMachine(t, map[string]string{
		"/opt/weather/plugin.py":                     pluginCalls,
		"/etc/systemd/system/api.service":            "[Service]\nDynamicUser=yes\nStandardOutput=null\nStandardError=null\nWorkingDirectory=/var/www\nExecStart=/usr/bin/python3 -u -m http.server --bind 127.0.0.1 8080\n",
		"/etc/systemd/system/detach.service":         "[Service]\nType=oneshot\nExecStart=/usr/bin/chaperone detach --config /etc/chaperone/weather/sidecar.yaml\n",
		"/var/www/v1/forecast":                       "rain\n",
		"/etc/chaperone/weather/command":             "PLUGIN_COMMAND=/usr/bin/python3 /opt/weather/plugin.py\n",
		"/etc/chaperone/weather/sidecar.yaml":        unitSidecar("weather"),
		"/etc/chaperone/weather/grants/weather.yaml": forecastGrant("GET"),
		"/etc/chaperone/other/command":               "PLUGIN_COMMAND=/bin/sleep infinity\n",
		"/etc/chaperone/other/sidecar.yaml":          unitSidecar("other"),
		"/etc/chaperone/other/grants/README":         "nothing is granted\n",
	})
	m.sh("systemctl start api.service chaperone@other")
	answers := func(want string) { // since it was started last
		t.Helper()
		m.until(unitTimeout, "the plugin is answered "+want, func() bool {
			out, err := m.try("journalctl --no-pager --output=cat _SYSTEMD_INVOCATION_ID=" + m.unit("InvocationID") + " --grep='^answer ' | tail -1")
			return err == nil && out == "answer "+want
		})
	}

	m.sh("systemctl start chaperone@weather")
	if got := m.unit("ActiveState"); got != "active" {
		t.Fatalf("the unit is %s\n%s", got, m.journal())
	}
	answers("200")
	if got := m.sh("stat -c '%U %a' /run/chaperone /var/lib/chaperone/weather"); got != "root 711\nroot 700" {
		t.Errorf("the directories are %q", got)
	}
	if warned, err := m.try("journalctl --no-pager --output=cat --unit=chaperone@weather | grep -e '\"level\":\"warn\"' -e '^chaperone:'"); err == nil {
		t.Errorf("it starts with warnings:\n%s", warned)
	}

	t.Log("reload")
	m.write("/etc/chaperone/weather/grants/weather.yaml", forecastGrant("POST"))
	m.sh("systemctl reload chaperone@weather")
	answers("403")
	m.write("/etc/chaperone/weather/grants/weather.yaml", forecastGrant("GET"))
	m.sh("systemctl reload chaperone@weather")
	answers("200")

	t.Log("kill -9 of the sidecar")
	before := m.unit("MainPID")
	m.sh("kill -9 " + before)
	m.until(unitTimeout, "systemd starts it again", func() bool {
		return m.unit("MainPID") != before && m.unit("ActiveState") == "active"
	})
	answers("200")

	t.Log("restart")
	m.sh("systemctl restart chaperone@weather")
	answers("200")

	t.Log("a journal that is restarted, then what it prints")
	before = m.unit("MainPID")
	m.sh("systemctl stop systemd-journald.service systemd-journald.socket systemd-journald-dev-log.socket && systemctl start systemd-journald.service")
	m.write("/etc/chaperone/weather/grants/weather.yaml", "not: a grant\n")
	if out, err := m.try("systemctl reload chaperone@weather"); err == nil {
		t.Errorf("a bad file is reloaded: %s", out)
	}
	m.write("/etc/chaperone/weather/grants/weather.yaml", forecastGrant("GET"))
	m.sh("systemctl reload chaperone@weather")
	if after := m.unit("MainPID"); after != before || m.unit("ActiveState") != "active" {
		t.Errorf("the sidecar did not survive: %s, before %s\n%s", after, before, m.journal())
	}
	m.sh("systemctl restart chaperone@weather") // its output reaches the journal again
	answers("200")

	t.Log("halt")
	m.sh("chaperone revoke --config /etc/chaperone/weather/sidecar.yaml --level halt --reason incident-4711")
	restore := ""
	m.until(unitTimeout, "the journal has the line that restores it", func() bool {
		restore, _ = m.try("journalctl --no-pager --output=cat --unit=chaperone@weather | grep -o 'chaperone restore .* --reason' | tail -1")
		return restore != "" && m.unit("SubState") == "auto-restart"
	})
	m.sh(restore + " cleared")
	m.until(unitTimeout, "it is started again", func() bool { return m.unit("ActiveState") == "active" })
	answers("200")

	t.Log("stop")
	begun := time.Now()
	m.sh("systemctl stop chaperone@weather")
	if took := time.Since(begun); took > time.Minute {
		t.Errorf("it took %s to stop", took)
	}
	if got := m.unit("ActiveState") + " " + m.unit("Result"); got != "inactive success" {
		t.Errorf("it is %s\n%s", got, m.journal())
	}
	if got := m.sh("systemctl is-active chaperone@other; chaperone status --config /etc/chaperone/other/sidecar.yaml >/dev/null && echo answers"); got != "active\nanswers" {
		t.Errorf("another plugin's unit is %q after the stop", got)
	}
	m.sh("systemctl stop chaperone@other")
	m.sh("systemctl start detach.service") // fails as the command does
	if left := m.left(); left != "" {
		t.Errorf("it leaves:\n%s", left)
	}
	noPins(t, filepath.Join(m.bpf, "chaperone"))
}

// noPins checks that a folder of pins holds only verified programs, which are left to the
// next sidecar.
func noPins(t *testing.T, folder string) {
	t.Helper()
	err := filepath.WalkDir(folder, func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.IsDir() && d.Name() == "programs" {
			return filepath.SkipDir
		}
		if err == nil && !d.IsDir() {
			t.Errorf("%s is left", path)
		}
		return err
	})
	testenv.Must(t, err)
}

func unitSidecar(plugin string) string {
	return fmt.Sprintf(`apiVersion: chaperone.dev/v1alpha1
kind: Sidecar
metadata: {name: %s}
spec:
  plugin: %[1]s
  grants: [grants]
  stateDir: /var/lib/chaperone/%[1]s
  listen: {proxy: 127.0.0.1:15001}
  dns: {hosts: {api.weather.example: [127.0.0.1]}}
`, plugin)
}

// forecastGrant grants one method on the API of the machine.
func forecastGrant(method string) string {
	return fmt.Sprintf(`apiVersion: chaperone.dev/v1alpha1
kind: PluginGrant
metadata: {name: weather}
spec:
  plugin: weather
  notAfter: %s
  rules:
  - id: forecast
    reason: Tests
    to: {scheme: http, hosts: [api.weather.example], ports: [8080], addresses: [127.0.0.1/32]}
    methods: [%s]
    paths: [/v1/forecast]
`, time.Now().AddDate(0, 0, 60).UTC().Format(time.RFC3339), method)
}
