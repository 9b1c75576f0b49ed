package configs

import (
	"cmp"
	"fmt"
	"path/filepath"
	"strings"
	"time"

	"github.com/chaperone-proxy/chaperone/authz"
)

// Envoy is the Envoy beside the sidecar, which the sidecar configures
// completely, over xDS, from what is granted.
type Envoy struct {
	// Dir is the folder of bootstrap.yaml, which the sidecar writes for Envoy to be started with, and of the sockets between the two: xds.sock, check.sock and those in exit/ are the sidecar's, plugin.sock and admin.sock are Envoy's. By default envoy in stateDir, which is for an Envoy of the sidecar's own user. Relative to this file.
	Dir string `json:"dir,omitempty"`
	// Group is the group, by name or number, of an Envoy that runs as another user than the sidecar; it needs a Dir outside stateDir. By default the sidecar's own user alone may use the sockets.
	Group string `json:"group,omitempty"`
	// Explicit is where Envoy listens as a proxy, an address and port, in addition to connections of the sidecar's own proxy. Every client there is taken for the plugin. Closed by default.
	Explicit Address `json:"explicit,omitzero"`
	// Transparent is where Envoy listens for connections that iptables redirects, an address and port. Every client there is taken for the plugin. Closed by default.
	Transparent Address `json:"transparent,omitzero"`
	// MaxStreamDuration ends a request or stream that lasts longer; by default 1h.
	MaxStreamDuration authz.Duration `json:"maxStreamDuration,omitempty"`
	// AccessLog is stdout (the default), off, or the absolute path of a file. Each line has the id of the decision.
	AccessLog AccessLog `json:"accessLog,omitempty"`
}

// AccessLog is where Envoy's access log goes: stdout, off, or an absolute path.
type AccessLog string

// The access logs that are no files.
const (
	AccessLogStdout AccessLog = "stdout"
	AccessLogOff    AccessLog = "off"
)

// UnmarshalText reads where an access log goes.
func (a *AccessLog) UnmarshalText(text []byte) error {
	s := AccessLog(text)
	if s != AccessLogStdout && s != AccessLogOff && (!filepath.IsAbs(string(s)) || strings.ContainsRune(string(s), 0)) {
		return fmt.Errorf("%q is not where an access log goes; write stdout, off or an absolute path", clip(string(s)))
	}
	*a = s
	return nil
}

// The sockets between the sidecar and its Envoy, in Envoy.Dir.
const (
	envoyXDS    = "xds.sock"
	envoyCheck  = "check.sock"
	envoyPlugin = "plugin.sock"
	envoyAdmin  = "admin.sock"
	envoyExits  = "exit"

	envoyBootstrap = "bootstrap.yaml" // beside them
)

// XDS is the socket on which Envoy is configured, the sidecar's.
func (e *Envoy) XDS() string { return filepath.Join(e.Dir, envoyXDS) }

// Check is the socket on which Envoy asks about each access, the sidecar's.
func (e *Envoy) Check() string { return filepath.Join(e.Dir, envoyCheck) }

// Plugin is the socket on which Envoy accepts connections of the sidecar's proxy,
// Envoy's.
func (e *Envoy) Plugin() string { return filepath.Join(e.Dir, envoyPlugin) }

// Admin is the socket of Envoy's admin interface, Envoy's.
func (e *Envoy) Admin() string { return filepath.Join(e.Dir, envoyAdmin) }

// Exits is the folder of the sockets through which Envoy reaches what is
// granted, the sidecar's.
func (e *Envoy) Exits() string { return filepath.Join(e.Dir, envoyExits) }

// maxExit is the longest path below Envoy.Dir: exit/, 26 letters and digits
// and .sock.
const maxExit = len("/"+envoyExits+"/") + 26 + len(".sock")

// Relays reports whether connections of listen.proxy are forwarded to Envoy, if the
// kernel half identifies them.
func (s *Sidecar) Relays() bool {
	return s.Envoy != nil && !s.Listen.Proxy.IsZero() && s.Kernel != KernelOff
}

// named returns the TCP listeners of Envoy by their fields.
func (e *Envoy) named() []namedAddress {
	return []namedAddress{{"explicit", e.Explicit}, {"transparent", e.Transparent}}
}

// validateEnvoy reports what is wrong with spec.envoy as it was written.
func (s *Sidecar) validateEnvoy(report reporter) {
	e := s.Envoy
	if e == nil {
		return
	}
	for _, one := range e.named() {
		path := "spec.envoy." + one.name
		if one.address.IsUnix() {
			report(path, "%q is a socket; write an address and port, as in 127.0.0.1:15080", one.address)
		} else if strings.HasSuffix(one.address.Addr, ":0") {
			report(path, "%q has no port; Envoy would choose an unknown one", one.address)
		}
	}
	switch listens := !e.Explicit.IsZero() || !e.Transparent.IsZero(); {
	case listens:
	case s.Kernel == KernelOff:
		report("spec.envoy", "has no way in for the plugin; without the kernel a connection is not identified before Envoy, write explicit or transparent here")
	case s.Listen.Proxy.IsZero():
		report("spec.envoy", "has no way in for the plugin; write spec.listen.proxy, whose connections are forwarded to Envoy, or explicit or transparent here")
	}
	if s.Mode == authz.ModeObserve {
		report("spec.envoy", "is configured with what is granted, and nothing else passes there to be observed; observe without it, or write mode: observe on a rule")
	}
}

