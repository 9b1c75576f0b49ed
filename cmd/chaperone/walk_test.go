package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/chaperone-proxy/chaperone/internal/testenv"
	"github.com/chaperone-proxy/chaperone/internal/testenv/scenario"
)

// walkHeading begins the part of the README that a new user types in.
const walkHeading = "## A first grant, in five minutes\n"

// fence is a fenced block of a Markdown file.
type fenceBlock struct{ language, text string }

// fencedBlocks returns the fenced blocks of the section below a heading.
func fencedBlocks(t *testing.T, markdown, heading string) []fenceBlock {
	t.Helper()
	_, section, found := strings.Cut(markdown, heading)
	if !found {
		t.Fatalf("there is no section %q", heading)
	}
	section, _, _ = strings.Cut(section, "\n## ")
	var blocks []fenceBlock
	inside := false
	for line := range strings.Lines(section) {
		switch language, fence := strings.CutPrefix(line, "```"); {
		case fence && inside:
			inside = false
		case fence:
			inside = true
			blocks = append(blocks, fenceBlock{language: strings.TrimSpace(language)})
		case inside:
			blocks[len(blocks)-1].text += line
		}
	}
	return blocks
}

// writeWalk makes a script of the blocks: the content of a sh block is typed, and a text
// block is its output. edit changes what is typed.
func writeWalk(t *testing.T, dir string, blocks []fenceBlock, edit func(string) string) {
	t.Helper()
	var script, files strings.Builder
	for i, b := range blocks {
		switch b.language {
		case "sh":
			fmt.Fprintf(&script, "type %d.sh\n", i)
			fmt.Fprintf(&files, "-- %d.sh --\n%s", i, edit(b.text))
		case "text":
			fmt.Fprintf(&script, "printed %d.txt\n", i)
			fmt.Fprintf(&files, "-- %d.txt --\n%s", i, b.text)
		}
	}
	if !strings.Contains(script.String(), "printed") {
		t.Fatal("the walk shows nothing that is printed")
	}
	script.WriteString("enforced\ntype end.sh\n")
	fmt.Fprintf(&files, "-- end.sh --\n%s", edit("kill %1\nsudo rm -r /var/lib/chaperone/weather /opt/weather /usr/local/bin/chaperone\n"))
	testenv.Must(t, os.WriteFile(filepath.Join(dir, "walk.txtar"), []byte(script.String()+files.String()), 0o600))
}

// shellSession is a shell that somebody types into, in a container.
type shellSession struct {
	cmd    *exec.Cmd
	stdin  io.WriteCloser
	output scenario.Buffer
	ended  chan struct{}
	typed  int // blocks so far
	since  int // where the output of the last one begins
	begun  time.Time
}

// typeIn types a block, and waits until it has been executed.
func (s *shellSession) typeIn(text string) error {
	if s.typed == 0 {
		s.begun = time.Now()
	}
	s.since = len(s.output.String())
	s.typed++
	done := fmt.Sprintf("block %d is done", s.typed)
	if _, err := io.WriteString(s.stdin, text+"\necho "+done+"\n"); err != nil {
		return errors.Join(err, errors.New(s.output.String()))
	}
	for deadline := time.Now().Add(2 * time.Minute); ; time.Sleep(20 * time.Millisecond) {
		out := s.output.String()[s.since:]
		if strings.Contains(out, done+"\n") {
			return nil
		}
		select {
		case <-s.ended:
			return fmt.Errorf("a command failed:\n%s", out)
		default:
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("not done after two minutes:\n%s", out)
		}
	}
}

// printed waits until the lines were printed by the last block, in their order for
// each of the two streams that are one here; "..." in a line stands for anything.
func (s *shellSession) printed(want string) error {
	for deadline := time.Now().Add(2 * time.Minute); ; time.Sleep(20 * time.Millisecond) {
		out := s.output.String()[s.since:]
		missing := ""
		for line := range strings.Lines(want) {
			if !hasLine(out, strings.TrimSpace(line)) {
				missing = line
			}
		}
		if missing == "" {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("it does not print %q, but:\n%s", missing, out)
		}
	}
}

func hasLine(text, pattern string) bool {
	for scan := bufio.NewScanner(strings.NewReader(text)); scan.Scan(); {
		rest, good := strings.TrimSpace(scan.Text()), true
		for i, part := range strings.Split(pattern, "...") {
			at := strings.Index(rest, part)
			if at < 0 || i == 0 && at > 0 {
				good = false
				break
			}
			rest = rest[at+len(part):]
		}
		if good && (rest == "" || strings.HasSuffix(pattern, "...")) {
			return true
		}
	}
	return false
}

// walker is who walks.
type walker struct {
	name  string
	uid   int
	home  string
	shell string // is what the shell is started with
	edit  func(string) string
}

