package main

import (
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/chaperone-proxy/chaperone/internal/terminal"
	"github.com/chaperone-proxy/chaperone/internal/testenv"
	"github.com/chaperone-proxy/chaperone/internal/testenv/scenario"
)

// person sits at a terminal, in a shell.
type person struct {
	*env
	master *os.File
	shown  scenario.Buffer
	from   int // the output from here on has not been checked
	shell  int // the process group of the shell
	ended  chan struct{}
}

const prompt = "OP$ "

// sit starts an interactive shell on a new terminal, or another program.
func (w *env) sit(program ...string) *person {
	w.T.Helper()
	testenv.Require(w.T, testenv.Program("bash"), testenv.Program("stty"))
	shell := len(program) == 0
	if shell {
		program = []string{"bash", "--norc", "--noprofile", "-i"}
	}
	master, slave, err := terminal.Open(terminal.Multiplexer, os.Getuid(), terminal.Settings{Size: &unix.Winsize{Row: 24, Col: 200}})
	testenv.Must(w.T, err)
	cmd := w.Command()
	cmd.Path, cmd.Args = testenv.MustGet(exec.LookPath(program[0]))(w.T), program
	cmd.Env = append(cmd.Env, "PS1="+prompt, "TERM=dumb", "HISTFILE=/dev/null")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = slave, slave, slave
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
	testenv.Must(w.T, cmd.Start())
	testenv.Must(w.T, slave.Close())
	p := &person{env: w, master: master, shell: cmd.Process.Pid, ended: make(chan struct{})}
	go func() { _, _ = io.Copy(&p.shown, master) }() // until it hangs up
	go func() { _ = cmd.Wait(); close(p.ended) }()   // its status is the shell's
	w.T.Cleanup(func() {
		_ = p.master.Close() // hangs up
		select {
		case <-p.ended:
		case <-time.After(2 * time.Minute):
			_ = cmd.Process.Kill()
			<-p.ended
		}
		testenv.Eventually(w.T, "the sidecar ends with its terminal", func() (int, bool) { return 0, !w.held() })
	})
	if shell {
		p.sees(regexp.QuoteMeta(prompt))
	}
	return p
}

// held reports whether a sidecar has the state directory.
func (w *env) held() bool {
	lock, err := os.Open(w.File("state/lock"))
	if err != nil {
		return false
	}
	defer lock.Close()
	return unix.Flock(int(lock.Fd()), unix.LOCK_SH|unix.LOCK_NB) != nil
}

func (p *person) types(text string) {
	p.T.Helper()
	_, err := io.WriteString(p.master, text)
	testenv.Must(p.T, err)
}

// runs types a command that runs the plugin.
func (p *person) runs(script, around string) {
	p.T.Helper()
	p.types(fmt.Sprintf("chaperone run --config sidecar.yaml -- %s%s\n", script, around))
}

// sees waits until the terminal shows what a pattern describes, and returns it.
func (p *person) sees(pattern string) string {
	p.T.Helper()
	re := regexp.MustCompile(pattern)
	for deadline := time.Now().Add(2 * time.Minute); ; time.Sleep(10 * time.Millisecond) {
		text := p.shown.String()[p.from:]
		if at := re.FindStringIndex(text); at != nil {
			p.from += at[1]
			return text[at[0]:at[1]]
		}
		if time.Now().After(deadline) {
			p.T.Fatalf("the terminal does not show %q but\n%q", pattern, text)
		}
	}
}

// relayed waits until what is typed goes to the plugin: the sidecar is in the
// foreground and has set the terminal to raw mode, as the shell does for itself.
func (p *person) relayed() {
	p.T.Helper()
	testenv.Eventually(p.T, "the sidecar has the terminal in raw mode", func() (int, bool) {
		group, err := unix.IoctlGetInt(int(p.master.Fd()), unix.TIOCGPGRP)
		if err != nil || group == p.shell {
			return 0, false
		}
		modes, err := unix.IoctlGetTermios(int(p.master.Fd()), unix.TCGETS)
		return 0, err == nil && modes.Lflag&unix.ICANON == 0
	})
}

