package sidecar

import (
	"bytes"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
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
// than its own.
var rootVariables = [...]string{ //nolint:gochecknoglobals // an array of constants
	"SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "NODE_EXTRA_CA_CERTS", "GIT_SSL_CAINFO", "AWS_CA_BUNDLE", "DENO_CERT",
	"GRPC_DEFAULT_SSL_ROOTS_FILE_PATH",
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

// operatorRoots returns the authorities that the operator named for programs, in
// the sidecar's environment or in process.env, and what could not be read.
// foreignJava: JAVA_TOOL_OPTIONS names a trust store that could not be read.
func operatorRoots(env []string, extra map[string]string) (roots []*x509.Certificate, foreignJava bool, warnings []string) {
	value := lookupIn(env, extra)
	for _, name := range slices.Concat(rootVariables[:], toolRootVariables[:], []string{"SSL_CERT_DIR"}) {
		if value(name) == "" {
			continue
		}
		paths := []string{value(name)}
		if name == "SSL_CERT_DIR" {
			paths = filepath.SplitList(value(name))
		}
		for _, path := range paths {
			found, err := readRoots(path)
			if err == nil && len(found) == 0 {
				err = errors.New("it holds no certificate in PEM")
			}
			if err != nil && !(name == "SSL_CERT_DIR" && errors.Is(err, os.ErrNotExist)) {
				warnings = append(warnings, fmt.Sprintf("authorities of %s=%q are not trusted by the plugin: %v; name a readable file in PEM", name, path, err))
			}
			roots = append(roots, found...)
		}
	}
	for _, name := range javaVariables {
		path, password, ok := javaStoreOf(value(name))
		if !ok {
			continue
		}
		found, err := readJavaStore(path, password)
		roots = append(roots, found...)
		if err == nil && name == javaVariables[0] {
			continue // the options that are added name another, which holds these too
		}
		foreignJava = foreignJava || name == javaVariables[0]
		warnings = append(warnings, fmt.Sprintf("the trust store %q of %s does not hold the sidecar's authority, and Java refuses granted https: remove the option, or use a PKCS#12 store in JAVA_TOOL_OPTIONS", path, name))
	}
	return roots, foreignJava, warnings
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

// readRoots reads the certificates of a file, or of the files of a folder. It
// runs with the sidecar's privileges: certificates are all that is taken out.
func readRoots(path string) ([]*x509.Certificate, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if !info.IsDir() {
		data, err := readRegular(path)
		return parseCertificates(data), err
	}
	entries, err := os.ReadDir(path)
	if err != nil {
		return nil, err
	}
	if len(entries) > maxRootsFiles {
		return nil, fmt.Errorf("it has more than %d files", maxRootsFiles)
	}
	var all []*x509.Certificate
	for _, entry := range entries {
		if data, err := readRegular(filepath.Join(path, entry.Name())); err == nil { // others are no files of certificates
			all = append(all, parseCertificates(data)...)
		}
	}
	return distinct(all), nil
}

// readRegular reads a regular file, and waits for nothing.
func readRegular(path string) ([]byte, error) {
	file, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	info, err := file.Stat()
	switch {
	case err != nil:
		return nil, err
	case !info.Mode().IsRegular():
		return nil, errors.New("it is not a regular file")
	case info.Size() > maxRootsFile:
		return nil, fmt.Errorf("it is larger than %d bytes", maxRootsFile)
	}
	return io.ReadAll(io.LimitReader(file, maxRootsFile))
}

// parseCertificates returns the certificates of a PEM file, and leaves out
// everything else in it.
func parseCertificates(data []byte) []*x509.Certificate {
	var all []*x509.Certificate
	for rest := data; ; {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			return all
		}
		if block.Type != "CERTIFICATE" {
			continue
		}
		if cert, err := x509.ParseCertificate(block.Bytes); err == nil {
			all = append(all, cert)
		}
	}
}

// distinct returns each certificate once, in order.
func distinct(all []*x509.Certificate) []*x509.Certificate {
	seen := make(map[string]bool, len(all))
	out := all[:0:0]
	for _, cert := range all {
		if !seen[string(cert.Raw)] {
			seen[string(cert.Raw)] = true
			out = append(out, cert)
		}
	}
	return out
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
