package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/chaperone-proxy/chaperone/internal/testenv"
)

// TestRunSocketDir starts a sidecar whose socket for an Envoy lies in
// a directory that another user owns, or may rename. That user could put a socket of its
// own there, which allows everything.
func TestRunSocketDir(t *testing.T) {
	testenv.Require(t, testenv.Superuser())
	const other = 54321
	own := func(path string) error { return os.Chown(path, other, other) }
	for name, test := range map[string]struct {
		prepare func(parent string) error // of the socket's directory, which is parent/run
		atFault string                    // below the test's directory; "" if the start succeeds
	}{
		"root's": {prepare: func(parent string) error { return os.MkdirAll(parent+"/run", 0o755) }},
		"another's": { // of mode 0755
			prepare: func(parent string) error { return errors.Join(os.MkdirAll(parent+"/run", 0o755), own(parent+"/run")) },
			atFault: "parent/run",
		},
		"renamable": { // by the owner of its parent
			prepare: func(parent string) error { return errors.Join(os.MkdirAll(parent+"/run", 0o755), own(parent)) },
			atFault: "parent",
		},
		"in open": { // others may write to its parent
			prepare: func(parent string) error {
				return errors.Join(os.MkdirAll(parent+"/run", 0o755), os.Chmod(parent, 0o777))
			},
			atFault: "parent",
		},
	} {
		for kind, listen := range map[string]string{
			"ext_authz": "  listen: {proxy: \"127.0.0.1:0\", extAuthz: \"unix:%s/s\"}\n",
			"Envoy":     "  listen: {proxy: \"127.0.0.1:0\"}\n  envoy: {dir: \"%s\", explicit: \"127.0.0.1:15999\"}\n",
		} {
			t.Run(kind+", "+name, func(t *testing.T) {
				h := newHost(t, "weather")
				parent := h.File("parent")
				testenv.Must(t, test.prepare(parent))
				spec := strings.Replace(h.Read("weather/sidecar.yaml"), "  listen: {extAuthz: \"unix:envoy/s\"}\n", fmt.Sprintf(listen, parent+"/run"), 1)
				h.Write("weather/sidecar.yaml", spec)
				r := h.Chaperone("run", "--config", h.config("weather"), "--", "echo", "started")
				if test.atFault == "" {
					if r.Status != 0 || r.Stdout != "started\n" {
						t.Errorf("got status %d, %q, want 0 and started\n%s", r.Status, r.Stdout, r.Stderr)
					}
					return
				}
				want := filepath.Join(h.Dir, test.atFault)
				if r.Status != exitSidecar || r.Stdout != "" || !strings.Contains(r.Stderr, want+" ") {
					t.Errorf("got status %d, %q, want %d and an error that names %s\n%s", r.Status, r.Stdout, exitSidecar, want, r.Stderr)
				}
				for _, left := range []string{"s", "xds.sock", "check.sock"} {
					if _, err := os.Lstat(filepath.Join(parent, "run", left)); err == nil {
						t.Errorf("got the socket %s in a directory that is refused", left)
					}
				}
			})
		}
	}
}