// inForeground waits until a command runs in the foreground of its terminal
// (proc_pid_stat(5), pgrp and tpgid).
func inForeground(t *testing.T, command ...string) {
	t.Helper()
	testenv.Eventually(t, strings.Join(command, " ")+" is in the foreground", func() (int, bool) {
		files, _ := filepath.Glob("/proc/[0-9]*/cmdline")
		for _, file := range files {
			if text, err := os.ReadFile(file); err != nil || string(text) != strings.Join(command, "\x00")+"\x00" {
				continue
			}
			stat, _ := os.ReadFile(filepath.Join(filepath.Dir(file), "stat")) // it may have ended
			_, rest, _ := strings.Cut(string(stat), ") ")
			if fields := strings.Fields(rest); len(fields) > 5 && fields[0] != "T" && fields[2] == fields[5] {
				return 0, true
			}
		}
		return 0, false
	})
}

// everywhere runs a test with each kind of confinement.
func everywhere(t *testing.T, extra string, test func(t *testing.T, w *env)) {
	for _, c := range []struct{ name, kernel, process string }{
		{"view", "required", ""},
		{"host's view", "required", "  process: {view: host}\n"},
		{"rootless", "off", ""},
		{"unconfined", "off", "  process: {network: host}\n"},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := newEnv(t, c.kernel, extra)
			w.Write("sidecar.yaml", w.Read("sidecar.yaml")+c.process)
			test(t, w)
		})
	}
}

const readsLines = `bash -c 'echo up-$((1+1)); while read -r l; do echo got:$l; done'`

// stolen types lines to the shell and fails if the plugin gets one.
func (p *person) stolen() {
	p.T.Helper()
	from := p.from
	for i := range 6 {
		p.types(fmt.Sprintf("echo for-the-shell-%d-$((%d+100))\n", i, i))
		p.sees(fmt.Sprintf("for-the-shell-%d-%d\r\n", i, i+100))
	}
	if strings.Contains(p.shown.String()[from:], "got:") {
		p.T.Errorf("the plugin has read what was typed for the shell:\n%s", p.shown.String()[from:])
	}
}

// TestTerminalOwn checks that the plugin reads what is typed while it is in the
// foreground, and nothing that is typed for the shell.
func TestTerminalOwn(t *testing.T) {
	everywhere(t, "", func(t *testing.T, w *env) {
		p := w.sit()
		p.runs(readsLines, "")
		p.sees("up-2\r\n")
		p.types("one\n")
		p.sees("got:one\r\n")
		p.types("\x1a")
		p.sees(`Stopped`)
		p.sees(regexp.QuoteMeta(prompt))
		p.stolen()
		p.types("fg\n")
		p.sees("chaperone run")
		p.types("two\n")
		p.sees("got:two\r\n")
		p.types("\x03")
		p.sees(regexp.QuoteMeta(prompt))
		p.types("echo status-$?\n")
		p.sees("status-130\r\n")
	})
}

// TestTerminalBackground checks the same for a plugin that is started there.
func TestTerminalBackground(t *testing.T) {
	everywhere(t, "", func(t *testing.T, w *env) {
		p := w.sit()
		p.runs(readsLines, " &")
		p.sees("up-2\r\n")
		p.stolen()
		p.types("fg\n")
		p.sees("chaperone run")
		p.relayed()
		p.types("one\n")
		p.sees("got:one\r\n")
		p.types("\x04")
		p.sees(regexp.QuoteMeta(prompt))
	})
}

