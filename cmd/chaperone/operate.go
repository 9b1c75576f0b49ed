package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/chaperone-proxy/chaperone/configs"
	"github.com/chaperone-proxy/chaperone/internal/admin"
	"github.com/chaperone-proxy/chaperone/internal/nearword"
	"github.com/chaperone-proxy/chaperone/internal/phrase"
	"github.com/chaperone-proxy/chaperone/sidecar"
)

// client returns a client of the running sidecar that --admin, its environment
// variable, --plugin or --config names.
func (c *cli) client() (*admin.Client, error) {
	s, err := c.selected()
	if err != nil {
		return nil, err
	}
	client := admin.Dial(s.Socket)
	if c.curl {
		client.PrintTo(c.stdout)
	}
	return client, nil
}

// selected returns the sidecar that a command is about, as far as it is known
// without asking it.
func (c *cli) selected() (admin.Sidecar, error) {
	switch {
	case c.plugin != "" && (c.admin != "" || c.config != ""):
		return admin.Sidecar{}, usageError("--plugin contradicts --admin and --config; say one of them")
	case c.admin != "":
		path, ok := strings.CutPrefix(c.admin, "unix:")
		if !ok {
			return admin.Sidecar{}, usageError("--admin %q is not a socket; write unix:PATH, as in unix:/run/chaperone/weather/admin.sock", c.admin)
		}
		path = sidecar.AbsPath(path)
		return listedOr(admin.Sidecar{Socket: path}, func(s admin.Sidecar) bool { return s.Socket == path }), nil
	case c.config != "":
		return c.ofConfig()
	case c.plugin != "":
		return c.ofPlugin()
	}
	return c.onlySidecar()
}

// listedOr returns the listed sidecar that fits, or s.
func listedOr(s admin.Sidecar, fits func(admin.Sidecar) bool) admin.Sidecar {
	all, _ := admin.List(sidecar.Registry()) // an unlisted sidecar is found by its socket
	if i := slices.IndexFunc(all, fits); i >= 0 {
		return all[i]
	}
	return s
}

// ofConfig returns the sidecar of --config. A file that is broken is known by the
// sidecar that was started with it.
func (c *cli) ofConfig() (admin.Sidecar, error) {
	file := sidecar.AbsPath(c.config)
	spec, err := c.sidecarFile()
	if err != nil {
		s := listedOr(admin.Sidecar{}, func(s admin.Sidecar) bool { return s.Config == file })
		if s.Socket == "" {
			return s, err
		}
		return s, nil
	}
	socket := sidecar.AbsPath(spec.Listen.Admin.Addr)
	named := admin.Sidecar{Plugin: spec.Plugin, Socket: socket, StateDir: sidecar.AbsPath(spec.StateDir), Config: file, Audit: spec.Audit.File}
	return listedOr(named, func(s admin.Sidecar) bool { return s.Socket == socket }), nil
}

// sidecarFile reads the file of --config, and of one that cannot be parsed what
// revoking needs.
func (c *cli) sidecarFile() (*configs.Sidecar, error) {
	spec, err := configs.LoadSidecar(c.config)
	if err == nil {
		return spec, nil
	}
	if found, rerr := configs.RecoverSidecar(c.config); rerr == nil {
		fmt.Fprintf(c.stderr, "chaperone: %s is broken (%s); its plugin is read as %s, its stateDir as %s\n",
			c.config, phrase.FirstLine(err.Error()), phrase.ShellWord(found.Plugin), phrase.ShellWord(found.StateDir))
		return found, nil
	}
	return nil, fmt.Errorf("load %s:\n%w\n  without the file, name the sidecar: --plugin NAME or --admin unix:PATH", c.config, err)
}

// ofPlugin returns the one sidecar of --plugin that runs.
func (c *cli) ofPlugin() (admin.Sidecar, error) {
	all, err := listSidecars()
	if err != nil {
		return admin.Sidecar{}, err
	}
	running := slices.DeleteFunc(slices.Clone(all), func(s admin.Sidecar) bool { return s.Gone || s.Plugin != c.plugin })
	switch len(running) {
	case 1:
		return running[0], nil
	case 0:
		return admin.Sidecar{}, noSidecarOf(c.plugin, all)
	}
	return admin.Sidecar{}, usageError("%q has %d sidecars; say --admin: %s", c.plugin, len(running), phrase.List(commandLines(running)))
}

// noSidecarOf returns the error of a plugin without a sidecar that runs.
func noSidecarOf(plugin string, all []admin.Sidecar) error {
	running := slices.DeleteFunc(slices.Clone(all), func(s admin.Sidecar) bool { return s.Gone })
	hint := ""
	if near := nearword.Suggest(plugin, plugins(running)); near != "" && near != plugin {
		hint = "; did you mean " + phrase.ShellWord(near) + "?"
	}
	return fmt.Errorf("no sidecar of the plugin %q runs on this host; running here: %s%s", plugin, phrase.List(commandLines(running)), hint)
}

