package main

import (
	"fmt"
	"io"
	"net/http"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"github.com/chaperone-proxy/chaperone/internal/testenv"
)

// TestRunFigures checks that what the kernel counts is shown, in all and by rule.
func TestRunFigures(t *testing.T) {
	w := newEnv(t, "required", "")
	port := testenv.FreePort(t)
	w.Write("sidecar.yaml", strings.Replace(w.Read("sidecar.yaml"), `metrics: "127.0.0.1:0"`, fmt.Sprintf(`metrics: "127.0.0.1:%d"`, port), 1))
	const body = 800_000 // the API reads no more than a MiB
	w.Start("sh", "-c", fmt.Sprintf(`head -c %d /dev/zero | curl --noproxy '*' -sS -o /dev/null --data-binary @- %s; sleep 60`, body, w.URL("/v1/forecast")))
	var text string
	figure := func(series string) float64 {
		found := regexp.MustCompile(`(?m)^` + regexp.QuoteMeta(series) + ` (\S+)$`).FindStringSubmatch(text)
		if found == nil {
			return -1
		}
		return testenv.MustGet(strconv.ParseFloat(found[1], 64))(t)
	}
	testenv.Eventually(t, "the upload is counted for its rule", func() (int, bool) {
		answer, err := http.Get(fmt.Sprintf("http://127.0.0.1:%d/metrics", port))
		if err != nil {
			return 0, false
		}
		defer answer.Body.Close()
		text = string(testenv.MustGet(io.ReadAll(answer.Body))(t))
		return 0, figure(`chaperone_plugin_network_bytes_total{direction="sent"}`) > body
	})
	all, ofRule := figure(`chaperone_plugin_network_bytes_total{direction="sent"}`), figure(`chaperone_rule_network_bytes_total{direction="sent",rule="weather/api"}`)
	if ofRule < 0.7*body || ofRule >= all || all > 1.2*body { // bytes before the decision belong to no rule
		t.Errorf("%.0f bytes were sent, %.0f of them for the rule, and the body has %d", all, ofRule, body)
	}
	for series, least := range map[string]float64{
		`chaperone_plugin_network_packets_total{direction="sent"}`:                      1,
		`chaperone_rule_network_packets_total{direction="received",rule="weather/api"}`: 1,
		`chaperone_plugin_dns_queries_total{transport="udp"}`:                           1,
		`chaperone_plugin_dns_queries_total{transport="tcp"}`:                           0,
		`chaperone_plugin_processes_total`:                                              2, // head and curl
		`chaperone_plugin_connections_total{verdict="redirected"}`:                      1,
		`chaperone_plugin_connections_total{verdict="limited"}`:                         0,
		`chaperone_kernel_unmediated_total`:                                             0,
	} {
		if got := figure(series); got < least {
			t.Errorf("%s is %.0f, not at least %.0f", series, got, least)
		}
	}
}
