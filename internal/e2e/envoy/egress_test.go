package envoy

import (
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"

	"github.com/chaperone-proxy/chaperone/internal/admin"
	"github.com/chaperone-proxy/chaperone/internal/testenv"
	"github.com/chaperone-proxy/chaperone/internal/testenv/scenario"
)

// TestEnvoyOnlyWayOut tries the ways around: with the kernel half on, Envoy is
// the only way out, and nothing that was not granted leaves it.
func TestEnvoyOnlyWayOut(t *testing.T) {
	e := newEnv(t, "required")
	g := e.group()
	g.Protect()
	proxy := scenario.Address(e.Ready(), "proxy")
	e.startEnvoy()
	granted, port := e.URL("/v1/forecast"), fmt.Sprint(e.API.Addr.Port())
	if got := g.curl(granted); !strings.HasSuffix(got, "\n200") {
		t.Fatalf("granted: %s", got)
	}
	virtual := g.curl("-4", "-o", "/dev/null", "-w", "%{remote_ip}", granted)
	if !strings.HasPrefix(virtual, "240.") {
		t.Fatalf("got the plugin redirected to %q", virtual)
	}
	before := e.API.Total()
	for name, c := range map[string]struct {
		args []string
		want string // in what comes back; "" for nothing at all
	}{
		"its address":                 {[]string{e.API.URL("127.0.0.1", "/open")}, ""},
		"its address, by the proxy":   {[]string{"--noproxy", "", "-x", "http://" + proxy, e.API.URL("127.0.0.1", "/open")}, "403"},
		"another name":                {[]string{"https://evil.example:" + port + "/open"}, "000"},
		"another name, by the proxy":  {[]string{"--noproxy", "", "-x", "http://" + proxy, "https://evil.example:" + port + "/open"}, "403"},
		"another name, in plain text": {[]string{"--noproxy", "", "-x", "http://" + proxy, "http://evil.example:" + port + "/open"}, "destination_not_granted"},
		"another name at its address": {[]string{"--resolve", "evil.example:" + port + ":" + virtual, "https://evil.example:" + port + "/open"}, ""},
		"another Host":                {[]string{"-H", "Host: evil.example", granted}, "destination_mismatch"},
		"no name at all":              {[]string{"-H", "Host:", granted}, ""},
		"plain text":                  {[]string{e.API.URL(scenario.Host, "")[len("https"):]}, ""},
		"another path":                {[]string{e.URL("/open")}, "path_not_granted"},
		"another method":              {[]string{"-X", "DELETE", granted}, "method_not_granted"},
		"a path that turns back":      {[]string{"--path-as-is", e.URL("/v1/../open")}, "malformed_request"},
		"the route's header":          {[]string{"-H", "x-chaperone-route: weather/other", e.URL("/open")}, "path_not_granted"},
	} {
		if strings.HasPrefix(c.args[0], "://") {
			c.args[0] = "http" + c.args[0] + "/v1/forecast"
		}
		if got := g.curl(c.args...); !strings.Contains(got, c.want) || strings.HasSuffix(got, "\n200") {
			t.Errorf("%s: %q is missing in %s", name, c.want, got)
		}
	}
	for _, socket := range []string{"xds.sock", "check.sock", "plugin.sock"} {
		out, err := g.Command("python3", "-c", "import socket,sys; socket.socket(socket.AF_UNIX).connect(sys.argv[1])", e.folder+"/"+socket).CombinedOutput()
		if err == nil {
			t.Errorf("the plugin reached %s: %s", socket, out)
		}
	}
	if got := e.API.Total(); got != before {
		t.Errorf("the API received %d requests that were not granted: %+v", got-before, e.API.Requests()[before:])
	}
	scenario.Contains(t, e.Read("state/audit.jsonl"), `"door":"ext_authz"`, `"reason":"destination_not_granted"`)
}

