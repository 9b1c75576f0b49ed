package configs

import (
	"fmt"
	"net/netip"
	"net/url"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/chaperone-proxy/chaperone/authz"
)

// reporter notes a problem of the field that path names.
type reporter func(path, format string, args ...any)

// at returns the path of one element of a list.
func at(list string, i int) string { return fmt.Sprintf("%s[%d]", list, i) }

// validate reports what is wrong in a Sidecar by itself, as it was written,
// before defaults are filled in.
func (s *Sidecar) validate(now time.Time, report reporter) {
	if !authz.IsName(s.Plugin) {
		report("spec.plugin", notAName, clip(s.Plugin))
	}
	oneOf(report, "spec.kernel", s.Kernel, KernelRequired, KernelPreferred, KernelOff)
	oneOf(report, "spec.onBadReload", s.OnBadReload, OnBadReloadKeep, OnBadReloadQuarantine)
	s.validateMode(now, report)
	s.validateProcess(report)
	s.Listen.validate(report)
	s.validateEnvoy(report)
	for i, id := range s.SPIFFEIDs {
		if message := checkSPIFFEID(id); message != "" {
			report(at("spec.spiffeIDs", i), "%q %s", clip(id), message)
		} else if slices.Contains(s.SPIFFEIDs[:i], id) {
			report(at("spec.spiffeIDs", i), "%q is given twice", clip(id))
		}
	}
	for i, server := range s.DNS.Servers {
		if server.Port() == 0 || server.Addr().IsUnspecified() || server.Addr().IsMulticast() {
			report(at("spec.dns.servers", i), "%s is not where a name server answers; write its address and port, as in 10.0.0.2:53", server)
		}
	}
	if s.Vault != nil {
		s.Vault.validate(report)
	}
	if s.UpstreamProxy != nil {
		s.UpstreamProxy.validate(report)
	}
	if s.Audit.Keep < 0 {
		report("spec.audit.keep", "is %d; write how many rotated files are kept", s.Audit.Keep)
	}
	oneOf(report, "spec.audit.paths", s.Audit.Paths, AuditPathsMasked, AuditPathsFull)
}

const notAName = "%q is not a name; use lower-case letters and digits, with dashes, dots and underscores between them"

// oneOf reports a value that is neither "", which stands for the default, nor
// one of the allowed.
func oneOf[T ~string](report reporter, path string, value T, allowed ...T) {
	if value == "" || slices.Contains(allowed, value) {
		return
	}
	names := make([]string, len(allowed))
	for i, a := range allowed {
		names[i] = string(a)
	}
	last := len(names) - 1
	report(path, "%q is not %s or %s", clip(string(value)), strings.Join(names[:last], ", "), names[last])
}

func (s *Sidecar) validateMode(now time.Time, report reporter) {
	oneOf(report, "spec.mode", s.Mode, authz.ModeEnforce, authz.ModeObserve)
	switch observes := s.Mode == authz.ModeObserve; {
	case observes && s.ObserveUntil.IsZero():
		report("spec.observeUntil", "is missing; observing ends, write when, as in %s", now.Add(24*time.Hour).UTC().Format(time.RFC3339))
	case observes && !s.ObserveUntil.After(now):
		report("spec.observeUntil", "%s has passed; write a later time, or mode: enforce", s.ObserveUntil.Format(time.RFC3339))
	case !observes && !s.ObserveUntil.IsZero():
		report("spec.observeUntil", "goes with mode: observe")
	}
}

func (s *Sidecar) validateProcess(report reporter) {
	p := s.Process
	oneOf(report, "spec.process.network", p.Network, NetworkOwn, NetworkHost)
	oneOf(report, "spec.process.view", p.View, ViewOwn, ViewHost)
	if p.User.root() && !p.UnsafeSameUser && (s.Kernel == "" || s.Kernel == KernelRequired) {
		report("spec.process.user", "%s can end its own confinement; leave user out, name another, or say unsafeSameUser: true", p.User)
	}
	p.validateServing(report)
	p.validateFiles(report)
	for name := range p.Env {
		path := "spec.process.env." + name
		switch {
		case !authz.IsEnvName(name):
			report(path, "is not the name of an environment variable; use at most 128 letters, digits and underscores")
		case strings.HasPrefix(name, "CHAPERONE_") || strings.HasPrefix(name, "VAULT_"):
			report(path, "never reaches the plugin; variables of Chaperone and Vault are kept from it")
		case strings.ContainsRune(p.Env[name], 0):
			report(path, "holds a NUL, which no environment variable can")
		}
	}
}

