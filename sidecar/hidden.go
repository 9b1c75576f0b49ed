package sidecar

import (
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/chaperone-proxy/chaperone/configs"
)

// hiddenFiles are the files that a plugin in the rootless sandbox, which may run
// as the sidecar's own user, must not see: those of the sidecar alone, and those with
// its grants. A folder of grants is hidden whole, so that none is added
// to it, unless the plugin is started in it or the Sidecar's file lies there.
func hiddenFiles(cfg *configs.Config) []string {
	cfg = absolute(cfg)
	out := append(privateFiles(&cfg.Sidecar), cfg.Sidecar.StateDir)
	here, err := os.Getwd()
	if err != nil {
		here = "/"
	}
	for _, path := range slices.Concat(cfg.Sidecar.Grants, cfg.Sidecar.Guardrails) {
		info, err := os.Stat(path)
		if err == nil && info.IsDir() && !within(path, here) && !within(path, cfg.Path) {
			out = append(out, path)
		}
	}
	for _, f := range cfg.Files {
		if !slices.ContainsFunc(out, func(root string) bool { return within(root, f.Path) }) {
			out = append(out, f.Path)
		}
	}
	return out
}

// absolute returns a configuration with the names of its files as they are from
// anywhere.
func absolute(cfg *configs.Config) *configs.Config {
	out := *cfg
	out.Path, out.Sidecar.StateDir = AbsPath(cfg.Path), AbsPath(cfg.Sidecar.StateDir)
	out.Files = slices.Clone(cfg.Files)
	for i := range out.Files {
		out.Files[i].Path = AbsPath(out.Files[i].Path)
	}
	out.Sidecar.Grants, out.Sidecar.Guardrails = slices.Clone(cfg.Sidecar.Grants), slices.Clone(cfg.Sidecar.Guardrails)
	for _, paths := range [][]string{out.Sidecar.Grants, out.Sidecar.Guardrails} {
		for i := range paths {
			paths[i] = AbsPath(paths[i])
		}
	}
	return &out
}

// within reports whether a path is a folder or lies in it.
func within(folder, path string) bool {
	inside, err := filepath.Rel(folder, path)
	return err == nil && inside != ".." && !strings.HasPrefix(inside, "../")
}
