package sidecar

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"github.com/chaperone-proxy/chaperone/configs"
	"github.com/chaperone-proxy/chaperone/ebpf/sandbox"
	"github.com/chaperone-proxy/chaperone/governance/grantcheck"
)

// checkTrust refuses a Sidecar whose artifact this command cannot verify: run reads files
// and trees, serve is given the digest of an image.
func checkTrust(cfg *configs.Config, external bool) error {
	if cfg.Trust == nil {
		return nil
	}
	a := cfg.Sidecar.Trust.Artifact
	switch image := a != nil && a.Kind == grantcheck.ArtifactImage; {
	case external && !image:
		return errors.New("spec.trust.artifact: is missing, and serve cannot read the program of a plugin that another process starts; write {kind: image, digest: DIGEST} as the container runtime states it")
	case !external && image:
		return errors.New("spec.trust.artifact: is an image, which chaperone run cannot verify; use chaperone serve beside a container, or remove it")
	}
	return nil
}

// boundArtifact returns the artifact that the signed grants are for; false without a
// signed grant.
func boundArtifact(cfg *configs.Config) (grantcheck.Artifact, bool, error) {
	if cfg.Trust == nil || len(cfg.Trust.Grants) == 0 {
		return grantcheck.Artifact{}, false, nil
	}
	first := cfg.Trust.Grants[0]
	for _, g := range cfg.Trust.Grants[1:] {
		if !g.Binding.Artifact.Equal(first.Binding.Artifact) {
			return grantcheck.Artifact{}, false, fmt.Errorf("grant %s is for %s, and grant %s for %s; one plugin has one artifact: issue both for the same", first.Name, first.Binding.Artifact.Text(), g.Name, g.Binding.Artifact.Text())
		}
	}
	return first.Binding.Artifact, true, nil
}

// verifyArtifact verifies the program that is to be started against the signed grants. It
// returns the program's path and digest, which the launcher compares again with the
// descriptor that it executes; "" without spec.trust. Without a signed grant the file
// is noted: the first signed grant that is loaded has to be for it.
func (p *Plugin) verifyArtifact(args []string) (path, digest string, err error) {
	cfg := p.cfg.Files()
	bound, is, err := boundArtifact(cfg)
	if err != nil || cfg.Trust == nil {
		return "", "", err
	}
	if err := p.checkTrustPlace(cfg); err != nil {
		return "", "", err
	}
	if path, err = exec.LookPath(args[0]); err != nil {
		status := 127
		if errors.Is(err, fs.ErrPermission) {
			status = 126
		}
		return "", "", &sandbox.ExecError{Path: args[0], Status: status, Err: err}
	}
	switch {
	case !is:
		digest, _, err = digestFile(path)
		bound = grantcheck.Artifact{Kind: grantcheck.ArtifactFile, Digest: digest}
	case bound.Kind == grantcheck.ArtifactFile:
		if digest, err = p.verifyFile(path, bound); err == nil {
			err = bound.CheckArgs(args, "", "", nil)
		}
	case bound.Kind == grantcheck.ArtifactTree:
		digest, err = p.verifyTree(path, args, bound, cfg.Sidecar.Trust.Artifact)
	default:
		err = fmt.Errorf("the grant is for %s, which chaperone run cannot verify; use chaperone serve beside the container", bound.Text())
	}
	if err != nil {
		return "", "", fmt.Errorf("start %s: %w", path, err)
	}
	p.cfg.Verified(bound)
	return path, digest, nil
}

// checkTrustPlace refuses a trust root that the plugin could replace.
func (p *Plugin) checkTrustPlace(cfg *configs.Config) error {
	account, _ := p.cfg.Confinement().Account()
	if root := AbsPath(cfg.Sidecar.Trust.Root); p.cfg.Confinement().Kernel() && reachable(root, cfg.Sidecar.Process.Files) {
		for _, path := range []string{root, filepath.Dir(root)} {
			if writable(path, account.UID, groupsOf(account)...) {
				return fmt.Errorf("the plugin may change %s, and so decide whose signatures count; give it to root or the sidecar's user, with mode go-w", path)
			}
		}
	}
	return nil
}

// verifyFile verifies one file. Of a script only the descriptor's file is verified and not
// its interpreter, which opens the script again: it must not be the plugin's to change. Any
// other file must not be the plugin's to write: one that is written in place between its
// digest and its execution is the same descriptor.
func (p *Plugin) verifyFile(path string, bound grantcheck.Artifact) (string, error) {
	digest, script, err := digestFile(path)
	if err != nil {
		return "", err
	}
	if digest != bound.Digest {
		return "", fmt.Errorf("its digest is %s, and the grant is for %s; start the program that was approved, or have this one approved", digest, bound.Text())
	}
	if script {
		return digest, p.checkUnchangeable(path)
	}
	if account, ok := p.cfg.Confinement().Account(); ok && !account.SameUser {
		return digest, p.checkOwnUnchangeable(path)
	}
	return digest, nil
}

