package pilotrun

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/chaperone-proxy/chaperone/governance/pilot"
	"github.com/chaperone-proxy/chaperone/internal/testenv"
)

// newContainerRig is a pilot without a load of a plugin that a container runtime starts: start
// is called when the pilot asks for it, with the sidecar's bundle.
func newContainerRig(t *testing.T, start func(r *rig, bundle string)) *rig {
	t.Helper()
	testenv.Require(t, testenv.ContainerRuntime(), testenv.Program("curl"))
	r := newRig(t)
	r.cfg.Cgroup, r.cfg.Command, r.cfg.Profile, r.cfg.For = testenv.MustCgroup(t).Path, nil, nil, 3*time.Second
	r.cfg.Progress = func(line string) {
		fmt.Fprintln(&r.out, line)
		if _, bundle, ok := strings.Cut(line, "SSL_CERT_FILE="); ok {
			start(r, bundle)
		}
	}
	return r
}

// container runs a shell script in a container.
func (r *rig) container(bundle string, cfg testenv.ContainerConfig, script string) *testenv.Container {
	r.t.Helper()
	const uid = 61999
	cfg.UID, cfg.Args = uid, []string{"/bin/sh", "-c", script}
	cfg.Env, cfg.Files = []string{"CURL_CA_BUNDLE=/etc/ca.pem"}, map[string]string{"/etc/ca.pem": bundle}
	return testenv.RunContainer(r.t, cfg)
}

// TestContainer pilots containers that runc runs in the cgroup of the pilot, as it does by
// itself, and below it, as the cgroupfs driver of a kubelet has it. Each has an access that is
// declared and one that is not, and then is idle in one process.
func TestContainer(t *testing.T) {
	for name, c := range map[string]struct {
		below         string
		userNamespace bool
	}{
		"in the cgroup": {"", false},
		"below the cgroup, with users of its own": {"pod/plugin", true},
	} {
		t.Run(name, func(t *testing.T) {
			var container *testenv.Container
			r := newContainerRig(t, func(r *rig, bundle string) {
				cfg := testenv.ContainerConfig{Cgroup: filepath.Join(r.cfg.Cgroup, c.below), UserNamespace: c.userNamespace}
				container = r.container(bundle, cfg, fmt.Sprintf("curl -sS %s; curl -sS '%s'; exec sleep 60", r.api.URL(apiHost, "/open"), r.api.URL(apiHost, "/echo?secret=1")))
			})
			m, err := r.run(t.Context())
			if err != nil {
				t.Fatalf("%v\n%s\n%s", err, r.out.String(), container.Output())
			}
			const killed = 128 + 9
			if status := container.Wait(); status != killed {
				t.Errorf("the container ended with %d, want %d\n%s", status, killed, container.Output())
			}
			measured(t, m)
		})
	}
}

// measured looks at what was measured of such a container.
func measured(t *testing.T, m *pilot.Measurement) {
	t.Helper()
	p, trace := pilot.Measured(*m), testenv.MustGet(pilot.Traced(*m))(t)
	const least = 256 << 10 // of a sleep
	if p.Memory.RSSP95Bytes < least || p.CPU.TotalUS == 0 || p.Syscalls.Classes["network"] == 0 || p.Syscalls.Total < 100 || !trace.Mediation.Known || p.Startup.FirstAccessMS == nil {
		t.Errorf("a figure was not measured: %s", testenv.MustGet(json.MarshalIndent(p, "", " "))(t))
	}
	if len(trace.Declared) != 1 || trace.Declared[0].Uses != 1 || len(trace.Undeclared) != 1 || trace.Undeclared[0].Paths[0] != "/echo" || trace.Verdict != pilot.Failed {
		t.Errorf("verdict %s, declared %+v, undeclared %+v", trace.Verdict, trace.Declared, trace.Undeclared)
	}
}

// TestContainerEnds has containers that do not run until the pilot ends them.
func TestContainerEnds(t *testing.T) {
	below := func(r *rig) testenv.ContainerConfig {
		return testenv.ContainerConfig{Cgroup: filepath.Join(r.cfg.Cgroup, "plugin")}
	}
	within := func(r *rig) testenv.ContainerConfig { return testenv.ContainerConfig{Cgroup: r.cfg.Cgroup} }
	const another = "in another cgroup of the name"
	for name, c := range map[string]struct {
		start func(r *rig, bundle string)
		want  string
	}{
		"below the cgroup":        {func(r *rig, bundle string) { r.container(bundle, below(r), "sleep 0.7") }, "has no process; start it so that it runs until the pilot ends it"},
		"in the cgroup":           {func(r *rig, bundle string) { r.container(bundle, within(r), "sleep 0.7") }, "was removed; start it so that it runs until the pilot ends it"},
		"unseen below the cgroup": {func(r *rig, bundle string) { r.container(bundle, below(r), "exit 0").Wait() }, "ended before it was observed"},
		"without its program":     {func(r *rig, bundle string) { r.container(bundle, below(r), "exec /none") }, "has no process"},
		"in another network": {func(r *rig, bundle string) {
			cfg := within(r)
			cfg.OwnNetwork = true
			r.container(bundle, cfg, "sleep 60")
		}, "in another network namespace than the sidecar"},
		another: {func(r *rig, bundle string) {
			r.container(bundle, within(r), "exit 0").Wait()
			testenv.Must(r.t, os.MkdirAll(r.cfg.Cgroup, 0o755))
			later := r.container(r.cfg.Grant.Rules[0].To.TLS.CAFile, within(r), "echo up; exec sleep 60") // the bundle goes with the sidecar
			testenv.Eventually(r.t, "the later container runs", func() (int, bool) { return 0, later.Output() == "up\n" })
		}, "was removed"},
	} {
		t.Run(name, func(t *testing.T) {
			r := newContainerRig(t, c.start)
			r.cfg.For = 5 * time.Second
			m, err := r.run(t.Context())
			if m != nil || err == nil || !strings.Contains(err.Error(), c.want) || strings.Contains(err.Error(), "\n") {
				t.Errorf("measured %v, error %v, want %q\n%s", m, err, c.want, r.out.String())
			}
			if events, _ := os.ReadFile(filepath.Join(r.cfg.Cgroup, "cgroup.events")); strings.Contains(string(events), "populated 1") != (name == another) {
				t.Errorf("after the pilot the cgroup is %q", events)
			}
		})
	}
}
