package configs

import (
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/chaperone-proxy/chaperone/internal/testenv"
)

// TestAlerts has promtool check and prove the alerts, and keeps them to the
// metrics and runbooks that the documentation lists.
func TestAlerts(t *testing.T) {
	testenv.Require(t, testenv.Program("promtool"))
	for _, args := range [][]string{{"check", "rules", "chaperone.rules.yaml"}, {"test", "rules", "chaperone.rules.test.yaml"}} {
		cmd := exec.CommandContext(t.Context(), "promtool", args...)
		cmd.Dir = "prometheus"
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Errorf("promtool %v: %v\n%s", args, err, out)
		}
	}
}

// TestAlertsAreDocumented keeps the alerts to the metrics of docs/metrics.md, and
// has a test and a runbook for each.
func TestAlertsAreDocumented(t *testing.T) {
	read := func(file string) string {
		data, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		return string(data)
	}
	rules, tests, runbooks := read("prometheus/chaperone.rules.yaml"), read("prometheus/chaperone.rules.test.yaml"), read("../docs/alerts.md")
	metrics := documentedMetrics(t)
	for _, name := range regexp.MustCompile(`chaperone_[a-z_]+`).FindAllString(rules, -1) {
		if _, ok := metrics[name]; !ok {
			t.Errorf("an alert asks for %s, which docs/metrics.md does not list", name)
		}
	}
	var alerts []string
	for _, found := range regexp.MustCompile(`(?m)^  - alert: (\w+)$`).FindAllStringSubmatch(rules, -1) {
		alert := found[1]
		if slices.Contains(alerts, alert) {
			t.Errorf("two alerts are called %s", alert)
		}
		alerts = append(alerts, alert)
		if !strings.Contains(tests, "alertname: "+alert+"\n") {
			t.Errorf("%s: no test", alert)
		}
		if !strings.Contains(runbooks, "## "+alert+"\n") || !strings.Contains(rules, "docs/alerts.md#"+strings.ToLower(alert)+"\n") {
			t.Errorf("%s: no runbook in docs/alerts.md, or its annotation does not name it", alert)
		}
	}
	if len(alerts) < 15 {
		t.Errorf("found %d alerts", len(alerts))
	}
}
