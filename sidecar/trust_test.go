package sidecar

import (
	"bytes"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	pkcs12 "software.sslmate.com/src/go-pkcs12"

	"github.com/chaperone-proxy/chaperone/authz"
	"github.com/chaperone-proxy/chaperone/internal/testenv"
)

func testState(t *testing.T) *state {
	t.Helper()
	st := testenv.MustGet(openState(filepath.Join(t.TempDir(), "state")))(t)
	t.Cleanup(func() { testenv.Must(t, st.Close()) })
	return st
}

// TestTrustOfOperator checks that the authorities that the operator's
// environment names stay trusted, and that nothing but certificates reaches the
// plugin.
func TestTrustOfOperator(t *testing.T) {
	company := testenv.MustGet(testenv.NewCA("a company"))(t)
	pair := testenv.MustGet(company.Issue("inside.company.example"))(t)
	dir := t.TempDir()
	certFile, keyFile := filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")
	testenv.Must(t, testenv.WritePair(pair, certFile, keyFile))
	key := testenv.MustGet(os.ReadFile(keyFile))(t)
	testenv.Must(t, os.WriteFile(filepath.Join(dir, "both.pem"), slices.Concat(key, company.PEM()), 0o600))
	for _, name := range slices.Concat(rootVariables[:], toolRootVariables[:]) {
		t.Run(name, func(t *testing.T) {
			environ := []string{"X=" + certFile, name + "=" + filepath.Join(dir, "both.pem"), "SSL_CERT_FILE="}
			b := testenv.MustGet(newTrustBundle(testState(t), environ, nil))(t)
			defer b.Close()
			testenv.Must(t, b.write(testenv.MustGet(testenv.NewCA("a plugin"))(t).PEM()))
			text := testenv.MustGet(os.ReadFile(b.pemFile()))(t)
			if bytes.Contains(text, []byte("PRIVATE KEY")) {
				t.Error("the bundle holds a key")
			}
			pool := x509.NewCertPool()
			pool.AppendCertsFromPEM(text)
			leaf := testenv.MustGet(x509.ParseCertificate(pair.Certificate[0]))(t)
			if _, err := leaf.Verify(x509.VerifyOptions{Roots: pool, DNSName: "inside.company.example"}); err != nil {
				t.Error(err)
			}
		})
	}
	for _, path := range []string{t.TempDir(), "/dev/zero", filepath.Join(dir, "missing"), keyFile} {
		b := testenv.MustGet(newTrustBundle(testState(t), []string{"SSL_CERT_FILE=" + path}, nil))(t)
		system := newRootSet()
		system.addSystem()
		if len(b.roots().trusted) != len(system.all) || len(b.roots().warnings) != 1 {
			t.Errorf("%s adds something, or is not reported: %q", path, b.roots().warnings)
		}
		b.Close()
	}
}

// TestTrustFolderLeft checks that the next sidecar of a stateDir and detach
// remove the folder of one that was killed, and nothing that somebody else put
// in its place.
func TestTrustFolderLeft(t *testing.T) {
	t.Run("next start", func(t *testing.T) {
		st := testState(t)
		killed := testenv.MustGet(newTrustBundle(st, nil, nil))(t)
		testenv.Must(t, os.WriteFile(filepath.Join(killed.dir, "left"), nil, 0o600))
		next := testenv.MustGet(newTrustBundle(st, nil, nil))(t)
		if _, err := os.Stat(filepath.Join(killed.dir, "left")); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("the folder of the killed one is there: %v", err)
		}
		testenv.Must(t, next.Close())
	})
	t.Run("detach", func(t *testing.T) {
		st := testState(t)
		killed := testenv.MustGet(newTrustBundle(st, nil, nil))(t)
		testenv.Must(t, removeTrust(st))
		if _, err := os.Stat(killed.dir); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("the folder is there: %v", err)
		}
	})
	t.Run("recorded path of something else", func(t *testing.T) {
		st := testState(t)
		precious := filepath.Join(t.TempDir(), "precious")
		testenv.Must(t, os.Mkdir(precious, 0o700))
		link := filepath.Join(t.TempDir(), trustPrefix+"1")
		testenv.Must(t, os.Symlink(precious, link))
		for _, path := range []string{precious, link} {
			testenv.Must(t, st.save(trustFile, path))
			testenv.Must(t, removeTrust(st))
			if _, err := os.Stat(precious); err != nil {
				t.Error(err)
			}
		}
	})
}

