package main

import (
	"fmt"
	"net"
	"os"
	"strings"
	"testing"

	"github.com/chaperone-proxy/chaperone/internal/testenv"
	"github.com/chaperone-proxy/chaperone/internal/testenv/scenario"
)

// TestRunSockets allows a plugin the Unix socket that its grant names, and refuses
// one that cannot be trusted.
func TestRunSockets(t *testing.T) {
	testenv.Require(t, testenv.Superuser())
	dir := testenv.MustGet(os.MkdirTemp("/run", "chaperone-test-"))(t) //nolint:usetesting // a path that can be trusted, unlike one below /tmp
	t.Cleanup(func() { testenv.Must(t, os.RemoveAll(dir)) })
	testenv.Must(t, os.Chmod(dir, 0o755))
	for _, name := range []string{"granted", "other"} {
		l := testenv.MustGet(net.Listen("unix", dir+"/"+name))(t)
		t.Cleanup(func() { _ = l.Close() })
		testenv.Must(t, os.Chmod(dir+"/"+name, 0o666))
		go func() {
			for {
				conn, err := l.Accept()
				if err != nil {
					return
				}
				_, _ = fmt.Fprintln(conn, "the socket", name)
				_ = conn.Close()
			}
		}()
	}
	w := newEnv(t, "required", fmt.Sprintf("  sockets: [%[1]s/granted, %[1]s/none/at-all]\n", dir))
	r := w.Run("python3", "-c", `
import socket, sys
for path in sys.argv[1:]:
    s = socket.socket(socket.AF_UNIX)
    try:
        s.connect(path)
        print(s.makefile().readline().strip())
    except OSError as e:
        print(path.rsplit("/")[-1], e.strerror)
`, dir+"/granted", dir+"/other")
	scenario.Contains(t, r.Stdout, "the socket granted", "other Operation not permitted")
	scenario.Contains(t, r.Stderr, "chaperone: refused", "unix:"+dir+"/other", "ask for it under sockets of a grant", "/none/at-all")
	var granted bool
	for line := range strings.Lines(w.audit()) {
		granted = granted || strings.Contains(line, `"door":"kernel"`) && strings.Contains(line, `"allowed":true,"reason":"granted","grant":"weather"`) && strings.Contains(line, dir+"/granted")
	}
	if !granted {
		t.Errorf("the use of the socket is not recorded:\n%s", w.audit())
	}
	scenario.Contains(t, w.audit(), "refused although granted")
}