// TestEnvoySidecarKilled kills the sidecar under load: Envoy has no way out any
// more, and gets one again from the next sidecar.
func TestEnvoySidecarKilled(t *testing.T) {
	e := newEnv(t, "required")
	g := e.group()
	b := g.Protect()
	e.Ready()
	e.startEnvoy()
	stream := g.hold(e.CopyProgram(streamer), "http", e.URL("/stream"))
	out := new(scenario.Buffer)
	for range 3 {
		loop := g.Command("sh", "-c", fmt.Sprintf(
			`while :; do curl -sS -k -m 5 --noproxy '*' -o /dev/null -w '<%%{http_code}>\n' %s 2>/dev/null; done`, e.URL("/v1/forecast")))
		loop.Stdout = out
		testenv.Must(t, loop.Start())
		t.Cleanup(func() { _ = loop.Process.Kill(); _ = loop.Wait() })
	}
	passed := func() int { return strings.Count(out.String(), "<200>") }
	testenv.Eventually(t, "requests pass", func() (int, bool) { return 0, passed() > 5 })

	testenv.Must(t, b.Cmd.Process.Kill())
	b.Wait()
	testenv.Eventually(t, "the stream has ended", func() (int, bool) { return 0, stream.ended() })
	e.WaitStreams(0)
	reached, tried := e.API.Total(), len(out.String())
	testenv.Eventually(t, "it is tried again and again", func() (int, bool) { return 0, len(out.String()) > tried+60 })
	if got := e.API.Total(); got != reached {
		t.Errorf("%d requests reached the API while no sidecar lived", got-reached)
	}
	if late := out.String()[tried+20:]; strings.Contains(late, "<200>") {
		t.Errorf("passed while no sidecar lived: %s", late)
	}
	if admitted := strings.Count(e.Read("state/audit.jsonl"), `"kind":"decision","plugin":"weather","door":"ext_authz"`); admitted < reached {
		t.Errorf("%d requests reached the API, and %d were decided", reached, admitted)
	}

	g.Protect()
	e.Ready()
	before := passed()
	testenv.Eventually(t, "requests pass again", func() (int, bool) { return 0, passed() > before+3 })
}

// TestEnvoyListens has Envoy listen by itself, with the kernel half off and in a
// network of the plugin's where iptables redirects to it, as in a pod: requests that
// arrive there are the plugin's, and still leave by the exits.
func TestEnvoyListens(t *testing.T) {
	testenv.Require(t, testenv.Superuser(), testenv.Program("iptables"), testenv.Program("ip"))
	e := newEnv(t, "off")
	const transparent = "127.0.0.1:15006"
	e.Write("sidecar.yaml", strings.NewReplacer(
		`proxy: "127.0.0.1:0", `, "", "envoy: {", fmt.Sprintf("envoy: {transparent: %q, ", transparent),
	).Replace(e.Read("sidecar.yaml")))
	_, after, _ := strings.Cut(e.Read("sidecar.yaml"), `explicit: "`)
	explicit, _, _ := strings.Cut(after, `"`)
	e.StartCommand("serve", "--config", e.File("sidecar.yaml"))
	e.Ready()

	pod := exec.Command("sleep", "1000")
	pod.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET, Pdeathsig: syscall.SIGKILL}
	testenv.Must(t, pod.Start())
	t.Cleanup(func() { _ = pod.Process.Kill(); _ = pod.Wait() })
	inPod := func(program ...string) string {
		out, err := exec.Command("nsenter", append([]string{"-t", fmt.Sprint(pod.Process.Pid), "-n"}, program...)...).CombinedOutput()
		if err != nil && program[0] != "curl" {
			t.Fatalf("%v: %v\n%s", program, err, out)
		}
		return string(out)
	}
	// The address of a public documentation range is the pod's own, so that there
	// is a way to it; Envoy, of another user, is left alone.
	inPod("ip", "link", "set", "lo", "up")
	inPod("ip", "address", "add", "198.51.100.7/32", "dev", "lo")
	inPod("iptables", "-t", "nat", "-A", "OUTPUT", "-p", "tcp", "-d", "198.51.100.7", "-j", "REDIRECT", "--to-ports", "15006")
	e.Write("envoy-in-pod", fmt.Sprintf("#!/bin/sh\nexec nsenter -t %d -n %s \"$@\"\n", pod.Process.Pid, testenv.MustGet(testenv.FetchEnvoy(t.Context(), nil))(t)))
	testenv.Must(t, os.Chmod(e.File("envoy-in-pod"), 0o755))
	t.Setenv("CHAPERONE_ENVOY", e.File("envoy-in-pod"))
	e.startEnvoy()

	granted, port := e.URL("/v1/forecast"), fmt.Sprint(e.API.Addr.Port())
	for name, c := range map[string]struct {
		args []string
		want string
	}{
		"explicit":                           {[]string{"-x", "http://" + explicit, granted}, "\n200"},
		"explicit, another name":             {[]string{"-x", "http://" + explicit, "https://evil.example/"}, "403"},
		"explicit, another path":             {[]string{"-x", "http://" + explicit, e.URL("/open")}, "path_not_granted"},
		"transparent":                        {[]string{granted}, "\n200"},
		"transparent, another name":          {[]string{"http://evil.example:" + port + "/"}, "destination_not_granted"},
		"transparent, another name in TLS":   {[]string{"https://evil.example:" + port + "/"}, "\n000"},
		"transparent, another path":          {[]string{e.URL("/open")}, "path_not_granted"},
		"transparent, another port":          {[]string{"https://" + scenario.Host + "/v1/forecast"}, "\n000"},
		"transparent, the API in plain text": {[]string{"http://" + strings.TrimPrefix(granted, "https://")}, "not_granted"},
	} {
		args := []string{"curl", "-sS", "-k", "-m", "20", "-w", "\n%{http_code}"}
		for _, host := range []string{scenario.Host, "evil.example"} {
			for _, p := range []string{port, "443"} {
				args = append(args, "--resolve", host+":"+p+":198.51.100.7")
			}
		}
		if got := inPod(append(args, c.args...)...); !strings.Contains(got, c.want) {
			t.Errorf("%s: %q is missing in %s", name, c.want, got)
		}
	}
	if got := e.API.Total(); got != 2 {
		t.Errorf("the API received %d requests, not 2: %+v", got, e.API.Requests())
	}
}