// TestTerminalJobs checks what programs expect of a terminal.
func TestTerminalJobs(t *testing.T) {
	for _, c := range []struct{ name, script, around, first, types, sees string }{
		{"/dev/tty", `bash -c 'read -r -p ask: x </dev/tty; echo got-$x'`, "", "\nask:", "yes\n", "got-yes\r\n"},
		{"its name", `bash -c '[ -c $(tty) ] && echo it-is-$((1+1))'`, "", "", "", "it-is-2\r\n"},
		{"size", `stty size`, "", "", "", "24 200\r\n"},
		{"streams by name", `bash -c 'echo out-$((1+1)) >/dev/stdout; echo err-$((1+1)) >/dev/stderr; read -r x </dev/stdin; echo in-$x'`, "", "out-2\r\nerr-2\r\n", "in\n", "(?s:.*)in-in\r\n"},
		{"in a pipeline", `bash -c 'read -r x; echo got-$x'`, " | cat", "", "yes\n", "got-yes\r\n"},
		{"from a file", `bash -c 'read -r x; [ -t 1 ] && echo got-$x'`, " <data", "", "", "got-data\r\n"},
		{"a question in a pipeline from a file", `bash -c 'read -r -p ask: x </dev/tty; echo got-$x'`, " <data | cat", "\nask:", "yes\n", "got-yes\r\n"},
		{"an interrupt without reading", `bash -c 'trap "echo int-\$((1+1)) >&2; exit" INT; echo up-$((1+1)); while :; do sleep 0.1; done'`, " | cat", "up-2\r\n", "\x03", "int-2\r\n"},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := newEnv(t, "required", "")
			w.Write("data", "data\n")
			p := w.sit()
			p.runs(c.script, c.around)
			if c.types != "" {
				p.sees("\n") // the typed line
				testenv.Eventually(t, "the plugin runs", func() (int, bool) { return 0, strings.Contains(p.audit(), `"started`) })
				p.sees(c.first)
				p.types(c.types)
			}
			p.sees(c.sees)
			p.sees(regexp.QuoteMeta(prompt))
		})
	}
}

// A pager reads the keyboard while the plugin, which does not read, feeds it.
func TestTerminalPager(t *testing.T) {
	p := newEnv(t, "required", "").sit()
	p.runs(`bash -c 'echo up-$((1+1)); sleep 3'`, ` | bash -c 'read -r l; echo $l; for i in 1 2 3 4; do read -r k </dev/tty; echo key-$k; done'`)
	p.sees("up-2\r\n")
	for i := range 4 {
		p.types(fmt.Sprintf("%d\n", i))
		p.sees(fmt.Sprintf("key-%d\r\n", i))
	}
}

// TestTerminalShell runs an interactive shell as the plugin, with jobs of its own.
func TestTerminalShell(t *testing.T) {
	everywhere(t, "", func(t *testing.T, w *env) {
		p := w.sit()
		p.runs(`env PS1=IN\>\  bash --norc --noprofile -i`, "")
		if first := p.sees("IN> "); strings.Contains(first, "no job control") {
			t.Error("there is no job control")
		}
		p.types("sleep 4722\n")
		inForeground(t, "sleep", "4722")
		p.types("\x1a")
		p.sees("Stopped +sleep 4722")
		p.sees("IN> ")
		p.types("fg\n")
		p.sees("fg\r\nsleep 4722")
		inForeground(t, "sleep", "4722")
		p.types("\x03")
		p.sees("IN> ")
		p.types("exit 3\n")
		p.sees(regexp.QuoteMeta(prompt))
		p.types("echo status-$?\n")
		p.sees("status-3\r\n")
	})
}

// TestTerminalRestored checks that modes which the plugin sets end with it, and
// that a changed size reaches it.
func TestTerminalRestored(t *testing.T) {
	everywhere(t, "", func(t *testing.T, w *env) {
		p := w.sit()
		before := testenv.MustGet(unix.IoctlGetTermios(int(p.master.Fd()), unix.TCGETS))(t)
		p.runs(`bash -c 'stty -echo raw; trap "stty size; exit" WINCH; echo up-$((1+1)); while :; do sleep 0.1; done'`, "")
		p.sees("up-2")
		testenv.Must(t, unix.IoctlSetWinsize(int(p.master.Fd()), unix.TIOCSWINSZ, &unix.Winsize{Row: 50, Col: 120}))
		p.sees("50 120")
		p.sees(regexp.QuoteMeta(prompt))
		p.types("stty -a; echo done-$((1+1))\n")
		shown := p.sees(`(?s).*done-2`)
		if strings.Contains(shown, "-echo ") || before.Oflag&unix.OPOST != 0 && strings.Contains(shown, "-opost") {
			t.Errorf("the modes are the plugin's:\n%s", shown)
		}
	})
}

