package main

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/moby/profiles/seccomp"
	"github.com/opencontainers/runtime-spec/specs-go"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/yaml"

	"github.com/chaperone-proxy/chaperone/internal/testenv"
	"github.com/chaperone-proxy/chaperone/internal/testenv/scenario"
)

// pod is a container of a manifest, run by runc.
type pod struct {
	t         *testing.T
	dir       string // of the bundle, the volumes and the runtime's state
	name      string
	spec      corev1.PodSpec
	container corev1.Container
	files     map[string]map[string]string // of each config map
	args      []string                     // instead of the manifest's

	network *exec.Cmd // holds the Pod's network namespace, and the API in it
	command *exec.Cmd
	stdin   io.WriteCloser
	output  scenario.Buffer
	ended   chan struct{}
}

// newPod reads a manifest and lays out the files of a container.
func newPod(t *testing.T, manifest, container string) *pod {
	t.Helper()
	testenv.Require(t, testenv.Superuser(), testenv.CgroupV2(), testenv.BTF(), testenv.Program("runc"), testenv.Program("busybox"),
		testenv.Program("curl"), testenv.Program("ldd"), testenv.Program("ip"), testenv.Program("unshare"))
	p := &pod{t: t, dir: t.TempDir(), name: fmt.Sprintf("chaperone-test-%d-%d", os.Getpid(), time.Now().UnixNano()), ended: make(chan struct{})}
	p.readManifest("../../configs/kubernetes/"+manifest, container)
	p.startNetwork()
	p.makeRoot()
	p.makeVolumes()
	return p
}

// readManifest takes from the manifest what is run.
func (p *pod) readManifest(file, container string) {
	p.t.Helper()
	p.files = make(map[string]map[string]string)
	for text := range strings.SplitSeq(string(testenv.MustGet(os.ReadFile(file))(p.t)), "\n---\n") {
		var head struct{ Kind string }
		testenv.Must(p.t, yaml.Unmarshal([]byte(text), &head))
		switch head.Kind {
		case "ConfigMap":
			var configMap corev1.ConfigMap
			testenv.Must(p.t, yaml.UnmarshalStrict([]byte(text), &configMap))
			p.files[configMap.Name] = configMap.Data
		case "Deployment":
			var deployment appsv1.Deployment
			testenv.Must(p.t, yaml.UnmarshalStrict([]byte(text), &deployment))
			p.spec = deployment.Spec.Template.Spec
		}
	}
	for _, c := range slices.Concat(p.spec.InitContainers, p.spec.Containers) {
		if c.Name == container {
			p.container, p.args = c, c.Args
			return
		}
	}
	p.t.Fatalf("%s has no container %s", file, container)
}

// startNetwork starts the API in a network namespace that the Pod then joins.
func (p *pod) startNetwork() {
	p.t.Helper()
	p.network = exec.Command(testenv.MustGet(exec.LookPath(podOrigin))(p.t), filepath.Join(p.dir, "ca.pem"))
	p.network.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET}
	p.network.Stderr = os.Stderr
	stdin := testenv.MustGet(p.network.StdinPipe())(p.t)
	stdout := testenv.MustGet(p.network.StdoutPipe())(p.t)
	testenv.Must(p.t, p.network.Start())
	p.t.Cleanup(func() { _ = stdin.Close(); _ = p.network.Wait() })
	if _, err := io.ReadAtLeast(stdout, make([]byte, 16), len("serving")); err != nil {
		p.t.Fatalf("the API does not serve: %v", err)
	}
}

func (p *pod) write(path, content string, mode os.FileMode) {
	p.t.Helper()
	path = filepath.Join(p.dir, path)
	testenv.Must(p.t, os.MkdirAll(filepath.Dir(path), 0o755))
	testenv.Must(p.t, os.WriteFile(path, []byte(content), mode))
	testenv.Must(p.t, os.Chmod(path, mode))
}

