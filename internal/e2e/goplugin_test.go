package e2e

import (
	"strings"
	"testing"

	"github.com/chaperone-proxy/chaperone/internal/testenv"
)

// TestGoPluginInside runs a host of go-plugin and its plugins as one plugin:
// what Terraform with its providers is. They talk over Unix sockets in TMPDIR.
func TestGoPluginInside(t *testing.T) {
	for _, c := range []struct {
		name  string
		flags []string
		want  []string
	}{
		{"grpc", nil, []string{"plugin 0 sum 21"}},
		{"grpc, AutoMTLS", []string{"-mtls"}, []string{"plugin 0 sum 21"}},
		{"grpc, AutoMTLS, multiplexed broker", []string{"-mtls", "-multiplex"}, []string{"plugin 0 sum 21"}},
		{"netrpc", []string{"-protocol", "netrpc"}, []string{"plugin 0 hello"}},
		{"several plugins at once", []string{"-mtls", "-plugins", "4"}, []string{"plugin 0 sum 21", "plugin 3 sum 21"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			e := newEnv(t, "{}")
			bin := testenv.MustGet(goPlugin())(t)
			program := append([]string{bin, "host"}, c.flags...)
			e.prints(append(program, bin, "plugin"), c.want...)
		})
	}
}

// TestGoPluginOutside has a host of go-plugin start its plugin through the
// command, and reach the socket that the plugin serves on.
func TestGoPluginOutside(t *testing.T) {
	for _, c := range []struct {
		name  string
		flags []string
		want  string
	}{
		{"grpc", []string{"-multiplex"}, "plugin 0 sum 21"},
		{"grpc, AutoMTLS", []string{"-multiplex", "-mtls"}, "plugin 0 sum 21"},
		{"netrpc, AutoMTLS", []string{"-protocol", "netrpc", "-mtls"}, "plugin 0 hello"},
	} {
		t.Run(c.name, func(t *testing.T) {
			e := newEnv(t, `{listen: ["unix:/tmp/plugin*"]}`)
			bin := testenv.MustGet(goPlugin())(t)
			r := e.exec(append(append([]string{bin, "host"}, c.flags...), e.runArgs(bin, "plugin")...)...)
			if r.status != 0 || !strings.Contains(r.stdout, c.want) {
				t.Error(r)
			}
		})
	}
}
