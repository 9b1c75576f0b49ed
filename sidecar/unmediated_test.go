package sidecar

import (
	"encoding/json"
	"testing"
	"time"

	"github.com/chaperone-proxy/chaperone/ebpf"
	"github.com/chaperone-proxy/chaperone/internal/testenv"
)

// oneUnmediated is a confinement with one unmediated connection.
type oneUnmediated struct{ noConfinement }

func (*oneUnmediated) Usage() (ebpf.Usage, error) { return ebpf.Usage{Connections: 1}, nil }

func (*oneUnmediated) Unmediated() ([]ebpf.UnmediatedConn, error) {
	return []ebpf.UnmediatedConn{{PID: 7, Comm: "curl"}}, nil
}

// TestUnmediatedConnectionsHaveBothNames has status list unmediated connections under
// their name and under the one that programs of the last release read.
func TestUnmediatedConnectionsHaveBothNames(t *testing.T) {
	telemetry := &KernelTelemetry{cfg: TelemetryConfig{Confinement: func() Confinement { return &oneUnmediated{} }}}
	data := testenv.MustGet(json.Marshal(telemetry.mediationStatus(time.Now())))(t)
	var got map[string]any
	testenv.Must(t, json.Unmarshal(data, &got))
	for _, name := range []string{"unmediatedConnections", "strays"} {
		if list, _ := got[name].([]any); len(list) != 1 {
			t.Errorf("%s: got %v, want one connection in %s", name, got[name], data)
		}
	}
}
