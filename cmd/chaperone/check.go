package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/spf13/cobra"

	"github.com/chaperone-proxy/chaperone/configs"
	"github.com/chaperone-proxy/chaperone/ebpf"
)

func (c *cli) checkCommand() *cobra.Command {
	var kernel bool
	cmd := &cobra.Command{
		Use: "check PATH...", Short: "Validate files and folders of any kind",
		Long: "Validate files and folders of any kind. Everything that is wrong is reported at once, as\n" +
			"PATH:LINE:COLUMN: FIELD: what is wrong and what would be right.",
		Args: func(cmd *cobra.Command, args []string) error {
			if kernel {
				return nil
			}
			return atLeast(1, "a path")(cmd, args)
		},
		RunE: func(_ *cobra.Command, args []string) error {
			err := c.checkFiles(args)
			if kernel {
				err = errors.Join(err, c.checkKernel())
			}
			return err
		},
	}
	cmd.Flags().BoolVar(&kernel, "kernel", false, "also load and self-test the kernel programs")
	return cmd
}

func (c *cli) checkFiles(paths []string) error {
	if len(paths) == 0 {
		return nil
	}
	checked, err := configs.Check(time.Now(), paths...)
	if wrong, ok := errors.AsType[configs.Errors](err); ok {
		fmt.Fprintln(c.stderr, wrong.Error())
		return exitError{exitFailure, nil}
	}
	if err != nil {
		return err
	}
	if err := c.checkStateDirs(checked.Documents); err != nil {
		return err
	}
	for _, w := range checked.Warnings {
		fmt.Fprintf(c.stderr, "warning: %v\n", w)
	}
	fmt.Fprintf(c.stdout, "%s in %s: nothing is wrong\n", count(len(checked.Documents), "document"), count(len(checked.Files), "file"))
	return nil
}

// checkStateDirs reports stateDirs that run would refuse for their place. To root
// that is an error. Another user may check files that are used elsewhere.
func (c *cli) checkStateDirs(documents []configs.Document) error {
	wrong := false
	for _, d := range documents {
		if d.Kind != configs.KindSidecar {
			continue
		}
		spec, err := configs.LoadSidecar(d.File)
		if err != nil {
			return fmt.Errorf("load %s:\n%w", d.File, err)
		}
		err = checkPlace(spec.StateDir, spec.Plugin, sidecarUser(spec.Kernel))
		switch problem := (configs.Error{File: d.File, Field: "spec.stateDir"}); {
		case err == nil:
		case os.Geteuid() == 0:
			problem.Message, wrong = err.Error(), true
			fmt.Fprintln(c.stderr, problem)
		default:
			problem.Message = "on this machine, run refuses it: " + err.Error()
			fmt.Fprintf(c.stderr, "warning: %v\n", problem)
		}
	}
	if wrong {
		return exitError{exitFailure, nil}
	}
	return nil
}

// count returns a number and its noun.
func count(n int, noun string) string { return counted(n, noun, noun+"s") }

// counted returns a number and its noun, which has a plural of its own.
func counted(n int, one, many string) string {
	if n != 1 {
		one = many
	}
	return fmt.Sprintf("%d %s", n, one)
}

func (c *cli) checkKernel() error {
	if !printFindings(c.stdout, ebpf.Probe()) {
		return exitError{exitFailure, errors.New("the kernel cannot confine a plugin")}
	}
	return nil
}

// printFindings prints one line for each finding and reports whether all that
// is required is there.
func printFindings(w io.Writer, findings []ebpf.Finding) bool {
	good := true
	for _, f := range findings {
		if f.Err == nil {
			fmt.Fprintf(w, "pass  %s\n", f.Name)
			continue
		}
		mark := "warn"
		if f.Required {
			mark, good = "FAIL", false
		}
		fmt.Fprintf(w, "%s  %s: %v\n", mark, f.Name, f.Err)
		if f.Lost != "" {
			fmt.Fprintf(w, "      lost: %s\n", f.Lost)
		}
		if f.Remedy != "" {
			fmt.Fprintf(w, "      remedy: %s\n", f.Remedy)
		}
	}
	return good
}
