package ebpf

import (
	"slices"
	"testing"
)

func TestProbe(t *testing.T) {
	needKernel(t)
	findings := Probe()
	for _, f := range findings {
		t.Logf("%+v", f)
		if f.Err != nil {
			t.Errorf("%s: %v", f.Name, f.Err)
		}
		if f.Lost == "" || f.Remedy == "" {
			t.Errorf("%s lacks what is lost, or what to do", f.Name)
		}
	}
	for _, name := range []string{
		"cgroup v2", "BPF file system", "Unix socket hooks", "kernel programs", "network namespace", "process scope", "rootless sandbox",
		"self-test", "system calls and processes counted", "foreign sockets ended", "Unix sockets allowed by name", "limit on connections",
		"limit on sentBytes", "limit on receivedBytes", "limit on syscalls", "limit on processes", "escapes ended", "file rules",
		"cost of counted system calls", "system calls bounded by CPU time", "process ids", "processes identified", "programs identified", "holders of foreign sockets ended",
	} {
		if !slices.ContainsFunc(findings, func(f Finding) bool { return f.Name == name }) {
			t.Errorf("no finding about %s", name)
		}
	}
}
