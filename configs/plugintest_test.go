package configs

import (
	"path/filepath"
	"strings"
	"testing"
)

const minimalTest = `
apiVersion: chaperone.dev/v1alpha1
kind: PluginTest
metadata: {name: weather}
spec:
  grants: [weather.yaml]
  expect:
  - {allow: GET https://api.example/a, rule: weather/read, credential: ""}
  - deny: POST https://api.example/a
    reason: method_not_granted
`

// TestTestsAreNotPolicy: a folder of grants may hold PluginTests. They are checked, and
// grant nothing.
func TestTestsAreNotPolicy(t *testing.T) {
	dir := t.TempDir()
	write(t, filepath.Join(dir, "sidecar.yaml"), minimalSidecar)
	write(t, filepath.Join(dir, "grants", "weather.yaml"), minimalGrant)
	write(t, filepath.Join(dir, "grants", "weather_test.yaml"), minimalTest)
	c, err := Load(filepath.Join(dir, "sidecar.yaml"), now)
	if err != nil {
		t.Fatal(err)
	}
	if len(c.Grants) != 1 || len(c.Guardrails) != 0 || len(c.Warnings) != 0 {
		t.Errorf("Load = %d grants, %d guardrails, warnings %v; want 1 grant alone", len(c.Grants), len(c.Guardrails), c.Warnings)
	}
	checked, err := Check(now, filepath.Join(dir, "grants"))
	if err != nil || len(checked.Documents) != 2 || checked.Documents[1].Kind != KindTest {
		t.Errorf("Check = %+v, %v; want the grant and the test", checked.Documents, err)
	}
	write(t, filepath.Join(dir, "grants", "weather_test.yaml"), strings.Replace(minimalTest, "deny: POST", "dny: POST", 1))
	if _, err := Load(filepath.Join(dir, "sidecar.yaml"), now); err == nil || !strings.Contains(err.Error(), "weather_test.yaml:9:5: spec.expect[1].dny: is not a field here; did you mean deny?") {
		t.Errorf("Load = %v, want the place of the test's error", err)
	}
}

func TestLoadTests(t *testing.T) {
	dir := t.TempDir()
	write(t, filepath.Join(dir, "grants", "weather.yaml"), minimalGrant+"---"+minimalTest)
	write(t, filepath.Join(dir, "below", "more.yaml"), minimalTest)
	write(t, filepath.Join(dir, "below", "pod.yaml"), "apiVersion: v1\nkind: Pod\n")
	write(t, filepath.Join(dir, "below", "none.yaml"), "a: 1\n")
	got, err := LoadTests(now, dir, filepath.Join(dir, "below", "more.yaml"))
	if err != nil || len(got) != 2 {
		t.Fatalf("LoadTests = %v, %v; want 2 tests", got, err)
	}
	if line, column := got[0].Position(1); line != 9 || column != 5 {
		t.Errorf("the second expectation is at %d:%d, want 9:5", line, column)
	}
	write(t, filepath.Join(dir, "windows.yaml"), strings.ReplaceAll("# A comment.\n"+minimalTest, "\n", "\r\n"))
	if windows, err := LoadTests(now, filepath.Join(dir, "windows.yaml")); err != nil || len(windows) != 1 {
		t.Errorf("LoadTests = %v, %v; want 1 test", windows, err)
	} else if line, column := windows[0].Position(1); line != 10 || column != 5 {
		t.Errorf("with line ends of Windows the second expectation is at %d:%d, want 10:5", line, column)
	}
	if want := filepath.Join(dir, "below", "weather.yaml"); got[0].Beside("weather.yaml") != want {
		t.Errorf("weather.yaml beside the test is %s, want %s", got[0].Beside("weather.yaml"), want)
	}
	for name, want := range map[string]string{"grants/none": "does not exist", "below/pod.yaml": "holds no PluginTest in 1 file; write a document of kind: PluginTest"} {
		if _, err := LoadTests(now, filepath.Join(dir, name)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("LoadTests(%s) = %v, want: %s", name, err, want)
		}
	}
	write(t, filepath.Join(dir, "below", "slip.yaml"), strings.Replace(minimalTest, "PluginTest", "PluginTst", 1))
	if _, err := LoadTests(now, dir); err == nil || !strings.Contains(err.Error(), `"PluginTst" is not known`) {
		t.Errorf("LoadTests = %v, want the kind that is misspelt", err)
	}
}
