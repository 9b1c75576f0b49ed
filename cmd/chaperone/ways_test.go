package main

import (
	"errors"
	"fmt"
	"os/exec"
	"strings"
	"testing"
)

// TestRunTransparent runs programs that know of no proxy: what they dial is
// redirected, and known by the name that their resolver gave out.
func TestRunTransparent(t *testing.T) {
	for _, network := range []string{"own", "host"} {
		t.Run("network "+network, func(t *testing.T) {
			w := newWorld(t, "required", "")
			w.write("sidecar.yaml", w.read("sidecar.yaml")+"  process: {network: "+network+"}\n")
			for _, c := range []struct {
				name    string
				program []string
				wants   string
			}{
				{"granted", []string{"curl", "--noproxy", "*", "-sS", "-o", "/dev/null", "-w", "%{http_code} %{remote_ip}", w.url("/v1/forecast")}, "240.0.0."},
				{"HTTP/1.1", []string{"curl", "--http1.1", "--noproxy", "*", "-sS", "-o", "/dev/null", "-w", "%{http_code}", w.url("/v1/forecast")}, "200"},
				{"refused in words", []string{"curl", "--noproxy", "*", "-sS", "-X", "DELETE", w.url("/v1/forecast")}, "method_not_granted"},
				{"a name that is not granted", []string{"curl", "--noproxy", "*", "-sS", "-w", "%{exitcode}", "https://evil.example/"}, "6"},
				{"Python", []string{"python3", "-c", fmt.Sprintf(`
import urllib.request as u
print(u.build_opener(u.ProxyHandler({})).open(%q).status)`, w.url("/v1/forecast"))}, "200"},
			} {
				if r := w.run(c.program...); !strings.Contains(r.stdout, c.wants) {
					t.Errorf("%s: %q is missing in %q\n%s", c.name, c.wants, r.stdout, r.stderr)
				}
			}
			contains(t, w.audit(), `"reason":"destination_not_granted"`, "evil.example")
			if got := w.api.Requests()[0].Header.Get("Authorization"); got != "Bearer "+w.api.Token() {
				t.Errorf("the API received %q", got)
			}
		})
	}
}

// TestRunHostNetwork checks that on the host's network the programs alone are
// the wall: its loopback is not the plugin's.
func TestRunHostNetwork(t *testing.T) {
	w := newWorld(t, "required", "")
	w.write("sidecar.yaml", w.read("sidecar.yaml")+"  process: {network: host}\n")
	r := w.run("curl", "--noproxy", "*", "-sS", "-k", "-m", "5", "-w", "%{http_code}", w.api.URL("localhost", "/open"))
	if strings.HasSuffix(r.stdout, "200") || w.api.Total() != 0 {
		t.Errorf("the host's loopback was reached: %s%s", r.stdout, r.stderr)
	}
}

// TestServeCgroup protects processes that the sidecar did not start.
func TestServeCgroup(t *testing.T) {
	w := newWorld(t, "required", "")
	g := w.group()
	g.protect()
	proxy := "http://" + door(w.ready(), "proxy")
	inside := func(program ...string) string {
		out, err := g.command(program...).CombinedOutput()
		var exit *exec.ExitError
		if err != nil && !errors.As(err, &exit) {
			t.Fatal(err)
		}
		return string(out)
	}
	if out := inside("curl", "-sS", "-k", "-x", proxy, "-w", "%{http_code}", w.url("/v1/forecast")); !strings.HasSuffix(out, "200") {
		t.Errorf("through the proxy: %s", out)
	}
	before := w.api.Total()
	if out := inside("curl", "--noproxy", "*", "-sS", "-k", "-m", "5", w.api.URL("localhost", "/open")); w.api.Total() != before {
		t.Errorf("past the proxy: %s", out)
	}
}
