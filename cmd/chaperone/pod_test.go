package main

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/chaperone-proxy/chaperone/internal/testenv"
	"github.com/chaperone-proxy/chaperone/internal/testenv/scenario"
)

// podOrigin names the helper that is the network of a Pod and the API in it.
const podOrigin = "pod-origin"

// runPodOrigin serves the API that the Pod's plugin is granted, on port 443 of
// the loopback of its own network namespace, until its standard input ends. It
// writes the authority of its certificate to its argument.
func runPodOrigin() {
	err := servePodOrigin(os.Args[1])
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func servePodOrigin(ca string) error {
	if out, err := exec.Command("ip", "link", "set", "lo", "up").CombinedOutput(); err != nil {
		return fmt.Errorf("%w: %s", err, out)
	}
	upstream, err := testenv.StartUpstream(context.Background(), testenv.UpstreamConfig{
		Names: []string{scenario.Host}, Listen: "127.0.0.1:443", HTTP1: true,
		Authorize: func(r *http.Request) bool {
			if strings.HasSuffix(r.URL.Path, "/slow") {
				<-r.Context().Done()
			}
			return true
		},
	})
	if err != nil {
		return err
	}
	if err := upstream.CA.WriteFile(ca); err != nil {
		return err
	}
	fmt.Println("serving")
	_, _ = os.Stdin.Read(make([]byte, 1))
	return nil
}

// TestPod runs the plugin's container of configs/kubernetes/confined.yaml with a
// real container runtime: its security context, the runtime's default seccomp
// profile, volumes as the kubelet makes them, a read-only root and cgroup file
// system, a PID namespace of its own, and a cluster's resolv.conf.
func TestPod(t *testing.T) {
	p := newPod(t, "confined.yaml", "plugin")
	p.pluginImage(`
echo granted "$(curl -sS https://api.weather.example/v1/forecast/today | head -c 1)"
curl -sS -o /dev/null -w "refused %{http_code}\n" https://api.weather.example/v1/secret
ping -c 1 10.0.0.9 2>/dev/null || echo no ping
for i in 1 2 3 4 5 6 7 8 9 10; do sh -c 'sleep 0.05 & exit 0'; done
curl -sS https://api.weather.example/v1/forecast/slow &
echo up; read -r line; exit 37`)
	p.start()
	p.printed("up\n")
	for _, line := range []string{"granted {", "refused 403", "no ping"} {
		scenario.Contains(t, p.output.String(), line)
	}
	curl := testenv.MustGet(exec.LookPath("curl"))(t)
	slow := p.record("the slow request", func(r podRecord) bool { return r.Path == "/v1/forecast/slow" })
	if slow.Exe != curl || slow.Reason != "granted" {
		t.Errorf("recorded %+v", slow)
	}
	p.isProcess(slow.PID, "curl")
	refused := p.record("the refused request", func(r podRecord) bool { return r.Path == "/v1/secret" })
	if refused.Exe != curl || refused.PID <= 1 || refused.Allowed || refused.Reason != "path_not_granted" {
		t.Errorf("recorded %+v", refused)
	}
	ping := p.record("the refused socket", func(r podRecord) bool { return r.Door == "kernel" && strings.Contains(r.Detail, "socket") })
	if ping.Exe != "/bin/busybox" || ping.PID <= 1 {
		t.Errorf("recorded %+v", ping)
	}
	if n := testenv.Eventually(t, "the orphans are collected", func() (int, bool) { n := p.zombies(); return n, n == 0 }); n != 0 {
		t.Errorf("%d orphans are left", n)
	}
	testenv.Must(t, p.stdin.Close())
	if status := p.wait(); status != 37 {
		t.Errorf("the container ends with %d, and the plugin with 37\n%s", status, p.output.String())
	}
}

// TestPodEscape moves a process of the Pod's plugin out of its cgroup, from the
// host: it ends, and the record names it as the container does.
func TestPodEscape(t *testing.T) {
	p := newPod(t, "confined.yaml", "plugin")
	p.pluginImage("sleep 60 & echo up; wait")
	p.start()
	p.printed("up\n")
	host, inside := p.find("sleep")
	group := strings.TrimPrefix(strings.TrimSpace(string(testenv.MustGet(os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", p.init())))(t))), "0::")
	if _, after, ok := strings.Cut(group, "\n0::"); ok { // beside hierarchies of version 1
		group = after
	}
	procs := filepath.Join(testenv.MustGet(testenv.CgroupRoot())(t), group, "cgroup.procs")
	testenv.Must(t, os.WriteFile(procs, []byte(strconv.Itoa(host)), 0))
	testenv.Eventually(t, "the process ends", func() (int, bool) { return 0, unix.Kill(host, 0) != nil || stateOf(host) == "Z" })
	r := p.record("the escape", func(r podRecord) bool { return strings.Contains(r.Detail, "left the plugin's confinement") })
	if r.PID != inside {
		t.Errorf("process %d is recorded as %+v", inside, r)
	}
	if status := p.wait(); status != 0 {
		t.Errorf("the container ends with %d\n%s", status, p.output.String())
	}
}

// TestPodDoctor: doctor finds nothing missing in the Pod, and a look at each
// limit and wall passes there.
func TestPodDoctor(t *testing.T) {
	p := newPod(t, "confined.yaml", "plugin")
	p.pluginImage("true")
	p.args = []string{"doctor"}
	p.start()
	if status := p.wait(); status != 0 {
		t.Errorf("doctor ends with %d:\n%s", status, p.output.String())
	}
	scenario.Contains(t, p.output.String(), " 0 FAIL", "process ids", "processes identified", "programs identified", "escapes ended")
}

// TestPodBesideEnvoy runs the sidecar's container of configs/kubernetes/envoy.yaml:
// it becomes ready, accepts a revocation, which stays with its state, and ends at
// SIGTERM.
func TestPodBesideEnvoy(t *testing.T) {
	p := newPod(t, "envoy.yaml", "chaperone")
	p.ownImage()
	p.start()
	p.printed(`"msg":"ready"`)
	config := p.args[slices.Index(p.args, "--config")+1]
	out, err := p.runtime("exec", p.name, "/usr/bin/chaperone", "revoke", "--config", config, "--reason", "a test").CombinedOutput()
	if err != nil {
		t.Errorf("revoke: %v\n%s", err, out)
	}
	saved := testenv.MustGet(os.ReadFile(p.stateFile("weather/revocations.json")))(t)
	scenario.Contains(t, string(saved), "a test")
	if out, err := p.runtime("kill", p.name, "TERM").CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	if status := p.wait(); status != 0 {
		t.Errorf("the container ends with %d\n%s", status, p.output.String())
	}
}

// podRecord is what is looked at of an audit record.
type podRecord struct {
	Kind, Door, Reason, Path, Exe, Detail string
	PID                                   int
	Allowed                               bool
}

// record waits for a decision in the audit log.
func (p *pod) record(what string, is func(podRecord) bool) podRecord {
	p.t.Helper()
	return testenv.Eventually(p.t, what+" is recorded", func() (podRecord, bool) {
		log, err := os.ReadFile(p.stateFile("audit.jsonl"))
		if err != nil {
			return podRecord{}, false
		}
		for line := range strings.Lines(string(log)) {
			var r podRecord
			if json.Unmarshal([]byte(line), &r) == nil && r.Kind == "decision" && is(r) {
				return r, true
			}
		}
		return podRecord{}, false
	})
}

// ids are a process's, from the host's PID namespace down to its own.
func ids(pid int) (all []int) {
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return nil
	}
	_, line, _ := strings.Cut(string(status), "\nNSpid:")
	line, _, _ = strings.Cut(line, "\n")
	for field := range strings.FieldsSeq(line) {
		if id, err := strconv.Atoi(field); err == nil {
			all = append(all, id)
		}
	}
	return all
}

// stateOf is a process's, as ps(1) shows it.
func stateOf(pid int) string {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return ""
	}
	return strings.Fields(string(stat[strings.LastIndexByte(string(stat), ')')+1:]))[0]
}

// find finds a process below the container's first by its first argument, and
// returns its id on the host and in the container.
func (p *pod) find(name string) (host, inside int) {
	p.t.Helper()
	found := testenv.Eventually(p.t, name+" runs", func() ([2]int, bool) {
		outside := len(ids(p.init())) - 1 // where the container's id stands
		for _, pid := range descendants(p.init()) {
			command, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
			first, _, _ := strings.Cut(string(command), "\x00")
			if all := ids(pid); err == nil && first == name && len(all) > outside {
				return [2]int{pid, all[outside]}, true
			}
		}
		return [2]int{}, false
	})
	return found[0], found[1]
}

// isProcess checks that an id is, in the container, that of a process.
func (p *pod) isProcess(id int, name string) {
	p.t.Helper()
	if _, inside := p.find(name); inside != id {
		p.t.Errorf("%s is process %d in the container, and recorded as %d", name, inside, id)
	}
}

func descendants(pid int) (all []int) {
	for _, child := range childrenOf(pid) {
		all = append(append(all, child), descendants(child)...)
	}
	return all
}

// zombies counts what is left of processes that have ended.
func (p *pod) zombies() (n int) {
	for _, pid := range descendants(p.init()) {
		if stateOf(pid) == "Z" {
			n++
		}
	}
	return n
}
