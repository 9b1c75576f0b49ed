package authz

import (
	"path"
	"strings"
)

// Probe is a lookup that a library makes without a request by the plugin's
// program: of a C library's service, or of a name that a resolver library derives.
// A probe is denied unless it is granted, like every access. It is recorded and
// counted separately, because it does not reflect the program's behaviour.
type Probe string

// The known probes.
const (
	ProbeNSCD    Probe = "nscd"    // glibc asks it before each look-up (nscd(8))
	ProbeUserDB  Probe = "userdb"  // nss-systemd(8) asks it for users and groups
	ProbeResolve Probe = "resolve" // nss-resolve(8) asks systemd-resolved for names
	ProbeNSS     Probe = "nss"     // other services of nsswitch.conf(5): sssd, winbind, nslcd, mDNS, machines
	ProbeDBus    Probe = "dbus"    // the system's or the session's message bus
	ProbeSyslog  Probe = "syslog"  // syslog(3) and sd_journal_print(3)
	ProbeSearch  Probe = "search"  // a granted name with a search domain of resolv.conf(5) behind it
	ProbeService Probe = "service" // an underscored name (RFC 8552) of a granted host, as in _grpc_config.NAME
)

// Probes returns all known probes.
func Probes() []Probe {
	return []Probe{ProbeNSCD, ProbeUserDB, ProbeResolve, ProbeNSS, ProbeDBus, ProbeSyslog, ProbeSearch, ProbeService}
}

// SocketProbe returns the probe that a connection to a Unix socket is, or "" if
// it is no probe. The socket is an absolute path, or @NAME for an abstract one.
func SocketProbe(socket string) Probe {
	if !path.IsAbs(socket) {
		return ""
	}
	socket = strings.TrimPrefix(path.Clean(socket), "/var")
	for _, known := range socketProbes() {
		if socket == known.path || strings.HasSuffix(known.path, "/") && strings.HasPrefix(socket, known.path) {
			return known.probe
		}
	}
	return ""
}

type socketProbe struct {
	path  string // below /, and below /var where that is a link; a / at the end matches everything below
	probe Probe
}

func socketProbes() []socketProbe {
	return []socketProbe{
		{"/run/nscd/", ProbeNSCD},
		{"/run/systemd/userdb/", ProbeUserDB},
		{"/run/systemd/resolve/", ProbeResolve},
		{"/run/systemd/machine/", ProbeNSS},
		{"/lib/sss/pipes/", ProbeNSS},
		{"/run/sssd/", ProbeNSS},
		{"/run/.heim_org.h5l.kcm-socket", ProbeNSS}, // Kerberos' credential cache, which sssd serves
		{"/run/samba/winbindd/", ProbeNSS},
		{"/lib/samba/winbindd_privileged/", ProbeNSS},
		{"/tmp/.winbindd/", ProbeNSS},
		{"/run/nslcd/", ProbeNSS},
		{"/run/avahi-daemon/socket", ProbeNSS},
		{"/lib/gssproxy/default.sock", ProbeNSS},
		{"/run/dbus/system_bus_socket", ProbeDBus},
		{"/dev/log", ProbeSyslog},
		{"/run/systemd/journal/", ProbeSyslog},
	}
}