// makeRoot makes what every image has, and what the kubelet adds to it.
func (p *pod) makeRoot() {
	p.t.Helper()
	for _, dir := range []string{"proc", "sys", "dev", "tmp", "run", "root", "etc"} {
		testenv.Must(p.t, os.MkdirAll(filepath.Join(p.dir, "rootfs", dir), 0o755))
	}
	// As the kubelet writes them, for a Pod of a cluster.
	p.write("resolv.conf", "search default.svc.cluster.local svc.cluster.local cluster.local\nnameserver 10.96.0.10\noptions ndots:5\n", 0o644)
	p.write("hosts", "127.0.0.1\tlocalhost\n10.244.0.7\tweather-0\n", 0o644)
	p.write("rootfs/etc/resolv.conf", "", 0o644)
	p.write("rootfs/etc/hosts", "", 0o644)
}

// pluginImage makes the image of a plugin that is a shell script: busybox, curl
// and the script.
func (p *pod) pluginImage(script string) {
	p.t.Helper()
	busybox := string(testenv.MustGet(os.ReadFile(testenv.MustGet(exec.LookPath("busybox"))(p.t)))(p.t))
	p.write("rootfs/bin/busybox", busybox, 0o755)
	for _, name := range []string{"sh", "ping", "sleep", "head", "true"} {
		testenv.Must(p.t, os.Symlink("busybox", filepath.Join(p.dir, "rootfs/bin", name)))
	}
	p.copyProgram("curl")
	p.write("rootfs"+p.args[len(p.args)-1], "#!/bin/sh\n"+script+"\n", 0o755)
	p.write("rootfs/etc/passwd", "root:x:0:0:root:/root:/bin/sh\n", 0o644)
	p.write("rootfs/etc/group", "root:x:0:\n", 0o644)
}

// ownImage makes the image of the Dockerfile.
func (p *pod) ownImage() {
	p.t.Helper()
	p.write("rootfs/usr/bin/chaperone", string(testenv.MustGet(os.ReadFile(shipped(p.t)))(p.t)), 0o755)
	for _, dir := range []string{"var/lib/chaperone", "run/chaperone"} {
		testenv.Must(p.t, os.MkdirAll(filepath.Join(p.dir, "rootfs", dir), 0o755))
	}
	p.container.Command = []string{"/usr/bin/chaperone"}
}

// copyProgram copies one of the host's programs, with the libraries that it
// loads.
func (p *pod) copyProgram(name string) {
	p.t.Helper()
	program := testenv.MustGet(exec.LookPath(name))(p.t)
	libraries := testenv.MustGet(exec.Command("ldd", program).Output())(p.t)
	for file := range strings.FieldsSeq(program + " " + string(libraries)) {
		if strings.HasPrefix(file, "/") {
			p.write("rootfs"+file, string(testenv.MustGet(os.ReadFile(file))(p.t)), 0o755)
		}
	}
}

// volume is where the files of a volume are on the host.
func (p *pod) volume(name string) string { return filepath.Join(p.dir, "volumes", name) }

// makeVolumes makes the Pod's volumes as the kubelet does: those of files by way
// of a link that is replaced as a whole, empty ones open to everybody.
func (p *pod) makeVolumes() {
	p.t.Helper()
	for _, volume := range p.spec.Volumes {
		at := p.volume(volume.Name)
		testenv.Must(p.t, os.MkdirAll(at, 0o755))
		switch {
		case volume.Image != nil:
			binary := testenv.MustGet(os.ReadFile(shipped(p.t)))(p.t)
			p.write("volumes/"+volume.Name+"/usr/bin/chaperone", string(binary), 0o755)
		case volume.ConfigMap != nil:
			for name, content := range p.testFiles(p.files[volume.ConfigMap.Name]) {
				p.project(volume.Name, name, content, modeOr(volume.ConfigMap.DefaultMode, 0o644))
			}
		case volume.Projected != nil:
			p.project(volume.Name, "token", "a token", modeOr(volume.Projected.DefaultMode, 0o644))
		case volume.EmptyDir != nil:
			p.own(at, 0o777)
		case volume.PersistentVolumeClaim != nil: // as a new ext4
			p.own(at, 0o755)
			testenv.Must(p.t, os.Mkdir(filepath.Join(at, "lost+found"), 0o700))
		default:
			p.t.Fatalf("volume %s is of a kind that nothing here makes", volume.Name)
		}
	}
}

