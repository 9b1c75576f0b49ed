package main

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
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
)

// pod is the plugin's container of a manifest, run by runc.
type pod struct {
	t         *testing.T
	dir       string // of the bundle, the volumes and the runtime's state
	name      string
	spec      corev1.PodSpec
	container corev1.Container
	files     map[string]string // of the config map
	args      []string          // instead of the manifest's

	network *exec.Cmd // holds the Pod's network namespace, and the API in it
	command *exec.Cmd
	stdin   io.WriteCloser
	output  lockedBuffer
	ended   chan struct{}
}

// newPod reads the manifest and lays out the container's files. The plugin is a
// shell script.
func newPod(t *testing.T, script string) *pod {
	t.Helper()
	testenv.Require(t, testenv.Superuser(), testenv.CgroupV2(), testenv.BTF(), testenv.Program("runc"), testenv.Program("busybox"),
		testenv.Program("curl"), testenv.Program("ldd"), testenv.Program("ip"), testenv.Program("unshare"))
	p := &pod{t: t, dir: t.TempDir(), name: fmt.Sprintf("chaperone-test-%d-%d", os.Getpid(), time.Now().UnixNano()), ended: make(chan struct{})}
	p.readManifest("../../configs/kubernetes/confined.yaml")
	p.startNetwork()
	p.makeRoot(script)
	p.makeVolumes()
	return p
}

// readManifest takes from the manifest what is run.
func (p *pod) readManifest(file string) {
	p.t.Helper()
	for text := range strings.SplitSeq(string(testenv.MustGet(os.ReadFile(file))(p.t)), "\n---\n") {
		var head struct{ Kind string }
		testenv.Must(p.t, yaml.Unmarshal([]byte(text), &head))
		switch head.Kind {
		case "ConfigMap":
			var configMap corev1.ConfigMap
			testenv.Must(p.t, yaml.UnmarshalStrict([]byte(text), &configMap))
			p.files = configMap.Data
		case "Deployment":
			var deployment appsv1.Deployment
			testenv.Must(p.t, yaml.UnmarshalStrict([]byte(text), &deployment))
			p.spec = deployment.Spec.Template.Spec
		}
	}
	if len(p.spec.Containers) != 1 || len(p.files) == 0 {
		p.t.Fatalf("%s holds %d containers and %d files", file, len(p.spec.Containers), len(p.files))
	}
	p.container = p.spec.Containers[0]
	p.args = p.container.Args
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

// makeRoot makes the image of the plugin: busybox and the script.
func (p *pod) makeRoot(script string) {
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
	for _, dir := range []string{"proc", "sys", "dev", "tmp", "run", "root", "etc"} {
		testenv.Must(p.t, os.MkdirAll(filepath.Join(p.dir, "rootfs", dir), 0o755))
	}
	// As the kubelet writes them, for a Pod of a cluster.
	p.write("resolv.conf", "search default.svc.cluster.local svc.cluster.local cluster.local\nnameserver 10.96.0.10\noptions ndots:5\n", 0o644)
	p.write("hosts", "127.0.0.1\tlocalhost\n10.244.0.7\tweather-0\n", 0o644)
	p.write("rootfs/etc/resolv.conf", "", 0o644)
	p.write("rootfs/etc/hosts", "", 0o644)
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
			for name, content := range p.testFiles() {
				p.project(volume.Name, name, content, os.FileMode(*volume.ConfigMap.DefaultMode))
			}
		case volume.Projected != nil:
			p.project(volume.Name, "token", "a token", os.FileMode(*volume.Projected.DefaultMode))
		case volume.EmptyDir != nil:
			testenv.Must(p.t, os.Chmod(at, 0o777))
		default:
			p.t.Fatalf("volume %s is of a kind that nothing here makes", volume.Name)
		}
	}
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

