package envoy

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/chaperone-proxy/chaperone/internal/testenv"
	"github.com/chaperone-proxy/chaperone/internal/testenv/scenario"
)

// envoyPrograms are programs as plugins have them, each of which speaks to a proxy
// in a way of its own. Each prints its name and the status that it got.
const envoyPrograms = `
https=$0 plain=$1 refused=$2; host=${https#https://}; host=${host%%/*}; proxy=${HTTPS_PROXY#http://}; proxy=${proxy##*@}
until curl -sS -f -o /dev/null "$https" 2>/dev/null; do sleep 0.1; done
python3 - "$https" "$plain" "$refused" <<'EOF'
import sys, urllib.error, urllib.request
def status(url):
    try: return urllib.request.urlopen(url, timeout=20).status
    except urllib.error.HTTPError as e: return e.code
    except OSError as e: return e
print("urllib https", status(sys.argv[1])); print("urllib http", status(sys.argv[2])); print("urllib refused", status(sys.argv[3]))
import http.client, os, ssl
from urllib.parse import urlsplit
u, p = urlsplit(sys.argv[1]), urlsplit(os.environ["HTTPS_PROXY"])
c = http.client.HTTPSConnection(p.hostname, p.port, timeout=20); c.set_tunnel(u.hostname, u.port); c.request("GET", u.path); print("http.client", c.getresponse().status)
EOF
curl -sS -o /dev/null -w 'curl %{http_code}\n' "$https"
curl -sS -o /dev/null -w 'curl --proxy1.0 %{http_code}\n' --proxy1.0 "$proxy" "$https"
curl -sS -o /dev/null -w 'curl -p %{http_code}\n' -p "$plain"
curl -sS -o /dev/null -w 'curl underscore %{http_code}\n' -H 'sentry_trace: 1' "$plain"
curl -sS -o /dev/null -w 'curl dot %{http_code}\n' "$(printf %s "$https" | sed 's/example/example./')"
printf 'GET /v1/forecast HTTP/1.1\r\nHost: %s\r\nConnection: close\r\n\r\n' "$host" |
	openssl s_client -quiet -proxy "$proxy" -connect "$host" -servername "${host%:*}" -CAfile "$SSL_CERT_FILE" -verify_return_error 2>/dev/null | sed -n 's/^HTTP.1.1 \([0-9]*\).*/openssl \1/p'
node -e '
const http = require("http"), tls = require("tls"), u = new URL(process.argv[1]), plain = new URL(process.argv[2]), p = new URL(process.env.HTTPS_PROXY);
http.get({host: p.hostname, port: p.port, path: plain.href, headers: {host: plain.host}}, r => { console.log("node http.get", r.statusCode); r.resume() });
const tunnel = (to, done) => http.request({host: p.hostname, port: p.port, method: "CONNECT", path: to}).on("connect", (r, s) => r.statusCode == 200 ? done(s) : console.log("node CONNECT", to, r.statusCode)).end();
tunnel(u.host, s => http.get({createConnection: () => tls.connect({socket: s, servername: u.hostname}), path: u.pathname, headers: {host: u.host}}, r => { console.log("node https", r.statusCode); r.resume(); s.end() }));
tunnel(plain.host, s => http.get({createConnection: () => s, path: plain.pathname, headers: {host: plain.host}}, r => { console.log("node http in a tunnel", r.statusCode); r.resume(); s.end() }));
' "$https" "$plain"
`

// TestProgramsBehindEnvoy runs programs as the plugin, in the environment that run
// makes for them.
func TestProgramsBehindEnvoy(t *testing.T) {
	testenv.Require(t, testenv.Program("openssl"), testenv.Program("node"))
	e := newEnv(t, "required")
	web := testenv.MustUpstream(t, testenv.UpstreamConfig{Plain: true})
	e.grantRules(time.Now().Add(time.Hour), envoyRules+fmt.Sprintf(
		`  - {id: web, reason: Tests, to: {scheme: http, hosts: [%s], ports: [%d], addresses: [127.0.0.1/32]}, methods: [GET], paths: [/open]}
`, scenario.Host, web.Addr.Port()))
	b := e.Start("sh", "-c", envoyPrograms, e.URL("/v1/forecast"), "http://"+scenario.Host+":"+fmt.Sprint(web.Addr.Port())+"/open", "https://new.weather.example/")
	e.Ready()
	e.startEnvoy()
	select {
	case <-b.Ended:
	case <-time.After(2 * time.Minute):
	}
	out := b.Output.String()
	for _, want := range []string{
		"urllib https 200", "urllib http 200", "urllib refused Tunnel connection failed: 403", "http.client 200", "curl 200", "curl --proxy1.0 200", "curl -p 200",
		"curl underscore 200", "curl dot 200", "openssl 200", "node http.get 200", "node https 200", "node http in a tunnel 200",
	} {
		if !strings.Contains(strings.ReplaceAll(out, "<urlopen error ", ""), want) {
			t.Errorf("no %q in:\n%s", want, out)
		}
	}
	log := e.Read("state/audit.jsonl")
	scenario.Contains(t, log, `"scheme":"http"`, `"host":"new.weather.example"`)
}