// TestPluginEnvironment checks what of the sidecar's variables reaches the
// plugin, and that options of Java's are added to.
func TestPluginEnvironment(t *testing.T) {
	found := &foundRoots{}
	b := &trustBundle{dir: "/trust", roots: func() *foundRoots { return found }}
	ours := b.variables()[javaVariables[0]]
	base := []string{
		"KEPT=1", "JAVA_TOOL_OPTIONS=-Xmx64m", "NOTIFY_SOCKET=1", "STATE_DIRECTORY=1", "RUNTIME_DIRECTORY=1", "CREDENTIALS_DIRECTORY=1",
		"WATCHDOG_USEC=1", "LISTEN_FDS=1", "SUDO_USER=1", "INVOCATION_ID=1", "CHAPERONE_ADMIN=1", "VAULT_TOKEN=1", "SSL_CERT_FILE=/company.pem",
		"PIP_CERT=/company.pem", "npm_config_cafile=",
	}
	for _, c := range []struct {
		name  string
		extra map[string]string
		java  string
	}{
		{"the operator's options", map[string]string{"CARGO_HTTP_CAINFO": "/stated.pem"}, "-Xmx64m " + ours},
		{"the configuration's options", map[string]string{javaVariables[0]: "-Xmx1g", "CARGO_HTTP_CAINFO": "/stated.pem"}, "-Xmx1g " + ours},
		{"the configuration's trust store", map[string]string{javaVariables[0]: "-Djavax.net.ssl.trustStore=/a", "CARGO_HTTP_CAINFO": "/stated.pem"}, "-Djavax.net.ssl.trustStore=/a"},
	} {
		t.Run(c.name, func(t *testing.T) {
			found.unmergedJava = strings.Contains(c.java, "/a")
			env := pluginEnvironment(base, c.extra, "127.0.0.1:1", authz.Secret{}, b)
			for _, want := range []string{
				"KEPT=1", javaVariables[0] + "=" + c.java, "SSL_CERT_FILE=/trust/ca-bundle.pem",
				"PIP_CERT=/trust/ca-bundle.pem", "npm_config_cafile=", "GRPC_DEFAULT_SSL_ROOTS_FILE_PATH=/trust/ca-bundle.pem",
				"CARGO_HTTP_CAINFO=/trust/ca-bundle.pem",
			} {
				if !slices.Contains(env, want) {
					t.Errorf("%s is missing in %v", want, env)
				}
			}
			for _, entry := range base {
				name, _, _ := strings.Cut(entry, "=")
				value := fmt.Sprintf("%s=1", name)
				if name != "KEPT" && slices.Contains(env, value) {
					t.Errorf("%s reached the plugin", name)
				}
			}
		})
	}
}

