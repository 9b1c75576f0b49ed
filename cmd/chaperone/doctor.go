package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"runtime"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/chaperone-proxy/chaperone/internal/admin"
	"github.com/chaperone-proxy/chaperone/internal/phrase"
	"github.com/chaperone-proxy/chaperone/sidecar"
)

func (c *cli) doctorCommand() *cobra.Command {
	var logIn bool
	cmd := c.withOutput(c.withConfig(&cobra.Command{
		Use:   "doctor [--config FILE]",
		Short: "Check the kernel, the cgroup, Vault, names and the clock, each with its remedy",
		Args:  noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			findings, err := c.examined(cmd.Context(), logIn)
			if err != nil {
				return err
			}
			sick := false
			for _, f := range findings {
				sick = sick || f.Required && !f.OK
			}
			if err := c.print(findings, func(w io.Writer) { doctorTable(w, findings) }); err != nil {
				return err
			}
			if sick {
				return exitWith(exitFailure, nil)
			}
			return nil
		},
	}))
	cmd.Flags().BoolVar(&logIn, "login", false, "also log in to Vault if that may consume a secret id or a use of a token")
	return cmd
}

// doctorTable prints what was examined, the findings by category, and how many
// there are of each kind.
func doctorTable(w io.Writer, findings []sidecar.Finding) {
	var kernel unix.Utsname
	release := "unknown"
	if unix.Uname(&kernel) == nil {
		release = unix.ByteSliceToString(kernel.Release[:])
	}
	say(w, "chaperone %s on Linux %s (%s), uid %d", buildVersion(), release, runtime.GOARCH, os.Geteuid())
	category, passed, warned, failed := "", 0, 0, 0
	for _, f := range findings {
		if f.Category != category {
			category = f.Category
			fmt.Fprintf(w, "\n%s\n", category)
		}
		findingsTable(w, []sidecar.Finding{f})
		switch {
		case f.OK:
			passed++
		case f.Required:
			failed++
		default:
			warned++
		}
	}
	fmt.Fprintf(w, "\n%s: %d pass, %d warn, %d FAIL\n", phrase.Count(len(findings), "check"), passed, warned, failed)
}

func findingsTable(w io.Writer, findings []sidecar.Finding) {
	for _, f := range findings {
		if f.OK && f.Measured != "" {
			say(w, "pass  %s: %s", f.Name, f.Measured)
			continue
		}
		if f.OK {
			say(w, "pass  %s", f.Name)
			continue
		}
		mark := "warn"
		if f.Required {
			mark = "FAIL"
		}
		say(w, "%s  %s: %s", mark, f.Name, f.Problem)
		for _, line := range []struct{ name, text string }{{"lost", f.Lost}, {"remedy", f.Remedy}, {"code", f.Code}} {
			if line.text != "" {
				say(w, "      %s: %s", line.name, line.text)
			}
		}
	}
}

// examined runs every check. Without --config only the machine is examined. A login
// to Vault that may use something up is made with logIn only.
func (c *cli) examined(ctx context.Context, logIn bool) ([]sidecar.Finding, error) {
	e := sidecar.Examination{LogIn: logIn, Running: c.askRunning}
	if c.config != "" {
		var err error
		if e.Config, err = loadConfig(c.config); err != nil {
			return nil, err
		}
	}
	return sidecar.Examine(ctx, e), nil
}

// askRunning returns the status of the sidecar that runs on the configuration, and
// false if no sidecar answers.
func (c *cli) askRunning(ctx context.Context) (admin.Status, bool) {
	s, err := c.ofConfig()
	if err != nil || s.Socket == "" {
		return admin.Status{}, false
	}
	if _, err := os.Stat(s.Socket); err != nil {
		return admin.Status{}, false
	}
	client := admin.Dial(s.Socket)
	status, err := ask(ctx, client, client.Status)
	return status, err == nil
}