// testFiles are the manifest's files without Vault, which is not here, and with
// the API where it is.
func (p *pod) testFiles() map[string]string {
	p.t.Helper()
	change := func(text string, change func(spec map[string]any)) string {
		var object map[string]any
		testenv.Must(p.t, yaml.Unmarshal([]byte(text), &object))
		change(object["spec"].(map[string]any))
		return string(testenv.MustGet(yaml.Marshal(object))(p.t))
	}
	files := map[string]string{"ca.pem": string(testenv.MustGet(os.ReadFile(filepath.Join(p.dir, "ca.pem")))(p.t))}
	for name, text := range p.files {
		switch name {
		case "sidecar.yaml":
			text = change(text, func(spec map[string]any) {
				delete(spec, "vault")
				spec["dns"] = map[string]any{"hosts": map[string]any{apiHost: []string{"127.0.0.1"}}}
				spec["audit"] = map[string]any{"paths": "full"}
			})
		case "grant.yaml":
			text = change(text, func(spec map[string]any) {
				spec["notAfter"] = time.Now().Add(time.Hour).UTC().Format(time.RFC3339)
				delete(spec, "credentials")
				rule := spec["rules"].([]any)[0].(map[string]any)
				delete(rule, "credential")
				to := rule["to"].(map[string]any)
				to["addresses"], to["tls"] = []string{"127.0.0.0/8"}, map[string]any{"caFile": "ca.pem"}
			})
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
	// runc takes the hierarchy at /sys/fs/cgroup, where a hybrid layout has a
	// tmpfs; only cgroup v2 is of interest here.
	root := testenv.MustGet(testenv.CgroupRoot())(p.t)
	p.command = exec.Command("unshare", "--mount", "sh", "-c", `
if [ "$1" != /sys/fs/cgroup ]; then mount --bind "$1" /sys/fs/cgroup; fi
exec runc --root "$2/runc" run --bundle "$2" "$3"`, "sh", root, p.dir, p.name)
	p.command.Stdout, p.command.Stderr = &p.output, &p.output
	p.command.WaitDelay = time.Second
	p.stdin = testenv.MustGet(p.command.StdinPipe())(p.t)
	testenv.Must(p.t, p.command.Start())
	go func() { _ = p.command.Wait(); close(p.ended) }()
	p.t.Cleanup(func() {
		_ = exec.Command("runc", "--root", filepath.Join(p.dir, "runc"), "delete", "--force", p.name).Run() // gone already, if all went well
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
	if len(security.Capabilities.Drop) != 1 || security.Capabilities.Drop[0] != "ALL" || security.SeccompProfile.Type != corev1.SeccompProfileTypeRuntimeDefault {
		p.t.Fatalf("the container's security context is %v", security)
	}
	s := &specs.Spec{
		Version: specs.Version,
		Root:    &specs.Root{Path: "rootfs", Readonly: *security.ReadOnlyRootFilesystem},
		Process: &specs.Process{
			User: specs.User{UID: uint32(*security.RunAsUser)}, Cwd: "/", Args: append(append([]string{}, p.container.Command...), p.args...),
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
		m := specs.Mount{Destination: mount.MountPath, Type: "bind", Source: p.volume(mount.Name), Options: []string{"rbind", "rprivate", access}}
		for _, volume := range p.spec.Volumes {
			if volume.Name == mount.Name && volume.EmptyDir != nil && volume.EmptyDir.Medium == corev1.StorageMediumMemory {
				m.Type, m.Source, m.Options = "tmpfs", "tmpfs", []string{"mode=0777", fmt.Sprintf("size=%d", volume.EmptyDir.SizeLimit.Value()), access}
			}
		}
		mounts = append(mounts, m)
	}
	return mounts
}

// init is the id of the container's first process on the host.
func (p *pod) init() int {
	p.t.Helper()
	return eventually(p.t, "the container runs", func() (int, bool) {
		var state struct{ Pid int }
		out, err := exec.Command("runc", "--root", filepath.Join(p.dir, "runc"), "state", p.name).Output()
		if err != nil || json.Unmarshal(out, &state) != nil {
			return 0, false
		}
		return state.Pid, state.Pid > 0
	})
}

func (p *pod) printed(text string) {
	p.t.Helper()
	eventually(p.t, text+" is printed", func() (int, bool) {
		select {
		case <-p.ended:
			p.t.Fatalf("the container ended:\n%s", p.output.String())
		default:
		}
		return 0, strings.Contains(p.output.String(), text+"\n")
	})
}

// wait waits for the container's end, and returns its status.
func (p *pod) wait() int {
	p.t.Helper()
	select {
	case <-p.ended:
	case <-time.After(60 * time.Second):
		p.t.Fatalf("the container goes on:\n%s", p.output.String())
	}
	return p.command.ProcessState.ExitCode()
}
