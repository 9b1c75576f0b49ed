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
	w := newWorld(t, "{}")
	w.suite([]string{systemPython, staged("python", "probe.py")},
		"urllib https", "urllib http", "http.client", "requests", "urllib3", "asyncio https", "https in a worker", "ipv6", "refused", "unknown name")
}

// TestNode covers worker threads, cluster, fork, paths, and fetch.
func TestNode(t *testing.T) {
	testenv.Require(t, testenv.Program("node"))
	w := newWorld(t, "{}")
	w.suite([]string{"node", staged("node", "probe.mjs")}, "fetch", "https.get", "http.get", "refused", "names")
}

// TestTSX runs TypeScript by tsx, whose processes talk over a Unix socket.
func TestTSX(t *testing.T) {
	testenv.Require(t, testenv.Program("node"), testenv.Program("npm"))
	w := newWorld(t, "{}")
	dir := testenv.MustGet(nodeDir())(t)
	w.prints([]string{"node", filepath.Join(dir, "node_modules", "tsx", "dist", "cli.mjs"), filepath.Join(dir, "typed.ts")}, "typed\n")
}

// TestJava covers NIO's Unix domain sockets, HttpClient and the properties that
// come from the user.
func TestJava(t *testing.T) {
	testenv.Require(t, testenv.Program("javac"), testenv.Program("java"))
	w := newWorld(t, "{}")
	classes := t.TempDir()
	w.build("javac", "-d", classes, staged("java", "Probe.java"))
	w.enterable(classes)
	w.env = append(w.env, "JAVA_TOOL_OPTIONS=-Xmx64m -De2e.kept=kept")
	w.suite([]string{"java", "-cp", classes, "Probe"},
		"HttpClient", "HttpClient http", "HttpClient with ProxySelector", "HttpURLConnection", "refused", "unknown name")
}

// TestGo looks up names and users with the C library and without.
func TestGo(t *testing.T) {
	for _, cgo := range []string{"0", "1"} {
		t.Run("cgo "+cgo, func(t *testing.T) {
			if cgo == "1" {
				testenv.Require(t, testenv.Program("gcc"))
			}
			w := newWorld(t, "{}")
			lookup := testenv.MustGet(goBuild(staged("lookup"), "lookup-cgo"+cgo, "main.go", "CGO_ENABLED="+cgo))(t)
			w.suite([]string{lookup}, "look-up", "https", "https without the proxy's variables", "tcp6", "tcp4")
		})
	}
}

// TestMusl runs a static program of another C library.
func TestMusl(t *testing.T) {
	testenv.Require(t, testenv.Program("musl-gcc"))
	w := newWorld(t, "{}")
	probe := filepath.Join(stage, "bin", "musl-probe")
	w.build("musl-gcc", "-static", "-O1", "-Wall", "-Werror", "-o", probe, staged("c", "probe.c"))
	w.suite([]string{probe}, "http", "names", "unknown name")
}
