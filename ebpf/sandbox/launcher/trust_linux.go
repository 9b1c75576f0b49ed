package launcher

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	slash "path"
	"slices"
	"strconv"
)

// SystemBundles are the files in which distributions keep the certificates of
// the authorities that the system trusts, in PEM.
func SystemBundles() []string {
	return []string{
		"/etc/ssl/certs/ca-certificates.crt", // Debian, Alpine
		"/etc/pki/tls/certs/ca-bundle.crt",   // Fedora
		"/etc/ssl/ca-bundle.pem",             // openSUSE
		"/etc/ssl/cert.pem",                  // Alpine, BSD
	}
}

// replaceTrust puts a directory of links in the place of each directory that
// holds a bundle of the system's: one points to the view's bundle, the others to
// what the directory held. A link is followed at each use, so that programs see
// a bundle that is rewritten later.
func (v *View) replaceTrust() error {
	if v.Trust.Bundle == "" {
		return nil
	}
	bundles := map[string][]string{} // by directory, the names of its bundles
	for _, file := range SystemBundles() {
		path, err := resolve(file)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return fmt.Errorf("find trust store: %w", err)
		}
		dir := slash.Dir(path)
		bundles[dir] = append(bundles[dir], slash.Base(path))
	}
	for n, dir := range slices.Sorted(maps.Keys(bundles)) {
		if err := v.replaceTrustIn(dir, bundles[dir], strconv.Itoa(n)); err != nil {
			return err
		}
	}
	return nil
}

func (v *View) replaceTrustIn(dir string, names []string, id string) error {
	old, err := makeViewDir("trust", id+".old")
	if err != nil {
		return err
	}
	links, err := makeViewDir("trust", id)
	if err != nil {
		return err
	}
	if err := bind(dir, old, true); err != nil {
		return err
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return fmt.Errorf("read trust store: %w", err)
	}
	for _, entry := range entries {
		if err := os.Symlink(slash.Join(old, entry.Name()), slash.Join(links, entry.Name())); err != nil {
			return fmt.Errorf("link trust store: %w", err)
		}
	}
	for _, name := range names {
		link := slash.Join(links, name)
		if err := errors.Join(os.Remove(link), os.Symlink(v.Trust.Bundle, link)); err != nil {
			return fmt.Errorf("link trust store: %w", err)
		}
	}
	return bind(links, dir, true)
}
