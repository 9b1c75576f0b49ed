package vault

import (
	"bytes"
	"crypto/tls"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"github.com/chaperone-proxy/chaperone/internal/testenv"
)

// Vault's authority is rotated as it should be: both in the file, then Vault's
// certificate, then the old one goes. No connection fails, and a file that is cut
// off, empty or gone changes nothing.
func TestAuthoritiesAreRotated(t *testing.T) {
	t.Parallel()
	v := weatherVault(t, testenv.VaultConfig{})
	f := newFaults(t, v)
	authority := func() (*testenv.CA, []byte, *tls.Certificate) {
		ca := testenv.MustGet(testenv.NewCA("authority of Vault"))(t)
		path := filepath.Join(t.TempDir(), "ca.pem")
		testenv.Must(t, ca.WriteFile(path))
		pair := testenv.MustGet(ca.Issue("127.0.0.1"))(t)
		return ca, testenv.MustGet(os.ReadFile(path))(t), &pair
	}
	_, oldCA, oldPair := authority()
	_, newCA, newPair := authority()
	var pair atomic.Pointer[tls.Certificate]
	pair.Store(oldPair)
	front := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		f.forward(w, r)
	}))
	front.TLS = &tls.Config{MinVersion: tls.VersionTLS12, GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) {
		return &tls.Config{MinVersion: tls.VersionTLS12, Certificates: []tls.Certificate{*pair.Load()}}, nil
	}}
	front.StartTLS()
	t.Cleanup(front.Close)

	file := filepath.Join(t.TempDir(), "vault-ca.pem")
	replace := func(text []byte) {
		testenv.Must(t, os.WriteFile(file+".new", text, 0o600))
		testenv.Must(t, os.Rename(file+".new", file))
	}
	replace(oldCA)
	core, logs := observer.New(zap.InfoLevel)
	auth := approle(t, v, "weather", testenv.AppRole{Policy: readForecast})
	b := broker(t, Config{Address: front.URL, CAFile: file, Auth: auth, Logger: zap.New(core)})
	reaches := func() error { return b.login.checkHealth(t.Context()) }
	testenv.Must(t, reaches())

	both := append(bytes.Clone(oldCA), newCA...)
	for _, broken := range [][]byte{nil, both[:len(both)-40], []byte("nothing"), append(bytes.Clone(oldCA), "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"...)} {
		testenv.Must(t, os.WriteFile(file, broken, 0o600))
		for range 3 {
			testenv.Must(t, reaches())
		}
	}
	testenv.Must(t, os.Remove(file))
	testenv.Must(t, reaches())
	if n := logs.FilterMessage("vault authorities not replaced").Len(); n < 1 || n > 2 {
		t.Errorf("%d warnings of a broken file", n)
	}
	replace(both)
	testenv.Must(t, reaches())
	pair.Store(newPair)
	testenv.Must(t, reaches())
	replace(newCA)
	testenv.Must(t, reaches())
	pair.Store(oldPair)
	if err := reaches(); err == nil || !strings.Contains(err.Error(), "unknown authority") {
		t.Errorf("the authority that has gone is trusted: %v", err)
	}
	pair.Store(newPair)
	testenv.Must(t, b.Login(t.Context()))
	if n := logs.FilterMessage("vault authorities replaced").Len(); n != 2 {
		t.Errorf("%d lines of a replaced file", n)
	}
}
