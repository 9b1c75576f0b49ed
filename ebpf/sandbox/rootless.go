package sandbox

import (
	"go.uber.org/zap"

	"github.com/chaperone-proxy/chaperone/internal/reaper"
)

// RootlessConfig is what a [Rootless] sandbox is made for.
type RootlessConfig struct {
	// Plugin is the plugin's name.
	Plugin string
	// Proxy lists the addresses on which the sidecar is to be reached from
	// inside, each an address of the loopback and a port; port 0 picks one.
	Proxy []string
	// Serve lists the ports that [Rootless.DialContext] is to reach. Without one below
	// 1024 it is no error that the plugin cannot bind such a port.
	Serve []uint16
	// User is as [Config.User], and counts only if the sidecar is root: an
	// ordinary user's plugin runs as that user.
	User string
	// StateDir is the sidecar's state directory: it names the places on the host
	// that are reserved for a sidecar which is root.
	StateDir string
	// Private lists files, directories and sockets of the sidecar's, by absolute
	// path. They are hidden from the plugin, which runs as the user they belong
	// to: an empty directory or file stands in their place. A path that is not
	// absolute is an error. A file that is
	// replaced by another later shows again: name its directory.
	Private []string
	// Denied is called for each system call that the filter refused, by a goroutine
	// of the sandbox's. It may not block for long. Nil: they are refused silently.
	Denied func(Denial)
	// Reaper is as [Config.Reaper].
	Reaper *reaper.Reaper
	// Logger is for the operator. Nil: silence.
	Logger *zap.Logger
}
