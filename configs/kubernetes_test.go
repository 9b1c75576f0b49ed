package configs

import (
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	"sigs.k8s.io/yaml"
)

// manifest is what a file of configs/kubernetes holds.
type manifest struct {
	accounts   []corev1.ServiceAccount
	configMaps []corev1.ConfigMap
	workloads  []appsv1.Deployment
	policies   []networkingv1.NetworkPolicy
	claims     []corev1.PersistentVolumeClaim
}

// readManifest decodes every document into Kubernetes' own type, strictly: a
// field that the API does not have, or has twice, is an error here and would be
// dropped without a word there.
func readManifest(t *testing.T, file string) (m manifest) {
	t.Helper()
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	for text := range strings.SplitSeq(string(data), "\n---\n") {
		var head struct{ APIVersion, Kind string }
		if err = yaml.Unmarshal([]byte(text), &head); err != nil {
			t.Fatalf("%s: %v", file, err)
		}
		switch head.APIVersion + " " + head.Kind {
		case "v1 ServiceAccount":
			err = decodeInto(&m.accounts, text)
		case "v1 ConfigMap":
			err = decodeInto(&m.configMaps, text)
		case "v1 PersistentVolumeClaim":
			err = decodeInto(&m.claims, text)
		case "apps/v1 Deployment":
			err = decodeInto(&m.workloads, text)
		case "networking.k8s.io/v1 NetworkPolicy":
			err = decodeInto(&m.policies, text)
		default:
			t.Fatalf("%s holds a %s %s, which nothing here looks at", file, head.APIVersion, head.Kind)
		}
		if err != nil {
			t.Fatalf("%s: %s: %v", file, head.Kind, err)
		}
	}
	return m
}

func decodeInto[T any](list *[]T, text string) error {
	var object T
	if err := yaml.UnmarshalStrict([]byte(text), &object); err != nil {
		return err
	}
	*list = append(*list, object)
	return nil
}

// TestKubernetes loads the Sidecar of each manifest as its Pod would see it, and
// checks what the isolation of the Pod rests on.
func TestKubernetes(t *testing.T) {
	files, err := filepath.Glob("kubernetes/*.yaml")
	if err != nil || len(files) < 2 {
		t.Fatalf("found %q, %v", files, err)
	}
	for _, file := range files {
		t.Run(filepath.Base(file), func(t *testing.T) {
			m := readManifest(t, file)
			if len(m.accounts) != 1 || len(m.workloads) != 1 || len(m.policies) != 1 || len(m.configMaps) == 0 {
				t.Fatalf("got %d accounts, %d workloads, %d policies and %d config maps", len(m.accounts), len(m.workloads), len(m.policies), len(m.configMaps))
			}
			pod := &m.workloads[0].Spec.Template
			checkSelectors(t, &m)
			checkVolumes(t, &m, &pod.Spec)
			c := m.load(t)
			if len(c.Grants) != 1 || len(c.Guardrails) != 1 {
				t.Errorf("got %d grants and %d guardrails, want one each", len(c.Grants), len(c.Guardrails))
			}
			checkVaultLogin(t, &pod.Spec, c)
			checkProbes(t, sidecarOf(t, &pod.Spec), c)
			checkImages(t, &pod.Spec)
			checkState(t, &pod.Spec, c)
		})
	}
}

