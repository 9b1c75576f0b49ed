package authz

import "testing"

func TestTrace(t *testing.T) {
	const trace, span = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
	for name, test := range map[string]struct {
		header string
		found  bool
	}{
		"of version 00":       {"00-" + trace + "-" + span + "-01", true},
		"of a later version":  {"cc-" + trace + "-" + span + "-01-more", true},
		"none":                {"", false},
		"without flags":       {"00-" + trace + "-" + span, false},
		"in upper case":       {"00-0AF7651916CD43DD8448EB211C80319C-" + span + "-01", false},
		"with all-zero trace": {"00-00000000000000000000000000000000-" + span + "-01", false},
		"with all-zero span":  {"00-" + trace + "-0000000000000000-01", false},
		"with a quote":        {"00-0af7651916cd43dd8448eb211c80319\"-" + span + "-01", false},
		"shifted":             {"0-" + trace + "-" + span + "-011", false},
	} {
		t.Run(name, func(t *testing.T) {
			var s Source
			s.Trace(test.header)
			want := Source{}
			if test.found {
				want.TraceID, want.SpanID = trace, span
			}
			if s != want {
				t.Errorf("got %+v, want %+v", s, want)
			}
		})
	}
}