func (l Listen) validate(report reporter) {
	if l.Proxy.IsUnix() || !l.Proxy.IsZero() && !l.Proxy.loopback() {
		report("spec.listen.proxy", "%q is not a loopback address and port; write it as in 127.0.0.1:15001", l.Proxy)
	}
	if !l.Admin.IsZero() && !l.Admin.IsUnix() {
		report("spec.listen.admin", "%q is not a socket; the admin API proves who calls by the socket, write unix:PATH", l.Admin)
	}
	if l.Health.IsUnix() {
		report("spec.listen.health", "%q is a socket; write an address and port, as in 127.0.0.1:15021", l.Health)
	}
	if l.Metrics.IsUnix() {
		report("spec.listen.metrics", "%q is a socket; write an address and port, as in 127.0.0.1:15090", l.Metrics)
	}
	if l.ExtAuthzGroup != "" && !l.ExtAuthz.IsUnix() {
		report("spec.listen.extAuthzGroup", "goes with extAuthz: unix:PATH")
	}
	if l.ExtAuthzTLS != nil && (l.ExtAuthz.IsUnix() || l.ExtAuthz.IsZero()) {
		report("spec.listen.extAuthzTLS", "goes with extAuthz: ADDRESS:PORT")
	}
}

type namedAddress struct {
	name    string
	address Address
}

// named returns all listeners by their fields.
func (l Listen) named() []namedAddress {
	return []namedAddress{{"proxy", l.Proxy}, {"extAuthz", l.ExtAuthz}, {"admin", l.Admin}, {"metrics", l.Metrics}, {"health", l.Health}}
}

// validateComplete reports what can be seen only with every default filled in.
func (l Listen) validateComplete(report reporter) {
	for _, socket := range l.named() {
		if socket.address.IsUnix() && len(socket.address.Addr) > maxSocketPath {
			report("spec.listen."+socket.name, "%s is %d bytes long; the kernel takes %d for a socket's path, choose a shorter one",
				socket.address.Addr, len(socket.address.Addr), maxSocketPath)
		}
	}
	l.validateDistinct(report)
}

// validateDistinct reports two listeners on one address.
func (l Listen) validateDistinct(report reporter) {
	seen := map[Address]string{}
	for _, one := range l.named() {
		if one.address.IsZero() || strings.HasSuffix(one.address.Addr, ":0") && !one.address.IsUnix() {
			continue
		}
		if other := seen[one.address]; other != "" {
			report("spec.listen."+one.name, "%s is the address of %s too", one.address, other)
		}
		seen[one.address] = one.name
	}
}

// checkSPIFFEID returns what is wrong with a SPIFFE id, or "" (SPIFFE-ID,
// sections 2.1 to 2.3).
func checkSPIFFEID(id string) string {
	rest, ok := strings.CutPrefix(id, "spiffe://")
	domain, path, hasPath := strings.Cut(rest, "/")
	switch {
	case !ok || domain == "" || !hasPath || path == "":
		return "is not a SPIFFE id; write spiffe://DOMAIN/PATH"
	case len(id) > 2048 || len(domain) > 255:
		return "is longer than a SPIFFE id may be"
	case strings.Trim(domain, "abcdefghijklmnopqrstuvwxyz0123456789.-_") != "":
		return "has a trust domain with other characters than a-z, 0-9, dot, dash and underscore"
	}
	for segment := range strings.SplitSeq(path, "/") {
		if segment == "" || segment == "." || segment == ".." {
			return "has an empty or relative segment in its path"
		}
		for _, r := range segment {
			if !('a' <= r && r <= 'z' || 'A' <= r && r <= 'Z' || '0' <= r && r <= '9' || r == '.' || r == '-' || r == '_') {
				return "has other characters in its path than letters, digits, dot, dash and underscore"
			}
		}
	}
	return ""
}

func (v *Vault) validate(report reporter) {
	u, err := url.Parse(v.Address)
	if err != nil || u.Scheme != "https" && u.Scheme != "http" || u.Hostname() == "" || u.User != nil ||
		u.RawQuery != "" || u.ForceQuery || u.Fragment != "" || u.Path != "" && u.Path != "/" {
		report("spec.vault.address", "%q is not Vault's address; write it as in https://vault.example:8200", clip(redactURL(v.Address)))
	} else if u.Scheme == "http" && v.CAFile != "" {
		report("spec.vault.caFile", "goes with an address that starts with https://")
	}
	v.Auth.validate(report)
}

// redactURL drops user information, which may be a password, from what is
// quoted in a message.
func redactURL(s string) string {
	if i := strings.LastIndexByte(s, '@'); i >= 0 {
		return "..." + s[i:]
	}
	return s
}

type loginField struct {
	name, value string
	isFile      bool
	methods     []VaultMethod // that it goes with
	required    bool
}