// completeEnvoy fills in the defaults of spec.envoy and makes its folder
// absolute; dir is the folder of the Sidecar's file.
func (s *Sidecar) completeEnvoy(dir string) {
	e := s.Envoy
	if e == nil {
		return
	}
	switch {
	case e.Dir == "":
		e.Dir = filepath.Join(s.StateDir, "envoy")
	case !filepath.IsAbs(e.Dir):
		e.Dir = filepath.Join(dir, e.Dir)
	}
	e.Dir = filepath.Clean(e.Dir)
	setDefault(&e.MaxStreamDuration, authz.Duration(time.Hour))
	setDefault(&e.AccessLog, AccessLogStdout)
}

// validateEnvoyComplete reports what can be seen of spec.envoy only with every
// default filled in.
func (s *Sidecar) validateEnvoyComplete(report reporter) {
	e := s.Envoy
	if e == nil {
		return
	}
	if longest := len(e.Dir) + maxExit; longest > maxSocketPath {
		report("spec.envoy.dir", "%s is %d bytes long; the sockets in it add %d, and the kernel takes %d for a socket's path, choose a shorter one",
			e.Dir, len(e.Dir), maxExit, maxSocketPath)
	}
	if e.Group != "" && holds(filepath.Clean(s.StateDir), e.Dir) {
		report("spec.envoy.group", "is somebody else than the sidecar's own user, who alone enters stateDir; write a dir outside it, as in dir: /run/chaperone/%s/envoy", s.Plugin)
	}
	seen := map[Address]string{}
	for _, one := range s.Listen.named() {
		seen[one.address] = "spec.listen." + one.name
		if one.address.IsUnix() && holds(e.Dir, filepath.Clean(one.address.Addr)) {
			report("spec.listen."+one.name, "%s is in spec.envoy.dir, which is for the sockets between the sidecar and its Envoy; choose another folder", one.address.Addr)
		}
	}
	for _, one := range e.named() {
		if one.address.IsZero() {
			continue
		}
		if other := seen[one.address]; other != "" {
			report("spec.envoy."+one.name, "%s is the address of %s too", one.address, other)
		}
		seen[one.address] = "spec.envoy." + one.name
	}
}

// warnEnvoy notes what spec.envoy opens to others than the plugin.
func (s *Sidecar) warnEnvoy(warn reporter) {
	if s.Envoy == nil {
		return
	}
	for _, one := range s.Envoy.named() {
		switch {
		case one.address.IsZero() || one.address.IsUnix():
		case !one.address.loopback():
			warn("spec.envoy."+one.name, "can be reached from other hosts, and whoever connects there is taken for the plugin")
		default:
			warn("spec.envoy."+one.name, "takes whoever connects there for the plugin; no other program of this network may be trusted less")
		}
	}
}

// warnGrantEnvoy notes what of a grant Envoy has no way to.
func (s *Sidecar) warnGrantEnvoy(g authz.Grant, warn reporter) {
	if s.Envoy == nil {
		return
	}
	for i, r := range g.Rules {
		for j, host := range r.To.Hosts {
			path := at(at("spec.rules", i)+".to.hosts", j)
			switch scheme := cmp.Or(r.To.Scheme, authz.SchemeHTTPS); {
			case scheme.Database():
				warn(path, "%q is not_enforceable_here behind spec.envoy: Envoy does not read statements; plugins reach it through the sidecar's own proxy", clip(host))
			case scheme == authz.SchemeTCP && strings.HasPrefix(host, "*"):
				warn(path, "%q cannot be reached through spec.envoy: tcp has no server name, so Envoy is configured with exact hosts only", clip(host))
			case scheme == authz.SchemeHTTPS && strings.HasPrefix(host, "**."):
				warn(path, "%q can be reached one label deep only through spec.envoy: Envoy shows a certificate of %q, and no client takes that for a deeper name", clip(host), clip(host[1:]))
			}
		}
	}
	for i, c := range g.Credentials {
		if c.Inject.MTLS != nil || c.Inject.SigV4 != nil {
			warn(at("spec.credentials", i)+".inject", "is not_enforceable_here behind spec.envoy: only who makes the connection can show a certificate or sign a request")
		}
	}
}

// Bootstrap is the file that Envoy is started with, which the sidecar writes.
func (e *Envoy) Bootstrap() string { return filepath.Join(e.Dir, envoyBootstrap) }
