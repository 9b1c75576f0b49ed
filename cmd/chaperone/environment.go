package main

import (
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"maps"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"

	pkcs12 "software.sslmate.com/src/go-pkcs12"

	"github.com/chaperone-proxy/chaperone/authz"
)

// trustStorePassword protects nothing: a trust store holds certificates that
// everybody may read, and Java wants a password to read it.
const trustStorePassword = "changeit"

// trustBundle is the files through which a plugin's programs come to trust its
// own certificate authority beside the system's. They lie in a folder that the
// plugin can read and not write.
type trustBundle struct {
	dir    string
	system []byte // PEM
}

// Where systems keep their roots, most common first.
var systemRoots = [...]string{ //nolint:gochecknoglobals // an array of constants
	"/etc/ssl/certs/ca-certificates.crt", // Debian, Alpine
	"/etc/pki/tls/certs/ca-bundle.crt",   // Fedora
	"/etc/ssl/ca-bundle.pem",             // openSUSE
	"/etc/ssl/cert.pem",                  // Alpine, BSD
}

// newTrustBundle makes the folder. It has no files until write.
func newTrustBundle() (*trustBundle, error) {
	dir, err := os.MkdirTemp("", "chaperone-trust-")
	if err != nil {
		return nil, fmt.Errorf("make trust folder: %w", err)
	}
	if err := os.Chmod(dir, 0o711); err != nil { //nolint:gosec // the plugin's user enters it
		return nil, errors.Join(fmt.Errorf("make trust folder: %w", err), os.RemoveAll(dir))
	}
	return &trustBundle{dir: dir, system: systemCertificates()}, nil // without system roots the bundle holds ours alone
}

// systemCertificates returns the system's roots, PEM; nil where there are none.
func systemCertificates() []byte {
	for _, file := range systemRoots {
		if data, err := os.ReadFile(file); err == nil {
			return data
		}
	}
	return nil
}

func (b *trustBundle) pemFile() string { return filepath.Join(b.dir, "ca-bundle.pem") }
func (b *trustBundle) p12File() string { return filepath.Join(b.dir, "truststore.p12") }

// Close removes the files.
func (b *trustBundle) Close() error { return os.RemoveAll(b.dir) }

// write replaces the files by the system's roots and the plugin's authority,
// PEM. A program that reads them meanwhile sees the old ones or the new ones.
func (b *trustBundle) write(ca []byte) error {
	bundle := slices.Concat(ca, []byte("\n"), b.system)
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

// pluginEnvironment returns the environment a plugin is started with: the
// sidecar's own less what is the sidecar's business, the proxy's address for
// programs that ask for one, and where to find the certificates to trust.
func pluginEnvironment(base []string, extra map[string]string, proxy string, token authz.Secret, trust *trustBundle) []string {
	env := map[string]string{}
	for _, entry := range base {
		name, value, _ := strings.Cut(entry, "=")
		if !forSidecarOnly(name) {
			env[name] = value
		}
	}
	maps.Copy(env, proxyVariables(proxy, token))
	maps.Copy(env, trust.variables())
	for name, value := range extra {
		if !forSidecarOnly(name) {
			env[name] = value
		}
	}
	out := make([]string, 0, len(env))
	for _, name := range slices.Sorted(maps.Keys(env)) {
		out = append(out, name+"="+env[name])
	}
	return out
}

// forSidecarOnly reports whether a variable must not reach the plugin: it
// configures the sidecar, is a way to Vault, or speaks for the service.
func forSidecarOnly(name string) bool {
	return strings.HasPrefix(name, "CHAPERONE_") || strings.HasPrefix(name, "VAULT_") || name == "NOTIFY_SOCKET" || name == ""
}

func proxyVariables(proxy string, token authz.Secret) map[string]string {
	if proxy == "" {
		return nil
	}
	address := url.URL{Scheme: "http", Host: proxy}
	if !token.Empty() {
		address.User = url.UserPassword("chaperone", token.Reveal())
	}
	out := map[string]string{"NODE_USE_ENV_PROXY": "1"}
	for _, name := range []string{"HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"} {
		out[name], out[strings.ToLower(name)] = address.String(), address.String()
	}
	const direct = "localhost,127.0.0.1,::1"
	out["NO_PROXY"], out["no_proxy"] = direct, direct
	return out
}

func (b *trustBundle) variables() map[string]string {
	out := map[string]string{}
	for _, name := range []string{
		"SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "NODE_EXTRA_CA_CERTS", "GIT_SSL_CAINFO", "AWS_CA_BUNDLE", "DENO_CERT",
	} {
		out[name] = b.pemFile()
	}
	out["JAVA_TOOL_OPTIONS"] = "-Djavax.net.ssl.trustStore=" + b.p12File() +
		" -Djavax.net.ssl.trustStoreType=PKCS12 -Djavax.net.ssl.trustStorePassword=" + trustStorePassword
	return out
}
