package configs

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/chaperone-proxy/chaperone/authz"
)

// TestLoad compares everything that is loaded from testdata/good with a golden
// file.
func TestLoad(t *testing.T) {
	dir, err := filepath.Abs("testdata/good")
	if err != nil {
		t.Fatal(err)
	}
	c, err := Load("testdata/good/sidecar.yaml", now)
	if err != nil {
		t.Fatal(err)
	}
	if c.Policy == nil || c.Sidecar.Vault == nil || !strings.HasPrefix(c.Sidecar.Vault.CA, "-----BEGIN CERTIFICATE") {
		t.Errorf("got policy %v, vault %+v", c.Policy, c.Sidecar.Vault)
	}
	if len(c.Grants) == 0 || !strings.HasPrefix(c.Grants[0].Rules[0].To.TLS.CA, "-----BEGIN CERTIFICATE") {
		t.Error("the authorities of tls.caFile are not read")
	}
	data, err := json.MarshalIndent(map[string]any{
		"name": c.Name, "sidecar": c.Sidecar, "grants": c.Grants, "guardrails": c.Guardrails, "files": c.Files, "warnings": strings.Split(c.Warnings.Error(), "\n"),
	}, "", "  ")
	if err != nil {
		t.Fatal(err)
	}
	got := strings.ReplaceAll(string(data), dir, "DIR") + "\n"
	const golden = "testdata/good/golden.txt"
	if *update {
		if err := os.WriteFile(golden, []byte(got), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), got); diff != "" {
		t.Errorf("want (-), got (+):\n%s", diff)
	}
}

func TestDefaults(t *testing.T) {
	dir := t.TempDir()
	write(t, filepath.Join(dir, "sidecar.yaml"), minimalSidecar)
	write(t, filepath.Join(dir, "grants", "README"), "not a document")
	c, err := Load(filepath.Join(dir, "sidecar.yaml"), now)
	if err != nil {
		t.Fatal(err)
	}
	want := Sidecar{
		Plugin: "weather", Grants: []string{dir + "/grants"}, StateDir: dir + "/state",
		Kernel: KernelRequired, Mode: authz.ModeEnforce, OnBadReload: OnBadReloadKeep, Drain: authz.Duration(10 * time.Second),
		Process: Process{User: UserDynamic, Network: NetworkOwn, View: ViewOwn},
		Listen:  Listen{Admin: Address{"unix", dir + "/state/admin.sock"}},
		Audit:   Audit{File: dir + "/state/audit.jsonl", MaxSize: 256 << 20, Keep: 20},
	}
	if diff := cmp.Diff(want, c.Sidecar); diff != "" {
		t.Errorf("want (-), got (+):\n%s", diff)
	}
	if len(c.Warnings) != 1 || !strings.Contains(c.Warnings[0].Message, "everything it asks for is refused") {
		t.Errorf("got warnings %v, want one about the lack of grants", c.Warnings)
	}
	until := now.Add(24 * time.Hour).UTC().Format(time.RFC3339)
	write(t, filepath.Join(dir, "sidecar.yaml"), strings.Replace(minimalSidecar, "stateDir: state", "stateDir: state, mode: observe, observeUntil: "+until, 1))
	c, err = Load(filepath.Join(dir, "sidecar.yaml"), now)
	if err != nil || len(c.Warnings) != 1 || !strings.Contains(c.Warnings[0].Message, "everything it asks for is observed until "+until+", and refused then") {
		t.Errorf("got warnings %v and %v, want one about the lack of grants while it observes", c, err)
	}
}

// TestWarnsOfUserWithoutKernel checks that a user which the plugin will not have is no
// silent promise: without the kernel half it runs as the sidecar's.
func TestWarnsOfUserWithoutKernel(t *testing.T) {
	for kernel, want := range map[string]bool{"off": true, "preferred": false} {
		dir := t.TempDir()
		if err := os.Mkdir(filepath.Join(dir, "grants"), 0o700); err != nil {
			t.Fatal(err)
		}
		write(t, filepath.Join(dir, "sidecar.yaml"), strings.Replace(minimalSidecar, "stateDir: state", "stateDir: state, kernel: \""+kernel+"\", process: {user: nobody}", 1))
		c, err := Load(filepath.Join(dir, "sidecar.yaml"), time.Now())
		if err != nil {
			t.Fatal(err)
		}
		if got := strings.Contains(c.Warnings.Error(), "spec.process.user: is not used with kernel: off"); got != want {
			t.Errorf("kernel: %s warns of the user: %v, want %v; got %v", kernel, got, want, c.Warnings)
		}
	}
}

