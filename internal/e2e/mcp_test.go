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
	e, dir := newNodeWorld(t, "{}")
	server := filepath.Join(dir, "node_modules", "@modelcontextprotocol", "server-everything", "dist", "index.js")
	r := e.exec(append([]string{"node", filepath.Join(dir, "mcp.mjs"), "stdio"}, e.runArgs("node", server, "stdio")...)...)
	if r.status != 0 || !strings.Contains(r.stdout, "tools true") {
		t.Error(r)
	}
}

// TestMCPByNpx starts the server as its documentation does.
func TestMCPByNpx(t *testing.T) {
	testenv.Require(t, testenv.Program("npx"))
	e, dir := newNodeWorld(t, "{}")
	r := e.exec(append([]string{"node", filepath.Join(dir, "mcp.mjs"), "stdio"}, e.runArgs("npx", "--no-install", "--prefix", dir, "mcp-server-everything", "stdio")...)...)
	if r.status != 0 || !strings.Contains(r.stdout, "tools true") {
		t.Error(r)
	}
}

// TestMCPOverHTTP reaches a server by a port of process.listen.
func TestMCPOverHTTP(t *testing.T) {
	port := testenv.FreePort(t)
	e, dir := newNodeWorld(t, fmt.Sprintf(`{listen: [%d], env: {PORT: "%[1]d"}}`, port))
	server := filepath.Join(dir, "node_modules", "@modelcontextprotocol", "server-everything", "dist", "index.js")
	e.start("node", server, "streamableHttp")
	url := fmt.Sprintf("http://127.0.0.1:%d/mcp", port)
	e.answers(port)
	r := e.exec("node", filepath.Join(dir, "mcp.mjs"), "http", url)
	if r.status != 0 || !strings.Contains(r.stdout, "tools true") {
		t.Error(r)
	}
}

// TestMCPFiles has a server work on a folder of the host's.
func TestMCPFiles(t *testing.T) {
	e, dir := newNodeWorld(t, "{}")
	folder := t.TempDir()
	e.enterable(folder)
	testenv.Must(t, os.Chmod(folder, 0o777))
	server := filepath.Join(dir, "node_modules", "@modelcontextprotocol", "server-filesystem", "dist", "index.js")
	r := e.exec(append([]string{"node", filepath.Join(dir, "mcpfiles.mjs"), folder}, e.runArgs("node", server, folder)...)...)
	if r.status != 0 || !strings.Contains(r.stdout, "file through MCP") {
		t.Error(r)
	}
	if got, err := os.ReadFile(filepath.Join(folder, "written-by-mcp")); err != nil || string(got) != "through MCP" {
		t.Errorf("the host sees %q, %v", got, err)
	}
}

func newNodeWorld(t *testing.T, process string) (*env, string) {
	t.Helper()
	testenv.Require(t, testenv.Program("node"), testenv.Program("npm"))
	return newEnv(t, process), testenv.MustGet(nodeDir())(t)
}

// answers waits until what listens on a port of the host's loopback sends
// something, or waits for a request: a plugin that does not listen yet resets.
func (e *env) answers(port uint16) {
	e.t.Helper()
	eventually(e.t, "the plugin listens", func() (int, error) {
		conn, err := new(net.Dialer).DialContext(e.t.Context(), "tcp", fmt.Sprintf("127.0.0.1:%d", port))
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
