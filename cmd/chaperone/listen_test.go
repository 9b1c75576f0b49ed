package main

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"

	"github.com/chaperone-proxy/chaperone/internal/testenv"
	"github.com/chaperone-proxy/chaperone/internal/testenv/scenario"
)

// spec adds lines to the Sidecar's spec.
func (w *env) spec(lines string) { w.Write("sidecar.yaml", w.Read("sidecar.yaml")+lines) }

// TestRunListen reaches a plugin that serves HTTP, from the host.
func TestRunListen(t *testing.T) {
	for _, network := range []string{"own", "host"} {
		t.Run("network "+network, func(t *testing.T) {
			w := newEnv(t, "required", "")
			port := testenv.FreePort(t)
			w.spec(fmt.Sprintf("  process: {network: %s, listen: [%d]}\n", network, port))
			w.Start("python3", "-m", "http.server", "--bind", "127.0.0.1", "--directory", "/usr/share", fmt.Sprint(port))
			client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: testenv.Patience}
			body := testenv.Eventually(t, "the plugin answers", func() (string, bool) {
				answer, err := client.Get(fmt.Sprintf("http://127.0.0.1:%d/", port))
				if err != nil {
					return "", false
				}
				defer answer.Body.Close()
				data, err := io.ReadAll(answer.Body)
				return string(data), err == nil
			})
			scenario.Contains(t, body, "Directory listing")
			status := w.Ready()
			if len(status.Process.Listen) != 1 || status.Process.Listen[0].Port != port || status.Process.Listen[0].Forwarded != (network == "own") {
				t.Errorf("status: %+v", status.Process.Listen)
			}
			if r := w.Chaperone("status", "--config", w.File("sidecar.yaml")); !strings.Contains(r.Stdout, fmt.Sprintf("127.0.0.1:%d", port)) {
				t.Errorf("status does not say where the plugin serves:\n%s", r.Stdout)
			}
			if network == "host" {
				return
			}
			testenv.Eventually(t, "both ends are recorded", func() (int, bool) {
				return 0, strings.Contains(w.audit(), `"kind":"inbound"`) && strings.Contains(w.audit(), `"detail":"ended"`)
			})
			// A connection that is open when access is revoked is cut.
			conn := testenv.MustGet(net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", port)))(t)
			defer conn.Close()
			testenv.MustGet(io.WriteString(conn, "GET / HTTP/1.0\r\n"))(t)
			testenv.Eventually(t, "it is open", func() (int, bool) { return 0, w.Ready().Process.Listen[0].Open == 1 })
			if r := w.Revoke(); r.Cut != 1 || len(r.Failed) > 0 {
				t.Errorf("%+v", r)
			}
			testenv.CutOff(t, conn)
			if again, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", port)); err == nil { // no error: the reset comes later
				testenv.CutOff(t, again)
				_ = again.Close()
			}
			scenario.Contains(t, w.audit(), `"detail":"cut: access was revoked"`)
		})
	}
	t.Run("a port that is taken", func(t *testing.T) {
		w := newEnv(t, "required", "")
		l := testenv.MustGet(net.Listen("tcp", "127.0.0.1:0"))(t)
		defer l.Close()
		port := l.Addr().(*net.TCPAddr).AddrPort().Port()
		w.spec(fmt.Sprintf("  process: {listen: [%d]}\n", port))
		r := w.Run("true")
		if r.Status != exitSidecar {
			t.Errorf("status %d", r.Status)
		}
		scenario.Contains(t, r.Stderr, fmt.Sprintf("process.listen: port %d of 127.0.0.1 is taken", port))
	})
}