func modeOr(mode *int32, otherwise os.FileMode) os.FileMode {
	if mode == nil {
		return otherwise
	}
	return os.FileMode(*mode)
}

// own gives a volume its mode, and to the Pod's fsGroup if there is one.
func (p *pod) own(dir string, mode os.FileMode) {
	p.t.Helper()
	if p.spec.SecurityContext != nil && p.spec.SecurityContext.FSGroup != nil {
		mode |= os.ModeSetgid | 0o070
		testenv.Must(p.t, os.Chown(dir, 0, int(*p.spec.SecurityContext.FSGroup)))
	}
	testenv.Must(p.t, os.Chmod(dir, mode))
}

// project writes a file of a volume as the kubelet's atomic writer lays it out.
func (p *pod) project(volume, name, content string, mode os.FileMode) {
	p.t.Helper()
	const version = "..2026_11_29_12_00_00.1"
	p.write(filepath.Join("volumes", volume, version, name), content, mode)
	data := filepath.Join(p.volume(volume), "..data")
	if _, err := os.Lstat(data); err != nil {
		testenv.Must(p.t, os.Symlink(version, data))
	}
	testenv.Must(p.t, os.Symlink(filepath.Join("..data", name), filepath.Join(p.volume(volume), name)))
}

// testFiles are a config map's files without Vault, which is not here, and with
// the API where it is.
func (p *pod) testFiles(all map[string]string) map[string]string {
	p.t.Helper()
	change := func(text string, change func(spec map[string]any)) string {
		var object map[string]any
		testenv.Must(p.t, yaml.Unmarshal([]byte(text), &object))
		change(object["spec"].(map[string]any))
		return string(testenv.MustGet(yaml.Marshal(object))(p.t))
	}
	files := make(map[string]string)
	for name, text := range all {
		switch name {
		case "sidecar.yaml":
			text = change(text, func(spec map[string]any) {
				delete(spec, "vault")
				if spec["kernel"] == false { // YAML 1.1, which this library reads, has off for a boolean
					spec["kernel"] = "off"
				}
				spec["dns"] = map[string]any{"hosts": map[string]any{scenario.Host: []string{"127.0.0.1"}}}
				spec["audit"] = map[string]any{"paths": "full"}
			})
		case "grant.yaml":
			text = change(text, func(spec map[string]any) {
				spec["notAfter"] = time.Now().Add(time.Hour).UTC().Format(time.RFC3339)
				delete(spec, "credentials")
				rule := spec["rules"].([]any)[0].(map[string]any)
				delete(rule, "credential")
				to := rule["to"].(map[string]any)
				tls, _ := to["tls"].(map[string]any)
				if tls == nil {
					tls = make(map[string]any)
				}
				tls["caFile"] = "ca.pem"
				to["addresses"], to["tls"] = []string{"127.0.0.0/8"}, tls
			})
			files["ca.pem"] = string(testenv.MustGet(os.ReadFile(filepath.Join(p.dir, "ca.pem")))(p.t))
		}
		files[name] = text
	}
	return files
}