// fields returns what some methods take and others do not.
func (a VaultAuth) fields() []loginField {
	approle, cert := []VaultMethod{VaultAppRole}, []VaultMethod{VaultCert}
	return []loginField{
		{"mount", a.Mount, false, []VaultMethod{VaultAppRole, VaultKubernetes, VaultJWT, VaultCert}, false},
		{"role", a.Role, false, []VaultMethod{VaultKubernetes, VaultJWT, VaultCert, VaultAppRole}, a.Method == VaultKubernetes || a.wraps()},
		{"roleIDFile", a.RoleIDFile, true, approle, true},
		{"secretIDFile", a.SecretIDFile, true, approle, true},
		{"jwtFile", a.JWTFile, true, []VaultMethod{VaultKubernetes, VaultJWT}, a.Method == VaultJWT},
		{"certFile", a.CertFile, true, cert, true},
		{"keyFile", a.KeyFile, true, cert, true},
		{"tokenFile", a.TokenFile, true, []VaultMethod{VaultToken}, true},
	}
}

// wraps reports whether a secret id is unwrapped to log in.
func (a VaultAuth) wraps() bool { return a.Method == VaultAppRole && a.SecretIDWrapped }

// validate reports what the method needs and has not, or has and does not
// need.
func (a VaultAuth) validate(report reporter) {
	methods := []VaultMethod{VaultAppRole, VaultKubernetes, VaultJWT, VaultCert, VaultToken}
	oneOf(report, "spec.vault.auth.method", a.Method, methods...)
	if !slices.Contains(methods, a.Method) {
		return
	}
	if rest, ok := strings.CutPrefix(strings.Trim(a.Mount, "/"), "auth/"); ok {
		report("spec.vault.auth.mount", "%q is the path that vault auth list prints below auth/; write %s", clip(a.Mount), clip(rest))
	} else if strings.ContainsAny(a.Mount, " ?#%") || strings.HasPrefix(a.Mount, "/") || strings.Contains(a.Mount, "..") {
		report("spec.vault.auth.mount", "%q is not where an auth method is mounted; write it as in approle", clip(a.Mount))
	}
	if strings.ContainsAny(a.Role, " /?#%") || strings.Contains(a.Role, "..") {
		report("spec.vault.auth.role", "%q is not the name of a role; write it as in weather", clip(a.Role))
	}
	for _, f := range a.fields() {
		path := "spec.vault.auth." + f.name
		goes := slices.Contains(f.methods, a.Method)
		switch {
		case goes && f.required && f.value == "" && f.name == "role" && a.wraps():
			report(path, "is missing; secretIDWrapped needs it, to know who may have wrapped")
		case goes && f.required && f.value == "":
			report(path, "is missing; method %s needs it", a.Method)
		case !goes && f.value != "":
			report(path, "goes with method %s", either(f.methods))
		}
	}
	if a.SecretIDWrapped && a.Method != VaultAppRole {
		report("spec.vault.auth.secretIDWrapped", "goes with method approle")
	} else if a.Method == VaultAppRole && a.Role != "" && !a.SecretIDWrapped {
		report("spec.vault.auth.role", "goes with secretIDWrapped: true; the role id names the role")
	}
}

func either(methods []VaultMethod) string {
	names := make([]string, len(methods))
	for i, m := range methods {
		names[i] = string(m)
	}
	return strings.Join(names, " or ")
}

// validate reports what is no proxy, and what no name or address is.
func (p UpstreamProxy) validate(report reporter) {
	u, err := url.Parse(p.URL)
	switch {
	case err == nil && u.User != nil:
		report("spec.upstreamProxy.url", "holds a user; a proxy that wants a password is not supported, and this file is no place for one")
	case err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Hostname() == "" || !isPort(u.Port()) ||
		u.RawQuery != "" || u.ForceQuery || strings.Contains(p.URL, "#") || u.Path != "" && u.Path != "/":
		report("spec.upstreamProxy.url", "%q is not a proxy; write its scheme, host and port, as in http://proxy.corp.example:3128", clip(redactURL(p.URL)))
	}
	for i, entry := range p.NoProxy {
		path := at("spec.upstreamProxy.noProxy", i)
		name := strings.TrimPrefix(entry, ".")
		_, notRange := netip.ParsePrefix(entry)
		_, notAddress := netip.ParseAddr(entry)
		d, err := authz.NewDestination(authz.SchemeTLS, name, "")
		switch {
		case slices.Contains(p.NoProxy[:i], entry):
			report(path, "%q is given twice", clip(entry))
		case notRange == nil || notAddress == nil:
		case err != nil || d.Host() != name || d.Address().IsValid():
			report(path, "%q is neither a name, .NAME, an address nor a range of them; write it in lower case, as in .corp.example or 10.0.0.0/8", clip(entry))
		}
	}
}

