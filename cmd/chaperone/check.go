package main

import (
	"errors"
	"fmt"
	"io"
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
	for _, w := range checked.Warnings {
		fmt.Fprintf(c.stderr, "warning: %v\n", w)
	}
	fmt.Fprintf(c.stdout, "%s in %s: nothing is wrong\n", count(len(checked.Documents), "document"), count(len(checked.Files), "file"))
	return nil
}

// count returns a number and its noun.
func count(n int, noun string) string {
	if n != 1 {
		noun += "s"
	}
	return fmt.Sprintf("%d %s", n, noun)
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
