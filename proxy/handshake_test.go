package proxy_test

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/chaperone-proxy/chaperone/authz"
	"github.com/chaperone-proxy/chaperone/internal/testenv"
	"github.com/chaperone-proxy/chaperone/proxy"
)

// handshakes returns a world and the records of its handshakes.
func handshakes(t *testing.T) (*world, *testenv.Upstream, chan authz.Record) {
	t.Helper()
	api := upstream(t, testenv.UpstreamConfig{})
	reported := make(chan authz.Record, 100)
	w := newWorld(t, setup{input: granted(rule(api, "read", "api.weather.example")), config: func(c *proxy.Config) {
		c.Identify, c.Token = nil, authz.NewSecret("proxy-token")
		c.Upstream.Forbidden = func(netip.AddrPort) bool { return false }
		c.Event = func(r *authz.Record) { reported <- *r }
	}})
	return w, api, reported
}

// one returns the only record.
func one(t *testing.T, reported chan authz.Record) authz.Record {
	t.Helper()
	select {
	case r := <-reported:
		select {
		case more := <-reported:
			t.Errorf("reported twice: %q, %q", r.Detail, more.Detail)
		case <-time.After(50 * time.Millisecond):
		}
		return r
	case <-time.After(2 * time.Minute):
		t.Fatal("got no record of the handshake")
		return authz.Record{}
	}
}

// noRecord checks that no handshake is recorded.
func noRecord(t *testing.T, reported chan authz.Record) {
	t.Helper()
	select {
	case r := <-reported:
		t.Errorf("reported: %q", r.Detail)
	case <-time.After(200 * time.Millisecond):
	}
}

// TestProgramsThatDoNotTrust runs real programs with their default trust store: each TLS
// library closes the connection in its own way.
func TestProgramsThatDoNotTrust(t *testing.T) {
	w, api, reported := handshakes(t)
	url := api.URL("api.weather.example", "/echo")
	hostPort := fmt.Sprintf("api.weather.example:%d", api.Addr.Port())
	empty := t.TempDir()
	node := fmt.Sprintf(`require('http').request({host: '127.0.0.1', port: %d, method: 'CONNECT', path: '%s', headers: {Host: '%[2]s', 'Proxy-Authorization': 'Basic Y2hhcGVyb25lOnByb3h5LXRva2Vu'}})
.on('connect', (r, socket) => require('tls').connect({socket, servername: 'api.weather.example'}, () => process.exit(0)).on('error', e => { console.error(e); process.exit(1) })).end()`, w.addr.Port(), hostPort)
	for i, test := range []struct {
		program string
		args    []string
	}{
		{"curl", []string{"-sS", url}},
		{"curl", []string{"-sS", "--http1.1", url}},
		{"curl", []string{"-sS", "--http1.1", "--tls-max", "1.2", url}},
		{"wget", []string{"-q", "-O", "-", "-t", "1", url}},
		{"python3", []string{"-c", "import urllib.request; urllib.request.urlopen('" + url + "')"}},
		{"node", []string{"-e", node}},
		{"openssl", []string{"s_client", "-proxy", w.addr.String(), "-proxy_user", "chaperone", "-proxy_pass", "pass:proxy-token", "-connect", hostPort, "-servername", "api.weather.example", "-verify_return_error", "-CApath", empty}},
	} {
		t.Run(fmt.Sprint(i, " ", test.program), func(t *testing.T) {
			testenv.Require(t, testenv.Program(test.program))
			cmd := exec.CommandContext(t.Context(), test.program, test.args...)
			proxyURL := "http://chaperone:proxy-token@" + w.addr.String()
			cmd.Env = []string{
				"PATH=" + os.Getenv("PATH"), "HOME=" + t.TempDir(), "PYENV_ROOT=" + os.Getenv("PYENV_ROOT"),
				"https_proxy=" + proxyURL, "HTTPS_PROXY=" + proxyURL,
			}
			out, err := cmd.CombinedOutput()
			if err == nil {
				t.Fatalf("%s trusts the sidecar:\n%s", test.program, out)
			}
			t.Logf("%s: %s", test.program, out)
			r := one(t, reported)
			if r.Kind != authz.KindHandshake || r.Host != "api.weather.example" || r.Port != api.Addr.Port() || r.Scheme != "https" ||
				!strings.Contains(r.Detail, "trust the sidecar's certificate") {
				t.Errorf("reported %+v", r)
			}
		})
	}
}

