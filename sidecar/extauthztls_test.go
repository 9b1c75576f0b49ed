package sidecar

import (
	"crypto/tls"
	"net"
	"os"
	"path/filepath"
	"testing"

	"github.com/chaperone-proxy/chaperone/configs"
	"github.com/chaperone-proxy/chaperone/internal/testenv"
)

// TestDoorTLSReload renews the certificate of the ext_authz listener while it
// listens, and keeps the old one when the new files cannot be used.
func TestDoorTLSReload(t *testing.T) {
	ca := testenv.MustGet(testenv.NewCA("door"))(t)
	dir := t.TempDir()
	files := &configs.ListenTLS{
		CertFile: filepath.Join(dir, "cert.pem"), KeyFile: filepath.Join(dir, "key.pem"), ClientCAFile: filepath.Join(dir, "ca.pem"),
	}
	testenv.Must(t, ca.WriteFile(files.ClientCAFile))
	renew := func() {
		testenv.Must(t, testenv.WritePair(testenv.MustGet(ca.Issue("door.example"))(t), files.CertFile, files.KeyFile))
	}
	renew()
	door := testenv.MustGet(newExtAuthzTLS(files))(t)
	client := &tls.Config{
		Certificates: []tls.Certificate{testenv.MustGet(ca.Issue("envoy.example"))(t)}, RootCAs: ca.Pool(),
		ServerName: "door.example", NextProtos: []string{"h2"},
	}
	serial := func() string {
		t.Helper()
		ours, theirs := net.Pipe()
		defer ours.Close()
		go func() { _ = tls.Server(theirs, door.config()).HandshakeContext(t.Context()) }()
		conn := tls.Client(ours, client)
		testenv.Must(t, conn.HandshakeContext(t.Context()))
		if got := conn.ConnectionState().NegotiatedProtocol; got != "h2" {
			t.Errorf("protocol %q", got)
		}
		return conn.ConnectionState().PeerCertificates[0].SerialNumber.String()
	}
	first := serial()
	renew()
	if again := serial(); again != first {
		t.Error("the files were read before a reload")
	}
	testenv.Must(t, door.reload())
	second := serial()
	if second == first {
		t.Error("the certificate is the old one after a reload")
	}
	testenv.Must(t, os.WriteFile(files.CertFile, []byte("no certificate"), 0o600))
	if err := door.reload(); err == nil {
		t.Error("a file that is no certificate was taken")
	}
	if kept := serial(); kept != second {
		t.Error("files that cannot be used replaced the certificate")
	}
}
