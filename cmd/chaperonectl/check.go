package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"github.com/chaperone-proxy/chaperone/configs"
	"github.com/chaperone-proxy/chaperone/governance/manifest"
	"github.com/chaperone-proxy/chaperone/internal/command"
	"github.com/chaperone-proxy/chaperone/internal/phrase"
)

// pluginCheck is one run of plugin check.
type pluginCheck struct {
	*cli
	guardrails []string
	band       string
	json       bool
	sarif      bool
	budget     time.Duration
}

func (c *cli) checkCommand() *cobra.Command {
	k := &pluginCheck{cli: c}
	cmd := &cobra.Command{
		Use: "check DIR", Short: "Check a manifest against guardrails, and report each fault with its nearest fix", Args: command.Exactly(1, "DIR"),
		Long: "Check the manifest.yaml of a folder, or a file: as the grant that it would become, under the guardrails and\n" +
			"exemptions of the repository; against their conditions in CEL; its names, versions, credentials and documents;\n" +
			"and whether it holds what looks like a secret. The repository is the nearest folder upward that holds trust.yaml.\n\n" +
			"Exit status 0: nothing is wrong. 1: a finding is an error. 2: usage.",
		Example: "  chaperonectl plugin check plugins/crm-sync/2.4.1\n" +
			"  chaperonectl plugin check --guardrail guardrails/company.yaml --sarif manifest.yaml > check.sarif",
		RunE: func(cmd *cobra.Command, args []string) error { return k.run(cmd.Context(), args[0]) },
	}
	cmd.Flags().StringSliceVar(&k.guardrails, "guardrail", nil, "a `FILE` with a PluginGuardrail, also without a signature; beside those of the repository")
	cmd.Flags().StringVar(&k.band, "band", "", "the risk `BAND`, from which documents are needed: low, moderate, high or critical")
	cmd.Flags().BoolVar(&k.json, "json", false, "print JSON")
	cmd.Flags().BoolVar(&k.sarif, "sarif", false, "print SARIF 2.1.0")
	cmd.Flags().DurationVar(&k.budget, "budget", time.Minute, "how long proofs and conditions may take")
	return c.repoFlag(cmd)
}

func (k *pluginCheck) run(ctx context.Context, dir string) error {
	if k.json && k.sarif {
		return command.Usage("check: say one of --json and --sarif")
	}
	if k.band != "" && !slices.Contains(configs.Bands(), configs.Band(k.band)) {
		return command.Usage("check: --band %q is not low, moderate, high or critical", k.band)
	}
	in, err := k.input(dir)
	var result manifest.Result
	var faults configs.Errors
	switch {
	case errors.As(err, &faults):
		result = manifest.Faults(faults)
	case err != nil:
		return err
	default:
		ctx, cancel := context.WithTimeout(ctx, k.budget)
		defer cancel()
		result = manifest.Check(ctx, in)
	}
	if err := k.report(&result, len(in.Guardrails)); err != nil {
		return err
	}
	if result.Refused() {
		return command.ExitError{Status: command.ExitFailure}
	}
	return nil
}

// input reads the manifest and what it is checked with.
func (k *pluginCheck) input(dir string) (manifest.Input, error) {
	file, folder, err := readManifest(dir)
	if err != nil {
		return manifest.Input{}, err
	}
	in := manifest.Input{File: file, Band: configs.Band(k.band), Now: k.now(), Dir: os.DirFS(folder)}
	if full, err := filepath.Abs(folder); err == nil && filepath.Base(filepath.Dir(filepath.Dir(full))) == "plugins" {
		in.VersionFolder, in.PluginFolder = filepath.Base(full), filepath.Base(filepath.Dir(full))
		in.Previous = previous(full, file.Spec.Version)
	}
	b, err := k.bounds(folder)
	if err != nil {
		return manifest.Input{}, err
	}
	in.Guardrails, in.Exemptions = b.guardrails, b.exemptions
	for _, path := range k.guardrails {
		g, err := readGuardrail(path)
		if err != nil {
			return manifest.Input{}, err
		}
		in.Guardrails = append(in.Guardrails, g)
	}
	return in, nil
}

// readManifest reads the manifest at path, or in the folder at path, and returns the folder too.
func readManifest(path string) (*manifest.File, string, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, "", fmt.Errorf("read manifest: %w", err)
	}
	if info.IsDir() {
		path = filepath.Join(path, "manifest.yaml")
	}
	data, err := readBounded(path)
	if err != nil {
		return nil, "", fmt.Errorf("read manifest: %w", err)
	}
	file, err := manifest.Read(path, data)
	return file, filepath.Dir(path), err
}

// readGuardrail reads a guardrail that is not signed.
func readGuardrail(path string) (manifest.Guardrail, error) {
	data, err := readBounded(path)
	if err != nil {
		return manifest.Guardrail{}, fmt.Errorf("read guardrail: %w", err)
	}
	object, err := configs.ParseObject[configs.GuardrailSpec](path, data)
	if err != nil {
		return manifest.Guardrail{}, err
	}
	return manifest.Guardrail{Name: object.Metadata.Name, Path: path, Spec: object.Spec, Data: data}, nil
}

// maxInput bounds the size of files that are read.
const maxInput = 16 << 20

// readBounded reads a regular file of bounded size.
func readBounded(path string) ([]byte, error) {
	f, _, err := openRegular(path)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }() // opened for reading only
	data, err := io.ReadAll(io.LimitReader(f, maxInput+1))
	if err == nil && len(data) > maxInput {
		err = fmt.Errorf("%s is larger than 16 MiB", path)
	}
	return data, err
}

func (k *pluginCheck) report(r *manifest.Result, guardrails int) error {
	switch {
	case k.json:
		return command.WriteJSON(k.stdout, r)
	case k.sarif:
		return command.WriteJSON(k.stdout, r.SARIF(buildVersion()))
	}
	for _, f := range r.Findings {
		k.say("%s", f.Text())
	}
	if r.Plugin == "" {
		k.say("the manifest cannot be read: %s", phrase.Count(len(r.Findings), "fault"))
		return nil
	}
	if guardrails == 0 {
		k.warn("no guardrail was found, so that nothing bounds the manifest; name one with --guardrail")
	}
	verdict := "passes"
	if r.Refused() {
		verdict = "is refused"
	}
	k.say("%s %s %s under %s, with %s", r.Plugin, r.Version, verdict, phrase.Count(guardrails, "guardrail"), phrase.Count(len(r.Findings), "finding"))
	return nil
}
