package ebpf

import "testing"

func TestProbe(t *testing.T) {
	needKernel(t)
	for _, f := range Probe() {
		t.Logf("%+v", f)
		if f.Err != nil {
			t.Errorf("%s: %v", f.Name, f.Err)
		}
	}
}
