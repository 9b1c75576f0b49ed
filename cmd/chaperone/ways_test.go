package main

import (
	"errors"
	"fmt"
	"os/exec"
	"strings"
	"testing"

	"github.com/chaperone-proxy/chaperone/internal/testenv/scenario"
)

// TestRunTransparent runs programs that know of no proxy: what they dial is
// redirected, and known by the name that their resolver gave out.
func TestRunTransparent(t *testing.T) {
	for _, network := range []string{"own", "host"} {
		t.Run("network "+network, func(t *testing.T) {
			w := newEnv(t, "required", "")
			w.Write("sidecar.yaml", w.Read("sidecar.yaml")+"  process: {network: "+network+"}\n")
			for _, c := range []struct {
				name    string
				program []string
				wants   string
			}{
				{"granted", []string{"curl", "--noproxy", "*", "-sS", "-o", "/dev/null", "-w", "%{http_code} %{remote_ip}", w.URL("/v1/forecast")}, "240.0.0."},
				{"HTTP/1.1", []string{"curl", "--http1.1", "--noproxy", "*", "-sS", "-o", "/dev/null", "-w", "%{http_code}", w.URL("/v1/forecast")}, "200"},
				{"refused in words", []string{"curl", "--noproxy", "*", "-sS", "-X", "DELETE", w.URL("/v1/forecast")}, "method_not_granted"},
				{"a name that is not granted", []string{"curl", "--noproxy", "*", "-sS", "-w", "%{exitcode}", "https://evil.example/"}, "6"},
				{"Python", []string{"python3", "-c", fmt.Sprintf(`
import urllib.request as u
print(u.build_opener(u.ProxyHandler({})).open(%q).status)`, w.URL("/v1/forecast"))}, "200"},
			} {
				if r := w.Run(c.program...); !strings.Contains(r.Stdout, c.wants) {
					t.Errorf("%s: %q is missing in %q\n%s", c.name, c.wants, r.Stdout, r.Stderr)
				}
			}
			scenario.Contains(t, w.audit(), `"reason":"destination_not_granted"`, "evil.example")
			if got := w.API.Requests()[0].Header.Get("Authorization"); got != "Bearer "+w.API.Token() {
				t.Errorf("the API received %q", got)
			}
		})
	}
}

// TestRunHostNetwork checks that on the host's network the programs alone are
// the wall: its loopback is not the plugin's.
func TestRunHostNetwork(t *testing.T) {
	w := newEnv(t, "required", "")
	w.Write("sidecar.yaml", w.Read("sidecar.yaml")+"  process: {network: host}\n")
	r := w.Run("curl", "--noproxy", "*", "-sS", "-k", "-m", "5", "-w", "%{http_code}", w.API.URL("localhost", "/open"))
	if strings.HasSuffix(r.Stdout, "200") || w.API.Total() != 0 {
		t.Errorf("the host's loopback was reached: %s%s", r.Stdout, r.Stderr)
	}
}

// TestServeCgroup protects processes that the sidecar did not start.
func TestServeCgroup(t *testing.T) {
	w := newEnv(t, "required", "")
	g := w.Cgroup()
	g.Protect()
	proxy := "http://" + scenario.Address(w.Ready(), "proxy")
	inside := func(program ...string) string {
		out, err := g.Command(program...).CombinedOutput()
		var exit *exec.ExitError
		if err != nil && !errors.As(err, &exit) {
			t.Fatal(err)
		}
		return string(out)
	}
	if out := inside("curl", "-sS", "-k", "-x", proxy, "-w", "%{http_code}", w.URL("/v1/forecast")); !strings.HasSuffix(out, "200") {
		t.Errorf("through the proxy: %s", out)
	}
	before := w.API.Total()
	if out := inside("curl", "--noproxy", "*", "-sS", "-k", "-m", "5", w.API.URL("localhost", "/open")); w.API.Total() != before {
		t.Errorf("past the proxy: %s", out)
	}
}
