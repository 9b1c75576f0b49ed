package main

import (
	"bytes"
	"crypto/sha256"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
	pkcs12 "software.sslmate.com/src/go-pkcs12"

	"github.com/chaperone-proxy/chaperone/internal/runtimedir"
)

// trustStorePassword protects nothing: a trust store holds certificates that
// everybody may read, and Java wants a password to read it.
const trustStorePassword = "changeit"

// trustPrefix begins the name of a trust folder among the temporary files.
const trustPrefix = "chaperone-trust-"

// maxTrustFile bounds a file of certificates that a variable names.
const maxTrustFile = 4 << 20

// trustVariables name the file of certificates for one client library each.
var trustVariables = [...]string{ //nolint:gochecknoglobals // an array of constants
	"SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "NODE_EXTRA_CA_CERTS", "GIT_SSL_CAINFO", "AWS_CA_BUNDLE", "DENO_CERT",
}

// Where systems keep their roots, most common first.
var systemRoots = [...]string{ //nolint:gochecknoglobals // an array of constants
	"/etc/ssl/certs/ca-certificates.crt", // Debian, Alpine
	"/etc/pki/tls/certs/ca-bundle.crt",   // Fedora
	"/etc/ssl/ca-bundle.pem",             // openSUSE
	"/etc/ssl/cert.pem",                  // Alpine, BSD
}

// trustBundle is the files through which a plugin's programs come to trust its
// own certificate authority beside the system's and those that the operator's
// environment names. They lie in a folder that the plugin can read and not write.
type trustBundle struct {
	dir     string
	lock    *os.File
	trusted []byte // PEM, the plugin's own authority not included
}

// newTrustBundle makes the folder of a sidecar's plugin, after it has removed
// the one that a killed sidecar left. It has no files until write. environ is
// the operator's environment.
func newTrustBundle(st *state, environ []string) (*trustBundle, error) {
	if err := removeTrust(st); err != nil {
		return nil, err
	}
	dir, err := makeTrustFolder(st)
	if err != nil {
		return nil, fmt.Errorf("make trust folder: %w", err)
	}
	// systemd-tmpfiles leaves a folder alone that is locked (tmpfiles.d(5), Age).
	lock, err := os.Open(dir)
	if err == nil {
		err = unix.Flock(int(lock.Fd()), unix.LOCK_SH|unix.LOCK_NB)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("lock trust folder: %w", err), os.RemoveAll(dir))
	}
	return &trustBundle{dir: dir, lock: lock, trusted: trustedCertificates(environ)}, nil
}

// makeTrustFolder makes the folder below the runtime directory that all
// sidecars share, by the name of the sidecar. Without one it lies among the
// temporary files, by a name that the state directory records.
func makeTrustFolder(st *state) (dir string, err error) {
	if runtimedir.Shared() == nil {
		if dir, err = sharedTrust(st.dir); err != nil {
			return "", err
		}
		if err := os.MkdirAll(dir, 0o711); err != nil { //nolint:gosec // the plugin's user enters it
			return "", err
		}
		return dir, errors.Join(os.Chmod(filepath.Dir(dir), 0o711), os.Chmod(dir, 0o711)) //nolint:gosec // whatever the umask
	}
	if dir, err = os.MkdirTemp("", trustPrefix); err != nil {
		return "", err
	}
	if err := errors.Join(os.Chmod(dir, 0o711), st.save(trustFile, dir)); err != nil { //nolint:gosec // the plugin's user enters it
		return "", errors.Join(err, os.RemoveAll(dir))
	}
	return dir, nil
}

// sharedTrust is the folder of a state directory's sidecar below the runtime
// directory of all.
func sharedTrust(stateDir string) (string, error) {
	id, err := runtimedir.ID(stateDir)
	return filepath.Join(runtimedir.Default, "trust", id), err
}

// removeTrust removes what an earlier sidecar of the state directory left of its
// trust folder.
func removeTrust(st *state) error {
	dir, err := sharedTrust(st.dir)
	if err == nil && runtimedir.Check(filepath.Dir(dir)) == nil {
		err = os.RemoveAll(dir)
	}
	if err != nil && !errors.Is(err, fs.ErrPermission) && !errors.Is(err, syscall.EROFS) {
		return fmt.Errorf("remove trust folder: %w", err)
	}
	var recorded string
	if err := st.load(trustFile, &recorded); err != nil || recorded == "" {
		return err
	}
	if filepath.IsAbs(recorded) && strings.HasPrefix(filepath.Base(recorded), trustPrefix) && ownFolder(recorded) {
		if err := os.RemoveAll(recorded); err != nil {
			return fmt.Errorf("remove trust folder: %w", err)
		}
	}
	return os.Remove(st.path(trustFile))
}