// start runs the container.
func (p *pod) start() {
	p.t.Helper()
	config := testenv.MustGet(json.Marshal(p.runtimeSpec()))(p.t)
	p.write("config.json", string(config), 0o600)
	p.command = p.runtime("run", "--bundle", p.dir, p.name)
	p.command.Stdout, p.command.Stderr = &p.output, &p.output
	p.command.WaitDelay = time.Second
	p.stdin = testenv.MustGet(p.command.StdinPipe())(p.t)
	testenv.Must(p.t, p.command.Start())
	go func() { _ = p.command.Wait(); close(p.ended) }()
	p.t.Cleanup(func() {
		_ = p.runtime("delete", "--force", p.name).Run() // gone already, if all went well
		<-p.ended
	})
}

// runtimeSpec is what a CRI runtime would make of the container.
func (p *pod) runtimeSpec() *specs.Spec {
	p.t.Helper()
	security := p.container.SecurityContext
	var capabilities []string
	for _, name := range security.Capabilities.Add {
		capabilities = append(capabilities, "CAP_"+string(name))
	}
	profile := security.SeccompProfile
	if profile == nil {
		profile = p.spec.SecurityContext.SeccompProfile
	}
	if len(security.Capabilities.Drop) != 1 || security.Capabilities.Drop[0] != "ALL" || profile.Type != corev1.SeccompProfileTypeRuntimeDefault {
		p.t.Fatalf("the container's security context is %v", security)
	}
	user := specs.User{UID: uint32(*security.RunAsUser)}
	if security.RunAsGroup != nil {
		user.GID = uint32(*security.RunAsGroup)
	}
	if p.spec.SecurityContext != nil && p.spec.SecurityContext.FSGroup != nil {
		user.AdditionalGids = []uint32{uint32(*p.spec.SecurityContext.FSGroup)}
	}
	s := &specs.Spec{
		Version: specs.Version,
		Root:    &specs.Root{Path: "rootfs", Readonly: *security.ReadOnlyRootFilesystem},
		Process: &specs.Process{
			User: user, Cwd: "/", Args: append(append([]string{}, p.container.Command...), p.args...),
			Env:             []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOSTNAME=weather-0", "KUBERNETES_SERVICE_HOST=10.96.0.1"},
			NoNewPrivileges: !*security.AllowPrivilegeEscalation,
			Capabilities:    &specs.LinuxCapabilities{Bounding: capabilities, Effective: capabilities, Permitted: capabilities},
		},
		Hostname: "weather-0",
		Mounts:   p.mounts(),
		Linux: &specs.Linux{
			Namespaces: []specs.LinuxNamespace{
				{Type: specs.PIDNamespace},
				{Type: specs.MountNamespace},
				{Type: specs.IPCNamespace},
				{Type: specs.UTSNamespace},
				{Type: specs.CgroupNamespace},
				{Type: specs.NetworkNamespace, Path: fmt.Sprintf("/proc/%d/ns/net", p.network.Process.Pid)},
			},
			// containerd's, for procMount: Default.
			MaskedPaths: []string{
				"/proc/acpi", "/proc/asound", "/proc/kcore", "/proc/keys", "/proc/latency_stats", "/proc/timer_list", "/proc/timer_stats",
				"/proc/sched_debug", "/proc/scsi", "/sys/firmware", "/sys/devices/virtual/powercap",
			},
			ReadonlyPaths: []string{"/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"},
		},
	}
	s.Linux.Seccomp = testenv.MustGet(seccomp.GetDefaultProfile(s))(p.t)
	return s
}

