package proxy_test

import (
	"bytes"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/chaperone-proxy/chaperone/authz"
	"github.com/chaperone-proxy/chaperone/internal/testenv"
	"github.com/chaperone-proxy/chaperone/proxy"
)

// run runs a program as a plugin would be run, and returns what it printed.
func (w *world) run(t *testing.T, program string, args ...string) (stdout, stderr string, err error) {
	t.Helper()
	bundle := filepath.Join(t.TempDir(), "ca.pem")
	testenv.Must(t, os.WriteFile(bundle, w.proxy.CAPool(), 0o600))
	cmd := exec.CommandContext(t.Context(), program, args...)
	var out, errOut bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errOut
	url := "http://chaperone:proxy-token@" + w.addr.String()
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + t.TempDir(), "PYENV_ROOT=" + os.Getenv("PYENV_ROOT")}
	for _, name := range []string{"HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"} {
		cmd.Env = append(cmd.Env, name+"="+url)
	}
	for _, name := range []string{"SSL_CERT_FILE", "CURL_CA_BUNDLE"} {
		cmd.Env = append(cmd.Env, name+"="+bundle)
	}
	err = cmd.Run()
	return out.String(), errOut.String(), err
}

// TestRealClients runs programs that find the proxy through their environment only.
func TestRealClients(t *testing.T) {
	api := upstream(t, testenv.UpstreamConfig{})
	plain := upstream(t, testenv.UpstreamConfig{Plain: true})
	plainRule := rule(plain, "plain", "other.weather.example")
	plainRule.To.Scheme, plainRule.To.TLS, plainRule.Insecure = authz.SchemeHTTP, authz.TLS{}, true
	read := rule(api, "read", "api.weather.example", "127.0.0.1")
	read.Methods = []string{"GET", "POST"}
	w := newWorld(t, setup{input: granted(read, plainRule), config: func(c *proxy.Config) {
		c.Identify, c.Token = nil, authz.NewSecret("proxy-token")
		c.Upstream.Forbidden = func(netip.AddrPort) bool { return false }
	}})
	good, http, address := api.URL("api.weather.example", "/echo"), plain.URL("other.weather.example", "/echo"), api.URL("127.0.0.1", "/echo")
	python := func(code string) []string { return []string{"-c", code} }
	for _, test := range []struct {
		name, program string
		args          []string
		want, wantErr string // wantErr: the program fails and prints this
	}{
		{"curl", "curl", []string{"-sS", "-w", " %{http_code}", good}, `"method":"GET"`, ""},
		{"curl over HTTP/1.1", "curl", []string{"-sS", "--http1.1", "-d", "body", good}, `"body":"body"`, ""},
		{"curl to an address", "curl", []string{"-sS", address}, `"method":"GET"`, ""},
		{"curl without TLS", "curl", []string{"-sS", http}, `"method":"GET"`, ""},
		{"curl asking for h2c", "curl", []string{"-sS", "--http2", http}, `"method":"GET"`, ""},
		{"curl, a large body", "curl", []string{"-sS", "-H", "Expect: 100-continue", "--data-binary", "@/proc/self/exe", "-o", "/dev/null", "-w", "%{http_code}", good}, "200", ""},
		{"curl, a method that is refused", "curl", []string{"-sS", "-X", "DELETE", good}, "ask for methods", ""},
		{"curl, a host that is refused", "curl", []string{"-sS", "https://evil.example/"}, "", "response 403"},
		{"python", "python3", python("import urllib.request; print(urllib.request.urlopen('" + good + "').read().decode())"), `"method":"GET"`, ""},
		{"python, a host that is refused", "python3", python("import urllib.request; urllib.request.urlopen('https://evil.example/')"), "", "403 Forbidden"},
	} {
		t.Run(test.name, func(t *testing.T) {
			testenv.Require(t, testenv.Program(test.program))
			stdout, stderr, err := w.run(t, test.program, test.args...)
			if (err != nil) != (test.wantErr != "") || !strings.Contains(stdout, test.want) || !strings.Contains(stderr, test.wantErr) {
				t.Errorf("%s: %v\n%s\n%s", test.program, err, stdout, stderr)
			}
			if all := fmt.Sprint(stdout, stderr); strings.Contains(all, apiKey) {
				t.Errorf("the credential was printed: %s", all)
			}
		})
	}
}
