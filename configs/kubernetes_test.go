package configs

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/goccy/go-yaml"
)

// pod is as much of a Deployment as the test looks at.
type pod struct {
	InitContainers []container `yaml:"initContainers"`
	Containers     []container `yaml:"containers"`
	Volumes        []struct {
		Name string `yaml:"name"`
	} `yaml:"volumes"`
}

type container struct {
	Name            string   `yaml:"name"`
	RestartPolicy   string   `yaml:"restartPolicy"`
	Args            []string `yaml:"args"`
	SecurityContext struct {
		RunAsUser int `yaml:"runAsUser"`
	} `yaml:"securityContext"`
	Ports []struct {
		ContainerPort string `yaml:"containerPort"`
	} `yaml:"ports"`
	VolumeMounts []struct {
		Name      string `yaml:"name"`
		MountPath string `yaml:"mountPath"`
	} `yaml:"volumeMounts"`
}

// TestKubernetes loads the Sidecar of the manifest as a Pod would see it, and
// checks what the isolation of the Pod rests on.
func TestKubernetes(t *testing.T) {
	data, err := os.ReadFile("kubernetes/weather.yaml")
	if err != nil {
		t.Fatal(err)
	}
	var configMap struct {
		Data map[string]string `yaml:"data"`
	}
	var deployment struct {
		Spec struct {
			Template struct {
				Spec pod `yaml:"spec"`
			} `yaml:"template"`
		} `yaml:"spec"`
	}
	for text := range strings.SplitSeq(string(data), "\n---\n") {
		var err error
		switch {
		case strings.Contains(text, "kind: ConfigMap"):
			err = yaml.Unmarshal([]byte(text), &configMap)
		case strings.Contains(text, "kind: Deployment"):
			err = yaml.Unmarshal([]byte(text), &deployment)
		default:
			err = yaml.Unmarshal([]byte(text), &map[string]any{})
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	dir := t.TempDir()
	for name, content := range configMap.Data {
		write(t, filepath.Join(dir, name), content)
	}
	c, err := Load(filepath.Join(dir, "sidecar.yaml"), now)
	if err != nil {
		t.Fatal(err)
	}
	if len(c.Grants) != 1 || len(c.Guardrails) != 1 {
		t.Errorf("got %d grants and %d guardrails, want one each", len(c.Grants), len(c.Guardrails))
	}
	checkPod(t, deployment.Spec.Template.Spec, c)
}

func checkPod(t *testing.T, p pod, c *Config) {
	t.Helper()
	if len(p.InitContainers) != 2 || len(p.Containers) != 1 {
		t.Fatalf("got %d sidecars and %d containers, want 2 and 1", len(p.InitContainers), len(p.Containers))
	}
	chaperone, envoy, plugin := p.InitContainers[0], p.InitContainers[1], p.Containers[0]
	for _, sidecar := range p.InitContainers {
		if sidecar.RestartPolicy != "Always" {
			t.Errorf("%s is not a native sidecar", sidecar.Name)
		}
	}
	if chaperone.SecurityContext.RunAsUser != envoy.SecurityContext.RunAsUser || plugin.SecurityContext.RunAsUser == envoy.SecurityContext.RunAsUser {
		t.Error("Envoy must be of the sidecar's user, and the plugin must not")
	}
	if len(plugin.VolumeMounts) != 0 {
		t.Errorf("the plugin mounts %v", plugin.VolumeMounts)
	}
	if !strings.HasSuffix(c.Sidecar.Listen.Metrics.Addr, ":"+chaperone.Ports[0].ContainerPort) {
		t.Errorf("the probes' port is not that of %s", c.Sidecar.Listen.Metrics)
	}
	mounted := func(file string) bool {
		for _, m := range chaperone.VolumeMounts {
			if strings.HasPrefix(file, m.MountPath+"/") {
				return true
			}
		}
		return false
	}
	for _, file := range []string{chaperone.Args[2], c.Sidecar.StateDir, c.Sidecar.Listen.ExtAuthz.Addr, c.Sidecar.Vault.Auth.RoleIDFile, c.Sidecar.Vault.Auth.SecretIDFile} {
		if !mounted(file) {
			t.Errorf("%s is on no volume", file)
		}
	}
	bootstrap, err := os.ReadFile("envoy/bootstrap.yaml")
	if err != nil || !strings.Contains(string(bootstrap), c.Sidecar.Listen.ExtAuthz.Addr) {
		t.Errorf("Envoy's bootstrap does not ask at %s, %v", c.Sidecar.Listen.ExtAuthz, err)
	}
}
