package e2e

import (
	"path/filepath"
	"testing"

	"github.com/chaperone-proxy/chaperone/internal/testenv"
)

// systemPython is Debian's: one below the home of root is no plugin's.
const systemPython = "/usr/bin/python3"

// TestPython covers every start method of multiprocessing, sockets of its own,
// subprocesses, the user and the usual clients.
func TestPython(t *testing.T) {
	testenv.Require(t, testenv.Program(systemPython), testenv.File("/usr/lib/python3/dist-packages/requests"))
	e := newEnv(t, "{}")
	e.suite([]string{systemPython, staged("python", "probe.py")},
		"urllib https", "urllib http", "http.client", "requests", "urllib3", "asyncio https", "https in a worker", "ipv6", "refused", "unknown name")
}

// TestNode covers worker threads, cluster, fork, paths, and fetch.
func TestNode(t *testing.T) {
	testenv.Require(t, testenv.Program("node"))
	e := newEnv(t, "{}")
	e.suite([]string{"node", staged("node", "probe.mjs")}, "fetch", "https.get", "http.get", "refused", "names")
}

// TestTSX runs TypeScript by tsx, whose processes talk over a Unix socket.
func TestTSX(t *testing.T) {
	testenv.Require(t, testenv.Program("node"), testenv.Program("npm"))
	e := newEnv(t, "{}")
	dir := testenv.MustGet(nodeDir())(t)
	e.prints([]string{"node", filepath.Join(dir, "node_modules", "tsx", "dist", "cli.mjs"), filepath.Join(dir, "typed.ts")}, "typed\n")
}

// TestJava covers NIO's Unix domain sockets, HttpClient and the properties that
// come from the user.
func TestJava(t *testing.T) {
	testenv.Require(t, testenv.Program("javac"), testenv.Program("java"))
	e := newEnv(t, "{}")
	classes := t.TempDir()
	e.build("javac", "-d", classes, staged("java", "Probe.java"))
	e.enterable(classes)
	e.env = append(e.env, "JAVA_TOOL_OPTIONS=-Xmx64m -De2e.kept=kept")
	e.suite([]string{"java", "-cp", classes, "Probe"},
		"HttpClient", "HttpClient http", "HttpClient with ProxySelector", "HttpURLConnection", "refused", "unknown name")
}

// TestGo looks up names and users with the C library and without.
func TestGo(t *testing.T) {
	for _, cgo := range []string{"0", "1"} {
		t.Run("cgo "+cgo, func(t *testing.T) {
			if cgo == "1" {
				testenv.Require(t, testenv.Program("gcc"))
			}
			e := newEnv(t, "{}")
			lookup := testenv.MustGet(goBuild(staged("lookup"), "lookup-cgo"+cgo, "main.go", "CGO_ENABLED="+cgo))(t)
			e.suite([]string{lookup}, "look-up", "https", "https without the proxy's variables", "tcp6", "tcp4")
		})
	}
}

// TestMusl runs a static program of another C library.
func TestMusl(t *testing.T) {
	testenv.Require(t, testenv.Program("musl-gcc"))
	e := newEnv(t, "{}")
	probe := filepath.Join(stage, "bin", "musl-probe")
	e.build("musl-gcc", "-static", "-O1", "-Wall", "-Werror", "-o", probe, staged("c", "probe.c"))
	e.suite([]string{probe}, "http", "names", "unknown name")
}
