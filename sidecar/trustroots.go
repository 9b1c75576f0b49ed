package sidecar

import (
	"bytes"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	pkcs12 "software.sslmate.com/src/go-pkcs12"
)

const (
	maxRootsFile  = 16 << 20 // bytes of one file of certificates
	maxRootsFiles = 4096     // files of one folder
)

// Variables by which programs are given authorities. All of them are the trust
// bundle for the plugin. gRPC's C core (Python, Ruby, PHP, C++) reads no other
// than its own, and PostgreSQL's libpq no other than PGSSLROOTCERT.
var rootVariables = [...]string{ //nolint:gochecknoglobals // an array of constants
	"SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "NODE_EXTRA_CA_CERTS", "GIT_SSL_CAINFO", "AWS_CA_BUNDLE", "DENO_CERT",
	"GRPC_DEFAULT_SSL_ROOTS_FILE_PATH", "PGSSLROOTCERT",
}

// Variables by which single tools are given authorities in place of those above.
// Where the operator sets one it is the trust bundle for the plugin; elsewhere it
// stays unset, because each of these tools reads one of the above, or the
// system's bundle, without it.
var toolRootVariables = [...]string{ //nolint:gochecknoglobals // an array of constants
	"PIP_CERT", "CARGO_HTTP_CAINFO", "CARGO_HTTP_PROXY_CAINFO", "NPM_CONFIG_CAFILE", "npm_config_cafile", "YARN_HTTPS_CA_FILE_PATH",
	"HTTPLIB2_CA_CERTS", "WEBSOCKET_CLIENT_CA_BUNDLE", "NIX_SSL_CERT_FILE", "NIX_GIT_SSL_CAINFO", "GIT_PROXY_SSL_CAINFO",
	"CLOUDSDK_CORE_CUSTOM_CA_CERTS_FILE", "BUNDLE_SSL_CA_CERT", "COMPOSER_CAFILE", "HEX_CACERTS_PATH", "JULIA_SSL_CA_ROOTS_PATH",
	"PERL_LWP_SSL_CA_FILE", "HTTPS_CA_FILE", "SYSTEM_CERTIFICATE_PATH",
}

// Variables with options for every Java virtual machine. The first is the one
// that the sidecar adds to.
var javaVariables = [...]string{"JAVA_TOOL_OPTIONS", "JDK_JAVA_OPTIONS", "_JAVA_OPTIONS"} //nolint:gochecknoglobals // an array of constants

const (
	javaStore    = "-Djavax.net.ssl.trustStore="
	javaPassword = "-Djavax.net.ssl.trustStorePassword=" //nolint:gosec // the name of an option
)

// rootSet holds certificates in DER, each once and in the order of their addition. The
// operator's variables often name one file many times: each file is read once, and each
// certificate parsed once.
type rootSet struct {
	all   [][]byte
	seen  map[string]bool // by DER
	files map[fileID]int  // how many certificates a file has that was read
}

// fileID is the identity of a file, by whatever path.
type fileID struct{ dev, ino uint64 }

func idOf(info fs.FileInfo) fileID {
	stat, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return fileID{} // never on Unix
	}
	return fileID{stat.Dev, stat.Ino}
}

func newRootSet() *rootSet { return &rootSet{seen: map[string]bool{}, files: map[fileID]int{}} }

func (r *rootSet) add(der []byte) {
	if !r.seen[string(der)] {
		r.seen[string(der)] = true
		r.all = append(r.all, der)
	}
}

// addPEM adds the certificates of a PEM file, leaves out everything else in it, and
// returns how many certificates the file has.
func (r *rootSet) addPEM(data []byte) (held int) {
	for block, rest := pem.Decode(data); block != nil; block, rest = pem.Decode(rest) {
		if block.Type != "CERTIFICATE" {
			continue
		}
		if !r.seen[string(block.Bytes)] {
			if _, err := x509.ParseCertificate(block.Bytes); err != nil {
				continue
			}
			r.add(block.Bytes)
		}
		held++
	}
	return held
}

// addFile adds the certificates of a PEM file, and returns how many it has.
func (r *rootSet) addFile(path string) (held int, err error) {
	// A system's folder names each file twice: most need not be opened.
	if info, err := os.Stat(path); err == nil {
		if held, ok := r.files[idOf(info)]; ok {
			return held, nil
		}
	}
	file, info, err := openRegular(path)
	if err != nil {
		return 0, err
	}
	defer file.Close()
	id := idOf(info)
	if held, ok := r.files[id]; ok {
		return held, nil
	}
	data, err := io.ReadAll(io.LimitReader(file, maxRootsFile))
	if err != nil {
		return 0, err
	}
	held = r.addPEM(data)
	r.files[id] = held
	return held, nil
}

