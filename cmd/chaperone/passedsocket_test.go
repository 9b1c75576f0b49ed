package main

import (
	"net"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/chaperone-proxy/chaperone/internal/testenv"
)

// takesSocket is a plugin that is passed a connected socket through its standard
// input, writes to it until that ends, and ends at once.
const takesSocket = `
import array, socket
s = socket.socket(fileno=0)
print("ready", flush=True)
_, control, _, _ = s.recvmsg(10, socket.CMSG_SPACE(64))
fds = array.array("i")
for _, _, data in control: fds.frombytes(data[:len(data) - len(data) % 4])
c = socket.socket(fileno=fds[0])
try:
    while True: c.send(b"z" * 65536)
except OSError: pass
`

// TestPassedSocketIsRecorded passes a socket of the host's to a plugin, which ends as
// soon as the socket is ended. It is recorded before the end of the plugin.
func TestPassedSocketIsRecorded(t *testing.T) {
	w := newEnv(t, "required", "")
	for range 3 {
		testenv.Must(t, os.RemoveAll(w.File("state/audit.jsonl")))
		listener := testenv.MustGet((&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0"))(t)
		go func() {
			conn, err := listener.Accept()
			for buffer := make([]byte, 1<<20); err == nil; {
				_, err = conn.Read(buffer)
			}
		}()
		pair := testenv.MustGet(unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0))(t)
		ours, theirs := os.NewFile(uintptr(pair[0]), "ours"), os.NewFile(uintptr(pair[1]), "theirs")
		cmd := w.Command("run", "--config", w.File("sidecar.yaml"), "--", "python3", "-c", takesSocket)
		cmd.Stdin = theirs
		b := w.StartProcess(cmd)
		testenv.Must(t, theirs.Close())
		testenv.Eventually(t, "the plugin waits for a socket", func() (int, bool) { return 0, strings.Contains(b.Output.String(), "ready") })
		conn := testenv.MustGet((&net.Dialer{}).DialContext(t.Context(), "tcp", listener.Addr().String()))(t)
		passed := testenv.MustGet(conn.(*net.TCPConn).File())(t)
		testenv.Must(t, unix.Sendmsg(pair[0], []byte("x"), unix.UnixRights(int(passed.Fd())), nil, 0))
		testenv.Must(t, passed.Close())
		testenv.Must(t, conn.Close())
		b.Wait()
		testenv.Must(t, ours.Close())
		testenv.Must(t, listener.Close())
		log := w.audit()
		found, ended := strings.Index(log, "made outside its confinement"), strings.Index(log, "ended with status")
		if found < 0 || ended < found {
			t.Errorf("the socket is recorded at %d, the end of the plugin at %d\n%s\n%s", found, ended, log, b.Output.String())
		}
	}
}
