package main

import (
	"fmt"
	"io"
	"net/http"
	"os"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/chaperone-proxy/chaperone/authz"
	"github.com/chaperone-proxy/chaperone/internal/testenv"
	"github.com/chaperone-proxy/chaperone/internal/testenv/scenario"
)

// serveMetrics has the sidecar serve its metrics and returns where.
func (w *env) serveMetrics() (url string) {
	w.T.Helper()
	port := testenv.FreePort(w.T)
	w.Write("sidecar.yaml", strings.Replace(w.Read("sidecar.yaml"), `metrics: "127.0.0.1:0"`, fmt.Sprintf(`metrics: "127.0.0.1:%d"`, port), 1))
	return fmt.Sprintf("http://127.0.0.1:%d/metrics", port)
}

// scrape returns the value of each series.
func scrape(t *testing.T, url string) map[string]float64 {
	t.Helper()
	answer, err := http.Get(url)
	if err != nil {
		return nil
	}
	defer answer.Body.Close()
	out := map[string]float64{}
	for line := range strings.Lines(string(testenv.MustGet(io.ReadAll(answer.Body))(t))) {
		if found := regexp.MustCompile(`^(chaperone_.+) (\S+)\n$`).FindStringSubmatch(line); found != nil {
			out[found[1]] = testenv.MustGet(strconv.ParseFloat(found[2], 64))(t)
		}
	}
	return out
}

// TestRunProbes has a plugin do what C libraries do by themselves: it is refused,
// recorded and counted, and no refusal of the plugin's.
func TestRunProbes(t *testing.T) {
	w := newEnv(t, "required", "")
	// In a view of its own the sockets of the host's services are not there at all.
	spec := string(testenv.MustGet(os.ReadFile(w.File("sidecar.yaml")))(t))
	w.Write("sidecar.yaml", strings.Replace(spec, "  drain:", "  process: {view: host}\n  drain:", 1))
	metrics := w.serveMetrics()
	b := w.Start("python3", "-c", `
import os, socket, sys, time
for _ in range(3):
    for path in sys.argv[1:]:
        for kind in socket.SOCK_STREAM, socket.SOCK_DGRAM:
            s = socket.socket(socket.AF_UNIX, kind)
            try: s.connect(path)
            except OSError as e: pass
            else: print("CONNECTED", path)
            s.close()
    for name in ("_grpc_config.`+scenario.Host+`", "_https._tcp.`+scenario.Host+`"):
        try: socket.getaddrinfo(name, 443)
        except OSError: pass
print("done", flush=True)
time.sleep(60)
`, "/run/nscd/socket", "/run/systemd/userdb/io.systemd.DynamicUser", "/run/systemd/resolve/io.systemd.Resolve", "/var/lib/sss/pipes/nss",
		"/run/dbus/system_bus_socket", "/run/systemd/journal/socket", "/run/docker.sock")
	testenv.Eventually(t, "the plugin is done", func() (int, bool) { return 0, strings.Contains(b.Output.String(), "done") })
	series := testenv.Eventually(t, "the probes are counted", func() (map[string]float64, bool) {
		m := scrape(t, metrics)
		return m, m[`chaperone_probes_total{probe="syslog"}`] >= 6 && m[`chaperone_probes_total{probe="service"}`] >= 2
	})
	output := b.Output.String()
	if strings.Contains(output, "CONNECTED") {
		t.Errorf("got a probe of a library allowed:\n%s", output)
	}
	scenario.Contains(t, output, "unix:/run/docker.sock")
	for _, quiet := range []string{"nscd", "userdb", "resolve", "sss", "dbus", "journal", "_grpc_config", "_https"} {
		if strings.Contains(output, quiet) {
			t.Errorf("%s is printed as a refusal:\n%s", quiet, output)
		}
	}
	for _, probe := range []authz.Probe{authz.ProbeNSCD, authz.ProbeUserDB, authz.ProbeResolve, authz.ProbeNSS, authz.ProbeDBus, authz.ProbeSyslog} {
		if got := series[fmt.Sprintf("chaperone_probes_total{probe=%q}", probe)]; got < 6 {
			t.Errorf("%s: %.0f probes are counted, not at least 6", probe, got)
		}
	}
	// The only refusals are of the socket that is no library's.
	refused := series[`chaperone_decisions_total{door="kernel",plugin="weather",reason="destination_not_granted"}`]
	if refused < 1 || refused > 6 {
		t.Errorf("%.0f refusals are counted, not those of one socket", refused)
	}
	denied := w.Chaperone("audit", "query", "--config", w.File("sidecar.yaml"), "--denied").Stdout
	if id := regexp.MustCompile(`"decision":"([0-9a-f-]{36})"[^\n]*docker.sock`).FindStringSubmatch(denied); id == nil {
		t.Errorf("the refusal has no id:\n%s", denied)
	} else {
		scenario.Contains(t, w.Chaperone("explain", "--config", w.File("sidecar.yaml"), id[1]).Stdout, "no grant names this Unix socket")
	}
	if strings.Contains(denied, "userdb") || strings.Contains(denied, "_grpc_config") {
		t.Errorf("probes are among the refusals:\n%s", denied)
	}
	scenario.Contains(t, w.Chaperone("audit", "query", "--config", w.File("sidecar.yaml"), "--kind", "probe").Stdout,
		"/run/systemd/userdb/io.systemd.DynamicUser", "/run/systemd/journal/socket", `"host":"_grpc_config.`+scenario.Host)
	scenario.Contains(t, w.Chaperone("usage", "--config", w.File("sidecar.yaml")).Stdout, "probes of libraries, refused")
}

