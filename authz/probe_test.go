package authz

import "testing"

func TestSocketProbe(t *testing.T) {
	for socket, want := range map[string]Probe{
		"/var/run/nscd/socket":                            ProbeNSCD,
		"/run/nscd/socket":                                ProbeNSCD,
		"/run/systemd/userdb/io.systemd.DynamicUser":      ProbeUserDB,
		"/run/systemd/userdb/io.systemd.Multiplexer":      ProbeUserDB,
		"/run/systemd/resolve/io.systemd.Resolve":         ProbeResolve,
		"/run/systemd/resolve/io.systemd.Resolve.Monitor": ProbeResolve,
		"/var/lib/sss/pipes/nss":                          ProbeNSS,
		"/var/lib/sss/pipes/private/pam":                  ProbeNSS,
		"/run/avahi-daemon/socket":                        ProbeNSS,
		"/var/run/dbus/system_bus_socket":                 ProbeDBus,
		"//run/./dbus/../dbus/system_bus_socket":          ProbeDBus,
		"/dev/log":                                        ProbeSyslog,
		"/run/systemd/journal/socket":                     ProbeSyslog,
		"/run/systemd/journal/dev-log":                    ProbeSyslog,
		"/run/systemd/journal/stdout":                     ProbeSyslog,
		"/run/docker.sock":                                "",
		"/run/systemd/private":                            "",
		"/run/systemd/userdb":                             "",
		"/run/systemd/userdb/../private":                  "",
		"/run/systemd/journal/../../docker.sock":          "",
		"/dev/log.sock":                                   "",
		"/home/x/run/nscd/socket":                         "",
		"run/nscd/socket":                                 "",
		"@/run/nscd/socket":                               "",
		"@/org/freedesktop/systemd1/notify":               "",
		"":                                                "",
		"/run/dbus/system_bus_socket/x":                   "",
		"/run/postgresql/.s.PGSQL.5432":                   "",
		"/run/user/1000/podman/podman.sock":               "",
		"/run/user/1000/systemd/private":                  "",
	} {
		if got := SocketProbe(socket); got != want {
			t.Errorf("SocketProbe(%q) = %q, want %q", socket, got, want)
		}
	}
}
