package main

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
	for _, name := range trustVariables {
		t.Run(name, func(t *testing.T) {
			environ := []string{"X=" + certFile, name + "=" + filepath.Join(dir, "both.pem"), "SSL_CERT_FILE="}
			b := testenv.MustGet(newTrustBundle(testState(t), environ))(t)
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
	for _, path := range []string{dir, "/dev/zero", filepath.Join(dir, "missing"), keyFile} {
		b := testenv.MustGet(newTrustBundle(testState(t), []string{"SSL_CERT_FILE=" + path}))(t)
		if !bytes.Equal(b.trusted, trustedCertificates(nil)) {
			t.Errorf("%s adds something", path)
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
		killed := testenv.MustGet(newTrustBundle(st, nil))(t)
		testenv.Must(t, os.WriteFile(filepath.Join(killed.dir, "left"), nil, 0o600))
		next := testenv.MustGet(newTrustBundle(st, nil))(t)
		if _, err := os.Stat(filepath.Join(killed.dir, "left")); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("the folder of the killed one is there: %v", err)
		}
		testenv.Must(t, next.Close())
	})
	t.Run("detach", func(t *testing.T) {
		st := testState(t)
		killed := testenv.MustGet(newTrustBundle(st, nil))(t)
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
	b := &trustBundle{dir: "/trust"}
	ours := b.variables()[javaOptions]
	base := []string{
		"KEPT=1", "JAVA_TOOL_OPTIONS=-Xmx64m", "NOTIFY_SOCKET=1", "STATE_DIRECTORY=1", "RUNTIME_DIRECTORY=1", "CREDENTIALS_DIRECTORY=1",
		"WATCHDOG_USEC=1", "LISTEN_FDS=1", "CHAPERONE_ADMIN=1", "VAULT_TOKEN=1", "SSL_CERT_FILE=/company.pem",
	}
	for _, c := range []struct {
		name  string
		extra map[string]string
		java  string
	}{
		{"the operator's options", nil, "-Xmx64m " + ours},
		{"the configuration's options", map[string]string{javaOptions: "-Xmx1g"}, "-Xmx1g " + ours},
		{"the configuration's trust store", map[string]string{javaOptions: "-Djavax.net.ssl.trustStore=/a"}, "-Djavax.net.ssl.trustStore=/a"},
	} {
		t.Run(c.name, func(t *testing.T) {
			env := pluginEnvironment(base, c.extra, "127.0.0.1:1", authz.Secret{}, b)
			for _, want := range []string{"KEPT=1", javaOptions + "=" + c.java, "SSL_CERT_FILE=/trust/ca-bundle.pem"} {
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