// TestREADME types in the commands of the README's walk, in a container that has little
// more than this system's programs: the commands, the files and what is printed are
// taken from README.md itself.
func TestREADME(t *testing.T) {
	testenv.Require(t, testenv.Superuser(), testenv.CgroupV2(), testenv.BTF(),
		testenv.Program("systemd-nspawn"), testenv.Program("sudo"), testenv.Program("setpriv"), testenv.Program("python3"))
	blocks := fencedBlocks(t, string(testenv.MustGet(os.ReadFile("../../README.md"))(t)), walkHeading)
	alone := func(text string) string { return strings.ReplaceAll(text, "sudo ", "") }
	asWritten := func(text string) string { return text }
	for _, who := range []walker{
		{name: "a user with sudo", uid: 1000, home: "/home/alice", edit: asWritten},
		{name: "root", home: "/root", edit: alone},
		{name: "root in another PID namespace", home: "/root", shell: "unshare --pid --fork --mount-proc", edit: alone},
	} {
		t.Run(who.name, func(t *testing.T) {
			dir := t.TempDir()
			writeWalk(t, dir, blocks, who.edit)
			s := startSession(t, who)
			testscript.Run(t, testscript.Params{
				Dir: dir,
				Cmds: map[string]func(ts *testscript.TestScript, neg bool, args []string){
					"type":    func(ts *testscript.TestScript, _ bool, args []string) { ts.Check(s.typeIn(ts.ReadFile(args[0]))) },
					"printed": func(ts *testscript.TestScript, _ bool, args []string) { ts.Check(s.printed(ts.ReadFile(args[0]))) },
					"enforced": func(ts *testscript.TestScript, _ bool, _ []string) {
						ts.Logf("the first enforced request: %.1f s after the first command, without the build", time.Since(s.begun).Seconds())
						ts.Check(s.enforced(who.edit))
					},
				},
			})
		})
	}
}

// enforced checks that the sidecar is the only way to the API of the walk.
func (s *shellSession) enforced(edit func(string) string) error {
	err := s.typeIn(edit("sudo chaperone run --config sidecar.yaml -- python3 -c '") + `
import socket
try:
    socket.create_connection(("127.0.0.1", 8443), 5)
    print("a way out")
except OSError:
    print("shut in")'`)
	return errors.Join(err, s.printed("shut in\n"))
}

// startSession starts a shell in a container with a clone in the walker's home.
func startSession(t *testing.T, who walker) *shellSession {
	t.Helper()
	root := containerRoot(t)
	write := func(name, content string, mode os.FileMode) {
		path := filepath.Join(root, name)
		testenv.Must(t, errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(content), mode), os.Chmod(path, mode)))
	}
	write("/etc/sudoers", "root ALL=(ALL) ALL\nalice ALL=(ALL) NOPASSWD: ALL\n", 0o440)
	write("/etc/pam.d/sudo", "auth sufficient pam_permit.so\naccount sufficient pam_permit.so\nsession sufficient pam_permit.so\n", 0o644)
	write("/etc/passwd", "root:x:0:0::/root:/bin/sh\nalice:x:1000:1000::/home/alice:/bin/sh\nnobody:x:65534:65534::/:/usr/sbin/nologin\n", 0o644)
	write("/etc/group", "root:x:0:\nalice:x:1000:\nnogroup:x:65534:\n", 0o644)
	clone := filepath.Join(root, who.home, "chaperone")
	testenv.Must(t, os.MkdirAll(filepath.Join(clone, "bin"), 0o755))
	testenv.Must(t, os.CopyFS(filepath.Join(clone, "examples"), os.DirFS("../../examples")))
	testenv.Must(t, copyFile(shipped(t), filepath.Join(clone, "bin/chaperone")))
	build := exec.Command("go", "build", "-o", filepath.Join(clone, "bin/weather-api"), "../../examples/weather/api")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	// Both are built already: a container has no Go, and no time.
	local := t.TempDir()
	testenv.Must(t, errors.Join(os.Chmod(local, 0o755), os.Mkdir(filepath.Join(local, "bin"), 0o755)))
	testenv.Must(t, os.WriteFile(filepath.Join(local, "bin/make"), []byte("#!/bin/sh\n[ \"$*\" = example ] && test -x bin/chaperone -a -x bin/weather-api\n"), 0o755))
	testenv.Must(t, filepath.WalkDir(filepath.Join(root, who.home), func(path string, _ os.DirEntry, err error) error {
		return errors.Join(err, os.Lchown(path, who.uid, who.uid))
	}))
	testenv.Must(t, os.Chmod(filepath.Join(root, who.home), map[bool]os.FileMode{true: 0o700, false: 0o755}[who.uid == 0]))
	return runSession(t, root, local, clone[len(root):], who)
}

func runSession(t *testing.T, root, local, dir string, who walker) *shellSession {
	t.Helper()
	shell := strings.Fields(who.shell)
	if who.uid != 0 {
		shell = append(shell, "setpriv", fmt.Sprintf("--reuid=%d", who.uid), fmt.Sprintf("--regid=%d", who.uid), "--clear-groups")
	}
	// A person's shell goes on after a failure; this one prints it and ends.
	shell = append(shell, "env", "-i", "HOME="+who.home, "PATH=/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin", "bash", "-e")
	s := &shellSession{ended: make(chan struct{})}
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
	s.cmd = exec.CommandContext(ctx, "systemd-nspawn", append(nspawnArguments(root), append([]string{"--pipe", "--as-pid2", "--chdir=" + dir, "--bind=" + local + ":/usr/local", "--"}, shell...)...)...)
	s.cmd.Env = append(os.Environ(), "SYSTEMD_NSPAWN_UNIFIED_HIERARCHY=1")
	s.cmd.SysProcAttr = testenv.MustCgroup(t).SysProcAttr()
	s.cmd.Stdout, s.cmd.Stderr = &s.output, &s.output
	s.stdin = testenv.MustGet(s.cmd.StdinPipe())(t)
	testenv.Must(t, s.cmd.Start())
	go func() { _ = s.cmd.Wait(); close(s.ended) }() // its status is that of what was typed
	t.Cleanup(func() {
		_ = s.stdin.Close()
		select {
		case <-s.ended:
		case <-time.After(10 * time.Second):
			_ = s.cmd.Process.Signal(syscall.SIGTERM)
			<-s.ended
		}
		cancel()
	})
	return s
}

func copyFile(from, to string) error {
	data, err := os.ReadFile(from)
	if err != nil {
		return err
	}
	return os.WriteFile(to, data, 0o755)
}
