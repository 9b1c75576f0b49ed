package main

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"path"
	"path/filepath"
	"slices"
	"strconv"

	"github.com/goccy/go-yaml"
	"github.com/spf13/cobra"

	"github.com/chaperone-proxy/chaperone/authz"
	"github.com/chaperone-proxy/chaperone/configs"
	"github.com/chaperone-proxy/chaperone/governance"
	"github.com/chaperone-proxy/chaperone/governance/grantcheck"
	"github.com/chaperone-proxy/chaperone/internal/command"
)

// adoptFlags are those of `adopt`.
type adoptFlags struct{ version, vendor, purpose, artifact, image string }

func (c *cli) adoptCommand() *cobra.Command {
	var f adoptFlags
	cmd := &cobra.Command{
		Use: "adopt GRANT --version VERSION --artifact FILE", Short: "Make a request from a grant without a signature, without losing access",
		Args: command.Exactly(1, "the file of one PluginGrant"),
		Long: "Make plugins/NAME/VERSION with a manifest that asks for exactly what a grant without a signature allows, and with the\n" +
			"sources of its credentials and its files of authorities. It is proved for every request that both allow the same. The migration never drops access:\n\n" +
			"  1. adopt, submit, review, approve, issue\n" +
			"  2. add spec.trust with unsignedUntil to the Sidecar, and the signed grant and guardrails to its grants and guardrails:\n" +
			"     a signed grant takes the place of the unsigned one of its name\n" +
			"  3. remove the unsigned files, then unsignedUntil",
		Example: "  chaperonectl plugin adopt /etc/chaperone/grants/weather.yaml --version 1.0.0 --vendor acme.example --artifact /opt/weather/weather",
		RunE:    func(cmd *cobra.Command, args []string) error { return c.adopt(cmd.Context(), args[0], &f) },
	}
	flags := cmd.Flags()
	flags.StringVar(&f.version, "version", "1.0.0", "the `VERSION` of the plugin that runs today")
	flags.StringVar(&f.vendor, "vendor", "TODO", "the `DOMAIN` of who makes the plugin")
	flags.StringVar(&f.purpose, "purpose", "TODO", "a `TEXT`: what the plugin is for")
	flags.StringVar(&f.artifact, "artifact", "", "the `FILE` of the program that runs today")
	flags.StringVar(&f.image, "image", "", "the `DIGEST` of the image that runs today")
	return c.repoFlag(cmd)
}

func (c *cli) adopt(ctx context.Context, file string, f *adoptFlags) error {
	if (f.artifact == "") == (f.image == "") {
		return command.Usage("adopt: name the program with --artifact, or the digest of its image with --image")
	}
	data, err := readDocument(file)
	if err != nil {
		return err
	}
	object, err := configs.ParseObject[configs.GrantSpec](file, data)
	if err != nil {
		return err
	}
	authorities, err := adoptAuthorities(filepath.Dir(file), &object.Spec.Grant)
	if err != nil {
		return err
	}
	artifact := grantcheck.Artifact{Kind: grantcheck.ArtifactImage, Digest: f.image}
	if f.artifact != "" {
		artifact.Kind = grantcheck.ArtifactFile
		if artifact.Digest, err = digestOf(artifact.Kind, f.artifact); err != nil {
			return err
		}
	}
	made, err := governance.Adopt(ctx, object.Spec.Grant, f.version, f.vendor, f.purpose, artifact, c.now())
	if err != nil {
		return err
	}
	r, err := c.openFolder(".")
	if err != nil {
		return err
	}
	defer r.close()
	dir := governance.RequestDir(object.Spec.Plugin, f.version)
	text, err := renderYAML(made.Manifest)
	if err != nil {
		return err
	}
	if err := r.create(path.Join(dir, governance.FileManifest), text); err != nil {
		return err
	}
	for _, name := range slices.Sorted(maps.Keys(authorities)) {
		if err := r.create(path.Join(dir, name), authorities[name]); err != nil {
			return err
		}
	}
	if len(made.Credentials) > 0 {
		if text, err = credentialsYAML(made.Credentials); err != nil {
			return err
		}
		if err := r.create(path.Join(dir, governance.FileCredentials), text); err != nil {
			return err
		}
	}
	for _, note := range made.Notes {
		c.warn("%s", note)
	}
	c.say("%s asks for exactly what %s allows; proved for every request", path.Join(dir, governance.FileManifest), file)
	return nil
}

// adoptAuthorities reads the files of authorities that a grant in folder dir names, and has
// the grant name them as they will be beside the manifest: by their own name, with a number
// before it where another file has it.
func adoptAuthorities(dir string, g *authz.Grant) (map[string][]byte, error) {
	named, out := map[string]string{}, map[string][]byte{}
	var all []*string
	for i := range g.Rules {
		all = append(all, &g.Rules[i].To.TLS.CAFile)
	}
	for i := range g.Credentials {
		if o := g.Credentials[i].Inject.OAuth2; o != nil {
			all = append(all, &o.CAFile)
		}
	}
	for _, ca := range all {
		if *ca == "" {
			continue
		}
		file := *ca
		if !filepath.IsAbs(file) {
			file = filepath.Join(dir, file)
		}
		if named[file] == "" {
			data, err := readDocument(file)
			if err != nil {
				return nil, err
			}
			name := filepath.Base(file)
			for n := 2; out[name] != nil; n++ {
				name = strconv.Itoa(n) + "-" + filepath.Base(file)
			}
			if err := grantcheck.CheckAuthorityFile(name); err != nil {
				return nil, fmt.Errorf("caFile %w", err)
			}
			named[file], out[name] = name, data
		}
		*ca = named[file]
	}
	return out, nil
}

func credentialsYAML(all []authz.CredentialSpec) ([]byte, error) {
	data, err := json.Marshal(map[string]any{"credentials": all})
	if err != nil {
		return nil, fmt.Errorf("write credentials: %w", err)
	}
	text, err := yaml.JSONToYAML(data)
	if err != nil {
		return nil, fmt.Errorf("write credentials: %w", err)
	}
	_, err = governance.ParseCredentials(governance.FileCredentials, text)
	return text, err
}