// TestEnvoyStatus reads the state of Envoy from each place that reports it.
func TestEnvoyStatus(t *testing.T) {
	e := newEnv(t, "off")
	b, _ := e.Serve()
	verbose := func() string {
		_, after, _ := strings.Cut(b.Output.String(), `"metrics":"`)
		address, _, _ := strings.Cut(after, `"`)
		return curlOutput(t, "http://"+address+"/readyz?verbose") + curlOutput(t, "http://"+address+"/metrics")
	}
	testenv.Eventually(t, "address of metrics in the log", func() (int, bool) { return 0, strings.Contains(b.Output.String(), `"metrics":"`) })
	scenario.Contains(t, verbose(), "[?]envoy none is connected", "chaperone_envoy_connected 0", "chaperone_envoy_generation 0")
	scenario.Contains(t, e.Chaperone("status", "--config", e.File("sidecar.yaml")).Stdout, "NOT CONNECTED", "2 egress sockets")

	e.startEnvoy()
	status := testenv.Eventually(t, "Envoy has put all in force", func() (admin.Status, bool) {
		s, err := admin.Dial(e.File("state/admin.sock")).Status(t.Context())
		return s, err == nil && len(s.Envoy.Connected) == 1 && s.Envoy.Connected[0].Current
	})
	if one := status.Envoy.Connected[0]; one.Version != "1.40.0" || one.Generation != status.Generation || len(one.Refused) > 0 || status.Envoy.Exits != 2 {
		t.Errorf("%+v", status.Envoy)
	}
	scenario.Contains(t, verbose(), "[+]envoy connected", "chaperone_envoy_connected 1", "chaperone_envoy_current 1", "chaperone_envoy_refusing 0",
		"chaperone_envoy_exits 2", fmt.Sprintf("chaperone_envoy_generation %d", status.Generation))
	scenario.Contains(t, e.Chaperone("status", "--config", e.File("sidecar.yaml")).Stdout,
		"1.40.0, connected for", "does not enforce scrubbing", "door ext_authz", "unix:"+e.folder+"/check.sock enforces hosts")

	e.Write("sidecar.yaml", strings.Replace(e.Read("sidecar.yaml"), "envoy: {", "envoy: {maxStreamDuration: 10m, ", 1))
	scenario.Contains(t, e.Chaperone("reload", "--config", e.File("sidecar.yaml")).Stdout, "restart pending: envoy.maxStreamDuration (takes effect at a restart)")
}

func curlOutput(t *testing.T, target string) string {
	t.Helper()
	return string(testenv.MustGet(exec.Command("curl", "-sS", target).Output())(t))
}

// TestEnvoyDoctor finds sockets that others may use.
func TestEnvoyDoctor(t *testing.T) {
	e := newEnv(t, "off")
	testenv.Must(t, os.Chmod(e.folder, 0o700))
	r := e.Chaperone("doctor", "--config", e.File("sidecar.yaml"))
	scenario.Contains(t, r.Stdout, "pass  spec.envoy.dir "+e.folder, "envoy in PATH")
	testenv.Must(t, os.Chmod(e.folder, 0o777))
	r = e.Chaperone("doctor", "--config", e.File("sidecar.yaml"))
	if scenario.Contains(t, r.Stdout, "FAIL  spec.envoy.dir "+e.folder, "has mode -rwxrwxrwx, not -rwx------"); r.Status != 1 {
		t.Errorf("status %d", r.Status)
	}
}