const minimalSidecar = `
apiVersion: chaperone.dev/v1alpha1
kind: Sidecar
metadata: {name: weather}
spec: {plugin: weather, grants: [grants], stateDir: state}
`

const minimalGrant = `
apiVersion: chaperone.dev/v1alpha1
kind: PluginGrant
metadata: {name: weather}
spec:
  plugin: weather
  notAfter: 2027-01-31T00:00:00Z
  rules: [{id: read, reason: Reads, to: {hosts: [api.example]}, methods: [GET], paths: [/a]}]
`

func write(t *testing.T, path, content string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
}

// configMap makes a folder as the kubelet mounts a ConfigMap: the files are
// links through ..data, which is replaced as a whole.
func configMap(t *testing.T, dir, version string, files map[string]string) {
	t.Helper()
	for name, content := range files {
		write(t, filepath.Join(dir, "..v"+version, name), content)
		if err := os.Symlink(filepath.Join("..data", name), filepath.Join(dir, name)); err != nil && !errors.Is(err, os.ErrExist) {
			t.Fatal(err)
		}
	}
	if err := os.Symlink("..v"+version, filepath.Join(dir, "..data_tmp")); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(filepath.Join(dir, "..data_tmp"), filepath.Join(dir, "..data")); err != nil {
		t.Fatal(err)
	}
}

func TestConfigMapIsReadOnce(t *testing.T) {
	dir := t.TempDir()
	write(t, filepath.Join(dir, "sidecar.yaml"), minimalSidecar)
	configMap(t, filepath.Join(dir, "grants"), "1", map[string]string{"weather.yaml": minimalGrant})
	write(t, filepath.Join(dir, "grants", ".draft.yaml"), "hidden, and no document")
	c, err := Load(filepath.Join(dir, "sidecar.yaml"), now)
	if err != nil {
		t.Fatal(err)
	}
	if len(c.Grants) != 1 || len(c.Files) != 2 {
		t.Errorf("got %d grants from %v, want 1 from 2 files", len(c.Grants), c.Files)
	}
}

// TestInline loads everything from one file, which its own grants name too.
func TestInline(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "all.yaml")
	write(t, path, strings.Replace(minimalSidecar, "[grants]", "[., all.yaml]", 1)+"---"+minimalGrant)
	c, err := Load(path, now)
	if err != nil {
		t.Fatal(err)
	}
	if len(c.Grants) != 1 || len(c.Files) != 1 {
		t.Errorf("got %d grants from %v, want 1 from 1 file", len(c.Grants), c.Files)
	}
}

func TestCheck(t *testing.T) {
	got, err := Check(now, "testdata/good") // the Sidecar brings what it names
	if err != nil {
		t.Fatal(err)
	}
	want := []Document{
		{"testdata/good/guardrails.yaml", 1, KindGuardrail, "company", ""},
		{"testdata/good/sidecar.yaml", 1, KindSidecar, "weather", "weather"},
		{"testdata/good/grants/a-weather.yaml", 2, KindGrant, "weather", "weather"},
		{"testdata/good/grants/a-weather.yaml", 33, KindGrant, "other", "other"},
		{"testdata/good/grants/b-weather.json", 1, KindGrant, "weather-tls", "weather"},
	}
	if diff := cmp.Diff(want, got.Documents); diff != "" {
		t.Errorf("want (-), got (+):\n%s", diff)
	}
	if len(got.Files) != 5 {
		t.Errorf("got files %v, want 4 and the authorities", got.Files)
	}
}

func TestUnreadable(t *testing.T) {
	dir := t.TempDir()
	t.Chdir(dir)
	write(t, "sidecar.yaml", minimalSidecar)
	write(t, "grants/big.yaml", strings.Repeat("#", maxFileSize+1))
	if err := os.Symlink("nowhere", "grants/dangling.yaml"); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("loop.yaml", "grants/loop.yaml"); err != nil {
		t.Fatal(err)
	}
	if err := makePipe("grants/pipe.yaml"); err != nil {
		t.Fatal(err)
	}
	write(t, "grants/folder.yaml/x.yaml", "not read")
	_, err := Load("sidecar.yaml", now)
	want := strings.TrimSpace(`
sidecar.yaml:5:34: spec.grants[0]: grants/big.yaml is larger than 1MiB; use several files
sidecar.yaml:5:34: spec.grants[0]: grants/dangling.yaml does not exist
sidecar.yaml:5:34: spec.grants[0]: grants/loop.yaml cannot be read: too many links
sidecar.yaml:5:34: spec.grants[0]: grants/pipe.yaml is not a regular file`)
	if err == nil || err.Error() != want {
		t.Errorf("got\n%v\nwant\n%s", err, want)
	}
	for path, want := range map[string]string{".": ".: is a folder; name a file", "absent.yaml": "absent.yaml: does not exist"} {
		if _, err := Load(path, now); err == nil || err.Error() != want {
			t.Errorf("Load(%q): got %v, want %s", path, err, want)
		}
	}
	if _, err := Check(now, "absent.yaml"); err == nil || err.Error() != "absent.yaml: does not exist" {
		t.Errorf("got %v", err)
	}
}