// connectTLS opens a tunnel and starts TLS in it.
func connectTLS(t *testing.T, w *world, api *testenv.Upstream, config *tls.Config) (*tls.Conn, error) {
	t.Helper()
	c := w.raw()
	c.write(fmt.Sprintf("CONNECT api.weather.example:%d HTTP/1.1\r\nHost: api.weather.example:%[1]d\r\nProxy-Authorization: Basic Y2hhcGVyb25lOnByb3h5LXRva2Vu\r\n\r\n", api.Addr.Port()))
	for {
		line, err := c.in.ReadString('\n')
		testenv.Must(t, err)
		if line == "\r\n" {
			break
		}
	}
	config.ServerName = "api.weather.example"
	inner := tls.Client(c.Conn, config)
	t.Cleanup(func() { _ = inner.Close() })
	return inner, inner.HandshakeContext(t.Context())
}

// TestHandshakesReported ends handshakes in every way: each is reported with its alert,
// as is a connection that is closed right after its handshake. A connection that is used,
// or kept for later, is not reported.
func TestHandshakesReported(t *testing.T) {
	w, api, reported := handshakes(t)
	for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
		for _, protocol := range []string{"http/1.1", "h2"} {
			t.Run(tls.VersionName(version)+" "+protocol, func(t *testing.T) {
				config := func() *tls.Config {
					return &tls.Config{MaxVersion: version, MinVersion: version, NextProtos: []string{protocol}}
				}
				distrusting := config()
				distrusting.RootCAs = x509.NewCertPool()
				if _, err := connectTLS(t, w, api, distrusting); err == nil {
					t.Fatal("the certificate is trusted")
				}
				if r := one(t, reported); !strings.Contains(r.Detail, "alert bad_certificate") {
					t.Errorf("an alert is reported as %q", r.Detail)
				}

				late := config()
				late.InsecureSkipVerify = true
				c, err := connectTLS(t, w, api, late)
				testenv.Must(t, err)
				testenv.Must(t, c.Close())
				if r := one(t, reported); !strings.Contains(r.Detail, "the program closed the connection") {
					t.Errorf("a close is reported as %q", r.Detail)
				}

				c, err = connectTLS(t, w, api, late)
				testenv.Must(t, err)
				testenv.Must(t, c.NetConn().(*net.TCPConn).SetLinger(0))
				testenv.Must(t, c.NetConn().Close())
				if r := one(t, reported); !strings.Contains(r.Detail, "the program closed the connection") {
					t.Errorf("a reset is reported as %q", r.Detail)
				}
			})
		}
	}
	t.Run("a request", func(t *testing.T) {
		c, err := connectTLS(t, w, api, &tls.Config{InsecureSkipVerify: true})
		testenv.Must(t, err)
		testenv.MustGet(c.Write([]byte("GET /echo HTTP/1.1\r\nHost: api.weather.example\r\nConnection: close\r\n\r\n")))(t)
		testenv.MustGet(c.Read(make([]byte, 1)))(t)
		testenv.Must(t, c.Close())
		noRecord(t, reported)
	})
	t.Run("an old program", func(t *testing.T) {
		if _, err := connectTLS(t, w, api, &tls.Config{MinVersion: tls.VersionTLS11, MaxVersion: tls.VersionTLS11}); err == nil {
			t.Fatal("TLS 1.1 is spoken")
		}
		if r := one(t, reported); !strings.Contains(r.Detail, "unsupported versions") {
			t.Errorf("reported as %q", r.Detail)
		}
	})
	t.Run("the sidecar ends it", func(t *testing.T) {
		_, err := connectTLS(t, w, api, &tls.Config{InsecureSkipVerify: true})
		testenv.Must(t, err)
		w.stop()
		noRecord(t, reported)
	})
}
