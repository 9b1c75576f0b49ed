package xds

import (
	"net/netip"
	"testing"
	"time"

	"github.com/chaperone-proxy/chaperone/authz"
	"github.com/chaperone-proxy/chaperone/internal/testenv"
)

// TestCurrentWhileExitsChange reads the status while the exits of the next
// generation are being made: an Envoy that has acknowledged the one before is not
// current.
func TestCurrentWhileExitsChange(t *testing.T) {
	const clusters = "type.googleapis.com/envoy.config.cluster.v3.Cluster"
	now := time.Date(2030, 6, 1, 12, 0, 0, 0, time.UTC)
	var s *Server
	var during []bool
	current := func() bool {
		status := s.Status()
		return len(status.Envoys) == 1 && status.Current(status.Envoys[0])
	}
	engine := new(authz.Engine)
	install := func(host string) {
		policy, problems := authz.Compile(authz.Input{Plugin: "weather", Grants: []authz.Grant{{
			Name: "weather", Plugin: "weather", NotAfter: now.Add(time.Hour), Rules: []authz.Rule{{
				ID: "api", Reason: "test", To: authz.To{Scheme: authz.SchemeHTTP, Hosts: []string{host}}, Methods: []string{"GET"}, Paths: []string{"/**"},
			}},
		}}}, now)
		if len(problems) > 0 {
			t.Fatal(problems)
		}
		engine.Install(policy)
	}
	s = testenv.MustGet(New(Config{
		Plugin: "weather", Engine: engine, Now: func() time.Time { return now }, Check: "/check.sock",
		Explicit: netip.MustParseAddrPort("127.0.0.1:1"),
		EgressSockets: func(routes []authz.Route) ([]string, error) {
			during = append(during, current())
			return make([]string, len(routes)), nil
		},
	}))(t)
	install("api.weather.example")
	s.update(t.Context())
	id := stream{true, 1}
	testenv.Must(t, s.acks.open(id))
	for url := range s.current.VersionMap {
		testenv.Must(t, s.acks.requested(id, nil, url, "", nil))
		s.acks.sent(id, url, "1", s.current.GetVersion(url))
		testenv.Must(t, s.acks.requested(id, nil, url, "1", nil))
	}
	if !current() {
		t.Fatalf("got %+v after each type was acknowledged, want a current Envoy", s.Status())
	}
	install("other.weather.example")
	s.update(t.Context())
	if want := []bool{false, false}; len(during) != 2 || during[0] != want[0] || during[1] != want[1] {
		t.Errorf("got current %v while exits were being made, want %v", during, want)
	}
	if current() {
		t.Error("got a current Envoy before it acknowledged the second configuration")
	}
	s.acks.sent(id, clusters, "2", s.current.GetVersion(clusters))
	if current() {
		t.Error("got a current Envoy before it acknowledged the clusters")
	}
}
