package e2e

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/chaperone-proxy/chaperone/internal/testenv"
	"github.com/chaperone-proxy/chaperone/internal/testenv/scenario"
)

// TestInherited checks that a program finds what its caller prepared for it.
func TestInherited(t *testing.T) {
	e := newEnv(t, "{}")
	run := strings.Join(quoted(e.runArgs()), " ")
	for _, c := range []struct{ name, command, want string }{
		{"limits", "ulimit -n 333; ulimit -v 9000000; RUN sh -c 'ulimit -n; ulimit -v'", "333\n9000000\n"},
		{"umask", "umask 027; RUN sh -c umask", "0027\n"},
		{"nice", "nice -n 7 RUN nice | grep -x $(nice -n 7 nice) >/dev/null && echo as outside", "as outside\n"},
		{"time zone and locale", "TZ=Asia/Tokyo LC_ALL=C.UTF-8 RUN sh -c 'date +%Z; echo $LC_ALL'", "JST\nC.UTF-8\n"},
		{"closed stdin", "RUN sh -c 'cat; echo end' <&-", "end\n"},
		{"closed stdout", "RUN sh -c 'echo x; echo end >&2' 2>&1 >&- | grep -x end", "end\n"},
		{"empty environment", "env -i PATH=$PATH CHAPERONE_REGISTRY=$CHAPERONE_REGISTRY RUN sh -c 'echo ${SHELL:+shell} ${E2E_HTTP-none}'", "shell none\n"},
		{"working folder", "cd /usr/share && RUN pwd", "/usr/share\n"},
		{"much input", "head -c 100000000 /dev/zero | RUN wc -c", "100000000\n"},
		{"much output", "RUN head -c 100000000 /dev/zero | wc -c", "100000000\n"},
		{"streams by name, pipes", "echo in | RUN sh -c 'cat /dev/stdin; echo out >/dev/stdout; echo err | tee /dev/stderr >/dev/null' 2>&1 | sort", "err\nin\nout\n"},
		{"streams by name, files", "f=$(mktemp); RUN sh -c 'echo one >>/proc/self/fd/1; echo two >>/dev/stderr' >>$f 2>>$f; grep -v chaperone $f; stat -c '%a %U %G' $f; rm $f", "one\ntwo\n600 root root\n"},
		{"name of the host", "RUN sh -c 'getent hosts $(hostname) >/dev/null && getent ahostsv6 $(hostname) >/dev/null && echo found' 2>&1", "found\n"},
		{"arguments", `RUN printf '%s|' '' 'a b' '$x' "it's"`, "|a b|$x|it's|"},
		{"status", "RUN sh -c 'exit 41'; echo $?", "41\n"},
		{"status of a signal", "RUN sh -c 'kill -KILL $$'; echo $?", "137\n"},
		{"children of its own", "RUN sh -c '(sleep 300 &) ; echo end'", "end\n"},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := e.exec("/bin/sh", "-c", strings.ReplaceAll(c.command, "RUN", run))
			if r.stdout != c.want {
				t.Errorf("not %q: %v", c.want, r)
			}
		})
	}
}

func quoted(words []string) []string {
	var out []string
	for _, word := range words {
		out = append(out, "'"+word+"'")
	}
	return out
}

// TestSignals checks that the plugin gets the signals that the command gets.
func TestSignals(t *testing.T) {
	e := newEnv(t, "{}")
	for name, signal := range map[string]syscall.Signal{
		"INT": unix.SIGINT, "QUIT": unix.SIGQUIT, "TERM": unix.SIGTERM, "USR1": unix.SIGUSR1, "USR2": unix.SIGUSR2,
	} {
		t.Run(name, func(t *testing.T) {
			b := e.start("/bin/sh", "-c", fmt.Sprintf("trap 'echo got it; exit 9' %s; echo up; while :; do sleep 0.05; done", name))
			eventually(t, "the plugin runs", func() (int, error) { return 0, printed(b, "up") })
			testenv.Must(t, b.Cmd.Process.Signal(signal))
			select {
			case <-b.Ended:
			case <-time.After(2 * time.Minute):
				t.Fatalf("it goes on:\n%s", b.Output.String())
			}
			if status := b.Cmd.ProcessState.ExitCode(); status != 9 || printed(b, "got it") != nil {
				t.Errorf("status %d\n%s", status, b.Output.String())
			}
		})
	}
}

