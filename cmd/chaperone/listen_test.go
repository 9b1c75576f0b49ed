package main

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/chaperone-proxy/chaperone/internal/testenv"
)

// spec adds lines to the Sidecar's spec.
func (w *world) spec(lines string) { w.write("sidecar.yaml", w.read("sidecar.yaml")+lines) }

// TestRunListen reaches a plugin that serves HTTP, from the host.
func TestRunListen(t *testing.T) {
	for _, network := range []string{"own", "host"} {
		t.Run("network "+network, func(t *testing.T) {
			w := newWorld(t, "required", "")
			port := testenv.FreePort(t)
			w.spec(fmt.Sprintf("  process: {network: %s, listen: [%d]}\n", network, port))
			w.start("python3", "-m", "http.server", "--bind", "127.0.0.1", "--directory", "/usr/share", fmt.Sprint(port))
			client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: 10 * time.Second}
			body := eventually(t, "the plugin answers", func() (string, bool) {
				answer, err := client.Get(fmt.Sprintf("http://127.0.0.1:%d/", port))
				if err != nil {
					return "", false
				}
				defer answer.Body.Close()
				data, err := io.ReadAll(answer.Body)
				return string(data), err == nil
			})
			contains(t, body, "Directory listing")
			status := w.ready()
			if len(status.Process.Listen) != 1 || status.Process.Listen[0].Port != port || status.Process.Listen[0].Forwarded != (network == "own") {
				t.Errorf("status: %+v", status.Process.Listen)
			}
			if r := w.chaperone("status", "--config", w.file("sidecar.yaml")); !strings.Contains(r.stdout, fmt.Sprintf("127.0.0.1:%d", port)) {
				t.Errorf("status does not say where the plugin serves:\n%s", r.stdout)
			}
			if network == "host" {
				return
			}
			eventually(t, "both ends are recorded", func() (int, bool) {
				return 0, strings.Contains(w.audit(), `"kind":"inbound"`) && strings.Contains(w.audit(), `"detail":"ended"`)
			})
			// A connection that is open when access is revoked is cut.
			conn := testenv.MustGet(net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", port)))(t)
			defer conn.Close()
			testenv.MustGet(io.WriteString(conn, "GET / HTTP/1.0\r\n"))(t)
			eventually(t, "it is open", func() (int, bool) { return 0, w.ready().Process.Listen[0].Open == 1 })
			if r := w.revoke(); r.Cut != 1 || len(r.Failed) > 0 {
				t.Errorf("%+v", r)
			}
			testenv.CutOff(t, conn)
			if again, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", port)); err == nil { // no error: the reset comes later
				testenv.CutOff(t, again)
				_ = again.Close()
			}
			contains(t, w.audit(), `"detail":"cut: access was revoked"`)
		})
	}
	t.Run("a port that is taken", func(t *testing.T) {
		w := newWorld(t, "required", "")
		l := testenv.MustGet(net.Listen("tcp", "127.0.0.1:0"))(t)
		defer l.Close()
		port := l.Addr().(*net.TCPAddr).AddrPort().Port()
		w.spec(fmt.Sprintf("  process: {listen: [%d]}\n", port))
		r := w.run("true")
		if r.status != exitSidecar {
			t.Errorf("status %d", r.status)
		}
		contains(t, r.stderr, fmt.Sprintf("process.listen: port %d of 127.0.0.1 is taken", port))
	})
}
