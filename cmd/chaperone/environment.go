package main

import (
	"maps"
	"net/url"
	"slices"
	"strings"

	"github.com/chaperone-proxy/chaperone/authz"
)

// javaOptions is the variable that every Java virtual machine reads options from.
const javaOptions = "JAVA_TOOL_OPTIONS"

// pluginEnvironment returns the environment a plugin is started with: the
// sidecar's own less what is the sidecar's business, the proxy's address for
// programs that ask for one, and where to find the certificates to trust. What
// the configuration states (extra) stays as it is stated; options of Java's,
// which are a list, are added to.
func pluginEnvironment(base []string, extra map[string]string, proxy string, token authz.Secret, trust *trustBundle) []string {
	env := map[string]string{}
	for _, entry := range base {
		name, value, _ := strings.Cut(entry, "=")
		if !forSidecarOnly(name) {
			env[name] = value
		}
	}
	maps.Copy(env, proxyVariables(proxy, token))
	theirs := env[javaOptions]
	maps.Copy(env, trust.variables())
	ours := env[javaOptions]
	env[javaOptions] = strings.TrimSpace(theirs + " " + ours) // the last of two that differ counts
	for name, value := range extra {
		if forSidecarOnly(name) {
			continue
		}
		if name == javaOptions && !strings.Contains(value, "javax.net.ssl.trustStore=") {
			value = strings.TrimSpace(value + " " + ours)
		}
		env[name] = value
	}
	out := make([]string, 0, len(env))
	for _, name := range slices.Sorted(maps.Keys(env)) {
		out = append(out, name+"="+env[name])
	}
	return out
}

// forSidecarOnly reports whether a variable must not reach the plugin: it
// configures the sidecar, is a way to Vault, or is what a service manager set
// for the sidecar as its service: its directories, its sockets, its watchdog
// (systemd.exec(5), sd_notify(3), sd_listen_fds(3), sd_watchdog_enabled(3)).
func forSidecarOnly(name string) bool {
	switch name {
	case "", "NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID", "LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES", "FDSTORE",
		"STATE_DIRECTORY", "RUNTIME_DIRECTORY", "CACHE_DIRECTORY", "LOGS_DIRECTORY", "CONFIGURATION_DIRECTORY", "CREDENTIALS_DIRECTORY",
		"MAINPID", "MANAGERPID", "SYSTEMD_EXEC_PID", "MEMORY_PRESSURE_WATCH", "MEMORY_PRESSURE_WRITE":
		return true
	}
	return strings.HasPrefix(name, "CHAPERONE_") || strings.HasPrefix(name, "VAULT_")
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