// addPath adds the certificates of a file, or of the files of a folder, and returns how
// many those have. It runs with the sidecar's privileges: certificates are all that is
// taken out.
func (r *rootSet) addPath(path string) (held int, err error) {
	info, err := os.Stat(path)
	if err != nil {
		return 0, err
	}
	if !info.IsDir() {
		return r.addFile(path)
	}
	entries, err := os.ReadDir(path)
	if err != nil {
		return 0, err
	}
	if len(entries) > maxRootsFiles {
		return 0, fmt.Errorf("it has more than %d files", maxRootsFiles)
	}
	for _, entry := range entries {
		n, _ := r.addFile(filepath.Join(path, entry.Name())) // others are no files of certificates
		held += n
	}
	return held, nil
}

// addSystem adds the system's roots.
func (r *rootSet) addSystem() {
	for _, file := range systemRoots {
		if _, err := r.addFile(file); err == nil {
			return
		}
	}
}

// addOperator adds the authorities that the operator named for programs, in the
// sidecar's environment or in process.env, and returns warnings of those that could not
// be read. foreignJava: JAVA_TOOL_OPTIONS names a trust store that could not be read.
func (r *rootSet) addOperator(env []string, extra map[string]string) (foreignJava bool, warnings []string) {
	value := lookupIn(env, extra)
	for _, name := range slices.Concat(rootVariables[:], toolRootVariables[:], []string{"SSL_CERT_DIR"}) {
		if value(name) == "" || name == "PGSSLROOTCERT" && value(name) == "system" { // libpq's word for the system's roots
			continue
		}
		paths := []string{value(name)}
		if name == "SSL_CERT_DIR" {
			paths = filepath.SplitList(value(name))
		}
		for _, path := range paths {
			held, err := r.addPath(path)
			if err == nil && held == 0 {
				err = errors.New("it holds no certificate in PEM")
			}
			if err != nil && !(name == "SSL_CERT_DIR" && errors.Is(err, os.ErrNotExist)) {
				warnings = append(warnings, fmt.Sprintf("authorities of %s=%q are not trusted by the plugin: %v; name a readable file in PEM", name, path, err))
			}
		}
	}
	for _, name := range javaVariables {
		path, password, ok := javaStoreOf(value(name))
		if !ok {
			continue
		}
		found, err := readJavaStore(path, password)
		for _, cert := range found {
			r.add(cert.Raw)
		}
		if err == nil && name == javaVariables[0] {
			continue // the options that are added name another, which holds these too
		}
		foreignJava = foreignJava || name == javaVariables[0]
		warnings = append(warnings, fmt.Sprintf("the trust store %q of %s does not hold the sidecar's authority, and Java refuses granted https: remove the option, or use a PKCS#12 store in JAVA_TOOL_OPTIONS", path, name))
	}
	return foreignJava, warnings
}

// lookupIn returns a variable of process.env, or else of the sidecar's
// environment.
func lookupIn(env []string, extra map[string]string) func(string) string {
	return func(name string) string {
		if v, ok := extra[name]; ok {
			return v
		}
		for _, entry := range env {
			if v, ok := strings.CutPrefix(entry, name+"="); ok {
				return v
			}
		}
		return ""
	}
}

// readRegular reads a regular file, and waits for nothing.
func readRegular(path string) ([]byte, error) {
	file, _, err := openRegular(path)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	return io.ReadAll(io.LimitReader(file, maxRootsFile))
}

// openRegular opens a regular file of at most maxRootsFile bytes, and waits for nothing.
func openRegular(path string) (*os.File, fs.FileInfo, error) {
	file, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, nil, err
	}
	info, err := file.Stat()
	switch {
	case err != nil:
	case !info.Mode().IsRegular():
		err = errors.New("it is not a regular file")
	case info.Size() > maxRootsFile:
		err = fmt.Errorf("it is larger than %d bytes", maxRootsFile)
	}
	if err != nil {
		return nil, nil, errors.Join(err, file.Close())
	}
	return file, info, nil
}

// javaStoreOf returns the trust store that options for Java name, the last of
// several.
func javaStoreOf(options string) (path, password string, ok bool) {
	for option := range strings.FieldsSeq(options) {
		if v, found := strings.CutPrefix(option, javaStore); found {
			path, ok = v, true
		}
		if v, found := strings.CutPrefix(option, javaPassword); found {
			password = v
		}
	}
	return path, password, ok
}

// readJavaStore reads a trust store in PKCS#12.
func readJavaStore(path, password string) ([]*x509.Certificate, error) {
	data, err := readRegular(path)
	if err != nil {
		return nil, err
	}
	if bytes.HasPrefix(data, []byte{0xfe, 0xed, 0xfe, 0xed}) {
		return nil, errors.New("it is a store of the format JKS")
	}
	return pkcs12.DecodeTrustStore(data, password)
}
