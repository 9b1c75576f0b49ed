package sidecar

import (
	"maps"
	"net/url"
	"slices"
	"strings"

	"github.com/chaperone-proxy/chaperone/ebpf/sandbox"

	"github.com/chaperone-proxy/chaperone/authz"
)

// pluginEnvironment returns the environment a plugin is started with: the
// sidecar's own less what is the sidecar's business, the proxy's address for
// programs that ask for one, and where to find the certificates to trust. Variables
// of the configuration (extra) come before the sidecar's own variables.
// Authorities and options for Java of either are merged into what the plugin gets.
func pluginEnvironment(base []string, extra map[string]string, proxy string, token authz.Secret, trust *trustBundle) []string {
	env := map[string]string{}
	for _, entry := range base {
		name, value, _ := strings.Cut(entry, "=")
		if !forSidecarOnly(name) && !ofService(name) {
			env[name] = value
		}
	}
	maps.Copy(env, proxyVariables(proxy, token))
	for name, value := range extra {
		if !forSidecarOnly(name) {
			env[name] = value
		}
	}
	theirs := env[javaVariables[0]]
	maps.Copy(env, trust.variables())
	for _, name := range toolRootVariables {
		if env[name] != "" {
			env[name] = trust.pemFile() // the file that it named is merged into it
		}
	}
	if ours := env[javaVariables[0]]; theirs != "" && ours != theirs {
		env[javaVariables[0]] = theirs + " " + ours // of an option that is given twice the last counts
	}
	out := make([]string, 0, len(env))
	for _, name := range slices.Sorted(maps.Keys(env)) {
		out = append(out, name+"="+env[name])
	}
	return out
}

// forSidecarOnly reports whether a variable never reaches the plugin, whoever
// sets it: it configures the sidecar, is a way to Vault, or speaks for the service.
func forSidecarOnly(name string) bool {
	return strings.HasPrefix(name, "CHAPERONE_") || strings.HasPrefix(name, "VAULT_") || name == "NOTIFY_SOCKET" || name == ""
}

// ofService reports whether a variable is what a service manager set for the
// sidecar as its service, its directories, its sockets, its watchdog
// (systemd.exec(5), sd_notify(3), sd_listen_fds(3), sd_watchdog_enabled(3)), or
// reports who called sudo (sudo(8)).
func ofService(name string) bool {
	switch name {
	case "WATCHDOG_USEC", "WATCHDOG_PID", "LISTEN_FDS", "LISTEN_PID", "LISTEN_PIDFDID", "LISTEN_FDNAMES", "FDSTORE",
		"STATE_DIRECTORY", "RUNTIME_DIRECTORY", "CACHE_DIRECTORY", "LOGS_DIRECTORY", "CONFIGURATION_DIRECTORY", "CREDENTIALS_DIRECTORY",
		"MAINPID", "MAINPIDFDID", "MANAGERPID", "MANAGERPIDFDID", "SYSTEMD_EXEC_PID", "MEMORY_PRESSURE_WATCH", "MEMORY_PRESSURE_WRITE",
		"INVOCATION_ID", "JOURNAL_STREAM", "LOG_NAMESPACE", "DEBUG_INVOCATION", "PIDFILE":
		return true
	}
	return strings.HasPrefix(name, "SUDO_")
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
	// The operator's own NO_PROXY is for the operator's proxy: the plugin has no
	// way but this one.
	hosts := []string{"localhost", "127.0.0.1", "::1"}
	for _, addr := range sandbox.PluginAddresses() {
		hosts = append(hosts, addr.String())
	}
	direct := strings.Join(hosts, ",")
	out["NO_PROXY"], out["no_proxy"] = direct, direct
	return out
}