// TestExtAuthzTLS takes a real certificate and its key, and no other key.
func TestExtAuthzTLS(t *testing.T) {
	dir := t.TempDir()
	cert, key := certificate(t)
	_, other := certificate(t)
	for name, content := range map[string]string{"c.pem": cert, "k.pem": key, "other.pem": other} {
		write(t, filepath.Join(dir, name), content)
	}
	for name, want := range map[string]string{"k.pem": "", "other.pem": "does not go with the certificate"} {
		write(t, filepath.Join(dir, "sidecar.yaml"), strings.Replace(minimalSidecar, "[grants]",
			`[], listen: {extAuthz: "0.0.0.0:9191", extAuthzTLS: {certFile: c.pem, keyFile: `+name+`, clientCAFile: c.pem}}`, 1))
		c, err := Load(filepath.Join(dir, "sidecar.yaml"), now)
		if want != "" {
			if err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("%s: got %v, want %s", name, err, want)
			}
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		if slices.ContainsFunc(c.Files, func(f File) bool { return strings.HasSuffix(f.Path, "k.pem") }) {
			t.Error("the digest of a private key is in the record")
		}
	}
}

func TestWarnings(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "sidecar.yaml")
	write(t, path, strings.Replace(minimalSidecar, "[grants]", `[.], process: {user: root, unsafeSameUser: true},
  listen: {extAuthz: "0.0.0.0:9191", metrics: "0.0.0.0:15090"},
  vault: {address: "http://vault.example:8200", auth: {method: token, tokenFile: /dev/null}}`, 1))
	c, err := Load(path, now)
	if err != nil {
		t.Fatal(err)
	}
	var fields []string
	for _, w := range c.Warnings {
		fields = append(fields, w.Field)
	}
	slices.Sort(fields)
	want := []string{"spec.grants", "spec.listen.extAuthz", "spec.listen.metrics", "spec.process.unsafeSameUser", "spec.vault.address"}
	if diff := cmp.Diff(want, fields); diff != "" {
		t.Errorf("want (-), got (+):\n%s", diff)
	}
}

func TestAddress(t *testing.T) {
	for text, want := range map[string]Address{
		"127.0.0.1:0": {"tcp", "127.0.0.1:0"}, "[::1]:15001": {"tcp", "[::1]:15001"}, "unix:/run/x": {"unix", "/run/x"}, "unix:x": {"unix", "x"},
	} {
		var got Address
		if err := got.UnmarshalText([]byte(text)); err != nil || got != want || got.String() != text {
			t.Errorf("%q: got %+v, %v", text, got, err)
		}
	}
	for _, text := range []string{"", "127.0.0.1", ":1", "localhost:1", "1.2.3.4:65536", "[fe80::1%eth0]:1", "unix:", "unix://x", "unix:@x", "tcp:1.2.3.4:5"} {
		var got Address
		if err := got.UnmarshalText([]byte(text)); err == nil || !got.IsZero() {
			t.Errorf("%q: got %+v, want an error", text, got)
		}
	}
}

// A mount is named as the method is enabled at, and not by the path that vault
// auth list prints: the login would be sent to auth/auth/approle.
func TestVaultMountIsNotItsPath(t *testing.T) {
	for mount, says := range map[string]string{
		"auth/approle": "write approle", "/auth/team/approle/": "write team/approle",
		"approle": "", "team/approle": "", "authority": "",
	} {
		var got string
		a := VaultAuth{Method: VaultAppRole, Mount: mount, RoleIDFile: "r", SecretIDFile: "s"}
		a.validate(func(path, format string, args ...any) {
			if path == "spec.vault.auth.mount" {
				got = fmt.Sprintf(format, args...)
			}
		})
		if (says == "") != (got == "") || !strings.Contains(got, says) {
			t.Errorf("mount %q: %q, want %q", mount, got, says)
		}
	}
}