// TestTrustMended sweeps the files, and the folder, and finds them again at the
// same place.
func TestTrustMended(t *testing.T) {
	b := testenv.MustGet(newTrustBundle(testState(t), nil, nil))(t)
	testenv.Must(t, b.write(testenv.MustGet(testenv.NewCA("a plugin"))(t).PEM()))
	want := testenv.MustGet(os.ReadFile(b.pemFile()))(t)
	if mended, err := b.repair(); mended || err != nil {
		t.Errorf("got a repair of a complete bundle: %v, %v", mended, err)
	}
	for name, sweep := range map[string]func() error{
		"a file":                   func() error { return os.Remove(b.p12File()) },
		"the folder":               func() error { return os.RemoveAll(b.dir) },
		"a file that was cut":      func() error { return os.Truncate(b.pemFile(), 3) },
		"a mode that was narrowed": func() error { return os.Chmod(b.pemFile(), 0o400) },
	} {
		testenv.Must(t, sweep())
		if mended, err := b.repair(); !mended || err != nil {
			t.Errorf("%s: %v, %v", name, mended, err)
		}
		info, err := os.Stat(b.p12File())
		if got := testenv.MustGet(os.ReadFile(b.pemFile()))(t); !bytes.Equal(got, want) || err != nil || info.Mode() != 0o444 {
			t.Errorf("%s: the files are not as they were: %v", name, err)
		}
	}
	testenv.Must(t, b.Close())
	if mended, err := b.repair(); mended || err != nil {
		t.Errorf("after its end: %v, %v", mended, err)
	}
	if _, err := os.Stat(b.dir); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the folder is left: %v", err)
	}
}

// TestTrustOfConfiguration merges what process.env names, folders of
// certificates, and a trust store for Java.
func TestTrustOfConfiguration(t *testing.T) {
	company := testenv.MustGet(testenv.NewCA("a company"))(t)
	certs := []*x509.Certificate{company.Certificate}
	dir := t.TempDir()
	testenv.Must(t, os.WriteFile(filepath.Join(dir, "0a1b2c3d.0"), company.PEM(), 0o600))
	store := testenv.MustGet(pkcs12.Modern.EncodeTrustStore(certs, "secret"))(t)
	testenv.Must(t, os.WriteFile(filepath.Join(dir, "store.p12"), store, 0o600))
	testenv.Must(t, os.WriteFile(filepath.Join(dir, "store.jks"), []byte{0xfe, 0xed, 0xfe, 0xed, 0}, 0o600))
	for _, c := range []struct {
		name, value     string
		merged, foreign bool
	}{
		{"SSL_CERT_FILE", filepath.Join(dir, "0a1b2c3d.0"), true, false},
		{"REQUESTS_CA_BUNDLE", dir, true, false},
		{"SSL_CERT_DIR", "/nowhere:" + dir, true, false},
		{"JAVA_TOOL_OPTIONS", "-Xmx64m " + javaStore + filepath.Join(dir, "store.p12") + " " + javaPassword + "secret", true, false},
		{"JAVA_TOOL_OPTIONS", javaStore + filepath.Join(dir, "store.p12") + " " + javaPassword + "wrong", false, true},
		{"JAVA_TOOL_OPTIONS", javaStore + filepath.Join(dir, "store.jks"), false, true},
		{"_JAVA_OPTIONS", javaStore + filepath.Join(dir, "store.jks"), false, false},
	} {
		for _, extra := range []map[string]string{nil, {c.name: c.value}} {
			var environ []string
			if extra == nil {
				environ = []string{c.name + "=" + c.value}
			}
			b := testenv.MustGet(newTrustBundle(testState(t), environ, extra))(t)
			if merged := slices.ContainsFunc(b.roots().trusted, func(der []byte) bool { return bytes.Equal(der, certs[0].Raw) }); merged != c.merged || b.roots().unmergedJava != c.foreign {
				t.Errorf("%s=%s: merged %v, left alone %v: %q", c.name, c.value, merged, b.roots().unmergedJava, b.roots().warnings)
			}
			if (len(b.roots().warnings) > 0) == c.merged {
				t.Errorf("%s=%s: warned of %q", c.name, c.value, b.roots().warnings)
			}
			env := pluginEnvironment(environ, extra, "127.0.0.1:1", authz.Secret{}, b)
			if !slices.Contains(env, "SSL_CERT_FILE="+b.pemFile()) {
				t.Errorf("SSL_CERT_FILE is not the bundle: %v", env)
			}
			testenv.Must(t, b.Close())
		}
	}
}

