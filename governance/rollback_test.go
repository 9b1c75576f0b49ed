package governance

import (
	"strings"
	"testing"

	"github.com/chaperone-proxy/chaperone/governance/grantcheck"
)

// TestGrantPutBack: somebody who may write files removes the grant in force, or puts an older
// one back, so that the next grant would follow it.
func TestGrantPutBack(t *testing.T) {
	f := newFixture(t)
	issue := func() []byte {
		f.compose()
		f.approve("security", "bo@corp", nil)
		f.approve("compliance", "cy@corp", nil)
		_, e, err := f.evaluate()
		f.check(err)
		copied, err := e.GenerationFile()
		f.check(err)
		f.issued()
		f.put(copied, f.files[GrantFile("weather")].Data)
		return f.files[GrantFile("weather")].Data
	}
	first := issue()
	f.now = f.now.Add(2 * grantcheck.MaxAhead)
	issue()
	f.now = f.now.Add(2 * grantcheck.MaxAhead)
	f.next()
	for name, test := range map[string]struct {
		change func(f *fixture)
		want   string
	}{
		"in force": {func(*fixture) {}, ""},
		"removed":  {func(f *fixture) { delete(f.files, GrantFile("weather")) }, "grants/weather.dsse.json is missing, and generation 2 was issued (plugins/weather/1.4.0/issued/2.dsse.json)"},
		"older":    {func(f *fixture) { f.put(GrantFile("weather"), first) }, "grants/weather.dsse.json is generation 1, and generation 2 was issued"},
		"older under another number": {func(f *fixture) {
			f.put(GrantFile("weather"), first)
			f.put(requestDir+"/issued/9.dsse.json", first)
		}, "generation 2 was issued"},
		"copy that does not verify": {func(f *fixture) { f.put(requestDir+"/issued/3.dsse.json", []byte("{}")) }, ""},
	} {
		f := f.clone(t)
		test.change(f)
		for _, dir := range []string{requestDir, nextDir} {
			var got []string
			for _, p := range f.evaluateIn(dir).stage(stageEligibility).Problems {
				if strings.Contains(p.Message, "was issued") {
					got = append(got, p.Message)
				}
			}
			if text := strings.Join(got, "\n"); (test.want == "") != (text == "") || !strings.Contains(text, test.want) {
				t.Errorf("%s: %s: problems are %q, want %q", name, dir, text, test.want)
			}
		}
	}
}
