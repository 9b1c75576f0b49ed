package configs

import (
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
)

// maxServed is how many ports a plugin may serve.
const maxServed = 64

// validateServing reports ports of spec.process.listen that are none.
func (p Process) validateServing(report reporter) {
	const path = "spec.process.listen"
	if len(p.Listen) > maxServed {
		report(path, "names %d ports; a plugin may serve %d", len(p.Listen), maxServed)
	}
	for i, port := range p.Listen {
		if port == 0 || slices.Contains(p.Listen[:i], port) {
			report(at(path, i), "%d is not a port from 1 to 65535, once", port)
		}
	}
}

// validateFiles reports paths of spec.process.files that are none, as they were
// written.
func (p Process) validateFiles(report reporter) {
	if p.Files == nil {
		return
	}
	var before []string
	for _, list := range p.Files.lists() {
		for i, path := range *list.paths {
			switch {
			case path == "" || strings.ContainsRune(path, 0):
				report(at(list.field, i), "%q is not a path; write that of a file or folder", clip(path))
				continue
			case slices.Contains(before, filepath.Clean(path)):
				report(at(list.field, i), "%q is given twice; what may be written may be read", clip(path))
			}
			before = append(before, filepath.Clean(path))
		}
	}
}

type fileList struct {
	field string
	paths *[]string
}

// lists returns both lists of paths, that of what may be written first.
func (f *Files) lists() []fileList {
	return []fileList{{"spec.process.files.write", &f.Write}, {"spec.process.files.read", &f.Read}}
}

// validateApart reports what the plugin would share with the sidecar, once
// every default is filled in and every path absolute: its ports, and files that
// are the sidecar's alone. file is the Sidecar's own.
func (s *Sidecar) validateApart(file string, report reporter) {
	for i, port := range s.Process.Listen {
		for _, own := range s.Listen.named() {
			if a, err := netip.ParseAddrPort(own.address.Addr); err == nil && a.Port() == port {
				report(at("spec.process.listen", i), "%d is the port of spec.listen.%s", port, own.name)
			}
		}
	}
	if s.Process.Files == nil {
		return
	}
	for _, list := range s.Process.Files.lists() {
		for i, path := range *list.paths {
			if own := s.owns(file, path); path != "" && own != "" {
				report(at(list.field, i), "holds or is in %s, which is the sidecar's alone; keep what the plugin uses apart from it", own)
			}
		}
	}
}

// owns returns what of the sidecar's own a path leads to, or "".
func (s *Sidecar) owns(file, path string) string {
	own := []struct{ path, name string }{
		{file, "this file"}, {s.StateDir, "spec.stateDir"}, {s.Audit.File, "spec.audit.file"},
	}
	add := func(path, name string) { own = append(own, struct{ path, name string }{path, name}) }
	for i, path := range s.Grants {
		add(path, at("spec.grants", i))
	}
	for i, path := range s.Guardrails {
		add(path, at("spec.guardrails", i))
	}
	for _, a := range s.Listen.named() {
		if a.address.IsUnix() {
			add(a.address.Addr, "spec.listen."+a.name)
		}
	}
	if s.Envoy != nil {
		add(s.Envoy.Dir, "spec.envoy.dir")
	}
	if t := s.Listen.ExtAuthzTLS; t != nil {
		add(t.KeyFile, "spec.listen.extAuthzTLS.keyFile")
	}
	if s.Vault != nil {
		for _, f := range s.Vault.Auth.fields() {
			if f.isFile {
				add(f.value, "spec.vault.auth."+f.name)
			}
		}
	}
	path = resolved(path)
	for _, o := range own {
		if o.path != "" && (holds(path, resolved(o.path)) || holds(resolved(o.path), path)) {
			return o.name
		}
	}
	return ""
}

// holds reports whether path is folder or below it. Both are clean.
func holds(folder, path string) bool {
	return path == folder || strings.HasPrefix(path, strings.TrimSuffix(folder, "/")+"/")
}

// resolved follows the links in a path, as far as it exists.
func resolved(path string) string {
	for dir, rest := filepath.Clean(path), ""; ; dir, rest = filepath.Dir(dir), filepath.Join(filepath.Base(dir), rest) {
		if followed, err := filepath.EvalSymlinks(dir); err == nil {
			return filepath.Join(followed, rest)
		}
		if dir == filepath.Dir(dir) {
			return filepath.Clean(path)
		}
	}
}
