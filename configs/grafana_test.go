package configs

import (
	"encoding/json"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// dashboard is as much of a dashboard as the test looks at.
type dashboard struct {
	Panels []struct {
		ID      int    `json:"id"`
		Type    string `json:"type"`
		Title   string `json:"title"`
		GridPos struct{ H, W, X, Y int }
		Targets []struct {
			Expr         string `json:"expr"`
			LegendFormat string `json:"legendFormat"`
		} `json:"targets"`
	} `json:"panels"`
}

// TestDashboard keeps the dashboard to the metrics and labels that
// docs/metrics.md lists, and shows each of them.
func TestDashboard(t *testing.T) {
	metrics := documentedMetrics(t)
	data, err := os.ReadFile("grafana/chaperone.json")
	if err != nil {
		t.Fatal(err)
	}
	var d dashboard
	if err := json.Unmarshal(data, &d); err != nil {
		t.Fatal(err)
	}
	name, label := regexp.MustCompile(`chaperone_[a-z_]+`), regexp.MustCompile(`\{\{(\w+)\}\}`)
	used, ids := map[string]bool{}, map[int]bool{}
	for _, p := range d.Panels {
		if ids[p.ID] || p.GridPos.X+p.GridPos.W > 24 || p.Title == "" {
			t.Errorf("panel %d %q: its id, place or title is not right", p.ID, p.Title)
		}
		ids[p.ID] = true
		for _, target := range p.Targets {
			found := strings.TrimSuffix(name.FindString(target.Expr), "_bucket")
			labels, ok := metrics[found]
			if !ok {
				t.Errorf("panel %q asks for %q, which docs/metrics.md does not list", p.Title, found)
			}
			used[found] = true
			for _, l := range label.FindAllStringSubmatch(target.LegendFormat, -1) {
				if !slices.Contains(labels, l[1]) || !strings.Contains(target.Expr, l[1]) {
					t.Errorf("panel %q names label %s, which %s or its query does not have", p.Title, l[1], found)
				}
			}
			if strings.Count(target.Expr, "(") != strings.Count(target.Expr, ")") || strings.Count(target.Expr, "{") != strings.Count(target.Expr, "}") {
				t.Errorf("panel %q: unbalanced %s", p.Title, target.Expr)
			}
		}
	}
	for metric := range metrics {
		if !used[metric] {
			t.Errorf("no panel shows %s", metric)
		}
	}
}

// documentedMetrics returns the labels of each metric in docs/metrics.md.
func documentedMetrics(t *testing.T) map[string][]string {
	t.Helper()
	data, err := os.ReadFile("../docs/metrics.md")
	if err != nil {
		t.Fatal(err)
	}
	metrics := map[string][]string{}
	quoted := regexp.MustCompile("`([a-z_]+)`")
	for line := range strings.Lines(string(data)) {
		cells := strings.Split(line, "|")
		if len(cells) < 4 || !strings.Contains(cells[1], "`chaperone_") {
			continue
		}
		labels := []string{}
		for _, l := range quoted.FindAllStringSubmatch(cells[2], -1) {
			labels = append(labels, l[1])
		}
		metrics[quoted.FindStringSubmatch(cells[1])[1]] = labels
	}
	if len(metrics) < 10 {
		t.Fatalf("found %d metrics in docs/metrics.md", len(metrics))
	}
	return metrics
}