// TestFiguresAtZero has each series with known labels exist before its first event.
func TestFiguresAtZero(t *testing.T) {
	w := newEnv(t, "required", "  limits: {connections: 60/1m, sentBytes: 50MiB/1m, requests: 5/1h}\n")
	metrics := w.serveMetrics()
	listen := testenv.FreePort(t)
	w.Write("sidecar.yaml", w.Read("sidecar.yaml")+fmt.Sprintf("  process: {listen: [%d]}\n", listen))
	w.Start("sleep", "60")
	series := testenv.Eventually(t, "the sidecar is ready", func() (map[string]float64, bool) {
		m := scrape(t, metrics)
		return m, m["chaperone_ready"] == 1 && m[`chaperone_plugin_starts_total{result="ok"}`] == 1
	})
	want := map[string]float64{
		`chaperone_limit_crossings_total{limit="weather connections"}`:                             0,
		`chaperone_limit_crossings_total{limit="weather sentBytes"}`:                               0,
		`chaperone_limit_crossings_total{limit="weather requests"}`:                                0,
		`chaperone_plugin_starts_total{result="error"}`:                                            0,
		`chaperone_vault_errors_total{code="403"}`:                                                 0,
		`chaperone_vault_errors_total{code="network"}`:                                             0,
		`chaperone_request_duration_seconds_count{rule="weather/api"}`:                             0,
		`chaperone_plugin_connections_total{verdict="refused"}`:                                    0,
		`chaperone_plugin_connections_total{verdict="probe"}`:                                      0,
		`chaperone_revoked{level="pause"}`:                                                         0,
		`chaperone_revoked{level="quarantine"}`:                                                    0,
		`chaperone_revoked{level="halt"}`:                                                          0,
		`chaperone_rules_revoked`:                                                                  0,
		`chaperone_observing`:                                                                      0,
		`chaperone_restart_pending`:                                                                0,
		`chaperone_kernel_attached{mode="required"}`:                                               1,
		fmt.Sprintf(`chaperone_inbound_connections_total{port="%d",result="unreachable"}`, listen): 0,
		fmt.Sprintf(`chaperone_inbound_bytes_total{direction="sent",port="%d"}`, listen):           0,
	}
	for _, reason := range authz.Reasons() {
		for _, door := range []string{"proxy", "kernel"} {
			if reason.Allowed() {
				continue
			}
			want[fmt.Sprintf(`chaperone_decisions_total{door=%q,plugin="weather",reason=%q}`, door, reason)] = 0
		}
	}
	for _, probe := range authz.Probes() {
		if _, ok := series[fmt.Sprintf("chaperone_probes_total{probe=%q}", probe)]; !ok {
			t.Errorf("no series of probe %s", probe)
		}
	}
	for name, value := range want {
		if got, ok := series[name]; !ok || got != value {
			t.Errorf("%s: got %.0f (%v), want %.0f", name, got, ok, value)
		}
	}
	if end := series[`chaperone_grant_expiry_timestamp_seconds{grant="weather"}`]; end < float64(time.Now().Unix()) {
		t.Errorf("the grant's end is %.0f", end)
	}
	found := false
	for name := range series {
		found = found || strings.HasPrefix(name, "chaperone_build_info{goversion=\"go1")
	}
	if !found {
		t.Error("chaperone_build_info is missing")
	}
	w.Revoke("--level", "pause")
	if got := scrape(t, metrics)[`chaperone_revoked{level="pause"}`]; got != 1 {
		t.Errorf("after a pause chaperone_revoked is %.0f", got)
	}
}

func TestHumanSize(t *testing.T) {
	for n, want := range map[uint64]string{0: "0B", 1023: "1023B", 1024: "1KiB", 52_428_800: "50MiB", 1_992_294: "1.8MiB", 1 << 40: "1TiB", 1<<30 - 1: "1023.9MiB"} {
		if got := humanSize(n); got != want {
			t.Errorf("%d is %s, want %s", n, got, want)
		}
	}
}