// printed returns an error while the command has not printed a line.
func printed(b *scenario.Process, line string) error {
	if !strings.Contains(b.Output.String(), line) {
		return fmt.Errorf("%q is missing in:\n%s", line, tail(b.Output.String()))
	}
	return nil
}

// TestStandardStreams gives the plugin what hosts use as its standard input: a
// socket pair, as Node.js does, works, and a TCP connection, which would be a
// way out, is refused.
func TestStandardStreams(t *testing.T) {
	e := newEnv(t, "{}")
	run := func(stdin *os.File, program ...string) result {
		ctx, cancel := context.WithTimeout(t.Context(), runLimit)
		defer cancel()
		cmd := e.command(ctx, e.runArgs(program...)...)
		var stdout, stderr bytes.Buffer
		cmd.Stdin, cmd.Stdout, cmd.Stderr = stdin, &stdout, &stderr
		_ = cmd.Run() // the test looks at the status
		return result{cmd.Args, stdout.String(), stderr.String(), cmd.ProcessState.ExitCode()}
	}
	t.Run("socket pair", func(t *testing.T) {
		pair := testenv.MustGet(unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0))(t)
		ours, theirs := os.NewFile(uintptr(pair[0]), "ours"), os.NewFile(uintptr(pair[1]), "theirs")
		testenv.MustGet(ours.WriteString("through a pair\n"))(t)
		testenv.Must(t, unix.Shutdown(pair[0], unix.SHUT_WR))
		defer ours.Close()
		defer theirs.Close()
		if r := run(theirs, "cat"); r.status != 0 || r.stdout != "through a pair\n" {
			t.Error(r)
		}
	})
	t.Run("TCP connection", func(t *testing.T) {
		l := testenv.MustGet(new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0"))(t)
		defer l.Close()
		conn := testenv.MustGet(new(net.Dialer).DialContext(t.Context(), "tcp", l.Addr().String()))(t)
		defer conn.Close()
		file := testenv.MustGet(conn.(*net.TCPConn).File())(t)
		defer file.Close()
		if r := run(file, "true"); r.status == 0 || !strings.Contains(r.stderr, "socket") {
			t.Errorf("it is not refused: %v", r)
		}
	})
}

// TestServedAddresses reaches a port of process.listen wherever the plugin
// binds it.
func TestServedAddresses(t *testing.T) {
	for _, address := range []string{"127.0.0.1", "::1", "0.0.0.0", "::"} {
		t.Run(address, func(t *testing.T) {
			port := testenv.FreePort(t)
			e := newEnv(t, fmt.Sprintf("{listen: [%d]}", port))
			folder := t.TempDir()
			e.enterable(folder)
			testenv.Must(t, os.WriteFile(filepath.Join(folder, "f"), []byte("served"), 0o644))
			e.start(systemPython, "-m", "http.server", "--bind", address, "--directory", folder, fmt.Sprint(port))
			client := &http.Client{Timeout: time.Minute}
			eventually(t, "the plugin answers", func() (int, error) {
				answer, err := client.Get(fmt.Sprintf("http://127.0.0.1:%d/f", port))
				if err != nil {
					return 0, err
				}
				defer answer.Body.Close()
				body, err := io.ReadAll(answer.Body)
				if err == nil && string(body) != "served" {
					err = fmt.Errorf("it answers %q", body)
				}
				return 0, err
			})
		})
	}
}