// mounts are those of every container, and the volumes.
func (p *pod) mounts() []specs.Mount {
	p.t.Helper()
	mounts := []specs.Mount{
		{Destination: "/proc", Type: "proc", Source: "proc", Options: []string{"nosuid", "noexec", "nodev"}},
		{Destination: "/dev", Type: "tmpfs", Source: "tmpfs", Options: []string{"nosuid", "strictatime", "mode=755", "size=65536k"}},
		{Destination: "/dev/pts", Type: "devpts", Source: "devpts", Options: []string{"nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"}},
		{Destination: "/dev/mqueue", Type: "mqueue", Source: "mqueue", Options: []string{"nosuid", "noexec", "nodev"}},
		{Destination: "/sys", Type: "sysfs", Source: "sysfs", Options: []string{"nosuid", "noexec", "nodev", "ro"}},
		{Destination: "/sys/fs/cgroup", Type: "cgroup", Source: "cgroup", Options: []string{"nosuid", "noexec", "nodev", "relatime", "ro"}},
		{Destination: "/dev/shm", Type: "tmpfs", Source: "shm", Options: []string{"nosuid", "noexec", "nodev", "mode=1777", "size=65536k"}},
		{Destination: "/etc/resolv.conf", Type: "bind", Source: filepath.Join(p.dir, "resolv.conf"), Options: []string{"rbind", "rprivate", "ro"}},
		{Destination: "/etc/hosts", Type: "bind", Source: filepath.Join(p.dir, "hosts"), Options: []string{"rbind", "rprivate", "ro"}},
	}
	for _, mount := range p.container.VolumeMounts {
		access := "rw"
		if mount.ReadOnly {
			access = "ro"
		}
		m := specs.Mount{Destination: mount.MountPath, Type: "bind", Source: p.mounted(mount), Options: []string{"rbind", "rprivate", access}}
		mounts = append(mounts, m)
	}
	return mounts
}

// runtime is a command of runc, which takes the hierarchy at /sys/fs/cgroup. A
// hybrid layout has a tmpfs there; only cgroup v2 is of interest here.
func (p *pod) runtime(args ...string) *exec.Cmd {
	p.t.Helper()
	const script = `
if [ "$1" != /sys/fs/cgroup ]; then mount --bind "$1" /sys/fs/cgroup; fi
shift
exec runc --root "$@"`
	root := testenv.MustGet(testenv.CgroupRoot())(p.t)
	return exec.Command("unshare", append([]string{"--mount", "sh", "-c", script, "sh", root, filepath.Join(p.dir, "runc")}, args...)...)
}

// mounted is what a container mounts of a volume. The kubelet makes the folder of
// a subPath with the mode of the volume's.
func (p *pod) mounted(mount corev1.VolumeMount) string {
	p.t.Helper()
	at := p.volume(mount.Name)
	if mount.SubPath == "" {
		return at
	}
	info := testenv.MustGet(os.Stat(at))(p.t)
	at = filepath.Join(at, mount.SubPath)
	if err := os.Mkdir(at, 0o700); err == nil {
		p.own(at, info.Mode().Perm())
	}
	return at
}

// stateFile is where a file of the sidecar's state is on the host.
func (p *pod) stateFile(name string) string {
	for _, mount := range p.container.VolumeMounts {
		if mount.Name == "state" {
			return filepath.Join(p.volume("state"), mount.SubPath, name)
		}
	}
	return ""
}

// init is the id of the container's first process on the host.
func (p *pod) init() int {
	p.t.Helper()
	return testenv.Eventually(p.t, "the container runs", func() (int, bool) {
		var state struct{ Pid int }
		out, err := p.runtime("state", p.name).Output()
		if err != nil || json.Unmarshal(out, &state) != nil {
			return 0, false
		}
		return state.Pid, state.Pid > 0
	})
}

func (p *pod) printed(text string) {
	p.t.Helper()
	for deadline := time.Now().Add(2 * time.Minute); !strings.Contains(p.output.String(), text); time.Sleep(10 * time.Millisecond) {
		select {
		case <-p.ended:
			p.t.Fatalf("the container ended:\n%s", p.output.String())
		default:
		}
		if time.Now().After(deadline) {
			p.t.Fatalf("%q is not printed within two minutes:\n%s", text, p.output.String())
		}
	}
}

// wait waits for the container's end, and returns its status.
func (p *pod) wait() int {
	p.t.Helper()
	select {
	case <-p.ended:
	case <-time.After(2 * time.Minute):
		p.t.Fatalf("the container goes on:\n%s", p.output.String())
	}
	return p.command.ProcessState.ExitCode()
}
