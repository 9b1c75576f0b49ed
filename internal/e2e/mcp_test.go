package e2e

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/chaperone-proxy/chaperone/internal/testenv"
)

// TestMCPOverStdio has the client of the official SDK start a server through
// the command, as hosts of MCP servers do.
func TestMCPOverStdio(t *testing.T) {
	w, dir := newNodeWorld(t, "{}")
	server := filepath.Join(dir, "node_modules", "@modelcontextprotocol", "server-everything", "dist", "index.js")
	r := w.exec(append([]string{"node", filepath.Join(dir, "mcp.mjs"), "stdio"}, w.runArgs("node", server, "stdio")...)...)
	if r.status != 0 || !strings.Contains(r.stdout, "tools true") {
		t.Error(r)
	}
}

// TestMCPByNpx starts the server as its documentation does.
func TestMCPByNpx(t *testing.T) {
	testenv.Require(t, testenv.Program("npx"))
	w, dir := newNodeWorld(t, "{}")
	r := w.exec(append([]string{"node", filepath.Join(dir, "mcp.mjs"), "stdio"}, w.runArgs("npx", "--no-install", "--prefix", dir, "mcp-server-everything", "stdio")...)...)
	if r.status != 0 || !strings.Contains(r.stdout, "tools true") {
		t.Error(r)
	}
}

// TestMCPOverHTTP reaches a server by a port of process.listen.
func TestMCPOverHTTP(t *testing.T) {
	port := freePort(t)
	w, dir := newNodeWorld(t, fmt.Sprintf(`{listen: [%d], env: {PORT: "%[1]d"}}`, port))
	server := filepath.Join(dir, "node_modules", "@modelcontextprotocol", "server-everything", "dist", "index.js")
	w.start("node", server, "streamableHttp")
	url := fmt.Sprintf("http://127.0.0.1:%d/mcp", port)
	w.answers(port)
	r := w.exec("node", filepath.Join(dir, "mcp.mjs"), "http", url)
	if r.status != 0 || !strings.Contains(r.stdout, "tools true") {
		t.Error(r)
	}
}

// TestMCPFiles has a server work on a folder of the host's.
func TestMCPFiles(t *testing.T) {
	w, dir := newNodeWorld(t, "{}")
	folder := t.TempDir()
	w.enterable(folder)
	testenv.Must(t, os.Chmod(folder, 0o777))
	server := filepath.Join(dir, "node_modules", "@modelcontextprotocol", "server-filesystem", "dist", "index.js")
	r := w.exec(append([]string{"node", filepath.Join(dir, "mcpfiles.mjs"), folder}, w.runArgs("node", server, folder)...)...)
	if r.status != 0 || !strings.Contains(r.stdout, "file through MCP") {
		t.Error(r)
	}
	if got, err := os.ReadFile(filepath.Join(folder, "written-by-mcp")); err != nil || string(got) != "through MCP" {
		t.Errorf("the host sees %q, %v", got, err)
	}
}

func newNodeWorld(t *testing.T, process string) (*world, string) {
	t.Helper()
	testenv.Require(t, testenv.Program("node"), testenv.Program("npm"))
	return newWorld(t, process), testenv.MustGet(nodeDir())(t)
}

// answers waits until what listens on a port of the host's loopback sends
// something, or waits for a request: a plugin that does not listen yet resets.
func (w *world) answers(port int) {
	w.t.Helper()
	eventually(w.t, "the plugin listens", func() (int, error) {
		conn, err := new(net.Dialer).DialContext(w.t.Context(), "tcp", fmt.Sprintf("127.0.0.1:%d", port))
		if err != nil {
			return 0, err
		}
		defer conn.Close()
		if _, err := fmt.Fprint(conn, "GET / HTTP/1.0\r\n\r\n"); err != nil {
			return 0, err
		}
		return conn.Read(make([]byte, 1))
	})
}
