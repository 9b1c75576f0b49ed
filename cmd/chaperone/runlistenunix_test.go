package main

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/chaperone-proxy/chaperone/internal/testenv"
	"github.com/chaperone-proxy/chaperone/internal/testenv/scenario"
)

// socketServer is a plugin as go-plugin starts it: it makes a socket below its
// folder for temporary files, names it on stdout, and answers in capitals.
const socketServer = `
import os, socket, tempfile, time
def serve(prefix):
    path = tempfile.mktemp(prefix=prefix)
    s = socket.socket(socket.AF_UNIX)
    s.bind(path)
    s.listen()
    return path, s
hidden, _ = serve("other")
path, s = serve("plugin")
print(path, hidden, flush=True)
while True:
    conn, _ = s.accept()
    while data := conn.recv(100):
        if data == b"close":
            s.close()
            os.remove(path)
            time.sleep(60)
        conn.sendall(data.upper())
`

// printedSockets waits for the paths that the plugin prints.
func printedSockets(t *testing.T, p *scenario.Process) (path, hidden string) {
	t.Helper()
	line := testenv.Eventually(t, "the plugin names its sockets", func() (string, bool) {
		_, rest, found := strings.Cut("\n"+p.Output.String(), "\n/tmp/plugin")
		line, _, whole := strings.Cut(rest, "\n")
		return "/tmp/plugin" + line, found && whole
	})
	path, hidden, _ = strings.Cut(line, " ")
	return path, hidden
}

func TestRunListenUnix(t *testing.T) {
	w := newEnv(t, "required", "")
	w.spec("  process: {listen: [\"unix:/tmp/plugin*\"]}\n")
	p := w.Start("python3", "-c", socketServer)
	path, hidden := printedSockets(t, p)
	if _, err := os.Lstat(hidden); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a socket that process.listen does not name is on the host: %v", err)
	}
	if mode := testenv.MustGet(os.Lstat(path))(t).Mode(); mode != os.ModeSocket|0o600 {
		t.Errorf("mode %v", mode)
	}
	ask := func(conn net.Conn, text string) string {
		t.Helper()
		testenv.MustGet(io.WriteString(conn, text))(t)
		answer := make([]byte, 100)
		testenv.Must(t, conn.SetReadDeadline(time.Now().Add(testenv.Patience)))
		n, err := conn.Read(answer)
		if err != nil {
			return err.Error()
		}
		return string(answer[:n])
	}
	conn := testenv.MustGet(net.Dial("unix", path))(t)
	defer conn.Close()
	if got := ask(conn, "hello"); got != "HELLO" {
		t.Errorf("answered %q", got)
	}
	service := w.Ready().Process.Listen[0]
	if service.Path != "/tmp/plugin*" || !service.Forwarded || service.Open != 1 || fmt.Sprint(service.Addresses) != "[unix:"+path+"]" {
		t.Errorf("status: %+v", service)
	}
	scenario.Contains(t, w.audit(), `"kind":"inbound"`)
	scenario.Contains(t, w.audit(), fmt.Sprintf(`"path":%q,"pid":%d`, path, os.Getpid()))
	if r := w.Revoke(); r.Cut != 1 || len(r.Failed) > 0 {
		t.Errorf("%+v", r)
	}
	testenv.CutOff(t, conn)
	if late, err := net.Dial("unix", path); err == nil {
		testenv.CutOff(t, late)
		_ = late.Close()
	}
	scenario.Contains(t, w.audit(), `"detail":"cut: access was revoked"`)
}

// TestRunListenUnixEnds shows that the host's file goes with the plugin's socket.
func TestRunListenUnixEnds(t *testing.T) {
	w := newEnv(t, "required", "")
	w.spec("  process: {listen: [\"unix:/tmp/plugin*\"]}\n")
	p := w.Start("python3", "-c", socketServer)
	path, _ := printedSockets(t, p)
	conn := testenv.MustGet(net.Dial("unix", path))(t)
	defer conn.Close()
	testenv.MustGet(io.WriteString(conn, "close"))(t)
	testenv.Eventually(t, "the host's file is gone", func() (int, bool) {
		_, err := os.Lstat(path)
		return 0, errors.Is(err, os.ErrNotExist)
	})
}

// TestRunDirectUnix shows that a connection of the host's to a socket in a folder
// that the plugin shares is recorded, and cut with the rest.
func TestRunDirectUnix(t *testing.T) {
	w := newEnv(t, "required", "")
	dir := w.File("shared")
	testenv.Must(t, errors.Join(os.Mkdir(dir, 0o755), os.Chmod(dir, 0o777)))
	server := strings.Replace(socketServer, "tempfile.mktemp(prefix=prefix)", fmt.Sprintf("%q + prefix", dir+"/"), 1)
	p := w.Start("python3", "-c", server)
	path := dir + "/plugin"
	testenv.Eventually(t, "the plugin listens", func() (int, bool) { return 0, strings.Contains(p.Output.String(), path) })
	dial := func() net.Conn {
		conn := testenv.MustGet(net.Dial("unix", path))(t)
		t.Cleanup(func() { _ = conn.Close() })
		return conn
	}
	conn := dial()
	testenv.MustGet(io.WriteString(conn, "hello"))(t)
	testenv.MustGet(io.ReadFull(conn, make([]byte, 5)))(t)
	began := fmt.Sprintf(`"scheme":"unix","path":%q,"pid":%d`, path, os.Getpid())
	testenv.Eventually(t, "it is recorded", func() (int, bool) {
		return 0, strings.Contains(w.audit(), `"kind":"inbound"`) && strings.Contains(w.audit(), began)
	})
	if r := w.Revoke(); r.Cut != 1 || len(r.Failed) > 0 {
		t.Errorf("%+v", r)
	}
	testenv.CutOff(t, conn)
	scenario.Contains(t, w.audit(), `"detail":"cut: access was revoked"`)
	testenv.CutOff(t, dial()) // accepted, and cut at the next look
}
