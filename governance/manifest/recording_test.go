package manifest

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/chaperone-proxy/chaperone/policy"
	"github.com/chaperone-proxy/chaperone/policy/learn"
)

// learned returns a draft of accesses.
func learned(t testing.TB, accesses ...string) *Draft {
	t.Helper()
	l := learn.New()
	for i, text := range accesses {
		req, err := policy.Request("weather", policy.ParseWords(text))
		if err != nil {
			t.Fatal(err)
		}
		l.Add(learn.Access{Request: req, Time: testNow.Add(time.Duration(i) * time.Second)})
	}
	p := l.Propose(learn.Terms{Plugin: "weather", Name: "weather", Now: testNow, NotAfter: testNow.Add(time.Hour)})
	return FromRecording(p, []string{"Left out: 3 accesses to \x1b[31m hosts"})
}

func TestFromRecording(t *testing.T) {
	var accesses []string
	for i := range 40 {
		accesses = append(accesses, fmt.Sprintf("GET https://api.weather.example/v1/forecast/%d", 1000+i))
	}
	accesses = append(accesses, "POST https://hooks.weather.example/e", "postgres://db.internal/shop SELECT * FROM public.orders")
	var text strings.Builder
	if err := learned(t, accesses...).YAML(&text); err != nil {
		t.Fatal(err)
	}
	if strings.Contains(text.String(), "\x1b") {
		t.Errorf("the draft has what a log held unescaped:\n%q", text.String())
	}
	f := loadDraft(t, text.String())
	if f.Plugin != "weather" || len(f.Spec.Permissions) != 3 || len(f.Spec.Credentials) != 1 || f.Spec.Credentials[0].Kind != "database" {
		t.Fatalf("the draft is\n%s", text.String())
	}
	for _, want := range []string{`paths: ["/v1/forecast/*"]`, "40 accesses, at most 40 in one minute.", `"/v1/forecast/*": * for`, `scheme: postgres, hosts: ["db.internal"]`, `verbs: ["select"]`, "# Not seen yet: ", `# Left out: 3 accesses to \u001b[31m hosts.`} {
		if !strings.Contains(text.String(), want) {
			t.Errorf("the draft has no %q:\n%s", want, text.String())
		}
	}
	// With what a person has to write, it asks for what was recorded and passes.
	done := strings.NewReplacer(`"TODO"`, `"written by a person"`, noDigest, "sha256:"+strings.Repeat("1", 64)).Replace(text.String())
	done = strings.Replace(done, `vendor: "written by a person"`, "vendor: acme.example", 1)
	file, err := Read("manifest.yaml", []byte(done))
	if err != nil {
		t.Fatal(err)
	}
	result := Check(t.Context(), Input{File: file, Now: testNow})
	for _, finding := range result.Findings {
		if finding.Level == LevelError {
			t.Errorf("%s", finding.Text())
		}
	}
}