// TestTrustBundle checks that the plugin's trust bundle has its own authority, also
// for Java.
func TestTrustBundle(t *testing.T) {
	b := testenv.MustGet(newTrustBundle(testState(t), nil, nil))(t)
	defer b.Close()
	ca := testenv.MustGet(testenv.NewCA("a plugin"))(t)
	testenv.Must(t, b.write(ca.PEM()))
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(testenv.MustGet(os.ReadFile(b.pemFile()))(t))
	pair := testenv.MustGet(ca.Issue("api.weather.example"))(t)
	leaf := testenv.MustGet(x509.ParseCertificate(pair.Certificate[0]))(t)
	if _, err := leaf.Verify(x509.VerifyOptions{Roots: pool, DNSName: "api.weather.example"}); err != nil {
		t.Error(err)
	}
	if info := testenv.MustGet(os.Stat(b.p12File()))(t); info.Size() == 0 {
		t.Error("the Java trust store is empty")
	}
	env := pluginEnvironment([]string{"PATH=/bin", "VAULT_TOKEN=x", "CHAPERONE_X=y", "http_proxy=other"}, map[string]string{"A": "b", "VAULT_ADDR": "z"}, "127.0.0.1:1", authz.Secret{}, b)
	text := strings.Join(env, "\n")
	for _, want := range []string{"PATH=/bin", "A=b", "http_proxy=http://127.0.0.1:1", "NODE_USE_ENV_PROXY=1", fmt.Sprintf("SSL_CERT_FILE=%s", b.pemFile())} {
		if !strings.Contains(text, want) {
			t.Errorf("%s is missing in %s", want, text)
		}
	}
	for _, not := range []string{"VAULT_", "CHAPERONE_X"} {
		if strings.Contains(text, not) {
			t.Errorf("%s reached the plugin", not)
		}
	}
}

// BenchmarkTrustBundle measures the part of a plugin's start that merges and writes the
// trusted authorities, where the operator's environment names the system's bundle often.
func BenchmarkTrustBundle(b *testing.B) {
	st := testenv.MustGet(openState(filepath.Join(b.TempDir(), "state")))(b)
	defer st.Close()
	ca := testenv.MustGet(testenv.NewCA("a plugin"))(b).PEM()
	var many []string
	for _, name := range slices.Concat(rootVariables[:], toolRootVariables[:]) {
		many = append(many, name+"="+systemRoots[0])
	}
	for name, environ := range map[string][]string{"plain": nil, "many": many} {
		b.Run(name, func(b *testing.B) {
			for b.Loop() {
				bundle := testenv.MustGet(newTrustBundle(st, environ, nil))(b)
				testenv.Must(b, bundle.write(ca))
				testenv.Must(b, bundle.Close())
			}
		})
	}
}

// An authority that is staged is in no file before the flush, and one that is written after
// it stays.
func TestStagedAuthority(t *testing.T) {
	b := &trustBundle{dir: t.TempDir(), roots: func() *foundRoots { return &foundRoots{} }, sizes: map[string]int64{}}
	first, second := testenv.MustGet(testenv.NewCA("first"))(t).PEM(), testenv.MustGet(testenv.NewCA("second"))(t).PEM()
	b.stage(first)
	if _, err := os.Stat(b.pemFile()); err == nil {
		t.Error("the staged authority is in the bundle")
	}
	testenv.Must(t, b.flush())
	if got := testenv.MustGet(os.ReadFile(b.pemFile()))(t); !bytes.Equal(got, first) {
		t.Errorf("got %s, want %s", got, first)
	}
	b.stage(first)
	testenv.Must(t, b.write(second))
	testenv.Must(t, b.flush())
	if got := testenv.MustGet(os.ReadFile(b.pemFile()))(t); !bytes.Equal(got, second) {
		t.Errorf("got %s, want %s", got, second)
	}
}