// digestFile returns the digest of a file, and whether an interpreter reads it.
func digestFile(path string) (digest string, script bool, err error) {
	f, err := os.Open(path)
	if err != nil {
		return "", false, err
	}
	defer func() { _ = f.Close() }() // opened for reading only
	head := make([]byte, 2)
	if n, err := f.ReadAt(head, 0); err == nil && n == 2 {
		script = string(head) == "#!"
	}
	digest, err = grantcheck.FileDigest(f)
	return digest, script, err
}

// verifyTree verifies a folder and the arguments, and returns the digest of the program in it.
func (p *Plugin) verifyTree(path string, args []string, bound grantcheck.Artifact, stated *configs.TrustArtifact) (string, error) {
	if stated == nil || stated.Path == "" {
		return "", fmt.Errorf("the grant is for %s, and spec.trust.artifact names no folder; write {kind: tree, path: FOLDER}", bound.Text())
	}
	dir, err := filepath.EvalSymlinks(stated.Path)
	if err != nil {
		return "", err
	}
	program, err := filepath.EvalSymlinks(AbsPath(path))
	if err != nil {
		return "", err
	}
	if !within(dir, program) {
		return "", fmt.Errorf("it is not in %s, the folder that the grant is for", dir)
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return "", err
	}
	defer func() { _ = root.Close() }() // opened for reading only
	err = fs.WalkDir(root.FS(), ".", func(name string, d fs.DirEntry, err error) error {
		path := filepath.Join(dir, name)
		if err == nil {
			err = p.checkOwnUnchangeable(path)
		}
		if info, serr := os.Lstat(path); err == nil && d.IsDir() && (serr != nil || info.Mode()&0o002 != 0) { // sticky: files could still be added
			err = fmt.Errorf("every user may add files to %s, which is a part of the artifact; give it mode go-w", path)
		}
		return err
	})
	if err == nil {
		err = p.checkUnchangeable(dir)
	}
	if err != nil {
		return "", err
	}
	digest, err := grantcheck.TreeDigest(root.FS())
	if err != nil {
		return "", err
	}
	if digest != bound.Digest {
		return "", fmt.Errorf("the digest of %s is %s, and the grant is for %s; start the program that was approved, or have this one approved", dir, digest, bound.Text())
	}
	if err := bound.CheckArgs(args, dir, program, root.FS()); err != nil {
		return "", err
	}
	digest, _, err = digestFile(program)
	return digest, err
}

// verifiedEnvironment returns env, with spec.trust without the variables by which the dynamic
// loader puts other code into the program that was verified.
func (p *Plugin) verifiedEnvironment(env []string) []string {
	if p.cfg.Files().Trust == nil {
		return env
	}
	return slices.DeleteFunc(slices.Clone(env), func(entry string) bool {
		name, _, _ := strings.Cut(entry, "=")
		return configs.LoaderVariable(name)
	})
}

// checkUnchangeable refuses a file that the plugin's user may change, or put another one
// in the place of.
func (p *Plugin) checkUnchangeable(path string) error {
	path, err := filepath.EvalSymlinks(AbsPath(path))
	if err != nil {
		return err
	}
	for at := path; ; at = filepath.Dir(at) {
		if err := p.checkOwnUnchangeable(at); err != nil || at == filepath.Dir(at) {
			return err
		}
	}
}

// checkOwnUnchangeable is checkUnchangeable without the folders above.
func (p *Plugin) checkOwnUnchangeable(path string) error {
	uid, gids := os.Geteuid(), []int{os.Getegid()}
	if account, ok := p.cfg.Confinement().Account(); ok {
		uid, gids = account.UID, groupsOf(account)
	}
	if writable(path, uid, gids...) {
		return fmt.Errorf("the plugin's user (uid %d) may change %s, so that it is not what was verified; give it to another user, with mode go-w and no access list of it", uid, path)
	}
	return nil
}

// verified notes the artifact that runs, see sameArtifact.
func (c *PolicyControl) verified(a grantcheck.Artifact) { c.artifact.Store(&a) }

// sameArtifact refuses grants for another artifact than the one that runs.
func (c *PolicyControl) sameArtifact(next *configs.Config) error {
	if err := checkTrust(next, c.cfg.External); err != nil {
		return err
	}
	bound, is, err := boundArtifact(next)
	if err != nil {
		return err
	}
	if runs := c.artifact.Load(); is && runs != nil && !runs.Equal(bound) {
		return fmt.Errorf("spec.binding.artifact: the grant is for %s, and %s runs; start the new one with its grant", bound.Text(), runs.Text())
	}
	return nil
}
