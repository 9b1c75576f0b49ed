package sidecar

import (
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
	pkcs12 "software.sslmate.com/src/go-pkcs12"

	"github.com/chaperone-proxy/chaperone/internal/atomicfile"
	"github.com/chaperone-proxy/chaperone/internal/runtimedir"
	"github.com/chaperone-proxy/chaperone/internal/unixsock"
)

// trustStorePassword protects nothing: a trust store holds certificates that
// everybody may read, and Java wants a password to read it.
const trustStorePassword = "changeit"

// trustPrefix begins the name of a trust folder among the temporary files.
const trustPrefix = "chaperone-trust-"

// trustInterval is how often the files are looked at.
const trustInterval = 2 * time.Second

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
	roots   func() *foundRoots // reads them once
	reading sync.WaitGroup     // of begin

	mu    sync.Mutex
	lock  *os.File
	own   []byte           // the plugin's authority, PEM
	stale bool             // own is not in the files yet
	sizes map[string]int64 // of the files, in bytes by path; nil: closed. The content is encoded when it is written.
}

// foundRoots are the authorities that a plugin trusts beside its own.
type foundRoots struct {
	trusted      [][]byte // certificates in DER
	unmergedJava bool     // Java is given a trust store that is not merged and stays
	warnings     []string // about authorities of the operator's that are not trusted
}

// findRoots reads the system's authorities and those that the operator named.
func findRoots(environ []string, extra map[string]string) *foundRoots {
	roots := newRootSet()
	roots.addSystem()
	foreignJava, warnings := roots.addOperator(environ, extra)
	return &foundRoots{trusted: roots.all, unmergedJava: foreignJava, warnings: warnings}
}

// newTrustBundle makes the folder of a sidecar's plugin, after it has removed
// the one that a killed sidecar left. It has no files until write. environ is
// the operator's environment, extra that of process.env.
func newTrustBundle(st *state, environ []string, extra map[string]string) (*trustBundle, error) {
	if err := removeTrust(st); err != nil {
		return nil, err
	}
	dir, err := makeTrustFolder(st)
	if err != nil {
		return nil, fmt.Errorf("make trust folder: %w", err)
	}
	lock, err := lockTrust(dir)
	if err != nil {
		return nil, errors.Join(err, os.RemoveAll(dir))
	}
	roots := sync.OnceValue(func() *foundRoots { return findRoots(environ, extra) })
	return &trustBundle{dir: dir, lock: lock, roots: roots, sizes: map[string]int64{}}, nil
}

// begin has the authorities read beside other work: there are hundreds of files at some
// operators'. Each warning about them is passed on.
func (b *trustBundle) begin(warn func(string)) {
	b.reading.Go(func() {
		for _, text := range b.roots().warnings {
			warn(text)
		}
	})
}

// lockTrust locks a folder: systemd-tmpfiles leaves one alone that is locked
// (tmpfiles.d(5), Age).
func lockTrust(dir string) (*os.File, error) {
	lock, err := os.Open(dir)
	if err == nil {
		err = unix.Flock(int(lock.Fd()), unix.LOCK_SH|unix.LOCK_NB)
	}
	if err != nil {
		return nil, fmt.Errorf("lock trust folder: %w", err)
	}
	return lock, nil
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
	if err == nil && unixsock.CheckDir(filepath.Dir(dir)) == nil {
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

// systemCertificates returns the system's roots, PEM; nil where the system has no bundle.
func systemCertificates() []byte {
	for _, file := range systemRoots {
		if data, err := readRegular(file); err == nil {
			return data
		}
	}
	return nil
}

func (b *trustBundle) pemFile() string { return filepath.Join(b.dir, "ca-bundle.pem") }
func (b *trustBundle) p12File() string { return filepath.Join(b.dir, "truststore.p12") }

// Close removes the files.
func (b *trustBundle) Close() error {
	b.reading.Wait()
	b.mu.Lock()
	defer b.mu.Unlock()
	b.sizes = nil // so that the files are not written again
	return errors.Join(os.RemoveAll(b.dir), b.lock.Close())
}

// write replaces the files by those with the plugin's authority, PEM. A program
// that reads one at the same time sees the old one or the new one.
func (b *trustBundle) write(ca []byte) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.sizes == nil {
		return nil
	}
	b.own = ca
	return b.writeAll()
}

// stage has the next flush write the plugin's authority, PEM, unless a later one is written
// before.
func (b *trustBundle) stage(ca []byte) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.own, b.stale = ca, true
}

// flush writes an authority that was staged.
func (b *trustBundle) flush() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if !b.stale || b.sizes == nil {
		return nil
	}
	return b.writeAll()
}

func (b *trustBundle) writeAll() error {
	bundle, store, err := b.encode()
	if err != nil {
		return err
	}
	for path, data := range map[string][]byte{b.pemFile(): bundle, b.p12File(): store} {
		b.sizes[path] = int64(len(data))
		if err := atomicfile.Write(path, data, 0o444); err != nil {
			return fmt.Errorf("write trust bundle: %w", err)
		}
	}
	b.stale = false
	return nil
}

// encode returns the certificates as a bundle in PEM and as a trust store in PKCS#12,
// which both need no more of a certificate than its DER.
func (b *trustBundle) encode() (bundle, store []byte, err error) {
	roots := newRootSet()
	roots.addPEM(b.own)
	for _, der := range b.roots().trusted {
		roots.add(der)
	}
	entries := make([]pkcs12.TrustStoreEntry, len(roots.all))
	for i, der := range roots.all {
		entries[i] = pkcs12.TrustStoreEntry{Cert: &x509.Certificate{Raw: der}, FriendlyName: fmt.Sprintf("chaperone-%d", i)}
		bundle = append(bundle, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})...)
	}
	if store, err = pkcs12.Modern.EncodeTrustStoreEntries(entries, trustStorePassword); err != nil {
		return nil, nil, fmt.Errorf("encode Java trust store: %w", err)
	}
	return bundle, store, nil
}

// repair writes the files again if somebody removed or changed one, and reports
// whether that was so.
func (b *trustBundle) repair() (mended bool, err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for path, size := range b.sizes {
		info, err := os.Lstat(path)
		if err == nil && info.Mode() == 0o444 && info.Size() == size {
			continue
		}
		if !ownFolder(b.dir) {
			if err := b.recreate(); err != nil {
				return false, fmt.Errorf("make trust folder again: %w", err)
			}
		}
		return true, b.writeAll()
	}
	return false, nil
}

// recreate makes a folder that is gone. Its name is the same: the plugin has it.
func (b *trustBundle) recreate() error {
	if err := os.Mkdir(filepath.Dir(b.dir), 0o711); err != nil && !errors.Is(err, fs.ErrExist) { //nolint:gosec // the plugin's user enters it
		return err
	}
	if err := os.Mkdir(b.dir, 0o711); err != nil { //nolint:gosec // as above
		return err
	}
	if err := os.Chmod(b.dir, 0o711); err != nil { //nolint:gosec // whatever the umask
		return err
	}
	lock, err := lockTrust(b.dir)
	if err != nil {
		return err
	}
	old := b.lock
	b.lock = lock
	return old.Close()
}

// variables are those through which programs find the files.
func (b *trustBundle) variables() map[string]string {
	out := map[string]string{}
	for _, name := range rootVariables {
		out[name] = b.pemFile()
	}
	if !b.roots().unmergedJava {
		out[javaVariables[0]] = javaStore + b.p12File() + " -Djavax.net.ssl.trustStoreType=PKCS12 " + javaPassword + trustStorePassword
	}
	return out
}