func isPort(s string) bool {
	n, err := strconv.ParseUint(s, 10, 16)
	return err == nil && n > 0
}

// validateGrants reports what grants ask for and this Sidecar cannot give.
func (s *Sidecar) validateGrant(g authz.Grant, file string, report reporter) {
	if s.Kernel == KernelOff {
		if len(g.Sockets) > 0 {
			report("spec.sockets", "are kept apart from others by the kernel, which %s turns off; remove them, or set kernel there", file)
		}
		for _, l := range []struct {
			name string
			none bool
		}{
			{"connections", g.Limits.Connections.IsZero()},
			{"sentBytes", g.Limits.SentBytes.IsZero()},
			{"receivedBytes", g.Limits.ReceivedBytes.IsZero()},
			{"syscalls", g.Limits.Syscalls.IsZero()},
			{"processes", g.Limits.Processes.IsZero()},
		} {
			if !l.none {
				report("spec.limits."+l.name, "is counted by the kernel, which %s turns off; remove the limit, or set kernel there", file)
			}
		}
	}
	for i, r := range g.Rules {
		if s.Kernel == KernelOff && r.To.Scheme.Database() {
			report(at("spec.rules", i)+".to.scheme", "%s needs the kernel to prove who connects, which %s turns off; use another scheme, or set kernel there", r.To.Scheme, file)
		}
	}
	for i, c := range g.Credentials {
		if c.Placeholder == nil {
			continue
		}
		if _, ok := s.Process.Env[c.Placeholder.Env]; ok {
			report(at("spec.credentials", i)+".placeholder.env", "%s is set by spec.process.env of %s; remove one of the two", clip(c.Placeholder.Env), file)
		}
	}
	if len(g.Credentials) > 0 && s.Vault == nil {
		report("spec.credentials[0].vault", "needs Vault, which %s does not configure; write spec.vault there", file)
	}
}

// complete fills in defaults and makes every path absolute; dir is the folder
// of the Sidecar's file.
func (s *Sidecar) complete(dir string) {
	within := func(base string, path *string) {
		if *path != "" && !filepath.IsAbs(*path) {
			*path = filepath.Join(base, *path)
		}
	}
	within(dir, &s.StateDir)
	if s.Process.Files != nil {
		for _, list := range s.Process.Files.lists() {
			for i := range *list.paths {
				path := &(*list.paths)[i]
				if within(dir, path); *path != "" {
					*path = filepath.Clean(*path)
				}
			}
		}
	}
	for i := range s.Grants {
		within(dir, &s.Grants[i])
	}
	for i := range s.Guardrails {
		within(dir, &s.Guardrails[i])
	}
	s.Trust.complete(func(path *string) { within(dir, path) })
	setDefault(&s.Kernel, KernelRequired)
	setDefault(&s.Mode, authz.ModeEnforce)
	setDefault(&s.Process.User, UserDynamic)
	setDefault(&s.Process.Network, NetworkOwn)
	setDefault(&s.Process.View, ViewOwn)
	setDefault(&s.OnBadReload, OnBadReloadKeep)
	setDefault(&s.Drain, authz.Duration(10*time.Second))
	setDefault(&s.Audit.File, "audit.jsonl")
	setDefault(&s.Audit.MaxSize, 256<<20)
	setDefault(&s.Audit.Keep, 20)
	within(s.StateDir, &s.Audit.File)
	setDefault(&s.Listen.Admin, Address{"unix", filepath.Join(s.StateDir, "admin.sock")})
	for _, a := range []*Address{&s.Listen.Admin, &s.Listen.ExtAuthz} {
		if a.IsUnix() {
			within(dir, &a.Addr)
		}
	}
	s.completeEnvoy(dir)
	if t := s.Listen.ExtAuthzTLS; t != nil {
		within(dir, &t.CertFile)
		within(dir, &t.KeyFile)
		within(dir, &t.ClientCAFile)
	}
	if v := s.Vault; v != nil {
		within(dir, &v.CAFile)
		within(dir, &v.Auth.RoleIDFile)
		within(dir, &v.Auth.SecretIDFile)
		within(dir, &v.Auth.TokenFile)
		within(dir, &v.Auth.JWTFile)
		within(dir, &v.Auth.CertFile)
		within(dir, &v.Auth.KeyFile)
		if v.Auth.Method != VaultToken {
			setDefault(&v.Auth.Mount, string(v.Auth.Method))
		}
		if v.Auth.Method == VaultKubernetes {
			setDefault(&v.Auth.JWTFile, serviceAccountToken)
		}
	}
}

func setDefault[T comparable](field *T, value T) {
	var zero T
	if *field == zero {
		*field = value
	}
}