// load loads the Sidecar from the files of the config maps, each where the
// sidecar's container mounts it.
func (m *manifest) load(t *testing.T) *Config {
	t.Helper()
	root := t.TempDir()
	pod := &m.workloads[0].Spec.Template.Spec
	sidecar := sidecarOf(t, pod)
	for _, volume := range pod.Volumes {
		if volume.ConfigMap == nil {
			continue
		}
		at := filepath.Join(root, mountOf(sidecar, volume.Name))
		if err := os.MkdirAll(at, 0o700); err != nil {
			t.Fatal(err)
		}
		for _, configMap := range m.configMaps {
			if configMap.Name != volume.ConfigMap.Name {
				continue
			}
			for name, content := range configMap.Data {
				write(t, filepath.Join(at, name), strings.ReplaceAll(content, "[/etc/chaperone", "["+root+"/etc/chaperone"))
			}
		}
	}
	c, err := Load(filepath.Join(root, sidecar.Args[slices.Index(sidecar.Args, "--config")+1]), now)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func containers(pod *corev1.PodSpec) []corev1.Container {
	return slices.Concat(pod.InitContainers, pod.Containers)
}

// sidecarOf returns the container that chaperone runs in.
func sidecarOf(t *testing.T, pod *corev1.PodSpec) corev1.Container {
	t.Helper()
	for _, c := range containers(pod) {
		if slices.Contains(c.Args, "--config") {
			return c
		}
	}
	t.Fatal("chaperone runs in no container")
	return corev1.Container{}
}

// checkSelectors checks that the selectors match this Pod.
func checkSelectors(t *testing.T, m *manifest) {
	t.Helper()
	labels := m.workloads[0].Spec.Template.Labels
	for _, selector := range []map[string]string{m.workloads[0].Spec.Selector.MatchLabels, m.policies[0].Spec.PodSelector.MatchLabels} {
		for name, value := range selector {
			if labels[name] != value {
				t.Errorf("the selector %s=%s is not among the labels of the Pod", name, value)
			}
		}
	}
	if account := m.workloads[0].Spec.Template.Spec.ServiceAccountName; account != m.accounts[0].Name {
		t.Errorf("the Pod is of %q, the account is %q", account, m.accounts[0].Name)
	}
}

// checkVolumes: what is mounted is there, and what is there is mounted.
func checkVolumes(t *testing.T, m *manifest, pod *corev1.PodSpec) {
	t.Helper()
	used := map[string]bool{}
	for _, c := range containers(pod) {
		for _, mount := range c.VolumeMounts {
			used[mount.Name] = true
		}
	}
	for _, volume := range pod.Volumes {
		if !used[volume.Name] {
			t.Errorf("the volume %s is mounted nowhere", volume.Name)
		}
		delete(used, volume.Name)
		if source := volume.ConfigMap; source != nil && !slices.ContainsFunc(m.configMaps, func(c corev1.ConfigMap) bool { return c.Name == source.Name }) {
			t.Errorf("the volume %s is of the config map %s, which is not there", volume.Name, source.Name)
		}
		if source := volume.PersistentVolumeClaim; source != nil && !slices.ContainsFunc(m.claims, func(c corev1.PersistentVolumeClaim) bool { return c.Name == source.ClaimName }) {
			t.Errorf("the volume %s is of the claim %s, which is not there", volume.Name, source.ClaimName)
		}
	}
	for name := range used {
		t.Errorf("the volume %s is mounted and not there", name)
	}
}

// checkVaultLogin: the sidecar logs in with a token that is for Vault alone and
// short-lived, and no other container than its own has any token.
func checkVaultLogin(t *testing.T, pod *corev1.PodSpec, c *Config) {
	t.Helper()
	if pod.AutomountServiceAccountToken == nil || *pod.AutomountServiceAccountToken {
		t.Error("every container, the plugin's too, gets the account's token")
	}
	auth := c.Sidecar.Vault.Auth
	sidecar := sidecarOf(t, pod)
	for _, volume := range pod.Volumes {
		if volume.Projected == nil {
			continue
		}
		token := volume.Projected.Sources[0].ServiceAccountToken
		if token == nil || token.Audience == "" || token.ExpirationSeconds == nil || *token.ExpirationSeconds > 3600 {
			t.Errorf("the token of %s is %v; it is to be for one audience and short-lived", volume.Name, token)
			continue
		}
		if at := mountOf(sidecar, volume.Name); auth.JWTFile != at+"/"+token.Path {
			t.Errorf("Vault's login reads %s, the token is %s/%s", auth.JWTFile, at, token.Path)
		}
		for _, other := range containers(pod) {
			if other.Name != sidecar.Name && mountOf(other, volume.Name) != "" {
				t.Errorf("%s has the token for Vault", other.Name)
			}
		}
		return
	}
	t.Error("no volume has a token for Vault")
}

// mountOf returns where a container has a volume, "" for nowhere.
func mountOf(c corev1.Container, volume string) string {
	for _, mount := range c.VolumeMounts {
		if mount.Name == volume {
			return mount.MountPath
		}
	}
	return ""
}

// checkImages: an image is of one version, so that Pods that start later run what
// was tested.
func checkImages(t *testing.T, pod *corev1.PodSpec) {
	t.Helper()
	var images []string
	for _, c := range containers(pod) {
		images = append(images, c.Image)
	}
	for _, volume := range pod.Volumes {
		if volume.Image != nil {
			images = append(images, volume.Image.Reference)
		}
	}
	for _, image := range images {
		_, tag, ok := strings.Cut(image[strings.LastIndexByte(image, '/')+1:], ":")
		if !ok || tag == "latest" {
			t.Errorf("the image %s is of no version", image)
		}
	}
}

// checkState: what was revoked is on a volume that outlives the Pod.
func checkState(t *testing.T, pod *corev1.PodSpec, c *Config) {
	t.Helper()
	sidecar := sidecarOf(t, pod)
	for _, volume := range pod.Volumes {
		if at := mountOf(sidecar, volume.Name); at != "" && strings.HasPrefix(c.Sidecar.StateDir+"/", at+"/") {
			if volume.PersistentVolumeClaim == nil {
				t.Errorf("the stateDir is on the volume %s, which ends with the Pod", volume.Name)
			}
			return
		}
	}
	t.Errorf("the stateDir %s is on no volume", c.Sidecar.StateDir)
}

// checkProbes: the kubelet asks where the sidecar answers, and the sidecar's own
// files are on volumes.
func checkProbes(t *testing.T, sidecar corev1.Container, c *Config) {
	t.Helper()
	var named bool
	for _, port := range sidecar.Ports {
		named = named || port.Name == "metrics" && strings.HasSuffix(c.Sidecar.Listen.Metrics.Addr, ":"+strconv.Itoa(int(port.ContainerPort)))
	}
	if !named {
		t.Errorf("the port called metrics is not that of %s", c.Sidecar.Listen.Metrics)
	}
	for name, probe := range map[string]*corev1.Probe{"/readyz": sidecar.ReadinessProbe, "/healthz": sidecar.LivenessProbe} {
		if probe == nil || probe.HTTPGet == nil || probe.HTTPGet.Path != name || probe.HTTPGet.Port.StrVal != "metrics" {
			t.Errorf("%s is not asked: %v", name, probe)
		}
	}
	config := sidecar.Args[slices.Index(sidecar.Args, "--config")+1]
	for _, file := range []string{config, c.Sidecar.StateDir} {
		if !slices.ContainsFunc(sidecar.VolumeMounts, func(m corev1.VolumeMount) bool { return strings.HasPrefix(file, m.MountPath) }) {
			t.Errorf("%s is on no volume", file)
		}
	}
}

// TestKubernetesBesideEnvoy: the plugin of the Pod with Envoy has no way to what
// the sidecars share.
func TestKubernetesBesideEnvoy(t *testing.T) {
	m := readManifest(t, "kubernetes/envoy.yaml")
	pod := &m.workloads[0].Spec.Template.Spec
	if len(pod.InitContainers) != 2 || len(pod.Containers) != 1 {
		t.Fatalf("got %d sidecars and %d containers, want 2 and 1", len(pod.InitContainers), len(pod.Containers))
	}
	chaperone, envoy, plugin := pod.InitContainers[0], pod.InitContainers[1], pod.Containers[0]
	for _, sidecar := range pod.InitContainers {
		if sidecar.RestartPolicy == nil || *sidecar.RestartPolicy != corev1.ContainerRestartPolicyAlways {
			t.Errorf("%s is not a native sidecar", sidecar.Name)
		}
	}
	if chaperone.StartupProbe == nil || chaperone.StartupProbe.HTTPGet.Path != "/readyz" {
		t.Error("the plugin is started before the sidecar is ready")
	}
	user := func(c corev1.Container) int64 { return *c.SecurityContext.RunAsUser }
	if user(chaperone) != user(envoy) || user(plugin) == user(envoy) || user(plugin) == 0 {
		t.Error("Envoy must be of the sidecar's user, and the plugin must not")
	}
	if len(plugin.VolumeMounts) != 0 {
		t.Errorf("the plugin mounts %v", plugin.VolumeMounts)
	}
	for _, c := range containers(pod) {
		s := c.SecurityContext
		if *s.AllowPrivilegeEscalation || !*s.ReadOnlyRootFilesystem || !slices.Equal(s.Capabilities.Drop, []corev1.Capability{"ALL"}) || len(s.Capabilities.Add) > 0 {
			t.Errorf("%s may more than it has to: %v", c.Name, s)
		}
	}
	c := m.load(t)
	if c.Sidecar.Envoy == nil || !slices.Contains(envoy.Args, c.Sidecar.Envoy.Bootstrap()) {
		t.Errorf("Envoy is started with %q, and not with what the sidecar writes for it", envoy.Args)
	}
	if mountOf(chaperone, "run") == "" || mountOf(chaperone, "run") != mountOf(envoy, "run") || !strings.HasPrefix(c.Sidecar.Envoy.Dir, mountOf(envoy, "run")+"/") {
		t.Error("the sidecar and Envoy do not meet")
	}
	if proxy := "http://" + c.Sidecar.Envoy.Explicit.String(); !slices.Contains(plugin.Env, corev1.EnvVar{Name: "http_proxy", Value: proxy}) {
		t.Errorf("the plugin's environment lacks %s: %v", proxy, plugin.Env)
	}
}

// TestKubernetesConfined: the Pod in which the kernel confines the plugin has
// the capabilities that this takes, and no more.
func TestKubernetesConfined(t *testing.T) {
	m := readManifest(t, "kubernetes/confined.yaml")
	pod := &m.workloads[0].Spec.Template.Spec
	sidecar := sidecarOf(t, pod)
	s := sidecar.SecurityContext
	if s.Privileged != nil && *s.Privileged || pod.HostPID || pod.HostNetwork {
		t.Error("the Pod is privileged")
	}
	unit, err := os.ReadFile("systemd/chaperone@.service")
	if err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(s.Capabilities.Drop, []corev1.Capability{"ALL"}) {
		t.Errorf("capabilities are dropped as %v", s.Capabilities.Drop)
	}
	_, list, _ := strings.Cut(string(unit), "\nCapabilityBoundingSet=")
	list, _, _ = strings.Cut(list, "\n")
	var want []corev1.Capability
	for name := range strings.FieldsSeq(list) {
		want = append(want, corev1.Capability(strings.TrimPrefix(name, "CAP_")))
	}
	slices.Sort(want)
	if got := slices.Sorted(slices.Values(s.Capabilities.Add)); !slices.Equal(got, want) {
		t.Errorf("capabilities are %v, the systemd unit's are %v", got, want)
	}
	c := m.load(t)
	if c.Sidecar.Kernel != KernelRequired || !slices.Contains(sidecar.Args, "run") || !slices.Contains(sidecar.Args, "--") {
		t.Errorf("kernel is %s and the command %v", c.Sidecar.Kernel, sidecar.Args)
	}
	if at := mountOf(sidecar, "run"); at != "/run/chaperone" {
		t.Errorf("the sidecar keeps its mounts below /run/chaperone, which is not on the volume at %q", at)
	}
	for _, volume := range pod.Volumes {
		var mode *int32
		switch {
		case volume.ConfigMap != nil:
			mode = volume.ConfigMap.DefaultMode
		case volume.Projected != nil:
			mode = volume.Projected.DefaultMode
		default:
			continue
		}
		if mode == nil || *mode&0o077 != 0 {
			t.Errorf("the plugin can read the volume %s", volume.Name)
		}
	}
}