// plugins returns the names of the plugins of sidecars.
func plugins(all []admin.Sidecar) []string {
	var names []string
	for _, s := range all {
		names = append(names, s.Plugin)
	}
	return slices.Compact(names) // they are sorted
}

// commandLines returns how each sidecar is named on a command line.
func commandLines(all []admin.Sidecar) []string {
	var names []string
	for _, s := range all {
		names = append(names, fmt.Sprintf("%s (--admin unix:%s)", phrase.ShellWord(s.Plugin), phrase.ShellWord(s.Socket)))
	}
	return names
}

// listSidecars returns the sidecars of the host. Its error names the cause that a
// user can do something about.
func listSidecars() ([]admin.Sidecar, error) {
	all, err := admin.List(sidecar.Registry())
	if errors.Is(err, fs.ErrPermission) && len(all) == 0 {
		dir := sidecar.Registry()
		if dir == "" {
			dir = admin.DefaultRegistry
		}
		return nil, fmt.Errorf("permission denied: the list of this host's sidecars in %s is root's; run this as root, or name your own sidecar by --config or --admin", dir)
	}
	return all, err
}

// onlySidecar finds the sidecar when exactly one runs on the host.
func (c *cli) onlySidecar() (admin.Sidecar, error) {
	all, err := listSidecars()
	if err != nil {
		return admin.Sidecar{}, err
	}
	all = slices.DeleteFunc(all, func(s admin.Sidecar) bool { return s.Gone })
	if len(all) == 1 {
		return all[0], nil
	}
	return admin.Sidecar{}, usageError("which sidecar? Say --plugin, --config or --admin; running here: %s", phrase.List(commandLines(all)))
}

// notRunning reports whether nobody answers on the admin socket.
func notRunning(err error) bool { return errors.Is(err, admin.ErrNoSidecar) }

// actor names the user who runs the command, for the audit log.
func actor() string { return admin.Peer{UID: os.Getuid()}.Actor() }

// knownHere reports whether a plugin has or had a sidecar on this host: one is
// listed, or a stateDir of its name is where states usually are.
func knownHere(plugin string, all []admin.Sidecar) bool {
	if slices.ContainsFunc(all, func(s admin.Sidecar) bool { return s.Plugin == plugin }) {
		return true
	}
	if plugin == "" || strings.ContainsAny(plugin, "/\x00") || plugin == "." || plugin == ".." {
		return false
	}
	info, err := os.Stat(filepath.Join(sidecar.StateRoot, plugin))
	return err == nil && info.IsDir()
}

// A sidecar that neither answers within hangAfter less hangProbe nor lists its
// revocations within hangProbe hangs. Otherwise the command waits, at most
// answerPatience, because the sidecar waits for Vault.
const (
	hangAfter      = 2 * time.Second
	hangProbe      = 500 * time.Millisecond
	answerPatience = 30 * time.Second
)

// hungError means that a sidecar does not answer.
type hungError struct {
	pid int // 0 when it cannot be seen from here
}

// Error names the process and what can be done.
func (e *hungError) Error() string {
	return fmt.Sprintf("the sidecar (pid %d) has not answered for %s; if it was stopped, kill -CONT %[1]d; "+
		"chaperone revoke --force revokes and kills it, which leaves its plugin shut in", e.pid, hangAfter)
}

// ask asks a sidecar. One that hangs is a hungError, and is not waited for.
func ask[T any](ctx context.Context, client *admin.Client, question func(context.Context) (T, error)) (T, error) {
	ctx, cancel := context.WithTimeout(ctx, answerPatience)
	defer cancel()
	type answer struct {
		value T
		err   error
	}
	answered := make(chan answer, 1)
	go func() {
		value, err := question(ctx)
		answered <- answer{value, err}
	}()
	select {
	case a := <-answered:
		return a.value, a.err
	case <-time.After(hangAfter - hangProbe):
	}
	if answersWithin(ctx, client, hangProbe) {
		a := <-answered
		return a.value, a.err
	}
	select {
	case a := <-answered: // just now
		return a.value, a.err
	default:
	}
	hung := &hungError{}
	ctx, cancelled := context.WithTimeout(ctx, hangProbe)
	defer cancelled()
	if pid, err := client.PeerPID(ctx); err == nil {
		hung.pid = pid
	}
	var none T
	return none, hung
}

// answersWithin reports whether a sidecar answers a question about its state.
func answersWithin(ctx context.Context, client *admin.Client, patience time.Duration) bool {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	_, err := client.Revocations(ctx)
	return err == nil
}
