package configs

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// maxServed is how many ports and paths a plugin may serve.
const maxServed = 64

// validateServing reports invalid ports of spec.process.listen.
func (p Process) validateServing(report reporter) {
	const path = "spec.process.listen"
	if len(p.Listen) > maxServed {
		report(path, "names %d ports; a plugin may serve %d", len(p.Listen), maxServed)
	}
	for i, service := range p.Listen {
		switch {
		case service == Service{}: // reported when it was read
		case slices.Contains(p.Listen[:i], service):
			report(at(path, i), "%s is given twice; remove one of the two", service)
		case service.Socket != "" && len(service.Socket) > maxSocketPath:
			report(at(path, i), "%s is %d bytes long; the kernel takes %d for a socket's path, choose a shorter one",
				service.Socket, len(service.Socket), maxSocketPath)
		}
	}
}

// Service is where a plugin serves: a TCP port or Unix sockets.
type Service struct {
	Port uint16 // 0: Unix sockets
	// Socket is an absolute path, whose last part may hold one * for any bytes
	// but a slash.
	Socket string
}

// UnmarshalText reads a service. Its error lists the valid forms.
func (s *Service) UnmarshalText(text []byte) error {
	if path, ok := strings.CutPrefix(string(text), "unix:"); ok {
		dir, name := filepath.Split(path)
		switch {
		case !filepath.IsAbs(path) || filepath.Clean(path) != path || dir == "/" || strings.ContainsRune(path, 0):
			return fmt.Errorf("%q is not the path of a socket in a folder; write it as in unix:/tmp/plugin.sock", clip(string(text)))
		case strings.Contains(dir, "*") || strings.Count(name, "*") > 1 || name == "*":
			return fmt.Errorf("%q is too wide; write one * with text beside it, in the last part only, as in unix:/tmp/plugin*", clip(string(text)))
		}
		*s = Service{Socket: path}
		return nil
	}
	port, err := strconv.ParseUint(string(text), 10, 16)
	if err != nil || port == 0 || strconv.FormatUint(port, 10) != string(text) {
		return fmt.Errorf("%q is not a port from 1 to 65535 or unix:PATH; write 8080 or unix:/tmp/plugin*", clip(string(text)))
	}
	*s = Service{Port: uint16(port)}
	return nil
}

// String returns the service as UnmarshalText reads it.
func (s Service) String() string {
	if s.Port != 0 {
		return strconv.Itoa(int(s.Port))
	}
	return "unix:" + s.Socket
}

// MarshalJSON returns a port as a number.
func (s Service) MarshalJSON() ([]byte, error) {
	if s.Port != 0 {
		return json.Marshal(s.Port)
	}
	return json.Marshal(s.String())
}

// Ports returns the TCP ports of spec.process.listen.
func (p Process) Ports() []uint16 {
	var out []uint16
	for _, service := range p.Listen {
		if service.Port != 0 {
			out = append(out, service.Port)
		}
	}
	return out
}

// Sockets returns the paths of Unix sockets of spec.process.listen, each of which
// may hold one * in its last part.
func (p Process) Sockets() []string {
	var out []string
	for _, service := range p.Listen {
		if service.Socket != "" {
			out = append(out, service.Socket)
		}
	}
	return out
}

// validateFiles reports invalid paths of spec.process.files, as they were written.
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
	for i, service := range s.Process.Listen {
		for _, own := range s.Listen.named() {
			if a, err := netip.ParseAddrPort(own.address.Addr); err == nil && service.Port != 0 && a.Port() == service.Port {
				report(at("spec.process.listen", i), "%d is the port of spec.listen.%s", service.Port, own.name)
			}
		}
		if own := s.owns(file, service.Socket); service.Socket != "" && own != "" {
			report(at("spec.process.listen", i), "is in %s, which is the sidecar's alone; choose another folder", own)
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

// owns returns the sidecar's own file that a path resolves to, or "".
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