// ownFolder reports whether path is a folder of this user's, and no link to one.
func ownFolder(path string) bool {
	info, err := os.Lstat(path)
	if err != nil || !info.IsDir() {
		return false
	}
	owner, ok := info.Sys().(*syscall.Stat_t)
	return ok && int(owner.Uid) == os.Geteuid()
}

// trustedCertificates returns the system's roots and those of the files that
// the operator's environment names, each once, in PEM: a company's authority,
// say. A file that cannot be read, or is too large, adds none.
func trustedCertificates(environ []string) []byte {
	var out bytes.Buffer
	seen := map[[sha256.Size]byte]bool{}
	add := func(text []byte) {
		for {
			var block *pem.Block
			if block, text = pem.Decode(text); block == nil {
				return
			}
			// A file may hold a key too, which is not for the plugin.
			sum := sha256.Sum256(block.Bytes)
			if _, err := x509.ParseCertificate(block.Bytes); err != nil || block.Type != "CERTIFICATE" || seen[sum] {
				continue
			}
			seen[sum] = true
			out.Write(pem.EncodeToMemory(&pem.Block{Type: block.Type, Bytes: block.Bytes}))
		}
	}
	add(systemCertificates())
	for _, entry := range environ {
		name, path, _ := strings.Cut(entry, "=")
		for _, known := range trustVariables {
			if name != known || path == "" {
				continue
			}
			if data, err := readBounded(path); err == nil {
				add(data)
			}
		}
	}
	return out.Bytes()
}

// systemCertificates returns the system's roots, PEM; nil where there are none.
func systemCertificates() []byte {
	for _, file := range systemRoots {
		if data, err := readBounded(file); err == nil {
			return data
		}
	}
	return nil
}

// readBounded reads a regular file of at most maxTrustFile bytes.
func readBounded(path string) ([]byte, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() || info.Size() > maxTrustFile {
		return nil, fmt.Errorf("read %s: it is no regular file of at most %d bytes", path, maxTrustFile)
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, maxTrustFile))
}

func (b *trustBundle) pemFile() string { return filepath.Join(b.dir, "ca-bundle.pem") }
func (b *trustBundle) p12File() string { return filepath.Join(b.dir, "truststore.p12") }

// Close removes the files.
func (b *trustBundle) Close() error { return errors.Join(os.RemoveAll(b.dir), b.lock.Close()) }

// write replaces the files by those with the plugin's authority, PEM. A program
// that reads one at the same time sees the old one or the new one.
func (b *trustBundle) write(ca []byte) error {
	bundle := bytes.Join([][]byte{ca, b.trusted}, []byte("\n"))
	if err := replaceFile(b.pemFile(), bundle); err != nil {
		return fmt.Errorf("write trust bundle: %w", err)
	}
	var entries []pkcs12.TrustStoreEntry
	for rest := bundle; ; {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			break
		}
		if cert, err := x509.ParseCertificate(block.Bytes); err == nil {
			entries = append(entries, pkcs12.TrustStoreEntry{Cert: cert, FriendlyName: fmt.Sprintf("chaperone-%d", len(entries))})
		}
	}
	store, err := pkcs12.Modern.EncodeTrustStoreEntries(entries, trustStorePassword)
	if err == nil {
		err = replaceFile(b.p12File(), store)
	}
	if err != nil {
		return fmt.Errorf("write Java trust store: %w", err)
	}
	return nil
}

// replaceFile writes a file that everybody may read, whatever the umask, whole
// or not at all.
func replaceFile(path string, data []byte) error {
	if err := os.WriteFile(path+".new", data, 0o600); err != nil {
		return err
	}
	if err := os.Chmod(path+".new", 0o444); err != nil { //nolint:gosec // certificates, which the plugin reads
		return err
	}
	return os.Rename(path+".new", path)
}

// variables are those through which programs find the files.
func (b *trustBundle) variables() map[string]string {
	out := map[string]string{}
	for _, name := range trustVariables {
		out[name] = b.pemFile()
	}
	out[javaOptions] = "-Djavax.net.ssl.trustStore=" + b.p12File() +
		" -Djavax.net.ssl.trustStoreType=PKCS12 -Djavax.net.ssl.trustStorePassword=" + trustStorePassword
	return out
}
