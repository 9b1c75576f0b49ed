package main

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"github.com/chaperone-proxy/chaperone/configs"
	"github.com/chaperone-proxy/chaperone/ebpf"
	"github.com/chaperone-proxy/chaperone/governance/grantcheck"
	"github.com/chaperone-proxy/chaperone/internal/admin"
	"github.com/chaperone-proxy/chaperone/internal/phrase"
	"github.com/chaperone-proxy/chaperone/sidecar"
)

func (c *cli) checkCommand() *cobra.Command {
	var kernel, recursive bool
	cmd := c.withOutput(&cobra.Command{
		Use: "check PATH...", Short: "Validate files and folders of any kind",
		Long: "Validate files and folders of any kind; - is standard input. All errors are reported at once,\n" +
			"as PATH:LINE:COLUMN: FIELD: error and fix. Valid but suspicious fields, and grants that expire within 14\n" +
			"days, are warnings. Exit status 1: an error, or a grant has expired.",
		Args: func(cmd *cobra.Command, args []string) error {
			if kernel {
				return nil
			}
			return atLeast(1, "a path")(cmd, args)
		},
		RunE: func(_ *cobra.Command, args []string) error {
			err := c.checkFiles(args, recursive)
			if kernel {
				err = errors.Join(err, c.checkKernel())
			}
			return err
		},
	})
	cmd.Flags().BoolVar(&kernel, "kernel", false, "also load and self-test the kernel programs")
	cmd.Flags().BoolVarP(&recursive, "recursive", "R", false, "also the folders below folders")
	return cmd
}

// checkAnswer is the answer of check in JSON and YAML.
type checkAnswer struct {
	OK        bool               `json:"ok"`
	Errors    configs.Errors     `json:"errors"`
	Expired   configs.Errors     `json:"expired"`
	Warnings  configs.Errors     `json:"warnings"`
	Documents []configs.Document `json:"documents"`
}

func (c *cli) checkFiles(paths []string, recursive bool) error {
	if len(paths) == 0 {
		return nil
	}
	checked, err := configs.CheckWith(configs.CheckOptions{Now: time.Now(), Stdin: c.stdin, Recursive: recursive}, paths...)
	wrong, ok := errors.AsType[configs.Errors](err)
	if err != nil && !ok {
		return err
	}
	misplaced, doubtful, err := checkStateDirs(checked.Documents) // not of invalid files
	if err != nil {
		return err
	}
	wrong = append(wrong, misplaced...)
	checked.Warnings = slices.Concat(doubtful, checked.Warnings, usedUp(checked.Policies))
	answer := checkAnswer{
		OK: len(wrong)+len(checked.Expired) == 0, Errors: admin.NonNil(wrong), Expired: admin.NonNil(checked.Expired),
		Warnings: admin.NonNil(checked.Warnings), Documents: admin.NonNil(checked.Documents),
	}
	if c.output == "table" {
		c.printChecked(answer, len(checked.Files))
		c.printGenerations(checked.Policies)
	} else if err := c.print(answer, nil); err != nil {
		return err
	}
	if !answer.OK {
		return exitWith(exitFailure, nil)
	}
	return nil
}

// printChecked prints what is wrong to stderr, and otherwise how much was checked
// to stdout.
func (c *cli) printChecked(a checkAnswer, files int) {
	if len(a.Errors) > 0 {
		fmt.Fprintln(c.stderr, a.Errors.Error())
		return
	}
	for _, e := range a.Expired {
		say(c.stderr, "expired: %v", e)
	}
	for _, w := range a.Warnings {
		say(c.stderr, "warning: %v", w)
	}
	result := "ok"
	if len(a.Expired) > 0 {
		result = phrase.Count(len(a.Expired), "grant") + " expired"
	}
	say(c.stdout, "%s in %s: %s", phrase.Count(len(a.Documents), "document"), phrase.Count(files, "file"), result)
}

// printGenerations prints the signed grants that a Sidecar would put in force.
func (c *cli) printGenerations(policies []configs.PluginPolicy) {
	for _, p := range policies {
		if p.Sidecar == nil || p.Sidecar.Trust == nil {
			continue
		}
		for _, g := range p.Sidecar.Trust.Grants {
			say(c.stdout, "grant %s: generation %d, until %s", g.Name, g.Binding.Generation, g.NotAfter.UTC().Format(time.RFC3339))
		}
	}
}

// usedUp warns of exemptions that are used up by what the stateDirs have; of others that do not
// count any more the loader warns.
func usedUp(policies []configs.PluginPolicy) (out configs.Errors) {
	for _, p := range policies {
		if p.Sidecar == nil || p.Sidecar.Trust == nil {
			continue
		}
		uses := sidecar.ExemptionUses(p.Sidecar.Sidecar.StateDir)
		for _, g := range p.Sidecar.Trust.Grants {
			for i, e := range g.Exemptions {
				if n := uses[e.Name]; e.State(time.Now(), n) == grantcheck.ExemptionUsedUp {
					out = append(out, configs.Error{
						File: g.File, Field: fmt.Sprintf("spec.binding.exemptions[%d]", i),
						Message: fmt.Sprintf("exemption %s is used up: %d of %d uses are written in the stateDir; the rules that need it are denied", e.Name, n, e.MaxUses),
					})
				}
			}
		}
	}
	return out
}

// checkStateDirs reports stateDirs that run would refuse for their place. To root
// that is an error. Another user may check files that are used elsewhere, and may
// not look into every folder: run judges what is below one.
func checkStateDirs(documents []configs.Document) (wrong, doubtful configs.Errors, err error) {
	for _, d := range documents {
		if d.Kind != configs.KindSidecar || d.File == "-" {
			continue
		}
		spec, err := configs.LoadSidecar(d.File)
		if err != nil {
			return nil, nil, fmt.Errorf("load %s:\n%w", d.File, err)
		}
		watched, err := sidecar.CheckStatePlace(spec)
		switch problem := (configs.Error{File: d.File, Field: "spec.stateDir"}); {
		case err == nil:
		case os.Geteuid() == 0 && watched:
			problem.Message = err.Error() + "; run starts on it, and on none that was put in its place"
			doubtful = append(doubtful, problem)
		case os.Geteuid() == 0:
			problem.Message = err.Error()
			wrong = append(wrong, problem)
		case errors.Is(err, fs.ErrPermission):
			problem.Message = fmt.Sprintf("%s was not checked: %s may not look there; run check as root", spec.StateDir, phrase.User(os.Geteuid()))
			doubtful = append(doubtful, problem)
		default:
			problem.Message = "on this machine, run refuses it: " + err.Error()
			doubtful = append(doubtful, problem)
		}
	}
	return wrong, doubtful, nil
}

func (c *cli) checkKernel() error {
	if !printFindings(c.stdout, ebpf.Probe()) {
		return exitWith(exitFailure, errors.New("the kernel cannot confine a plugin"))
	}
	return nil
}

// printFindings prints one line for each finding and reports whether all that
// is required is there.
func printFindings(w io.Writer, findings []ebpf.Finding) bool {
	good := true
	for _, f := range findings {
		if f.Err == nil {
			say(w, "pass  %s", f.Name)
			continue
		}
		mark := "warn"
		if f.Required {
			mark, good = "FAIL", false
		}
		say(w, "%s  %s: %v", mark, f.Name, f.Err)
		if f.Lost != "" {
			say(w, "      lost: %s", f.Lost)
		}
		if f.Remedy != "" {
			say(w, "      remedy: %s", f.Remedy)
		}
	}
	return good
}