// TestTerminalHangsUp checks that plugin and sidecar end with their terminal, even
// a plugin that ignores that.
func TestTerminalHangsUp(t *testing.T) {
	for _, script := range []string{"sleep 4719", "trap '' HUP TERM; sleep 4720; sleep 4720"} {
		everywhere(t, "", func(t *testing.T, w *env) {
			p := w.sit("chaperone", "run", "--config", "sidecar.yaml", "--", "bash", "-c", "echo up-$((1+1)); "+script)
			p.sees("up-2")
			testenv.Must(t, p.master.Close())
			select {
			case <-p.ended:
			case <-time.After(2 * time.Minute):
				t.Error("the sidecar goes on")
			}
		})
	}
}

// A hang-up signal from somebody else reloads, on a terminal as elsewhere.
func TestTerminalReload(t *testing.T) {
	w := newEnv(t, "required", "")
	p := w.sit("chaperone", "run", "--config", "sidecar.yaml", "--log-level", "info", "--", "sleep", "4721")
	status := w.Ready()
	w.Grant(time.Now().Add(2*time.Hour), "")
	testenv.Eventually(t, "the plugin runs", func() (int, bool) { return 0, strings.Contains(w.audit(), `"started`) })
	group := testenv.MustGet(unix.IoctlGetInt(int(p.master.Fd()), unix.TIOCGPGRP))(t)
	testenv.Must(t, unix.Kill(group, unix.SIGHUP))
	testenv.Eventually(t, "it reloads", func() (int, bool) { return 0, w.Ready().Generation > status.Generation })
}

// A key that the plugin cannot act on ends one that a limit has stopped.
func TestTerminalStopped(t *testing.T) {
	w := newEnv(t, "required", "  limits: {syscalls: 50000, onExceeded: stop}\n")
	p := w.sit()
	p.runs(`bash -c 'trap "" INT; while :; do ls / >/dev/null; done'`, "")
	p.sees("limit syscalls of grant weather exceeded: 50000; the plugin is stopped permanently\r\n")
	w.stopped()
	p.types("\x1a")
	p.sees("Stopped")
	p.types("fg\n")
	p.relayed()
	p.types("\x03")
	p.sees("it cannot act on SIGINT")
	p.sees(regexp.QuoteMeta(prompt))
}

// TestTerminalKeys types Ctrl-C for plugins that have had their terminal send no
// signal for it: it ends one that reads lines, and is read by one that reads each
// character.
func TestTerminalKeys(t *testing.T) {
	w := newEnv(t, "required", "")
	w.Write("plugin.py", `
import sys, termios, time, tty
modes = termios.tcgetattr(0)
if sys.argv[1] == "no-signals": modes[3] &= ~termios.ISIG
if sys.argv[1] == "other-key": modes[6][termios.VINTR] = b"\x18"
termios.tcsetattr(0, termios.TCSANOW, modes)
if sys.argv[1] == "raw": tty.setraw(0)
print("up-%d" % (1 + 1), flush=True)
if sys.argv[1] == "raw": print("read-%d" % sys.stdin.buffer.read(1)[0], flush=True)
else: time.sleep(60)
`)
	testenv.Must(t, os.Chmod(w.File("plugin.py"), 0o644))
	p := w.sit()
	for _, how := range []string{"no-signals", "other-key"} {
		p.runs("python3 plugin.py "+how, "")
		p.sees("up-2\r\n")
		p.types("\x03")
		p.sees(regexp.QuoteMeta(prompt))
		p.types("echo status-$?\n")
		p.sees("status-130\r\n")
	}
	p.runs("python3 plugin.py raw", "")
	p.sees("up-2")
	p.types("\x03")
	p.sees("read-3")
}
